"""What the torch operators run where features are on a GPU: schedules on Triton kernels."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from hag_plugin.devices import KINDS, kind_of
from hag_plugin.hag.gpu import timing
from hag_plugin.hag.gpu.schedule import Schedule, schedule_of
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import Program, SelfLoops
from hag_plugin.limits import limits
from hag_plugin.ops.registration import side_by_side


def launches() -> ModuleType:
    """The Triton kernels, imported when features on a GPU first need them.

    Raises:
        RuntimeError: Triton is not installed.
    """
    try:
        from hag_plugin.kernels.triton import launch
    except ImportError as e:
        raise RuntimeError(
            "features on a GPU need Triton, which could not be imported: expected the copy that "
            f"comes with torch's CUDA build, or `pip install triton` ({e})"
        ) from e
    module: ModuleType = launch
    return module


def is_home(x: Tensor) -> bool:
    """Whether the operators run the kernels of this module on `x`."""
    if x.is_cpu:
        return limits.kernels_anywhere
    return kind_of(x.device).launches is not None or limits.kernels_anywhere


def as_matrices(x: Tensor) -> Tensor:
    """`side_by_side` as `[B, N, F]`."""
    x = side_by_side(x)
    return x.unsqueeze(0) if x.dim() == 2 else x


def run_program(
    program: Program,
    x: Tensor,
    y: Tensor,
    reduce: str,
    source_scale: Tensor | None = None,
    target_scale: Tensor | None = None,
) -> None:
    """Runs a program on `x` `[*, num_src, F]`; every row of a contiguous `y` is written."""
    y = as_matrices(y)
    scales = source_scale, target_scale
    launches().run_schedule(schedule_of(program), as_matrices(x), y, reduce, *scales)


def _run_schedule(schedule: Schedule, x: Tensor, y: Tensor, reduce: str) -> None:
    launches().run_schedule(schedule, as_matrices(x), as_matrices(y), reduce)


timing.RUNNERS.update((k.name, _run_schedule) for k in KINDS.values() if k.launches is not None)


def masked_sum(
    hag: HAG, self_loops: SelfLoops, value: Tensor | None, inner: Tensor, outer: Tensor
) -> Tensor:
    """`out_i = sum over j -> i of [inner_j == outer_i] * value_j`, contiguous arguments."""
    plain = schedule_of(hag.plain_program(self_loops))
    value = None if value is None else as_matrices(value)
    out: Tensor = launches().masked_sum(plain, value, as_matrices(inner), as_matrices(outer))
    return out.view(outer.shape)


def winner(hag: HAG, self_loops: SelfLoops, x: Tensor, y: Tensor, last: bool) -> Tensor:
    """The largest or smallest source that holds the extremum `y`, int64, -1 where none does."""
    plain = schedule_of(hag.plain_program(self_loops, idempotent=True))
    won: Tensor = launches().winner(plain, as_matrices(x), as_matrices(y), last)
    return won.view(y.shape)


def add_to_winners(hag: HAG, self_loops: SelfLoops, grad: Tensor, winner: Tensor) -> Tensor:
    """`out_j = sum over j -> i of [winner_i == j] * grad_i`, contiguous arguments."""
    reverse = schedule_of(hag.transpose().plain_program(self_loops, idempotent=True))
    out: Tensor = launches().add_to_winners(reverse, as_matrices(grad), as_matrices(winner))
    return out.view(*grad.shape[:-2], hag.num_src, grad.shape[-1])


# Weights of edges -------------------------------------------------------------------------------


def _places(graph: HAG, self_loops: SelfLoops, slot: Tensor) -> Tensor:
    """For each source of the plain schedule the place of its weight, int64 `[S]`.

    Both the schedule and the edges are sorted by target, then by source; edges that are the same
    may change places. Sums of parts of long rows have no weight, and stand last.

    Args:
        graph: whose rows are summed.
        self_loops: the mode; weights of the loops that it puts there follow those of the edges.
        slot: int64 `[E]`, the place of the weight of each of the graph's edges.
    """
    found = schedule_of(graph.plain_program(self_loops))
    last = torch.iinfo(torch.int64).max
    at = torch.arange(len(found.source), device=graph.device)
    op = torch.searchsorted(found.op_ptr[1:], at, right=True)
    row = torch.cat([found.row, found.row.new_zeros(1)])[op].long()  # of what is no op's: any
    is_edge = (found.source >= 0) & (at < found.op_ptr[-1])
    key = torch.where(is_edge, row * graph.num_src + found.source, last)
    source, target = graph.make_edge_index()
    edge = target * graph.num_src + source
    if self_loops:
        if self_loops == "fill":
            edge = edge.masked_fill(source == target, last)
        nodes = torch.arange(min(graph.num_src, graph.num_dst), device=graph.device)
        edge = torch.cat([edge, nodes * graph.num_src + nodes])
        slot = torch.cat([slot, nodes + graph.num_edges])
    order = key.argsort()
    given = slot[edge.argsort()]
    place = torch.zeros_like(key)
    shared = min(len(order), len(given))  # what stands behind is no edge on either side
    place[order[:shared]] = given[:shared]
    return place


def places(
    hag: HAG, transposed: bool, self_loops: SelfLoops, reversed_order: Callable[[], Tensor]
) -> Tensor:
    """`_places` of a graph or of its transpose, for what is in the graph's own order. Kept."""

    def make() -> Tensor:
        if transposed:
            return _places(hag.transpose(), self_loops, reversed_order())
        return _places(hag, self_loops, torch.arange(hag.num_edges, device=hag.device))

    return hag.kept(("places", self_loops, transposed), make)


