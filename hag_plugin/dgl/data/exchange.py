"""`to_pyg`: DGL's graphs as PyG's data; and DGL's graphs of the parts of another framework's."""

from __future__ import annotations

from typing import Any

import dgl
from dgl import DGLGraph

from hag_plugin import adapters
from hag_plugin.arguments import check_kind
from hag_plugin.dgl.aggregation.relation import Relation, edge_index, relations_of
from hag_plugin.dgl.data.graph import bind
from hag_plugin.exchange import EDGES, EdgePart, GraphParts, NodePart
from hag_plugin.hag.candidates import how_to_choose
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import Options
from hag_plugin.modes import outside_inference
from hag_plugin.saved import set_module


@set_module("hag_plugin.dgl")
def to_pyg(graph: DGLGraph) -> Any:
    """A DGL graph as PyG's data, with its features, labels, masks and edge features, and its HAGs.

    What DGL's data sets call "feat" and "label" becomes PyG's `x` and `y`; of edges "feat" becomes
    `edge_attr` and "w" `edge_weight`. `dgl.NID`, `dgl.EID` and the types that `dgl.to_homogeneous`
    leaves become `n_id`, `e_id`, `node_type` and `edge_type`. Other names stay; in a `Data`, where
    values of edges stand beside those of nodes, other edges' names get `edge_` before them. A name
    that is there already is given to no second value. `hag_plugin.pyg.to_dgl` is the way back.

    Args:
        graph: on any device. Ids become int64; values are shared.

    Returns:
        A `Data` of a graph without types, a `HeteroData` of one with types, a `Batch` of several
        graphs; of a class that knows its HAGs where `graph` runs on these.

    Raises:
        TypeError: `graph` is no `DGLGraph`.
        ValueError: it is a block, whose sources and targets are different nodes of one type; or
            PyG would not take a value for one of nodes or of edges, by its name.

    Example:
        >>> import dgl, torch
        >>> graph = dgl.graph(([0, 1, 2], [1, 2, 0]))
        >>> graph.ndata["feat"] = torch.ones(3, 4)
        >>> to_pyg(graph)
        Data(x=[3, 4], edge_index=[2, 3])
    """
    check_kind("graph", graph, DGLGraph)
    if graph.is_block:
        raise ValueError("graph is a block; expected a graph whose types are nodes of their own: "
                         "take dgl.block_to_graph(graph)")  # fmt: skip
    with outside_inference():  # its edges are to come back
        parts = _parts_of(graph)
    return adapters.graph_of_parts("torch_geometric", parts)


def _parts_of(graph: Any) -> GraphParts:
    is_batch = graph.batch_size > 1
    relations = relations_of(graph)
    nodes = {
        kind: NodePart(
            graph.num_nodes(kind),
            dict(graph.nodes[kind].data),
            graph.batch_num_nodes(kind).long() if is_batch else None,
        )
        for kind in graph.ntypes
    }
    edges = {
        kind: EdgePart(
            edge_index(graph, etid).long(),
            dict(graph.edges[kind].data),
            graph.batch_num_edges(kind).long() if is_batch else None,
            None if relations is None else _hag_of(graph, etid, relations[etid]),
        )
        for etid, kind in enumerate(graph.canonical_etypes)
    }
    return GraphParts(nodes, edges)


def _hag_of(graph: Any, etid: int, relation: Relation) -> HAG:
    """The HAG of all edges: a relation may keep that of the edges without loops."""
    if relation.self_loops is not False:
        relation = Relation(relation.options)
    return relation.hag(graph, etid)


def graph_of_parts(parts: GraphParts) -> Any:
    """The DGL graph of parts, which runs on the HAGs where there are any."""
    ends = {kind: tuple(part.edge_index) for kind, part in parts.edges.items()}
    counts = {kind: part.count for kind, part in parts.nodes.items()}
    if parts.is_typed:
        graph = dgl.heterograph(ends, counts)
    else:
        graph = dgl.graph(ends[EDGES], num_nodes=counts[EDGES[0]])
    for kind, nodes in parts.nodes.items():
        graph.nodes[kind].data.update(nodes.data)
    for edge_type, edges in parts.edges.items():
        graph.edges[edge_type].data.update(edges.data)
    if all(part.per_graph is not None for part in parts.nodes.values()):
        graph.set_batch_num_nodes({kind: part.per_graph for kind, part in parts.nodes.items()})
        graph.set_batch_num_edges({kind: part.per_graph for kind, part in parts.edges.items()})
    hags = [parts.edges[kind].hag for kind in graph.canonical_etypes]
    if all(hag is None for hag in hags):
        return graph
    return bind(graph, tuple(_relation_of(hag) for hag in hags))


def _relation_of(hag: HAG | None) -> Relation:
    """The relation of a HAG; None: edges that run as they are."""
    if hag is None:
        return Relation({"method": "none"})
    asked, method = hag.options, hag.options.method
    usual = Options(method, choose=how_to_choose(None, method))
    names = ("allow_subtraction", "capacity", "width", "choose")
    changed = {n: getattr(asked, n) for n in names if getattr(asked, n) != getattr(usual, n)}
    return Relation({"method": method, **changed}, hag)
