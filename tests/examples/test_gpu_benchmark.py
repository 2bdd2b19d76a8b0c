"""The benchmark on a GPU, as far as it goes without one."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import hag_plugin

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "benchmark" / "gpu.py"

pytestmark = pytest.mark.skipif(
    not SCRIPT.is_file(), reason="the benchmark is part of the repository, not of the wheel"
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, as a module."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.syspath_prepend(str(SCRIPT.parents[1]))
    return importlib.import_module("benchmark.gpu")


def test_help() -> None:
    done = run("--help")
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch finds a GPU")
def test_refuses_without_a_card(tmp_path: Path) -> None:
    done = run("--quick", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "torch finds no GPU; expected a machine with a CUDA card" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_rehearsal_writes_no_results() -> None:
    done = run("--rehearse")
    assert done.returncode == 2
    assert "--rehearse needs --out FOLDER" in done.stderr


# Tests on the card ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codes", "failed", "passed"),
    [
        ((0, 0, 0), 0, True),
        ((0, 0, 1), 0, False),
        ((0, 1), 0, False),
        ((1,), 0, False),
        ((None, None, 0), 0, True),  # not done in time
        ((0, 0, None), 0, True),
        ((0, None), 1, False),  # not done in time, and one had failed
    ],
)
def test_tests_run_once_more_under_the_sanitizer(
    gpu: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    codes: tuple[int | None, ...],
    failed: int,
    passed: bool,
) -> None:
    commands: list[list[str]] = []

    def run(
        command: list[str], timeout: float, stdout: Any, **_: Any
    ) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        code = codes[len(commands) - 1]
        stdout.write("a.py::test_a PASSED\n")
        if code is None:
            stdout.write("a.py::test_b FAILED\n" * failed)
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(gpu.shutil, "which", lambda tool, path: f"/cuda/{tool}")
    monkeypatch.setattr(gpu.subprocess, "run", run)
    rows = gpu.Rows(tmp_path / gpu.RESULTS)
    for _ in range(2):  # what ran runs no more in a second call, and is what it was
        assert gpu.run_tests(rows, 100.0, False) is passed
        assert len(commands) == len(codes)
    for command, tests in zip(commands, gpu.TESTS.values(), strict=False):
        assert {*tests} <= {*command}
        assert all((gpu.ROOT / test).exists() for test in tests)
    assert all(command[0] == "/cuda/compute-sanitizer" for command in commands[2:])
    sources = "".join(p.read_text() for p in (gpu.ROOT / gpu.TESTS["kernels"][0]).glob("test_*.py"))
    for word in gpu.MEMCHECK:
        assert word in sources
    counts = {"passed": 1, "failed": 0, "skipped": 0}
    assert rows.of("tests")[0]["counts"] == counts
    assert "Tests, card: " in gpu.page(rows)


# Cells ------------------------------------------------------------------------------------------


def test_cells_come_in_the_order_of_what_they_decide(gpu: ModuleType) -> None:
    keys = [step.key for step in gpu.plan(gpu.GENERATED, gpu.WIDTHS, gpu.KINDS, lambda: None)]
    assert len(set(keys)) == len(keys)
    first = [key.split(", ")[0] for key in keys]
    kinds = list(dict.fromkeys(first))
    assert kinds[0] == "sum"
    assert {"GCN epoch", "GAT step", "SAGE-mean batches", "max"} <= set(kinds)
    order = ["GIN batches", "GCN step", "max", "GCN step of one rank"]
    assert [kind for kind in kinds if kind in order] == order
    assert keys[-1].startswith(f"sum, {gpu.LARGEST}")  # the longest is the last


FACTS = {"name": "A card", "driver": "1.2", "cuda": "13.0", "copy_bytes_per_second": 4e12}


def options(gpu: ModuleType, folder: Path, **others: Any) -> argparse.Namespace:
    given = ["--rehearse", "--out", str(folder), "--graphs", "a", "b"]
    args: argparse.Namespace = gpu.parse(given)
    vars(args).update(others)
    return args


def test_a_cell_that_takes_its_process_with_it_is_left_out(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = gpu.Rows(tmp_path / gpu.RESULTS)
    args = options(gpu, tmp_path)
    keys = gpu.left(args, rows)
    broken = keys[1], keys[4]

    def worker(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert "--worker" in command
        for key in gpu.left(args, rows):
            rows.add("begun", key=key)
            if key in broken:
                return subprocess.CompletedProcess(command, -6)
            rows.add("cell", key=key, what="sum", graph="a", width=8, absent={})
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(gpu.subprocess, "run", worker)
    gpu.measure_apart(args, rows, [], gpu.time.monotonic() + 1000)
    assert gpu.left(args, rows) == []
    assert tuple(row["key"] for row in rows.of("crash")) == broken
    text = gpu.page(rows)
    assert all(f"{key}: its process ended with exit code -6" in text for key in broken)


@pytest.mark.parametrize("stopped", [0, 1, 3])
def test_what_is_left_is_listed_and_taken_up(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stopped: int
) -> None:
    """Also where the file ends in the middle of a line, as it does when a machine goes away."""
    first, second = (gpu.Rows(tmp_path / name / gpu.RESULTS) for name in ("first", "second"))
    for rows in (first, second):
        rows.path.parent.mkdir()
    args = options(gpu, tmp_path)
    keys = gpu.left(args, first)

    def until(rows: Any, count: int) -> Any:
        def worker(command: list[str], timeout: float, **_: Any) -> Any:
            for number, key in enumerate(gpu.left(args, rows)):
                rows.add("begun", key=key)
                if number == count:
                    raise subprocess.TimeoutExpired(command, timeout)
                rows.add("cell", key=key, what="sum", graph="a", width=8, absent={})
            return subprocess.CompletedProcess(command, 0)

        return worker

    monkeypatch.setattr(gpu.subprocess, "run", until(first, stopped))
    gpu.measure_apart(args, first, [], gpu.time.monotonic() + 1000)
    assert gpu.left(args, first) == keys[stopped:]
    text = gpu.page(first, gpu.left(args, first))
    assert text.endswith("".join(f"- {key}\n" for key in keys[stopped:]))
    with open(first.path, "a") as file:
        file.write('{"kind": "cell", "key": "' + keys[stopped])
    second.take(first.path.parent)
    assert gpu.left(args, second) == keys[stopped:]
    monkeypatch.setattr(gpu.subprocess, "run", until(second, -1))
    gpu.measure_apart(args, second, [], gpu.time.monotonic() + 1000)
    assert gpu.left(args, second) == []


def test_the_page_is_there_as_soon_as_a_cell_is(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever stops the process then has it."""
    rows, place = gpu.Rows(tmp_path / gpu.RESULTS), argparse.Namespace(facts=lambda _: FACTS)
    args = options(gpu, tmp_path, place=lambda: place, deadline=1e9)

    def run(graph: Any, seconds: float, rate: float) -> Any:
        if graph == "b":
            raise KeyboardInterrupt
        return gpu.Cell("sum", graph, 8)

    steps = [gpu.Step(f"sum, {name}, 8", run, name) for name in args.graphs]
    monkeypatch.setattr(gpu, "plan", lambda *_: steps)
    monkeypatch.setattr(gpu, "load", lambda name, root: name)
    with pytest.raises(KeyboardInterrupt):
        gpu.measure(args, rows)
    text = (tmp_path / gpu.PAGE).read_text()
    assert "| a | 8 |" in text
    assert text.endswith("- sum, b, 8\n")