def targets(hag: HAG) -> Tensor:
    """The target of each edge, int32 `[E]`; of what is none, any. Kept."""

    def make() -> Tensor:
        target = hag.ends()[1].int()
        return target.clamp(max=hag.num_dst - 1) if hag.is_unread else target

    return hag.kept("targets", make)


def is_none(hag: HAG, order: Tensor | None) -> Tensor | None:
    """Which rows, in an order of edges `[E]` or the graph's own, are of no edge, bool `[E]`.

    None: each is of one. Kept in the graph's order.
    """
    if not hag.is_unread:
        return None
    found = hag.kept("is none", lambda: hag.ends()[1] == hag.num_dst)
    return found if order is None else torch.empty_like(found).scatter_(0, order, found)


def weighted_sum(
    hag: HAG,
    transposed: bool,
    self_loops: SelfLoops,
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    reversed_order: Callable[[], Tensor],
    scales: tuple[Tensor | None, Tensor | None],
) -> None:
    """`y_i = t_i * sum_e(w_e * s_j * x_j)` over the graph or its transpose, into `y`.

    Args:
        hag: the graph that the weights are of.
        transposed: sum over the targets of each source.
        self_loops: the mode.
        x: `[*, N, F]`.
        y: `[*, N', F]`, contiguous.
        weight: of the edges in the HAG's order, then of the loops of the mode, contiguous.
        reversed_order: the HAG's edges in the order of its transpose.
        scales: `s` and `t`.
    """
    graph = hag.transpose() if transposed else hag
    place = places(hag, transposed, self_loops, reversed_order)
    plain = schedule_of(graph.plain_program(self_loops))
    weights = weight, place
    launches().run_schedule(plain, as_matrices(x), as_matrices(y), "sum", *scales, weights)


def edge_dot(
    hag: HAG,
    self_loops: SelfLoops,
    num_loops: int,
    a: Tensor,
    b: Tensor,
    scales: tuple[Tensor | None, Tensor | None],
) -> Tensor:
    """`s_j t_i <a_j, b_i>` of each edge j -> i, then of the loops; `a`, `b` contiguous.

    Leading dimensions are summed over.
    """
    sides = as_matrices(a), as_matrices(b), hag.arrays.col, targets(hag)
    out: Tensor = launches().edge_dot(*sides, num_loops, self_loops == "fill", *scales)
    return out
