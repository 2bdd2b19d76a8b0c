"""What the candidates for one matrix of a graph take: by the cost model, or timed on samples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np

from hag_plugin.hag import constants
from hag_plugin.hag.calibration import TIMED_AS, features, shortest
from hag_plugin.hag.candidates import (
    NAMES,
    PLAIN,
    REORDERED,
    ROW_BYTES,
    SHAPE,
    SHARED,
    Table,
)
from hag_plugin.hag.cost import Work
from hag_plugin.hag.graph import Graph
from hag_plugin.hag.program import Program, SelfLoops
from hag_plugin.hag.rates import ARITHMETICS, Arithmetic, Constants
from hag_plugin.hag.samples import Sample, plain_reads, samples_of
from hag_plugin.hag.search import Found
from hag_plugin.kernels import _cpu
from hag_plugin.limits import limits
from hag_plugin.modes import Array

# HAGs of nine real graphs took so much longer than the model says beside the plain ones, in the
# median of rows of 128 to 1024 bytes: their branches are harder to guess than synthetic ones.
MORE = 1.1
# How far off the model is where nothing was timed, by constants of this machine and of another
# one: the standard deviation of the logarithm of a HAG's seconds over the plain graph's. And a
# timing, since a sample is not the whole. Over nine real graphs at AVX2 and AVX-512.
SPREAD, SPREAD_ELSEWHERE, SPREAD_OF_TIMING = 0.25, 0.4, 0.1
# Of the error of a HAG's seconds over the plain graph's, that of the plain graph in another order,
# which does the same in other places.
ORDER_SHARE = 1 / 3
# How alike two errors of the model are, from 1 to 0: of rows that are converted or not, of sums and
# extrema, which are other code, and of rows twice or half as long. Regrets over real graphs hardly
# tell half or twice as much of any of them apart.
ALIKE, OTHER_CODE, FADES = 0.7, 0.4, 0.6
MARGIN = 1.25  # of the time that a timing is predicted to take, that must be left for it
LITTLE = 1e-3  # of the seconds, over all points: what is expected to save less is not timed
SHARE = 0.045  # of a search, that choosing may take: a twentieth of the build with what goes over
READ = 1.5e-7  # seconds for each row that a sample reads: a third to make it, the rest to run it
LEAST_READS = 1 << 12  # fewer tell nothing
LEAST_BYTES = 64 << 20  # of features, that timing may take for any graph
SWEEPS = 3  # runs of each candidate at a point, the first of them a cold one
LEAST = 1e-9  # seconds of any run, whatever the constants say
FILL = 4e9  # bytes of features that are made ready in a second
ORDERED = 7e-9  # seconds in which a program orders a read, before it first runs over narrow rows

Point = tuple[Arithmetic, int]
POINTS: tuple[Point, ...] = tuple((a, row_bytes) for a in ARITHMETICS for row_bytes in ROW_BYTES)


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

    They are predicted; where that may choose wrongly samples are timed, and what is predicted is
    corrected by it.

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
        return _table("model", _seconds(works, c), model_error(c))
    reads = limits.sampled_reads
    if budget:
        reads = min(reads, max(LEAST_READS, int(budget / READ)))
    samples = samples_of(graph, self_loops, idempotent, found, candidate, reads)
    predicted = _seconds({name: (s.work, s.scale) for name, s in samples.items()}, c)
    predicted[SHARED] *= MORE
    held = _held(graph, c.cache_bytes)
    if REORDERED in predicted:  # the order of rows tells only where the cache does not hold them
        predicted[REORDERED] = np.where(held, predicted[PLAIN], predicted[REORDERED])
    wrong = Wrong(predicted, spread_of(c))
    budget -= clock() - start
    timed = _measure(graph, samples, wrong, held.ravel(), budget, c, clock)
    return _table("measure" if timed else "model", wrong.corrected(), wrong.error())


def spread_of(c: Constants) -> float:
    """How far off these constants make a ratio of seconds, as a standard deviation."""
    return SPREAD if c.error < 1.0 else SPREAD_ELSEWHERE


def model_error(c: Constants) -> Array:
    """The `error` of a table that is predicted by these constants."""
    return np.full(SHAPE, spread_of(c))


def _table(by: str, seconds: Mapping[str, Array], error: Array) -> Table:
    names = tuple(name for name in NAMES if name in seconds)
    return Table(by, names, np.stack([seconds[name] for name in names]), error)


# The model --------------------------------------------------------------------------------------


def _seconds(works: Mapping[str, tuple[Work, float]], c: Constants) -> dict[str, Array]:
    """Of whole candidates on one thread, for each of `ARITHMETICS` and `ROW_BYTES`; of what a part
    does, and how many times as much the whole."""
    counts = np.array([list(vars(work).values()) for work, _ in works.values()])
    scale = np.array([[[scale]] for _, scale in works.values()])
    return dict(zip(works, c.call + of_counts(counts, c) * scale, strict=True))


def of_counts(counts: Array, c: Constants) -> Array:
    """Seconds beside the call, by the model, for each of `ARITHMETICS` and `ROW_BYTES`.

    Args:
        counts: of several, the attributes of `Work` in order, `[*, 6]`.
        c: the constants.
    """
    counted, each = linear(counts, c)
    return in_shape(counted @ each)


def linear(counts: Array, c: Constants) -> tuple[Array, Array]:
    """Numbers of several, `[*, K]`, and what one of each adds at each of `POINTS`, `[K, P]`.

    Their product is the seconds of `of_counts`, and that of sums the seconds of several together.
    """
    held = min(c.cache_bytes, c.last_bytes)
    if (counts[..., -2:].sum(axis=-1) * ROW_BYTES[-1] <= held).all():
        return counts[..., :-1].astype(np.float64), _rates(c).reshape(-1, len(POINTS))
    seconds = of_all_rows(Work(*np.moveaxis(counts, -1, 0)[..., None]), c)
    return seconds.reshape(*counts.shape[:-1], -1), np.eye(len(POINTS))


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


def in_shape(seconds: Array) -> Array:
    """Seconds at `POINTS`, for each of `ARITHMETICS` and `ROW_BYTES`."""
    return seconds.reshape(*seconds.shape[:-1], *SHAPE)


def _held(graph: Graph, cache_bytes: int) -> Array:
    """Whether a cache holds all of x and y, for each of `ARITHMETICS` and `ROW_BYTES`."""
    share = np.array([[0.5 if a.is_half else 1.0] for a in ARITHMETICS])
    rows = graph.num_src + graph.num_dst
    return np.asarray(share * rows * np.array(ROW_BYTES) <= cache_bytes)


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


# What timings tell ------------------------------------------------------------------------------


class Wrong:
    """What the model gets wrong at each of `POINTS`, as a logarithm, as far as timings tell.

    A Gaussian process over arithmetics and lengths of rows (kriging): what is timed at a point
    tells of all others, the more the more they are alike.
    """

    def __init__(self, predicted: Mapping[str, Array], spread: float) -> None:
        self.predicted = {name: np.maximum(s, LEAST) for name, s in predicted.items()}
        self.mean = {name: np.zeros(len(POINTS)) for name in predicted}
        self.covariance = spread**2 * _ALIKE

    def learn(self, at: int, seconds: Mapping[str, float]) -> None:
        """Takes in what each candidate took at a point, by its number."""
        column = self.covariance[:, at]
        gain = column / (column[at] + SPREAD_OF_TIMING**2)
        for name, took in seconds.items():
            wrong = math.log(took / float(self.predicted[name].flat[at]))
            self.mean[name] += gain * (wrong - self.mean[name][at])
        self.covariance = self.covariance - np.outer(gain, column)

    def corrected(self) -> dict[str, Array]:
        """The seconds of each candidate, `[len(ARITHMETICS), len(ROW_BYTES)]`."""
        of_each = self.predicted.items()
        return {name: s * np.exp(self.mean[name]).reshape(s.shape) for name, s in of_each}

    def error(self) -> Array:
        """The standard deviation of the logarithm of two candidates' ratio, of the same shape."""
        return np.sqrt(np.maximum(np.diagonal(self.covariance), 0.0)).reshape(SHAPE)

    def worth(self) -> Array:
        """What timing at each point is expected to save, as a share of the seconds, over all.

        A choice by what is known loses where it is wrong; the less it would after one more timing
        is what that is worth (the knowledge gradient, Frazier et al. 2008).
        """
        logs = {name: np.log(s).ravel() for name, s in self.corrected().items()}
        noisy = np.diagonal(self.covariance) + SPREAD_OF_TIMING**2
        change = np.abs(self.covariance) / np.sqrt(noisy)
        plain = logs[PLAIN]
        saves = np.zeros(len(POINTS))
        if REORDERED in logs:
            saves += _expected_loss(logs[REORDERED] - plain, ORDER_SHARE * change)
            plain = np.minimum(plain, logs[REORDERED])
        return saves + _expected_loss(logs[SHARED] - plain, change)


