"""Whole models of PyG's layers, in plans that treat convolutions in every way."""

from __future__ import annotations

import pytest
import torch
from torch_geometric import nn as pyg
from torch_geometric.data import Data

from hag_plugin.parallel.opgraph import Op
from hag_plugin.parallel.strategies import Config

from .equality import Allow, check
from .models import CLASSES, FEATURES, graph

NODES = 45


def data() -> Data:
    """A graph with labels, of double precision; node 3 has no edges."""
    found = graph(nodes=NODES, edges=220)
    kept = (found.edge_index != 3).all(dim=0)
    found.edge_index, found.edge_type = found.edge_index[:, kept], found.edge_type[kept]
    generator = torch.Generator().manual_seed(1)
    found.x = torch.randn(NODES, FEATURES, generator=generator, dtype=torch.float64)
    found.y = torch.randint(CLASSES, (NODES,), generator=generator)
    found.train_mask = torch.rand(NODES, generator=generator) < 0.7
    return found


def by_strategy(name: str, order: str = "") -> Allow:
    """Convolutions that can be split so are; others are as is cheapest."""

    def allow(op: Op, config: Config) -> bool:
        if op.kind not in ("convolution", "attention"):
            return True
        return config.strategy == name and (not order or config.order in ("", order))

    return allow


ORDERS = ("aggregate-first", "transform-first")
PLANS = [
    ("replicate", ORDERS),
    ("rows, all-gather", ORDERS),
    ("rows, halo", ORDERS),
    ("rows, vertex-cover halo", ORDERS),
    ("all-to-all around aggregation", ORDERS),
    ("columns, row-split weights", ORDERS[:1]),
    ("column-split weights", ORDERS[1:]),
]


@pytest.mark.parametrize(("strategy", "order"), [(s, o) for s, orders in PLANS for o in orders])
def test_models_of_convolutions(strategy: str, order: str) -> None:
    for name, model in {
        "GCN": pyg.GCN(FEATURES, 8, 2, CLASSES, norm="batch"),
        "SAGE": pyg.GraphSAGE(FEATURES, 8, 2, CLASSES, jk="max"),
    }.items():
        if (name, order) == ("SAGE", "transform-first") and strategy.startswith("columns,"):
            continue
        for size in (2, 4):
            check(model.double(), data(), size, by_strategy(strategy, order))
