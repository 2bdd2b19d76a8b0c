"""Measuring the constants of the cost model: synthetic programs, run through the real kernel."""

from __future__ import annotations

import math
import mmap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from hag_plugin.hag.cost import ROWS, Work
from hag_plugin.hag.program import Program
from hag_plugin.hag.rates import (
    DEFAULT,
    EXTREMUM,
    HALF_EXTREMUM,
    HALF_SUM,
    SUM,
    Arithmetic,
    Constants,
    RowCost,
)
from hag_plugin.kernels import _cpu
from hag_plugin.limits import limits
from hag_plugin.modes import Array
from hag_plugin.reducers import CODES

FLOAT32, BFLOAT16 = 0, 3  # as the kernel numbers dtypes
# What stands for each arithmetic when it is timed: a dtype and a reducer.
TIMED_AS = {
    SUM: (FLOAT32, CODES["sum"]),
    HALF_SUM: (BFLOAT16, CODES["sum"]),
    EXTREMUM: (FLOAT32, CODES["max"]),
    HALF_EXTREMUM: (BFLOAT16, CODES["max"]),
}
WIDTHS = (8, 64, 256)  # the narrowest that models have: lines through wider rows miss it
TOGETHER = 64  # width at which threads are timed
WARM_CALLS = 2  # before those timed: after a single one, writing y took twice as long
TIMED_CALLS = 3
SCRATCH_SHARE = 0.7  # of the sources of a row of y, where there is scratch
BUFFER_BYTES = 128 << 20  # of x, and of y, at most
# A fit to noisy times may come to less; no processor does. An op takes a cycle, and a core moves
# 512 bytes in a nanosecond. Threads that gain next to nothing had no core to themselves.
FLOORS = {"call": 1e-7, "op": 3e-10, "per_byte": 2e-12, "parallel": 0.3}


@dataclass(frozen=True)
class Shape:
    """A synthetic program: tiles that are all alike, but for the rows they read.

    There are as many rows of y as of x, as in a graph.

    Attributes:
        arity: sources of a row of y, on average.
        caches: how many times as large as the cache x is.
        rows: of y in a tile.
        window: consecutive rows of x that a tile reads from, the first of them its own; 0: all.
        scratch: rows of scratch in a tile, each the sum of two rows of x.
    """

    arity: int
    caches: float
    rows: int = 256
    window: int = 0
    scratch: int = 0


# Hardly more than what is done to its rows, which the cache holds; not the first-level cache, as
# in real graphs. Rows of max are compared one after the other: the longer an op, the less of that
# overlaps with others.
COMPUTING = Shape(32, 0.25)
CALL = Shape(1, 0.25, rows=64)  # of one tile: hardly more than the call
# As the tiles of searched and plain programs are: 256 rows of large graphs or 64 of packed small
# ones. The cache holds all of x and y, half of them, an eighth, or next to nothing.
SHAPES = (
    COMPUTING,
    *(
        shape
        for caches in (0.25, 1.0, 4.0, 16.0)
        for shape in (
            Shape(16, caches, window=256),
            Shape(1, caches, window=256),
            Shape(4, caches, window=256),
            Shape(4, caches, window=256, scratch=256),
            Shape(2, caches),
            Shape(16, caches),
            Shape(2, caches, rows=64, window=64),
            Shape(8, caches, rows=64, window=64, scratch=64),
        )
    ),
)
# The fewest that still tell the constants apart. Far rows are beyond all caches: those of large
# graphs cost two to three times as much as rows that only the second-level cache does not hold.
QUICK_SHAPES = (
    COMPUTING,
    Shape(1, 0.25, window=256),
    Shape(4, 0.5, scratch=256),
    Shape(8, 1.0, rows=64, window=64, scratch=64),
    Shape(4, 1.0),
    Shape(2, 16.0, window=256),
    Shape(4, 16.0),
)
# Of the last-level cache, x and y each: more than it holds of both, and y is not written past it.
COPIED = 0.75
QUICK_SOURCES = 1 << 20  # of a program; larger ones take too long to make


@dataclass(frozen=True)
class Calibration:
    """Constants and how well they describe what was measured.

    Attributes:
        constants: those that were fitted.
        mean_error: mean of |predicted - measured| / measured over the synthetic programs.
        largest_error: the largest of these.
        cases: number of programs measured.
        threads: that `parallel` was measured with.
    """

    constants: Constants
    mean_error: float
    largest_error: float
    cases: int
    threads: int