def _expected_loss(ahead: Array, spread: Array) -> Array:
    """Of taking what seems ahead by so much, where that changes by so much: `[P]` and `[P, Q]`.

    The mean over the first of them, `[Q]`.
    """
    far = np.minimum(np.abs(ahead)[:, None] / np.maximum(spread, 1e-12), _FAR[-1])
    return np.asarray((spread * np.interp(far, _FAR, _LOST)).mean(axis=0))


# E[max(0, t - far)] of a normal variable t.
_FAR = np.linspace(0.0, 5.0, 101)
_LOST = np.array([
    math.exp(-z * z / 2) / math.sqrt(2 * math.pi) - z * math.erfc(z / math.sqrt(2)) / 2
    for z in _FAR.tolist()
])  # fmt: skip


def _alike(points: Sequence[Point], others: Sequence[Point]) -> Array:
    """How much what the model got wrong at points tells of others: `[len(points), len(others)]`."""
    at = [np.array([(*a, math.log2(b)) for a, b in each], np.float64) for each in (points, others)]
    differ = np.abs(at[0][:, None] - at[1])
    return np.asarray(np.prod(np.array([ALIKE, OTHER_CODE, FADES]) ** differ, axis=-1))


_ALIKE = _alike(POINTS, POINTS)
_ROW_BYTES = np.array([row_bytes for _, row_bytes in POINTS])
_IS_EXTREMUM = np.array([arithmetic.is_extremum for arithmetic, _ in POINTS])


