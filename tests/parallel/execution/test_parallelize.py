"""Models run as their plans say, and compute what one process computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import nn as pyg
from torch_geometric.data import Data

from ..equality import check

FEATURES, CLASSES = 12, 8


def data(nodes: int = 37, edges: int = 150, dtype: torch.dtype = torch.float64) -> Data:
    """A graph whose nodes are not a multiple of the ranks."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(nodes, FEATURES, generator=generator, dtype=dtype)
    edge_index = torch.randint(nodes, (2, edges), generator=generator)
    y = torch.randint(CLASSES, (nodes,), generator=generator)
    mask = torch.rand(nodes, generator=generator) < 0.6
    mask[: nodes // 4] = False  # a rank without a row in the loss
    return Data(x=x, edge_index=edge_index, y=y, train_mask=mask)


class MLP(nn.Module):
    """Every kind of operation without edges."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 16)
        self.batch_norm = nn.BatchNorm1d(16)
        self.second = nn.Linear(16, 16)
        self.layer_norm = nn.LayerNorm(16)
        self.weight = nn.Parameter(torch.randn(32, CLASSES) / 6)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = F.relu(self.batch_norm(self.first(x)), inplace=True)
        g = self.layer_norm(self.second(h)) + h
        h = torch.cat([h, torch.tanh(g)], dim=-1)
        return F.log_softmax(h @ self.weight, dim=-1)


class Norms(nn.Module):
    """Normalisation of all kinds; elementwise work with a weight; in-place sums; aliases."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 16)
        self.graph_norm = pyg.GraphNorm(16)
        self.everything = pyg.LayerNorm(16)
        self.prelu = nn.PReLU()
        self.plain = nn.BatchNorm1d(16, affine=False, track_running_stats=False)
        self.last = nn.Linear(16, CLASSES)

    def forward(self, data: Data) -> Tensor:
        h = self.prelu(self.graph_norm(self.first(data.x)))
        g = self.everything(h.view(-1, 16)).clone()
        g += self.plain(h)
        g = F.normalize(g.contiguous(), dim=-1) * 2 - 1
        return F.softmax(self.last(torch.maximum(g, h)), dim=1)


class Odd(nn.Module):
    """What runs whole: products of nodes, tensors from outside, other shapes."""

    def __init__(self, nodes: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(nodes, 16) / 4)
        self.first = nn.Linear(FEATURES, 16)
        self.last = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.first(x) + self.position
        h = h + h.new_ones(h.shape[0], 1).cumsum(0) / h.size(0)
        heads = h.view(-1, 4, 4).softmax(dim=1).reshape(h.shape)
        mean = torch.tanh(h).mean(dim=0, keepdim=True)
        return self.last(heads * torch.sigmoid(mean))


KINDS = {
    "replicated": lambda op, c: c.source.kind == "replicated",
    "rows": lambda op, c: op.kind in ("input", "opaque") or c.source.kind == "rows",
    "columns": lambda op, c: (
        op.kind in ("input", "opaque", "loss", "concatenation", "pooling")
        or "columns" in (c.source.kind, c.target.kind)
    ),
    "row-split": lambda op, c: op.kind != "linear" or c.strategy == "columns, row-split weights",
    "column-split": lambda op, c: op.kind != "linear" or c.strategy == "column-split weights",
    "cheapest": lambda op, c: True,
    "grid": lambda op, c: (
        op.kind not in ("elementwise", "sum", "normalisation") or c.source.kind == "grid"
    ),
}
CASES = [(kind, size) for kind in KINDS for size in (2, 4) if (kind, size) != ("grid", 2)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "size"), [("cheapest", 1), *CASES])
def test_dense_layers_in_every_layout(kind: str, size: int) -> None:
    torch.manual_seed(0)
    check(MLP().double(), data(), size, KINDS[kind])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "size"), CASES)
def test_normalisation_in_every_layout(kind: str, size: int) -> None:
    torch.manual_seed(0)
    check(Norms().double(), data(), size, KINDS[kind])


@pytest.mark.parametrize("size", [2, 4])
def test_what_is_no_known_operation_runs_whole(size: int) -> None:
    torch.manual_seed(0)
    nodes = data().num_nodes
    plan = check(Odd(nodes).double(), data(), size, KINDS["rows"])
    assert sum(layer.kind == "opaque" for layer in plan.layers) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 8])
@pytest.mark.parametrize("kind", ["rows", "cheapest"])
def test_ranks_without_nodes(kind: str, size: int) -> None:
    """Nine nodes over eight ranks: two each, and the last ones have none."""
    torch.manual_seed(0)
    small = data(nodes=9, edges=20)
    small.train_mask[:] = True
    check(MLP().double(), small, size, KINDS[kind])
