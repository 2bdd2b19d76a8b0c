"""Moving shards of `[N, F]` tensors between ranks, with their gradients: `layouts`, made real.

Each function is a linear map, and its backward pass the map of the gradient that belongs to it.
Names say what becomes of values and gradients:

=============  ================================================  =================================
function       forward                                           backward
=============  ================================================  =================================
gather_rows    shards to the whole                               parts of gradients are summed
replicate_*    shards to the whole                               gradients are alike: a slice
slice_*        the whole to shards                               shards to the whole
scatter_*      partial sums of the whole to shards               shards to the whole
fan_out        nothing                                           parts of gradients are summed
sum_parts      partial sums to their sum                         nothing
=============  ================================================  =================================

`rows` are the rows of each member of the group, int `[P]`; members' blocks of features are those of
`torch.chunk`. Forward passes are counted under "forward", backward passes under "backward".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hag_plugin.parallel.layouts import COLUMNS, REPLICATED, ROWS, Layout
from hag_plugin.parallel.ranks.blocks import Blocks, Rows, Turn
from hag_plugin.parallel.ranks.comm import Begun, Group, Then

Map = Callable[[Tensor, str], Tensor]  # of a tensor, and the phase to count it under


class _Linear(torch.autograd.Function):
    """A linear map and its transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Map, back: Map) -> Tensor:
        ctx.back = back
        return there(x, "forward")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(grad, "backward"), None, None


def _apply(x: Tensor, there: Map, back: Map) -> Tensor:
    out: Tensor = _Linear.apply(x, there, back)  # type: ignore[no-untyped-call]
    return out


def _same(x: Tensor, phase: str) -> Tensor:
    return x.view_as(x)


# Blocks ---------------------------------------------------------------------------------------


def gather_rows(x: Tensor, rows: Rows, group: Group) -> Tensor:
    """`[n, w]` to `[N, w]`, where each rank then makes a part of the gradient (reduce-scatter)."""
    blocks = Blocks.of(rows, x.shape[1], 1, group)
    return _apply(x, blocks.gather, blocks.scatter)


def scatter_rows(partial: Tensor, rows: Rows, group: Group) -> Tensor:
    """Partial sums `[N, w]` to the summed rows of this rank `[n, w]`."""
    blocks = Blocks.of(rows, partial.shape[1], 1, group)
    return _apply(partial, blocks.scatter, blocks.gather)


def replicate_rows(x: Tensor, rows: Rows, group: Group) -> Tensor:
    """`[n, w]` to `[N, w]`, replicated: every rank has the same gradient of it."""
    blocks = Blocks.of(rows, x.shape[1], 1, group)
    return _apply(x, blocks.gather, blocks.cut)


def slice_rows(x: Tensor, rows: Rows, group: Group) -> Tensor:
    """A replicated `[N, w]` to the rows of this rank `[n, w]`."""
    blocks = Blocks.of(rows, x.shape[1], 1, group)
    return _apply(x, blocks.cut, blocks.gather)


def scatter_columns(partial: Tensor, group: Group) -> Tensor:
    """Partial sums `[N, w]` to the summed features of this rank `[N, g]`."""
    blocks = Blocks((partial.shape[0],), partial.shape[1], group.size, group)
    return _apply(partial, blocks.scatter, blocks.gather)


def replicate_columns(x: Tensor, width: int, group: Group) -> Tensor:
    """`[N, g]` to `[N, width]`, replicated: every rank has the same gradient of it."""
    blocks = Blocks((x.shape[0],), width, group.size, group)
    return _apply(x, blocks.gather, blocks.cut)


def slice_columns(x: Tensor, group: Group) -> Tensor:
    """A replicated `[N, w]` to the features of this rank `[N, g]`."""
    blocks = Blocks((x.shape[0],), x.shape[1], group.size, group)
    return _apply(x, blocks.cut, blocks.gather)


def replicate_grid(x: Tensor, rows: Rows, width: int, columns: int, group: Group) -> Tensor:
    """A block of a grid to `[N, width]`, replicated: every rank has the same gradient of it."""
    blocks = Blocks.of(rows, width, columns, group)
    return _apply(x, blocks.gather, blocks.cut)


def slice_grid(x: Tensor, rows: Rows, columns: int, group: Group) -> Tensor:
    """A replicated `[N, w]` to this rank's block of a grid."""
    blocks = Blocks.of(rows, x.shape[1], columns, group)
    return _apply(x, blocks.cut, blocks.gather)


# All-to-all -----------------------------------------------------------------------------------


