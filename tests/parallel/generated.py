"""Models made at random: stacks of layers, shared weights, skips, norms, dropout, pooling."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import nn as pyg
from torch_geometric.data import Data

from .models import CLASSES, FEATURES, RELATIONS, graph

NODES = 33
WIDTHS = (4, 6, 8)
DEGREES = torch.tensor([1, 4, 8, 4])
Make = Callable[[int, int], nn.Module]
LAYERS: dict[str, Make] = {
    "GCN": pyg.GCNConv,
    "GCN without loops": lambda i, o: pyg.GCNConv(i, o, add_self_loops=False, bias=False),
    "SAGE": pyg.SAGEConv,
    "SAGE, max": lambda i, o: pyg.SAGEConv(i, o, aggr="max", normalize=True),
    "SAGE, several": lambda i, o: pyg.SAGEConv(i, o, aggr=["mean", "max"]),
    "SAGE, std": lambda i, o: pyg.SAGEConv(i, o, aggr="std"),
    "SAGE, softmax": lambda i, o: pyg.SAGEConv(i, o, aggr="softmax", aggr_kwargs={"learn": True}),
    "SAGE, projected": lambda i, o: pyg.SAGEConv(i, o, project=True),
    "GraphConv": lambda i, o: pyg.GraphConv(i, o, aggr="mean"),
    "GIN": lambda i, o: pyg.GINConv(nn.Sequential(nn.Linear(i, o), nn.ReLU()), train_eps=True),
    "SG": lambda i, o: pyg.SGConv(i, o, K=2),
    "GAT": lambda i, o: pyg.GATConv(i, o // 2, heads=2),
    "GAT, one head": lambda i, o: pyg.GATConv(i, o, heads=1, concat=False),
    "GATv2": lambda i, o: pyg.GATv2Conv(i, o // 2, heads=2),
    "Transformer": lambda i, o: pyg.TransformerConv(i, o // 2, heads=2),
    "PNA": lambda i, o: pyg.PNAConv(i, o, ["mean", "max"], ["identity"], DEGREES),
    "RGCN": lambda i, o: pyg.RGCNConv(i, o, RELATIONS),
    "RGCN, bases": lambda i, o: pyg.RGCNConv(i, o, RELATIONS, num_bases=2),
    "TAG": lambda i, o: pyg.TAGConv(i, o, K=2),
    "Cheb": lambda i, o: pyg.ChebConv(i, o, K=2),
    "linear": nn.Linear,
}
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm1d,
    "layer": nn.LayerNorm,
    "PyG's layer": pyg.LayerNorm,
    "PyG's batch": pyg.BatchNorm,
    "graph": pyg.GraphNorm,
}
ACTIVATIONS: list[Callable[[Tensor], Tensor]] = [F.relu, torch.tanh, F.elu, F.softplus, torch.sin]


class Generated(nn.Module):
    """A stack of blocks, chosen by a seed."""

    def __init__(self, seed: int, dropout: float) -> None:
        super().__init__()
        choose = random.Random(seed)
        self.layers, self.norms, self.steps = nn.ModuleList(), nn.ModuleList(), []
        self.words: list[str] = []
        names: list[str] = []
        width, widths = FEATURES, []
        for _ in range(choose.randint(2, 4)):
            before, step = width, {}
            same = [i for i, m in enumerate(self.layers) if m.ends == (before, before)]
            if same and choose.random() < 0.6:
                step["layer"] = choose.choice(same)
                width = before
            else:
                width = before if choose.random() < 0.5 else choose.choice(WIDTHS)
                alike = [i for i, m in enumerate(self.layers) if m.ends == (before, width)]
                other = choose.choice(alike) if alike and choose.random() < 0.6 else None
                name = choose.choice([*LAYERS]) if other is None else names[other]
                layer = LAYERS[name](before, width)
                layer.ends = (before, width)
                if other is not None:
                    tie(layer, self.layers[other])
                step["layer"] = len(self.layers)
                self.layers.append(layer)
                names.append(name)
            self.words.append(names[step["layer"]])
            if choose.random() < 0.5:
                name = choose.choice([*NORMS])
                step["norm"] = len(self.norms)
                self.norms.append(NORMS[name](width))
                self.words[-1] += f", {name} norm"
            step["activation"] = choose.choice(ACTIVATIONS)
            step["dropout"] = dropout if choose.random() < 0.5 else 0.0
            equal = [i for i, w in enumerate(widths) if w == width]
            if equal and choose.random() < 0.5:
                step["add"] = choose.choice(equal)
            elif widths and choose.random() < 0.3:
                step["join"] = choose.randrange(len(widths))
                width += widths[step["join"]]
            widths.append(width)
            self.steps.append(step)
        self.last = nn.Linear(width, CLASSES)
        self.pooled = choose.random() < 0.2
        self.words.append("pooled" if self.pooled else "rows")

    def forward(self, x: Tensor, edge_index: Tensor, edge_type: Tensor) -> Tensor:
        outs: list[Tensor] = []
        for step in self.steps:
            layer = self.layers[step["layer"]]
            types = (edge_type,) if isinstance(layer, pyg.RGCNConv) else ()
            x = layer(x) if isinstance(layer, nn.Linear) else layer(x, edge_index, *types)
            if "norm" in step:
                x = self.norms[step["norm"]](x)
            x = F.dropout(step["activation"](x), step["dropout"], training=self.training)
            if "add" in step:
                x = x + outs[step["add"]]
            if "join" in step:
                x = torch.cat([x, outs[step["join"]]], dim=-1)
            outs.append(x)
        return self.last(x.mean(dim=0, keepdim=True) if self.pooled else x)


def tie(layer: nn.Module, other: nn.Module) -> None:
    """Gives a layer the first matrix of another one of its class."""
    name = next(n for n, p in other.named_parameters() if p.dim() > 1)
    owner, _, last = name.rpartition(".")
    setattr(layer.get_submodule(owner), last, other.get_parameter(name))


def model(seed: int, dropout: float = 0.0) -> Generated:
    """The model of a seed, in double precision; the same in every process."""
    torch.manual_seed(seed)
    found: Any = Generated(seed, dropout).double()
    return found


def data(pooled: bool = False) -> Data:
    """A graph to run it on."""
    found = graph(nodes=NODES, edges=150)
    generator = torch.Generator().manual_seed(1)
    found.x = torch.randn(NODES, FEATURES, generator=generator, dtype=torch.float64)
    found.y = torch.randint(CLASSES, (1 if pooled else NODES,), generator=generator)
    found.train_mask = torch.rand(NODES, generator=generator) < 0.7
    return found
