"""What all kernels share: which ops and features an instance takes, and how it writes a row.

An instance takes `ROWS` ops and `COLS` features. It writes rows that no other instance of the
launch reads or writes, and shares nothing with them. Inside it every lane keeps to its own row and
feature: no value passes from one thread to another, so there is nothing to wait for.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def instance(first_op, last_op, width, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The instance's matrix of the batch, its ops, and its columns.

    Of the ops the first, all, and which there are; of the columns all, and which there are, as a
    row. Neighbouring instances take neighbouring columns, then ops, then matrices.
    """
    blocks = tl.cdiv(width, COLS)
    row_blocks = tl.cdiv(last_op - first_op, ROWS)
    place = tl.program_id(0)
    column = place % blocks * COLS + tl.arange(0, COLS)
    leader = first_op + place // blocks % row_blocks * ROWS
    matrix = (place // blocks // row_blocks).to(tl.int64)
    op = leader + tl.arange(0, ROWS)
    return matrix, leader, op, op < last_op, column, (column < width)[None, :]


@triton.jit
def sources(op_ptr, leader, op, live):
    """First source of each op, the one after its last, and the length of the longest op.

    A level is sorted by falling length inside windows that no instance straddles, so the first op
    is the longest, and no lane needs to ask another.
    """
    begin = tl.load(op_ptr + op, live, 0)
    end = tl.load(op_ptr + op + 1, live, 0)
    longest = tl.load(op_ptr + leader + 1) - tl.load(op_ptr + leader)
    return begin, end, longest.to(tl.int32)


@triton.jit
def at(row, column, stride):
    """Offsets of the columns of some rows, in 64 bits."""
    return (row.to(tl.int64) * stride)[:, None] + column[None, :]


@triton.jit
def write(scratch, y, t, live, column, width, part, whole):
    """Writes `whole` to the rows of y among the targets, `part` to the rows of scratch."""
    inside = (column < width)[None, :]
    tl.store(scratch + at(~t, column, width), part, (live & (t < 0))[:, None] & inside)
    tl.store(y + at(t, column, width), whole, (live & (t >= 0))[:, None] & inside)
