"""What the operators of attention run where features are on a GPU: see `gpu`.

Scores of nodes' terms, of vectors and of dot products are made in the kernels, in both directions.
Those with terms of edges' features are given to them, `[E, H]`: products with a target's features
from `head_dot`, vectors made edge by edge of what torch has.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from hag_plugin.hag.gpu.launch_shape import cut_heads
from hag_plugin.hag.gpu.schedule import Schedule, schedule_of
from hag_plugin.hag.hag import HAG
from hag_plugin.ops import gpu
from hag_plugin.ops.attention_pieces import Form, Pieces, Tensors
from hag_plugin.ops.weighted_sum import reversed_order


class Rows(NamedTuple):
    """The edges of a graph by target, or by source.

    Attributes:
        schedule: of the plain program.
        place: for each source of the schedule where its edge is in the graph's own order, `[S]`.
        num_edges: of the graph.
    """

    schedule: Schedule
    place: Tensor
    num_edges: int

    @property
    def arrays(self) -> tuple[Tensor, ...]:
        """As kernels take them."""
        s = self.schedule
        return s.op_ptr, s.source, s.target, s.row, self.place

    @property
    def first_ops(self) -> int:
        """Ops of the first level."""
        return self.schedule.level_ptr[1] if self.schedule.num_levels else 0

    def scratch(self, like: Tensor, *size: int) -> Tensor:
        """Room for parts of long rows."""
        return like.new_empty((self.schedule.scratch_rows, *size))


def rows_of(hag: HAG, transposed: bool) -> Rows:
    """The edges of each target, or of each source. Kept with the HAG."""
    graph = hag.transpose() if transposed else hag
    schedule = schedule_of(graph.plain_program(False))
    order = lambda: reversed_order(hag).long()  # noqa: E731
    return Rows(schedule, gpu.places(hag, transposed, False, order), hag.num_edges)


# Linear in features ------------------------------------------------------------------------------


def head_sum(rows: Rows, x: Tensor, weight: Tensor, order: Tensor | None, y: Tensor) -> None:
    """`y_ih = sum over e: j->i of (weight_eh * x_jh)`; `[N, H, C]`, `[E, H]`, contiguous.

    Where `x` is `[E, C]`, rows of edges in the caller's order, `x_e` stands for `x_jh`.
    """
    _attend(rows, Tensors(x, bias=weight, order=order), "given", "none", 1.0, y, None)


def head_dot(hag: HAG, a: Tensor, b: Tensor, order: Tensor | None) -> Tensor:
    """`<a_jh, b_ih>` of each edge and head, `[E, H]`, 0 of what is no edge; contiguous arguments
    `[N, H, C]`.

    Where `a` is `[E, C]`, rows of edges in the caller's order, `<a_e, b_ih>`.
    """
    _, heads, width = b.shape
    out = a.new_empty((hag.num_edges, heads))
    if out.numel() == 0:
        return out
    target = gpu.targets(hag)
    how = cut_heads(hag.num_edges, heads, (width,), a.element_size())
    launch = gpu.launches()
    with launch.on_device(a):
        launch.KERNELS["head_dot"][(how.grid,)](
            a,
            b,
            out,
            hag.arrays.col,
            target,
            target if order is None else order,
            hag.num_edges,
            heads,
            width,
            ORDERED=order is not None,
            OF_EDGES=a.dim() == 2,
            ACC=launch.ACCUMULATORS[a.dtype],
            **how.options,
        )
    none = gpu.is_none(hag, order)
    return out if none is None else out.masked_fill_(none.unsqueeze(1), 0.0)


# Forward -----------------------------------------------------------------------------------------


def is_fused(given: Tensors) -> bool:
    """Whether the kernels make the scores themselves."""
    return given.edges is None


def attend(rows: Rows, hag: HAG, given: Tensors, form: Form, y: Tensor, kept: Tensor) -> None:
    """Attention into `y` `[N_dst, H, C]`, and what is kept of each head `[N_dst, 2, H]`.

    That is the largest score and the inverse of the sum of exponentials; 0 and 1 where there is no
    softmax. Arguments are contiguous.
    """
    if is_fused(given):
        _attend(rows, given, form.score, form.normalise, form.slope, y, kept)
        return
    one = _with_scores(hag, given, form)
    how = "given", form.normalise, 1.0 if form.score == "vector" else form.slope
    if given.edge_query is None:
        _attend(rows, one, *how, y, kept)
        return
    assert given.value is not None
    assert given.edges is not None
    width = given.value.shape[-1]
    of_nodes, of_edges = (y.new_empty(part.shape) for part in y.tensor_split([width], -1))
    _attend(rows, one, *how, of_nodes, kept)
    _attend(rows, one._replace(value=given.edges), *how, of_edges, torch.empty_like(kept))
    torch.cat([of_nodes, of_edges], -1, out=y)


def _with_scores(hag: HAG, given: Tensors, form: Form) -> Tensors:
    """The same attention with its scores as given, where they have terms of edges' features."""
    if given.edge_query is None:
        with torch.no_grad():
            scores = Pieces(hag, replace(form, normalise="none"), given, None).s
    else:
        assert given.key is not None
        assert given.query is not None
        assert given.edges is not None
        scores = head_dot(hag, given.key, given.query, given.order)
        scores += head_dot(hag, given.edges, given.edge_query, given.order)
        if given.bias is not None:
            scores += given.bias
    bias = scores.contiguous()
    return Tensors(given.value, bias=bias, mask=given.mask, order=given.order)


