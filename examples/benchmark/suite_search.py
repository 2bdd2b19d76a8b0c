"""Suite `search`: what building a HAG costs, and when that is earned back."""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from . import suite_aggregate
from .graphs import LOOPS, Graph, memory_bytes
from .plan import Cell, Plan
from .sides import AGAIN, AUTO, NONE, SIDES
from .timing import interleave

NAME = "search"
SECONDS = 2.0
WIDTH = 64
MOST_BUILDS = 15
# Aggregations in a training epoch of two GCN layers: two forward, two backward.
AGGREGATIONS = 4


def cells(plan: Plan) -> Iterator[Cell]:
    """Graphs x {A, A + I}."""
    for graph, loops in itertools.product(plan.graphs, plan.loops):
        yield {"graph": graph, "loops": loops}


def measure(graph: Graph, cell: Cell, plan: Plan) -> dict[str, Any]:
    """Builds the HAG again and again for the time given; counts rows; times an aggregation."""
    budget = plan.budget(SECONDS)
    loops = cell["loops"]
    hag, growth, _ = build_watched(graph, loops)
    hag.check(graph.edge_index, self_loops=LOOPS[loops])
    del hag
    seconds: list[float] = []
    while len(seconds) < budget.least_rounds or (
        sum(seconds) < budget.seconds and len(seconds) < MOST_BUILDS
    ):
        seconds.append(graph.build("auto", loops, WIDTH)[1])
    median = statistics.median(seconds)
    full_cell = {**cell, "width": WIDTH, "reduce": "sum"}
    saving = _saving(graph, full_cell, plan)
    return {
        "wrong": {},
        "seconds": median,
        "least": min(seconds),
        "builds": len(seconds),
        "edges_per_second": graph.edge_index.shape[1] / median,
        "memory_growth": growth,
        "saved": suite_aggregate.saved(graph, full_cell),
        "saving_seconds": saving,
        "epochs_to_earn_back": median / (AGGREGATIONS * saving) if saving > 0 else None,
    }


def _saving(graph: Graph, cell: Cell, plan: Plan) -> float:
    """Seconds that one aggregation with "auto" is shorter than with "none", reused outputs.

    0 where the difference is within what the plain program shows when it is measured twice.
    """
    with torch.no_grad():
        problem = suite_aggregate.new_problem(graph, cell, plan)
        calls = {name: SIDES[name](problem).reused for name in (AUTO, NONE)}
        timed = {name: call for name, call in calls.items() if call is not None}
        timed[AGAIN] = timed[NONE]
        rounds = interleave(timed, plan.budget(SECONDS / 4), together=tuple(timed))
    summary = rounds.summary()
    if rounds.ratio(NONE, AUTO) <= 1.0 + rounds.control(NONE, AGAIN)["spread"]:
        return 0.0
    return summary[NONE]["median"] - summary[AUTO]["median"]


def build_watched(graph: Graph, loops: str) -> tuple[Any, int | None, float]:
    """A HAG, by how many bytes the process grew at most while it was built, and the seconds."""
    gc.collect()
    _give_back()
    watched = _reset_peak()
    before = memory_bytes()
    hag, seconds = graph.build("auto", loops, WIDTH)
    peak = _peak()
    if not watched or before is None or peak is None:
        return hag, None, seconds
    return hag, max(peak - before, 0), seconds


def _give_back() -> None:
    """Returns freed memory to the system, where the C library is glibc: it would hide growth."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _reset_peak() -> bool:
    """Makes Linux forget this process's peak memory; False where that is not possible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    line = next((line for line in lines if line.startswith("VmHWM")), None)
    return None if line is None else int(line.split()[1]) * 1024
