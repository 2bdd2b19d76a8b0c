"""Edge weights: finding those that are products of node factors, and aggregating with the others.

Products of node factors are the scales of `aggregate`; others go with `weighted_aggregate`, in the
order of the HAG's edges, which `edge_slots` gives.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hag_plugin.arguments import check_memory, number, whole
from hag_plugin.hag.graph import MAX_NODES, check_edge_index, slots_of
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import SelfLoops
from hag_plugin.kernels import _cpu
from hag_plugin.modes import in_memory, outside_inference
from hag_plugin.ops.registration import (
    accumulator,
    call,
    check_features,
    check_self_loops,
    check_vector,
    checked_scale,
)
from hag_plugin.ops.weighted_sum import NAME as WEIGHTED_SUM
from hag_plugin.reducers import LINEAR

# Relative. Far above the rounding of the weights' own dtype along a path of the graph, and within
# what a sum in that dtype is wrong by anyway.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-6,
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
}
# Factors stay within 2 to the power of plus or minus half the exponents of the dtype that sums
# are accumulated in: a factor times a feature then overflows only where features do.
LARGEST_FACTOR = {torch.float64: 2.0**511, torch.float32: 2.0**63}


def factorise(
    edge_index: Tensor,
    weight: Tensor,
    num_src: int,
    num_dst: int,
    *,
    tolerance: float | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Node factors with `w_e = s[source_e] * t[target_e]` for every edge, where there are any.

    Such weights cost nothing: they are the `source_scale` and `target_scale` of `aggregate`. The
    symmetric normalisation of GCN (arXiv 1609.02907, equation 2) is of this kind. A spanning
    forest over sources and targets fixes the factors, then every edge is compared: O(E).

    Args:
        edge_index: int32 or int64 `[2, E]`.
        weight: floating `[E]`, taken as constant: no gradient flows through the factors.
        num_src: number of sources.
        num_dst: number of targets.
        tolerance: largest relative difference of a weight from its product; by default 1e-12 for
            float64, 1e-6 for float32, one unit in the last place for half types.

    Returns:
        `s`, float64 `[num_src]`, and `t`, float64 `[num_dst]`: in each connected component of
        about the same size, 1 on nodes without edges. None where there are no such factors, where
        they would be too large or too small to be scales, and where a weight is NaN or Inf.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape or an id is out of range.

    Example:
        >>> import torch
        >>> edges = torch.tensor([[0, 1, 2, 2], [0, 0, 0, 1]])
        >>> s, t = factorise(edges, torch.tensor([1.0, 2.0, 4.0, 2.0]), 3, 2)
        >>> (s[edges[0]] * t[edges[1]]).tolist()
        [1.0, 2.0, 4.0, 2.0]
        >>> factorise(torch.tensor([[0, 0], [0, 0]]), torch.tensor([1.0, 2.0]), 1, 1) is None
        True
    """
    check_edge_index(edge_index)
    check_vector(weight, "weight", edge_index.shape[1])
    check_memory("weight", weight)
    num_src = whole("num_src", num_src, 0, MAX_NODES)
    num_dst = whole("num_dst", num_dst, 0, MAX_NODES)
    if tolerance is None:
        tolerance = TOLERANCE.get(weight.dtype)
        if tolerance is None:
            raise TypeError(f"weight has dtype {weight.dtype}; expected one of {list(TOLERANCE)}")
    elif not 0 <= number("tolerance", tolerance) < 1:
        raise ValueError(f"tolerance is {tolerance}; expected 0 to 1")
    with outside_inference():
        source, target = in_memory(edge_index).long().contiguous()
        exact = in_memory(weight).double().contiguous()
        return _factors(source, target, exact, weight, num_src, num_dst, tolerance)


def _factors(
    source: Tensor,
    target: Tensor,
    exact: Tensor,
    weight: Tensor,
    num_src: int,
    num_dst: int,
    tolerance: float,
) -> tuple[Tensor, Tensor] | None:
    if not exact.isfinite().all():
        return None
    arrays = _cpu.factorise(source.numpy(), target.numpy(), exact.numpy(), num_src, num_dst)
    s, t = map(torch.from_numpy, arrays)
    difference = (s[source] * t[target] - exact).abs_()
    if not (difference <= tolerance * exact.abs()).all():
        return None
    largest = LARGEST_FACTOR[accumulator(weight.dtype)]
    for factor in (s, t):
        size = factor[factor != 0].abs()
        if not ((size <= largest) & (size >= 1 / largest)).all():
            return None
    return s.to(weight.device), t.to(weight.device)


