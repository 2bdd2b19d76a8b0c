"""Measuring the constants of the cost model: synthetic programs, run through the real kernel."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from hag_plugin.hag.constants import DEFAULT, Constants, RowCost
from hag_plugin.hag.cost import ROWS, Work
from hag_plugin.hag.program import Program
from hag_plugin.limits import limits
from hag_plugin.modes import Array

FLOAT32, SUM = 0, 0  # as the kernel numbers dtypes and reducers
WIDTHS = (16, 64, 256)
WARM_CALLS = 3  # before the one timed: after a single one, writing y took twice as long
SCRATCH_SHARE = 0.7  # of the sources of a row of y, where there is scratch


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


# As the tiles of searched and plain programs are: 256 rows of large graphs or 64 of packed small
# ones. The cache holds all of x and y, half of them, or an eighth.
SHAPES = tuple(
    shape
    for caches in (0.25, 1.0, 4.0)
    for shape in (
        Shape(1, caches, window=256),
        Shape(4, caches, window=256),
        Shape(16, caches, window=256),
        Shape(4, caches, window=256, scratch=256),
        Shape(2, caches),
        Shape(16, caches),
        Shape(2, caches, rows=64, window=64),
        Shape(8, caches, rows=64, window=64, scratch=64),
    )
)


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


def calibrate(
    rounds: int = 15, threads: int | None = None, report: Callable[[float], None] | None = None
) -> Calibration:
    """Measures the constants of this machine.

    Args:
        rounds: runs of each program; the shortest counts, since whatever else runs only adds.
        threads: by default as many as torch uses.
        report: called with the share that is done.
    """
    threads = torch.get_num_threads() if threads is None else threads
    cache = _cache_bytes()
    terms: list[tuple[float, ...]] = []
    seconds: list[float] = []
    gains: list[float] = []
    for number, width in enumerate(WIDTHS):
        runs = [_Run(shape, width, cache) for shape in SHAPES[:: limits.calibration_step]]
        runs.append(_Run(Shape(1, 0.25, rows=64), width, cache, tiles=1))
        single, several = [np.inf] * len(runs), [np.inf] * len(runs)
        for turn in range(rounds):
            for i, run in enumerate(runs):
                single[i] = min(single[i], run.seconds(1))
                several[i] = min(several[i], run.seconds(threads))
            if report:
                report((number + (turn + 1) / rounds) / len(WIDTHS))
        seconds += single
        terms += [(1.0, *run.work.terms(4 * width, cache)) for run in runs]
        if threads > 1:
            gains += [
                (one / more - 1.0) / (threads - 1)
                for run, one, more in zip(runs, single, several, strict=True)
                if run.shape.caches > 1.0  # in short programs, starting the threads counts
            ]
    parallel = min(max(statistics.median(gains), 0.0), 1.0) if gains else DEFAULT.parallel
    fitted = fit(np.array(terms), np.array(seconds))
    constants = _constants(fitted, parallel, cache)
    errors = np.abs(np.array(terms) @ fitted / seconds - 1.0)
    return Calibration(constants, float(errors.mean()), float(errors.max()), len(seconds), threads)


def fit(terms: Array, seconds: Array) -> Array:
    """Non-negative least squares of the relative error: `terms` `[N, K]` times the result `[K]`.

    Coordinate descent on the normal equations, which are convex and small here: each coordinate in
    turn goes to its minimum, or to 0.

    Example:
        >>> fit(np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]), np.array([2.0, 5.0, 8.0])).round(6)
        array([2., 3.])
    """
    relative = terms / seconds[:, None]
    size = np.linalg.norm(relative, axis=0)
    size[size == 0.0] = 1.0
    relative = relative / size
    normal, goal = relative.T @ relative, relative.sum(axis=0)
    found = np.zeros(terms.shape[1])
    for _ in range(20_000):
        before = found.copy()
        for k in range(len(found)):
            if normal[k, k] > 0.0:
                found[k] = max(0.0, found[k] + (goal[k] - normal[k] @ found) / normal[k, k])
        if np.abs(found - before).max() <= 1e-12 * np.abs(found).max():
            break
    result: Array = found / size
    return result


def _constants(fitted: Array, parallel: float, cache: int) -> Constants:
    call, op, written, *rows = (float(value) for value in fitted)
    costs = {name: RowCost(*rows[2 * i : 2 * i + 2]) for i, name in enumerate(ROWS)}
    return Constants(
        call=call, op=op, written=written, parallel=parallel, cache_bytes=cache, **costs
    )


def _cache_bytes() -> int:
    """Of the second-level cache."""
    try:
        found = os.sysconf("SC_LEVEL2_CACHE_SIZE")
    except (ValueError, OSError):
        found = -1
    return found if found > 0 else DEFAULT.cache_bytes


def table(found: Calibration) -> str:
    """The constants beside the defaults, and how well they fit."""
    measured, default = _flat(asdict(found.constants)), _flat(asdict(DEFAULT))
    lines = [f"{'nanoseconds':<16}{'this machine':>14}{'default':>14}"]
    for name, value in measured.items():
        unit = 1.0 if name in ("parallel", "cache_bytes") else 1e9
        lines.append(f"{name:<16}{value * unit:>14,.4g}{default[name] * unit:>14,.4g}")
    lines.append(
        f"\nPredicted against measured, {found.cases} programs: mean error {found.mean_error:.0%}, "
        f"largest {found.largest_error:.0%}."
    )
    return "\n".join(lines)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    out: dict[str, float] = {}
    for key, value in values.items():
        out |= _flat(value, f"{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


# Synthetic programs -----------------------------------------------------------------------------


class _Run:
    """A program with its buffers, ready to be timed."""

    def __init__(self, shape: Shape, width: int, cache: int, tiles: int | None = None) -> None:
        self.shape = shape
        num_src = max(int(cache * shape.caches) // (4 * width), shape.rows)
        tiles = num_src // shape.rows if tiles is None else tiles
        self.program = synthetic_program(shape, tiles, num_src)
        self.work = Work.of(self.program)
        self.x = torch.ones(num_src, width)
        self.y = torch.zeros(self.program.num_dst, width)

    def seconds(self, threads: int) -> float:
        """Of one call. Those before it bring into the caches what they hold."""
        for _ in range(WARM_CALLS):
            self._call(threads)
        start = time.perf_counter()
        self._call(threads)
        return time.perf_counter() - start

    def _call(self, threads: int) -> None:
        x, y = self.x, self.y
        self.program.native.run(
            x.data_ptr(), y.data_ptr(), 1, x.shape[1], x.stride(0), 0, x.shape[0], y.shape[0],
            FLOAT32, SUM, 0, 0, threads,
        )  # fmt: skip


def synthetic_program(shape: Shape, tiles: int, num_src: int) -> Program:
    """The program of a shape: `tiles` tiles over `num_src` rows of x."""
    rng = np.random.default_rng(0)
    ops = shape.scratch + shape.rows
    # Lengths vary as in searched programs: a processor must not learn them by heart.
    arity = rng.integers(1, 2 * shape.arity, (tiles, ops))
    arity[:, : shape.scratch] = 2
    op_ptr = np.concatenate([[0], np.cumsum(arity)])
    op = np.repeat(np.arange(tiles * ops), arity.ravel())
    tile, place = op // ops, op % ops
    if shape.window:
        first = tile * shape.rows % (num_src - shape.window + 1)
        source = first + rng.integers(0, shape.window, len(op))
    else:
        source = rng.integers(0, num_src, len(op))
    if shape.scratch:
        takes = (place >= shape.scratch) & (rng.random(len(op)) < SCRATCH_SHARE)
        source[takes] = ~rng.integers(0, shape.scratch, int(takes.sum()))
    source = source[np.lexsort((source, op))]
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
