"""A number for each edge: the gradient of the weights of weighted sums."""

from __future__ import annotations

import triton
import triton.language as tl

from .instance import at


@triton.jit(do_not_specialize=["num_edges", "total", "matrices"])
def edge_dot(
    a,
    b,
    out,
    source,
    target,
    source_scale,
    target_scale,
    num_edges,
    total,
    width,
    matrices,
    a_matrix,
    b_matrix,
    FILL: tl.constexpr,  # loops among the edges do not count
    SCALED: tl.constexpr,
    TARGET_SCALED: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """out_e = s_j t_i <a_j, b_i> over all matrices: of edges j -> i, then of loops on i = 0, 1, ...

    An instance takes `ROWS` edges. Only the last sum goes across threads, those of one warp.
    """
    edge = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = edge < total
    given = edge < num_edges
    j = tl.where(given, tl.load(source + edge, given, 0).to(tl.int64), edge - num_edges)
    i = tl.where(given, tl.load(target + edge, given, 0).to(tl.int64), edge - num_edges)

    acc = tl.zeros((ROWS, COLS), ACC)
    matrix = 0
    while matrix < matrices:
        block = 0
        while block < width:
            column = block + tl.arange(0, COLS)
            mask = live[:, None] & (column < width)[None, :]
            left = tl.load(a + at(j, column, width), mask, 0.0).to(ACC)
            acc += left * tl.load(b + at(i, column, width), mask, 0.0).to(ACC)
            block += COLS
        a += a_matrix
        b += b_matrix
        matrix += 1

    dot = tl.sum(acc, 1)
    if SCALED:
        dot *= tl.load(source_scale + j, live, 0.0)
    if TARGET_SCALED:
        dot *= tl.load(target_scale + i, live, 0.0)
    if FILL:
        dot = tl.where(given & (i == j), 0.0, dot)
    tl.store(out + edge, dot, live)
