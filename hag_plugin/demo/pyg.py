"""One side of the demo in PyG."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv, global_mean_pool

from hag_plugin.data.graph_data import GraphData
from hag_plugin.demo.side import Settings, Side, split_edges
from hag_plugin.hag.candidates import Choice
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import SelfLoops


class Classifier(nn.Module):
    """Two GCN layers, a mean over each graph where graphs are labelled, and a linear layer."""

    def __init__(self, features: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.conv1 = GCNConv(features, hidden)
        self.conv2 = GCNConv(hidden, hidden)
        self.out = nn.Linear(hidden, classes)

    def forward(self, x: Tensor, graph: Any, batch: Tensor | None, num_graphs: int) -> Tensor:
        """Scores.

        Args:
            x: `[N, F]`.
            graph: `edge_index` `[2, E]`, or the HAG that stands for it.
            batch: int64 `[N]`, the graph of each node, or None where nodes are classified.
            num_graphs: G.

        Returns:
            `[G, C]`, or `[N, C]` without `batch`.
        """
        x = self.conv1(x, graph).relu()
        x = self.conv2(x, graph).relu()
        if batch is not None:
            x = global_mean_pool(x, batch, num_graphs)
        return self.out(x)  # type: ignore[no-any-return]


class PygSide(Side):
    """A side of `Data` objects and `GCNConv` layers."""

    def classifier(self, features: int, hidden: int, classes: int) -> nn.Module:
        return Classifier(features, hidden, classes)

    def as_graphs(self, data: GraphData) -> list[Any]:
        if not data.labels_graphs:
            return [Data(data.x, data.edge_index, y=data.y, train_mask=data.train_mask,
                         test_mask=data.test_mask)]  # fmt: skip
        assert data.graph_ptr is not None
        assert data.x is not None
        assert data.y is not None
        rows = torch.split(data.x, data.graph_ptr.diff().tolist())
        return [
            Data(x.clone(), edges, y=label.view(1))
            for x, edges, label in zip(rows, split_edges(data), data.y, strict=False)
        ]

    def warm_up(self) -> None:
        edges = torch.tensor([[0, 1], [1, 0]])
        scores = Classifier(2, 2, 2)(torch.ones(2, 2), edges, torch.zeros(2, dtype=torch.long), 1)
        torch.autograd.backward(cross_entropy(scores, torch.zeros(1, dtype=torch.long)))

    def search(self) -> None:
        from hag_plugin.pyg import ToHAG, accelerate

        transform = ToHAG(self_loops="fill", method=self.settings.method)
        self.graphs = transform.dataset(self.graphs)
        self.model = accelerate(self.model)

    def hags(self) -> tuple[list[HAG], SelfLoops]:
        return [graph.hag for graph in self.graphs], "fill"

    def loader(self, graphs: list[Any], order: torch.Generator | None) -> Iterable[Any]:
        size = self.settings.batch_size
        loader: Iterable[Any] = DataLoader(graphs, size, shuffle=order is not None, generator=order)
        return loader

    def merge(self, batch: Any) -> None:
        self._edges(batch)

    def scores(self, model: nn.Module, batch: Any, dtype: torch.dtype) -> Tensor:
        of_node = batch.batch if self.by_graph else None
        groups = batch.num_graphs if self.by_graph else 1
        scores: Tensor = model(batch.x.to(dtype), self._edges(batch), of_node, groups)
        return scores

    def labels(self, batch: Any) -> Tensor:
        labels: Tensor = batch.y
        return labels

    def mask(self, batch: Any, name: str) -> Tensor:
        mask: Tensor = batch[name]
        return mask

    def choice(self, batch: Any) -> Choice:
        choice: Choice = batch.hag.choice(self.settings.hidden, self_loops="fill")
        return choice

    def _edges(self, batch: Any) -> Any:
        return batch.hag if self.accelerated else batch.edge_index


def side(data: GraphData, settings: Settings, accelerated: bool) -> Side:
    """A side in PyG."""
    return PygSide(data, settings, accelerated)
