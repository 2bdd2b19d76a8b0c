"""RGATConv: attention over edges of several relations, with a matrix for each relation.

What stock computes for each edge depends on its relation and one of its ends alone. Here it is
computed once for each such pair, relation by relation, and no edge has a matrix or a row of its
own. Follows torch_geometric/nn/conv/rgat_conv.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hag_plugin.hag.gpu.met_once import checked_ends
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.passing import BLOCK, plain_hag, plain_hag_of_ends, runs_launches
from hag_plugin.modes import outside_inference
from hag_plugin.ops.aggregate import aggregate
from hag_plugin.ops.edge_list import EdgeList
from hag_plugin.pyg.recipes.forwards import pair
from hag_plugin.pyg.recipes.recipe import Call
from hag_plugin.pyg.recipes.reorder import is_product
from hag_plugin.pyg.recipes.scored import ScoredGraph

NAMES = "edge_type", "edge_index[0]", "edge_index[1]"
NO_RELATION = "edge_type holds a number that is negative, or above the number of relations"


class Pairs(NamedTuple):
    """The pairs of a relation and a node that some edges have, relation by relation.

    Attributes:
        nodes: of each pair, int64 `[P]`.
        counts: how many each relation has.
        of_edges: the pair of each edge, int64 `[E]`.
    """

    nodes: Tensor
    counts: list[int]
    of_edges: Tensor

    @classmethod
    def of(cls, edge_type: Tensor, nodes: Tensor, num_relations: int, num_nodes: int) -> Pairs:
        """Those of edges with these relations and nodes, `[E]` each, all of them in range."""
        num_nodes = max(num_nodes, 1)
        found, of_edges = torch.unique(edge_type.long() * num_nodes + nodes, return_inverse=True)
        counts = torch.bincount(found // num_nodes, minlength=num_relations)
        return cls(found % num_nodes, counts.tolist(), of_edges)

    def times(self, x: Tensor, weight: Tensor) -> Tensor:
        """The row of each pair's node times the matrix of its relation, `[P, out]`.

        Args:
            x: of nodes, `[N, in]`.
            weight: the matrices, in blocks on a diagonal, `[R, B, in / B, out / B]`.
        """
        rows, matrices = torch.split(x.index_select(0, self.nodes), self.counts), weight.unbind()
        there = [r for r, count in enumerate(self.counts) if count] or [0]
        return torch.cat([_product(rows[r], matrices[r]) for r in there])


class PaddedPairs(NamedTuple):
    """The same on a device, of which the host does not know how many there are.

    Pairs stand in blocks of `BLOCK` places, each of one relation. Some places are of no pair.

    Attributes:
        nodes: of each place, int64 `[P]`; where it is of no pair, the number of nodes.
        relations: of each block, int64 `[P / BLOCK]`.
        of_edges: the place of each edge's pair, int64 `[E]`.
    """

    nodes: Tensor
    relations: Tensor
    of_edges: Tensor

    @classmethod
    def of(
        cls, edge_type: Tensor, nodes: Tensor, num_relations: int, num_nodes: int
    ) -> PaddedPairs:
        """As `Pairs.of`."""
        num_edges, device = len(nodes), nodes.device
        most = min(num_edges, num_relations * num_nodes)
        num_blocks = most // BLOCK + min(most, num_relations)
        key = (edge_type.long() * max(num_nodes, 1) + nodes).sort()
        relation, node = key.values // max(num_nodes, 1), key.values % max(num_nodes, 1)
        is_new = torch.ones_like(relation, dtype=torch.bool)
        is_new[1:] = key.values[1:] != key.values[:-1]
        before = torch.cat([relation.new_zeros(1), is_new.cumsum(0)])  # how many pairs
        begin = torch.searchsorted(relation, torch.arange(num_relations + 1, device=device))
        first = before[begin]  # pair of each relation
        blocks = (first.diff() + (BLOCK - 1)) // BLOCK
        end = blocks.cumsum(0)
        place = before[1:] - 1 + ((end - blocks) * BLOCK - first[:-1])[relation]
        shape = (num_blocks * BLOCK,)
        there = torch.full(shape, num_nodes, device=device).scatter(0, place, node)
        # Blocks behind the last have a matrix that others have: what is in no use may be NaN.
        block = torch.arange(num_blocks, device=device)
        relations = torch.searchsorted(end, block, right=True).minimum(relation[-1:])
        return cls(there, relations, torch.empty_like(place).scatter(0, key.indices, place))

    def times(self, x: Tensor, weight: Tensor) -> Tensor:
        """As `Pairs.times`; of what is no pair 0 times a matrix."""
        is_none = (self.nodes == len(x)).unsqueeze(1)
        rows = x.index_select(0, self.nodes.clamp(max=max(len(x) - 1, 0))).masked_fill(is_none, 0)
        matrices = weight.index_select(0, self.relations)
        each = rows.view(-1, BLOCK, *matrices.shape[1:3]).transpose(1, 2) @ matrices
        return each.transpose(1, 2).flatten(2).flatten(0, 1)


class RelationalEdges(EdgeList):
    """The edges of several relations as those of one graph, from pairs.

    Attributes:
        sources, targets: the pairs of their relations and ends.
        nodes: the graph from `targets` to nodes, where the edges lead to pairs. None: they lead to
            nodes.
    """

    def __init__(
        self,
        hag: HAG,
        sources: Pairs | PaddedPairs,
        targets: Pairs | PaddedPairs,
        nodes: HAG | None,
    ) -> None:
        super().__init__(hag)
        self.sources, self.targets = sources, targets
        self.nodes = nodes


@dataclass(frozen=True, eq=False)
class ScoredRelations(ScoredGraph):
    """A graph of several relations whose edges are scored."""

    edges: RelationalEdges

    def index(self) -> Tensor:
        """The edges as their graph has them, in stock's order: `[2, E]`."""
        edges = self.edges
        target = self.edge_index[1] if edges.nodes is None else edges.targets.of_edges
        return torch.stack([edges.sources.of_edges, target])


