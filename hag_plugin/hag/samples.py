"""Samples of the candidates for one matrix of a graph: parts of them, as programs of their own.

Stretches of tiles, all over the graph, and few where the graph is large, so that choosing takes a
small share of the time of the search. Graphs with no more reads than a sample are taken whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from hag_plugin.hag.candidates import PLAIN, REORDERED, SHARED
from hag_plugin.hag.cost import Work
from hag_plugin.hag.graph import Graph
from hag_plugin.hag.program import Program, SelfLoops
from hag_plugin.hag.search import Found
from hag_plugin.kernels import _cpu
from hag_plugin.modes import Array

BLOCK_ROWS = 64  # that lie together in a sample of the plain graph, at least
STRETCHES = 32  # that a sample has


@dataclass(frozen=True)
class Sample:
    """A part of a candidate, as a program of its own.

    Attributes:
        program: it.
        work: what it does.
        scale: how many times as much the whole candidate does.
    """

    program: Program
    work: Work
    scale: float


def plain_reads(graph: Graph, self_loops: SelfLoops) -> int:
    """Rows of x that the plain graph reads, loops that it has already among those added."""
    return graph.num_edges + (min(graph.num_dst, graph.num_src) if self_loops else 0)


def samples_of(
    graph: Graph,
    self_loops: SelfLoops,
    idempotent: bool,
    found: Found,
    candidate: Callable[[str], Program],
    reads: int,
) -> Mapping[str, Sample]:
    """A sample of each candidate that reads about so many rows, as the plain graph does.

    Args:
        graph: the graph, in main memory.
        self_loops: the mode of the matrix.
        idempotent: without duplicates.
        found: what the search found.
        candidate: makes the whole candidate of a name.
        reads: of the plain graph's sample; candidates with up to twice as many are taken whole.
    """
    names = [PLAIN, SHARED] if found.order is None else [PLAIN, SHARED, REORDERED]
    program = found.program
    assert program is not None
    total = plain_reads(graph, self_loops)
    if total <= 2 * reads:
        whole = {name: candidate(name) for name in names}
        return {name: Sample(p, Work.of(p), 1.0) for name, p in whole.items()}
    degree = np.diff(graph.numpy()[0]) + (self_loops is not False)
    _, _, source, target, hubs, hub_ptr = program.numpy()
    of_hubs = int(degree[hubs].sum())  # long rows, which all candidates have alike, are left out
    total -= of_hubs
    share = min(1.0, reads / max(total, 1))
    tiles, rows = stretches_of_tiles(program, share)

    def sample(part: Program, sources: int, ops: int) -> Sample:
        # Rows may be longer in a part than in the whole: an op counts as two reads.
        effort = len(part.arrays[2]) + 2 * len(part.arrays[3])
        return Sample(part, Work.of(part), (sources + 2 * ops) / max(effort, 1))

    def plain(of_rows: Array) -> Sample:
        part = plain_part(graph, self_loops, idempotent, of_rows)
        return sample(part, total, graph.num_dst - len(hubs))

    samples = {SHARED: sample(tiles, len(source) - of_hubs, len(target) - int(hub_ptr[-1]))}
    if found.order is None:
        return {**samples, PLAIN: plain(rows)}
    own = np.delete(np.arange(graph.num_dst, dtype=np.int32), hubs)
    begins = np.arange(0, len(own), BLOCK_ROWS)
    blocks = _spread(np.add.reduceat(degree[own], begins) if len(own) else begins, share)
    own = own[_ranges(blocks * BLOCK_ROWS, np.minimum((blocks + 1) * BLOCK_ROWS, len(own)))]
    return {**samples, PLAIN: plain(own), REORDERED: plain(rows)}


def stretches_of_tiles(program: Program, share: float) -> tuple[Program, Array]:
    """Some of the tiles as a program that writes its rows one after the other, and these rows."""
    tile_ptr, op_ptr, source, target, hub_row, _ = program.numpy()
    num_tiles = len(tile_ptr) - 1
    if len(hub_row):  # those of long rows come last
        first = np.argmax(target >= program.num_dst)
        num_tiles = int(np.searchsorted(tile_ptr, first, "right")) - 1
    tiles = _spread(np.diff(op_ptr[tile_ptr[: num_tiles + 1]]), share)
    ops = _ranges(tile_ptr[tiles], tile_ptr[tiles + 1])
    targets = target[ops]
    written = targets >= 0
    rows = targets[written]
    targets[written] = np.arange(len(rows), dtype=np.int32)
    arrays = (
        _offsets(tile_ptr[tiles + 1] - tile_ptr[tiles]),
        _offsets(op_ptr[ops + 1] - op_ptr[ops]),
        source[_ranges(op_ptr[tile_ptr[tiles]], op_ptr[tile_ptr[tiles + 1]])],
        targets,
        np.zeros(0, np.int32),
        np.zeros(1, np.int64),
    )
    return _program(arrays, program.num_src, len(rows)), rows


def plain_part(graph: Graph, self_loops: SelfLoops, idempotent: bool, rows: Array) -> Program:
    """The plain program of some rows, int32, in the order given, written one after the other."""
    matrix = (*graph.numpy(), graph.num_src, self_loops or "", idempotent)
    tile_ptr, op_ptr, source, target, hub_row, hub_ptr = _cpu.plain_program(*matrix, rows)
    numbers = np.arange(len(target), dtype=np.int32)
    arrays = tile_ptr, op_ptr, source, numbers, hub_row, hub_ptr
    return _program(arrays, graph.num_src, len(rows))


def order_of(program: Program) -> Array:
    """The rows in the order in which the tiles of a program take them, int32 `[num_dst]`."""
    target, hub_row = program.numpy()[3:5]
    return np.concatenate([target[(target >= 0) & (target < program.num_dst)], hub_row])


def _spread(work: Array, share: float) -> Array:
    """The numbers of a share of the pieces, at least one, in stretches all over them.

    Those with little work are passed over: where few are taken, they would stand for all.
    """
    pieces = np.flatnonzero(4 * work >= work.mean()) if len(work) else work
    count = len(pieces)
    wanted = min(max(1, round(share * count)), count)
    stretches = min(STRETCHES, wanted)
    begins = np.arange(stretches) * count // max(stretches, 1)
    lengths = np.diff(np.arange(stretches + 1) * wanted // max(stretches, 1))
    return np.asarray(pieces[_ranges(begins, begins + lengths)])


def _program(arrays: tuple[Array, ...], num_src: int, num_dst: int) -> Program:
    return Program.of(map(torch.from_numpy, arrays), num_src, num_dst)


def _offsets(lengths: Array) -> Array:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _ranges(begins: Array, ends: Array) -> Array:
    """The numbers of several ranges, one after the other."""
    lengths = ends - begins
    before = np.cumsum(lengths) - lengths
    return np.repeat(begins - before, lengths) + np.arange(int(lengths.sum()))
