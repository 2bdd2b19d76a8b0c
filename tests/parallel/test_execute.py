"""Models run as their plans say, and compute what one process computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data

from .equality import check

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
}


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_dense_layers_in_every_layout(kind: str, size: int) -> None:
    if size == 1 and kind != "cheapest":
        pytest.skip("one rank has one plan")
    torch.manual_seed(0)
    check(MLP().double(), data(), size, KINDS[kind])