def relational_edges(
    edge_index: Tensor,
    edge_type: Tensor,
    size: tuple[int, int],
    num_relations: int,
    within: bool,
    *,
    both: bool = True,
) -> RelationalEdges:
    """Made of an edge index with the relation of each edge.

    Args:
        edge_index: int32 or int64 `[2, E]`.
        edge_type: int32 or int64 `[E]`.
        size: the numbers of sources and targets.
        num_relations: 1 or more.
        within: whether the edges of each target and relation are attended over alone.
        both: whether gradients flow back over the reverse.

    Raises:
        ValueError: a relation or an id is out of range.
    """
    counts = num_relations, *size
    for name, values, count in zip(NAMES, (edge_type, *edge_index), counts, strict=True):
        least, most = (int(end) for end in values.aminmax()) if len(values) else (0, -1)
        if least < 0 or most >= count:
            raise ValueError(f"{name} holds {least} to {most}; expected 0 to {count - 1}")
    sources, targets = (
        Pairs.of(edge_type, nodes, num_relations, count)
        for nodes, count in zip(edge_index, size, strict=True)
    )
    target, num_dst, nodes = edge_index[1].long(), size[1], None
    if within:
        target, num_dst = targets.of_edges, len(targets.nodes)
        pairs = torch.stack([torch.arange(num_dst, device=target.device), targets.nodes])
        nodes = plain_hag(pairs, (num_dst, size[1]), both=both)
    index = torch.stack([sources.of_edges, target])
    hag = plain_hag(index, (len(sources.nodes), num_dst), both=both)
    return RelationalEdges(hag, sources, targets, nodes)


def relational_edges_there(
    edge_index: Tensor,
    edge_type: Tensor,
    size: tuple[int, int],
    num_relations: int,
    within: bool,
    *,
    both: bool = True,
) -> RelationalEdges:
    """The same of edges that are met first, made where they are: on a device that runs launches the
    host waits for nothing, and the device asserts the ranges."""
    if not runs_launches(edge_index):
        return relational_edges(edge_index, edge_type, size, num_relations, within, both=both)
    with outside_inference():
        ends, types = checked_ends(edge_index, size), edge_type.detach()
        torch._assert_async(((types >= 0) & (types < num_relations)).all(), NO_RELATION)
        sources, targets = (
            PaddedPairs.of(types, nodes, num_relations, count)
            for nodes, count in zip(ends, size, strict=True)
        )
        target, num_dst, nodes = ends[1], size[1], None
        if within:
            target, num_dst = targets.of_edges, len(targets.nodes)
            place = torch.arange(num_dst, device=target.device)
            place = place.where(targets.nodes < size[1], num_dst)
            nodes = plain_hag_of_ends(place, targets.nodes, (num_dst, size[1]), both=both)
        of_pairs = sources.of_edges, target, (len(sources.nodes), num_dst)
        return RelationalEdges(plain_hag_of_ends(*of_pairs, both=both), sources, targets, nodes)


# What the layer does ----------------------------------------------------------------------------


