"""Convolutions in every strategy, order and choice of HAG, against the stock layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric import nn as pyg
from torch_geometric.data import Data

from hag_plugin.parallel.model.calls import Call, Edges
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.strategies.registry import Problem

from ...sites import check_all


class Alone(nn.Module):
    """A model of one layer, or of one with relations or with weights of edges."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_type: Tensor | None = None,
        edge_weight: Tensor | None = None,
    ) -> Tensor:
        return self.layer(x, edge_index, *(v for v in (edge_type, edge_weight) if v is not None))


def graph(nodes: int, count: int, seed: int = 0) -> Data:
    """A directed multigraph with loops; the last eighth of the nodes have no edges."""
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(max(nodes * 7 // 8, 1), (2, count), generator=generator)
    edges = torch.cat([edges, edges[:, : count // 5]], dim=1)
    x = torch.randn(nodes, 8, dtype=torch.float64, generator=generator)
    return Data(x=x, edge_index=edges)


def with_weights(model: nn.Module, data: Data) -> Tensor:
    return model(data.x, data.edge_index, edge_weight=data.edge_weight)


def problem_of(layer: nn.Module, data: Data, devices: int, first: bool = False) -> Problem:
    """The layer's own operation; `first`: its input is the fixed features."""
    call = with_weights if "edge_weight" in data else None
    traced = trace(Alone(layer), data, itemsize=8, call=call)
    op = next(op for op in traced.ops if op.kind in ("convolution", "attention"))
    return Problem(traced, replace(op, input_grad=not first), devices)


def check(layer: nn.Module, data: Data, devices: int, first: bool = False, **options: Any) -> set:
    """Every configuration against the layer itself; returns (strategy, order, hag) of each."""
    layer = layer.double()
    problem = problem_of(layer, data, devices, first)
    extra = [data[key] for key in ("edge_type", "edge_weight") if key in data]
    call = Call(type(layer).__name__, (data.x, data.edge_index, *extra), {})
    loops = "add" if isinstance(layer, pyg.SimpleConv) else "fill"
    loops = loops if problem.op.graph.startswith("A+I") else False
    edges = Edges(data.edge_index, loops, data.get("edge_type"))

    def stock(conv: nn.Module, x: Tensor) -> Tensor:
        return conv(x, data.edge_index, *extra)

    found = check_all(problem, layer, stock, call, edges, data.x, **options)
    return {(c.strategy, c.order, c.hag) for c in found}


DEGREES = torch.tensor([4, 8, 8, 4, 2])
LAYERS = {
    "GCN": lambda: pyg.GCNConv(8, 4),
    "GCN, wider": lambda: pyg.GCNConv(8, 12),
    "GCN, improved": lambda: pyg.GCNConv(8, 4, improved=True),
    "GCN without loops": lambda: pyg.GCNConv(8, 4, add_self_loops=False, bias=False),
    "GCN without normalisation": lambda: pyg.GCNConv(8, 4, normalize=False),
    "SAGE": lambda: pyg.SAGEConv(8, 4),
    "SAGE without root": lambda: pyg.SAGEConv(8, 4, root_weight=False),
    "SAGE, sum": lambda: pyg.SAGEConv(8, 4, aggr="sum"),
    "SAGE, max": lambda: pyg.SAGEConv(8, 4, aggr="max"),
    "SAGE, median": lambda: pyg.SAGEConv(8, 4, aggr="median"),
    "GraphConv": lambda: pyg.GraphConv(8, 12),
    "SimpleConv": lambda: pyg.SimpleConv(combine_root=None),
    "SimpleConv with loops": lambda: pyg.SimpleConv(aggr="mean", combine_root="self_loop"),
    "GAT": lambda: pyg.GATConv(8, 4, heads=4),
    "GAT, averaged": lambda: pyg.GATConv(8, 8, heads=4, concat=False),
    "PNA": lambda: pyg.PNAConv(
        8, 4, ["mean", "max", "std"], ["identity", "amplification"], DEGREES, towers=2
    ),
    "PNA, divided": lambda: pyg.PNAConv(
        8, 4, ["sum"], ["identity"], DEGREES, towers=2, divide_input=True
    ),
}


@pytest.mark.mostly_slow("*-2-True")
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("name", LAYERS)
def test_strategies_give_the_stock_layer(name: str, devices: int, first: bool) -> None:
    check(LAYERS[name](), graph(30, 150), devices, first)


RELATIONAL = {
    "RGCN": lambda: pyg.RGCNConv(8, 4, 5),
    "RGCN, sum": lambda: pyg.RGCNConv(8, 12, 5, aggr="sum", root_weight=False),
    "RGCN, max": lambda: pyg.RGCNConv(8, 4, 5, aggr="max", bias=False),
    "RGCN of bases": lambda: pyg.RGCNConv(8, 4, 5, num_bases=3),
    "RGCN of bases, alone": lambda: pyg.RGCNConv(
        8, 4, 5, num_bases=2, root_weight=False, bias=False
    ),
    "RGCN of blocks": lambda: pyg.RGCNConv(8, 12, 5, num_blocks=4, aggr="sum"),
}


@pytest.mark.mostly_slow("*-2-True")
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("name", RELATIONAL)
def test_relational_layers(name: str, devices: int, first: bool) -> None:
    data = graph(30, 150)
    data.edge_type = torch.randint(5, (data.num_edges,))
    found = check(RELATIONAL[name](), data, devices, first)
    assert {strategy for strategy, _, _ in found} == {
        "replicate", "rows, all-gather", "rows, halo", "relations",
    }  # fmt: skip


@pytest.mark.parametrize("options", [{"num_bases": 2}, {"num_blocks": 2}])
def test_one_relation(options: dict[str, int]) -> None:
    data = graph(30, 150)
    data.edge_type = torch.zeros(data.num_edges, dtype=torch.long)
    found = check(pyg.RGCNConv(8, 4, 1, **options), data, 2)
    assert {strategy for strategy, _, _ in found} == {"replicate", "rows, all-gather", "rows, halo"}


WEIGHTED = {
    "GCN": lambda: pyg.GCNConv(8, 4),
    "GCN, improved": lambda: pyg.GCNConv(8, 4, improved=True),
    "GCN without normalisation": lambda: pyg.GCNConv(8, 4, normalize=False),
    "GraphConv": lambda: pyg.GraphConv(8, 4, aggr="mean"),
    "GraphConv, max": lambda: pyg.GraphConv(8, 4, aggr="max"),
    "SimpleConv with loops": lambda: pyg.SimpleConv(combine_root="self_loop"),
}


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_of_edges(name: str, devices: int) -> None:
    data = graph(30, 150)
    data.edge_weight = torch.rand(data.num_edges, dtype=torch.float64)
    found = check(WEIGHTED[name](), data, devices)
    assert {hag for _, _, hag in found} == {"off"}


GRAPHS = {
    "fewer nodes than chunks": graph(9, 40),
    "no edges": Data(x=torch.randn(10, 8).double(), edge_index=torch.empty(2, 0).long()),
    "empty halos": Data(
        x=torch.randn(16, 8).double(),
        edge_index=torch.tensor([[0, 1, 4, 8, 12, 13], [1, 0, 5, 9, 13, 12]]),
    ),
    "one hub": Data(
        x=torch.randn(13, 8).double(),
        edge_index=torch.stack([torch.arange(13), torch.zeros(13).long()]),
    ),
}


@pytest.mark.mostly_slow("*-no edges")
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("layer", ["GCN", "SAGE", "GAT", "PNA", "SAGE, max"])
def test_awkward_graphs(name: str, layer: str) -> None:
    check(LAYERS[layer](), GRAPHS[name], 4)


@pytest.mark.mostly_slow("GAT-*")
@pytest.mark.parametrize("devices", [8, 16])
@pytest.mark.parametrize("layer", ["GCN", "SAGE", "GAT"])
def test_many_ranks(layer: str, devices: int) -> None:
    wide = {
        "GCN": lambda: pyg.GCNConv(8, 33),
        "SAGE": lambda: pyg.SAGEConv(8, 33),
        "GAT": lambda: pyg.GATConv(8, 2, heads=devices),
    }
    check(wide[layer](), graph(70, 400), devices)
