"""The torch operator: y_i = t_i * REDUCE over edges j->i of (s_j * x_j).

Five operators are registered with torch, over the graph's CSR arrays and never over a program: a
compiled model sees `x`, `row_ptr` and `col`, and the HAG is found by the identity of `row_ptr`
when the operator runs. Where that identity was lost (an input was cloned), the plain graph is
aggregated instead: slower, the same result.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from hag_plugin import gpu
from hag_plugin.hag import HAG
from hag_plugin.kernels import _cpu
from hag_plugin.operators import (
    DTYPES,
    accumulator,
    call,
    check_features,
    check_rows,
    check_self_loops,
    checked_scale,
    dot,
    found,
    kernel_scale,
    loop_mode,
    needs_grad,
    new_output,
    register,
    side_by_side,
)
from hag_plugin.program import Program, SelfLoops

Reduce = Literal["sum", "mean", "max", "min"]
Ties = Literal["even", "first", "last"]

REDUCES = {"sum": 0, "mean": 0, "max": 1, "min": 2}
LOOPS = {"": 0, "add": 1, "fill": 2}
TIES = ("even", "first", "last")


def aggregate(
    x: Tensor,
    hag: HAG,
    reduce: Reduce = "sum",
    *,
    self_loops: SelfLoops = False,
    source_scale: Tensor | None = None,
    target_scale: Tensor | None = None,
    ties: Ties = "even",
    out: Tensor | None = None,
) -> Tensor:
    """Aggregates the features of each node's sources: `y_i = t_i * REDUCE_j(s_j * x_j)`.

    Args:
        x: float32, float64, float16 or bfloat16 `[*, N_src, F]`. Half types accumulate in float32.
        hag: the graph, from `build_hag`.
        reduce: "sum"; "mean" (divides by the number of edges, duplicates and loops counted);
            "max" or "min" (NaN propagates). A node without edges gets 0.
        self_loops: False: the graph as given; "add": a loop more on each node; "fill": exactly one
            loop on each node.
        source_scale: `s`, `[N_src]`. Scales of another floating dtype are converted to float32, or
            to float64 for float64 features.
        target_scale: `t`, `[N_dst]`.
        ties: where the gradient of max and min goes if several sources hold the extremum. "even"
            is PyG's COO path, torch's `scatter_reduce` into zeros: it is split by multiplicity,
            and where the extremum is exactly 0 the initial zero counts as one more source and
            takes its share (max of 0, 0, -1 has gradients 1/3, 1/3, 0). "first" and "last": all
            of it goes to the source with the smallest or largest id, as in DGL's kernels where a
            node's sources are in order.
        out: `[*, N_dst, F]`, contiguous: written and returned. For inference only.

    Returns:
        `[*, N_dst, F]` in the dtype of `x`, twice differentiable in `x` and both scales.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value.

    Example:
        >>> import torch
        >>> import hag_plugin as hp
        >>> hag = hp.build_hag(torch.tensor([[0, 1, 2], [1, 0, 0]]), num_nodes=3)
        >>> aggregate(torch.tensor([[1.0], [2.0], [4.0]]), hag).flatten().tolist()
        [6.0, 1.0, 0.0]
    """
    if not isinstance(hag, HAG):
        raise TypeError(f"hag is a {type(hag).__name__}; expected a HAG, from build_hag")
    row_ptr, col = hag.row_ptr, hag.col
    check_features(x, row_ptr)
    if reduce not in REDUCES:
        raise ValueError(f"reduce is {reduce!r}; expected one of {tuple(REDUCES)}")
    if ties not in TIES:
        raise ValueError(f"ties is {ties!r}; expected one of {TIES}")
    loops = check_self_loops(self_loops, hag)
    num_dst = hag.num_dst
    if source_scale is not None:
        source_scale = checked_scale(source_scale, "source_scale", x, x.shape[-2])
    if target_scale is not None:
        target_scale = checked_scale(target_scale, "target_scale", x, num_dst)
    if out is not None:
        _check_out(out, x, num_dst, (x, source_scale, target_scale))
    if reduce in ("sum", "mean"):
        if out is not None and not torch.compiler.is_compiling():
            check_rows(hag, x.shape[-2], num_dst, False)
            return _sum(hag, x, source_scale, target_scale, out, loops, False, reduce)
        tensors = (x, row_ptr, col, source_scale, target_scale)
        y = call("aggregate", tensors, num_dst, loops, False, reduce)
    else:
        if source_scale is not None:
            x = (x * source_scale.unsqueeze(-1)).to(x.dtype)
        y = _extremum(x, hag, loops, reduce == "max", ties)
        if target_scale is not None:
            y = (y * target_scale.unsqueeze(-1)).to(x.dtype)
    return y if out is None else out.copy_(y)


def _extremum(x: Tensor, hag: HAG, loops: str, largest: bool, ties: Ties) -> Tensor:
    tensors = (x, hag.row_ptr, hag.col)
    if ties == "even" or not needs_grad(x) or x.shape[-2] == 0:
        return call("extremum", tensors, loops, largest, hag.num_dst)
    y_and_winner: Any = call("winners", tensors, loops, largest, ties == "last", hag.num_dst)
    y: Tensor = y_and_winner[0]
    return y


# What a call may pass --------------------------------------------------------------------------


def _check_out(out: Tensor, x: Tensor, num_dst: int, inputs: tuple[Tensor | None, ...]) -> None:
    if needs_grad(*inputs, out):
        raise ValueError(
            "out= is for inference, but gradients are required; use torch.no_grad() or leave it out"
        )
    size = x.shape
    shape = (*size[:-2], num_dst, size[-1])
    if out.dtype != x.dtype or out.shape != shape or out.device != x.device:
        raise ValueError(
            f"out is {out.dtype} {list(out.shape)} on {out.device}; "
            f"expected {x.dtype} {list(shape)} on {x.device}"
        )
    if not out.is_contiguous():
        raise ValueError(f"out has strides {out.stride()}; expected a contiguous tensor")
    if torch.compiler.is_compiling():
        return
    memory = out.untyped_storage().data_ptr()
    for t in inputs:
        if t is not None and memory and memory == t.untyped_storage().data_ptr():
            raise ValueError("out shares memory with an input; expected memory of its own")


# Run time --------------------------------------------------------------------------------------


def _walk(
    program: Program,
    x: Tensor,
    y: Tensor,
    reduce: str,
    source_scale: Tensor | None = None,
    target_scale: Tensor | None = None,
) -> None:
    """Runs a program on `x` `[*, num_src, F]`; every row of a contiguous `y` is written."""
    if gpu.is_home(x):
        gpu.run_program(program, x, y, reduce, source_scale, target_scale)
        return
    x = side_by_side(x)
    *batch, rows, width = x.shape
    *batch_stride, row_stride, _ = x.stride()
    program.native.run(
        x.data_ptr(),
        y.data_ptr(),
        batch[0] if batch else 1,
        width,
        row_stride,
        batch_stride[0] if batch else 0,
        rows,
        y.shape[-2],
        DTYPES[x.dtype],
        REDUCES[reduce],
        0 if source_scale is None else source_scale.data_ptr(),
        0 if target_scale is None else target_scale.data_ptr(),
        torch.get_num_threads(),
    )


def _run_sum(
    x: Tensor,
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
    y = new_output(x, num_rows)
    return _sum(hag, x, source_scale, target_scale, y, loops, transposed, reduce)


def _sum(
    hag: HAG,
    x: Tensor,
    source_scale: Tensor | None,
    target_scale: Tensor | None,
    y: Tensor,
    loops: str,
    transposed: bool,
    reduce: str,
) -> Tensor:
    """Writes the sums into `y`, `[*, num_rows, F]` and contiguous, after `check_rows`."""
    mode = loop_mode(loops)
    dtype = accumulator(x.dtype)
    if source_scale is not None:
        source_scale = kernel_scale(source_scale, x.shape[-2], dtype)
    if target_scale is not None:
        target_scale = kernel_scale(target_scale, y.shape[-2], dtype)
    if reduce == "mean":  # the count belongs to the graph's targets
        mean = hag.degree_scale(-1.0, mode, dtype)
        if transposed:
            source_scale = mean if source_scale is None else source_scale * mean
        else:
            target_scale = mean if target_scale is None else target_scale * mean
    program = (hag.transpose() if transposed else hag).program(mode)
    _walk(program, x, y, "sum", source_scale, target_scale)
    return y


def _run_extremum(
    x: Tensor, row_ptr: Tensor, col: Tensor, loops: str, largest: bool, num_dst: int
) -> Tensor:
    hag = found(row_ptr, col, x.shape[-2], num_dst, loops, False)
    mode = loop_mode(loops)
    y = new_output(x, num_dst)
    _walk(hag.program(mode, idempotent=True), x, y, "max" if largest else "min")
    return y


def _batch(x: Tensor) -> int:
    return int(x.shape[:-2].numel())


def _run_masked_sum(
    v: Tensor | None,
    key_source: Tensor,
    key_target: Tensor,
    row_ptr: Tensor,
    col: Tensor,
    loops: str,
    transposed: bool,
) -> Tensor:
    # `inner` is the side that is summed over, `outer` the side of the result.
    inner, outer = (key_target, key_source) if transposed else (key_source, key_target)
    num_rows, num_cols = outer.shape[-2], inner.shape[-2]
    hag = found(row_ptr, col, num_cols, num_rows, loops, transposed)
    if inner.shape[:-2] != outer.shape[:-2] or inner.shape[-1] != outer.shape[-1]:
        raise ValueError(f"keys have shapes {list(inner.shape)} and {list(outer.shape)}")
    if v is not None and (v.shape != inner.shape or v.dtype != inner.dtype):
        raise ValueError(f"v is {v.dtype} {list(v.shape)}; expected {inner.dtype} {inner.shape}")
    graph = hag.transpose() if transposed else hag
    inner, outer = inner.contiguous(), outer.contiguous()
    v = None if v is None else v.contiguous()
    mode = loop_mode(loops)
    if gpu.is_home(outer):
        return gpu.masked_sum(graph, mode, v, inner, outer)
    y = new_output(outer, num_rows)
    _cpu.masked_sum(
        0 if v is None else v.data_ptr(),
        inner.data_ptr(),
        outer.data_ptr(),
        y.data_ptr(),
        graph.row_ptr.data_ptr(),
        graph.col.data_ptr(),
        num_rows,
        num_cols,
        _batch(outer),
        outer.shape[-1],
        LOOPS[mode or ""],
        DTYPES[outer.dtype],
        torch.get_num_threads(),
    )
    return y


def _run_winners(
    x: Tensor,
    row_ptr: Tensor,
    col: Tensor,
    loops: str,
    largest: bool,
    last: bool,
    num_dst: int,
) -> tuple[Tensor, Tensor]:
    hag = found(row_ptr, col, x.shape[-2], num_dst, loops, False)
    mode = loop_mode(loops)
    x = x.contiguous()
    if gpu.is_home(x):
        y = _run_extremum(x, row_ptr, col, loops, largest, num_dst)
        return y, gpu.winner(hag, mode, x, y, last)
    y = new_output(x, num_dst)
    winner = torch.empty(y.shape, dtype=torch.int64)
    hag.program(mode, idempotent=True).native.winners(
        x.data_ptr(),
        y.data_ptr(),
        winner.data_ptr(),
        _batch(x),
        x.shape[-1],
        x.shape[-2],
        num_dst,
        DTYPES[x.dtype],
        largest,
        last,
        torch.get_num_threads(),
    )
    return y, winner


def _run_add_to_winners(
    grad: Tensor, winner: Tensor, row_ptr: Tensor, col: Tensor, num_rows: int, loops: str
) -> Tensor:
    *batch, num_winners, width = grad.shape
    if gpu.is_home(grad):
        hag = found(row_ptr, col, num_winners, num_rows, loops, True)
        kept = grad.contiguous(), winner.contiguous()
        return gpu.add_to_winners(hag, loop_mode(loops), *kept)
    out = grad.new_zeros((*batch, num_rows, width))
    if grad.dtype not in (torch.float32, torch.float64):
        value = grad.masked_fill(winner < 0, 0)
        return out.scatter_add_(-2, winner.clamp(min=0), value)
    grad, winner = grad.contiguous(), winner.contiguous()
    _cpu.add_to_winners(
        grad.data_ptr(),
        winner.data_ptr(),
        out.data_ptr(),
        _batch(grad),
        num_winners,
        num_rows,
        width,
        DTYPES[grad.dtype],
        torch.get_num_threads(),
    )
    return out


# Gradients -------------------------------------------------------------------------------------


def _keep_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, row_ptr, col, source_scale, target_scale, _, *ctx.how = inputs
    # x itself is needed only where a scale is learned.
    kept = x if ctx.needs_input_grad[3] or ctx.needs_input_grad[4] else None
    ctx.num_rows, ctx.x_rows = inputs[5], x.shape[-2]
    ctx.save_for_backward(kept, row_ptr, col, source_scale, target_scale)


def _sum_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """With y = t A s x: dx = s A'(t dy), ds_j = x_j . (A'(t dy))_j, dt_i = dy_i . (A s x)_i."""
    x, row_ptr, col, source_scale, target_scale = ctx.saved_tensors
    loops, transposed, reduce = ctx.how
    needs = ctx.needs_input_grad
    grad_x = grad_source = grad_target = None
    if needs[0] or needs[3]:
        tensors = (grad, row_ptr, col, target_scale, None if needs[3] else source_scale)
        grad_x = call("aggregate", tensors, ctx.x_rows, loops, not transposed, reduce)
    if needs[3]:
        assert grad_x is not None
        grad_source = dot(x, grad_x)
        grad_x = (grad_x * source_scale.unsqueeze(-1)).to(grad.dtype) if needs[0] else None
    if needs[4]:
        tensors = (x, row_ptr, col, source_scale, None)
        y = call("aggregate", tensors, ctx.num_rows, loops, transposed, reduce)
        grad_target = dot(grad, y)
    return grad_x, None, None, grad_source, grad_target, None, None, None, None


def _keep_extremum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, row_ptr, col, ctx.loops, *_ = inputs
    ctx.save_for_backward(x, row_ptr, col, output)


def _extremum_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """As torch's `scatter_reduce_backward`: see `ties` in `aggregate`."""
    x, row_ptr, col, y = ctx.saved_tensors
    kept = (x, y, row_ptr, col)
    # An empty row's extremum is 0 too, which keeps its count from being 0.
    tied = call("masked_sum", (None, *kept), ctx.loops, False) + (y == 0)
    grad_x = call("masked_sum", (grad / tied, *kept), ctx.loops, True)
    return grad_x, None, None, None, None, None


