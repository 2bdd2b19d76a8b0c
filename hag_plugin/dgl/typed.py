"""Messages of a source node and the type of its edge (R-GCN, arXiv 1703.06103, equation 2).

They are computed once for each source and type that occur together, not once an edge, and summed on
a HAG whose sources are those pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from dgl.function.reducer import SimpleReduceFunction
from torch import Tensor

from hag_plugin.aggregate import aggregate
from hag_plugin.build import build_hag
from hag_plugin.dgl.edge_data import EdgeDataCache
from hag_plugin.dgl.messages import Outputs, is_taken
from hag_plugin.dgl.relation import Relation, edge_index, num_nodes
from hag_plugin.hag import HAG, outside_inference
from hag_plugin.weights import factorise


@dataclass(frozen=True)
class TypedGraph:
    """A graph whose sources are pairs of a source node and an edge type.

    Attributes:
        source: int64 `[P]`, the node of each pair. Pairs are sorted by type, then by node.
        edge_type: `[P]`, their type, in the dtype that edges have it.
        edges: int64 `[2, E]`, the pair and the target of each edge.
        hag: their HAG.
        norms: the factors of edge norms.
    """

    source: Tensor
    edge_type: Tensor
    edges: Tensor
    hag: HAG
    norms: EdgeDataCache = field(default_factory=EdgeDataCache)


class Rows(Mapping[str, Tensor]):
    """Features as a message function sees them: the rows of a frame that belong to the pairs."""

    def __init__(self, frame: Mapping[str, Tensor], chosen: Tensor) -> None:
        self.frame = frame
        self.chosen = chosen

    def __getitem__(self, key: str) -> Tensor:
        return self.frame[key][self.chosen]

    def __iter__(self) -> Iterator[str]:
        return iter(self.frame)

    def __len__(self) -> int:
        return len(self.frame)


def run(
    graph: Any, etid: int, relation: Relation, message_func: Any, reduce_func: Any
) -> Outputs | None:
    """Runs `RelGraphConv.message`, which reads "h" of the source, "etype" and "norm" of the edge.

    Only for edge types (a tensor) that came back; a norm must be a product of a number of the pair
    and one of the target, as the usual ones are.
    """
    if type(reduce_func) is not SimpleReduceFunction or reduce_func.name != "sum":
        return None
    frames, edges = graph._node_frames, graph._edge_frames[etid]
    frame = frames[graph._graph.metagraph.find_edge(etid)[0]]
    types = edges["etype"]
    if relation.self_loops is not False or types.dim() != 1 or not is_taken(frame["h"]):
        return None
    typed: TypedGraph | None = relation.edge_data.value(
        "types", types, lambda: _typed_graph(graph, etid, types, relation.options)
    )
    if typed is None:
        return None
    scales: tuple[Tensor | None, Tensor | None] | None = (None, None)
    if "norm" in edges:
        scales = _norm_factors(typed, edges["norm"])
        if scales is None:
            return None
    pairs = SimpleNamespace(src=Rows(frame, typed.source), data={"etype": typed.edge_type})
    rows = message_func(pairs)[reduce_func.msg_field]
    if not is_taken(rows) or rows.dim() != 2:
        return None
    source_scale, target_scale = scales
    y = aggregate(rows, typed.hag, source_scale=source_scale, target_scale=target_scale)
    return {reduce_func.out_field: y}


def _typed_graph(graph: Any, etid: int, types: Tensor, options: dict[str, Any]) -> TypedGraph:
    with outside_inference(), torch.no_grad():
        num_src, num_dst = num_nodes(graph, etid)
        source, target = edge_index(graph, etid).long()
        pairs, pair = torch.unique(types.long() * num_src + source, return_inverse=True)
        edges = torch.stack([pair, target])
        hag = build_hag(edges, size=(len(pairs), num_dst), **options)
        return TypedGraph(
            pairs % num_src, pairs.div(num_src, rounding_mode="floor").to(types.dtype), edges, hag
        )


def _norm_factors(typed: TypedGraph, norm: Tensor) -> tuple[Tensor, Tensor] | None:
    if norm.numel() != norm.shape[0] or (torch.is_grad_enabled() and norm.requires_grad):
        return None

    def work_out() -> tuple[Tensor, Tensor] | None:
        with outside_inference(), torch.no_grad():
            hag = typed.hag
            return factorise(typed.edges, norm.detach().flatten(), hag.num_src, hag.num_dst)

    found: tuple[Tensor, Tensor] | None = typed.norms.value("norm", norm, work_out)
    return found
