"""Launches: the levels of a schedule one after the other.

No launch waits for the device, and every argument is known on the host: CUDA graphs can capture
them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import triton.language as tl
from torch import Tensor

from hag_plugin.hag.gpu.launch_shape import UNROLL, WINNER_WARPS, cut

from . import attention
from .combine import combine
from .edges import edge_dot as edge_dot_kernel
from .ties import add_to_winners as add_to_winners_kernel
from .ties import masked_sum as masked_sum_kernel
from .ties import winner as winner_kernel

if TYPE_CHECKING:
    from hag_plugin.hag.gpu.schedule import Schedule

# The kernels by name: tests put others here, which log what they are launched with.
KERNELS: dict[str, Any] = {
    "combine": combine,
    "masked_sum": masked_sum_kernel,
    "winner": winner_kernel,
    "add_to_winners": add_to_winners_kernel,
    "edge_dot": edge_dot_kernel,
    "attend": attention.attend,
    "merge": attention.merge,
    "head_dot": attention.head_dot,
    "attend_back": attention.attend_back,
    "vector_back": attention.vector_back,
}
# Triton's names of the accumulators.
ACCUMULATORS = {
    torch.float16: tl.float32,
    torch.bfloat16: tl.float32,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
# `w`, and for each source of a schedule the place of its weight in `w`, int64.
Weights = tuple[Tensor, Tensor]


def on_device(x: Tensor) -> AbstractContextManager[Any]:
    """Makes the device of `x` the current one, to which launches go."""
    # In Triton's interpreter tensors are on the CPU.
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def run_schedule(
    schedule: Schedule,
    x: Tensor,
    y: Tensor,
    reduce: str,
    source_scale: Tensor | None = None,
    target_scale: Tensor | None = None,
    weights: Weights | None = None,
) -> None:
    """Runs a schedule on `x` `[B, num_src, F]` (last stride 1), into contiguous `y`.

    With `weights` the schedule is a plain one: levels above the first put parts together.
    """
    matrices, _, width = x.shape
    if y.numel() == 0:
        return
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    scratch = torch.empty((matrices, schedule.scratch_rows, width), dtype=dtype, device=x.device)
    with on_device(x):
        for level in range(schedule.num_levels):
            scales = source_scale, target_scale
            run_level(schedule, level, x, y, scratch, reduce, *scales, weights)


def run_level(
    schedule: Schedule,
    level: int,
    x: Tensor,
    y: Tensor,
    scratch: Tensor,
    reduce: str,
    source_scale: Tensor | None,
    target_scale: Tensor | None,
    weights: Weights | None = None,
) -> None:
    """Runs a level; `x` and `y` as in `run_schedule`, `scratch` `[B, scratch_rows, F]`."""
    matrices, _, width = x.shape
    first, last = schedule.levels[level]
    how = cut(last - first, width, matrices, x.element_size())
    weight, edge = (scratch, scratch) if weights is None else weights
    KERNELS["combine"][(how.grid,)](
        x,
        y,
        scratch,
        schedule.op_ptr,
        schedule.source,
        schedule.target,
        source_scale if source_scale is not None else scratch,
        target_scale if target_scale is not None else scratch,
        weight,
        edge,
        first,
        last,
        width,
        x.stride(1),
        x.stride(0),
        schedule.num_dst * width,
        schedule.scratch_rows * width,
        REDUCE=reduce,
        MIXED=level > 0,
        SCALED=source_scale is not None,
        TARGET_SCALED=target_scale is not None,
        WEIGHTED=weights is not None and level == 0,
        DIAGONAL=schedule.diagonal,
        ACC=ACCUMULATORS[x.dtype],
        UNROLL=UNROLL,
        **how.options,
    )


def masked_sum(plain: Schedule, value: Tensor | None, inner: Tensor, outer: Tensor) -> Tensor:
    """Sums over the sources with the target's key; keys `[B, N, F]`, contiguous."""
    matrices, _, width = outer.shape
    out = torch.empty_like(outer)
    if out.numel() == 0:
        return out
    dtype = torch.float64 if outer.dtype == torch.float64 else torch.float32
    shape = (matrices, plain.scratch_rows, width)
    scratch = torch.empty(shape, dtype=dtype, device=outer.device)
    _, last = plain.levels[0]
    how = cut(last, width, matrices, outer.element_size())
    with on_device(outer):
        KERNELS["masked_sum"][(how.grid,)](
            inner if value is None else value,
            inner,
            outer,
            out,
            scratch,
            plain.op_ptr,
            plain.source,
            plain.target,
            plain.row,
            last,
            width,
            inner.stride(0),
            outer.stride(0),
            scratch.stride(0),
            ONES=value is None,
            ACC=ACCUMULATORS[outer.dtype],
            UNROLL=UNROLL,
            **how.options,
        )
        for level in range(1, plain.num_levels):
            run_level(plain, level, inner, out, scratch, "sum", None, None)
    return out