def _attend(
    rows: Rows,
    given: Tensors,
    score: str,
    normalise: str,
    slope: float,
    y: Tensor,
    kept: Tensor | None,
) -> None:
    num_dst, heads, width = y.shape
    if num_dst * heads == 0:
        return
    value, schedule = given.value, rows.schedule
    assert value is not None
    key, query, key_width = _ends(given, score, y)
    scratch = rows.scratch(y, heads, width)
    part = rows.scratch(y, 2, heads)
    how = cut_heads(rows.first_ops, heads, (width, key_width), y.element_size())
    order = given.order
    launch = gpu.launches()
    with launch.on_device(y):
        launch.KERNELS["attend"][(how.grid,)](
            value,
            *_or(y, key, query, given.weight, given.bias, given.mask),
            y,
            y if kept is None else kept,
            scratch,
            part,
            *rows.arrays,
            rows.place if order is None else order,
            rows.first_ops,
            rows.num_edges,
            heads,
            width,
            key_width,
            SCORE=score,
            NORMALISE=normalise,
            SLOPE=slope,
            BIASED=given.bias is not None,
            MASKED=given.mask is not None,
            ORDERED=order is not None,
            KEPT=kept is not None,
            OF_EDGES=value.dim() == 2,
            WHOLE=max(width, key_width) <= how.cols,
            ACC=launch.ACCUMULATORS[y.dtype],
            UNROLL=how.unroll,
            **how.options,
        )
        if normalise != "softmax":
            _add_parts(rows, y, scratch)
            if kept is not None and schedule.num_levels > 1:
                kept[:, 0], kept[:, 1] = 0.0, 1.0
            return
        for first, last in schedule.levels[1:]:
            how = cut_heads(last - first, heads, (width,), y.element_size())
            launch.KERNELS["merge"][(how.grid,)](
                y,
                kept,
                scratch,
                part,
                schedule.op_ptr,
                schedule.source,
                schedule.target,
                first,
                last,
                heads,
                width,
                ACC=launch.ACCUMULATORS[y.dtype],
                UNROLL=how.unroll,
                **how.options,
            )


