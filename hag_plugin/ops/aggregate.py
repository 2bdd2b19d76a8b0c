"""The torch operator: y_i = t_i * REDUCE over edges j->i of (s_j * x_j).

Five operators are registered with torch, over the graph's CSR arrays and never over a program: a
compiled model sees `x`, `row_ptr`, `col` and a token, by which the HAG is found when the operator
runs. Where there is no such HAG (in another process, say), the plain graph is aggregated instead:
slower, the same result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from hag_plugin.arguments import brief, check_dense, check_memory
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import Program, SelfLoops
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
    check_features,
    check_memories,
    check_self_loops,
    checked_scale,
    dot,
    expanded,
    folded_scales,
    found,
    is_ordinary,
    is_transformed,
    kernel_scale,
    linear_tangent,
    loop_mode,
    needs_grad,
    new_output,
    register,
    side_by_side,
)
from hag_plugin.reducers import CODES, LINEAR, REDUCES, Reduce

Ties = Literal["even", "first", "last"]

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
    check_features(x, hag)
    if not isinstance(reduce, str) or reduce not in REDUCES:
        raise ValueError(f"reduce is {brief(reduce)}; expected one of {REDUCES}")
    if not isinstance(ties, str) or ties not in TIES:
        raise ValueError(f"ties is {brief(ties)}; expected one of {TIES}")
    loops = check_self_loops(self_loops, hag)
    num_dst = hag.num_dst
    if source_scale is not None:
        source_scale = checked_scale(source_scale, "source_scale", x, x.shape[-2])
    if target_scale is not None:
        target_scale = checked_scale(target_scale, "target_scale", x, num_dst)
    tensors = (x, source_scale, target_scale)
    if out is not None and _takes_results(out, x, num_dst, tensors):
        graph = found(hag, x.shape[-2], num_dst, loops, False)
        if reduce in LINEAR:
            return _sum(graph, *tensors, out, loops, False, reduce)
        if source_scale is None and target_scale is None:
            return _extrema(graph, x, out, loops, reduce)
    if reduce in LINEAR:
        y: Tensor = call("aggregate", hag, tensors, num_dst, loops, False, reduce)
    else:
        if source_scale is not None:
            check_memories(("x", "source_scale"), (x, source_scale))
            x = (x * source_scale.unsqueeze(-1)).to(x.dtype)
        y = _extremum(x, hag, loops, reduce == "max", ties)
        if target_scale is not None:
            check_memory("target_scale", target_scale)
            y = (y * target_scale.unsqueeze(-1)).to(x.dtype)
    return y if out is None else out.copy_(y)


def _extremum(x: Tensor, hag: HAG, loops: str, largest: bool, ties: Ties) -> Tensor:
    # Inside a transform nobody can tell whether a derivative will be asked for, and a compiler
    # does not say whether there is one.
    if torch.compiler.is_compiling():
        derived = torch.is_grad_enabled()
    else:
        derived = needs_grad(x) or is_transformed()
    if ties == "even" or not derived or x.shape[-2] == 0:
        y: Tensor = call("extremum", hag, (x,), loops, largest, hag.num_dst)
    else:
        y, _ = call("winners", hag, (x,), loops, largest, ties == "last", hag.num_dst)
    return y


# What a call may pass --------------------------------------------------------------------------


def _takes_results(out: Tensor, x: Tensor, num_dst: int, inputs: tuple[Tensor | None, ...]) -> bool:
    """Whether kernels may write into `out` at once, without torch's dispatch.

    Raises:
        TypeError: it is no dense tensor.
        ValueError: it is no place for the result.
    """
    check_dense("out", out)
    ordinary = is_ordinary(*inputs, out)
    transformed = not ordinary and not torch.compiler.is_compiling() and is_transformed()
    if transformed or needs_grad(*inputs, out):
        raise ValueError(
            "out= is for inference, but derivatives are required; use torch.no_grad(), outside of "
            "torch.func's transforms, or leave it out"
        )
    *batch, _, width = x.shape
    shape = (*batch, num_dst, width)
    if out.dtype != x.dtype or out.shape != shape or out.device != x.device:
        raise ValueError(
            f"out is {out.dtype} {list(out.shape)} on {out.device}; "
            f"expected {x.dtype} {list(shape)} on {x.device}"
        )
    if not out.is_contiguous():
        raise ValueError(f"out has strides {out.stride()}; expected a contiguous tensor")
    if torch.compiler.is_compiling():
        return False
    memory = out.untyped_storage().data_ptr()
    for name, t in zip(("x", "source_scale", "target_scale"), inputs, strict=True):
        if t is None:
            continue
        storage = t.untyped_storage()
        if memory and memory == storage.data_ptr():
            raise ValueError("out shares memory with an input; expected memory of its own")
        if storage.nbytes() != t.nbytes or t.storage_offset() or not t.is_contiguous():
            check_memory(name, t)
    return ordinary


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
        CODES[reduce],
        0 if source_scale is None else source_scale.data_ptr(),
        0 if target_scale is None else target_scale.data_ptr(),
        torch.get_num_threads(),
    )


def _run_sum(
    graph: Graph,
    x: Tensor,
    source_scale: Tensor | None,
    target_scale: Tensor | None,
    num_rows: int,
    loops: str,
    transposed: bool,
    reduce: str,
) -> Tensor:
    hag = found(graph, x.shape[-2], num_rows, loops, transposed)
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
        mean = hag.kept_scale(-1.0, mode, dtype)
        if transposed:
            source_scale = mean if source_scale is None else source_scale * mean
        else:
            target_scale = mean if target_scale is None else target_scale * mean
    if transposed:
        program = hag.transpose().chosen(mode, False, x)
    else:
        program = hag.chosen_across_copies(mode, False, x, source_scale)
    _walk(program, x, y, "sum", source_scale, target_scale)
    if observers:
        tell("aggregate", reduce, program)
    return y


def _run_extremum(graph: Graph, x: Tensor, loops: str, largest: bool, num_dst: int) -> Tensor:
    hag = found(graph, x.shape[-2], num_dst, loops, False)
    y = new_output(x, num_dst)
    return _extrema(hag, x, y, loops, "max" if largest else "min")


def _extrema(hag: HAG, x: Tensor, y: Tensor, loops: str, reduce: str) -> Tensor:
    """Writes the extrema into `y`, as `_sum` does the sums."""
    program = hag.chosen_across_copies(loop_mode(loops), True, x, None)
    _walk(program, x, y, reduce)
    if observers:
        tell("extremum", reduce, program)
    return y


def _batch(x: Tensor) -> int:
    return int(x.shape[:-2].numel())


def _run_masked_sum(
    graph: Graph,
    v: Tensor | None,
    key_source: Tensor,
    key_target: Tensor,
    loops: str,
    transposed: bool,
) -> Tensor:
    # `inner` is the side that is summed over, `outer` the side of the result.
    inner, outer = (key_target, key_source) if transposed else (key_source, key_target)
    num_rows, num_cols = outer.shape[-2], inner.shape[-2]
    hag = found(graph, num_cols, num_rows, loops, transposed)
    if inner.shape[:-2] != outer.shape[:-2] or inner.shape[-1] != outer.shape[-1]:
        raise ValueError(f"keys have shapes {list(inner.shape)} and {list(outer.shape)}")
    if v is not None and (v.shape != inner.shape or v.dtype != inner.dtype):
        raise ValueError(f"v is {v.dtype} {list(v.shape)}; expected {inner.dtype} {inner.shape}")
    hag = hag.transpose() if transposed else hag
    inner, outer = inner.contiguous(), outer.contiguous()
    v = None if v is None else v.contiguous()
    mode = loop_mode(loops)
    if gpu.is_home(outer):
        return gpu.masked_sum(hag, mode, v, inner, outer)
    y = new_output(outer, num_rows)
    _cpu.masked_sum(
        0 if v is None else v.data_ptr(),
        inner.data_ptr(),
        outer.data_ptr(),
        y.data_ptr(),
        *hag.addresses,
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
    graph: Graph, x: Tensor, loops: str, largest: bool, last: bool, num_dst: int
) -> tuple[Tensor, Tensor]:
    hag = found(graph, x.shape[-2], num_dst, loops, False)
    mode = loop_mode(loops)
    program = hag.chosen(mode, True, x)
    reduce = "max" if largest else "min"
    x = x.contiguous()
    y = new_output(x, num_dst)
    if gpu.is_home(x):
        _walk(program, x, y, reduce)
        winner = gpu.winner(hag, mode, x, y, last)
    else:
        winner = torch.empty(y.shape, dtype=torch.int64)
        _native_winners(program, x, y, winner, largest, last)
    if observers:
        tell("winners", reduce, program)
    return y, winner


def _native_winners(
    program: Program, x: Tensor, y: Tensor, winner: Tensor, largest: bool, last: bool
) -> None:
    """Writes the extrema and the sources that hold them; contiguous arguments."""
    program.native.winners(
        x.data_ptr(),
        y.data_ptr(),
        winner.data_ptr(),
        _batch(x),
        x.shape[-1],
        x.shape[-2],
        y.shape[-2],
        DTYPES[x.dtype],
        largest,
        last,
        torch.get_num_threads(),
    )


def _run_add_to_winners(
    graph: Graph, grad: Tensor, winner: Tensor, num_rows: int, loops: str
) -> Tensor:
    *batch, num_winners, width = grad.shape
    if gpu.is_home(grad):
        hag = found(graph, num_winners, num_rows, loops, True)
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


# Derivatives -----------------------------------------------------------------------------------


def _keep_sum(ctx: Any, needs: Sequence[bool], inputs: Inputs, output: Tensor) -> Gradients:
    x, source_scale, target_scale, ctx.num_rows, *ctx.how = inputs
    ctx.x_rows = x.shape[-2]
    # x itself is needed only where a scale is learned.
    return (x if needs[1] or needs[2] else None), source_scale, target_scale


def _sum_backward(
    ctx: Any, graph: Graph, needs: Sequence[bool], kept: Sequence[Any], grad: Tensor
) -> Gradients:
    """With y = t A s x: dx = s A'(t dy), ds_j = x_j . (A'(t dy))_j, dt_i = dy_i . (A s x)_i."""
    x, source_scale, target_scale = kept
    loops, transposed, reduce = ctx.how
    grad_x = grad_source = grad_target = None
    if needs[0] or needs[1]:
        tensors = (grad, target_scale, None if needs[1] else source_scale)
        grad_x = call("aggregate", graph, tensors, ctx.x_rows, loops, not transposed, reduce)
    if needs[1]:
        assert grad_x is not None
        grad_source = dot(x, grad_x)
        grad_x = (grad_x * source_scale.unsqueeze(-1)).to(grad.dtype) if needs[0] else None
    if needs[2]:
        tensors = (x, source_scale, None)
        y = call("aggregate", graph, tensors, ctx.num_rows, loops, transposed, reduce)
        grad_target = dot(grad, y)
    return grad_x, grad_source, grad_target


def _sum_tangent(
    graph: Graph, inputs: Inputs, output: Tensor, tangents: Sequence[Tensor | None]
) -> Tensor:
    return linear_tangent("aggregate", graph, inputs, (0, 1, 2), tangents)


def _folded_sum(graph: Graph, size: int, batched: Sequence[bool], inputs: Inputs) -> Tensor:
    def run(x: Tensor, s: Tensor | None, t: Tensor | None) -> Tensor:
        y: Tensor = call("aggregate", graph, (x, s, t), *inputs[3:])
        return y

    x, s, t = inputs[:3]
    return folded_scales(run, size, batched, x, s, t)


def _keep_extremum(ctx: Any, needs: Sequence[bool], inputs: Inputs, output: Tensor) -> Gradients:
    x, ctx.loops, *_ = inputs
    return x, output


def _extremum_backward(
    ctx: Any, graph: Graph, needs: Sequence[bool], kept: Sequence[Any], grad: Tensor
) -> Gradients:
    """As torch's `scatter_reduce_backward`: see `ties` in `aggregate`."""
    x, y = kept
    # An empty row's extremum is 0 too, which keeps its count from being 0.
    tied = call("masked_sum", graph, (None, x, y), ctx.loops, False) + (y == 0)
    return (call("masked_sum", graph, (grad / tied, x, y), ctx.loops, True),)


