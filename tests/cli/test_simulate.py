"""`hag-plugin simulate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hag_plugin.cli import main

SIZES = ["--nodes", "2400000", "--edges", "120000000", "--features", "100", "--quiet"]


def simulate(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["simulate", *words, *SIZES, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


@pytest.mark.slow
def test_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("trace.json", "timeline.svg", "plan.json")]
    first = simulate(capsys, "sage", "--topology", "pcie4x4", "--proposals", "60",
                     "--trace", names[0], "--plot", names[1], "-o", names[2])  # fmt: skip
    assert first["written"] == names
    assert first["mcmc"]["sampled_seconds"] == first["simulated_seconds"]
    assert first["mcmc"]["sampled_seconds"] <= first["mcmc"]["simulated_seconds"]
    assert first["critical_path_seconds"] <= first["simulated_seconds"]
    second = simulate(capsys, "sage", "--topology", "pcie4x4", "--plan", names[2])
    assert second["simulated_seconds"] == first["simulated_seconds"]
    assert second["mcmc"] is None


def test_command_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "gcn", "--topology", "a100x8", "--seconds", "0.2", *SIZES]) == 0
    text = capsys.readouterr().out
    assert "additive optimum" in text
    assert "(predicted)" in text


def test_the_busiest_link_is_none_of_the_devices(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["gcn", "--topology", "pcie4x4"]
    found = simulate(capsys, *words)
    links = [*found["busy_seconds"].values()][4:]
    share = max(links) / found["simulated_seconds"]
    assert share < max(found["busy_seconds"].values()) / found["simulated_seconds"]
    assert main(["simulate", *words, *SIZES]) == 0
    assert f"busiest link    {share:10.0%}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--plot", "timeline.gif"], ".png"),
        (["--trace", "trace.txt"], ".json"),
        (["--trace", "nowhere/trace.json"], "folder"),
        (["--proposals", "-1"], "argument --proposals: '-1'"),
        (["--plan", "missing.json"], "missing.json"),
    ],
)
def test_command_refuses(
    capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert main(["simulate", "gcn", *SIZES, *words]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.out == ""
