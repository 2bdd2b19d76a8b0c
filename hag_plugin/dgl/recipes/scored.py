"""Graphs whose edges are scored by a layer of attention, in place of DGL's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hag_plugin.dgl.aggregation.relation import edge_index, num_nodes
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.passing import plain_hag
from hag_plugin.modes import outside_inference
from hag_plugin.ops.attention import attend
from hag_plugin.ops.edge_list import EdgeList


@dataclass(frozen=True, eq=False)
class ScoredGraph:
    """A graph of one edge type whose edges are scored.

    Attributes:
        edges: its edges.
        graph: as DGL has it.
    """

    edges: EdgeList
    graph: Any

    @property
    def hag(self) -> HAG:
        """The graph of the edges."""
        return self.edges.hag

    def targets(self, rows: Tensor) -> Tensor:
        """Of rows of all nodes those of the targets, which come first in a block."""
        return rows[: self.hag.num_dst] if self.graph.is_block else rows

    def attend(
        self,
        value: Tensor,
        *,
        drop: nn.Dropout | None = None,
        edge_weight: Tensor | None = None,
        **how: Any,
    ) -> Tensor:
        """`ops.attention.attend` over the edges.

        Args:
            value: `[N_src, H, C]`.
            drop: the dropout of attention. Its mask is the one that stock draws from the same state
                of the generator.
            edge_weight: what attention is multiplied with, `[E]`, in the order of DGL's edges.
            **how: as for `attend`; what is given of edges is in the order of DGL's.
        """
        of_edges, mask = (self.hag.num_edges, value.shape[1]), None
        if drop is not None and drop.training and drop.p > 0:
            mask = drop(value.new_ones(of_edges))
        if edge_weight is not None:
            weights = edge_weight.view(-1, 1).expand(of_edges)
            mask = weights if mask is None else mask * weights
        order = None
        if any(each is not None for each in (mask, how.get("bias"), how.get("edges"))):
            order = self.edges.order(lambda: edge_index(self.graph, 0))
        return attend(self.hag, value, mask=mask, order=order, **how)


class TypedEdges(EdgeList):
    """Edges whose sources are the pairs of a node and a type that occur.

    Attributes:
        nodes: int64 `[P]`, the node of each pair.
        types: int64 `[P]`, its type, increasing.
    """

    def __init__(self, hag: HAG, nodes: Tensor, types: Tensor) -> None:
        super().__init__(hag)
        self.nodes = nodes
        self.types = types

    def by_type(self, linears: Iterable[Any], rows: Tensor) -> Tensor:
        """Rows of nodes `[N, H, D]`, each head through a layer of its own that has a matrix for
        each type: `[P, H, D]`."""
        heads = zip(linears, rows.unbind(dim=1), strict=True)
        found = [linear(row.index_select(0, self.nodes), self.types, True) for linear, row in heads]
        return torch.stack(found, dim=1)


def typed_edges(graph: Any, types: Tensor, both: bool = True) -> TypedEdges:
    """The edges of a graph of one edge type, each of which has a type of its own.

    Args:
        graph: as DGL has it.
        types: int64 `[E]`, in the order of its edges.
        both: whether their reverse is made, too, which gradients need.
    """
    with outside_inference(), torch.no_grad():
        num_src, num_dst = num_nodes(graph, 0)
        source, target = edge_index(graph, 0).long()
        pairs, pair = torch.unique(types.detach() * num_src + source, return_inverse=True)
        hag = plain_hag(torch.stack([pair, target]), (len(pairs), num_dst), both=both)
        return TypedEdges(hag, pairs % num_src, pairs.div(num_src, rounding_mode="floor"))
