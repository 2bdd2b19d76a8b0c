"""Attention: scores of edges and heads, in one pass over the rows of a plain schedule.

An instance takes `ROWS` ops, `HEADS` heads and `COLS` features of each. Numbers of heads are
`[ROWS, HEADS]`, features `[ROWS, HEADS, COLS]`; sums over the features of a head stay within one
warp. Where a head has more than `COLS` features, each instance makes its heads' scores again, and
the one of the first features writes what is of heads.

Symbols: e is an edge j -> i; "own" is the node of an op's row, "other" the one at the edge's other
end; s are scores, p what is made of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .instance import sources

SCORES = ("given", "sum", "vector", "dot")
NORMALISATIONS = ("softmax", "tanh", "none")


@triton.jit
def attending(
    first_op,
    last_op,
    heads,
    width,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    COLS: tl.constexpr,
):
    """The first of the instance's ops, all, and which there are; its heads and its columns, and
    whether those are the first of their heads."""
    blocks = tl.maximum(tl.cdiv(width, COLS), 1)
    head_blocks = tl.cdiv(heads, HEADS)
    place = tl.program_id(0)
    block = place % blocks
    head = place // blocks % head_blocks * HEADS + tl.arange(0, HEADS)
    leader = first_op + place // blocks // head_blocks * ROWS
    op = leader + tl.arange(0, ROWS)
    return leader, op, op < last_op, head, block * COLS + tl.arange(0, COLS), block + 0 * head == 0


@triton.jit
def in_steps(width, STEP: tl.constexpr):
    """A width that STEP divides: the compiler takes the widest loads that this allows."""
    return width // STEP * STEP


@triton.jit
def of_heads(row, head, heads):
    """Offsets of numbers of heads, in 64 bits."""
    return (row.to(tl.int64) * heads)[:, None] + head[None, :]


@triton.jit
def of_features(row, head, column, heads, width):
    """Offsets of features, in 64 bits."""
    first = (row.to(tl.int64) * (heads * width))[:, None, None] + (head * width)[None, :, None]
    return first + column[None, None, :]


@triton.jit
def features(x, row, there, head, column, heads, width):
    """Features of some rows; 0 where there are none."""
    mask = there[:, :, None] & (column < width)[None, None, :]
    return tl.load(x + of_features(row, head, column, heads, width), mask, 0.0)


@triton.jit
def features_of_edges(x, row, there, head, column, width):
    """The same of rows that all heads share."""
    return features(x, row, there, 0 * head, column, 1, width)


@triton.jit
def vector(weight, head, column, heads, width):
    """The same of one row, which all share."""
    mask = (head < heads)[None, :, None] & (column < width)[None, None, :]
    first = (head.to(tl.int64) * width)[None, :, None]
    return tl.load(weight + (first + column[None, None, :]), mask, 0.0)


@triton.jit
def users_row(edge, order, slot, here, num_edges, ORDERED: tl.constexpr):
    """Where the caller has what it gave of the edges of some slots; whether that is anywhere."""
    e = tl.load(edge + slot, here, 0)
    if ORDERED:
        e = tl.load(order + e, here, 0)
    return e, here & (e >= 0) & (e < num_edges)


@triton.jit
def hyperbolic_tangent(x):
    """Cephes: a rational function near 0, 1 - 2 / (exp(2 |x|) + 1) elsewhere."""
    z = x * x
    p = (-9.64399179425052238628e-1 * z - 9.92877231001918586564e1) * z - 1.61468768441708447952e3
    q = (z + 1.12811678491632931402e2) * z + 2.23548839060100448583e3
    near = x + x * z * (p / (q * z + 4.84406305325125486048e3))
    size = tl.abs(x)
    far = 1.0 - 2.0 / (tl.exp(size + size) + 1.0)
    return tl.where(size < 0.625, near, tl.where(x < 0.0, -far, far))


@triton.jit
def leaky(x, SLOPE: tl.constexpr):
    """A leaky ReLU; 1: none."""
    if SLOPE != 1.0:
        x = tl.where(x > 0.0, x, x * SLOPE)
    return x


@triton.jit
def held_of(
    x,
    row,
    there,
    head,
    heads,
    width,
    SCORE: tl.constexpr,
    WHOLE: tl.constexpr,
    COLS: tl.constexpr,
):
    """What a score takes of some rows of keys or queries, where it takes them whole."""
    held = 0.0
    if SCORE == "sum":
        held = tl.load(x + of_heads(row, head, heads), there, 0.0)
    elif SCORE != "given" and WHOLE:
        held = features(x, row, there, head, tl.arange(0, COLS), heads, width)
    return held


@triton.jit
def term(
    left,
    right,
    weight,
    head,
    column,
    heads,
    width,
    VECTOR: tl.constexpr,
    SLOPE: tl.constexpr,
):
    """What features add to a score."""
    if VECTOR:
        each = vector(weight, head, column, heads, width) * leaky(left + right, SLOPE)
    else:
        each = left * right
    return each


@triton.jit
def product(
    own,
    own_row,
    held,
    other,
    other_row,
    theirs,
    weight,
    there,
    head,
    heads,
    width,
    VECTOR: tl.constexpr,
    SLOPE: tl.constexpr,
    WHOLE: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    COLS: tl.constexpr,
):
    """<own, other> of each head; of a VECTOR <weight, leaky(own + other)>.

    `held` and `theirs` are the rows where the features of a head are WHOLE in an instance.
    """
    column = tl.arange(0, COLS)
    if WHOLE:
        dot = tl.sum(term(held, theirs, weight, head, column, heads, width, VECTOR, SLOPE), 2)
    else:
        acc = tl.zeros((ROWS, HEADS, COLS), ACC)
        block = 0
        while block < width:
            place = block + column
            left = features(own, own_row, there, head, place, heads, width)
            right = features(other, other_row, there, head, place, heads, width)
            acc += term(left, right, weight, head, place, heads, width, VECTOR, SLOPE)
            block += COLS
        dot = tl.sum(acc, 2)
    return dot


@triton.jit
def score(
    own,
    own_row,
    held,
    other,
    other_row,
    theirs,
    weight,
    bias,
    user,
    known,
    there,
    head,
    heads,
    width,
    SCORE: tl.constexpr,
    SLOPE: tl.constexpr,
    BIASED: tl.constexpr,
    WHOLE: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Scores before their own leaky ReLU; that of "vector" is inside."""
    s = tl.zeros((ROWS, HEADS), ACC)
    if SCORE == "sum":
        s = held + theirs
    elif SCORE != "given":
        s = product(
            own, own_row, held, other, other_row, theirs, weight, there, head, heads, width,
            SCORE == "vector", SLOPE, WHOLE, ACC, ROWS, HEADS, COLS,
        )  # fmt: skip
    if BIASED:
        s += tl.load(bias + of_heads(user, head, heads), known, float("nan"))
    return s