def _ends(given: Tensors, score: str, like: Tensor) -> tuple[Tensor | None, Tensor | None, int]:
    """The keys and queries of a score, and their features; those of values where they have none.

    Args:
        like: as the result, `[N_dst, H, C]`.
    """
    value, key, query = given.value, given.key, given.query
    assert value is not None
    num_dst, heads, width = like.shape
    if score == "sum":
        key = value.new_zeros((value.shape[0], heads)) if key is None else key
        query = value.new_zeros((num_dst, heads)) if query is None else query
    elif key is not None:
        width = key.shape[-1]
    return key, query, width


def _or(other: Tensor, *tensors: Tensor | None) -> list[Tensor]:
    """What kernels are given where nothing is: they do not look."""
    return [other if t is None else t for t in tensors]


def _add_parts(rows: Rows, y: Tensor, scratch: Tensor) -> None:
    """The higher levels of sums: what parts of long rows add up to, into `y`."""
    launch, schedule = gpu.launches(), rows.schedule
    if schedule.num_levels < 2 or y.numel() == 0:
        return
    y = y.view(1, y.shape[0], -1)
    for level in range(1, schedule.num_levels):
        launch.run_level(schedule, level, y, y, scratch, "sum", None, None)  # no row of x is read


# Backward ----------------------------------------------------------------------------------------


def attend_backward(
    hag: HAG,
    given: Tensors,
    form: Form,
    grad: Tensor,
    y: Tensor,
    kept: Tensor,
    out: Tensors,
) -> None:
    """The gradients by the tensors that have one in `out`, into those, which are contiguous."""
    value = given.value
    assert value is not None
    heads = value.shape[1]
    if heads == 0:
        return
    if hag.is_unread:  # rows of what is no edge are not written
        for of_edges in (out.bias, out.mask):
            if of_edges is not None:
                of_edges.zero_()
    if given.edge_query is not None:
        _backward_of_edges(hag, given, form, grad, y, kept, out)
        return
    if not is_fused(given):
        with torch.no_grad():
            found = Pieces(hag, form, given, kept[:, 0]).gradients(grad)
        for to, gradient in zip(out, found, strict=True):
            if to is not None:
                assert gradient is not None
                to.copy_(gradient)
        return
    by_score = None
    if out.query is not None or out.weight is not None:
        by_score = value.new_empty((hag.num_edges, heads))
    inner = (grad * y).sum(-1)
    _by_source(rows_of(hag, True), given, form, grad, inner, kept, out, by_score)
    if by_score is None:
        return
    by_target = rows_of(hag, False)
    if form.score == "vector":
        _by_target_of_vectors(by_target, given, form, by_score, out)
        return
    assert out.query is not None
    key = value.new_ones((*value.shape[:2], 1)) if form.score == "sum" else given.key
    assert key is not None
    to = out.query.unsqueeze(-1) if form.score == "sum" else out.query
    head_sum(by_target, key, by_score, None, to)


def _backward_of_edges(
    hag: HAG, given: Tensors, form: Form, grad: Tensor, y: Tensor, kept: Tensor, out: Tensors
) -> None:
    """The same of "dot" where edges have features that meet the target's and are sent to it."""
    value, key, query, edges = given.value, given.key, given.query, given.edges
    assert value is not None
    assert key is not None
    assert query is not None
    assert edges is not None
    one, order = _with_scores(hag, given, form), given.order
    of_nodes, of_edges = (part.contiguous() for part in grad.tensor_split([value.shape[-1]], -1))
    by_score = value.new_empty((hag.num_edges, value.shape[1])) if out.bias is None else out.bias
    by_source, by_target = rows_of(hag, True), rows_of(hag, False)
    wanted = Tensors(value=out.value, bias=by_score, mask=out.mask)
    sent, inner = head_dot(hag, edges, of_edges, order), (grad * y).sum(-1)
    how = replace(form, score="given")
    _by_source(by_source, one, how, of_nodes, inner, kept, wanted, None, sent)
    if out.key is not None:
        head_sum(by_source, query, by_score, order, out.key)
    if out.query is not None:
        head_sum(by_target, key, by_score, order, out.query)
    if out.edge_query is not None:
        head_sum(by_target, edges, by_score, order, out.edge_query)
    if out.edges is not None:
        with torch.no_grad():
            found = Pieces(hag, form, given, kept[:, 0]).gradients(grad)
        assert found.edges is not None
        out.edges.copy_(found.edges)


