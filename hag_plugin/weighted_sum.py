"""The torch operators of weighted sums: y_i = t_i * sum over edges e: j->i of (w_e * s_j * x_j).

Two operators are registered with torch, over the graph's CSR arrays as in `aggregate`. Both, and
all their gradients, are derivatives of one form that is linear in each of its arguments,
Q = sum_e w_e s_j t_i <a_j, b_i>: `weighted_sum` is its derivative by a or by b, `edge_dot` the one
by w. So each is the other's gradient, to any order. No array of edges times features is made.

Weights are `[E]` in the HAG's order of edges; where `self_loops` is set, those of the `num_dst`
loops follow. A mean counts as part of the targets' scale.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hag_plugin import gpu
from hag_plugin.hag import HAG, outside_inference
from hag_plugin.kernels import _cpu
from hag_plugin.operators import (
    DTYPES,
    accumulator,
    call,
    dot,
    found,
    kernel_scale,
    loop_mode,
    new_output,
    register,
    side_by_side,
)

NAME = "weighted_sum"

# Run time ---------------------------------------------------------------------------------------

_REVERSED: weakref.WeakKeyDictionary[HAG, Tensor] = weakref.WeakKeyDictionary()


def _reversed_order(hag: HAG) -> Tensor:
    """The HAG's edges in the order of its transpose, int64 `[E]`. Kept while the HAG lives."""
    order = _REVERSED.get(hag)
    if order is None or order.device != hag.device:
        with outside_inference():
            order = _REVERSED[hag] = torch.argsort(hag.col, stable=True)
    return order


_Scales = tuple[Tensor | None, Tensor | None]


def _kernel_scales(
    hag: HAG, given: _Scales, mode: Any, transposed: bool, reduce: str, dtype: torch.dtype
) -> _Scales:
    """The scales of sources and targets with the mean's division, which is the graph's targets'."""
    rows = (hag.num_dst, hag.num_src) if transposed else (hag.num_src, hag.num_dst)
    scales = [kernel_scale(g, n, dtype) for g, n in zip(given, rows, strict=True)]
    if reduce == "mean":
        mean = hag.degree_scale(-1.0, mode, dtype)
        side = 0 if transposed else 1
        scale = scales[side]
        scales[side] = mean if scale is None else scale * mean
    return scales[0], scales[1]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _run_weighted_sum(
    x: Tensor,
    weight: Tensor,
    row_ptr: Tensor,
    col: Tensor,
    source_scale: Tensor | None,
    target_scale: Tensor | None,
    num_rows: int,
    loops: str,
    transposed: bool,
    reduce: str,
) -> Tensor:
    hag = found(row_ptr, col, x.shape[-2], num_rows, loops, transposed)
    mode = loop_mode(loops)
    num_loops = hag.num_dst if hag._check_self_loops(mode) else 0
    dtype = accumulator(x.dtype)
    scales = source_scale, target_scale
    source_scale, target_scale = _kernel_scales(hag, scales, mode, transposed, reduce, dtype)
    expected = [hag.num_edges + num_loops]
    if list(weight.shape) != expected or weight.dtype != dtype:
        raise ValueError(
            f"weight is {weight.dtype} {list(weight.shape)}; expected {dtype} {expected}"
        )
    weight = edges = weight.contiguous()
    y = new_output(x, num_rows)
    if gpu.is_home(x):
        order, scales = lambda: _reversed_order(hag), (source_scale, target_scale)
        gpu.weighted_sum(hag, transposed, mode, x, y, weight, order, scales)
        return y
    loops_at = weight.data_ptr() + hag.num_edges * weight.element_size() if num_loops else 0
    graph = hag
    if transposed:
        graph = hag.transpose()
        edges = weight[: hag.num_edges].index_select(0, _reversed_order(hag))
    x = side_by_side(x)
    *batch, _, width = x.shape
    *batch_stride, row_stride, _ = x.stride()
    _cpu.weighted_sum(
        x.data_ptr(),
        y.data_ptr(),
        edges.data_ptr(),
        loops_at,
        graph.row_ptr.data_ptr(),
        graph.col.data_ptr(),
        _address(source_scale),
        _address(target_scale),
        num_rows,
        num_loops,
        batch[0] if batch else 1,
        width,
        row_stride,
        batch_stride[0] if batch else 0,
        mode == "fill",
        DTYPES[x.dtype],
        torch.get_num_threads(),
    )
    return y