@triton.jit
def write_heads(x, row, mask, head, stride, value):
    """Writes numbers of heads into rows that are `stride` apart."""
    tl.store(x + of_heads(row, head, stride), value, mask)


@triton.jit
def fading(peak, s):
    """The largest score with `s`; by what older terms fade, and the exponential of `s`."""
    top = tl.maximum(peak, s)
    base = tl.where(top == float("-inf"), 0.0, top)
    return top, tl.exp(peak - base), tl.exp(s - base)


@triton.jit
def finish(
    y,
    kept,
    scratch,
    part,
    t,
    live,
    empty,
    head,
    column,
    first,
    heads,
    width,
    peak,
    total,
    acc,
    SOFTMAX: tl.constexpr,
    KEPT: tl.constexpr,
):
    """Writes whole rows to `y`, with what is `kept` of them; the sums of parts of rows to
    `scratch`, with their largest scores and sums to `part`."""
    there = live[:, None] & (head < heads)[None, :]
    whole, rest = there & (t >= 0)[:, None], there & (t < 0)[:, None]
    inside = (column < width)[None, None, :]
    tl.store(scratch + of_features(~t, head, column, heads, width), acc, rest[:, :, None] & inside)
    if SOFTMAX:
        write_heads(part, ~t, rest & first[None, :], head, 2 * heads, peak)
        write_heads(part + heads, ~t, rest & first[None, :], head, 2 * heads, total)
        # Without a score above -Inf the largest one is no number to torch, either.
        total = tl.where((peak == float("-inf")) & (empty == 0)[:, None], float("nan"), total)
        total = 1.0 / (total + 1e-16)
        acc *= total[:, :, None]
        peak = tl.where(empty[:, None], 0.0, peak)
    tl.store(y + of_features(t, head, column, heads, width), acc, whole[:, :, None] & inside)
    if KEPT:
        write_heads(kept, t, whole & first[None, :], head, 2 * heads, peak)
        write_heads(kept + heads, t, whole & first[None, :], head, 2 * heads, total)


