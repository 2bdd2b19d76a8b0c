"""Rows of source nodes, aggregated on the HAG of an edge type, and what its weights come to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hag_plugin.devices import kind_of
from hag_plugin.dgl.aggregation.choice import (
    FIRST,
    FIRST_WEIGHTED,
    NO_EDGES,
    NO_FACTORS,
    NOT_FINITE,
    OTHER_WEIGHTS,
    TIES,
    WEIGHTED,
    Choice,
    LeftToDGL,
    Ran,
)
from hag_plugin.dgl.aggregation.relation import Relation, edge_index, num_nodes, ran_on
from hag_plugin.dgl.aggregation.ties import tie_rule
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.passing import Messages
from hag_plugin.limits import limits
from hag_plugin.modes import outside_inference
from hag_plugin.ops import gpu
from hag_plugin.ops.aggregate import Ties, aggregate
from hag_plugin.ops.attention import attend
from hag_plugin.ops.edge_list import EdgeList
from hag_plugin.ops.registration import DTYPES, is_fixed, is_transformed, needs_grad, number
from hag_plugin.ops.weights import factorise

REDUCERS = ("sum", "mean", "max", "min")


def settle_rows(
    graph: Any,
    etid: int,
    relation: Relation,
    x: Tensor,
    reduce: Any,
    *,
    empty_rows_zero: bool = True,
    scales: tuple[Tensor | None, Tensor | None] = (None, None),
    because: str = "",
) -> Choice:
    """What rows of any shape, `[N]`, `[N, F]` or `[N, H, D]`, are aggregated on.

    Args:
        graph: the graph that owns the edge type.
        etid: number of the edge type.
        relation: that of the edge type.
        x: the rows.
        reduce: one of `REDUCERS`.
        empty_rows_zero: nodes without edges get 0 from max and min; otherwise the infinity that
            DGL merges edge types with.
        scales: of the sources and of the targets.
        because: what is to be added to the reason.
    """
    if not is_taken(x):
        return Choice(None, why_not_taken(x))
    extremum = reduce in ("max", "min")
    if relation.is_passing and not first_met_pays(x, extremum, needs_grad(x)):
        return Choice(None, FIRST)
    ties: Ties = "first"
    if extremum and (needs_grad(x) or is_transformed()):
        rule, reason = (None, TIES) if gpu.is_home(x) else tie_rule(graph, etid, relation, x.dtype)
        if rule is None:
            return Choice(None, reason.format(reduce))
        ties = rule

    def run() -> Ran:
        hag = relation.hag(graph, etid)
        y = aggregate(
            x.reshape(x.shape[0], -1) if x.dim() != 2 else x,
            hag,
            reduce,
            self_loops=relation.self_loops,
            source_scale=scales[0],
            target_scale=scales[1],
            ties=ties,
        )
        if extremum:
            # DGL's max and min skip NaN and turn infinities into 0: rare, and left to it.
            if number(torch.isfinite(y).all()) is False:  # in a batch of torch.vmap nobody knows
                raise LeftToDGL(NOT_FINITE)
            if not empty_rows_zero:
                y = _with_infinite_empty_rows(y, hag, relation, reduce)
        ran = ran_on(hag, reason_of_run, relation.self_loops, idempotent=extremum)
        return Ran(y.reshape(y.shape[0], *x.shape[1:]), *ran)

    reason_of_run = relation.origin + because
    return Choice(run, reason_of_run)


def first_met_pays(x: Tensor, extremum: bool, derived: bool) -> bool:
    """Whether rows are aggregated sooner than by DGL over a graph that is met first; on a GPU they
    are taken not to be.

    Args:
        x: the rows of the sources.
        extremum: whether their maximum or minimum is taken.
        derived: whether gradients flow back to them.
    """
    if x.dtype != torch.float32 or not x.is_cpu or x.dim() < 2 or is_transformed():
        return False
    if not extremum:
        return derived and x.nbytes >= limits.dgl_gradient_bytes
    return not derived and x.nbytes >= limits.dgl_row_bytes * len(x)


def _with_infinite_empty_rows(y: Tensor, hag: HAG, relation: Relation, reduce: str) -> Tensor:
    empty = hag.degree(relation.self_loops) == 0
    return y.masked_fill(empty.unsqueeze(-1), float("-inf" if reduce == "max" else "inf"))


def is_taken(x: Tensor) -> bool:
    """Whether features are of a kind that `aggregate` takes."""
    return (
        x.layout == torch.strided
        and x.dtype in DTYPES
        and (x.is_cpu or gpu.is_home(x))
        and x.dim() >= 1
        and x.numel() > 0
        and not hasattr(type(x), "__tensor_flatten__")
    )


def why_not_taken(x: Tensor) -> str:
    """Why they are not."""
    if not (x.is_cpu or gpu.is_home(x)):
        return f"DGL's own kernels run on {x.device.type}"
    if x.dtype not in DTYPES:
        return f"features of dtype {str(x.dtype).removeprefix('torch.')}"
    if x.dim() < 1 or x.numel() == 0:
        return "there are no features"
    return "features are no plain dense tensor"


# Weights ----------------------------------------------------------------------------------------


def settle_weighted_rows(
    graph: Any, etid: int, relation: Relation, x: Tensor, weight: Tensor, reduce: str
) -> Choice:
    """What rows are summed on that are multiplied with weights of their edges, whatever these are.

    Such weights share nothing: the graph is summed as it is. It is put in order once it comes back,
    or where that pays at once.

    Args:
        graph: the graph that owns the edge type.
        etid: number of the edge type.
        relation: that of the edge type.
        x: the rows, `[N]`, `[N, F]` or `[N, H, D]`, of a kind that is taken.
        weight: one number an edge, or `[E, H, 1]`.
        reduce: "sum" or "mean".
    """
    num_edges, num_heads = graph._graph.num_edges(etid), heads_of(x, weight)
    if num_heads is None or len(weight) != num_edges or x.dtype == torch.float16:
        return Choice(None, OTHER_WEIGHTS)
    if num_edges == 0:
        return Choice(None, NO_EDGES)
    heads: int = num_heads
    messages = Messages(
        num_edges,
        num_nodes(graph, etid),
        x.element_size() * x[0].numel(),
        torch.is_grad_enabled(),
        heads=heads,
        in_kernels=True,
        given=heads,
        device=kind_of(x.device).name,
    )
    edges = relation.attended(graph, etid, "weights", messages.pays)
    if edges is None:
        return Choice(None, FIRST_WEIGHTED)
    found: EdgeList = edges

    def run() -> Ran:
        y = attend(
            found.hag,
            x.reshape(len(x), heads, x.shape[1:].numel() // max(heads, 1)),
            bias=weight.reshape(num_edges, heads),
            order=found.order(lambda: edge_index(graph, etid)),
            normalise="none",
        )
        y = y.reshape(len(y), *x.shape[1:])
        if reduce == "mean":
            degree = found.hag.degree().clamp(min=1).to(y.dtype)
            y = y / degree.view(-1, *[1] * (y.dim() - 1))
        return Ran(y, "plain", relation.origin + WEIGHTED)

    return Choice(run, relation.origin + WEIGHTED)


def heads_of(x: Tensor, weight: Tensor) -> int | None:
    """In how many heads rows are weighted; None where weights are not as many for each edge."""
    if weight.dtype != x.dtype or not is_taken(weight) or weight.dim() > x.dim():
        return None
    if weight.numel() == len(weight):
        return 1
    if weight.dim() == x.dim() and weight.shape[1:] == (*x.shape[1:-1], 1):
        return x.shape[1:-1].numel()
    return None


def is_scalar_weight(weight: Tensor, x: Tensor) -> bool:
    """Whether weights are fixed and one number an edge, whatever the shape of the features."""
    return (
        weight.dtype == x.dtype
        and 1 <= weight.dim() <= x.dim()
        and weight.numel() == weight.shape[0]
        and is_fixed(weight)
    )


def edge_factors(
    graph: Any, etid: int, relation: Relation, weight: Tensor
) -> tuple[Tensor | None, Tensor | None] | None:
    """Factors of sources and targets whose products are the weights; None where there are none.

    Weights that are all the same are recognised at once, others when the tensor comes back; on a
    GPU, for which one would have to wait, so are those.
    """
    with outside_inference():  # is_fixed: no tracer watches it
        flat = weight.detach().flatten()
        constant = None if gpu.is_home(weight) else _constant(flat)
    if constant is not None:
        if constant == 1.0:
            return None, None
        return None, flat[:1].expand(num_nodes(graph, etid)[1])

    def work_out() -> tuple[Tensor, Tensor] | str:
        with outside_inference(), torch.no_grad():
            found = factorise(edge_index(graph, etid), flat, *num_nodes(graph, etid))
        return NO_FACTORS if found is None else found  # which is kept, as None is not

    factors: tuple[Tensor, Tensor] | str | None
    factors = relation.memory.value((weight,), "weight", work_out)
    return factors if isinstance(factors, tuple) else None


def _constant(weight: Tensor) -> float | None:
    """The value of all weights, or None. Most tensors are told by three of their values."""
    if weight.numel() == 0:
        return None
    first = float(weight[0])
    if first != float(weight[weight.numel() // 2]) or first != float(weight[-1]):
        return None
    low, high = torch.aminmax(weight)
    return first if bool(low == high) else None
