"""The benchmark in examples/: it runs, resumes, and writes a page that can be read."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hag_plugin.layers import dgl, pyg

ROOT = Path(__file__).parents[2]
BENCHMARK = ROOT / "examples" / "benchmark"

pytestmark = pytest.mark.skipif(
    not BENCHMARK.is_dir(), reason="the benchmark is part of the repository, not of the wheel"
)


def run(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # One thread: a busy machine makes a second one wait.
    command = [sys.executable, str(BENCHMARK), "--quick", "--quiet", "--threads", "1"]
    return subprocess.run(
        [*command, "--graphs", "cliques", "--out", str(out), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLCONFIGDIR": str(out / "matplotlib")},
        timeout=120,
    )


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("benchmark")
    done = run(out)
    # 1 is for "auto slower than none", which a run this short cannot tell.
    assert done.returncode in (0, 1), done.stderr
    return out


def test_every_suite_leaves_its_cells(measured: Path) -> None:
    first, *cells = records(measured)
    assert first["kind"] == "environment"
    assert first["machine"]["cores"] >= 1
    assert first["versions"]["torch"]
    assert first["threads"] == 1
    count: dict[str, int] = {}
    for record in cells:
        assert record["kind"] == "cell"
        assert record["environment"] == first["id"]
        assert not [side for side in record["wrong"] if side.startswith("hag")]
        count[record["suite"]] = count.get(record["suite"], 0) + 1
    assert count == {
        "aggregate": 1, "epochs": 6, "layers": len(pyg.RECORDS) + 4,
        "calls": 2 * (len(pyg.RECORDS) + 15), "dgl-layers": len(dgl.RECORDS) + 5,
        "search": 2, "scale": 1, "never-slower": 4, "cost": 2, "counts": 2,
    }  # fmt: skip


def test_a_cell_has_both_forms_and_a_control(measured: Path) -> None:
    (cell,) = [r for r in records(measured) if r.get("suite") == "aggregate"]
    for form in ("fresh", "reused"):
        sides = cell["forms"][form]["sides"]
        assert {"copy", "hag auto", "hag none", "hag auto again"} <= set(sides)
        for side in sides.values():
            assert 0 < side["least"] <= side["low"] <= side["median"] <= side["high"]
        assert cell["forms"][form]["control"]["spread"] >= 0
    assert "PyG gather + scatter" not in cell["forms"]["reused"]["sides"]
    assert cell["saved"]["rows_read"] < cell["saved"]["rows_read_before"]


def test_the_page_has_tables_goals_and_the_machine(measured: Path) -> None:
    page = (measured / "report.md").read_text()
    for words in ("## Goals", "## Aggregation", "## Epochs", "## Layers", "## Search",
                  "Published, not measured",
                  "its times mean nothing", "| cliques |", "A/A"):  # fmt: skip
        assert words in page, words
    summary = json.loads((measured / "summary.json").read_text())
    assert {"environment", "goals", "geometric_means", "cells", "failures"} <= set(summary)
    assert {goal["met"] for goal in summary["goals"]} <= {True, False, None}
    if importlib.util.find_spec("matplotlib"):
        for name in ("aggregate", "epochs", "search", "never_slower"):
            assert (measured / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_a_second_run_measures_only_what_is_missing(measured: Path) -> None:
    file = measured / "results.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines)[:-20])  # as if it was cut off while the last was written
    done = run(measured)
    assert done.returncode in (0, 1), done.stderr
    assert f"{len(lines) - 2} of {len(lines) - 1} cells are measured already" in done.stderr
    again = [line for line in file.read_text().splitlines() if line not in lines]
    assert len(again) == 2  # the torn line and the cell anew
    assert json.loads(again[1])["cell"] == json.loads(lines[-1])["cell"]


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    assert run(tmp_path, "no-such-suite").returncode == 2
    done = run(tmp_path, "report")
    assert done.returncode == 2
    assert "run a suite first" in done.stderr


# Timing -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def timing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_timing", BENCHMARK / "timing.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_sides_take_turns_and_together_in_the_same_rounds(timing: ModuleType) -> None:
    count = {"a": 0, "b": 0, "c": 0}

    def call(name: str) -> Any:
        def counted() -> None:
            count[name] += 1

        return counted

    budget = timing.Budget(0.02, least_rounds=3, most_rounds=9, least_seconds=1e-5)
    rounds = timing.interleave({n: call(n) for n in count}, budget, together=("a", "b"))
    assert all(count.values())
    for a, b in zip(rounds.seconds["a"], rounds.seconds["b"], strict=True):
        assert (a is None) == (b is None)
    assert rounds.summary()["c"]["rounds"] >= 3


def test_control_of_equal_times_has_no_spread(timing: ModuleType) -> None:
    rounds = timing.Rounds({"a": [1.0, 2.0, None], "b": [1.0, 2.0, 3.0]}, {"a": 1, "b": 1})
    assert rounds.control("a", "b") == {"ratio": 1.0, "spread": 0.0}
    slower = timing.Rounds({"a": [1.0, 1.1, 0.9], "b": [2.0, 2.2, 1.8]}, {"a": 1, "b": 1})
    assert slower.ratio("b", "a") == pytest.approx(2.0)