def quick_calibration(threads: int | None = None) -> Calibration:
    """The same as `calibrate` in `limits.calibration_seconds`, or a little more."""
    return calibrate(1000, threads, None, QUICK_SHAPES, limits.calibration_seconds, QUICK_SOURCES)


def calibrate(
    rounds: int = 15,
    threads: int | None = None,
    report: Callable[[float], None] | None = None,
    shapes: Sequence[Shape] = SHAPES,
    seconds: float = math.inf,
    sources: float = math.inf,
) -> Calibration:
    """Measures the constants of this machine.

    Args:
        rounds: in each of them every program runs; its shortest round counts, since whatever else
            the machine does only adds.
        threads: by default as many as torch uses. With 1, `parallel` is the default.
        report: called with the share that is done.
        shapes: of the programs.
        seconds: after which no further round is begun. There is always one.
        sources: programs with more are left out.
    """
    end = time.perf_counter() + 0.8 * seconds
    threads = torch.get_num_threads() if threads is None else threads
    cache = _cache_bytes()
    last = _cpu.last_cache_bytes() or DEFAULT.last_bytes
    runs = runs_of(shapes[:: limits.calibration_step], cache, sources)
    measured = _shortest(runs, 1, rounds, end, report)
    gain = DEFAULT.parallel
    # In short programs starting the threads counts. Few, since threads that share cores wait long.
    large = [i for i, run in enumerate(runs) if run.is_large and run.row_bytes == 4 * TOGETHER]
    if threads > 1 and large:
        end = time.perf_counter() + 0.2 * seconds
        together = _shortest([runs[i] for i in large], threads, rounds, end)
        gain = float(np.median((measured[large] / together - 1.0) / (threads - 1)))
    terms = np.array([(1.0, *run.work.terms(run.row_bytes, cache)) for run in runs])
    memory = _memory(last)
    beyond = np.array([memory * run.work.bytes_beyond(run.row_bytes, last) for run in runs])
    # Such rows may be fetched while others are added up: not all that they take is beside that.
    fitted = fit_constants(terms, np.maximum(measured - beyond, measured / 2))
    errors = np.abs((terms @ fitted + beyond) / measured - 1.0)
    mean, largest = float(errors.mean()), float(errors.max())
    gain = min(max(gain, FLOORS["parallel"]), 1.0)
    found = _constants(fitted, memory, gain, (cache, last), largest)
    found = _with_extras(found, [run for run in runs if run.shape == COMPUTING])
    return Calibration(found, mean, largest, len(runs), threads)


def _shortest(
    runs: Sequence[Run],
    threads: int,
    rounds: int,
    end: float,
    report: Callable[[float], None] | None = None,
) -> Array:
    """The shortest seconds of each run, in so many rounds, or those begun before `end`."""
    shortest = np.full(len(runs), np.inf)
    for turn in range(rounds):
        for i, run in enumerate(runs):
            shortest[i] = min(shortest[i], run.seconds(threads))
            if report:
                report((turn + (i + 1) / len(runs)) / rounds)
        if time.perf_counter() > end:
            break
    return shortest


def _with_extras(c: Constants, runs: Sequence[Run]) -> Constants:
    """With what other arithmetic takes than sums of float32, by rows that the cache holds."""
    row_bytes = np.array([run.row_bytes for run in runs])

    def more(arithmetic: Arithmetic) -> Array:
        turns = [
            [(run.seconds(1, arithmetic), run.seconds(1)) for run in runs]
            for _ in range(TIMED_CALLS)
        ]
        least = np.min(turns, axis=0)
        sources = np.array([len(run.program.arrays[2]) for run in runs])
        return np.asarray((least[:, 0] - least[:, 1]) / sources)

    shorter = c.near.per_byte * row_bytes / 2  # rows of half types are read in half the time
    return replace(
        c,
        half=_row_cost(row_bytes, more(HALF_SUM) + shorter),
        extremum=_row_cost(row_bytes, more(EXTREMUM)),
    )


