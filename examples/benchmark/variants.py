"""Programs of a graph: what a HAG chooses from, and what other settings of the search make."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import Tensor

from hag_plugin.hag import cost
from hag_plugin.hag.candidates import Choice
from hag_plugin.hag.cost import Prices
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import Program
from hag_plugin.kernels import _cpu
from hag_plugin.ops.registration import DTYPES
from hag_plugin.reducers import CODES

from .graphs import LOOPS, Graph

AUTO, NONE = "auto", "none"
UNBOUNDED = 1 << 30  # words an edge: more than any merging compares

Change = Callable[[Prices], Prices]
FORCED: dict[str, Change] = {
    "HAG": lambda p: replace(p, worth_it=math.inf),
    "HAG, own order": lambda p: replace(p, worth_it=math.inf, reorder=math.inf),
    "HAG, new order": lambda p: replace(p, worth_it=math.inf, reorder=0.0),
    "HAG, half the rows a tile": lambda p: replace(
        p, worth_it=math.inf, pack_rows=p.pack_rows // 2, cut_rows=p.cut_rows // 2
    ),
    "HAG, twice the rows a tile": lambda p: replace(
        p, worth_it=math.inf, pack_rows=p.pack_rows * 2, cut_rows=p.cut_rows * 2
    ),
    "HAG, dearer intermediates": lambda p: replace(
        p, worth_it=math.inf, intermediate=3.0 * p.intermediate
    ),
}


def prices(width: int) -> Prices:
    """What "auto" goes by."""
    return cost.prices(width)


def searched(graph: Graph, loops: str, wanted: Prices) -> Program:
    """The program of a search by other prices; the plain one where none pays by them."""
    row_ptr, col = (a.numpy() for a in graph.csr("A"))
    matrix = (row_ptr, col, graph.num_nodes, LOOPS[loops] or "", False)
    arrays, _ = _cpu.search_program(
        *matrix, True, **asdict(wanted), threads=torch.get_num_threads()
    )
    if arrays is None:
        arrays = _cpu.plain_program(*matrix)
    return Program.of(map(torch.from_numpy, arrays), graph.num_nodes, graph.num_nodes)


def distinct(graph: Graph, loops: str, width: int) -> dict[str, Program]:
    """What "auto" and "none" run, and the forced variants that come to something else."""
    hag = graph.hag(AUTO, loops, width)
    chosen = candidates(hag, loops, "sum")[choice(hag, width, torch.float32, loops, "sum").name]
    found = {AUTO: chosen, NONE: graph.hag(NONE, loops, width).program(LOOPS[loops])}
    for name, change in FORCED.items():
        program = searched(graph, loops, change(prices(width)))
        if not any(same(program, other) for other in found.values()):
            found[name] = program
    return found


# What a HAG chooses from ------------------------------------------------------------------------


def candidates(hag: HAG, loops: str, reduce: str) -> dict[str, Program]:
    """The programs that a HAG chooses from, by name."""
    return hag.candidates(LOOPS[loops], idempotent=reduce == "max")


def choice(hag: HAG, width: int, dtype: torch.dtype, loops: str, reduce: str) -> Choice:
    """Which of them runs for features of a width and dtype."""
    return hag.choice(width, dtype, LOOPS[loops], idempotent=reduce == "max")


def run(
    program: Program, x: Tensor, y: Tensor, reduce: str, threads: int | None = None
) -> Callable[[], None]:
    """A call that runs a program on x `[N, F]`, into a contiguous y, with nothing around it.

    On as many threads as torch uses, or on so many.
    """
    native, (rows, width) = program.native, x.shape
    dtype, code, threads = DTYPES[x.dtype], CODES[reduce], threads or torch.get_num_threads()

    def call() -> None:
        native.run(x.data_ptr(), y.data_ptr(), 1, width, width, 0, rows, len(y), dtype, code, 0, 0,
                   threads)  # fmt: skip

    return call


def same(a: Program, b: Program) -> bool:
    """Whether two programs do the same, array by array."""
    return a.diagonal == b.diagonal and all(map(torch.equal, a.arrays, b.arrays))
