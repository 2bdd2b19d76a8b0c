"""Every layer of PyG's in the planner's table trains split as it does alone, in a model of its own.

It is made with no more than it asks for, by the names of its arguments: a layer that is put into
the table is tried here without another line.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric import nn as pyg
from torch_geometric.data import Data

from hag_plugin.layers.pyg import RECORDS
from hag_plugin.parallel.model.layers import TABLE
from hag_plugin.parallel.model.opgraph import Op
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.strategies.registry import Config

from ..equality import check
from ..models import CLASSES, FEATURES, RELATIONS, graph

GIVEN: dict[str, Any] = {
    "K": 2,
    "alpha": 0.1,
    "num_relations": RELATIONS,
    "num_layers": 2,
    "aggregators": ["mean", "max"],
    "scalers": ["identity"],
    "deg": torch.ones(10, dtype=torch.long),
}
# Attention has strategies of its own, in test_every_strategy.py; layers over several types of nodes
# are in test_hetero.py.
ELSEWHERE = ("GATConv", "HGTConv", "HANConv")
LAYERS = [r.layer for r in RECORDS if r.name in TABLE and r.layer not in ELSEWHERE]


def made(name: str) -> nn.Module:
    """The layer with what it must be given; unless told otherwise, that is a width."""
    cls = getattr(pyg, name)
    needed = [
        p.name
        for p in inspect.signature(cls.__init__).parameters.values()
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD and p.name != "self"
    ]
    layers = {"nn": nn.Linear(FEATURES, CLASSES)}
    layer: nn.Module = cls(**{n: layers.get(n, GIVEN.get(n, FEATURES)) for n in needed})
    return layer


class Model(nn.Module):
    """The layer between two linear ones, with relations where it has some."""

    def __init__(self, layer: nn.Module, data: Data) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(FEATURES, FEATURES), layer
        self.relational = hasattr(layer, "num_relations")
        width = self.hidden(data.x, data.edge_index, data.edge_type).shape[-1]
        self.last = nn.Linear(width, CLASSES)

    def hidden(self, x: Tensor, edge_index: Tensor, edge_type: Tensor) -> Tensor:
        types = (edge_type,) if self.relational else ()
        h = self.first(x)
        first = (h,) if "x_0" in inspect.signature(self.layer.forward).parameters else ()
        return self.layer(h, *first, edge_index, *types)

    def forward(self, x: Tensor, edge_index: Tensor, edge_type: Tensor) -> Tensor:
        return self.last(self.hidden(x, edge_index, edge_type))


@pytest.mark.parametrize(
    "strategy", ["rows, all-gather", "rows, halo", "all-to-all around aggregation"]
)
@pytest.mark.parametrize("name", LAYERS)
def test_trains_as_alone(name: str, strategy: str) -> None:
    torch.manual_seed(0)
    data = graph(nodes=45, edges=220)
    model = Model(made(name), data).double()
    data.x, data.y = data.x.double(), torch.randint(CLASSES, (45,))
    data.train_mask = torch.rand(45) < 0.7

    def allow(op: Op, config: Config) -> bool:
        splits = op.kind == "convolution" and not (op.relational or op.edge_products)
        return not splits or config.strategy == strategy

    tolerance = 1e-5 if name == "ClusterGCNConv" else 1e-10  # its degrees: single precision
    plan = check(model, data, 2, allow, tolerance=tolerance)
    kinds = {layer.kind for layer in plan.layers}
    assert "convolution" in kinds
    opaque = [op for op in trace(model, data, hag=False).ops if op.kind == "opaque"]
    assert all(op.by_row for op in opaque)