def rows_to_columns(x: Tensor, rows: Rows, group: Group) -> Tensor:
    """This rank's rows `[n, width]` to its features of all rows of the group `[N, g]`.

    Args:
        x: the rows.
        rows: of each member of the group; among neighbours of a grid, theirs only.
        group: the world, or neighbours.
    """
    turn = Turn.of(rows, x.shape[1], group)
    return _apply(x, turn.to_columns, turn.to_rows)


def columns_to_rows(x: Tensor, rows: Rows, width: int, group: Group) -> Tensor:
    """The way back of `rows_to_columns`: `[N, g]` to `[n, width]`."""
    turn = Turn.of(rows, width, group)
    return _apply(x, turn.to_rows, turn.to_columns)


def exchange(x: Tensor, send: Sequence[int], receive: Sequence[int], group: Group) -> Tensor:
    """Rows for others to rows from others; gradients go the way back.

    Args:
        x: `[sum(send), w]`, the rows for member 0 first.
        send: how many go to each member, int `[P]`.
        receive: how many come from each, int `[P]`.
        group: of all members; counted as "exchange".

    Returns:
        `[sum(receive), w]`, the rows of member 0 first.
    """

    def there(t: Tensor, phase: str) -> Tensor:
        return group.all_to_all(t, send, receive, phase, "exchange")

    def back(t: Tensor, phase: str) -> Tensor:
        return group.all_to_all(t, receive, send, phase, "exchange")

    return _apply(x, there, back)


@dataclass
class _Flight:
    """A linear map of shards that is begun and ended apart, forward and backward.

    Attributes:
        go: begins it.
        come_back: begins its transpose, with gradients.
        there: what was begun, until it is waited for.
        back: likewise.
    """

    go: Callable[[Tensor], Begun | Then]
    come_back: Callable[[Tensor], Begun | Then]
    there: Begun | Then | None = None
    back: Begun | Then | None = None


class _Begin(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, flight: _Flight) -> Tensor:
        ctx.flight = flight
        flight.there = flight.go(x)
        return x.new_zeros(()).expand(x.shape)  # the gradient of what was sent comes back by it

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        begun, ctx.flight.back = ctx.flight.back, None
        return begun.wait(), None


class _End(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sent: Tensor, flight: _Flight) -> Tensor:
        ctx.flight, ctx.shape = flight, sent.shape
        begun, flight.there = flight.there, None
        assert begun is not None
        return begun.wait()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.flight.back = ctx.flight.come_back(grad)
        return grad.new_zeros(()).expand(ctx.shape), None  # the gradient itself comes by `back`


def begin_exchange(
    x: Tensor, send: Sequence[int], receive: Sequence[int], group: Group
) -> Callable[[], Tensor]:
    """Begins `exchange`, whose arguments it takes; what it returns ends it.

    Between the two there is time for work that does not wait. In the backward pass, too: autograd
    takes first what was done last, so that gradients are sent when the end is reached, then the
    work between goes back, and then the gradients that come are waited for.
    """

    def go(t: Tensor) -> Begun:
        return group.begin_all_to_all(t, send, receive, "forward", "exchange")

    def come_back(t: Tensor) -> Begun:
        return group.begin_all_to_all(t, receive, send, "backward", "exchange")

    return _begin(x, _Flight(go, come_back))


def begin_gather_rows(x: Tensor, rows: Rows, group: Group) -> Callable[[], Tensor]:
    """Begins `gather_rows`, as `begin_exchange` begins `exchange`."""
    blocks = Blocks.of(rows, x.shape[1], 1, group)

    def go(t: Tensor) -> Then:
        return blocks.begin_gather(t, "forward")

    def come_back(t: Tensor) -> Then:
        return blocks.begin_scatter(t, "backward")

    return _begin(x, _Flight(go, come_back))


def _begin(x: Tensor, flight: _Flight) -> Callable[[], Tensor]:
    sent: Tensor = _Begin.apply(x, flight)  # type: ignore[no-untyped-call]

    def end() -> Tensor:
        out: Tensor = _End.apply(sent, flight)  # type: ignore[no-untyped-call]
        return out

    return end


def fetch_rows(x: Tensor, index: Tensor, rows: Rows, group: Group) -> Tensor:
    """Rows of any nodes, from those who have them; gradients are added up there.

    Args:
        x: `[n, w]`, the rows of this rank.
        index: int64 `[k]`, nodes, on each rank its own; a row that is asked for twice comes once.
        rows: of each rank.
        group: of all ranks. What is asked for is counted under "ask", the rows as those of
            `exchange`.

    Returns:
        `[k, w]`.
    """
    ends = torch.as_tensor(np.cumsum(rows), device=index.device)
    wanted, place = torch.unique(index, return_inverse=True)  # in order, and so by rank
    counts = torch.bincount(torch.searchsorted(ends, wanted, right=True), minlength=group.size)
    each = [1] * group.size
    asked = group.all_to_all(counts, each, each, "ask").tolist()
    mine = counts.tolist()
    found = group.all_to_all(wanted, mine, asked, "ask") - int(sum(rows[: group.rank]))
    return exchange(x.index_select(0, found), asked, mine, group).index_select(0, place)