# Timing -----------------------------------------------------------------------------------------


def _measure(
    graph: Graph,
    samples: Mapping[str, Sample],
    wrong: Wrong,
    held: Array,
    budget: float,
    c: Constants,
    clock: Callable[[], float],
) -> list[Point]:
    """Times the candidates where it is worth most for its time, as long as the time lasts.

    Returns:
        The points. `wrong` knows what was found there.
    """
    end = clock() + budget
    stage = _Stage(graph, samples, c, clock)
    may, timed = stage.holds(), list[Point]()
    while may.any():
        once = sum(s.ravel() / samples[name].scale for name, s in wrong.corrected().items())
        takes = SWEEPS * once + stage.to_prepare()
        worth = np.where(may & (MARGIN * takes <= end - clock()), wrong.worth(), 0.0)
        at = int(np.argmax(worth / takes))
        if worth[at] < LITTLE:
            break
        stage.prepare(POINTS[at])
        names = [name for name in samples if not held[at] or name != REORDERED]
        found = stage.least(POINTS[at], names)
        if held[at] and REORDERED in samples:
            found[REORDERED] = found[PLAIN]
        wrong.learn(at, found)
        timed.append(POINTS[at])
        may[at] = False
    return timed


class _Stage:
    """Samples, and features that they run over."""

    def __init__(
        self,
        graph: Graph,
        samples: Mapping[str, Sample],
        c: Constants,
        clock: Callable[[], float],
    ) -> None:
        self.samples = samples
        self.call = c.call
        self.clock = clock
        self.sizes = graph.num_src, max(sample.program.num_dst for sample in samples.values())
        # A build takes a few times the memory of the graph: timing must not take more.
        most = max(LEAST_BYTES, 2 * (8 * graph.num_dst + 4 * graph.num_edges))
        self.most_bytes = min(limits.sampled_bytes, most)
        self.row_bytes = 0  # of the features that are there
        self.runs: dict[str, _Run] = {}

    def holds(self) -> Array:
        """Of each of `POINTS`, whether its features are small enough and all candidates do it.

        A program that subtracts sums, and nothing else.
        """
        small = sum(self.sizes) * _ROW_BYTES <= self.most_bytes
        subtracts = any(sample.program.diagonal for sample in self.samples.values())
        return np.asarray(small & ~_IS_EXTREMUM if subtracts else small)

    def to_prepare(self) -> Array:
        """Seconds that preparing takes for each of `POINTS`."""
        more = self.row_bytes < _ROW_BYTES
        seconds = np.where(more, sum(self.sizes) * _ROW_BYTES / FILL, 0.0)
        if not self.runs:
            seconds += ORDERED * sum(len(s.program.arrays[2]) for s in self.samples.values())
        return seconds

    def prepare(self, point: Point) -> None:
        """Makes features, unless there are; and the order in which the samples read."""
        row_bytes, is_first = point[1], not self.runs
        if row_bytes > self.row_bytes:
            self.row_bytes = row_bytes
            x, y = (features(size * row_bytes // 4) for size in self.sizes)
            x.fill(1.0)
            y.fill(0.0)
            for name, sample in self.samples.items():
                self.runs[name] = _Run(sample, x, y, self.call, self.clock)
        if is_first:
            for run in self.runs.values():
                run.seconds(point)

    def least(self, point: Point, names: Sequence[str]) -> dict[str, float]:
        """The least seconds of some candidates, on one thread.

        Each runs after itself, as the whole will: after another one that reads the same rows it
        would find them in the cache, which those that read others do not.
        """
        runs = {name: self.runs[name] for name in names}
        return {n: shortest([r.seconds(point) for _ in range(SWEEPS)]) for n, r in runs.items()}


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