def test_nothing_is_begun_that_cannot_end(gpu: ModuleType, tmp_path: Path) -> None:
    rows = gpu.Rows(tmp_path / gpu.RESULTS)
    args = options(gpu, tmp_path)
    gpu.measure_apart(args, rows, [], gpu.time.monotonic() + gpu.LEAST / 2)
    assert not rows.path.exists()


def test_the_page(gpu: ModuleType, tmp_path: Path) -> None:
    rows = gpu.Rows(tmp_path / gpu.RESULTS)
    rows.add("card", card=FACTS, versions={"torch": "2.11"}, git="abc", date="today")
    rows.add("tests", key="kernels", passed=None, seconds=100.0, counts={"passed": 7})
    times = {"copy": 0.1, "hag auto": 0.5, "hag none": 0.4, "PyG edge_index": 1.0, "DGL": 0.8,
             "hag auto again": 0.25}  # fmt: skip
    cell = gpu.Cell("sum over A + I", "cliques", 64, times, {"torch_scatter": "is not there"},
                    {"hag auto": 0.75}, {"hag auto waits for the card": "no"})  # fmt: skip
    rows.add("cell", key="k", took=1.0, **vars(cell))
    text = gpu.page(rows)
    assert "A card, driver 1.2, CUDA 13.0; a copy in its memory moves 4.00 TB/s. today" in text
    assert "rehearsal" not in text
    assert "Tests, kernels: not done in time (7 passed), 100 s." in text
    row = "0.1000 | 0.5000 | 0.4000 | 1.0000 | 0.8000 | 2.00 | 2.000 | hag auto: 0.75 |"
    assert f"| cliques | 64 | {row}" in text
    assert "cliques, 64: torch_scatter left out: is not there" in text
    assert "cliques, 64: hag auto waits for the card: no" in text


# The one command --------------------------------------------------------------------------------


def once(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OUT": str(folder), "PYTHON": sys.executable}
    environment |= {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", str(SCRIPT.parent / "gpu_once.sh"), *arguments],
        env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(
    not Path(hag_plugin.__file__).is_relative_to(ROOT),
    reason="it would build the native module anew",
)
def test_rehearsed_from_end_to_end(tmp_path: Path) -> None:
    """In Triton's interpreter: every cell runs, no side of ours is wrong, the page says that no
    figure counts; and a second call takes up what the first one left."""
    pytest.importorskip("triton")
    pytest.importorskip("torch_geometric")
    first, second = tmp_path / "first", tmp_path / "second"
    how = ["--rehearse", "--seconds", "0.01", "--kinds", "GCN", "GAT"]
    done = once(first, "40", *how)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    done = once(second, "500", *how, "--resume", str(first))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = [json.loads(line) for line in (second / "gpu.jsonl").read_text().splitlines()]
    cells = [row for row in rows if row["kind"] == "cell"]
    assert len({row["key"] for row in cells}) == len(cells) >= 9
    assert not [row for row in rows if row["kind"] == "crash"]
    for row in cells:
        assert not [side for side in row["absent"] if side.startswith("hag")], row
        assert "hag auto" in row["milliseconds"]
    assert [row["key"] for row in rows if row["kind"] == "tests"] == ["card", "kernels"]  # once
    text = (second / "gpu.md").read_text()
    assert "**A rehearsal: no card was there, and no figure on this page counts.**" in text
    assert "Not measured yet" not in text
