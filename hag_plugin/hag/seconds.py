"""What the candidates for one matrix of a graph take: by the cost model, or timed on a sample.

Both look at samples: stretches of the tiles of each candidate, all over the graph, and small where
the graph is large, so that choosing takes a small share of the time of the search. Graphs of one
tile are counted as they are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from functools import lru_cache

import numpy as np
import torch

from hag_plugin.hag import constants, search
from hag_plugin.hag.calibration import FLOAT32, SUM, features
from hag_plugin.hag.candidates import PLAIN, REORDERED, ROW_BYTES, SHARED, Table
from hag_plugin.hag.cost import Work
from hag_plugin.hag.graph import Graph
from hag_plugin.hag.program import Program, SelfLoops
from hag_plugin.hag.rates import Constants
from hag_plugin.kernels import _cpu
from hag_plugin.limits import limits
from hag_plugin.modes import Array

BLOCK_ROWS = 64  # that lie together in a sample of the plain graph, at least
TILE_ROWS, TILE_WORK = 256, 8192  # of the plain program's tiles: rows; rows and reads
STRETCHES = 32  # that a sample has
_NEVER_REORDERED = 512  # rows, that the search takes as they come
LEAST_ERROR = 1.0  # of the model: real programs are not like those that it was fitted to
# Of `ROW_BYTES`, those that are timed, by the time that there is.
TIMED = (ROW_BYTES, (32, 128, 512, 1024), (32, 128, 512), (128, 512), (128,))
NARROW = 128  # bytes of a row
LEAST_BYTES = 16 << 20  # of features, that timing may take for any graph
LEAST_SWEEPS, MOST_SWEEPS = 3, 16  # runs of each candidate at each width, one of them to warm up


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


def table_of(
    graph: Graph, self_loops: SelfLoops, idempotent: bool, found: Program, budget: float
) -> Table:
    """The seconds of the candidates for rows of every length.

    They are predicted; and where the fastest is predicted to be ahead by less than the model's
    error, samples are timed, and what is predicted is corrected by it.

    Args:
        graph: the graph, in main memory.
        self_loops: the mode of the matrix.
        idempotent: without duplicates.
        found: what the search found.
        budget: seconds of one thread that timing may take; 0: the model decides.
    """
    c = constants.in_force()
    matrix = graph, self_loops, idempotent, found
    works, samples = _works_in_one_tile(*matrix), {}
    if not works:
        samples = samples_of(*matrix, limits.sampled_reads)
        works = {name: (sample.work, sample.scale) for name, sample in samples.items()}
    predicted = _seconds(works, c)
    by = "model"
    if budget > 0 and _is_close(predicted, max(LEAST_ERROR, c.error)):
        measured = _measure(*matrix, samples, predicted, budget)
        if measured:
            by = "measure"
            for name, model in predicted.items():
                predicted[name] = _corrected(model, {b: t[name] for b, t in measured.items()})
    return Table(by, {name: tuple(map(float, each)) for name, each in predicted.items()})


def _seconds(works: Mapping[str, tuple[Work, float]], c: Constants) -> dict[str, Array]:
    """Of whole candidates on one thread, for each of `ROW_BYTES`; of what a part does, and how many
    times as much the whole."""
    counts = np.array([astuple(work) for work, _ in works.values()])
    scale = np.array([[scale] for _, scale in works.values()])
    if (counts[:, -2:].sum(axis=1) * ROW_BYTES[-1] <= c.cache_bytes).all():
        parts = counts[:, :-1] @ _rates(c)
    else:
        parts = Work(*counts.T[:, :, None]).seconds(np.array(ROW_BYTES), constants=c) - c.call
    return dict(zip(works, c.call + parts * scale, strict=True))


@lru_cache(maxsize=8)
def _rates(c: Constants) -> Array:
    """Seconds of one of each of the counts of `Work`, where the cache holds x and y."""
    ops, scratch, again, first, written = np.eye(5)[:, :, None]
    one_of_each = Work(ops, scratch, again, first, written, num_src=0)
    return np.asarray(one_of_each.seconds(np.array(ROW_BYTES), constants=c) - c.call)


def _corrected(model: Array, measured: Mapping[int, float]) -> Array:
    """The seconds of a candidate by the model, brought to those that were measured for some rows.

    What the model got wrong is taken from the nearest of these, by ratio: narrow rows from narrow
    ones, which the processor's guesses of branches rule, others from others, as memory does.
    """
    corrected = model.copy()
    for of_kind in (np.array(ROW_BYTES) <= NARROW, np.array(ROW_BYTES) > NARROW):
        bytes_of_kind = np.array(ROW_BYTES)[of_kind]
        known = [b for b in measured if b in bytes_of_kind]
        if known:
            ratios = np.log([measured[b] / float(np.interp(b, ROW_BYTES, model)) for b in known])
            corrected[of_kind] *= np.exp(np.interp(np.log(bytes_of_kind), np.log(known), ratios))
    return np.asarray(corrected)


def _is_close(predicted: Mapping[str, Array], error: float) -> bool:
    """Whether the model cannot tell which is the fastest, for some row."""
    seconds = np.sort(np.stack(list(predicted.values())), axis=0)
    return len(seconds) > 1 and bool((seconds[1] < (1.0 + error) * seconds[0]).any())


# Samples ----------------------------------------------------------------------------------------


def _plain_reads(graph: Graph, self_loops: SelfLoops) -> int:
    """Rows of x that the plain graph reads, loops that it has already among those added."""
    return graph.num_edges + (min(graph.num_dst, graph.num_src) if self_loops else 0)


def _works_in_one_tile(
    graph: Graph, self_loops: SelfLoops, idempotent: bool, found: Program
) -> dict[str, tuple[Work, float]]:
    """What the candidates for a small graph do, without making them; empty for other graphs."""
    total = _plain_reads(graph, self_loops)
    is_small = graph.num_dst <= TILE_ROWS and total + graph.num_dst <= TILE_WORK
    if not is_small or len(found.arrays[0]) != 2 or idempotent or self_loops == "fill":
        return {}
    work = Work.of(found)
    plain = Work(graph.num_dst, 0, total - work.first, work.first, graph.num_dst, graph.num_src)
    return {PLAIN: (plain, 1.0), SHARED: (work, 1.0)}


def samples_of(
    graph: Graph, self_loops: SelfLoops, idempotent: bool, found: Program, reads: int
) -> dict[str, Sample]:
    """A sample of each candidate that reads about so many rows, as the plain graph does."""
    total = _plain_reads(graph, self_loops)
    if total <= reads:
        plain_program = search.plain_program(graph, self_loops, idempotent)
        whole = {PLAIN: plain_program, SHARED: found}
        if is_reordered(found):
            order = order_of(found)
            whole[REORDERED] = search.plain_program(graph, self_loops, idempotent, order)
        return {name: Sample(p, Work.of(p), 1.0) for name, p in whole.items()}
    degree = np.diff(graph.numpy()[0]) + (self_loops is not False)
    hubs = found.hub_row.numpy()
    of_hubs = int(degree[hubs].sum())  # long rows, which all candidates have alike, are left out
    total -= of_hubs
    share = min(1.0, reads / max(total, 1))
    tiles, rows = stretches_of_tiles(found, share)
    num_partials = int(found.hub_ptr[-1])

    def sample(program: Program, sources: int, ops: int) -> Sample:
        effort = _effort(len(program.source), len(program.target))
        return Sample(program, Work.of(program), _effort(sources, ops) / max(effort, 1))

    def plain(of_rows: Array) -> Sample:
        part = plain_part(graph, self_loops, idempotent, of_rows)
        return sample(part, total, graph.num_dst - len(hubs))

    own = np.delete(np.arange(graph.num_dst), hubs)
    blocks = _spread(-(-len(own) // BLOCK_ROWS), share)
    own = own[_ranges(blocks * BLOCK_ROWS, np.minimum((blocks + 1) * BLOCK_ROWS, len(own)))]
    sources, ops = len(found.source) - of_hubs, len(found.target) - num_partials
    hag = sample(tiles, sources, ops)
    if is_reordered(found):
        return {PLAIN: plain(own), SHARED: hag, REORDERED: plain(rows)}
    return {PLAIN: plain(rows), SHARED: hag}


def _effort(sources: int, ops: int) -> int:
    """By which a part is compared with the whole: rows may be longer in one than in the other."""
    return sources + 2 * ops


def _spread(count: int, share: float) -> Array:
    """The numbers of a share of `count` pieces, at least one, in stretches all over them."""
    wanted = min(max(1, round(share * count)), count)
    stretches = min(STRETCHES, wanted)
    begins = np.arange(stretches) * count // max(stretches, 1)
    lengths = np.diff(np.arange(stretches + 1) * wanted // max(stretches, 1))
    return np.asarray(_ranges(begins, begins + lengths))


def stretches_of_tiles(program: Program, share: float) -> tuple[Program, Array]:
    """Some of the tiles as a program that writes its rows one after the other, and these rows."""
    tile_ptr, op_ptr, source, target, hub_row, _ = program.numpy()
    num_tiles = len(tile_ptr) - 1
    if len(hub_row):  # those of long rows come last
        first = np.argmax(target >= program.num_dst)
        num_tiles = int(np.searchsorted(tile_ptr, first, "right")) - 1
    tiles = _spread(num_tiles, share)
    ops = _ranges(tile_ptr[tiles], tile_ptr[tiles + 1])
    targets = target[ops].copy()
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
    """The plain program of some rows, in the order given, written one after the other."""
    row_ptr, col = graph.numpy()
    length = row_ptr[rows + 1] - row_ptr[rows]
    source = col[_ranges(row_ptr[rows], row_ptr[rows + 1])]
    if self_loops is not False:
        target = np.repeat(rows.astype(np.int32), length)
        if self_loops == "fill" and graph.loops is not None:
            others = source != target
            length = np.diff(_offsets(others)[_offsets(length)])
            source, target = source[others], target[others]
        begins = _offsets(length)
        smaller = np.diff(_offsets(source < target)[begins])
        looped = rows < graph.num_src  # targets behind the sources have no loop
        source = np.insert(source, (begins[:-1] + smaller)[looped], rows[looped])
        length = length + looped
    arrays = _cpu.plain_program(_offsets(length), source, graph.num_src, "", idempotent)
    return _program(arrays, graph.num_src, len(rows))


def is_reordered(program: Program) -> bool:
    """Whether the tiles of a program take the rows in another order than the graph's own."""
    if program.num_dst <= _NEVER_REORDERED:
        return False
    tile_ptr, _, _, target, hub_row, _ = program.numpy()
    starts = tile_ptr[:-1][np.diff(tile_ptr) > 0]
    if len(hub_row):
        starts = starts[: np.searchsorted(starts, np.argmax(target >= program.num_dst))]
    if len(starts) < 2:
        return False
    ends = starts[-1] + np.flatnonzero(target[starts[-1] :] < program.num_dst)[-1] + 1
    rows = target[:ends]
    most = np.maximum.accumulate(np.maximum.reduceat(rows, starts))
    least = np.minimum.reduceat(np.where(rows < 0, np.int32(program.num_dst), rows), starts)
    # Small graphs of a batch come before the large ones: some tiles step back all the same.
    return bool(2 * (least[1:] < most[:-1]).sum() > len(starts))