def _by_source(
    rows: Rows,
    given: Tensors,
    form: Form,
    grad: Tensor,
    inner: Tensor,
    kept: Tensor,
    out: Tensors,
    by_score: Tensor | None,
    sent: Tensor | None = None,
) -> None:
    """The gradients by what sources have, by what is given of edges, and by scores.

    Args:
        inner: the product of the result and its gradient, `[N_dst, H]`.
        by_score: where those by scores go, `[E, H]`.
        sent: what is added to the products of values and the gradient, `[E, H]`.
    """
    if rows.first_ops == 0:
        return
    value, order = given.value, given.order
    assert value is not None
    _, heads, width = grad.shape
    key, query, key_width = _ends(given, form.score, grad)
    part_value = rows.scratch(grad, heads, width)
    part_key = rows.scratch(grad, *grad.shape[1:] if key is None else key.shape[1:])
    how = cut_heads(rows.first_ops, heads, (width, key_width), grad.element_size())
    launch = gpu.launches()
    with launch.on_device(grad):
        launch.KERNELS["attend_back"][(how.grid,)](
            value,
            *_or(grad, key, query, given.weight, given.bias, given.mask, sent),
            grad,
            kept,
            inner,
            *_or(inner, out.value, out.key, by_score, out.bias, out.mask),
            part_value,
            part_key,
            *rows.arrays,
            rows.place if order is None else order,
            rows.first_ops,
            rows.num_edges,
            heads,
            width,
            key_width,
            SCORE=form.score,
            NORMALISE=form.normalise,
            SLOPE=form.slope,
            BIASED=given.bias is not None,
            MASKED=given.mask is not None,
            SENT=sent is not None,
            ORDERED=order is not None,
            D_VALUE=out.value is not None,
            D_KEY=out.key is not None,
            D_BIAS=out.bias is not None,
            D_MASK=out.mask is not None,
            BY_SCORE=by_score is not None,
            WHOLE=max(width, key_width) <= how.cols,
            ACC=launch.ACCUMULATORS[grad.dtype],
            UNROLL=how.unroll,
            **how.options,
        )
        if out.value is not None:
            _add_parts(rows, out.value, part_value)
        if out.key is not None:
            _add_parts(rows, out.key, part_key)


def _by_target_of_vectors(
    rows: Rows, given: Tensors, form: Form, by_score: Tensor, out: Tensors
) -> None:
    """The gradients of "vector" by query and weight, of those by scores."""
    key, query, weight = given.key, given.query, given.weight
    assert key is not None
    assert query is not None
    assert weight is not None
    _, heads, width = query.shape
    if rows.first_ops == 0 or width == 0:
        if out.weight is not None:
            out.weight.zero_()
        return
    d_query = torch.empty_like(query) if out.query is None else out.query
    d_weight = torch.empty_like(query)
    parts = rows.scratch(query, heads, width), rows.scratch(query, heads, width)
    how = cut_heads(rows.first_ops, heads, (width,), query.element_size())
    launch = gpu.launches()
    with launch.on_device(query):
        launch.KERNELS["vector_back"][(how.grid,)](
            key,
            query,
            weight,
            by_score,
            d_query,
            d_weight,
            *parts,
            *rows.arrays,
            rows.first_ops,
            heads,
            width,
            SLOPE=form.slope,
            ACC=launch.ACCUMULATORS[query.dtype],
            UNROLL=how.unroll,
            **how.options,
        )
        for to, part in zip((d_query, d_weight), parts, strict=True):
            _add_parts(rows, to, part)
    if out.weight is not None:
        torch.sum(d_weight, 0, out=out.weight)
