"""Messages that a matrix of the edge's type makes (R-GCN, arXiv 1703.06103, equation 2).

`y_v = sum_r sum_u c_e W_r x_u` is computed as `sum_r W_r (sum_u c_e x_u)`: the inner sums run on
a HAG whose targets are the pairs of a node and a type that occur together, and matrices are applied
once a pair, not once an edge.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from dgl.function.reducer import SimpleReduceFunction
from dgl.nn.pytorch import TypedLinear
from torch import Tensor

from hag_plugin.dgl.aggregation.choice import (
    FIRST_TYPES,
    FIRST_WEIGHTS,
    NO_EDGES,
    NO_FACTORS,
    OTHER_WEIGHTS,
    TYPES,
    UNKNOWN_REDUCER,
    Choice,
    Ran,
)
from hag_plugin.dgl.aggregation.relation import (
    MAX_REMEMBERED,
    Relation,
    edge_index,
    num_nodes,
    ran_on,
)
from hag_plugin.dgl.aggregation.rows import is_taken, why_not_taken
from hag_plugin.hag.build import build_hag
from hag_plugin.hag.hag import HAG
from hag_plugin.modes import outside_inference
from hag_plugin.ops.aggregate import aggregate
from hag_plugin.ops.registration import is_fixed
from hag_plugin.ops.weights import factorise
from hag_plugin.recall import Recall

# Why, in words.
OTHER_LINEAR = "its layer of matrices is no TypedLinear"
LOOPS = "loops were added to the graph since its HAG was built"
OTHER_TYPES = "edge types are not one integer an edge"
NO_MATRIX = "features are not one row a node"


@dataclass(frozen=True)
class TypedGraph:
    """A graph whose targets are pairs of a node and an edge type.

    Attributes:
        edge_type: `[P]`, the type of each pair, increasing; in the dtype that edges have it.
        edges: int64 `[2, E]`, the source and the pair of each edge.
        hag: the HAG of these edges.
        joined: the HAG that sums the pairs of each node: a plain graph.
        norms: what is known of edge norms.
    """

    edge_type: Tensor
    edges: Tensor
    hag: HAG
    joined: HAG
    norms: Recall = field(default_factory=lambda: Recall(MAX_REMEMBERED))


def settle(
    graph: Any, etid: int, relation: Relation, message_func: Any, reduce_func: Any
) -> Choice:
    """For `RelGraphConv.message`, which reads "h" of the source, "etype" and "norm" of the edge.

    Only for edge types (a tensor) that came back; a norm must be a product of a number of the
    source and one of the pair, as one over the count of a node's edges of a type is.
    """
    if type(reduce_func) is not SimpleReduceFunction or reduce_func.name != "sum":
        return Choice(None, UNKNOWN_REDUCER)
    if type(message_func.__self__.linear_r) is not TypedLinear:
        return Choice(None, OTHER_LINEAR)
    if relation.self_loops is not False:
        return Choice(None, LOOPS)
    edges = graph._edge_frames[etid]
    x = graph._node_frames[graph._graph.metagraph.find_edge(etid)[0]]["h"]
    types = edges["etype"]
    if types.dim() != 1 or types.dtype.is_floating_point:
        return Choice(None, OTHER_TYPES)
    if not is_taken(x):
        return Choice(None, why_not_taken(x))
    if x.dim() != 2:
        return Choice(None, NO_MATRIX)
    if types.numel() == 0:
        return Choice(None, NO_EDGES)
    typed: TypedGraph | None = relation.memory.value(
        (types,),
        "types",
        lambda: _typed_graph(graph, etid, types, relation.options),
        reader=message_func.__self__,
    )
    if typed is None:
        return Choice(None, FIRST_TYPES)
    scales: tuple[Tensor | None, Tensor | None] = (None, None)
    if "norm" in edges:
        factors = _norm_factors(typed, edges["norm"])
        if isinstance(factors, str):
            return Choice(None, factors)
        scales = factors

    def run() -> Ran:
        sums = aggregate(x, typed.hag, source_scale=scales[0], target_scale=scales[1])
        pairs = SimpleNamespace(src={"h": sums}, data={"etype": typed.edge_type})
        rows = message_func(pairs)[reduce_func.msg_field]
        y = {reduce_func.out_field: aggregate(rows, typed.joined)}
        return Ran(y, *ran_on(typed.hag, relation.origin + TYPES))

    return Choice(run, relation.origin + TYPES)


def _typed_graph(graph: Any, etid: int, types: Tensor, options: dict[str, Any]) -> TypedGraph:
    with outside_inference(), torch.no_grad():
        num_src, num_dst = num_nodes(graph, etid)
        source, target = edge_index(graph, etid).long()
        pairs, pair = torch.unique(types.long() * num_dst + target, return_inverse=True)
        edges = torch.stack([source, pair])
        joins = torch.stack([torch.arange(len(pairs), device=pairs.device), pairs % num_dst])
        return TypedGraph(
            pairs.div(num_dst, rounding_mode="floor").to(types.dtype),
            edges,
            build_hag(edges, size=(num_src, len(pairs)), **options),
            build_hag(joins, size=(len(pairs), num_dst), method="none"),
        )


def _norm_factors(typed: TypedGraph, norm: Tensor) -> tuple[Tensor, Tensor] | str:
    """Factors of sources and pairs whose products are the norms; or why there are none."""
    column = norm.dim() == 2 and norm.shape[1] == 1
    if not column or not is_fixed(norm):
        return OTHER_WEIGHTS

    def work_out() -> tuple[Tensor, Tensor] | str:
        with outside_inference(), torch.no_grad():
            hag = typed.hag
            found = factorise(typed.edges, norm.detach().flatten(), hag.num_src, hag.num_dst)
        return NO_FACTORS if found is None else found

    factors: tuple[Tensor, Tensor] | str | None = typed.norms.value((norm,), "norm", work_out)
    return FIRST_WEIGHTS if factors is None else factors
