"""`batch`, `unbatch` and `collate`: as DGL's, for graphs that run on HAGs.

DGL's own functions make plain graphs of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dgl
import torch
from dgl import DGLGraph
from dgl.dataloading import GraphCollator

from hag_plugin.arguments import check_kind, items, some
from hag_plugin.dgl.aggregation.relation import Relation, relations_of
from hag_plugin.dgl.data.graph import bind
from hag_plugin.hag.hag import batch as batch_hags
from hag_plugin.modes import outside_inference
from hag_plugin.saved import set_module


@set_module("hag_plugin.dgl")
def batch(graphs: Sequence[DGLGraph], *args: Any, **kwargs: Any) -> Any:
    """As `dgl.batch`; where all graphs have HAGs these are merged, in O(ops).

    Args:
        graphs: the graphs.
        *args: as for `dgl.batch`.
        **kwargs: as for `dgl.batch`.

    Example:
        >>> import dgl
        >>> from hag_plugin.dgl import ToHAG
        >>> ring = ToHAG()(dgl.graph(([0, 1, 2], [1, 2, 0])))
        >>> batch([ring, ring]).hag.num_edges
        6
    """
    graphs = items("graphs", graphs)
    for graph in graphs:
        check_kind("graphs", graph, DGLGraph)
    whole = dgl.batch(graphs, *args, **kwargs)
    known = [relations_of(graph) for graph in graphs]
    parts = [relations for relations in known if relations is not None]
    same_order = all(g.canonical_etypes == graphs[0].canonical_etypes for g in graphs)
    if len(parts) < len(graphs) or not same_order:
        return whole
    return bind(
        whole,
        tuple(
            _merged(graphs, etid, [relations[etid] for relations in parts])
            for etid in range(len(parts[0]))
        ),
    )


def _merged(graphs: Sequence[DGLGraph], etid: int, parts: Sequence[Relation]) -> Relation:
    loops = parts[0].self_loops
    if any(part.self_loops != loops for part in parts):
        return Relation(parts[0].options)  # built from the edges of the batch, if it is needed
    hags = [part.hag(graph, etid) for part, graph in zip(parts, graphs, strict=True)]
    with outside_inference(), torch.no_grad():
        return Relation(parts[0].options, batch_hags(hags), loops)


@set_module("hag_plugin.dgl")
def unbatch(graph: DGLGraph, *args: Any, **kwargs: Any) -> list[Any]:
    """As `dgl.unbatch`; the graphs run on HAGs of their own, built when they are first needed."""
    check_kind("graph", graph, DGLGraph)
    parts = dgl.unbatch(graph, *args, **kwargs)
    relations = relations_of(graph)
    if relations is None:
        return list(parts)
    return [bind(part, tuple(Relation(each.options) for each in relations)) for part in parts]


class _Collator(GraphCollator):  # type: ignore[misc]
    def collate(self, items: Any) -> Any:
        if isinstance(items[0], DGLGraph):
            return batch(items)
        return super().collate(items)


@set_module("hag_plugin.dgl")
def collate(items: Sequence[Any]) -> Any:
    """For `GraphDataLoader(dataset, collate_fn=collate)`: batches graphs with their HAGs.

    Args:
        items: graphs, or tuples, lists and dicts of graphs, tensors and numbers.
    """
    return _Collator().collate(some("items", items))
