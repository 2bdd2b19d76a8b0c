"""Training stock and accelerated models from one seed gives the same losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch
from torch_geometric.datasets import TUDataset
from torch_geometric.nn import GCNConv, GINConv, SAGEConv, global_mean_pool
from torch_geometric.transforms import Compose, Constant

from hag_plugin.pyg import ToHAG, accelerate

EPOCHS = 50


class NodeNet(nn.Module):
    """GCN, then SAGE, on the nodes of one graph."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.first = GCNConv(width, 16)
        self.second = SAGEConv(16, classes)

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        x = self.first(x, edge_index).relu()
        return self.second(nn.functional.dropout(x, training=self.training), edge_index)


class GraphNet(nn.Module):
    """GIN, then GCN, then a readout.

    Without batch normalisation: after it, stock's own losses differ by more than 1e-7 when the
    edges are merely given in another order.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first = GINConv(nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 16)))
        self.second = GCNConv(16, 16)
        self.out = nn.Linear(16, classes)

    def forward(self, x: Tensor, edge_index: Any, batch: Tensor) -> Tensor:
        x = self.first(x, edge_index).relu()
        x = self.second(x, edge_index).relu()
        return self.out(global_mean_pool(x, batch))


def losses(model: nn.Module, step: Callable[[nn.Module], Tensor]) -> list[float]:
    """The loss of each epoch. Random numbers start anew."""
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    curve = []
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        loss = step(model)
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


@pytest.mark.slow
@pytest.mark.parametrize("way", ["hag", "edge_index"])
def test_cora(way: str, cora: Any, shared_data: Any) -> None:
    data = ToHAG()(cora[0])
    x = data.x[:, :200].double()

    def step(model: nn.Module, edges: Any) -> Tensor:
        out = model(x, edges)[data.train_mask]
        return nn.functional.cross_entropy(out, data.y[data.train_mask])

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return NodeNet(200, cora.num_classes).double()

    stock = losses(fresh(), lambda m: step(m, data.edge_index))
    edges = data.hag if way == "hag" else data.edge_index
    ours = losses(accelerate(fresh()), lambda m: step(m, edges))
    assert stock[-1] < 0.8 * stock[0]
    assert max(abs(a - b) for a, b in zip(stock, ours, strict=True)) <= 1e-9


@pytest.mark.slow
def test_imdb(raw_root: Any, shared_data: Any) -> None:
    dataset = TUDataset(str(raw_root), "IMDB-MULTI", transform=Compose([Constant(), ToHAG()]))
    items = list(dataset)
    batches = [Batch.from_data_list(items[i : i + 500]) for i in range(0, len(items), 500)]

    def step(model: nn.Module, accelerated: bool) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for batch in batches:
            edges = batch.hag if accelerated else batch.edge_index
            out = model(batch.x.double(), edges, batch.batch)
            total = total + nn.functional.cross_entropy(out, batch.y)
        return total

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return GraphNet(dataset.num_classes).double()

    stock = losses(fresh(), lambda m: step(m, False))
    ours = losses(accelerate(fresh()), lambda m: step(m, True))
    assert stock[-1] < 0.99 * stock[0]
    assert max(abs(a - b) for a, b in zip(stock, ours, strict=True)) <= 1e-9