def order_of(program: Program) -> Array:
    """The rows in the order in which the tiles of a program take them, int32 `[num_dst]`."""
    target, hub_row = program.numpy()[3:5]
    return np.concatenate([target[(target >= 0) & (target < program.num_dst)], hub_row])


def _program(arrays: tuple[Array, ...], num_src: int, num_dst: int) -> Program:
    return Program.of(map(torch.from_numpy, arrays), num_src, num_dst)


def _offsets(lengths: Array) -> Array:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _ranges(begins: Array, ends: Array) -> Array:
    """The numbers of several ranges, one after the other."""
    lengths = ends - begins
    before = np.cumsum(lengths) - lengths
    return np.repeat(begins - before, lengths) + np.arange(int(lengths.sum()))


# Timing -----------------------------------------------------------------------------------------


def _measure(
    graph: Graph,
    self_loops: SelfLoops,
    idempotent: bool,
    found: Program,
    samples: dict[str, Sample],
    predicted: Mapping[str, Array],
    budget: float,
) -> dict[int, dict[str, float]]:
    """Seconds by bytes of a row and candidate; empty where the time does not reach."""
    total = graph.num_edges + graph.num_dst
    reads = {b: min(total, max(_least_reads(b), total // 4)) for b in ROW_BYTES}
    # A build takes a few times the memory of the graph: timing must not take more.
    most_bytes = max(LEAST_BYTES, 2 * (8 * graph.num_dst + 4 * graph.num_edges))
    for widths in TIMED:
        memory = (graph.num_src + graph.num_dst) * max(widths)
        if memory > min(limits.sampled_bytes, most_bytes, budget / 3 * 4e9):
            continue
        of_a_sweep = [
            sum(float(np.interp(b, ROW_BYTES, each)) for each in predicted.values())
            * (reads[b] / total)
            for b in widths
        ]
        if LEAST_SWEEPS * sum(of_a_sweep) > budget / 1.25:
            continue
        x, y = (features(n * max(widths) // 4) for n in (graph.num_src, graph.num_dst))
        x.fill(1.0)
        measured: dict[int, dict[str, float]] = {}
        size, left = 0, budget
        runs: dict[str, _Run] = {}
        for b, sweep in zip(widths, of_a_sweep, strict=True):
            if reads[b] != size:
                size = reads[b]
                if not samples or size != min(total, limits.sampled_reads):
                    samples = samples_of(graph, self_loops, idempotent, found, size)
                runs = {name: _Run(sample, x, y) for name, sample in samples.items()}
            start = time.thread_time()
            measured[b] = _least(runs, b // 4, start + budget * sweep / sum(of_a_sweep))
            left -= time.thread_time() - start
            if left < 0:  # constants of a faster machine
                break
        return measured
    return {}


def _least_reads(row_bytes: int) -> int:
    """Rows that a sample reads, unless the graph has fewer. In a smaller one a processor learns by
    heart which branches are taken, on which the time of narrow rows depends, and finds too many
    rows in its caches, or too few."""
    return 1 << 18 if row_bytes <= NARROW else 1 << 17


class _Run:
    """A sample that can be run at several widths."""

    def __init__(self, sample: Sample, x: Array, y: Array) -> None:
        self.sample = sample
        self.x = x
        self.y = y

    def seconds(self, width: int) -> float:
        program = self.sample.program
        start = time.thread_time()
        program.native.run(
            self.x.ctypes.data, self.y.ctypes.data, 1, width, width, 0, program.num_src,
            program.num_dst, FLOAT32, SUM, 0, 0, 1,
        )  # fmt: skip
        return (time.thread_time() - start) * self.sample.scale


def _least(runs: Mapping[str, _Run], width: int, stop: float) -> dict[str, float]:
    """The least seconds of each, run in turns until the clock says so.

    On one thread, in seconds that it ran itself: what else the machine does is not measured.
    """
    for run in runs.values():
        run.seconds(width)
    least = dict.fromkeys(runs, math.inf)
    for sweep in range(MOST_SWEEPS):
        for name, run in runs.items():
            least[name] = min(least[name], run.seconds(width))
        if sweep + 2 >= LEAST_SWEEPS and time.thread_time() > stop:
            break
    return least