def winner(plain: Schedule, x: Tensor, y: Tensor, last: bool) -> Tensor:
    """The largest or smallest source that holds the extremum `y`; `[B, N, F]`, contiguous."""
    matrices, _, width = y.shape
    out = torch.empty(y.shape, dtype=torch.int32, device=y.device)
    if out.numel() == 0:
        return out.long()
    shape = (matrices, plain.scratch_rows, width)
    scratch = torch.empty(shape, dtype=torch.int32, device=y.device)
    with on_device(y):
        for level, (begin, end) in enumerate(plain.levels):
            how = cut(end - begin, width, matrices, y.element_size(), WINNER_WARPS)
            KERNELS["winner"][(how.grid,)](
                x,
                y,
                out,
                scratch,
                plain.op_ptr,
                plain.source,
                plain.target,
                plain.row,
                begin,
                end,
                width,
                x.stride(0),
                y.stride(0),
                scratch.stride(0),
                PARTS=level > 0,
                LAST=last,
                UNROLL=UNROLL,
                **how.options,
            )
    return out.long()


def add_to_winners(reverse: Schedule, value: Tensor, winner: Tensor) -> Tensor:
    """Sums to each source the values it won; `value`, `winner` `[B, N, F]`, contiguous.

    Args:
        reverse: the schedule whose rows are the sources, each target once.
        value: of the targets.
        winner: the source that each value goes to, -1: to none.
    """
    matrices, _, width = value.shape
    out = torch.empty((matrices, reverse.num_dst, width), dtype=value.dtype, device=value.device)
    if out.numel() == 0:
        return out
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    shape = (matrices, reverse.scratch_rows, width)
    scratch = torch.empty(shape, dtype=dtype, device=value.device)
    _, last = reverse.levels[0]
    how = cut(last, width, matrices, value.element_size())
    with on_device(value):
        KERNELS["add_to_winners"][(how.grid,)](
            value,
            winner.int(),  # halves what is read for each edge
            out,
            scratch,
            reverse.op_ptr,
            reverse.source,
            reverse.target,
            reverse.row,
            last,
            width,
            value.stride(0),
            out.stride(0),
            scratch.stride(0),
            ACC=ACCUMULATORS[value.dtype],
            UNROLL=UNROLL,
            **how.options,
        )
        for level in range(1, reverse.num_levels):
            run_level(reverse, level, value, out, scratch, "sum", None, None)
    return out


def edge_dot(
    a: Tensor,
    b: Tensor,
    source: Tensor,
    target: Tensor,
    num_loops: int,
    fill: bool,
    source_scale: Tensor | None,
    target_scale: Tensor | None,
) -> Tensor:
    """`s_j t_i <a_j, b_i>` of the edges, then of the loops; `[B, N, F]`, contiguous."""
    matrices, _, width = a.shape
    dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
    total = len(source) + num_loops
    if a.numel() == 0 or b.numel() == 0:
        return torch.zeros(total, dtype=dtype, device=a.device)
    out = torch.empty(total, dtype=dtype, device=a.device)
    how = cut(total, width, 1, a.element_size())
    with on_device(a):
        KERNELS["edge_dot"][(-(-total // how.rows),)](
            a,
            b,
            out,
            source,
            target,
            source_scale if source_scale is not None else out,
            target_scale if target_scale is not None else out,
            len(source),
            total,
            width,
            matrices,
            a.stride(0),
            b.stride(0),
            FILL=fill,
            SCALED=source_scale is not None,
            TARGET_SCALED=target_scale is not None,
            ACC=ACCUMULATORS[a.dtype],
            **how.options,
        )
    return out