def _extremum_tangent(
    graph: Graph, inputs: Inputs, y: Tensor, tangents: Sequence[Tensor | None]
) -> Tensor:
    """As torch's `scatter_reduce_jvp`: where sources are tied, their mean.

    Of the initial zero, which takes a share of the gradient, forward-mode AD knows nothing.
    """
    x, loops, *_ = inputs
    total: Tensor = call("masked_sum", graph, (tangents[0], x, y), loops, False)
    tied: Tensor = call("masked_sum", graph, (None, x, y), loops, False)
    return total / tied.clamp(min=1)


def _folded_extremum(graph: Graph, size: int, batched: Sequence[bool], inputs: Inputs) -> Tensor:
    y: Tensor = call("extremum", graph, inputs[:1], *inputs[1:])
    return y


def _keep_masked_sum(ctx: Any, needs: Sequence[bool], inputs: Inputs, output: Tensor) -> Gradients:
    _, key_source, key_target, ctx.loops, ctx.transposed = inputs
    return key_source, key_target


def _masked_sum_backward(
    ctx: Any, graph: Graph, needs: Sequence[bool], kept: Sequence[Any], grad: Tensor
) -> Gradients:
    grad_v = None
    if needs[0]:
        grad_v = call("masked_sum", graph, (grad, *kept), ctx.loops, not ctx.transposed)
    return grad_v, None, None


