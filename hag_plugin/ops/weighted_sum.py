"""The torch operators of weighted sums: y_i = t_i * sum over edges e: j->i of (w_e * s_j * x_j).

Two operators are registered with torch, over the graph's CSR arrays as in `aggregate`. Both, and
all their gradients, are derivatives of one form that is linear in each of its arguments,
Q = sum_e w_e s_j t_i <a_j, b_i>: `weighted_sum` is its derivative by a or by b, `edge_dot` the one
by w. So each is the other's gradient, to any order. No array of edges times features is made.

Weights are `[E]` in the HAG's order of edges; where `self_loops` is set, those of the `num_dst`
loops follow. A mean counts as part of the targets' scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hag_plugin.hag.graph import MAX_NODES, Arrays
from hag_plugin.hag.hag import HAG
from hag_plugin.kernels import _cpu
from hag_plugin.observers import observers, tell
from hag_plugin.ops import gpu
from hag_plugin.ops.registration import (
    DTYPES,
    Gradients,
    Graph,
    Inputs,
    Operator,
    accumulator,
    call,
    dot,
    folded_scales,
    found,
    kernel_scale,
    linear_tangent,
    loop_mode,
    new_output,
    register,
    side_by_side,
)

NAME = "weighted_sum"

# Run time ---------------------------------------------------------------------------------------


def reversed_order(hag: HAG) -> Tensor:
    """The HAG's edges in the order of its transpose, `[E]`. Kept while the HAG lives.

    int32 on the CPU for as many edges as int32 counts, int64 elsewhere.
    """

    def make() -> Tensor:
        is_counted = hag.device.type == "cpu" and hag.num_edges <= MAX_NODES
        if hag.is_unread:
            order = torch.argsort(hag.ends()[0], stable=True)
            return order.int() if is_counted else order
        if not is_counted:
            return torch.argsort(hag.arrays.col, stable=True)
        matrix = (*hag.numpy(), hag.num_src, torch.get_num_threads())
        return torch.from_numpy(_cpu.reversed_order(*matrix))

    return hag.kept("reversed_order", make)


_Scales = tuple[Tensor | None, Tensor | None]


def _kernel_scales(
    hag: HAG, given: _Scales, mode: Any, transposed: bool, reduce: str, dtype: torch.dtype
) -> _Scales:
    """The scales of sources and targets with the mean's division, which is the graph's targets'."""
    rows = (hag.num_dst, hag.num_src) if transposed else (hag.num_src, hag.num_dst)
    scales = [kernel_scale(g, n, dtype) for g, n in zip(given, rows, strict=True)]
    if reduce == "mean":
        mean = hag.kept_scale(-1.0, mode, dtype)
        side = 0 if transposed else 1
        scale = scales[side]
        scales[side] = mean if scale is None else scale * mean
    return scales[0], scales[1]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _run_weighted_sum(
    graph: Graph,
    x: Tensor,
    weight: Tensor,
    source_scale: Tensor | None,
    target_scale: Tensor | None,
    num_rows: int,
    loops: str,
    transposed: bool,
    reduce: str,
) -> Tensor:
    hag = found(graph, x.shape[-2], num_rows, loops, transposed)
    mode = loop_mode(loops)
    num_loops = hag.num_dst if hag.check_self_loops(mode) else 0
    dtype = accumulator(x.dtype)
    scales = source_scale, target_scale
    source_scale, target_scale = _kernel_scales(hag, scales, mode, transposed, reduce, dtype)
    expected = [hag.num_edges + num_loops]
    if list(weight.shape) != expected or weight.dtype != dtype:
        raise ValueError(
            f"weight is {weight.dtype} {list(weight.shape)}; expected {dtype} {expected}"
        )
    weight = weight.contiguous()
    y = new_output(x, num_rows)
    scales = source_scale, target_scale
    if gpu.is_home(x):
        order = lambda: reversed_order(hag).long()  # noqa: E731
        gpu.weighted_sum(hag, transposed, mode, x, y, weight, order, scales)
    else:
        _native_weighted_sum(hag, transposed, mode, x, y, weight, scales)
    if observers:
        tell(NAME, reduce, hag.transpose() if transposed else hag)
    return y


