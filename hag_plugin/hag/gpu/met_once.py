"""Graphs that are met once, made where they are: by sorts and prefix sums of torch, for which the
host never waits.

How many rows are long, and how many edges are loops or duplicates, the host does not know: arrays
are as long as they must be at most. What is not used stands behind what is, and belongs to no row.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hag_plugin.hag.gpu.schedule import Schedule
from hag_plugin.hag.graph import check_edge_index
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import Options, Program, SelfLoops, SixArrays
from hag_plugin.hag.search import Found
from hag_plugin.limits import limits
from hag_plugin.modes import Array, outside_inference
from hag_plugin.observers import SEARCH, observers, tell

OUT_OF_RANGE = "edge_index holds an id that is negative, or above the number of nodes"


def hag_on_device(
    edge_index: Tensor, size: tuple[int, int], options: Options, *, both: bool, loops: int = 0
) -> DeviceHAG:
    """The HAG of a graph that shares nothing, made on the device of its edges.

    Where an id is out of range, an assertion fails on the device, as those of stock's code do.

    Args:
        edge_index: int32 or int64 `[2, E]`.
        size: the numbers of sources and targets.
        options: of the HAG; its method is "none".
        both: whether the reverse is to be made with it, which gradients need.
        loops: on how many nodes, the first ones, there is to be one loop in place of those there
            are; 0: those there are stay. The loops stand behind the edges, and those they are in
            place of lead nowhere.

    Raises:
        TypeError: `edge_index` is no dense tensor of integers.
        ValueError: it has another shape.
    """
    with outside_inference():
        source, target = checked_ends(edge_index, size)
        if loops:
            is_loop, nodes = source == target, torch.arange(loops, device=source.device)
            source = torch.cat([source.masked_fill(is_loop, size[0]), nodes])
            target = torch.cat([target.masked_fill(is_loop, size[1]), nodes])
        return hag_of_ends(source, target, size, options, both=both)


def hag_of_ends(
    source: Tensor, target: Tensor, size: tuple[int, int], options: Options, *, both: bool
) -> DeviceHAG:
    """The same of edges whose ends were checked, int64 `[E]` each.

    Those that lead from `num_src` to `num_dst` lead nowhere.
    """
    row_ptr, col, order = csr_of(source, target, size)
    reverse = csr_of(target, source, size[::-1])[:2] if both else None
    return DeviceHAG.of(row_ptr, col, size[0], options, reverse, order)


def hags_on_device(
    edge_index: Tensor,
    edge_type: Tensor,
    num_relations: int,
    size: tuple[int, int],
    options: Options,
    *,
    both: bool,
) -> list[DeviceHAG]:
    """The same of each relation's edges. Each of them has an entry for every edge: behind its own
    there are others, that lead nowhere.

    Args:
        edge_index: int32 or int64 `[2, E]`.
        edge_type: integers `[E]`; those that are no relation's are of edges that no graph has.
        num_relations: how many graphs there are.
        size: the numbers of sources and targets.
        options: of the HAGs; their method is "none".
        both: whether their reverses are to be made with them.

    Raises:
        TypeError: `edge_index` is no dense tensor of integers.
        ValueError: it has another shape.
    """
    with outside_inference():
        source, target = checked_ends(edge_index, size)
        found = list(_csrs_of(source, target, size, edge_type, num_relations))
        back: list[Any] = [None] * num_relations
        if both:
            back = list(_csrs_of(target, source, size[::-1], edge_type, num_relations))
        graphs = zip(found, back, strict=True)
        return [DeviceHAG.of(*csr, size[0], options, reverse, None) for csr, reverse in graphs]


def checked_ends(edge_index: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The source and the target of each edge, int64 `[E]`; the device asserts their range.

    Raises:
        TypeError: `edge_index` is no dense tensor of integers.
        ValueError: it has another shape.
    """
    check_edge_index(edge_index)
    num_src, num_dst = size
    source, target = edge_index.detach().long()
    inside = (source >= 0) & (source < num_src) & (target >= 0) & (target < num_dst)
    torch._assert_async(inside.all(), OUT_OF_RANGE)
    return source, target


