"""The torch operators that are linear in features of several heads, over a graph's CSR arrays.

Both, and all their gradients, are derivatives of one form, Q = sum over edges e: j->i and heads h
of w_eh <a_jh, b_ih>: `head_sum` is its derivative by a or by b, `head_dot` the one by w. So each is
the other's gradient, to any order. No array of edges times features is made.

Weights are `[E, H]`. `order` tells where the weights of each of the HAG's edges stand; None: they
are in the HAG's order. Of a `LoopedHAG` some rows are of no edge: see `counting` and `spread_out`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hag_plugin.hag.graph import MAX_NODES
from hag_plugin.hag.hag import HAG
from hag_plugin.kernels import _cpu
from hag_plugin.observers import observers, tell
from hag_plugin.ops import gpu, gpu_attention
from hag_plugin.ops.registration import (
    DTYPES,
    LOOPED,
    Gradients,
    Graph,
    Inputs,
    Operator,
    call,
    found,
    in_large_pages,
    linear_tangent,
    register,
)
from hag_plugin.ops.weighted_sum import reversed_order

_GIVEN, _NONE = 0, 2  # the numbers of a score and a normalisation (attend_abi.h)

# What both pass to the kernels -------------------------------------------------------------------


def place(tensor: Tensor | None) -> tuple[int, int]:
    """Where a contiguous tensor's numbers are, and how many."""
    return (0, 0) if tensor is None else (tensor.data_ptr(), tensor.numel())


# Run time ---------------------------------------------------------------------------------------


Side = tuple[int, int, int, int]  # addresses of a CSR, of its slots' places and of the order


def by_target(hag: HAG, order: Tensor | None) -> Side:
    """Where a graph's arrays are, as the kernels take them."""
    return *hag.addresses, 0, place(order)[0]


def by_source(hag: HAG, order: Tensor | None) -> Side:
    """Where those of its transpose are.

    Raises:
        NotImplementedError: it has more edges than the kernels count.
    """
    if hag.num_edges > MAX_NODES:
        raise NotImplementedError(f"{hag.num_edges} edges; attention takes up to {MAX_NODES}")
    return *hag.reverse_addresses, reversed_order(hag).data_ptr(), place(order)[0]


def checked_order(order: Tensor | None, hag: HAG) -> Tensor | None:
    """The order as kernels take it.

    Raises:
        ValueError: it has another length.
    """
    if order is None:
        return None
    if order.shape != (hag.num_edges,) or order.dtype != torch.int64:
        raise ValueError(
            f"order is {order.dtype} {list(order.shape)}; expected int64 [{hag.num_edges}]"
        )
    return order.contiguous()


def counting(values: Tensor, order: Tensor | None, hag: HAG) -> Tensor:
    """The rows of the graph's edges, in its order, of as many as a `LoopedHAG` may have."""
    if order is None:
        return values[: hag.num_edges]
    return values.index_select(0, order[: hag.num_edges])


def spread_out(values: Tensor, order: Tensor | None, out: Tensor) -> None:
    """Writes these rows to where they count, and 0 to the other rows of `out`."""
    out.zero_()
    if order is None:
        out[: len(values)] = values
    else:
        out.index_copy_(0, order[: len(values)], values)


def _run_head_sum(
    graph: Graph,
    x: Tensor,
    weight: Tensor,
    order: Tensor | None,
    num_rows: int,
    loops: str,
    transposed: bool,
) -> Tensor:
    hag = found(graph, x.shape[0], num_rows, loops, transposed)
    if loops == LOOPED:
        weight, order = counting(weight, order, hag), None
    order = checked_order(order, hag)
    x, weight = x.contiguous(), weight.contiguous()
    _, heads, width = x.shape
    y = x.new_empty((num_rows, heads, width))
    if gpu.is_home(x):
        rows = gpu_attention.rows_of(hag, transposed)
        gpu_attention.head_sum(rows, x, weight, order, y)
    else:
        _native_head_sum(hag, transposed, x, weight, order, in_large_pages(y))
    if observers:
        tell("head_sum", "sum", hag.transpose() if transposed else hag)
    return y


def _native_head_sum(
    hag: HAG, transposed: bool, x: Tensor, weight: Tensor, order: Tensor | None, y: Tensor
) -> None:
    num_rows, heads, width = y.shape
    tensors = [place(x), *[(0, 0)] * 3, place(weight), *[(0, 0)] * 4]
    _cpu.attend(
        by_source(hag, order) if transposed else by_target(hag, order),
        (num_rows, x.shape[0], hag.num_edges, heads, width, 0, 0),
        tensors,
        place(y),
        (0, 0),
        _GIVEN,
        _NONE,
        1.0,
        DTYPES[x.dtype],
        torch.get_num_threads(),
    )