def _masked_sum_tangent(
    graph: Graph, inputs: Inputs, output: Tensor, tangents: Sequence[Tensor | None]
) -> Tensor:
    if tangents[0] is None:
        return torch.zeros_like(output)
    y: Tensor = call("masked_sum", graph, (tangents[0], *inputs[1:3]), *inputs[3:])
    return y


def _folded_masked_sum(graph: Graph, size: int, batched: Sequence[bool], inputs: Inputs) -> Tensor:
    y: Tensor = call("masked_sum", graph, expanded(size, batched, inputs[:3]), *inputs[3:])
    return y


def _keep_winners(ctx: Any, needs: Sequence[bool], inputs: Inputs, output: Any) -> Gradients:
    x, ctx.loops, *_ = inputs
    winner = output[1]
    ctx.mark_non_differentiable(winner)
    ctx.num_rows = x.shape[-2]
    return (winner,)


def _winners_backward(
    ctx: Any, graph: Graph, needs: Sequence[bool], kept: Sequence[Any], grad: Tensor, _: Any
) -> Gradients:
    return (call("add_to_winners", graph, (grad, kept[0]), ctx.num_rows, ctx.loops),)


def _winners_tangent(
    graph: Graph, inputs: Inputs, output: Any, tangents: Sequence[Tensor | None]
) -> Tensor:
    assert tangents[0] is not None
    return _of_winners(tangents[0], output[1])