class DeviceProgram(Program):
    """A program with sources behind those of its ops, as a device makes it."""

    def numpy(self) -> SixArrays:
        """As `Program.numpy`, without what is no op's."""
        tile_ptr, op_ptr, source, *others = super().numpy()
        return tile_ptr, op_ptr, source[: int(op_ptr[-1])], others[0], others[1], others[2]


class DeviceHAG(HAG):
    """A plain graph of which all is made on its device: its reverse, its programs, their schedules.

    It is taken to have loops, duplicates and rows without edges, and not to be its own reverse.
    Behind the edges of its last row there may be others, which are none: they lead from `num_src`
    to `num_dst`, where no node is, and `num_edges` counts them.

    Attributes:
        order: which of the edges that it was made of, and then of its loops, each of its own is,
            int64 `[E]`. None: it was made of others.
    """

    is_unread = True
    order: Tensor | None = None

    @classmethod
    def of(
        cls,
        row_ptr: Tensor,
        col: Tensor,
        num_src: int,
        options: Options,
        reverse: tuple[Tensor, Tensor] | None,
        order: Tensor | None,
    ) -> DeviceHAG:
        """That of arrays on a device, of its reverse and of its order, where they are known."""
        hag = cls(
            row_ptr,
            col,
            num_src,
            options=options,
            symmetric=False,  # it is not known, and nobody shall wait for it
            owned=True,
            reverse=reverse,
        )
        hag.order = order
        return hag

    def numpy(self) -> tuple[Array, Array]:
        """As `Graph.numpy`, without what is no row's."""
        row_ptr, col = super().numpy()
        return row_ptr, col[: int(row_ptr[-1])]

    def ends(self) -> tuple[Tensor, Tensor]:
        """As `Graph.ends`; of what is no row's where no node is."""
        row_ptr, col = self.arrays.row_ptr, self.arrays.col
        slot = torch.arange(len(col), device=col.device)
        target = torch.searchsorted(row_ptr[1:], slot, right=True)
        return col.long().masked_fill(target == self.num_dst, self.num_src), target

    @cached_property
    def has_duplicates(self) -> bool:
        """Whether an edge may stand there twice."""
        return True

    @cached_property
    def loops(self) -> Tensor | None:
        """Self-loops of each target, int64 `[num_dst]`."""
        with outside_inference():
            source, target = self.ends()
            found = torch.zeros_like(self.arrays.row_ptr)  # the last is of what is no row's
            return found.index_add_(0, target, (source == target).long())[:-1]

    def _make_program(
        self, self_loops: SelfLoops, idempotent: bool, progress: bool | None
    ) -> Found:
        program = self.plain_program(self_loops, idempotent=idempotent)
        if observers:
            tell(SEARCH, self.options.method, program)
        return Found(program, None, 0.0)

    def _make_plain(self, self_loops: SelfLoops, idempotent: bool) -> Program:
        row_ptr, source = self._rows(self_loops, idempotent)
        nodes = torch.arange(self.num_dst, dtype=torch.int32, device=self.device)
        tile_ptr = torch.arange(2, device=self.device) * self.num_dst
        hubs = nodes[:0], torch.zeros_like(row_ptr[:1])
        program = DeviceProgram.of(
            (tile_ptr, row_ptr, source, nodes, *hubs), self.num_src, self.num_dst
        )
        program.__dict__["is_plain"] = True
        program.kept("schedule", lambda: plain_schedule(row_ptr, source, self.num_src))
        return program

    def _rows(self, self_loops: SelfLoops, idempotent: bool) -> tuple[Tensor, Tensor]:
        """The CSR of a mode; behind its sources there may be others, that are no row's."""
        if not self_loops and not idempotent:
            return self.arrays.row_ptr, self.arrays.col
        num_src, num_dst = self.num_src, self.num_dst
        source, target = self.ends()
        key, nowhere = target * num_src + source, num_dst * num_src
        if self_loops == "fill":
            key = key.masked_fill(source == target, nowhere)
        if self_loops:
            nodes = torch.arange(min(num_src, num_dst), device=self.device)
            key = torch.cat([key, nodes * num_src + nodes])
        key = key.sort().values
        if idempotent:
            again = torch.zeros_like(key, dtype=torch.bool)
            again[1:] = key[1:] == key[:-1]
            key = key.masked_fill(again, nowhere).sort().values
        return _csr_of_keys(key, num_src, num_dst)

    def _make_transpose(self) -> HAG:
        if self._reverse is None:
            source, target = self.ends()
            self._reverse = csr_of(target, source, (self.num_dst, self.num_src))[:2]
        return super()._make_transpose()

    def _state(self) -> dict[str, Any]:
        # It and its programs may hold more sources than they read, which those of a HAG may not.
        col = self.arrays.col[: int(self.arrays.row_ptr[-1])]
        return {**super()._state(), "col": col, "programs": []}


