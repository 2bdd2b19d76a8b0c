"""Who holds the extremum: the kernels behind the gradients of max and min.

They take a plain program's schedule: its first level holds rows, or parts of long rows, each with
the row of y that it belongs to; higher levels put the parts together.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .instance import at, instance, sources, write


@triton.jit(do_not_specialize=["last_op"])
def masked_sum(
    value,
    inner,
    outer,
    out,
    scratch,
    op_ptr,
    source,
    target,
    row,
    last_op,
    width,
    inner_matrix,
    outer_matrix,
    scratch_matrix,
    ONES: tl.constexpr,  # every value is 1
    ACC: tl.constexpr,  # dtype of sums and of scratch
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """out_i = sum over sources j of [inner_j == outer_i] * value_j: the first level."""
    matrix, leader, op, live, column, inside = instance(0, last_op, width, ROWS, COLS)
    value += matrix * inner_matrix
    inner += matrix * inner_matrix
    outer += matrix * outer_matrix
    out += matrix * outer_matrix
    scratch += matrix * scratch_matrix
    begin, end, longest = sources(op_ptr, leader, op, live)
    i = tl.load(row + op, live, 0)
    key = tl.load(outer + at(i, column, width), live[:, None] & inside, 0.0)

    acc = tl.zeros((ROWS, COLS), ACC)
    k = 0
    while k < longest:
        for u in tl.static_range(UNROLL):
            here = begin + (k + u) < end
            j = at(tl.load(source + begin + (k + u), here, 0), column, width)
            mask = here[:, None] & inside
            hit = (mask & (tl.load(inner + j, mask, 0.0) == key)).to(ACC)
            if not ONES:
                # A product, not a choice: 0 * Inf must be NaN, as in torch's scatter_reduce.
                hit *= tl.load(value + j, mask, 0.0).to(ACC)
            acc += hit
        k += UNROLL
    t = tl.load(target + op, live, 0)
    write(scratch, out, t, live, column, width, acc, acc.to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["last_op"])
def add_to_winners(
    value,
    won,
    out,
    scratch,
    op_ptr,
    source,
    target,
    row,
    last_op,
    width,
    value_matrix,
    out_matrix,
    scratch_matrix,
    ACC: tl.constexpr,  # dtype of sums and of scratch
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """out_j = sum over targets i of j of [won_i == j] * value_i: the first level of the transpose.

    Rows of value are read only where they count.
    """
    matrix, leader, op, live, column, inside = instance(0, last_op, width, ROWS, COLS)
    value += matrix * value_matrix
    won += matrix * value_matrix
    out += matrix * out_matrix
    scratch += matrix * scratch_matrix
    begin, end, longest = sources(op_ptr, leader, op, live)
    j = tl.load(row + op, live, 0)[:, None]

    acc = tl.zeros((ROWS, COLS), ACC)
    k = 0
    while k < longest:
        for u in tl.static_range(UNROLL):
            here = begin + (k + u) < end
            i = at(tl.load(source + begin + (k + u), here, 0), column, width)
            hit = tl.load(won + i, here[:, None] & inside, -1) == j
            acc += tl.load(value + i, hit, 0.0).to(ACC)
        k += UNROLL
    t = tl.load(target + op, live, 0)
    write(scratch, out, t, live, column, width, acc, acc.to(out.dtype.element_ty))


# The rank of no source. Sources are ranked so that the smallest rank wins.
NOBODY = tl.constexpr(2**31 - 1)


@triton.jit(do_not_specialize=["first_op", "last_op"])
def winner(
    x,
    y,
    out,
    scratch,
    op_ptr,
    source,
    target,
    row,
    first_op,
    last_op,
    width,
    x_matrix,
    y_matrix,
    scratch_matrix,
    PARTS: tl.constexpr,  # sources are rows of scratch, of parts of the row
    LAST: tl.constexpr,  # the largest source, otherwise the smallest
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """The first or last source whose value is the row's extremum, -1 where there is none."""
    matrix, leader, op, live, column, inside = instance(first_op, last_op, width, ROWS, COLS)
    x += matrix * x_matrix
    y += matrix * y_matrix
    out += matrix * y_matrix
    scratch += matrix * scratch_matrix
    begin, end, longest = sources(op_ptr, leader, op, live)
    i = tl.load(row + op, live, 0)
    key = tl.load(y + at(i, column, width), live[:, None] & inside, 0.0)

    won = tl.full((ROWS, COLS), NOBODY, tl.int32)
    k = 0
    while k < longest:
        for u in tl.static_range(UNROLL):
            here = begin + (k + u) < end
            s = tl.load(source + begin + (k + u), here, 0)
            mask = here[:, None] & inside
            if PARTS:
                candidate = tl.load(scratch + at(~s, column, width), mask, NOBODY)
            else:
                value = tl.load(x + at(s, column, width), mask, 0.0)
                hit = (value == key) | ((value != value) & (key != key))
                rank = NOBODY - 1 - s if LAST else s
                candidate = tl.where(mask & hit, rank[:, None], NOBODY)
            won = tl.minimum(won, candidate)
        k += UNROLL
    t = tl.load(target + op, live, 0)
    source_of = NOBODY - 1 - won if LAST else won
    found = tl.where(won == NOBODY, -1, source_of)
    write(scratch, out, t, live, column, width, won, found)