def edge_slots(edge_index: Tensor, hag: HAG) -> Tensor:
    """Where each edge of `edge_index` lies in the HAG's own order (by target, then by source).

    Duplicates keep their order. Weights follow with `weight.new_empty(E).index_put((slots,),
    weight)`, and gradients flow back.

    Args:
        edge_index: int32 or int64 `[2, E]`, the edges of the HAG's graph in any order.
        hag: the graph.

    Returns:
        int64 `[E]`, a permutation.

    Raises:
        TypeError: `edge_index` is no integer tensor.
        ValueError: `edge_index` does not hold the edges of the HAG.

    Example:
        >>> import torch
        >>> import hag_plugin as hp
        >>> edges = torch.tensor([[2, 0, 1], [0, 1, 0]])
        >>> edge_slots(edges, hp.build_hag(edges, num_nodes=3)).tolist()
        [1, 2, 0]
    """
    check_edge_index(edge_index)
    with outside_inference():
        return slots_of(edge_index, *hag.numpy(), hag.num_src).to(edge_index.device)


def is_in_order(edge_index: Tensor, hag: HAG) -> bool:
    """Whether edges `[2, E]` of the HAG's graph lie in its own order: by target, then by source."""
    source, target = edge_index
    return torch.equal(source.int(), hag.arrays.col) and bool((target[1:] >= target[:-1]).all())


def weighted_aggregate(
    x: Tensor,
    hag: HAG,
    weight: Tensor,
    reduce: Literal["sum", "mean"] = "sum",
    *,
    self_loops: SelfLoops = False,
    loop_weight: Tensor | None = None,
    source_scale: Tensor | None = None,
    target_scale: Tensor | None = None,
) -> Tensor:
    """Aggregates with a weight an edge: `y_i = t_i * REDUCE_e(w_e * s_j * x_j)`, `e` from j to i.

    It runs on the plain graph: sums with different weights share nothing. Weights that are
    products of node factors (`factorise`) do better as scales of `aggregate`.

    Args:
        x: float32, float64, float16 or bfloat16 `[*, N_src, F]`. Half types accumulate in float32.
        hag: the graph, from `build_hag`.
        weight: `w`, floating `[E]`, in the HAG's own order of edges: see `edge_slots`. It is
            converted to float32, or to float64 for float64 features.
        reduce: "sum", or "mean", which divides by the number of edges (not by their weights). A
            node without edges gets 0.
        self_loops: False: the graph as given; "add": a loop more on each node; "fill": exactly one
            loop on each node, in place of those there are and of their weights.
        loop_weight: weights of the loops that `self_loops` puts there, `[N_dst]`; by default 1.
        source_scale: `s`, `[N_src]`, converted as `weight`.
        target_scale: `t`, `[N_dst]`, likewise.

    Returns:
        `[*, N_dst, F]` in the dtype of `x`, twice differentiable in `x`, `weight`, `loop_weight`
        and both scales.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value.

    Example:
        >>> import torch
        >>> import hag_plugin as hp
        >>> edges, weight = torch.tensor([[2, 0, 1], [0, 1, 0]]), torch.tensor([0.5, 2.0, 1.0])
        >>> hag = hp.build_hag(edges, num_nodes=3)
        >>> weight = torch.empty(3).index_put((edge_slots(edges, hag),), weight)
        >>> weighted_aggregate(torch.tensor([[1.0], [2.0], [4.0]]), hag, weight).flatten().tolist()
        [4.0, 2.0, 0.0]
    """
    if not isinstance(hag, HAG):
        raise TypeError(f"hag is a {type(hag).__name__}; expected a HAG, from build_hag")
    check_features(x, hag)
    if reduce not in LINEAR:
        raise ValueError(f"reduce is {reduce!r}; expected one of {LINEAR}")
    mode = check_self_loops(self_loops, hag)
    num_dst = hag.num_dst
    weight = checked_scale(weight, "weight", x, hag.num_edges)
    if self_loops is not False:
        if loop_weight is None:
            loops = weight.new_ones(num_dst)
        else:
            loops = checked_scale(loop_weight, "loop_weight", x, num_dst)
            check_memory("loop_weight", loops)
        check_memory("weight", weight)
        weight = torch.cat([weight, loops])
    elif loop_weight is not None:
        raise ValueError("loop_weight was given, but self_loops is False; expected 'add' or 'fill'")
    if source_scale is not None:
        source_scale = checked_scale(source_scale, "source_scale", x, x.shape[-2])
    if target_scale is not None:
        target_scale = checked_scale(target_scale, "target_scale", x, num_dst)
    tensors = x, weight, source_scale, target_scale
    y: Tensor = call(WEIGHTED_SUM, hag, tensors, num_dst, mode, False, reduce)
    return y
