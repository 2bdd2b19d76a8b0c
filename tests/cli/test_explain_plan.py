"""`hag-plugin explain-plan` reads what `plan` wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hag_plugin.cli import main
from hag_plugin.parallel.search.plan import Plan

SIZES = ["--nodes", "240000", "--edges", "12000000", "--features", "100", "--halo-ratio", "2"]


def test_plan_writes_a_file_that_explain_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "plan.json")
    assert main(["plan", "gcn", *SIZES, "--topology", "pcie4x4", "-o", path]) == 0
    out = capsys.readouterr().out
    assert "All figures are predicted" in out
    assert "predicted, all-gather" in out
    assert Plan.load(path).world_size == 4
    assert main(["explain-plan", path]) == 0
    assert out.startswith(capsys.readouterr().out.strip())
    assert main(["explain-plan", path, "gcn", *SIZES, "--topology", "pcie4x4", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    refused = document["alternatives"]["convs.0"]["relations"]
    assert refused == "refused: it has 1 relations, fewer than 4 devices"


def test_explain_refuses_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "plan.json")
    assert main(["plan", "gcn", *SIZES, "-o", path]) == 0
    assert main(["explain-plan", path, "gcn", *SIZES, "--layers", "2"]) == 2
    assert "the plan is for another model" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--topology", "pcie4x4"],
        ["--topology", "v100x4-nvlink"],
        ["--topology", "4x8hdr", "--devices", "4"],
        ["--devices", "2"],
    ],
    ids=" ".join,
)
def test_a_plan_is_explained_on_its_own_machine(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "plan.json")
    assert main(["plan", "gcn", *SIZES, *options, "-o", path]) == 0
    planned = capsys.readouterr().out.split("\n\nwritten")[0].strip()
    assert main(["explain-plan", path, "gcn", *SIZES]) == 0
    explained = capsys.readouterr().out
    assert explained.startswith(planned)
    assert "No other plan is predicted to take less." in explained


def test_what_another_plan_beats_is_not_called_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, sizes = tmp_path / "plan.json", ["--nodes", "20000", "--edges", "400000"]
    assert main(["plan", "gcn", *sizes, "--topology", "pcie4x4", "-o", str(path)]) == 0
    capsys.readouterr()
    assert main(["explain-plan", str(path), "gcn", *sizes, "--topology", "a100x8"]) == 0
    assert "Another plan is predicted to take" in capsys.readouterr().out
    document = json.loads(path.read_text())
    document["topology"] = "ours"
    path.write_text(json.dumps(document))
    assert main(["explain-plan", str(path), "gcn", *sizes]) == 2
    words = "'ours', which is not built in; expected its topology (--topology FILE)"
    assert words in capsys.readouterr().err
