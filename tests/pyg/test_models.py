"""Public models, and networks as PyG's examples define them, train to the same losses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch_geometric import nn as pyg
from torch_geometric.nn import models

import hag_plugin as hp
from hag_plugin.pyg import accelerate, explain, relation_hags

WIDTH, CLASSES, RELATIONS, STEPS = 12, 4, 3, 5
DEGREES = torch.tensor([5, 10, 20, 15, 9, 4, 2, 1])


class Stack(nn.Module):
    """Layers with activations between, as in gcn.py, cora.py, rgcn.py and others."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, *edges: Any) -> Tensor:
        for layer in self.layers[:-1]:
            x = functional.dropout(layer(x, *edges).relu(), p=0.5, training=self.training)
        return self.layers[-1](x, *edges)


class Appnp(nn.Module):
    """examples/appnp: an MLP, then propagation."""

    def __init__(self) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(WIDTH, 16), nn.Linear(16, CLASSES)
        self.prop = pyg.APPNP(K=10, alpha=0.1)

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        return self.prop(self.lin2(self.lin1(x).relu()), edge_index)


class TuGin(nn.Module):
    """examples/mutag_gin.py: GIN, a sum of all nodes, an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.gnn = models.GIN(WIDTH, 16, 3, dropout=0.5)
        self.classifier = models.MLP([16, 16, CLASSES], norm=None, dropout=0.5)

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        x = self.gnn(x, edge_index)
        return self.classifier(torch.cat([x[:30].sum(0, True), x[30:].sum(0, True)]))


class Pna(nn.Module):
    """examples/pna.py without its edge features: PNAConv, BatchNorm, residual-free."""

    def __init__(self) -> None:
        super().__init__()
        arguments: Any = (["mean", "min", "max", "std"], ["identity", "amplification"], DEGREES)
        self.convs = nn.ModuleList(
            pyg.PNAConv(WIDTH, WIDTH, *arguments, towers=2, divide_input=True) for _ in range(2)
        )
        self.norms = nn.ModuleList(pyg.BatchNorm(WIDTH) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, CLASSES))

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x, edge_index)).relu()
        return self.mlp(x)


MODELS = {
    "models.GCN": lambda: models.GCN(WIDTH, 16, 3, CLASSES, dropout=0.3, jk="cat"),
    "models.GraphSAGE": lambda: models.GraphSAGE(WIDTH, 16, 3, CLASSES, norm="layer"),
    "models.GIN": lambda: models.GIN(WIDTH, 16, 2, CLASSES),
    "models.PNA": lambda: models.PNA(
        WIDTH, 16, 2, CLASSES, aggregators=["mean", "std"], scalers=["linear"], deg=DEGREES
    ),
    "gcn": lambda: Stack(pyg.GCNConv(WIDTH, 16), pyg.GCNConv(16, CLASSES)),
    "cheb": lambda: Stack(pyg.ChebConv(WIDTH, 16, K=2), pyg.ChebConv(16, CLASSES, K=2)),
    "sgc": lambda: Stack(pyg.SGConv(WIDTH, CLASSES, K=2)),
    "appnp": Appnp,
    "mutag_gin": TuGin,
    "pna": Pna,
    "rgcn": lambda: Stack(
        pyg.RGCNConv(WIDTH, 16, RELATIONS, num_bases=2), pyg.RGCNConv(16, CLASSES, RELATIONS)
    ),
}


def losses(model: nn.Module, x: Tensor, *edges: Any) -> list[float]:
    torch.manual_seed(3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    curve = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        out = model(x, *edges)
        loss = functional.cross_entropy(out, torch.arange(len(out)) % CLASSES)
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


@pytest.mark.parametrize("name", MODELS)
def test_same_losses(name: str, awkward: Any) -> None:
    n = awkward.num_src
    model = MODELS[name]().double()
    x = torch.randn(n, WIDTH, dtype=torch.float64)
    edges: list[Any] = [awkward.edge_index]
    hag: Any = hp.build_hag(awkward.edge_index, num_nodes=n)
    if name == "rgcn":
        edges.append(torch.randint(RELATIONS, (awkward.edge_index.shape[1],)))
        hag = relation_hags(*edges, RELATIONS, (n, n))
    twins = [accelerate(copy.deepcopy(model)) for _ in range(2)]
    assert all(row.accelerated for row in explain(twins[0]))
    stock = losses(model, x, *edges)
    assert stock[-1] < stock[0]
    # Several times normalised, a rounding error of the first step grows.
    for ours in (losses(twins[0], x, hag), losses(twins[1], x, *edges)):
        assert ours == pytest.approx(stock, rel=1e-8)
    session = next(iter(twins[1]._forward_pre_hooks.values()))
    assert session.num_hags == 1


# Around a model ---------------------------------------------------------------------------------


def _train(rank: int, file: str, curves: Any) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    model = accelerate(Stack(pyg.GCNConv(WIDTH, 16), pyg.PNAConv(
        16, CLASSES, ["mean", "std"], ["linear"], DEGREES)))  # fmt: skip
    edge_index = torch.randint(20, (2, 60), generator=torch.Generator().manual_seed(rank))
    curves[rank] = losses(DistributedDataParallel(model), torch.ones(20, WIDTH), edge_index)
    assert next(iter(model._forward_pre_hooks.values())).num_hags == 1
    curves[2 + rank] = [p.detach().sum().item() for p in model.parameters()]
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path: Any) -> None:
    """Each rank has a graph of its own; gradients are averaged, so weights stay equal."""
    context = torch.multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        curves = manager.dict()
        torch.multiprocessing.start_processes(
            _train, (str(tmp_path / "store"), curves), nprocs=2, start_method="spawn"
        )
        assert curves[0] != curves[1]
        assert curves[2] == curves[3]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["models.GCN", "models.GraphSAGE", "gcn"])
def test_export(name: str, awkward: Any) -> None:
    """With plain tensors the program that torch.export sees is stock's."""
    model = MODELS[name]().eval()
    x = torch.randn(awkward.num_src, WIDTH)
    expected = model(x, awkward.edge_index)
    accelerated = accelerate(copy.deepcopy(model))
    accelerated(x, awkward.edge_index), accelerated(x, awkward.edge_index)
    for given in (model, accelerated):
        exported = torch.export.export(given, (x, awkward.edge_index))
        torch.testing.assert_close(exported.module()(x, awkward.edge_index), expected)
