"""Models of PyG layers that several tests plan for, and a graph to run them on."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import nn as pyg
from torch_geometric.data import Data

from hag_plugin.parallel import GraphStats, OpGraph
from hag_plugin.parallel.model.opgraph import Op, convolution, gcn

NODES, FEATURES, CLASSES, RELATIONS = 96, 16, 8, 4


def graph(seed: int = 0, nodes: int = NODES, edges: int = 600) -> Data:
    """A random directed graph with features and relations."""
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(nodes, (2, edges), generator=generator)
    edge_type = torch.randint(RELATIONS, (edges,), generator=generator)
    return Data(x=torch.rand(nodes, FEATURES), edge_index=edge_index, edge_type=edge_type)


class SkipPNA(nn.Module):
    """PNA with residual connections and batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        options = {"aggregators": ["mean", "max"], "scalers": ["identity", "amplification"]}
        degree = torch.ones(10, dtype=torch.long)
        self.first = pyg.PNAConv(FEATURES, 32, deg=degree, **options)
        self.second = pyg.PNAConv(32, 32, deg=degree, towers=4, **options)
        self.norm = nn.BatchNorm1d(32)
        self.last = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.first(x, edge_index).relu()
        h = h + self.norm(self.second(h, edge_index))
        return F.log_softmax(self.last(h), dim=-1)


class RGCN(nn.Module):
    """Two relational layers."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.first = pyg.RGCNConv(FEATURES, 32, RELATIONS, **options)
        self.second = pyg.RGCNConv(32, CLASSES, RELATIONS, **options)

    def forward(self, x: Tensor, edge_index: Tensor, edge_type: Tensor) -> Tensor:
        h = torch.relu(self.first(x, edge_index, edge_type))
        return self.second(h, edge_index, edge_type)


MODELS = {
    "GCN": lambda: pyg.GCN(FEATURES, 32, 3, CLASSES),
    "SAGE": lambda: pyg.GraphSAGE(FEATURES, 32, 2, CLASSES, norm="layer"),
    "GIN": lambda: pyg.GIN(FEATURES, 32, 2, CLASSES),
    "GAT": lambda: pyg.GAT(FEATURES, 32, 2, CLASSES, heads=4),
    "PNA with skips": SkipPNA,
    "jumping knowledge": lambda: pyg.GraphSAGE(FEATURES, 32, 3, CLASSES, jk="cat"),
    "RGCN": RGCN,
}


def skipping(nodes: int = 1_000_000, edges: int = 50_000_000, halo: float = 4.0) -> OpGraph:
    """Operations of four layers, one of them skipped: two branches may overlap."""
    ops = [
        Op("x", "input", width=602),
        gcn("conv1", 0, 602, 256, input_grad=False),
        gcn("conv2", 1, 256, 256),
        gcn("conv3", 2, 256, 256),
        Op("sum", "sum", (2, 3), 256),
        gcn("conv4", 4, 256, 41),
        Op("loss", "loss", (5,), 41),
    ]
    return OpGraph.of(ops, {"A": GraphStats.assumed(nodes, edges, halo_ratio=halo)})


def deep(layers: int, width: int, stats: GraphStats, first: int = 128) -> OpGraph:
    """GCN layers in a row, with ReLU between them."""
    ops = [Op("x", "input", width=first)]
    for i in range(layers):
        before = ops[-1].width
        ops.append(convolution(f"conv{i}", len(ops) - 1, before, width, input_grad=i > 0))
        ops.append(Op(f"relu{i}", "elementwise", (len(ops) - 1,), width))
    return OpGraph.of([*ops, Op("loss", "loss", (len(ops) - 1,), width)], {"A": stats}, 4, "GCN")
