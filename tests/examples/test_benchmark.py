"""The benchmark in examples/: it runs, resumes, and writes a page that can be read."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hag_plugin.hag import constants
from hag_plugin.kernels import _cpu
from hag_plugin.layers import dgl, pyg

ROOT = Path(__file__).parents[2]
BENCHMARK = ROOT / "examples" / "benchmark"

pytestmark = pytest.mark.skipif(
    not BENCHMARK.is_dir(), reason="the benchmark is part of the repository, not of the wheel"
)


def run(out: Path, *arguments: str, program: Path = BENCHMARK) -> subprocess.CompletedProcess[str]:
    # One thread: a busy machine makes a second one wait.
    command = [sys.executable, str(program), "--quick", "--quiet", "--threads", "1"]
    return subprocess.run(
        [*command, "--graphs", "cliques", "--out", str(out), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLCONFIGDIR": str(out / "matplotlib")},
        timeout=300,
    )


def module(name: str) -> ModuleType:
    """A module of the benchmark, which is no installed package."""
    if "benchmark" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "benchmark", BENCHMARK / "__init__.py", submodule_search_locations=[str(BENCHMARK)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules["benchmark"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["benchmark"])
    return importlib.import_module(f"benchmark.{name}")


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
    # Others are parts of models, or take several types of nodes.
    convs = sum(".conv." in r.name and r.features != "x_dict" for r in pyg.RECORDS)
    in_dgl = sum(r.attends is not dgl.always for r in dgl.RECORDS)  # those have another suite
    assert count == {
        "aggregate": 1, "epochs": 6, "layers": convs + 1,
        "calls": 2 * (convs + 12), "dgl-layers": in_dgl + 4,
        "search": 2, "scale": 1, "never-slower": 8, "cost": 2, "counts": 2,
        "sampled": 8, "blocks": 4, "batches": 3, "attention": 8,
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
                  "## Machines", "were not timed", "hag forced",
                  "Published, not measured",
                  "its times mean nothing", "| cliques |", "A/A"):  # fmt: skip
        assert words in page, words
    summary = json.loads((measured / "summary.json").read_text())
    assert {"environment", "goals", "geometric_means", "cells", "failures"} <= set(summary)
    assert {goal["met"] for goal in summary["goals"]} <= {True, False, None}
    if importlib.util.find_spec("matplotlib"):
        for name in ("aggregate", "epochs", "search", "never_slower"):
            assert "</svg>" in (measured / f"{name}.svg").read_text()


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
    return module("timing")


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
    assert rounds.calls["a"] == rounds.calls["b"]
    assert rounds.summary()["c"]["rounds"] >= 3


def test_control_of_equal_times_has_no_spread(timing: ModuleType) -> None:
    rounds = timing.Rounds({"a": [1.0, 2.0, None], "b": [1.0, 2.0, 3.0]}, {"a": 1, "b": 1})
    assert rounds.control("a", "b") == {"ratio": 1.0, "spread": 0.0}
    slower = timing.Rounds({"a": [1.0, 1.1, 0.9], "b": [2.0, 2.2, 1.8]}, {"a": 1, "b": 1})
    assert slower.ratio("b", "a") == pytest.approx(2.0)


def test_measurements_in_several_places_are_joined(timing: ModuleType) -> None:
    """A ratio is the median over the rounds of all; each is that of two times in one place."""
    parts = [
        timing.Rounds({"a": [near, near], "b": [far, None]}, {"a": 2, "b": calls})
        for near, far, calls in ((1.0, 2.0, 1), (3.0, 9.0, 4), (5.0, 20.0, 2))
    ]
    rounds = timing.Rounds.joined(parts)
    assert rounds.ratio("b", "a") == 3.0
    assert rounds.summary()["a"]["rounds"] == 6
    assert rounds.calls == {"a": 2, "b": 4}
    budget = timing.Budget(3.0, least_rounds=10, most_rounds=101).shared(3)
    assert (budget.seconds, budget.least_rounds, budget.most_rounds) == (1.0, 4, 34)


# Verdicts ---------------------------------------------------------------------------------------

LOW, NOISY = (0.9, 0.01), (0.9, 0.06)  # ratio and spread of the control


@pytest.mark.parametrize(
    ("measured", "verdict", "attempts"),
    [
        ([(1.2, 0.01)], "passed", 1),
        ([(0.96, 0.02)], "passed", 1),  # too low by less than the spread
        ([LOW, (0.98, 0.01)], "passed", 2),
        ([LOW, LOW], "failed", 2),
        ([LOW, NOISY, LOW], "failed", 3),  # what says nothing does not come between
        ([NOISY, (1.0, 0.05)], "passed", 2),
        ([NOISY] * 6, "undecided", 6),
        ([(1.5, 0.06)] * 6, "undecided", 6),  # a good ratio says nothing, either
        ([NOISY] * 5 + [LOW], "undecided", 6),  # too low once
    ],
)
def test_verdicts(measured: list[tuple[float, float]], verdict: str, attempts: int) -> None:
    rules = module("verdict")

    def measure(number: int) -> dict[str, float]:
        ratio, spread = measured[number]
        return {"ratio": ratio, "spread": spread}

    judged = rules.judge(rules.Rule(0.97), measure)
    assert (judged["verdict"], judged["attempts"]) == (verdict, attempts)


@given(st.lists(st.tuples(st.floats(0.8, 1.2), st.floats(0.0, 0.1)), min_size=6, max_size=6))
def test_no_cell_passes_or_fails_on_noise(measured: list[tuple[float, float]]) -> None:
    rules = module("verdict")
    rule = rules.Rule(0.97)
    judged = rules.judge(rule, lambda n: {"ratio": measured[n][0], "spread": measured[n][1]})
    seen = measured[: judged["attempts"]]
    low = [ratio < 0.97 - spread for ratio, spread in seen if spread <= 0.05]
    expected = "undecided"
    if low and not low[-1]:
        expected = "passed"
    elif low[-2:] == [True, True]:
        expected = "failed"
    assert judged["verdict"] == expected
    assert (judged["spread"] <= 0.05) == bool(low)


STALLED = {"auto": 8e-3, "none": 8e-3}  # a ratio of 1, no spread


@pytest.mark.parametrize(
    ("seconds", "alone", "threads", "expected"),
    [
        ({"auto": 1.1e-3, "none": 1.2e-3}, 2e-3, 2, ""),
        ({"auto": 2e-3, "none": 2e-3}, 2e-3, 2, ""),  # the second thread had no core
        ({"auto": 3e-5, "none": 3e-5}, 1e-6, 2, ""),  # starting the threads
        (STALLED, 2e-3, 2, "auto took 8 ms on 2 threads, 2 ms on one: it waited"),
        (STALLED, 7e-3, 2, "it waited"),
        ({"auto": 1e-3, "none": 8e-3}, 2e-3, 2, "none took 8 ms"),
        (STALLED, 2e-3, 1, "it waited"),
        ({"auto": 2e-4, "none": 1.2e-3}, 2e-3, 2, "no clock"),
        ({"auto": 0.0, "none": 1e-3}, 2e-3, 2, "auto took 0.0 s"),
        ({"auto": math.nan, "none": 1e-3}, 2e-3, 2, "auto took nan s"),
    ],
)
def test_times_that_cannot_be_those_of_the_work(
    seconds: dict[str, float], alone: float, threads: int, expected: str
) -> None:
    found = module("verdict").implausible(seconds, dict.fromkeys(seconds, alone), threads)
    assert expected in found
    assert bool(found) == bool(expected)


def test_a_stalled_cell_is_measured_again_and_never_passes() -> None:
    rules = module("verdict")
    stalled = {"ratio": 1.0, "spread": 0.0, "implausible": "it waited"}
    sound = {"ratio": 0.9, "spread": 0.0, "implausible": ""}
    judged = rules.judge(rules.Rule(0.97), lambda n: stalled)
    assert (judged["verdict"], judged["attempts"]) == ("undecided", 6)
    judged = rules.judge(rules.Rule(0.97), lambda n: [stalled, sound, stalled, sound][n])
    assert (judged["verdict"], judged["attempts"]) == ("failed", 4)
    assert judged["implausible"] == ""


@pytest.mark.parametrize("takes", [1e-7, 1e-5, 8e-3])
@pytest.mark.parametrize("lost", range(12))
def test_one_thread_is_timed_by_what_it_runs(timing: ModuleType, takes: float, lost: int) -> None:
    """Short calls many at once; and a clock that stands still for a while is not believed."""
    ran, read = 0, list[float]()

    def call() -> None:
        nonlocal ran
        ran += 1

    def clock() -> float:
        stands_still = len(read) == lost > 0
        read.append(read[-1] if stands_still else ran * takes)
        return read[-1]

    assert timing.alone(call, clock) == pytest.approx(takes, rel=0.1)


def test_what_is_undecided_is_not_settled() -> None:
    rules = module("verdict")
    for verdict in ("passed", "failed", "same", "undecided"):
        assert rules.is_settled({"verdict": verdict}) == (verdict != "undecided")
        assert rules.is_settled({"choice": {"verdict": verdict}}) == (verdict != "undecided")
    assert rules.is_settled({})  # a suite without verdicts


@pytest.mark.parametrize(
    ("auto", "none", "again", "verdict"),
    [
        ([1.0] * 9, [2.0] * 9, [2.0] * 9, "passed"),
        ([1.1] * 9, [1.0] * 9, [1.0] * 9, "failed"),
        ([1.1] * 9, [1.0] * 9, [1.1] * 9, "undecided"),
        ([0.5] * 9, [1.0] * 9, [1.0, 1.4, 0.7] * 3, "undecided"),
    ],
)
def test_verdicts_of_rounds(
    timing: ModuleType, auto: list[float], none: list[float], again: list[float], verdict: str
) -> None:
    rules = module("verdict")
    rounds = timing.Rounds({"auto": auto, "none": none, "again": again}, {})
    spread = rounds.control("none", "again")["spread"]
    measured = {"ratio": rounds.ratio("none", "auto"), "spread": spread}
    assert rules.judge(rules.Rule(0.97), lambda n: measured)["verdict"] == verdict


@pytest.mark.parametrize(
    ("plain", "expected"),
    [(1.0, {"regret": 0.0, "fastest": "hag"}), (0.97, {"regret": 0.0, "fastest": "hag"}),
     (0.8, {"regret": 0.25, "fastest": "plain"})],
)  # fmt: skip
def test_a_regret_is_more_than_one_thing_differs_by(
    timing: ModuleType, plain: float, expected: dict[str, Any]
) -> None:
    suite = module("suite_never_slower")
    rounds = timing.Rounds({"hag": [1.0] * 9, "plain": [plain] * 9, "other": [1.5] * 9}, {})
    assert suite._regret(rounds, "hag", ["plain", "other"], spread=0.04) == expected
    assert suite._regret(rounds, "hag", [], spread=0.04) == {}


def cell_of_never_slower(**more: Any) -> dict[str, Any]:
    cell = {"instruction_set": "avx2", "constants": "own", "graph": "g", "width": 8}
    about = {"chosen": "hag", "by": "model", "ratio": 1.0, "spread": 0.01, "attempts": 1}
    return {"cell": cell, "wrong": {}, "forms": {}, **about, **more}


def test_what_was_not_timed_or_decided_did_not_pass() -> None:
    tables, goals = module("tables_never_slower"), module("goals")
    found = [
        cell_of_never_slower(verdict="passed", regret=0.0),
        cell_of_never_slower(verdict="passed", regret=0.02),
        cell_of_never_slower(verdict="same", ratio=None),
        cell_of_never_slower(verdict="same", ratio=None, regret=0.07, regret_verdict="passed"),
        cell_of_never_slower(verdict="undecided", ratio=0.5, regret=0.9),
        {"same": True, "wrong": {}, "forms": {}, "failed": False},  # of an earlier version
    ]
    words = tables.sentence(tables.judged(found))
    assert "Of 5 cells 2 run the plain program and were not timed" in words
    assert "of the 3 timed, 2 passed, 0 failed and 1 stayed undecided" in words
    assert tables.regrets(tables.judged(found)) == [0.0, 0.02, 0.07]
    assert "| avx2 | own | 8 | 3 | 2.0% | 3.0% | 7.0% |" in tables.page(found)
    slower, regret = goals._never_slower(found)
    assert slower.met is False
    assert "median 2.0%" in regret.measured
    decided = [record for record in found if record.get("verdict") != "undecided"]
    assert goals._never_slower(decided)[0].met is True
    assert goals._never_slower([cell_of_never_slower(verdict="same", ratio=None)])[0].met is None


# Samples ----------------------------------------------------------------------------------------


def grid(**axes: range) -> list[dict[str, int]]:
    return [dict(zip(axes, v, strict=True)) for v in itertools.product(*axes.values())]


def test_a_sample_is_spread_over_everything_that_cells_differ_in() -> None:
    cells = grid(
        graph=range(19), loops=range(2), direction=range(2), dtype=range(3), width=range(8)
    )
    chosen = module("sample").spread(cells, 114)
    assert chosen == module("sample").spread(cells, 114)
    for axis in cells[0]:
        values = {cell[axis] for cell in cells}
        for value in values:
            count = sum(cell[axis] == value for cell in chosen)
            assert abs(count - 114 / len(values)) <= 6, (axis, value, count)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 70))
def test_a_sample_has_its_size_and_order(sizes: list[int], number: int) -> None:
    cells = grid(**{f"axis {n}": range(size) for n, size in enumerate(sizes)})
    chosen = module("sample").spread(cells, number)
    assert len(chosen) == min(number, len(cells))
    places = [cells.index(cell) for cell in chosen]
    assert places == sorted(set(places))


# Settings and crashes ---------------------------------------------------------------------------


def test_a_setting_is_in_force_where_it_is_measured(tmp_path: Path) -> None:
    isa = _cpu.instruction_sets()[0]
    done = run(tmp_path, "never-slower", "--sample", "2", "--instruction-sets", isa,
               "--constants", "xeon-avx512", "epyc-avx2")  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    foreign = module("foreign_constants")
    _, *cells = records(tmp_path)
    assert len(cells) == 2
    for record in cells:
        digest = foreign.FOREIGN[record["cell"]["constants"]]().digest
        assert record["in_force"] == [isa, digest]


def test_constants_of_other_machines_can_be_read(tmp_path: Path) -> None:
    foreign = module("foreign_constants")
    assert foreign.environment("own", tmp_path) == {}
    for name, make in foreign.FOREIGN.items():
        path = foreign.environment(name, tmp_path)[constants.PATH_VARIABLE]
        assert constants.read_constants(path) == make()
    assert len({make().digest for make in foreign.FOREIGN.values()}) == len(foreign.FOREIGN)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_the_last_side_of_a_process_that_died_is_known(number: int, tmp_path: Path) -> None:
    crashes, note = module("crashes"), tmp_path / "side"
    words = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(BENCHMARK)!r})
import crashes
crashes.entering("nobody watches yet")
crashes.watch(Path({str(note)!r}))
crashes.entering("a side that ends well")
crashes.entering("DGL")
os.kill(os.getpid(), {int(number)})
"""
    why = crashes.died([sys.executable, "-c", words], {})
    assert why == f"crashed: signal {int(number)} ({signal.Signals(number).name})"
    assert crashes.last_entered(note) == "DGL"