def _run_head_dot(graph: Graph, a: Tensor, b: Tensor, order: Tensor | None, loops: str) -> Tensor:
    hag = found(graph, a.shape[0], b.shape[0], loops, False)
    if loops == LOOPED:
        y = _shape_of_head_dot(graph, a, b, order, loops)
        spread_out(_head_dot(hag, a, b, None), order, y)
        return y
    return _head_dot(hag, a, b, checked_order(order, hag))


def _head_dot(hag: HAG, a: Tensor, b: Tensor, order: Tensor | None) -> Tensor:
    a, b = a.contiguous(), b.contiguous()
    if gpu.is_home(a):
        return gpu_attention.head_dot(hag, a, b, order)
    _, heads, width = a.shape
    out = a.new_empty((hag.num_edges, heads))
    _cpu.head_dot(
        by_target(hag, order),
        (hag.num_dst, hag.num_src, hag.num_edges, heads, width, 0, 0),
        place(a),
        place(b),
        place(out),
        DTYPES[a.dtype],
        torch.get_num_threads(),
    )
    return out


# Derivatives -----------------------------------------------------------------------------------


def _keep_head_sum(ctx: Any, needs: Sequence[bool], inputs: Inputs, output: Tensor) -> Gradients:
    x, weight, order, _, *ctx.how = inputs
    ctx.rows = x.shape[0]
    return (x if needs[1] else None), (weight if needs[0] else None), order


def _head_sum_backward(
    ctx: Any, graph: Graph, needs: Sequence[bool], kept: Sequence[Any], grad: Tensor
) -> Gradients:
    x, weight, order = kept
    loops, transposed = ctx.how
    grad_x = grad_weight = None
    if needs[0]:
        tensors = grad, weight, order
        grad_x = call("head_sum", graph, tensors, ctx.rows, loops, not transposed)
    if needs[1]:
        sides = (grad, x) if transposed else (x, grad)
        grad_weight = call("head_dot", graph, (*sides, order), loops)
    return grad_x, grad_weight, None


def _head_sum_tangent(
    graph: Graph, inputs: Inputs, output: Tensor, tangents: Sequence[Tensor | None]
) -> Tensor:
    return linear_tangent("head_sum", graph, inputs, (0, 1), tangents)


def _keep_head_dot(ctx: Any, needs: Sequence[bool], inputs: Inputs, output: Tensor) -> Gradients:
    a, b, order, ctx.loops = inputs
    ctx.rows = a.shape[0], b.shape[0]
    return (a if needs[1] else None), (b if needs[0] else None), order


def _head_dot_backward(
    ctx: Any, graph: Graph, needs: Sequence[bool], kept: Sequence[Any], grad: Tensor
) -> Gradients:
    a, b, order = kept
    a_rows, b_rows = ctx.rows
    grad_a = grad_b = None
    if needs[0]:
        grad_a = call("head_sum", graph, (b, grad, order), a_rows, ctx.loops, True)
    if needs[1]:
        grad_b = call("head_sum", graph, (a, grad, order), b_rows, ctx.loops, False)
    return grad_a, grad_b, None


def _head_dot_tangent(
    graph: Graph, inputs: Inputs, output: Tensor, tangents: Sequence[Tensor | None]
) -> Tensor:
    return linear_tangent("head_dot", graph, inputs, (0, 1), tangents)


# Shapes, for tracing ---------------------------------------------------------------------------


def _shape_of_head_sum(
    graph: Graph, x: Tensor, weight: Tensor, order: Any, num_rows: Any, *how: Any
) -> Tensor:
    return x.new_empty((num_rows, *x.shape[1:]))


def _shape_of_head_dot(graph: Graph, a: Tensor, b: Tensor, order: Any, loops: str) -> Tensor:
    num_edges = graph.num_edges if isinstance(graph, HAG) else graph.col.shape[-1]
    if loops == LOOPED and not isinstance(graph, HAG):
        num_edges = num_edges + min(a.shape[0], b.shape[0])
    return a.new_empty((num_edges, a.shape[1]))


_GRAPH = "Tensor? order, Tensor row_ptr, Tensor col"
_OPERATORS = {
    "head_sum": Operator(
        f"(Tensor x, Tensor weight, {_GRAPH}, SymInt num_rows, str self_loops, bool transposed)"
        " -> Tensor",
        *(_run_head_sum, _shape_of_head_sum, _keep_head_sum),
        *(_head_sum_backward, _head_sum_tangent),
    ),
    "head_dot": Operator(
        f"(Tensor a, Tensor b, {_GRAPH}, str self_loops) -> Tensor",
        *(_run_head_dot, _shape_of_head_dot, _keep_head_dot),
        *(_head_dot_backward, _head_dot_tangent),
    ),
}
for _name, _operator in _OPERATORS.items():
    register(_name, _operator)