def _native_weighted_sum(
    hag: HAG, transposed: bool, mode: Any, x: Tensor, y: Tensor, weight: Tensor, scales: _Scales
) -> None:
    """Writes the sums into a contiguous `y`; `weight` is of the edges, then of the mode's loops."""
    edges, walked = weight, hag
    if transposed:
        walked = hag.transpose()
        edges = weight[: hag.num_edges].index_select(0, reversed_order(hag))
    num_loops = len(weight) - hag.num_edges
    loops_at = weight.data_ptr() + hag.num_edges * weight.element_size() if num_loops else 0
    x = side_by_side(x)
    *batch, _, width = x.shape
    *batch_stride, row_stride, _ = x.stride()
    source_scale, target_scale = scales
    _cpu.weighted_sum(
        x.data_ptr(),
        y.data_ptr(),
        edges.data_ptr(),
        loops_at,
        *walked.addresses,
        _address(source_scale),
        _address(target_scale),
        y.shape[-2],
        num_loops,
        batch[0] if batch else 1,
        width,
        row_stride,
        batch_stride[0] if batch else 0,
        mode == "fill",
        DTYPES[x.dtype],
        torch.get_num_threads(),
    )


def _run_edge_dot(
    graph: Graph,
    a: Tensor,
    b: Tensor,
    source_scale: Tensor | None,
    target_scale: Tensor | None,
    loops: str,
    reduce: str,
) -> Tensor:
    """`s_j t_i <a_j, b_i>` of every edge, then of the loops, summed over leading dimensions."""
    hag = found(graph, a.shape[-2], b.shape[-2], loops, False)
    if a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-1] or a.dtype != b.dtype:
        raise ValueError(
            f"a is {a.dtype} {list(a.shape)} and b {b.dtype} {list(b.shape)}; "
            "expected them to differ in dimension -2 only"
        )
    mode = loop_mode(loops)
    num_loops = hag.num_dst if hag.check_self_loops(mode) else 0
    dtype = accumulator(a.dtype)
    scales = source_scale, target_scale
    source_scale, target_scale = _kernel_scales(hag, scales, mode, False, reduce, dtype)
    a, b = a.contiguous(), b.contiguous()
    if gpu.is_home(a):
        return gpu.edge_dot(hag, mode, num_loops, a, b, (source_scale, target_scale))
    out = torch.empty(hag.num_edges + num_loops, dtype=dtype)
    _cpu.edge_dot(
        a.data_ptr(),
        b.data_ptr(),
        out.data_ptr(),
        *hag.addresses,
        _address(source_scale),
        _address(target_scale),
        hag.num_dst,
        hag.num_src,
        num_loops,
        a.shape[:-2].numel(),
        a.shape[-1],
        mode == "fill",
        DTYPES[a.dtype],
        torch.get_num_threads(),
    )
    return out


# Derivatives -----------------------------------------------------------------------------------


def _keep_weighted_sum(
    ctx: Any, needs: Sequence[bool], inputs: Inputs, output: Tensor
) -> Gradients:
    x, weight, s, t, num_rows, *ctx.how = inputs
    ctx.rows = x.shape[-2], num_rows
    return (x if needs[1] or needs[2] or needs[3] else None), weight, s, t


def _weighted_sum_backward(
    ctx: Any, graph: Graph, needs: Sequence[bool], kept: Sequence[Any], grad: Tensor
) -> Gradients:
    x, weight, s, t = kept
    (x_rows, y_rows), (loops, transposed, reduce) = ctx.rows, ctx.how

    def back(scale: Tensor | None) -> Tensor:
        tensors = grad, weight, t, scale
        y: Tensor = call(NAME, graph, tensors, x_rows, loops, not transposed, reduce)
        return y

    grad_x, grad_s = _by_features(back, x, s, needs[0], needs[2])
    grad_weight = grad_t = None
    if needs[1]:
        sides = (grad, x, t, s) if transposed else (x, grad, s, t)
        grad_weight = call("edge_dot", graph, sides, loops, reduce)
    if needs[3]:
        y = call(NAME, graph, (x, weight, s, None), y_rows, loops, transposed, reduce)
        grad_t = dot(grad, y)
    return grad_x, grad_weight, grad_s, grad_t