@pytest.mark.parametrize("code", [0, 2])
def test_an_exit_code_is_no_crash(code: int) -> None:
    crashes = module("crashes")
    command = [sys.executable, "-c", f"raise SystemExit({code})"]
    if code == 0:
        assert crashes.died(command, {}) is None
        return
    with pytest.raises(crashes.ChildFailed) as failure:
        crashes.died(command, {})
    assert failure.value.code == code


CRASHING = """
import os, signal, sys
sys.path.insert(0, {examples!r})
from benchmark import sides
from benchmark.command import main

def crash(problem):
    return sides.Calls(lambda: os.kill(os.getpid(), signal.SIGSEGV), None)

sides.SIDES[{side!r}] = crash
sys.exit(main())
"""


@pytest.mark.parametrize("side", ["a peer", "hag auto"])
def test_a_side_that_crashes_loses_its_cell_alone(side: str, tmp_path: Path) -> None:
    program = tmp_path / "crashing.py"
    program.write_text(CRASHING.format(examples=str(BENCHMARK.parent), side=side))
    done = run(tmp_path, "aggregate", "counts", "--loops", "A+I", program=program)
    why = f"crashed: signal {int(signal.SIGSEGV)} (SIGSEGV)"
    found = records(tmp_path)
    (crash,) = [record for record in found if record["kind"] == "crash"]
    assert (crash["side"], crash["why"], crash["cell"]["graph"]) == (side, why, "cliques")
    cells = {record["suite"]: record for record in found if record["kind"] == "cell"}
    page = (tmp_path / "report.md").read_text()
    if side == "a peer":
        assert done.returncode == 0, done.stderr
        assert cells["aggregate"]["absent"][side] == why
        assert "hag auto" in cells["aggregate"]["forms"]["fresh"]["sides"]
        assert f"- {side} in cliques A+I 16 sum: {why}." in page
    else:
        assert done.returncode == 1, done.stderr
        assert "aggregate" not in cells
        assert f"- aggregate, cliques A+I 16 sum: {side} {why}" in page
    assert "counts" in cells  # the run went on


# Machines ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("processor", "slug"),
    [
        ("Intel(R) Xeon(R) Processor", "intel-xeon-avx2"),
        ("Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz", "intel-xeon-gold-6130-avx2"),
        ("AMD EPYC 7763 64-Core Processor", "amd-epyc-7763-avx2"),
        ("", "processor-avx2"),
    ],
)
def test_machines_have_folders_of_their_own(processor: str, slug: str) -> None:
    machines = module("machines")
    sets = ["baseline", "avx2"]
    machine = {"processor": processor, "instruction_sets": sets}
    assert machines.slug(machine) == slug
    assert machines.slug({**machine, "instruction_set": "baseline"}) == slug.replace(
        "avx2", "baseline"
    )


def test_results_of_machines_stand_side_by_side(measured: Path) -> None:
    machines = module("machines")
    summary = json.loads((measured / "summary.json").read_text())
    table = machines.table(BENCHMARK / "results", summary)
    folders = {path.parent.name for path in BENCHMARK.glob("results/*/summary.json")}
    here = machines.slug(summary["environment"]["machine"])
    for name in folders | {here}:
        assert f"| {name} |" in table
