"""Edge weights in accelerated layers: fused where they are products of node factors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import add_self_loops

from hag_plugin.hag.build import build_hag
from hag_plugin.hag.graph import inverse_of
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.passing import plain_hag, plain_hag_there, runs_launches
from hag_plugin.hag.program import SelfLoops
from hag_plugin.layers.record import Record
from hag_plugin.ops.aggregate import aggregate
from hag_plugin.ops.registration import is_fixed
from hag_plugin.ops.weights import edge_slots, factorise, is_in_order, weighted_aggregate
from hag_plugin.pyg.aggregation.aggregators import REDUCERS
from hag_plugin.pyg.aggregation.neighbourhoods import along
from hag_plugin.recall import Passing, value_of

Weighted = tuple[Tensor, Tensor]  # an edge index `[2, E]` and a weight `[E]` for each edge


@dataclass(frozen=True, eq=False)
class WeightedGraph:
    """A graph with weights, which stands where an edge index and its weights stood.

    Attributes:
        hag: the edges, self-loops included.
        scales: factors of sources and targets whose products the weights are, or multiply; or None.
        weight: the weights in the HAG's order, where they are not products of factors alone.
        dtype: of the weights, which takes part in the dtype of the result.
        is_passing: whether the edges are met first, and may never come back.
        self_loops: which loops are still to be put there, besides those of the edges.
        loop_weight: their weights.
    """

    hag: HAG
    scales: Weighted | None
    weight: Tensor | None
    dtype: torch.dtype
    is_passing: bool = False
    self_loops: SelfLoops = False
    loop_weight: Tensor | None = None

    def propagate(self, conv: Any, x: Tensor) -> Tensor:
        """The layer's sum or mean of weighted messages."""
        x = x.to(torch.promote_types(x.dtype, self.dtype))
        monoid = REDUCERS[type(conv.aggr_module)]
        dim = conv.node_dim if conv.node_dim >= 0 else x.dim() + conv.node_dim

        def walk(rows: Tensor) -> Tensor:
            source, target = self.scales or (None, None)
            if self.weight is not None:
                return weighted_aggregate(
                    *(rows, self.hag, self.weight, monoid),
                    self_loops=self.self_loops,
                    loop_weight=self.loop_weight,
                    source_scale=source,
                    target_scale=target,
                )
            return aggregate(rows, self.hag, monoid, source_scale=source, target_scale=target)

        return along(x, dim, walk)


def weighted_graph(
    conv: Any,
    record: Record,
    session: Any,
    edges: Weighted,
    num_nodes: tuple[int, int],
    features: Any,
    passing: Callable[[Callable[[bool], Any]], Callable[[], Any]],
) -> WeightedGraph | None:
    """The graph of an edge index and weights, where one is made of it.

    Constant weights that came back to a model's session are searched for factors, once. Others,
    learned ones for example, are put in the order of the graph at each call.

    Args:
        conv: the layer.
        record: what it is.
        session: of its model.
        edges: the edge index and the weights.
        num_nodes: of sources and of targets.
        passing: of what makes the graph of edges, with its reverse or without, what makes it where
            they are met first.
    """
    edge_index, weight = edges
    if REDUCERS.get(type(conv.aggr_module)) not in ("sum", "mean") or weight.dim() != 1:
        return None
    settings = (getattr(conv, "improved", False), conv.flow, record.weights_as_given)
    key = ("weights", *num_nodes, record.self_loops(conv), record.exponents(conv), *settings)

    def weighed(weight: Tensor) -> Weighted:
        index, values = weighed_edges(conv, record, edge_index, weight, num_nodes[0])
        return (index if conv.flow == "source_to_target" else index.flip([0])), values

    if not weight.requires_grad and is_fixed(weight):
        constant: WeightedGraph | None = session.built_of(
            edges, key, lambda: of_constant(*weighed(weight), num_nodes), conv, features
        )
        if constant is not None:
            return constant

    def order(both: bool = True) -> tuple[HAG, Tensor]:
        index, _ = weighed(torch.ones_like(weight))
        hag = plain_hag(index, num_nodes, both=both)
        return hag, edge_slots(index, hag)

    is_forward, is_there = conv.flow == "source_to_target", runs_launches(edge_index)

    def order_there(both: bool) -> tuple[HAG, Tensor]:
        """Without the loops, whose number nobody there waits for."""
        index = edge_index if is_forward else edge_index.flip([0])
        hag = plain_hag_there(index, num_nodes, both=both)
        assert hag.order is not None
        return hag, inverse_of(hag.order)

    met = passing(order_there if is_there else order)
    ordered = session.built_of((edge_index,), key, order, conv, features, passing=met)
    if ordered is None:
        return None
    is_passing = type(ordered) is Passing
    hag, slots = value_of(ordered)
    if is_passing and is_there:
        ends = edge_index if is_forward else edge_index.flip([0])
        graph = without_masks(conv, record, hag, slots, ends, weight)
    else:
        graph = _in_order(hag, slots, weighed(weight)[1])
    return replace(graph, is_passing=is_passing)


