"""What the candidates for one matrix of a graph take: by the cost model, or timed on samples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np

from hag_plugin.hag import constants
from hag_plugin.hag.calibration import TIMED_AS, features
from hag_plugin.hag.candidates import NAMES, PLAIN, ROW_BYTES, SHARED, Table
from hag_plugin.hag.cost import Work
from hag_plugin.hag.graph import Graph
from hag_plugin.hag.program import Program, SelfLoops
from hag_plugin.hag.rates import (
    ARITHMETICS,
    EXTREMUM,
    HALF_EXTREMUM,
    HALF_SUM,
    SUM,
    Arithmetic,
    Constants,
)
from hag_plugin.hag.samples import Sample, plain_reads, samples_of
from hag_plugin.hag.search import Found
from hag_plugin.kernels import _cpu
from hag_plugin.limits import limits
from hag_plugin.modes import Array

LEAST_ERROR = 1.5  # of the model: real programs are not like those that it was fitted to
# HAGs of nine real graphs took so much longer than the model says beside the plain ones, in the
# median of rows of 128 to 1024 bytes: their branches are harder to guess than synthetic ones.
MORE = 1.1
# What is timed: arithmetic and bytes of a row, those first that tell most about all others (taken
# one by one, over nine real graphs at AVX2 and AVX-512).
POINTS = (
    (EXTREMUM, 32),
    (HALF_SUM, 32),
    (SUM, 32),
    (EXTREMUM, 256),
    (HALF_EXTREMUM, 256),
    (SUM, 64),
    (SUM, 512),
)
# How alike two errors of the model are, from 1 to 0: of an arithmetic that differs in one thing,
# and of rows twice or half as long. And the noise of a timing, in variances of the model's error:
# 10 % beside 40 %. Regrets over real graphs hardly tell half or twice as much of any of them apart.
ALIKE, FADES, NOISE = 0.7, 0.6, 1 / 16
SHARE = 0.045  # of a search, that choosing may take: a twentieth of the build with what goes over
READ = 2.5e-7  # seconds for each row that a sample reads: a third to make it, the rest to run it
LEAST_READS = 1 << 12  # fewer tell nothing
LEAST_BYTES = 64 << 20  # of features, that timing may take for any graph
SWEEPS, MOST_SWEEPS = 3, 8  # runs of each candidate at a point, the first of them a cold one
FILL = 4e9  # bytes of features that are made ready in a second
ORDERED = 7e-9  # seconds in which a program orders a read, before it first runs over narrow rows

Point = tuple[Arithmetic, int]


def seconds_to_choose(search: float) -> float:
    """What choosing may take, on one thread, after a search of so many seconds."""
    return max(SHARE * search, min(limits.timed_seconds, limits.timed_share * search))


def table_of(
    graph: Graph,
    self_loops: SelfLoops,
    idempotent: bool,
    found: Found,
    candidate: Callable[[str], Program],
    budget: float,
    clock: Callable[[], float] = time.thread_time,
) -> Table:
    """The seconds of the candidates for all arithmetics and rows of every length.

    They are predicted; and where the fastest is predicted to be ahead by less than the model's
    error, samples are timed, and what is predicted is corrected by it.

    Args:
        graph: the graph, in main memory.
        self_loops: the mode of the matrix.
        idempotent: without duplicates.
        found: what the search found.
        candidate: makes the whole candidate of a name.
        budget: seconds of one thread that choosing may take; 0: the model decides.
        clock: of seconds that this thread ran itself: what else the machine does is not measured.
    """
    start = clock()
    c = constants.in_force()
    works = _works_in_one_tile(graph, self_loops, idempotent, found)
    if works:
        return _table("model", _seconds(works, c))
    reads = limits.sampled_reads
    if budget:
        reads = min(reads, max(LEAST_READS, int(budget / READ)))
    samples = samples_of(graph, self_loops, idempotent, found, candidate, reads)
    predicted = _seconds({name: (s.work, s.scale) for name, s in samples.items()}, c)
    predicted[SHARED] *= MORE
    points = _close_points(predicted, max(LEAST_ERROR, c.error))
    budget -= clock() - start
    measured = _measure(graph, samples, predicted, points, budget, c.call, clock)
    if not measured:
        return _table("model", predicted)
    return _table("measure", _corrected(predicted, measured))


def _table(by: str, seconds: Mapping[str, Array]) -> Table:
    names = tuple(name for name in NAMES if name in seconds)
    return Table(by, names, np.stack([seconds[name] for name in names]))


# The model --------------------------------------------------------------------------------------


def _seconds(works: Mapping[str, tuple[Work, float]], c: Constants) -> dict[str, Array]:
    """Of whole candidates on one thread, for each of `ARITHMETICS` and `ROW_BYTES`; of what a part
    does, and how many times as much the whole."""
    counts = np.array([list(vars(work).values()) for work, _ in works.values()])
    scale = np.array([[[scale]] for _, scale in works.values()])
    if (counts[:, -2:].sum(axis=1) * ROW_BYTES[-1] <= c.cache_bytes).all():
        parts = np.tensordot(counts[:, :-1], _rates(c), 1)
    else:
        parts = of_all_rows(Work(*counts.T[:, :, None]), c)
    return dict(zip(works, c.call + parts * scale, strict=True))


def of_all_rows(work: Work, c: Constants) -> Array:
    """Seconds beside the call, by the model: `[*, len(ARITHMETICS), len(ROW_BYTES)]`.

    Args:
        work: several in one, whose counts are arrays `[*, 1]`.
        c: the constants.
    """
    rows = np.array(ROW_BYTES)
    each = [work.seconds(rows, constants=c, arithmetic=a) - c.call for a in ARITHMETICS]
    return np.stack(each, axis=-2)


@lru_cache(maxsize=8)
def _rates(c: Constants) -> Array:
    """Seconds of one of each of the counts of `Work`, where the cache holds x and y."""
    ops, scratch, again, first, written = np.eye(5)[:, :, None]
    return of_all_rows(Work(ops, scratch, again, first, written, num_src=0), c)


def _works_in_one_tile(
    graph: Graph, self_loops: SelfLoops, idempotent: bool, found: Found
) -> dict[str, tuple[Work, float]]:
    """What the candidates for a small graph do, without making them; empty for other graphs."""
    program = found.program
    assert program is not None
    total = plain_reads(graph, self_loops)
    fits = total + graph.num_dst <= _cpu.PLAIN_TILE_WORK
    is_small = fits and graph.num_dst <= _cpu.PLAIN_TILE_ROWS
    if not is_small or len(program.arrays[0]) != 2 or idempotent or self_loops == "fill":
        return {}
    work = Work.of(program)
    plain = Work(graph.num_dst, 0, total - work.first, work.first, graph.num_dst, graph.num_src)
    return {PLAIN: (plain, 1.0), SHARED: (work, 1.0)}


def _close_points(predicted: Mapping[str, Array], error: float) -> list[Point]:
    """Those of `POINTS` at which the model cannot tell which is the fastest."""
    seconds = np.sort(np.stack(list(predicted.values())), axis=0)
    is_close = seconds[1] < (1.0 + error) * seconds[0]
    return [point for point in POINTS if is_close[_at(point)]]


def _at(point: Point) -> tuple[int, int]:
    return ARITHMETICS.index(point[0]), ROW_BYTES.index(point[1])


def _corrected(
    predicted: Mapping[str, Array], measured: Mapping[Point, Mapping[str, float]]
) -> dict[str, Array]:
    """The seconds by the model, brought to those that were measured at points.

    What the model got wrong at each point, as a logarithm, is a sample of a Gaussian process over
    arithmetics and lengths of rows (kriging): its mean, given all of them, corrects every entry.
    """
    points = list(measured)
    everywhere = [(a, row_bytes) for a in ARITHMETICS for row_bytes in ROW_BYTES]
    noise = NOISE * np.eye(len(points))
    weights = np.linalg.solve(_alike(points, points) + noise, _alike(points, everywhere))
    corrected = {}
    for name, model in predicted.items():
        wrong = np.log([measured[point][name] / model[_at(point)] for point in points])
        corrected[name] = model * np.exp(wrong @ weights).reshape(model.shape)
    return corrected


def _alike(points: Sequence[Point], others: Sequence[Point]) -> Array:
    """How much what the model got wrong at points tells of others: `[len(points), len(others)]`."""
    at = [np.array([(*a, math.log2(b)) for a, b in each], np.float64) for each in (points, others)]
    differ = np.abs(at[0][:, None] - at[1])
    return np.asarray(ALIKE ** differ[..., :2].sum(axis=-1) * FADES ** differ[..., 2])


# Timing -----------------------------------------------------------------------------------------


def _measure(
    graph: Graph,
    samples: Mapping[str, Sample],
    predicted: Mapping[str, Array],
    points: Sequence[Point],
    budget: float,
    call: float,
    clock: Callable[[], float],
) -> dict[Point, dict[str, float]]:
    """Seconds of each candidate at points; those that the time and the memory reach for.

    `call`: of a call, however small.
    """
    written = max(sample.program.num_dst for sample in samples.values())
    rows = graph.num_src + written
    # A build takes a few times the memory of the graph: timing must not take more.
    most_bytes = max(LEAST_BYTES, 2 * (8 * graph.num_dst + 4 * graph.num_edges))
    most_bytes = int(min(limits.sampled_bytes, most_bytes, budget / 3 * FILL))
    points = [point for point in points if rows * point[1] <= most_bytes]
    sweep = {
        point: sum(
            float(predicted[name][_at(point)]) / sample.scale for name, sample in samples.items()
        )
        for point in points
    }
    start = clock()
    ordering = ORDERED * sum(len(each.program.arrays[2]) for each in samples.values())
    points = _affordable(points, sweep, rows, budget - ordering)
    if not points:
        return {}
    size = max(row_bytes for _, row_bytes in points) // 4
    x, y = features(graph.num_src * size), features(written * size)
    x.fill(1.0)
    y.fill(0.0)
    runs = {name: _Run(sample, x, y, call, clock) for name, sample in samples.items()}
    for run in runs.values():
        run.seconds(points[0])  # its reads are put in order
    measured: dict[Point, dict[str, float]] = {}
    total = sum(sweep[point] for point in points)
    for point in points:
        now = clock()
        if measured and now - start > budget:  # constants of a faster machine
            break
        stop = now + (start + budget - now) * sweep[point] / total
        total -= sweep[point]
        measured[point] = _least(runs, point, stop, clock)
    return measured


def _affordable(
    points: Sequence[Point], sweep: Mapping[Point, float], rows: int, budget: float
) -> list[Point]:
    """Those of the points that the time is predicted to reach for, the first ones first."""
    taken: list[Point] = []
    left, ready = budget / 1.25, 0
    for point in points:
        takes = SWEEPS * sweep[point] + max(0, point[1] - ready) * rows / FILL
        if takes <= left:
            taken.append(point)
            left -= takes
            ready = max(ready, point[1])
    return taken


class _Run:
    """A sample that can be run at several points."""

    def __init__(
        self, sample: Sample, x: Array, y: Array, call: float, clock: Callable[[], float]
    ) -> None:
        self.sample = sample
        self.x = x
        self.y = y
        self.call = call
        self.clock = clock

    def seconds(self, point: Point) -> float:
        """Of the whole candidate, which is called once as the sample is."""
        arithmetic, row_bytes = point
        width, program = row_bytes // 4, self.sample.program
        start = self.clock()
        program.native.run(
            self.x.ctypes.data, self.y.ctypes.data, 1, width, width, 0, program.num_src,
            program.num_dst, *TIMED_AS[arithmetic], 0, 0, 1,
        )  # fmt: skip
        took = self.clock() - start
        return took + max(0.0, took - self.call) * (self.sample.scale - 1.0)


def _least(
    runs: Mapping[str, _Run], point: Point, stop: float, clock: Callable[[], float]
) -> dict[str, float]:
    """The least seconds of each, run in turns as long as the clock lets them, on one thread."""
    least = dict.fromkeys(runs, math.inf)
    end = clock()
    for sweep in range(MOST_SWEEPS):
        begin = end
        for name, run in runs.items():
            least[name] = min(least[name], run.seconds(point))
        end = clock()
        if sweep + 1 >= SWEEPS and end + (end - begin) > stop:
            break
    return least