def _by_features(
    walk: Callable[[Tensor | None], Tensor],
    a: Tensor,
    scale: Tensor | None,
    needs_a: bool,
    needs_scale: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The derivatives of Q by `a` and by its scale. `walk(r)` is `r` times that by scale x a."""
    if scale is None or not needs_scale:
        return walk(scale) if needs_a else None, None
    unscaled = walk(None)
    by_a = (unscaled * scale.unsqueeze(-1)).to(unscaled.dtype) if needs_a else None
    return by_a, dot(a, unscaled)


def _weighted_sum_tangent(
    graph: Graph, inputs: Inputs, output: Tensor, tangents: Sequence[Tensor | None]
) -> Tensor:
    return linear_tangent(NAME, graph, inputs, (0, 1, 2, 3), tangents)


def _folded_weighted_sum(
    graph: Graph, size: int, batched: Sequence[bool], inputs: Inputs
) -> Tensor | None:
    x, weight, s, t = inputs[:4]
    if batched[1]:
        return None

    def run(x: Tensor, s: Tensor | None, t: Tensor | None) -> Tensor:
        y: Tensor = call(NAME, graph, (x, weight, s, t), *inputs[4:])
        return y

    return folded_scales(run, size, (batched[0], *batched[2:]), x, s, t)


def _keep_edge_dot(ctx: Any, needs: Sequence[bool], inputs: Inputs, output: Tensor) -> Gradients:
    *tensors, loops, reduce = inputs
    ctx.how = loops, reduce
    return tuple(tensors)


def _edge_dot_backward(
    ctx: Any, graph: Graph, needs: Sequence[bool], kept: Sequence[Any], grad: Tensor
) -> Gradients:
    a, b, s, t = kept
    loops, reduce = ctx.how

    def to_sources(scale: Tensor | None) -> Tensor:
        y: Tensor = call(NAME, graph, (b, grad, t, scale), a.shape[-2], loops, True, reduce)
        return y

    def to_targets(scale: Tensor | None) -> Tensor:
        y: Tensor = call(NAME, graph, (a, grad, s, scale), b.shape[-2], loops, False, reduce)
        return y

    grad_a, grad_s = _by_features(to_sources, a, s, needs[0], needs[2])
    grad_b, grad_t = _by_features(to_targets, b, t, needs[1], needs[3])
    return grad_a, grad_b, grad_s, grad_t


def _edge_dot_tangent(
    graph: Graph, inputs: Inputs, output: Tensor, tangents: Sequence[Tensor | None]
) -> Tensor:
    return linear_tangent("edge_dot", graph, inputs, (0, 1, 2, 3), tangents)


# Shapes, for tracing ---------------------------------------------------------------------------


def _shape_of_weighted_sum(
    graph: Graph, x: Tensor, weight: Tensor, s: Any, t: Any, num_rows: Any, *how: Any
) -> Tensor:
    return x.new_empty((*x.shape[:-2], num_rows, x.shape[-1]))


def _shape_of_edge_dot(
    graph: Arrays, a: Tensor, b: Tensor, s: Any, t: Any, loops: str, reduce: str
) -> Tensor:
    num_loops = b.shape[-2] if loop_mode(loops) else 0
    num_edges = graph.col.shape[-1]  # of an edge index, too
    return a.new_empty((num_edges + num_loops,), dtype=accumulator(a.dtype))


_GRAPH = "Tensor row_ptr, Tensor col, Tensor? source_scale, Tensor? target_scale"
_OPERATORS = {
    NAME: Operator(
        f"(Tensor x, Tensor weight, {_GRAPH}, SymInt num_rows, str self_loops, bool transposed,"
        " str reduce) -> Tensor",
        *(_run_weighted_sum, _shape_of_weighted_sum, _keep_weighted_sum),
        *(_weighted_sum_backward, _weighted_sum_tangent, _folded_weighted_sum),
    ),
    "edge_dot": Operator(
        f"(Tensor a, Tensor b, {_GRAPH}, str self_loops, str reduce) -> Tensor",
        *(_run_edge_dot, _shape_of_edge_dot, _keep_edge_dot),
        *(_edge_dot_backward, _edge_dot_tangent),
    ),
}
for _name, _operator in _OPERATORS.items():
    register(_name, _operator)
