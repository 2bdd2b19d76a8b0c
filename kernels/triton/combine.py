"""One level of a schedule: each op sums (or takes the extremum of) rows and writes one row."""

from __future__ import annotations

import triton
import triton.language as tl

from .instance import at, instance, sources, write

REDUCERS = ("sum", "max", "min")  # what `take` and `combine` know


@triton.jit
def take(acc, value, here, REDUCE: tl.constexpr):
    """Adds a row to a sum, or lets it compete for the extremum; it is 0 where not `here`."""
    if REDUCE == "sum":
        acc += value
    else:
        # NaN wins, as in torch.amax and torch.amin.
        better = value > acc if REDUCE == "max" else value < acc
        acc = tl.where(here[:, None] & (better | (value != value)), value, acc)
    return acc


@triton.jit(do_not_specialize=["first_op", "last_op"])
def combine(
    x,
    y,
    scratch,
    op_ptr,
    source,
    target,
    source_scale,
    target_scale,
    weight,
    edge,
    first_op,
    last_op,
    width,
    x_stride,
    x_matrix,
    y_matrix,
    scratch_matrix,
    REDUCE: tl.constexpr,  # one of REDUCERS
    MIXED: tl.constexpr,  # sources may be rows of scratch
    SCALED: tl.constexpr,  # with source_scale
    TARGET_SCALED: tl.constexpr,
    WEIGHTED: tl.constexpr,  # each source has a weight of its own, of the edge `edge`
    DIAGONAL: tl.constexpr,  # d, an integer
    ACC: tl.constexpr,  # dtype of sums and of scratch
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """y_i = t_i * (REDUCE_j w_e s_j x_j + d s_i x_i), where j may be a row of scratch.

    That has no scale and no weight.
    """
    matrix, leader, op, live, column, inside = instance(first_op, last_op, width, ROWS, COLS)
    x += matrix * x_matrix
    y += matrix * y_matrix
    scratch += matrix * scratch_matrix
    begin, end, longest = sources(op_ptr, leader, op, live)

    if REDUCE == "sum":
        acc = tl.zeros((ROWS, COLS), ACC)
    elif REDUCE == "max":
        acc = tl.full((ROWS, COLS), float("-inf"), ACC)
    else:
        acc = tl.full((ROWS, COLS), float("inf"), ACC)
    k = 0
    while k < longest:
        for u in tl.static_range(UNROLL):
            here = begin + (k + u) < end
            s = tl.load(source + begin + (k + u), here, 0)
            from_x = here & (s >= 0)
            value = tl.load(x + at(s, column, x_stride), from_x[:, None] & inside, 0.0).to(ACC)
            if SCALED:
                value *= tl.load(source_scale + s, from_x, 0.0)[:, None]
            if WEIGHTED:
                e = tl.load(edge + begin + (k + u), from_x, 0)
                value *= tl.load(weight + e, from_x, 0.0)[:, None]
            if MIXED:
                shared = (here & (s < 0))[:, None]
                row = tl.load(scratch + at(~s, column, width), shared & inside, 0.0)
                value = tl.where(shared, row, value)
            acc = take(acc, value, here, REDUCE)
        k += UNROLL

    t = tl.load(target + op, live, 0)
    to_y = live & (t >= 0)
    empty = begin == end
    if DIAGONAL != 0:
        value = tl.load(x + at(t, column, x_stride), to_y[:, None] & inside, 0.0).to(ACC)
        if SCALED:
            value *= tl.load(source_scale + t, to_y, 0.0)[:, None]
        if REDUCE == "sum":
            value *= DIAGONAL
        acc = take(acc, value, to_y, REDUCE)
        empty = empty & (t < 0)
    if REDUCE != "sum":
        acc = tl.where(empty[:, None], 0.0, acc)
    result = acc
    if TARGET_SCALED:
        result *= tl.load(target_scale + t, to_y, 0.0)[:, None]
    write(scratch, y, t, live, column, width, acc, result.to(y.dtype.element_ty))
