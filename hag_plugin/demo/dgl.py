"""One side of the demo in DGL."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

os.environ.setdefault("DGLBACKEND", "pytorch")  # or DGL writes a file into the home directory
import dgl
from dgl.dataloading import GraphDataLoader
from dgl.nn.pytorch import GraphConv

from hag_plugin.data.graph_data import GraphData
from hag_plugin.demo.side import Settings, Side, split_edges
from hag_plugin.dgl import ToHAG, collate
from hag_plugin.hag.candidates import Choice
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import SelfLoops


class Classifier(nn.Module):
    """Two GCN layers, a mean over each graph where graphs are labelled, and a linear layer."""

    def __init__(self, features: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.conv1 = GraphConv(features, hidden)
        self.conv2 = GraphConv(hidden, hidden)
        self.out = nn.Linear(hidden, classes)

    def forward(self, graph: Any, x: Tensor, by_graph: bool) -> Tensor:
        """Scores, `[G, C]` by graph or `[N, C]`."""
        x = self.conv1(graph, x).relu()
        x = self.conv2(graph, x).relu()
        if by_graph:
            with graph.local_scope():
                graph.ndata["x"] = x
                x = dgl.mean_nodes(graph, "x")
        return self.out(x)  # type: ignore[no-any-return]


class DglSide(Side):
    """A side of DGL graphs, with one loop on each node, and `GraphConv` layers.

    Where graphs are labelled, a batch is a pair of a graph and labels.
    """

    def classifier(self, features: int, hidden: int, classes: int) -> nn.Module:
        return Classifier(features, hidden, classes)

    def as_graphs(self, data: GraphData) -> list[Any]:
        assert data.x is not None
        assert data.y is not None
        if not data.labels_graphs:
            graph = _looped(data.edge_index, data.num_nodes)
            graph.ndata.update({"x": data.x, "y": data.y})
            graph.ndata.update({"train_mask": data.train_mask, "test_mask": data.test_mask})
            return [graph]
        assert data.graph_ptr is not None
        graphs = []
        rows = torch.split(data.x, data.graph_ptr.diff().tolist())
        for x, edges, label in zip(rows, split_edges(data), data.y, strict=False):
            graph = _looped(edges, len(x))
            graph.ndata["x"] = x.clone()
            graphs.append((graph, label))
        return graphs

    def warm_up(self) -> None:
        graph = dgl.graph(([0, 1], [1, 0]))
        scores = Classifier(2, 2, 2)(graph, torch.ones(2, 2), True)
        torch.autograd.backward(cross_entropy(scores, torch.zeros(1, dtype=torch.long)))

    def search(self) -> None:
        self.graphs = ToHAG(method=self.settings.method).dataset(self.graphs)

    def hags(self) -> tuple[list[HAG], SelfLoops]:
        graphs = [graph for graph, _ in self.graphs] if self.by_graph else self.graphs
        return [graph.hag for graph in graphs], False

    def loader(self, graphs: list[Any], order: torch.Generator | None) -> Iterable[Any]:
        size = self.settings.batch_size
        loader: Iterable[Any] = GraphDataLoader(
            graphs, batch_size=size, shuffle=order is not None, generator=order, collate_fn=collate
        )
        return loader

    def merge(self, batch: Any) -> None:
        """Nothing: `collate` has merged the HAGs."""

    def scores(self, model: nn.Module, batch: Any, dtype: torch.dtype) -> Tensor:
        graph = batch[0] if self.by_graph else batch
        scores: Tensor = model(graph, graph.ndata["x"].to(dtype), self.by_graph)
        return scores

    def labels(self, batch: Any) -> Tensor:
        labels: Tensor = batch[1] if self.by_graph else batch.ndata["y"]
        return labels

    def mask(self, batch: Any, name: str) -> Tensor:
        mask: Tensor = batch.ndata[name]
        return mask

    def choice(self, batch: Any) -> Choice:
        graph = batch[0] if self.by_graph else batch
        choice: Choice = graph.hag.choice(self.settings.hidden)
        return choice


def _looped(edge_index: Tensor, num_nodes: int) -> Any:
    graph = dgl.graph(tuple(edge_index), num_nodes=num_nodes)
    return graph.remove_self_loop().add_self_loop()


def side(data: GraphData, settings: Settings, accelerated: bool) -> Side:
    """A side in DGL."""
    return DglSide(data, settings, accelerated)