# Sums -----------------------------------------------------------------------------------------


def sum_parts(x: Tensor, group: Group) -> Tensor:
    """Partial sums to their sum, replicated: every rank has the same gradient of it."""
    return _apply(x, group.all_reduce, _same)


def fan_out(x: Tensor, group: Group) -> Tensor:
    """A replicated tensor, of whose gradient each rank makes a part."""
    return _apply(x, _same, group.all_reduce)


def sum_statistics(x: Tensor, group: Group) -> Tensor:
    """Partial sums to their sum, of whose gradient each rank makes a part."""
    return _apply(x, group.all_reduce, group.all_reduce)


class _SumGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: Group, begun: list[Begun] | None, *tensors: Tensor) -> Any:
        ctx.group, ctx.begun = group, begun
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [g for g, needed in zip(grads, ctx.needs_input_grad[2:], strict=True) if needed]
        flat = torch.cat([g.reshape(-1) for g in wanted])
        found = ctx.group.begin_sum(flat, "update")
        if ctx.begun is None or any(g.dtype != flat.dtype for g in wanted):
            found.wait()
        else:
            ctx.begun.append(found)
        parts = found.out.split([g.numel() for g in wanted])
        summed = iter([p.view_as(g).to(g.dtype) for p, g in zip(parts, wanted, strict=True)])
        return None, None, *(next(summed) if n else None for n in ctx.needs_input_grad[2:])


def sum_gradients(
    tensors: Sequence[Tensor], group: Group, begun: list[Begun] | None = None
) -> list[Tensor]:
    """Copies of weights: their gradients are summed over the ranks, in one flattened all-reduce.

    It is counted under "update". Every rank must use one of them in its loss, be it with no rows.

    Args:
        tensors: the copies.
        group: whose ranks have them.
        begun: where to put sums that are begun; then each of the tensors comes from `waiting` with
            the same list, and nothing else.
    """
    if not tensors:
        return []
    return list(_SumGradients.apply(group, begun, *tensors))  # type: ignore[no-untyped-call]


class _Waiting(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, begun: list[Begun], *tensors: Tensor) -> Any:
        ctx.begun = begun
        ctx.set_materialize_grads(False)
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        for each in ctx.begun:
            each.wait()
        ctx.begun.clear()
        return None, *grads


def waiting(tensors: Sequence[Tensor], begun: list[Begun]) -> list[Tensor]:
    """The same tensors, whose gradients wait for the sums in `begun`: for all of them at once, and
    so at the end of the backward pass, while sums of later layers go on behind earlier ones.
    """
    if not tensors:
        return []
    return list(_Waiting.apply(begun, *tensors))  # type: ignore[no-untyped-call]


# Layouts --------------------------------------------------------------------------------------


def reshard(
    x: Tensor, before: Layout, after: Layout, rows: Rows, width: int, group: Group
) -> Tensor:
    """A shard in another layout; sends what `layouts.reshard` says, and the reverse backward.

    Args:
        x: this rank's shard of `[N, width]`.
        before: its layout.
        after: the layout that is wanted.
        rows: int `[P]`, rows of each rank.
        width: features of the whole tensor.
        group: all ranks.
    """
    if before == after:
        return x
    if before == REPLICATED:
        columns = _columns(after, group)
        blocks = Blocks.of(rows, width, columns, group)
        return _apply(x, blocks.cut, blocks.gather)
    if after == REPLICATED:
        blocks = Blocks.of(rows, width, _columns(before, group), group)
        return _apply(x, blocks.gather, blocks.cut)
    if before == ROWS:
        among, theirs = _neighbours(after, rows, group)
        return rows_to_columns(x, theirs, among)
    among, theirs = _neighbours(before, rows, group)
    x = columns_to_rows(x, theirs, width, among)
    return x if after == ROWS else reshard(x, ROWS, after, rows, width, group)


def _columns(layout: Layout, group: Group) -> int:
    return {ROWS: 1, COLUMNS: group.size}.get(layout, layout.columns)


def _neighbours(layout: Layout, rows: Rows, group: Group) -> tuple[Group, Rows]:
    """Among which ranks the features are split, and their rows."""
    if layout == COLUMNS:
        return group, rows
    among = group.neighbours(layout.columns)
    return among, [rows[r] for r in among.ranks]