def attends_within(conv: Any) -> bool:
    """Whether the edges of each target and relation are attended over alone."""
    return bool(conv.attention_mechanism == "within-relation")


def numbers_of(conv: Any, x: Tensor) -> tuple[int, int]:
    """The heads, as many for each of the dimensions of a score, and the numbers of a message."""
    heads = conv.heads * conv.dim
    return heads, heads * conv.out_channels


def matrix_numbers(conv: Any) -> int:
    """How many numbers the matrix of a relation has, which stock gathers for each edge."""
    blocks = conv.num_blocks or 1
    numbers: int = conv.in_channels * conv.heads * conv.out_channels // blocks
    return numbers


def rgat(conv: Any, graph: ScoredRelations, given: Call) -> Tensor:
    """rgat_conv.py, what it propagates: leaky_relu of the sum of a number of each end and of the
    edge, or their product."""
    value, heads = given["value"], (-1, conv.heads, conv.dim, conv.out_channels)
    value = value.view(-1, conv.heads, 1, conv.out_channels).expand(heads).flatten(1, 2)
    out = graph.attend(conv, value, **_scores(conv, graph.edges, given))
    if graph.edges.nodes is not None:
        out = aggregate(out.flatten(1), graph.edges.nodes)
    return out.view(-1, conv.heads, conv.out_channels) if _adds(conv) else out.view(heads)


def rgat_forward(
    conv: Any,
    x: Any,
    edge_index: ScoredRelations,
    edge_type: Tensor | None = None,
    edge_attr: Tensor | None = None,
    size: Any = None,
    return_attention_weights: None = None,
) -> Tensor:
    """rgat_conv.py: values, keys and queries once a pair of relation and node."""
    (source, target), edges = pair(x), edge_index.edges
    weight = _weights(conv)
    value = edges.sources.times(source, weight)
    # Of a target nothing but its query is asked: the matrices that lead to it are multiplied first.
    to_query = weight @ conv.q.view(weight.shape[1], -1, conv.q.shape[1])
    query = edges.targets.times(target, to_query.flatten(1, 2).unsqueeze(1))
    given = {"value": value, "key": value @ conv.k, "query": query, "edge_attr": edge_attr}
    y: Tensor = conv.update(rgat(conv, edge_index, given))
    return y


def _adds(conv: Any) -> bool:
    return bool(conv.attention_mode == "additive-self-attention")


def _weights(conv: Any) -> Tensor:
    """The matrices of relations, in blocks on a diagonal: `[R, B, in / B, out / B]`."""
    if conv.num_blocks is not None:
        blocks: Tensor = conv.weight
        return blocks
    weight = conv.weight if conv.num_bases is None else conv.att @ conv.basis.flatten(1)
    whole: Tensor = weight.view(conv.num_relations, 1, conv.in_channels, -1)
    return whole


def _product(rows: Tensor, blocks: Tensor) -> Tensor:
    """`[n, in]` times a matrix of blocks, `[B, in / B, out / B]`."""
    if len(blocks) == 1:
        return rows @ blocks.squeeze(0)
    each = rows.reshape(len(rows), *blocks.shape[:2]).transpose(0, 1) @ blocks
    return each.transpose(0, 1).flatten(1)


def _scores(conv: Any, edges: RelationalEdges, given: Call) -> dict[str, Any]:
    """What scores are made of. Key and query are of pairs, `[P, heads * dim]`."""
    key, query, edge_attr = given["key"], given["query"], given["edge_attr"]
    of_edges = None if edge_attr is None else _of_edges(conv, edge_attr)
    source, target = edges.sources.of_edges, edges.targets.of_edges
    if not _adds(conv):
        scores = key.index_select(0, source) * query.index_select(0, target)
        return {"score": "given", "bias": scores if of_edges is None else scores * of_edges}
    how: dict[str, Any] = {"score": "sum", "key": key, "slope": conv.negative_slope}
    if edges.nodes is not None:
        return how | {"query": query, "bias": of_edges}
    asked = query.index_select(0, target)
    return how | {"bias": asked if of_edges is None else asked + of_edges}


def _of_edges(conv: Any, edge_attr: Tensor) -> Tensor:
    """The term, or factor, of edge features, `[E, heads * dim]`."""
    edge_attr = edge_attr.view(-1, 1) if edge_attr.dim() == 1 else edge_attr
    if is_product(conv.lin_edge):
        to_score: Tensor = conv.lin_edge.weight.t() @ conv.e
        return edge_attr @ to_score
    by_rows: Tensor = conv.lin_edge(edge_attr) @ conv.e
    return by_rows