def _memory(last: int) -> float:
    """Seconds a byte of copying wide rows that the last-level cache does not hold."""
    copy = Shape(1, 1.0, window=256)
    (run,) = runs_of((copy,), int(COPIED * last), math.inf, WIDTHS[-1:], calls=())
    moved = (run.program.num_src + run.program.num_dst) * run.row_bytes
    return max(run.seconds(1) / moved, FLOORS["per_byte"])


def _row_cost(row_bytes: Array, seconds: Array) -> RowCost:
    """The line through the seconds of the shortest and the longest row, none below 0."""
    first, last = np.argmin(row_bytes), np.argmax(row_bytes)
    per_byte = (seconds[last] - seconds[first]) / max(row_bytes[last] - row_bytes[first], 1)
    per_byte = max(float(per_byte), 0.0)
    return RowCost(max(float(seconds[first] - per_byte * row_bytes[first]), 0.0), per_byte)


def fit_constants(terms: Array, seconds: Array) -> Array:
    """Call, op, written and rows as `Work.terms` orders them, none below what is possible.

    None is below `FLOORS`, and no byte that comes from beyond the cache, or goes there, costs less
    than one that stays.
    """
    call, op, written, _, scratch_byte, _, near_byte, _, far_byte = range(9)
    above = np.eye(9)  # constants = above @ parts, all parts >= 0
    above[far_byte, near_byte] = above[written, near_byte] = 1.0
    least = np.zeros(9)
    least[call], least[op] = FLOORS["call"], FLOORS["op"]
    least[[scratch_byte, near_byte]] = FLOORS["per_byte"]
    result: Array = above @ fit(terms @ above, seconds, least)
    return result


def fit(terms: Array, seconds: Array, least: Array) -> Array:
    """Least squares of the relative error: `terms` `[N, K]` times the result `[K] >= least`.

    Coordinate descent on the normal equations, which are convex and small here: each coordinate in
    turn goes to its minimum, or to its bound.

    Example:
        >>> terms = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
        >>> fit(terms, np.array([2.0, 5.0, 8.0]), np.zeros(2)).round(6)
        array([2., 3.])
    """
    relative = terms / seconds[:, None]
    size = np.linalg.norm(relative, axis=0)
    size[size == 0.0] = 1.0
    relative = relative / size
    normal, goal = relative.T @ relative, relative.sum(axis=0)
    bound = least * size
    found = bound.copy()
    for _ in range(20_000):
        before = found.copy()
        for k in range(len(found)):
            if normal[k, k] > 0.0:
                found[k] = max(bound[k], found[k] + (goal[k] - normal[k] @ found) / normal[k, k])
        if np.abs(found - before).max() <= 1e-12 * np.abs(found).max():
            break
    result: Array = np.maximum(found / size, least)
    return result


def _constants(
    fitted: Array, memory: float, parallel: float, caches: tuple[int, int], error: float
) -> Constants:
    call, op, written, *rows = (float(value) for value in fitted)
    costs = {name: RowCost(*rows[2 * i : 2 * i + 2]) for i, name in enumerate(ROWS)}
    return Constants(
        call=call,
        op=op,
        written=written,
        memory=memory,
        parallel=parallel,
        cache_bytes=caches[0],
        last_bytes=caches[1],
        error=error,
        **costs,
    )


def _cache_bytes() -> int:
    """Of the second-level cache."""
    return _cpu.second_cache_bytes() or DEFAULT.cache_bytes


# Synthetic programs -----------------------------------------------------------------------------


class Run:
    """A program with its buffers, ready to be timed."""

    def __init__(self, shape: Shape, program: Program, width: int, x: Array, y: Array) -> None:
        self.shape = shape
        self.program = program
        self.work = Work.of(program)
        self.row_bytes = 4 * width
        self.buffers = x, y  # the same for all, and at least as large as this one needs
        self._arguments = (
            *(x.ctypes.data, y.ctypes.data, 1, width, width, 0, program.num_src, program.num_dst),
        )

    @property
    def is_large(self) -> bool:
        """Whether it reads rows from beyond the cache, from everywhere."""
        return self.shape.caches > 1.0 and not self.shape.window

    def seconds(self, threads: int, arithmetic: Arithmetic = SUM) -> float:
        """Of a call, `shortest`. Those before bring into the caches what they hold.

        On one thread, seconds that it ran itself: what else the machine does is not measured.
        """
        clock = time.thread_time if threads == 1 else time.perf_counter
        run = self.program.native.run
        arguments = (*self._arguments, *TIMED_AS[arithmetic], 0, 0, threads)
        for _ in range(WARM_CALLS):
            run(*arguments)
        took = []
        for _ in range(TIMED_CALLS):
            start = clock()
            run(*arguments)
            took.append(clock() - start)
        return shortest(took)


