"""The cost model: what a program costs on a device, and what the search may spend."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from hag_plugin.devices import KINDS
from hag_plugin.hag.gpu import occupancy, schedule
from hag_plugin.hag.graph import Graph
from hag_plugin.hag.program import Options, Program, SelfLoops
from hag_plugin.hag.rates import SUM, Arithmetic, Constants
from hag_plugin.limits import limits


@dataclass(frozen=True)
class Prices:
    """What the search goes by.

    Attributes:
        intermediate: a row of scratch, in rows read. An intermediate of s sources and u uses is
            kept iff `s u > s + u + intermediate`.
        work_per_edge: 64-bit words that greedy merging may compare for each edge of a tile, or
            what takes as long. On dense graphs without twins (fb100-Amherst41, ogbl-ddi) 1024 saves
            98 % of the rows that merging without a bound saves in the same tiles.
        worth_it: of the plain program's cost; above it the plain program is taken. Savings of less
            were measured to be none.
        reorder: another order of the rows than the graph's own must be cheaper by this.
        pack_rows: small graphs share a tile up to this many rows.
        cut_rows: a large graph is cut into tiles of this many rows.
    """

    intermediate: float = 2.0
    work_per_edge: int = 1024
    worth_it: float = 0.88
    reorder: float = 1.05
    pack_rows: int = 64
    cut_rows: int = 256


def prices(width: int, device: str = "cpu") -> Prices:
    """The prices for features of `width` values on a kind of device: on every machine the same.

    The narrower the rows, the more an intermediate must save, since its op costs the same: 2 rows
    from width 64 on, 18 at width 16. Where a program runs in launches, its ops run side by side.
    """
    if KINDS[device].launches is not None:
        return Prices()
    return Prices(intermediate=2.0 + max(0, 64 - width) / 3)


# What a program costs ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What a program does: numbers of ops and of rows.

    Attributes:
        ops: number of ops.
        scratch: rows of scratch written and read.
        again: rows of x read that the tile has read before.
        first: other rows of x read.
        written: rows of y and partial sums.
        num_src: rows of x.
    """

    ops: int
    scratch: int
    again: int
    first: int
    written: int
    num_src: int

    @classmethod
    def of(cls, program: Program) -> Work:
        """Counts a program."""
        _, _, source, target, hub_row, hub_ptr = program.numpy()
        reads, first = program.native.count_reads()
        intermediates = int((target < 0).sum())
        diagonal = program.num_dst if program.diagonal else 0
        return cls(
            ops=len(target) + len(hub_row),
            scratch=reads + intermediates,
            again=len(source) - reads - first + int(hub_ptr[-1]) + diagonal,
            first=first,
            written=len(target) - intermediates + len(hub_row),
            num_src=program.num_src,
        )

    def seconds(
        self,
        row_bytes: Any,
        threads: int = 1,
        *,
        constants: Constants,
        arithmetic: Arithmetic = SUM,
    ) -> Any:
        """Predicted seconds of one warm aggregation into a kept output.

        Args:
            row_bytes: of a row in the dtype that sums accumulate in; or an array of them, for an
                array of seconds.
            threads: that the kernel may use.
            constants: of the processor.
            arithmetic: what is done to the rows.
        """
        c = constants
        terms = self.terms(row_bytes, c.cache_bytes, arithmetic.is_half)
        work = sum(n * each for n, each in zip(terms, _in_order(c), strict=True))
        if arithmetic.is_half:
            work = work + (self.again + self.first) * c.half.of(row_bytes)
        if arithmetic.is_extremum:
            from_scratch = self.scratch - (self.ops - self.written)
            read = self.again + self.first + from_scratch
            work = work + read * c.extremum.of(row_bytes)
        work = work + c.memory * self.bytes_beyond(row_bytes, c.last_bytes, arithmetic.is_half)
        return c.call + work / (1.0 + c.parallel * (threads - 1))

    def bytes_beyond(self, row_bytes: Any, last_bytes: int, is_half: bool = False) -> Any:
        """Bytes of x that come from main memory though another tile has read them before.

        Of those rows the last-level cache keeps as large a share as it holds of x and y. That all
        rows come from there once every program has in common.
        """
        outer = row_bytes / 2 if is_half else row_bytes
        read = np.minimum(self.num_src, self.first)  # a part of a program may read few of them
        both = (read + self.written) * outer
        kept = np.minimum(1.0, last_bytes / np.maximum(both, 1))
        return (1.0 - kept) * (self.first - read) * outer

    def terms(self, row_bytes: Any, cache_bytes: int, is_half: bool = False) -> tuple[Any, ...]:
        """How often each constant counts: op, written, then both of each kind of row (`ROWS`).

        x and y pass through one cache: where they outgrow it, the share of them that it can hold
        is taken to be found there. Their rows are half as long as those of scratch in a half type.
        """
        outer = row_bytes / 2 if is_half else row_bytes
        out = self.written * outer
        total = self.num_src * outer + out
        if isinstance(total, (int, float)):
            held = min(1.0, cache_bytes / max(total, 1))
        else:
            held = np.minimum(1.0, cache_bytes / np.maximum(total, 1))
        near, far = self.again + held * self.first, (1.0 - held) * self.first
        return (
            *(self.ops, (1.0 - held) * out),
            *(self.scratch, self.scratch * row_bytes),
            *(near, near * outer + held * out),
            *(far, far * outer),
        )


ROWS = ("scratch", "near", "far")


@lru_cache(maxsize=8)
def _in_order(c: Constants) -> tuple[float, ...]:
    rows = (getattr(c, name) for name in ROWS)
    return (c.op, c.written, *(value for row in rows for value in (row.fixed, row.per_byte)))


# In launches ------------------------------------------------------------------------------------


def launch_seconds(rows: int, longest: int, width: int, device: str = "cuda") -> float:
    """One launch of a level over float32 rows of `width`.

    Args:
        rows: read and written.
        longest: rows that the longest op reads, one after the other: a level too small to keep the
            card busy takes as long as these.
        width: features of a row.
        device: the kind, one that runs launches.
    """
    price = KINDS[device].launches
    assert price is not None
    moving = rows * width * 4 / price.bytes_per_second
    waiting = -(-longest // price.rows_per_wait) * price.seconds_per_wait
    return price.seconds + max(moving, waiting)


def pays_in_launches(
    graph: Graph, options: Options, self_loops: SelfLoops, program: Program
) -> bool:
    """Whether a device that runs launches is predicted to run a program sooner than the plain
    graph."""
    plain = plain_launches_seconds(graph, options, self_loops)
    return launches_seconds(program, options) < plain


def plain_launches_seconds(graph: Graph, options: Options, self_loops: SelfLoops) -> float:
    """Predicted seconds of the plain graph, on a device that runs launches."""
    degree = graph.degree(self_loops).cpu().numpy()
    most = limits.op_sources
    parts = -(-degree[degree > most] // most)
    longest = min(int(degree.max(initial=0)), most)
    rows = int(degree.sum() + parts.sum()) + len(degree) - len(parts)
    seconds = launch_seconds(rows, longest, options.width, options.device)
    if len(parts):
        longest = min(int(parts.max()), most)
        rows = int(parts.sum()) + len(parts)
        seconds += launch_seconds(rows, longest, options.width, options.device)
    return seconds


def launches_seconds(program: Program, options: Options) -> float:
    """Predicted seconds of a program, on a device that runs launches."""
    launches = occupancy.launches(schedule.schedule_of(program), options.width)
    return sum(
        launch_seconds(each.rows, each.longest_op, options.width, options.device)
        for each in launches
    )
