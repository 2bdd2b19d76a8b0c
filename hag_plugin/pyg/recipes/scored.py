"""Graphs whose edges are scored by a layer of attention, in place of its edge index."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.utils import add_self_loops, remove_self_loops

from hag_plugin.hag.hag import HAG
from hag_plugin.hag.passing import plain_hag
from hag_plugin.modes import outside_inference
from hag_plugin.ops.attention import attend
from hag_plugin.ops.weights import edge_slots

EdgeType = tuple[str, str, str]


class EdgeList:
    """The edges that a layer attends over, loops of its own included, as it has them.

    Attributes:
        hag: their graph, of which no HAG is searched.
        weight: what the layer multiplies attention with, `[E]`, where it normalises its edges.
        loops: how many loops the layer added behind the edges that are none.
    """

    def __init__(self, hag: HAG, *, weight: Tensor | None = None, loops: int = 0) -> None:
        self.hag = hag
        self.weight = weight
        self.loops = loops
        self._order: Tensor | None = None
        self._is_ordered = False

    def order(self, edges: Callable[[], Tensor] | None) -> Tensor | None:
        """The place of the edge in each of the graph's slots, `[E]`; None: in this order.

        Args:
            edges: gives them, `[2, E]`. Asked the first time only. None: in the graph's order.
        """
        if not self._is_ordered:
            if edges is not None:
                with outside_inference():
                    slots = edge_slots(edges(), self.hag)
                    self._order = torch.empty_like(slots)
                    self._order[slots] = torch.arange(len(slots))
            self._is_ordered = True
        return self._order


@dataclass(frozen=True, eq=False)
class ScoredGraph:
    """A graph whose edges are scored, which stands where an edge index stood.

    Attributes:
        edges: its edges, as long as the edge index that they were made of.
        edge_index: that edge index, `[2, E]`.
        is_passing: whether it is met first, and may never come back.
    """

    edges: EdgeList
    edge_index: Tensor
    is_passing: bool = False

    @property
    def hag(self) -> HAG:
        """The graph of the edges."""
        return self.edges.hag

    def index(self) -> Tensor:
        """The edges as stock has them, the loops that it adds included: `[2, E]`."""
        if not self.edges.loops:
            return self.edge_index
        index, _ = looped(self.edge_index, None, self.edges.loops)
        return index

    def order(self) -> Tensor | None:
        """As `EdgeList.order`."""
        return self.edges.order(self.index)

    def values(self, conv: Any, edge_attr: Tensor | None) -> Tensor | None:
        """Values of edges with those that the layer fills in for loops."""
        if edge_attr is None or not self.edges.loops:
            return edge_attr
        return looped(self.edge_index, edge_attr, self.edges.loops, conv.fill_value)[1]

    def attend(self, conv: Any, value: Tensor, **how: Any) -> Tensor:
        """`ops.attention.attend` over the edges, with the layer's dropout and weights.

        The mask of dropout is the one that stock draws from the same state of the generator.
        """
        mask, p = None, getattr(conv, "dropout", 0.0)
        weight = how.pop("edge_weight", None)
        if p > 0 and conv.training:
            of_scores = value.new_ones(self.hag.num_edges, value.shape[1], dtype=_common(how))
            mask = F.dropout(of_scores, p)
        if weight is not None:
            weight = weight.view(-1, 1)
            mask = weight if mask is None else mask * weight
        of_edges = (mask, how.get("bias"), how.get("edges"))
        is_ordered = any(each is not None for each in of_edges)
        order = self.order() if is_ordered else None
        how |= {"mask": mask, "value": value}
        dtype = _common(how)
        numbers: dict[str, Any] = {
            k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in how.items()
        }
        return attend(self.hag, order=order, **numbers)


@dataclass(frozen=True, eq=False)
class ScoredTypes:
    """The same of the edges of several types, each with sources of its own.

    Attributes:
        edges: of all types. Sources are counted type by type of edges, targets of nodes.
        types: of edges, in this order.
    """

    edges: EdgeList
    types: tuple[EdgeType, ...]


def _common(values: Mapping[str, Any]) -> torch.dtype:
    """The dtype that the tensors among some values promote each other to, as stock's do."""
    dtypes = (value.dtype for value in values.values() if isinstance(value, Tensor))
    return reduce(torch.promote_types, dtypes)


def looped(
    edge_index: Tensor, values: Tensor | None, num_nodes: int, fill_value: Any = None
) -> tuple[Tensor, Tensor | None]:
    """Edges and their values with exactly one loop on each node, the loops last."""
    index, kept = remove_self_loops(edge_index, values)
    looped: tuple[Tensor, Tensor | None] = add_self_loops(
        index, kept, fill_value=fill_value, num_nodes=num_nodes
    )
    return looped


def joined_edges(graphs: Mapping[EdgeType, Tensor], sizes: Mapping[str, int]) -> EdgeList:
    """The edges of several types as one graph's.

    Args:
        graphs: an edge index `[2, E]` for each type of edges.
        sizes: the number of nodes of each type, in the order in which targets are counted.
    """
    starts = dict(zip(sizes, accumulate(sizes.values(), initial=0), strict=False))
    parts, num_src = [], 0
    for (source, _, target), index in graphs.items():
        if index.numel() and int(index.max(dim=1).values[0]) >= sizes[source]:
            raise ValueError(f"an edge from {source!r} has a source beyond {sizes[source]}")
        if index.numel() and int(index.max(dim=1).values[1]) >= sizes[target]:
            raise ValueError(f"an edge to {target!r} has a target beyond {sizes[target]}")
        if index.numel() and int(index.min()) < 0:
            raise ValueError("an edge has a negative id")
        parts.append(index.long() + torch.tensor([[num_src], [starts[target]]]))
        num_src += sizes[source]
    joined = torch.cat(parts, dim=1)
    return EdgeList(plain_hag(joined, (num_src, sum(sizes.values()))))
