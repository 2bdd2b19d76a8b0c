"""Programs that other settings of the search come to, beside the one that is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace

import torch

from hag_plugin.hag import constants, cost
from hag_plugin.hag.cost import Prices
from hag_plugin.hag.program import Program
from hag_plugin.kernels import _cpu

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
    return cost.prices(width, constants=constants.in_force())


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
    """What "auto" and "none" come to, and the forced variants that come to something else."""
    mode = LOOPS[loops]
    found = {name: graph.hag(name, loops, width).program(mode) for name in (AUTO, NONE)}
    for name, change in FORCED.items():
        program = searched(graph, loops, change(prices(width)))
        if not any(_same(program, other) for other in found.values()):
            found[name] = program
    return found


def _same(a: Program, b: Program) -> bool:
    return all(map(torch.equal, a.arrays, b.arrays))
