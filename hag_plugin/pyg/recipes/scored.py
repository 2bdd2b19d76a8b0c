"""Graphs whose edges are scored by a layer of attention, in place of its edge index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import add_self_loops, remove_self_loops, scatter, to_edge_index
from torch_geometric.utils.loop import compute_loop_attr

from hag_plugin.hag.gpu.met_once import OUT_OF_RANGE
from hag_plugin.hag.graph import with_own_loops
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.passing import plain_hag, plain_hag_there, runs_launches
from hag_plugin.layers.record import Record
from hag_plugin.ops.attention import attend
from hag_plugin.ops.edge_list import EdgeList, isolated
from hag_plugin.ops.weights import is_in_order

EdgeType = tuple[str, str, str]


@dataclass(frozen=True, eq=False)
class ScoredGraph:
    """A graph whose edges are scored, which stands where an edge index stood.

    Attributes:
        edges: its edges, as long as the edge index that they were made of.
        edge_index: that edge index, `[2, E]`.
    """

    edges: EdgeList
    edge_index: Tensor

    @property
    def hag(self) -> HAG:
        """The graph of the edges."""
        return self.edges.hag

    def index(self) -> Tensor:
        """The edges as stock has them, the loops that it adds included: `[2, E]`."""
        if not self.edges.loops:
            return self.edge_index
        return with_own_loops(self.edge_index, self.edges.loops)

    def order(self) -> Tensor | None:
        """As `EdgeList.order`."""
        return self.edges.order(self.index)

    def isolated(self) -> Tensor | None:
        """Which targets have no edge, bool `[N_dst]`. None: each has one."""
        if self.edges.loops and self.hag.is_square:
            return None
        return isolated(self.hag)

    def values(self, conv: Any, edge_attr: Tensor | None) -> Tensor | None:
        """Values of edges with those that the layer fills in for loops."""
        if edge_attr is None or not self.edges.loops:
            return edge_attr
        return with_values_of_loops(self.edge_index, edge_attr, self.edges.loops, conv.fill_value)

    def dropped(self, heads: int, like: Tensor, p: float, dtype: torch.dtype) -> Tensor:
        """A mask of dropout for the edges and heads, as stock draws it: `[E, H]`."""
        return F.dropout(like.new_ones(self.hag.num_edges, heads, dtype=dtype), p)

    def attend(self, conv: Any, value: Tensor, **how: Any) -> Tensor:
        """`ops.attention.attend` over the edges, with the layer's dropout and weights.

        The mask of dropout is the one that stock draws from the same state of the generator.

        Args:
            conv: the layer.
            value: as of `attend`.
            how: its other arguments; besides, the probability `dropout`, if it is not the layer's
                attribute, whether it is in `training`, and `edge_weight` `[E]`.
        """
        mask, p = None, how.pop("dropout", getattr(conv, "dropout", 0.0))
        training = how.pop("training", conv.training)
        weight = how.pop("edge_weight", None)
        dtype = dtype_of_scores(how, value.device)
        if p > 0 and training:
            mask = self.dropped(value.shape[1], value, p, dtype)
        if weight is not None:
            weight = weight.view(-1, 1)
            mask = weight if mask is None else mask * weight
        of_edges = (mask, how.get("bias"), how.get("edges"))
        is_ordered = any(each is not None for each in of_edges)
        order = self.order() if is_ordered else None
        out = attend(self.hag, order=order, **promoted(how | {"mask": mask, "value": value}))
        factors = {"value": value, "mask": mask, "scores": value.new_empty(0, dtype=dtype)}
        return out.to(common_dtype(factors))


class PaddedScores(ScoredGraph):
    """A graph whose edges are scored, of which it is not known here how many there are.

    With loops of the layer's own it has a row for each edge that it is given, and then one for each
    of those; the rows of loops that it is given are of no edge.
    """

    def index(self) -> Tensor:
        """The ends of each row, `[2, E]`."""
        if not self.edges.loops:
            return self.edge_index
        loops = torch.arange(self.edges.loops, device=self.edge_index.device)
        return torch.cat([self.edge_index, loops.to(self.edge_index).expand(2, -1)], dim=1)

    def counts(self) -> Tensor:
        """Whether a row is of an edge, bool `[E]`."""
        source, target = self.edge_index
        if not self.edges.loops:
            return torch.ones_like(source, dtype=torch.bool)
        of_own = torch.ones(self.edges.loops, dtype=torch.bool, device=source.device)
        return torch.cat([source != target, of_own])

    def normalised(self, dtype: torch.dtype) -> Tensor:
        """The weight of each row that `gcn_norm` gives the edges, `[E]`."""
        source, target = self.index().long()
        counts = self.counts().to(dtype)
        scale = counts.new_zeros(self.hag.num_dst).index_add(0, target, counts).pow(-0.5)
        scale = scale.masked_fill(scale == float("inf"), 0.0)
        return scale[source] * counts * scale[target]

    def dropped(self, heads: int, like: Tensor, p: float, dtype: torch.dtype) -> Tensor:
        """As of a `ScoredGraph`: stock draws for the edges that there are, one after the other."""
        drawn = super().dropped(heads, like, p, dtype)
        if not self.edges.loops:
            return drawn
        return drawn[self.counts().cumsum(0).sub(1).clamp(min=0)]

    def values(self, conv: Any, edge_attr: Tensor | None) -> Tensor | None:
        """A value for each row, of those of the edges that it is given."""
        num_nodes = self.edges.loops
        if edge_attr is None or not num_nodes:
            return edge_attr
        source, target = self.edge_index.long()
        is_loop = source == target
        if isinstance(conv.fill_value, str):
            column = target.where(~is_loop & (target < num_nodes), num_nodes)
            filled = scatter(edge_attr, column, 0, num_nodes + 1, conv.fill_value)[:-1]
        else:
            filled = compute_loop_attr(
                self.edge_index, edge_attr, num_nodes, False, conv.fill_value
            )
        is_loop = is_loop.view(-1, *[1] * (edge_attr.dim() - 1))
        return torch.cat([edge_attr.masked_fill(is_loop, 0), filled])


@dataclass(frozen=True, eq=False)
class ScoredTypes:
    """The same of the edges of several types, each with sources of its own.

    Attributes:
        edges: of all types. Sources are counted type by type of edges, targets of nodes.
        types: of edges, in this order.
    """

    edges: EdgeList
    types: tuple[EdgeType, ...]


class How(NamedTuple):
    """What a layer attends over, of the edges that it is given.

    Attributes:
        loops: whether it puts one loop on each node in place of those there are.
        weights: the dtype of the weights that it gives edges by its nodes' degrees, as GCNConv
            does, which keeps loops as they are and adds those that are missing. None: it gives
            them none.
    """

    loops: bool
    weights: torch.dtype | None

    @classmethod
    def of(cls, conv: Any, record: Record, dtype: torch.dtype) -> How:
        """That of a layer whose features have a dtype."""
        weighs = any(record.exponents(conv))
        return cls(record.self_loops(conv) is not False, dtype if weighs else None)

    @property
    def changes(self) -> bool:
        """Whether it attends over other edges than it is given, or weighs them."""
        return self != How(False, None)


def edges_of(edge_index: Tensor, size: tuple[int, int], how: How, *, both: bool = True) -> EdgeList:
    """What a layer attends over, made of an edge index.

    Args:
        edge_index: int32 or int64 `[2, E]`.
        size: the numbers of sources and targets.
        how: the layer takes it.
        both: whether gradients flow back over the reverse.
    """
    if how.weights is not None:
        index, weight = gcn_norm(
            edge_index, None, size[0], add_self_loops=how.loops, dtype=how.weights
        )
        edges = EdgeList(plain_hag(index, size, both=both), weight=weight)
        edges.order(lambda: index)  # while there is this index
        return edges
    loops = min(size) if how.loops else 0
    return EdgeList(plain_hag(edge_index, size, both=both, loops=loops), loops=loops)


def edges_there(
    edge_index: Tensor,
    size: tuple[int, int],
    how: How,
    *,
    both: bool = True,
    draws: bool = False,
) -> EdgeList:
    """The same of an edge index that is met first, made where it is: on a device that runs launches
    the host waits for nothing.

    Args:
        edge_index: as of `edges_of`.
        size: likewise.
        how: likewise.
        both: likewise.
        draws: whether the layer draws some of its edges, as stock's code does, which waits for
            their number.
    """
    if not runs_launches(edge_index):
        return edges_of(edge_index, size, how, both=both)
    loops = min(size) if how.loops else 0
    if draws and loops:
        index = with_own_loops(edge_index, loops)
        return IndexedEdges(plain_hag(index, size, both=both), index)
    hag = plain_hag_there(edge_index, size, both=both, loops=loops)
    edges = EdgeList(hag, loops=loops)
    if how.weights is not None:
        edges.weight = PaddedScores(edges, edge_index).normalised(how.weights)
    return edges


def scored(edges: EdgeList, edge_index: Tensor) -> ScoredGraph:
    """What stands for an edge index `[2, E]`, of the edges that were made of it."""
    if isinstance(edges, IndexedEdges):
        return ScoredGraph(edges, edges.edge_index)
    return (PaddedScores if edges.hag.is_unread else ScoredGraph)(edges, edge_index)


class IndexedEdges(EdgeList):
    """Edges with an index of their own, which is not the one that the layer was given.

    Attributes:
        edge_index: they, loops of the layer's own included, `[2, E]`.
    """

    def __init__(self, hag: HAG, edge_index: Tensor, *, is_ordered: bool = False) -> None:
        super().__init__(hag, is_ordered=is_ordered)
        self.edge_index = edge_index


class MatrixEdges(IndexedEdges):
    """The edges of a sparse matrix, of which a layer makes them anew at each call.

    Attributes:
        values: of the matrix with its loops, `[E, ...]`.
    """

    def __init__(self, hag: HAG, edge_index: Tensor, values: Tensor) -> None:
        super().__init__(hag, edge_index, is_ordered=is_in_order(edge_index, hag))
        self.values = values


def edges_of_matrix(adj_t: Tensor, conv: Any, how: How, *, both: bool = True) -> MatrixEdges:
    """What a layer attends over, made of a sparse matrix as stock does it, which adds up entries
    that stand twice where it puts loops.

    Args:
        adj_t: rows are targets.
        conv: the layer.
        how: it takes it.
        both: whether gradients flow back over the reverse.

    Raises:
        ValueError: stock does not take such a matrix.
    """
    if how.weights is not None:
        dtype = how.weights
        adj_t, _ = gcn_norm(adj_t, None, adj_t.shape[1], add_self_loops=how.loops, dtype=dtype)
    elif how.loops:
        adj_t, _ = remove_self_loops(adj_t)
        adj_t, _ = add_self_loops(adj_t, fill_value=getattr(conv, "fill_value", None))
    index, values = to_edge_index(adj_t)
    edge_index = index.flip(0)
    hag = plain_hag(edge_index, (adj_t.shape[1], adj_t.shape[0]), both=both)
    edges = MatrixEdges(hag, edge_index, values)
    if how.weights is not None:
        edges.weight = values
    return edges


def edges_of_hag(hag: HAG, how: How) -> ScoredGraph:
    """The same where a layer is given a HAG: of its edges, in its order. Kept with the HAG."""
    edge_index = hag.own_edge_index

    def make() -> EdgeList:
        if how.changes:
            return edges_of(edge_index, (hag.num_src, hag.num_dst), how)
        return EdgeList(hag, is_ordered=True)

    return ScoredGraph(hag.kept(("edges attended over", *how), make), edge_index)


def common_dtype(values: Mapping[str, Any]) -> torch.dtype:
    """The dtype that the tensors among some values promote each other to, as stock's do."""
    dtypes = (value.dtype for value in values.values() if isinstance(value, Tensor))
    return reduce(torch.promote_types, dtypes)