@triton.jit(do_not_specialize=["last_op", "num_edges"])
def attend(
    value,
    key,
    query,
    weight,
    bias,
    mask,
    y,
    kept,
    scratch,
    part,
    op_ptr,
    source,
    target,
    row,
    edge,
    order,
    last_op,
    num_edges,
    heads,
    width,
    key_width,
    SCORE: tl.constexpr,  # "given", "sum", "vector" or "dot"
    NORMALISE: tl.constexpr,  # "softmax", "tanh" or "none"
    SLOPE: tl.constexpr,  # of the leaky ReLU; 1: none
    BIASED: tl.constexpr,
    MASKED: tl.constexpr,
    ORDERED: tl.constexpr,  # what is of edges is in an order of its own
    KEPT: tl.constexpr,
    OF_EDGES: tl.constexpr,  # values are rows of edges, which heads share
    WHOLE: tl.constexpr,  # an instance has all features of a key
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    COLS: tl.constexpr,
    STEP: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """y_i = sum over e of mask_e p_e value_j: the first level."""
    width, key_width = in_steps(width, STEP), in_steps(key_width, STEP)
    both = tl.maximum(width, key_width)
    leader, op, live, head, column, first = attending(0, last_op, heads, both, ROWS, HEADS, COLS)
    begin, end, longest = sources(op_ptr, leader, op, live)
    own = tl.load(row + op, live, 0)
    there = live[:, None] & (head < heads)[None, :]
    held = held_of(query, own, there, head, heads, key_width, SCORE, WHOLE, COLS)

    peak = tl.full((ROWS, HEADS), float("-inf"), ACC)
    total = tl.zeros((ROWS, HEADS), ACC)
    acc = tl.zeros((ROWS, HEADS, COLS), ACC)
    k = 0
    while k < longest:
        for u in tl.static_range(UNROLL):
            slot = begin + (k + u)
            here = slot < end
            there = here[:, None] & (head < heads)[None, :]
            j = tl.load(source + slot, here, 0)
            user, known = here, here
            if BIASED or MASKED or OF_EDGES:
                user, known = users_row(edge, order, slot, here, num_edges, ORDERED)
            known = known[:, None] & there
            if OF_EDGES:
                x = features_of_edges(value, user, known, head, column, width)
            else:
                x = features(value, j, there, head, column, heads, width)
            theirs = held_of(key, j, there, head, heads, key_width, SCORE, WHOLE, COLS)
            s = score(
                query, own, held, key, j, theirs, weight, bias, user, known, there, head, heads,
                key_width, SCORE, SLOPE, BIASED, WHOLE, ACC, ROWS, HEADS, COLS,
            )  # fmt: skip
            if SCORE != "vector":
                s = leaky(s, SLOPE)
            if NORMALISE == "softmax":
                s = tl.where(there, s, float("-inf"))
                peak, fade, p = fading(peak, s)
                total = total * fade + p
                acc *= fade[:, :, None]
            elif NORMALISE == "tanh":
                p = hyperbolic_tangent(s)
            else:
                p = s
            if MASKED:
                p *= tl.load(mask + of_heads(user, head, heads), known, float("nan"))
            acc += tl.where(there, p, 0.0)[:, :, None] * x
        k += UNROLL

    SOFTMAX: tl.constexpr = NORMALISE == "softmax"
    if not SOFTMAX:
        peak = tl.zeros((ROWS, HEADS), ACC)
        total = tl.full((ROWS, HEADS), 1.0, ACC)
    t = tl.load(target + op, live, 0)
    finish(
        y, kept, scratch, part, t, live, begin == end, head, column, first, heads, width,
        peak, total, acc, SOFTMAX, KEPT,
    )  # fmt: skip


@triton.jit(do_not_specialize=["first_op", "last_op"])
def merge(
    y,
    kept,
    scratch,
    part,
    op_ptr,
    source,
    target,
    first_op,
    last_op,
    heads,
    width,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    COLS: tl.constexpr,
    STEP: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """The softmax of long rows, of those of their parts: a higher level."""
    width = in_steps(width, STEP)
    leader, op, live, head, column, first = attending(
        first_op, last_op, heads, width, ROWS, HEADS, COLS
    )
    begin, end, longest = sources(op_ptr, leader, op, live)
    peak = tl.full((ROWS, HEADS), float("-inf"), ACC)
    total = tl.zeros((ROWS, HEADS), ACC)
    acc = tl.zeros((ROWS, HEADS, COLS), ACC)
    k = 0
    while k < longest:
        for u in tl.static_range(UNROLL):
            here = begin + (k + u) < end
            there = here[:, None] & (head < heads)[None, :]
            s = ~tl.load(source + begin + (k + u), here, 0)
            x = features(scratch, s, there, head, column, heads, width)
            place = of_heads(s, head, 2 * heads)
            highest = tl.load(part + place, there, float("-inf"))
            sums = tl.load(part + heads + place, there, 0.0)
            peak, fade, grow = fading(peak, highest)
            total = total * fade + sums * grow
            acc = acc * fade[:, :, None] + x * grow[:, :, None]
        k += UNROLL
    t = tl.load(target + op, live, 0)
    finish(
        y, kept, scratch, part, t, live, begin == end, head, column, first, heads, width,
        peak, total, acc, True, True,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_edges"])
def head_dot(
    a,
    b,
    out,
    source,
    target,
    order,
    num_edges,
    heads,
    width,
    ORDERED: tl.constexpr,
    OF_EDGES: tl.constexpr,  # a has rows of edges, which heads share
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    COLS: tl.constexpr,
    STEP: tl.constexpr,
):
    """out_e = <a_j, b_i> of each head, or <a_e, b_i>. An instance takes `ROWS` edges."""
    width = in_steps(width, STEP)
    head_blocks = tl.cdiv(heads, HEADS)
    place = tl.program_id(0)
    head = place % head_blocks * HEADS + tl.arange(0, HEADS)
    edge = (place // head_blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = edge < num_edges
    there = here[:, None] & (head < heads)[None, :]
    j = tl.load(source + edge, here, 0)
    i = tl.load(target + edge, here, 0)
    user = edge
    if ORDERED:
        user = tl.load(order + edge, here, 0)
    known = (here & (user >= 0) & (user < num_edges))[:, None] & there
    acc = tl.zeros((ROWS, HEADS, COLS), ACC)
    block = 0
    while block < width:
        column = block + tl.arange(0, COLS)
        if OF_EDGES:
            left = features_of_edges(a, user, known, head, column, width)
        else:
            left = features(a, j, there, head, column, heads, width)
        acc += left * features(b, i, there, head, column, heads, width)
        block += COLS
    write_heads(out, user, known, head, heads, tl.sum(acc, 2))


@triton.jit
def fetched(
    query,
    grad,
    kept,
    inner,
    source,
    slot,
    end,
    head,
    column,
    heads,
    width,
    key_width,
    SCORE: tl.constexpr,
    NORMALISE: tl.constexpr,
    WHOLE: tl.constexpr,
    COLS: tl.constexpr,
):
    """An edge's target, whether there is one, and what it has: its query, a row of the gradient,
    and what was kept of its scores."""
    here = slot < end
    there = here[:, None] & (head < heads)[None, :]
    i = tl.load(source + slot, here, 0)
    g = features(grad, i, there, head, column, heads, width)
    theirs = held_of(query, i, there, head, heads, key_width, SCORE, WHOLE, COLS)
    peak, inverse, product_of = 0.0, 1.0, 0.0
    if NORMALISE == "softmax":
        place = of_heads(i, head, 2 * heads)
        peak = tl.load(kept + place, there, 0.0)
        inverse = tl.load(kept + heads + place, there, 0.0)
        product_of = tl.load(inner + of_heads(i, head, heads), there, 0.0)
    return i, here, g, theirs, peak, inverse, product_of


@triton.jit
def put(scratch, y, t, there, head, column, heads, width, acc):
    """Writes features of whole rows to `y`, those of parts to `scratch`."""
    inside = (column < width)[None, None, :]
    rest, whole = there & (t < 0)[:, None], there & (t >= 0)[:, None]
    tl.store(scratch + of_features(~t, head, column, heads, width), acc, rest[:, :, None] & inside)
    tl.store(y + of_features(t, head, column, heads, width), acc, whole[:, :, None] & inside)


@triton.jit(do_not_specialize=["last_op", "num_edges"])
def attend_back(
    value,
    key,
    query,
    weight,
    bias,
    mask,
    sent,
    grad,
    kept,
    inner,
    d_value,
    d_key,
    by_score,
    d_bias,
    d_mask,
    part_value,
    part_key,
    op_ptr,
    source,
    target,
    row,
    edge,
    order,
    last_op,
    num_edges,
    heads,
    width,
    key_width,
    SCORE: tl.constexpr,
    NORMALISE: tl.constexpr,
    SLOPE: tl.constexpr,
    BIASED: tl.constexpr,
    MASKED: tl.constexpr,
    SENT: tl.constexpr,  # with what edges themselves send: its product with the gradient
    ORDERED: tl.constexpr,
    D_VALUE: tl.constexpr,  # which gradients are asked for
    D_KEY: tl.constexpr,
    D_BIAS: tl.constexpr,
    D_MASK: tl.constexpr,
    BY_SCORE: tl.constexpr,
    WHOLE: tl.constexpr,  # an instance has all features of a value and of a key
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    COLS: tl.constexpr,
    STEP: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """The gradients by what sources have, and by scores: the first level of the reverse.

    Numbers of edges are written as they come, each once, and read by no instance.
    """
    width, key_width = in_steps(width, STEP), in_steps(key_width, STEP)
    both = tl.maximum(width, key_width)
    leader, op, live, head, column, first = attending(0, last_op, heads, both, ROWS, HEADS, COLS)
    begin, end, longest = sources(op_ptr, leader, op, live)
    own = tl.load(row + op, live, 0)
    there = live[:, None] & (head < heads)[None, :]
    held = held_of(key, own, there, head, heads, key_width, SCORE, WHOLE, COLS)
    held_value = held_of(value, own, there, head, heads, width, "dot", WHOLE, COLS)
    mine = held
    if SCORE == "vector" and not WHOLE:
        mine = features(key, own, there, head, column, heads, key_width)

    sum_value = tl.zeros((ROWS, HEADS, COLS), ACC)
    sum_key = tl.zeros((ROWS, HEADS, COLS), ACC)
    sum_heads = tl.zeros((ROWS, HEADS), ACC)
    # No load is moved before what is written here: the next edge's rows are asked for first, where
    # there are registers for them.
    AHEAD: tl.constexpr = UNROLL > 1 and WHOLE and SCORE != "vector"
    if AHEAD:
        next_i, next_here, next_g, next_theirs, next_peak, next_inverse, next_product = fetched(
            query, grad, kept, inner, source, begin, end, head, column, heads, width, key_width,
            SCORE, NORMALISE, WHOLE, COLS,
        )  # fmt: skip
    k = 0
    while k < longest:
        slot = begin + k
        if AHEAD:
            i, here, g, theirs = next_i, next_here, next_g, next_theirs
            peak, inverse, product_of = next_peak, next_inverse, next_product
            next_i, next_here, next_g, next_theirs, next_peak, next_inverse, next_product = fetched(
                query, grad, kept, inner, source, slot + 1, end, head, column, heads, width,
                key_width, SCORE, NORMALISE, WHOLE, COLS,
            )  # fmt: skip
        else:
            i, here, g, theirs, peak, inverse, product_of = fetched(
                query, grad, kept, inner, source, slot, end, head, column, heads, width, key_width,
                SCORE, NORMALISE, WHOLE, COLS,
            )  # fmt: skip
        there = here[:, None] & (head < heads)[None, :]
        user, known, e = here, here, here
        if BY_SCORE:
            e = tl.load(edge + slot, here, 0)
        if BIASED or MASKED or SENT or D_BIAS or D_MASK:
            user, known = users_row(edge, order, slot, here, num_edges, ORDERED)
        known = known[:, None] & there
        s = score(
            key, own, held, query, i, theirs, weight, bias, user, known, there, head, heads,
            key_width, SCORE, SLOPE, BIASED, WHOLE, ACC, ROWS, HEADS, COLS,
        )  # fmt: skip
        if WHOLE:
            by = tl.sum(held_value * g, 2)
        else:
            by = product(
                value, own, 0.0, grad, i, 0.0, weight, there, head, heads, width,
                False, 1.0, False, ACC, ROWS, HEADS, COLS,
            )  # fmt: skip
        if SENT:
            by += tl.load(sent + of_heads(user, head, heads), known, float("nan"))
        p = s
        if SCORE != "vector":
            p = leaky(s, SLOPE)
        if NORMALISE == "softmax":
            p = tl.exp(p - peak) * inverse
        elif NORMALISE == "tanh":
            p = hyperbolic_tangent(p)
        if D_MASK:
            write_heads(d_mask, user, known & first[None, :], head, heads, p * by)
        share = p
        if MASKED:
            m = tl.load(mask + of_heads(user, head, heads), known, float("nan"))
            by *= m
            share *= m
        if D_VALUE:
            sum_value += tl.where(there, share, 0.0)[:, :, None] * g
        if NORMALISE == "softmax":
            by = p * (by - product_of)
        elif NORMALISE == "tanh":
            by *= 1.0 - p * p
        if SCORE != "vector" and SLOPE != 1.0:
            by = tl.where(s > 0.0, by, by * SLOPE)
        by = tl.where(there, by, 0.0)
        if BY_SCORE:
            write_heads(by_score, e, there & first[None, :], head, heads, by)
        if D_BIAS:
            write_heads(d_bias, user, known & first[None, :], head, heads, by)
        if D_KEY:
            if SCORE == "sum":
                sum_heads += by
            else:
                q = theirs
                if not WHOLE:
                    q = features(query, i, there, head, column, heads, key_width)
                each = by[:, :, None]
                if SCORE == "vector":
                    sum_key += tl.where(mine + q > 0.0, each, each * SLOPE)
                else:
                    sum_key += each * q
        k += 1

    if SCORE == "vector":
        sum_key *= vector(weight, head, column, heads, key_width)
    t = tl.load(target + op, live, 0)
    there = live[:, None] & (head < heads)[None, :]
    if D_VALUE:
        put(part_value, d_value, t, there, head, column, heads, width, sum_value)
    if D_KEY:
        if SCORE == "sum":
            write_heads(
                part_key, ~t, there & (t < 0)[:, None] & first[None, :], head, heads, sum_heads
            )
            write_heads(
                d_key, t, there & (t >= 0)[:, None] & first[None, :], head, heads, sum_heads
            )
        else:
            put(part_key, d_key, t, there, head, column, heads, key_width, sum_key)


@triton.jit(do_not_specialize=["last_op"])
def vector_back(
    key,
    query,
    weight,
    by_score,
    d_query,
    d_weight,
    part_query,
    part_weight,
    op_ptr,
    source,
    target,
    row,
    edge,
    last_op,
    heads,
    width,
    SLOPE: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    COLS: tl.constexpr,
    STEP: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """The gradients of "vector" by targets' queries, and what each target adds to that by the
    weight, of those by scores: the first level."""
    width = in_steps(width, STEP)
    leader, op, live, head, column, _ = attending(0, last_op, heads, width, ROWS, HEADS, COLS)
    begin, end, longest = sources(op_ptr, leader, op, live)
    own = tl.load(row + op, live, 0)
    there = live[:, None] & (head < heads)[None, :]
    mine = features(query, own, there, head, column, heads, width)
    sum_query = tl.zeros((ROWS, HEADS, COLS), ACC)
    sum_weight = tl.zeros((ROWS, HEADS, COLS), ACC)
    k = 0
    while k < longest:
        for u in tl.static_range(UNROLL):
            slot = begin + (k + u)
            here = slot < end
            each = here[:, None] & (head < heads)[None, :]
            j = tl.load(source + slot, here, 0)
            z = mine + features(key, j, each, head, column, heads, width)
            e = tl.load(edge + slot, here, 0)
            by = tl.load(by_score + of_heads(e, head, heads), each, 0.0)[:, :, None]
            by = tl.where(each[:, :, None], by, 0.0)
            sum_weight += by * leaky(z, SLOPE)
            sum_query += tl.where(z > 0.0, by, by * SLOPE)
        k += UNROLL
    sum_query *= vector(weight, head, column, heads, width)
    t = tl.load(target + op, live, 0)
    put(part_query, d_query, t, there, head, column, heads, width, sum_query)
    put(part_weight, d_weight, t, there, head, column, heads, width, sum_weight)