def of_constant(index: Tensor, weight: Tensor, size: tuple[int, int]) -> WeightedGraph:
    """The graph of weights that stay as they are: of their factors, where there are any."""
    scales = factorise(index, weight, *size)
    if scales is not None:
        return WeightedGraph(build_hag(index, size=size), scales, None, weight.dtype)
    hag = build_hag(index, size=size, method="none")
    return _in_order(hag, edge_slots(index, hag), weight)


def met_first(index: Tensor, weight: Tensor, size: tuple[int, int], *, both: bool) -> WeightedGraph:
    """The graph of edges and weights that may never come back, with its reverse or without."""
    hag = plain_hag(index, size, both=both)
    if is_in_order(index, hag):
        return WeightedGraph(hag, None, weight.contiguous(), weight.dtype, is_passing=True)
    return replace(_in_order(hag, edge_slots(index, hag), weight), is_passing=True)


def _in_order(hag: HAG, slots: Tensor, weight: Tensor) -> WeightedGraph:
    ordered = weight.new_empty(len(weight)).index_put((slots,), weight)
    return WeightedGraph(hag, None, ordered, weight.dtype)


# What weights a layer's messages get ------------------------------------------------------------


def without_masks(
    conv: Any, record: Record, hag: HAG, slots: Tensor, edge_index: Tensor, weight: Tensor
) -> WeightedGraph:
    """The graph of edges with weights, which may be learned, as `weighed_edges` makes them, without
    a mask, whose size would have to be waited for.

    Args:
        conv: the layer.
        record: what it is.
        hag: the edges, without loops of the layer's.
        slots: where each of them lies in the HAG's order.
        edge_index: they, from source to target, `[2, E]`.
        weight: of each, `[E]`.
    """
    ordered = weight.new_empty(weight.shape).index_put((slots,), weight)
    loops, loop_weight, scales = record.self_loops(conv), None, None
    source, target = edge_index.long()
    if loops == "fill":
        filled = 2.0 if getattr(conv, "improved", False) else 1.0
        is_loop, nowhere = source == target, hag.num_dst
        loop_weight = weight.new_full((nowhere + 1,), filled)
        loop_weight = loop_weight.index_put((target.where(is_loop, nowhere),), weight)[:-1]
        weight = weight.where(~is_loop, 0.0)
    if any(record.exponents(conv)) and not record.weights_as_given:
        degree = weight.new_zeros(hag.num_dst).index_add(0, target, weight)
        degree = degree if loop_weight is None else degree + loop_weight
        scale = degree.pow(-0.5)
        scale = scale.masked_fill(scale == float("inf"), 0.0)
        scales = scale, scale
    return WeightedGraph(hag, scales, ordered, weight.dtype, False, loops, loop_weight)


def weighed_edges(
    conv: Any, record: Record, edge_index: Tensor, weight: Tensor, num_nodes: int
) -> Weighted:
    """The weights as they are given, or with loops and normalised, where the layer does that."""
    loops = record.self_loops(conv)
    if any(record.exponents(conv)) and not record.weights_as_given:
        improved = getattr(conv, "improved", False)
        index, values = gcn_norm(
            edge_index, weight, num_nodes, improved, loops == "fill", conv.flow
        )
        return index, values
    if loops == "add":
        index, values = add_self_loops(edge_index, weight, num_nodes=num_nodes)
        return index, values
    return edge_index, weight
