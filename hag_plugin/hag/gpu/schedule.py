"""The order in which a GPU runs a program: level by level, each level in parallel.

A launch of a kernel is the barrier: it reads rows of x and rows of scratch that earlier launches
wrote, and writes rows that no other instance of the launch touches. So no order of the instances
can change a result, and the kernels need neither barriers nor atomics.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from hag_plugin.hag.program import Program
from hag_plugin.kernels import _cpu
from hag_plugin.limits import limits
from hag_plugin.modes import Array


@dataclass(frozen=True, eq=False)
class Schedule:
    """A program for a GPU. Ops are ordered by level, those of a level by length.

    Attributes:
        op_ptr: int64 `[O + 1]`, the sources of each op.
        source: int32 `[S]`. `s >= 0`: row `s` of x; `s < 0`: row `~s` of the scratch. Behind those
            of the last op there may be others, which are no op's.
        target: int32 `[O]`. `t >= 0`: row `t` of y; `t < 0`: row `~t` of the scratch.
        row: int32 `[O]`, the row of y that an op is all or a part of; -1 for shared sums.
        level_ptr: `[L + 1]`, the ops of each level.
        scratch_rows: rows of scratch, for all levels together; each is written once.
        num_src: rows of x.
        num_dst: rows of y.
        diagonal: as for `Program`.
    """

    op_ptr: Tensor
    source: Tensor
    target: Tensor
    row: Tensor
    level_ptr: tuple[int, ...]
    scratch_rows: int
    num_src: int
    num_dst: int
    diagonal: int

    @property
    def num_levels(self) -> int:
        """Number of levels, that is of launches."""
        return len(self.level_ptr) - 1

    @property
    def levels(self) -> list[tuple[int, int]]:
        """First op of each level, and the one after its last."""
        return list(pairwise(self.level_ptr))

    def to(self, device: torch.device | str) -> Schedule:
        """The schedule with its arrays on `device`."""
        return self.moved(lambda a: a.to(device))

    def moved(self, move: Callable[[Tensor], Tensor]) -> Schedule:
        """The schedule with what `move` makes of its arrays."""
        return replace(
            self,
            op_ptr=move(self.op_ptr),
            source=move(self.source),
            target=move(self.target),
            row=move(self.row),
        )


KEPT = "schedule"


def schedule_of(program: Program) -> Schedule:
    """The schedule of a program, where the program is. Made once, and kept with it.

    Raises:
        ValueError: an index of the program is out of range.
    """
    make = lambda: make_schedule(program).to(program.arrays[0].device)  # noqa: E731
    return program.kept(KEPT, make)


def give_schedule(program: Program, moved: Program, move: Callable[[Tensor], Tensor]) -> None:
    """Gives a program that was moved what its first launch would wait for: the schedule, and
    whether it shares sums."""
    found = program.if_kept(KEPT) or make_schedule(program)
    moved.kept(KEPT, lambda: found.moved(move))
    moved.__dict__["is_plain"] = program.is_plain


def make_schedule(program: Program) -> Schedule:
    """The same made anew, in main memory.

    Raises:
        ValueError: an index of the program is out of range.

    Example:
        >>> import hag_plugin as hp
        >>> hag = hp.build_hag(torch.tensor([[0, 1, 2], [1, 0, 0]]), num_nodes=3, method="none")
        >>> make_schedule(hag.program()).levels
        [(0, 3)]
    """
    arrays = program.numpy()
    _cpu.Program(*arrays, program.num_src, program.num_dst, program.diagonal)  # checks indices
    ops = _Ops.of(program)
    for _ in range(2):  # a third time was not seen to help
        ops = _shorten_chains(ops)
    return _in_order(_split_long(ops), program)


def depth(program: Program) -> int:
    """Longest chain of ops that wait for one another; a shared sum and its user are two."""
    ops = _Ops.of(program)
    return int(ops.levels().max(initial=-1)) + 1


@dataclass
class _Ops:
    """Ops that name what they read: `s >= 0` is row `s` of x, `s < 0` the result of op `~s`.

    `target` is a row of y, or -1. `row` as in `Schedule`.
    """

    length: Array
    source: Array
    target: Array
    row: Array

    @classmethod
    def of(cls, program: Program) -> _Ops:
        tile_ptr, op_ptr, source, target, hub_row, hub_ptr = program.numpy()
        num_ops = len(target)
        reader = np.repeat(np.arange(num_ops), np.diff(op_ptr))
        source = _name_writers(tile_ptr, reader, source.astype(np.int64), target)
        # The parts of a hub become one op again: a GPU cuts at another length.
        row = target.astype(np.int64)
        part = row >= program.num_dst
        hub_of_partial = np.repeat(np.arange(len(hub_row)), np.diff(hub_ptr))
        reader_of = np.arange(num_ops)
        reader_of[part] = num_ops + hub_of_partial[row[part] - program.num_dst]
        row = np.concatenate([np.where(row < 0, -1, row), hub_row])
        ops = _from_reads(reader_of[reader], source, row, row)
        # The parts themselves are left without sources and without a name: they go.
        return ops._keep(np.concatenate([~part, np.ones(len(hub_row), bool)]))

    def _keep(self, kept: Array) -> _Ops:
        if kept.all():
            return self
        number = np.cumsum(kept) - 1
        inner = self.source < 0
        self.source[inner] = ~number[~self.source[inner]]
        return _Ops(self.length[kept], self.source, self.target[kept], self.row[kept])

    @property
    def reader(self) -> Array:
        return np.repeat(np.arange(len(self.length)), self.length)

    @property
    def first(self) -> Array:
        return np.cumsum(self.length) - self.length

    def levels(self) -> Array:
        """The level of each op: 0 if it reads x only, else one more than the highest it reads."""
        inner = self.source < 0
        writer, reader = ~self.source[inner], self.reader[inner]
        order = np.argsort(writer, kind="stable")
        readers = reader[order]
        uses = np.bincount(writer, minlength=len(self.length))
        first_use = np.cumsum(uses) - uses
        waits = np.bincount(reader, minlength=len(self.length))
        level = np.zeros(len(self.length), np.int64)
        ready = np.flatnonzero(waits == 0)
        number = 0
        while len(ready):
            level[ready] = number
            freed, count = np.unique(
                readers[_ranges(first_use[ready], uses[ready])], return_counts=True
            )
            waits[freed] -= count
            ready = freed[waits[freed] == 0]
            number += 1
        return level


def _ranges(first: Array, length: Array) -> Array:
    """`[first[0], ..., first[0] + length[0] - 1, first[1], ...]`."""
    shift = first - (np.cumsum(length) - length)
    return np.repeat(shift, length) + np.arange(length.sum())


def _from_reads(reader: Array, source: Array, target: Array, row: Array) -> _Ops:
    """Ops from pairs (reader, source) in any order; an op keeps the order of its own."""
    order = np.argsort(reader, kind="stable")
    return _Ops(np.bincount(reader, minlength=len(target)), source[order], target, row)


def _name_writers(tile_ptr: Array, reader: Array, source: Array, target: Array) -> Array:
    """Replaces each row of scratch by `~op`, the op that wrote it last before it is read."""
    num_ops = len(target)
    writer = np.flatnonzero(target < 0)
    if not len(writer):
        return source
    tile = np.repeat(np.arange(len(tile_ptr) - 1), np.diff(tile_ptr))
    rows = np.zeros(len(tile_ptr) - 1, np.int64)
    np.maximum.at(rows, tile[writer], ~target[writer] + 1)
    base = np.cumsum(rows) - rows
    written = (base[tile[writer]] + ~target[writer]) * num_ops + writer
    order = np.argsort(written)
    inner = source < 0
    read = (base[tile[reader[inner]]] + ~source[inner]) * num_ops + reader[inner]
    source[inner] = ~writer[order][np.searchsorted(written[order], read) - 1]
    return source


def _shorten_chains(ops: _Ops) -> _Ops:
    """Lets every k-th level read no deeper than the k-th below, where that costs little.

    A chain of prefix sums of length D then has about D / k + k levels instead of D, and reads some
    two rows a step instead of one. k is the root of D. Ops that would grow too long stay.
    """
    level = ops.levels()
    deepest = int(level.max(initial=0)) + 1
    if deepest <= limits.program_levels:
        return ops
    step = math.isqrt(deepest - 1) + 1
    stop = level % step == 0
    shortcut = stop & (level > 0) & (_length_down_to(ops, level, stop) <= 4 * step)
    reader, source, first = ops.reader, ops.source, ops.first
    for _ in range(step):
        deep = (source < 0) & shortcut[reader]
        deep[deep] = ~stop[~source[deep]]
        at = np.where(deep, first[~source * deep], 0)
        count = np.where(deep, ops.length[~source * deep], 1)
        inside = ops.source[_ranges(at[deep], count[deep])]
        reader, source, deep = (np.repeat(a, count) for a in (reader, source, deep))
        source[deep] = inside
    return _from_reads(reader, source, ops.target, ops.row)


def _length_down_to(ops: _Ops, level: Array, stop: Array) -> Array:
    """How many rows each op reads if all it reads above the ops `stop` is inlined."""
    total = np.zeros(len(level))  # may grow beyond any integer
    order = np.argsort(level, kind="stable")
    for ready in np.split(order, np.cumsum(np.bincount(level))[:-1]):
        sources = ops.source[_ranges(ops.first[ready], ops.length[ready])]
        inner = (sources < 0) & ~stop[~sources * (sources < 0)]
        each = np.where(inner, total[~sources * inner], 1.0)
        reader = np.repeat(np.arange(len(ready)), ops.length[ready])
        total[ready] = np.bincount(reader, weights=each, minlength=len(ready))
    return total


def _split_long(ops: _Ops) -> _Ops:
    """Ops of too many sources become the sum of parts, and again until none is left."""
    most = limits.op_sources
    while ops.length.max(initial=0) > most:
        num_ops = len(ops.length)
        long = np.flatnonzero(ops.length > most)
        parts = -(-ops.length[long] // most)
        first_part = np.zeros(num_ops, np.int64)
        first_part[long] = num_ops + np.cumsum(parts) - parts
        reader = ops.reader
        of_long = ops.length[reader] > most
        place = (np.arange(len(reader)) - ops.first[reader])[of_long]
        reader[of_long] = first_part[reader[of_long]] + place // most
        part = num_ops + np.arange(parts.sum())
        ops = _from_reads(
            np.concatenate([reader, np.repeat(long, parts)]),
            np.concatenate([ops.source, ~part]),
            np.concatenate([ops.target, np.full(len(part), -1)]),
            np.concatenate([ops.row, np.repeat(ops.row[long], parts)]),
        )
    return ops


def _in_order(ops: _Ops, program: Program) -> Schedule:
    """Sorts the ops by level, window and falling length, and numbers the rows of scratch."""
    level = ops.levels()
    by_level = np.argsort(level, kind="stable")
    size = np.bincount(level) if len(level) else np.zeros(0, np.int64)
    place = np.arange(len(level)) - np.repeat(np.cumsum(size) - size, size)
    length = ops.length[by_level]
    order = by_level[np.lexsort((-length, place // limits.window_ops, level[by_level]))]
    inner = ops.target[order] < 0
    scratch = np.zeros(len(order), np.int64)
    scratch[order[inner]] = np.arange(inner.sum())
    first, length = ops.first[order], ops.length[order]
    source = ops.source[_ranges(first, length)]
    reads = source < 0
    source[reads] = ~scratch[~source[reads]]
    target = np.where(inner, ~scratch[order], ops.target[order])
    op_ptr = np.concatenate([[0], np.cumsum(length)])
    return Schedule(
        torch.from_numpy(op_ptr.astype(np.int64)),
        torch.from_numpy(source.astype(np.int32)),
        torch.from_numpy(target.astype(np.int32)),
        torch.from_numpy(ops.row[order].astype(np.int32)),
        (0, *np.cumsum(size).tolist()),
        int(inner.sum()),
        program.num_src,
        program.num_dst,
        program.diagonal,
    )