def _of_winners(v: Tensor, winner: Tensor) -> Tensor:
    """`v` of each target's winner, 0 where there is none."""
    if v.shape[-2] == 0:
        return v.new_zeros(winner.shape)
    return v.gather(-2, winner.clamp(min=0)).masked_fill(winner < 0, 0)


def _folded_winners(graph: Graph, size: int, batched: Sequence[bool], inputs: Inputs) -> Any:
    return call("winners", graph, inputs[:1], *inputs[1:])


def _keep_add_to_winners(
    ctx: Any, needs: Sequence[bool], inputs: Inputs, output: Tensor
) -> Gradients:
    return (inputs[1],)


def _add_to_winners_backward(
    ctx: Any, graph: Graph, needs: Sequence[bool], kept: Sequence[Any], grad: Tensor
) -> Gradients:
    return _of_winners(grad, kept[0]), None


def _add_to_winners_tangent(
    graph: Graph, inputs: Inputs, output: Tensor, tangents: Sequence[Tensor | None]
) -> Tensor:
    y: Tensor = call("add_to_winners", graph, (tangents[0], inputs[1]), *inputs[2:])
    return y


def _folded_add_to_winners(
    graph: Graph, size: int, batched: Sequence[bool], inputs: Inputs
) -> Tensor:
    y: Tensor = call("add_to_winners", graph, expanded(size, batched, inputs[:2]), *inputs[2:])
    return y


