"""The search for a program of a graph, and the program that needs none."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import NamedTuple

import torch

from hag_plugin.devices import KINDS
from hag_plugin.hag import cost
from hag_plugin.hag.gpu import timing
from hag_plugin.hag.graph import Graph
from hag_plugin.hag.program import Options, Program, SelfLoops
from hag_plugin.kernels import _cpu
from hag_plugin.modes import Array
from hag_plugin.observers import SEARCH, observers, tell
from hag_plugin.progress import shares

SMALL_GRAPH = 20_000  # edges


class Found(NamedTuple):
    """What a search came to.

    Attributes:
        program: the HAG's, on the CPU; None where the plain program is as good.
        order: all rows in the order in which the tiles take them, int32 `[num_dst]`; None where
            that is increasing, or the search was given up.
        seconds: what the search took.
    """

    program: Program | None
    order: Array | None
    seconds: float


def search_program(
    graph: Graph,
    options: Options,
    self_loops: SelfLoops,
    idempotent: bool,
    progress: bool | None = None,
) -> Found:
    """Searches the program of one matrix of a graph; the plain one where none pays."""
    start = time.perf_counter()
    found = search(graph, options, self_loops, idempotent, progress)
    program = found.program
    if program is None:
        is_passing = options.method == "none"
        program = plain_program(graph, self_loops, idempotent, is_passing=is_passing)
        if not is_passing:
            program = program.timed(time.perf_counter() - start)
    if observers:
        tell(SEARCH, options.method, program)
    by_model = options.method == "auto" and KINDS[options.device].launches is not None
    if by_model and options.choose == "measure":  # then it is timed
        by_model = not timing.can_time(options.device)
    if by_model and not cost.pays_in_launches(graph, options, self_loops, program):
        plain = plain_program(graph, self_loops, idempotent)
        program = plain.timed(time.perf_counter() - start)
    return found._replace(program=program.to(graph.device))


def search(
    graph: Graph,
    options: Options,
    self_loops: SelfLoops,
    idempotent: bool,
    progress: bool | None = None,
) -> Found:
    """Searches a program of one matrix of a graph that is better than the plain one."""
    start = time.perf_counter()
    if options.method == "none" or options.choose == "plain":
        return Found(None, None, 0.0)
    subtract = options.allow_subtraction and self_loops is False and not idempotent
    subtract = subtract and options.method == "auto" and (graph.is_square or graph.targets_first)
    subtract = subtract and graph.num_dst <= graph.num_src  # every target has an x to be taken off
    mode = "add" if subtract else (self_loops or "")
    row_ptr, col = graph.numpy()
    matrix = (row_ptr, col, graph.num_src, mode, idempotent)
    arrays: Sequence[Array] | None
    order: Array | None = None
    # A small graph is searched sooner than a second thread or a bar is there.
    small = graph.num_edges < SMALL_GRAPH
    threads = 1 if small else torch.get_num_threads()
    progress = False if small and not progress else progress
    with _bar(graph, progress) as report:
        if options.method == "greedy":
            capacity = graph.num_dst // 4 if options.capacity is None else options.capacity
            arrays = _cpu.greedy_program(*matrix, capacity, threads, report)
        else:
            prices = cost.prices(options.width, options.device)
            arrays, order = _cpu.search_program(
                *matrix,
                graph.is_square or graph.targets_first,
                **asdict(prices),
                threads=threads,
                progress=report,
            )
    seconds = time.perf_counter() - start
    program = None
    if arrays is not None:
        tensors = map(torch.from_numpy, arrays)
        diagonal = -1 if subtract else 0
        program = Program.of(tensors, graph.num_src, graph.num_dst, diagonal, seconds)
    return Found(program, order, seconds)


def plain_program(
    graph: Graph,
    self_loops: SelfLoops,
    idempotent: bool = False,
    rows: Array | None = None,
    is_passing: bool = False,
) -> Program:
    """The program without intermediates.

    Args:
        graph: the graph.
        self_loops: the mode.
        idempotent: without duplicates.
        rows: all rows, in the order in which tiles take them, int32 `[num_dst]`; by default in
            their own.
        is_passing: whether it may be run only once.
    """
    row_ptr, col = graph.numpy()
    arrays = _cpu.plain_program(row_ptr, col, graph.num_src, self_loops or "", idempotent, rows)
    as_given = not (self_loops or idempotent or rows is not None or len(arrays[4]))
    col_of_both = graph.arrays.col if as_given else None
    size = graph.num_src, graph.num_dst
    program = Program.of_plain(arrays, *size, is_passing, col_of_both)
    return program.to(graph.device)


def _bar(graph: Graph, progress: bool | None) -> AbstractContextManager[Callable[..., None] | None]:
    """What a search calls with the share that is done. None: shown after two seconds."""
    if progress is False:
        return nullcontext()
    return shares(f"searching {graph.num_edges:,} edges", progress)