def csr_of(source: Tensor, target: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Edges by target, then by source: row_ptr int64 `[num_dst + 1]` and col int32 `[E]`; and which
    of those given each of them is, int64 `[E]`.

    Edges from `num_src` to `num_dst` are no row's, and stand last.
    """
    num_src, num_dst = size
    key = (target * num_src + source).sort(stable=True)
    return *_csr_of_keys(key.values, num_src, num_dst), key.indices


def _csrs_of(
    source: Tensor, target: Tensor, size: tuple[int, int], edge_type: Tensor, num_relations: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same of the edges of each relation, and those of the others behind them."""
    num_src, num_dst = size
    order = (target * num_src + source).argsort(stable=True)
    types = edge_type.detach()[order].sort(stable=True)
    order = order[types.indices]
    source, target = source[order], target[order]
    relations = torch.arange(num_relations + 1, dtype=edge_type.dtype, device=order.device)
    begin = torch.searchsorted(types.values, relations)
    nodes = torch.arange(num_dst + 1, device=order.device)
    slot = torch.arange(len(order), device=order.device)
    for relation in range(num_relations):
        at = slot + begin[relation]
        is_own = at < begin[relation + 1]
        at = at.clamp(max=max(len(order) - 1, 0))
        row_ptr = torch.searchsorted(target[at].where(is_own, num_dst), nodes)
        yield row_ptr, source[at].where(is_own, 0).int()


def _csr_of_keys(key: Tensor, num_src: int, num_dst: int) -> tuple[Tensor, Tensor]:
    """The same of sorted `target * num_src + source`; targets from `num_dst` on are nowhere."""
    num_src = max(num_src, 1)  # without sources there are no edges
    target = key // num_src
    row_ptr = torch.searchsorted(target, torch.arange(num_dst + 1, device=key.device))
    return row_ptr, (key - target * num_src).int()


def plain_schedule(row_ptr: Tensor, source: Tensor, num_src: int) -> Schedule:
    """The schedule of a plain program: its rows, the parts of those that are long, their sums.

    As `schedule_of` makes it, but for the sums of parts, which are not cut again. As many rows as
    could be long count as such: those that are not have an op without sources, whose target is a
    row of scratch that nobody reads.

    Args:
        row_ptr: int64 `[num_dst + 1]`.
        source: int32 `[S]`, and perhaps more that are no row's.
        num_src: rows of x.
    """
    num_dst, num_sources, most = len(row_ptr) - 1, len(source), limits.op_sources
    num_long = min(num_dst, num_sources // (most + 1))  # at most
    size = row_ptr.diff()
    parts = torch.where(size > most, (size + (most - 1)) // most, 1)
    # A long row has at most twice as many parts as it has `most + 1` sources.
    num_parts = 2 * num_sources // (most + 1) if num_long else 0
    num_ops = num_dst + (num_sources // most if num_long else 0)
    ops = _first_level(row_ptr, size, parts, num_ops, num_parts)
    op_ptr, begin, target, row = _in_windows(*ops)
    source = _gathered(source, op_ptr, begin)
    level_ptr: tuple[int, ...] = (0, num_ops) if num_ops else (0,)
    if num_long:
        sums = _sums_of_parts(parts, num_long, num_parts)
        source = torch.cat([source, source.new_zeros(num_parts)])
        place = op_ptr[-1] + torch.arange(num_parts, device=source.device)
        source = source.scatter(0, place, sums.source)
        op_ptr = torch.cat([op_ptr, op_ptr[-1] + sums.op_ptr[1:]])
        target, row = torch.cat([target, sums.target]), torch.cat([row, sums.row])
        level_ptr = (0, num_ops, num_ops + num_long)
    scratch_rows = num_parts + 1 if num_long else 0
    return Schedule(op_ptr, source, target, row, level_ptr, scratch_rows, num_src, num_dst, 0)


def _first_level(
    row_ptr: Tensor, size: Tensor, parts: Tensor, num_ops: int, num_parts: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The ops in the order of rows: their first source, how many they have, target and row."""
    num_dst, most = len(size), limits.op_sources
    end = parts.cumsum(0)
    op = torch.arange(num_ops, device=size.device)
    row = torch.searchsorted(end, op, right=True)
    live = row < num_dst
    row = row.clamp(max=max(num_dst - 1, 0))
    of_row = parts[row]
    number = op - (end[row] - of_row)
    begin = row_ptr[row] + number * most
    length = (row_ptr[row + 1] - begin).clamp(max=most)
    is_part = live & (of_row > 1)
    part = (is_part.cumsum(0) - 1).clamp(min=0)
    target = torch.where(is_part, ~part, torch.where(live, row, ~num_parts))
    return begin, torch.where(live, length, 0), target, row


def _in_windows(
    begin: Tensor, length: Tensor, target: Tensor, row: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ops of falling length in each window: op_ptr, their first sources, target and row."""
    most = limits.op_sources
    window = torch.arange(len(length), device=length.device) // limits.window_ops
    order = (window * (most + 1) + (most - length)).argsort()
    return _ptr_of(length[order]), begin[order], target[order].int(), row[order].int()


def _ptr_of(length: Tensor) -> Tensor:
    """Where each op starts, and the last one ends."""
    return torch.cat([length.new_zeros(1), length.cumsum(0)])


def _gathered(source: Tensor, op_ptr: Tensor, begin: Tensor) -> Tensor:
    """Sources in the order of the ops; those behind them are any."""
    if not len(source) or not len(begin):
        return source
    slot = torch.arange(len(source), device=source.device)
    op = torch.searchsorted(op_ptr[1:], slot, right=True).clamp(max=len(begin) - 1)
    return source[(begin[op] + slot - op_ptr[op]).clamp(max=len(source) - 1)]


def _sums_of_parts(parts: Tensor, num_long: int, num_parts: int) -> Schedule:
    """The second level: the rows of most parts, of which each sums the rows of scratch that its
    parts were written to."""
    count = torch.where(parts > 1, parts, 0)
    row = count.argsort(descending=True)[:num_long]
    length = count[row]
    op_ptr = _ptr_of(length)
    first = (count.cumsum(0) - count)[row]
    slot = torch.arange(num_parts, device=parts.device)
    op = torch.searchsorted(op_ptr[1:], slot, right=True).clamp(max=num_long - 1)
    source = ~(first[op] + slot - op_ptr[op]).clamp(max=num_parts)
    target = torch.where(length > 0, row, ~num_parts)
    whole = (0, num_long)
    return Schedule(op_ptr, source.int(), target.int(), row.int(), whole, 0, 0, 0, 0)