def shortest(seconds: Sequence[float]) -> float:
    """Of several timings of one thing: whatever else the machine does only adds.

    Never 0. On virtual machines a thread's clock may stand still for a call, when time that the
    host took before is taken off.
    """
    least = FLOORS["call"]
    return min((took for took in seconds if took > least), default=least)


def runs_of(
    shapes: Sequence[Shape],
    cache: int,
    sources: float,
    widths: Sequence[int] = WIDTHS,
    calls: Sequence[Shape] = (CALL,),
) -> list[Run]:
    """The programs of all widths, over one x and one y, and of `calls` a tile each."""
    cache = min(cache, int(BUFFER_BYTES / max(shape.caches for shape in shapes)))
    programs = []
    for width in widths:
        programs += [(shape, 1, width) for shape in calls]
        programs += [(shape, 0, width) for shape in shapes]
    made = []
    for shape, tiles, width in programs:
        num_src = max(int(cache * shape.caches) // (4 * width), shape.rows)
        if num_src * shape.arity <= sources:
            tiles = tiles or num_src // shape.rows
            made.append((shape, synthetic_program(shape, tiles, num_src), width))
    size = max(program.num_src * width for _, program, width in made)
    x, y = features(size), features(size)
    x.fill(1.0)
    y.fill(0.0)
    return [Run(shape, program, width, x, y) for shape, program, width in made]


def features(size: int) -> Array:
    """So many float32, in whole pages of the usual size, as tensors have them.

    None of torch's: its operators hang in a forked child.
    """
    # All pages at once, where the system can: met one by one they take twice as long.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)
    return np.frombuffer(mmap.mmap(-1, 4 * size, flags), np.float32)


def synthetic_program(shape: Shape, tiles: int, num_src: int) -> Program:
    """The program of a shape: `tiles` tiles over `num_src` rows of x."""
    ops = shape.scratch + shape.rows
    # Lengths vary as in searched programs: a processor must not learn them by heart.
    arity = 1 + _random(0, tiles * ops, 2 * shape.arity - 1).reshape(tiles, ops)
    arity[:, : shape.scratch] = 2
    op_ptr = np.concatenate([[0], np.cumsum(arity)])
    op = np.repeat(np.arange(tiles * ops), arity.ravel())
    tile, place = op // ops, op % ops
    if shape.window:
        first = tile * shape.rows % (num_src - shape.window + 1)
        source = first + _random(1, len(op), shape.window)
    else:
        source = _random(1, len(op), num_src)
    if shape.scratch:
        takes = (place >= shape.scratch) & (_random(2, len(op), 100) < 100 * SCRATCH_SHARE)
        source[takes] = ~_random(3, int(takes.sum()), shape.scratch)
    first_of_op = op << 32
    source = np.sort(first_of_op + source) - first_of_op  # sorted inside of each op
    target = np.arange(tiles * shape.rows).reshape(tiles, shape.rows)
    scratch = np.broadcast_to(~np.arange(shape.scratch), (tiles, shape.scratch))
    arrays = (
        np.arange(tiles + 1) * ops,
        op_ptr.astype(np.int64),
        source.astype(np.int32),
        np.concatenate([scratch, target], axis=1).ravel().astype(np.int32),
        np.zeros(0, np.int32),
        np.zeros(1, np.int64),
    )
    return Program.of(map(torch.from_numpy, arrays), num_src, tiles * shape.rows)


def _random(seed: int, count: int, below: int) -> Array:
    """So many numbers of `0..below - 1`, the same for the same seed: those of SplitMix64.

    None of numpy's, which imports a room for it that loses the Ctrl-C that comes meanwhile.
    """
    z = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed << 40)) * np.uint64(
        0x9E3779B97F4A7C15
    )
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    numbers: Array = (z >> np.uint64(32)) * np.uint64(below) >> np.uint64(32)
    return numbers.astype(np.int64)
