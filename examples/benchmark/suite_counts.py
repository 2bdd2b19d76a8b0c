"""Suite `counts`: rows that searches save. Counts only: the same on every machine."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from hag_plugin.hag.program import Program
from hag_plugin.kernels import _cpu

from . import variants
from .graphs import LOOPS, Graph
from .plan import Cell, Plan

NAME = "counts"
WIDTH = 64
GREEDY_SECONDS = 60.0  # greedy over a whole graph is given up after this; no setting, no timing


class TooLong(RuntimeError):
    """A search took longer than it was given."""


def cells(plan: Plan) -> Iterator[Cell]:
    """Graphs x {A, A + I}."""
    for graph, loops in itertools.product(plan.graphs, plan.loops):
        yield {"graph": graph, "loops": loops}


def measure(graph: Graph, cell: Cell, plan: Plan) -> dict[str, Any]:
    """Rows read by the plain graph, "auto", tiles with and without a bound, and whole greedy."""
    loops, prices = cell["loops"], variants.prices(WIDTH)
    always = replace(prices, worth_it=float("inf"))
    free = replace(always, work_per_edge=variants.UNBOUNDED)
    seconds = 1.0 if plan.quick else GREEDY_SECONDS
    auto = graph.hag("auto", loops, WIDTH)
    whole = _whole_greedy(graph, loops, seconds)
    return {
        "wrong": {},
        "forms": {},
        "plain": auto.stats(LOOPS[loops]).rows_read_before,
        "auto": _counts(auto.program(LOOPS[loops])),
        "tiles": _counts(variants.searched(graph, loops, always)),
        "unbounded": _counts(variants.searched(graph, loops, free)),
        "free": _counts(variants.searched(graph, loops, replace(free, intermediate=0.0))),
        "whole": None if whole is None else _counts(whole),
        "work_per_edge": prices.work_per_edge,
    }


def _counts(program: Program) -> dict[str, int]:
    return {
        "rows_read": len(program.source) + int(program.hub_ptr[-1]),
        "intermediates": int((program.target < 0).sum()),
    }


def _whole_greedy(graph: Graph, loops: str, seconds: float) -> Program | None:
    """Algorithm 3 over the whole graph, without a capacity; None where it takes too long."""
    row_ptr, col = (a.numpy() for a in graph.csr("A"))
    end = time.perf_counter() + seconds

    def progress(share: float) -> None:
        if time.perf_counter() > end:
            raise TooLong(f"only {share:.0%} in {seconds} s")

    mode = LOOPS[loops] or ""
    try:
        arrays = _cpu.greedy_program(row_ptr, col, graph.num_nodes, mode, False, 2**31 - 1,
                                     torch.get_num_threads(), progress)  # fmt: skip
    except TooLong:
        return None
    return Program.of(map(torch.from_numpy, arrays), graph.num_nodes, graph.num_nodes)