def dtype_of_scores(how: Mapping[str, Any], device: torch.device) -> torch.dtype:
    """The dtype of stock's attention that is made of these arguments of `attend`."""
    if not torch.is_autocast_enabled(device.type):
        return common_dtype(how)
    # What features of edges are multiplied with makes them of the dtype that products have, and
    # some devices compute a sum, or what is made of scores, in a wider one.
    made = {name: t for name, t in how.items() if name not in ("edges", "projection")}
    scores = torch.zeros(0, 1, dtype=common_dtype(made), device=device)
    if how["score"] in ("dot", "vector"):
        scores = scores.sum(dim=-1)
    of_softmax = how.get("normalise", "softmax") == "softmax"
    return (scores.exp() if of_softmax else scores.tanh()).dtype


def promoted(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with their tensors in that dtype."""
    dtype = common_dtype(values)
    return {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in values.items()}


def with_values_of_loops(
    edge_index: Tensor, values: Tensor, num_nodes: int, fill_value: Any
) -> Tensor:
    """Values of edges with those of exactly one loop on each node, the loops last."""
    index, kept = remove_self_loops(edge_index, values)
    filled: Tensor
    _, filled = add_self_loops(index, kept, fill_value=fill_value, num_nodes=num_nodes)
    return filled


def joined_index(graphs: Mapping[EdgeType, Tensor], sizes: Mapping[str, int]) -> Tensor:
    """The edges of several types as one graph's, int64 `[2, E]`: sources are counted type by type
    of edges, targets by their own.

    Args:
        graphs: an edge index `[2, E]` for each type of edges.
        sizes: the number of nodes of each type, in the order in which targets are counted.
    """
    starts = dict(zip(sizes, accumulate(sizes.values(), initial=0)))  # noqa: B905  (as in `swap`)
    parts, num_src = [], 0
    for (source, _, target), (sources, targets) in graphs.items():
        parts.append(torch.stack([sources.long() + num_src, targets.long() + starts[target]]))
        num_src += sizes[source]
    return torch.cat(parts, dim=1)


def joined_size(graphs: Iterable[EdgeType], sizes: Mapping[str, int]) -> tuple[int, int]:
    """The numbers of its sources and targets."""
    return sum(sizes[source] for source, _, _ in graphs), sum(sizes.values())


def check_ends(
    graphs: Sequence[Tensor], ends: Sequence[tuple[str, str]], sizes: Mapping[str, int]
) -> None:
    """Raises ValueError where an edge index `[2, E]` of these types of nodes leads beyond them; a
    device that runs launches asserts it."""
    for index, (source, target) in zip(graphs, ends, strict=True):
        if runs_launches(index):
            inside = (index[0] < sizes[source]) & (index[1] < sizes[target]) & (index >= 0)
            torch._assert_async(inside.all(), OUT_OF_RANGE)
        elif index.numel():
            least, most = index.aminmax(dim=1)
            if int(most[0]) >= sizes[source]:
                raise ValueError(f"an edge from {source!r} has a source beyond {sizes[source]}")
            if int(most[1]) >= sizes[target]:
                raise ValueError(f"an edge to {target!r} has a target beyond {sizes[target]}")
            if int(least.min()) < 0:
                raise ValueError("an edge has a negative id")


def joined_edges(graphs: Mapping[EdgeType, Tensor], sizes: Mapping[str, int]) -> EdgeList:
    """The graph of `joined_index`.

    Raises:
        ValueError: an edge leads beyond the nodes that there are.
    """
    check_ends(list(graphs.values()), [(key[0], key[-1]) for key in graphs], sizes)
    return EdgeList(plain_hag(joined_index(graphs, sizes), joined_size(graphs, sizes)))
