"""`hag-plugin demo`: both sides train, agree, and fail in words."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from .runs import refuse, run_json


def check_demo(document: dict[str, Any], epochs: int) -> None:
    for side in ("stock", "accelerated"):
        assert len(document[side]["losses"]) == len(document[side]["epoch_seconds"]) == epochs
        assert 0 <= document[side]["accuracy"] <= 1
    # The first loss is taken at, or close to, the same weights; later ones drift by rounding.
    assert document["accelerated"]["losses"][0] == pytest.approx(
        document["stock"]["losses"][0], rel=1e-3
    )
    assert document["differences"]["initial_float64"] < 1e-12
    assert document["differences"]["same_weights_float32"] < 1e-5
    assert document["search_seconds"] > 0
    assert 0 <= document["accelerated"]["hag_share"] <= 1
    assert document["stock"]["hag_share"] is None
    assert document["stats"]["rows_read"] <= document["stats"]["rows_read_before"]


@pytest.mark.slow
def test_demo_on_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch_geometric")
    arguments = ["demo", "--dataset", "karate", "--epochs", "3", "--hidden", "8", "--threads", "1"]
    document, progress = run_json(capsys, *arguments)
    check_demo(document, 3)
    assert document["dataset"]["task"] == "nodes"
    assert "searching" in progress  # a bar leaves out steps that pass within a tenth of a second
    assert document["settings"]["threads"] == 1


def test_demo_subprocess_on_graphs() -> None:
    pytest.importorskip("torch_geometric")
    command = [sys.executable, "-m", "hag_plugin", "demo", "--epochs", "2", "--graphs", "40"]
    done = subprocess.run(
        [*command, "--json", "--threads", "1"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    check_demo(document, 2)
    assert document["dataset"] | {"source": ""} == {
        "name": "collaboration", "source": "", "graphs": 40, "nodes": document["dataset"]["nodes"],
        "edges": document["dataset"]["edges"], "classes": 3, "task": "graphs",
    }  # fmt: skip
    assert "100%" in done.stderr or "epoch" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("dataset", [["--graphs", "40"], ["--dataset", "karate"]])
def test_demo_in_dgl(capsys: pytest.CaptureFixture[str], dataset: list[str]) -> None:
    pytest.importorskip("dgl", reason="DGL is not installed")
    arguments = ["demo", "--framework", "dgl", *dataset, "--epochs", "2", "--threads", "1"]
    document, _ = run_json(capsys, *arguments)
    check_demo(document, 2)
    assert document["settings"]["framework"] == "dgl"
    assert document["stats"]["rows_read"] <= document["stats"]["rows_read_before"]


@pytest.mark.slow
def test_demo_of_a_failing_side_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch_geometric")
    monkeypatch.setenv("HAG_PLUGIN_ISA", "none")  # read where kernels first run: in the sides
    said = refuse(capsys, "demo", "--dataset", "karate", "--quiet", code=1)
    assert 'the accelerated run failed: ValueError: HAG_PLUGIN_ISA is "none"' in said