def _run_edge_dot(
    a: Tensor,
    b: Tensor,
    row_ptr: Tensor,
    col: Tensor,
    source_scale: Tensor | None,
    target_scale: Tensor | None,
    loops: str,
    reduce: str,
) -> Tensor:
    """`s_j t_i <a_j, b_i>` of every edge, then of the loops, summed over leading dimensions."""
    hag = found(row_ptr, col, a.shape[-2], b.shape[-2], loops, False)
    if a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-1] or a.dtype != b.dtype:
        raise ValueError(
            f"a is {a.dtype} {list(a.shape)} and b {b.dtype} {list(b.shape)}; "
            "expected them to differ in dimension -2 only"
        )
    mode = loop_mode(loops)
    num_loops = hag.num_dst if hag._check_self_loops(mode) else 0
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
        hag.row_ptr.data_ptr(),
        hag.col.data_ptr(),
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


# Gradients -------------------------------------------------------------------------------------


def _keep_weighted_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *tensors, _, loops, transposed, reduce = inputs
    needs = ctx.needs_input_grad
    ctx.how = loops, transposed, reduce
    ctx.rows = x.shape[-2], inputs[6]
    ctx.save_for_backward(x if needs[1] or needs[4] or needs[5] else None, *tensors)


def _weighted_sum_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, row_ptr, col, s, t = ctx.saved_tensors
    (x_rows, y_rows), (loops, transposed, reduce) = ctx.rows, ctx.how
    needs = ctx.needs_input_grad
    graph = row_ptr, col

    def back(scale: Tensor | None) -> Tensor:
        how = x_rows, loops, not transposed, reduce
        return call(NAME, (grad, weight, *graph, t, scale), *how)

    grad_x, grad_s = _by_features(back, x, s, needs[0], needs[4])
    grad_weight = grad_t = None
    if needs[1]:
        sides = (grad, x, *graph, t, s) if transposed else (x, grad, *graph, s, t)
        grad_weight = call("edge_dot", sides, loops, reduce)
    if needs[5]:
        tensors = x, weight, *graph, s, None
        y = call(NAME, tensors, y_rows, loops, transposed, reduce)
        grad_t = dot(grad, y)
    return grad_x, grad_weight, None, None, grad_s, grad_t, None, None, None, None


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


def _keep_edge_dot(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, loops, reduce = inputs
    ctx.how = loops, reduce
    ctx.save_for_backward(*tensors)


def _edge_dot_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, b, row_ptr, col, s, t = ctx.saved_tensors
    loops, reduce = ctx.how
    needs = ctx.needs_input_grad
    graph = row_ptr, col

    def to_sources(scale: Tensor | None) -> Tensor:
        tensors = b, grad, *graph, t, scale
        return call(NAME, tensors, a.shape[-2], loops, True, reduce)

    def to_targets(scale: Tensor | None) -> Tensor:
        tensors = a, grad, *graph, s, scale
        return call(NAME, tensors, b.shape[-2], loops, False, reduce)

    grad_a, grad_s = _by_features(to_sources, a, s, needs[0], needs[4])
    grad_b, grad_t = _by_features(to_targets, b, t, needs[1], needs[5])
    return grad_a, grad_b, None, None, grad_s, grad_t, None, None


# Shapes, for tracing ---------------------------------------------------------------------------


def _shape_of_weighted_sum(x: Tensor, *args: Any) -> Tensor:
    return x.new_empty((*x.shape[:-2], args[5], x.shape[-1]))


def _shape_of_edge_dot(a: Tensor, b: Tensor, row_ptr: Tensor, col: Tensor, *args: Any) -> Tensor:
    loops = b.shape[-2] if loop_mode(args[2]) else 0
    return a.new_empty((col.shape[0] + loops,), dtype=accumulator(a.dtype))


_GRAPH = "Tensor row_ptr, Tensor col, Tensor? source_scale, Tensor? target_scale"
# name: (signature, what runs, shape, backward, what backward keeps)
_OPERATORS: dict[str, tuple[Any, ...]] = {
    NAME: (
        f"(Tensor x, Tensor weight, {_GRAPH}, SymInt num_rows, str self_loops, bool transposed,"
        " str reduce) -> Tensor",
        *(_run_weighted_sum, _shape_of_weighted_sum, _weighted_sum_backward, _keep_weighted_sum),
    ),
    "edge_dot": (
        f"(Tensor a, Tensor b, {_GRAPH}, str self_loops, str reduce) -> Tensor",
        *(_run_edge_dot, _shape_of_edge_dot, _edge_dot_backward, _keep_edge_dot),
    ),
}
for _name, _operator in _OPERATORS.items():
    register(_name, *_operator, backends=("CPU", "CUDA"))