# Shapes, for tracing ---------------------------------------------------------------------------


def _shape_of_sum(graph: Graph, x: Tensor, s: Any, t: Any, num_rows: Any, *how: Any) -> Tensor:
    return x.new_empty((*x.shape[:-2], num_rows, x.shape[-1]))


def _shape_of_extremum(graph: Graph, x: Tensor, loops: str, largest: bool, num_dst: Any) -> Tensor:
    return x.new_empty((*x.shape[:-2], num_dst, x.shape[-1]))


def _shape_of_masked_sum(
    graph: Graph, v: Tensor | None, key_source: Tensor, key_target: Tensor, *how: Any
) -> Tensor:
    like = key_source if how[-1] else key_target
    return like.new_empty(like.shape)


def _shape_of_winners(
    graph: Graph, x: Tensor, loops: str, largest: bool, last: bool, num_dst: Any
) -> tuple[Tensor, Tensor]:
    y = _shape_of_extremum(graph, x, loops, largest, num_dst)
    return y, y.new_empty(y.shape, dtype=torch.int64)


def _shape_of_add_to_winners(
    graph: Graph, grad: Tensor, winner: Tensor, num_rows: Any, loops: str
) -> Tensor:
    return grad.new_empty((*grad.shape[:-2], num_rows, grad.shape[-1]))


_GRAPH = "Tensor row_ptr, Tensor col"
_OPERATORS = {
    "aggregate": Operator(
        f"(Tensor x, {_GRAPH}, Tensor? source_scale, Tensor? target_scale, SymInt num_rows,"
        " str self_loops, bool transposed, str reduce) -> Tensor",
        *(_run_sum, _shape_of_sum, _keep_sum, _sum_backward, _sum_tangent, _folded_sum),
    ),
    "extremum": Operator(
        f"(Tensor x, {_GRAPH}, str self_loops, bool largest, SymInt num_dst) -> Tensor",
        *(_run_extremum, _shape_of_extremum, _keep_extremum),
        *(_extremum_backward, _extremum_tangent, _folded_extremum),
    ),
    "masked_sum": Operator(
        f"(Tensor? v, Tensor key_source, Tensor key_target, {_GRAPH}, str self_loops,"
        " bool transposed) -> Tensor",
        *(_run_masked_sum, _shape_of_masked_sum, _keep_masked_sum),
        *(_masked_sum_backward, _masked_sum_tangent, _folded_masked_sum),
    ),
    "winners": Operator(
        f"(Tensor x, {_GRAPH}, str self_loops, bool largest, bool last, SymInt num_dst)"
        " -> (Tensor, Tensor)",
        *(_run_winners, _shape_of_winners, _keep_winners),
        *(_winners_backward, _winners_tangent, _folded_winners),
    ),
    "add_to_winners": Operator(
        f"(Tensor grad, Tensor winner, {_GRAPH}, SymInt num_rows, str self_loops) -> Tensor",
        *(_run_add_to_winners, _shape_of_add_to_winners, _keep_add_to_winners),
        *(_add_to_winners_backward, _add_to_winners_tangent, _folded_add_to_winners),
    ),
}
for _name, _operator in _OPERATORS.items():
    register(_name, _operator)