def _keep_masked_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, key_source, key_target, row_ptr, col, ctx.loops, ctx.transposed = inputs
    ctx.save_for_backward(key_source, key_target, row_ptr, col)


def _masked_sum_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_v = None
    if ctx.needs_input_grad[0]:
        tensors = (grad, *ctx.saved_tensors)
        grad_v = call("masked_sum", tensors, ctx.loops, not ctx.transposed)
    return grad_v, None, None, None, None, None, None


def _keep_winners(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, row_ptr, col, ctx.loops, *_ = inputs
    winner = output[1]
    ctx.mark_non_differentiable(winner)
    ctx.num_rows = x.shape[-2]
    ctx.save_for_backward(winner, row_ptr, col)


def _winners_backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    tensors = (grad, *ctx.saved_tensors)
    grad_x = call("add_to_winners", tensors, ctx.num_rows, ctx.loops)
    return grad_x, *[None] * 6


def _keep_add_to_winners(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _add_to_winners_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (winner,) = ctx.saved_tensors
    grad_v = grad.gather(-2, winner.clamp(min=0)).masked_fill(winner < 0, 0)
    return grad_v, None, None, None, None, None


# Shapes, for tracing ---------------------------------------------------------------------------


def _shape_of_sum(x: Tensor, row_ptr: Tensor, col: Tensor, *args: Any) -> Tensor:
    return x.new_empty((*x.shape[:-2], args[2], x.shape[-1]))


def _shape_of_extremum(
    x: Tensor, row_ptr: Tensor, col: Tensor, loops: str, largest: bool, num_dst: Any
) -> Tensor:
    return x.new_empty((*x.shape[:-2], num_dst, x.shape[-1]))


def _shape_of_masked_sum(
    v: Tensor | None, key_source: Tensor, key_target: Tensor, *args: Any
) -> Tensor:
    like = key_source if args[-1] else key_target
    return like.new_empty(like.shape)


def _shape_of_winners(
    x: Tensor,
    row_ptr: Tensor,
    col: Tensor,
    loops: str,
    largest: bool,
    last: bool,
    num_dst: Any,
) -> tuple[Tensor, Tensor]:
    y = _shape_of_extremum(x, row_ptr, col, loops, largest, num_dst)
    return y, y.new_empty(y.shape, dtype=torch.int64)


def _shape_of_add_to_winners(grad: Tensor, winner: Tensor, *args: Any) -> Tensor:
    num_rows = args[2]
    return grad.new_empty((*grad.shape[:-2], num_rows, grad.shape[-1]))


_GRAPH = "Tensor row_ptr, Tensor col"
# name: (signature, what runs, shape, backward, what backward keeps)
_OPERATORS: dict[str, tuple[Any, ...]] = {
    "aggregate": (
        f"(Tensor x, {_GRAPH}, Tensor? source_scale, Tensor? target_scale, SymInt num_rows,"
        " str self_loops, bool transposed, str reduce) -> Tensor",
        *(_run_sum, _shape_of_sum, _sum_backward, _keep_sum),
    ),
    "extremum": (
        f"(Tensor x, {_GRAPH}, str self_loops, bool largest, SymInt num_dst) -> Tensor",
        *(_run_extremum, _shape_of_extremum, _extremum_backward, _keep_extremum),
    ),
    "masked_sum": (
        f"(Tensor? v, Tensor key_source, Tensor key_target, {_GRAPH}, str self_loops,"
        " bool transposed) -> Tensor",
        *(_run_masked_sum, _shape_of_masked_sum, _masked_sum_backward, _keep_masked_sum),
    ),
    "winners": (
        f"(Tensor x, {_GRAPH}, str self_loops, bool largest, bool last, SymInt num_dst)"
        " -> (Tensor, Tensor)",
        *(_run_winners, _shape_of_winners, _winners_backward, _keep_winners),
    ),
    "add_to_winners": (
        f"(Tensor grad, Tensor winner, {_GRAPH}, SymInt num_rows, str self_loops) -> Tensor",
        *(
            _run_add_to_winners,
            _shape_of_add_to_winners,
            _add_to_winners_backward,
            _keep_add_to_winners,
        ),
    ),
}
for _name, _operator in _OPERATORS.items():
    register(_name, *_operator, backends=("CPU", "CUDA"))
