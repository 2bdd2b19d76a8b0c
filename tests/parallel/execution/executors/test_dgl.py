"""DGL's layers in every strategy, against the stock layers."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hag_plugin as hp
from hag_plugin.dgl import graphbolt_stand_in
from hag_plugin.parallel.model.calls import Call, Edges
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.search.planner import planned
from hag_plugin.parallel.strategies.registry import Problem

from ...equality import space_with, whole
from ...run_ranks import run_threads
from ...sites import check_all

if importlib.util.find_spec("dgl") is None:
    pytest.skip("DGL is not installed", allow_module_level=True)
if not importlib.metadata.version("dgl").startswith("1."):
    graphbolt_stand_in()
import dgl
from dgl.nn import pytorch as layers

NODES, FEATURES, CLASSES = 30, 8, 4


class Alone(nn.Module):
    """A model of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, graph: Any, x: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        return self.layer(graph, x)


class Two(nn.Module):
    """Layers with dropout, activation and norm of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = layers.SAGEConv(FEATURES, 8, "mean", activation=torch.relu)
        self.second = layers.GraphConv(8, 8, allow_zero_in_degree=True, activation=torch.tanh)
        self.third = layers.GINConv(nn.Linear(8, CLASSES), "mean", learn_eps=True)

    def forward(self, graph: Any, x: Tensor) -> Tensor:
        return self.third(graph, self.second(graph, self.first(graph, x)))


def graph() -> tuple[Any, Tensor]:
    """A multigraph with loops; the last nodes have no edges."""
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(NODES - 3, (2, 150), generator=generator)
    edges = torch.cat([edges, edges[:, :30]], dim=1)
    x = torch.randn(NODES, FEATURES, dtype=torch.float64, generator=generator)
    return dgl.graph(tuple(edges), num_nodes=NODES), x


LAYERS = {
    **{
        f"GraphConv, {norm}": lambda norm=norm: layers.GraphConv(
            FEATURES, CLASSES, norm=norm, allow_zero_in_degree=True
        )
        for norm in ("both", "left", "right", "none")
    },
    "GraphConv, wider": lambda: layers.GraphConv(
        FEATURES, 12, allow_zero_in_degree=True, bias=False
    ),
    "SAGEConv, mean": lambda: layers.SAGEConv(FEATURES, CLASSES, "mean"),
    "SAGEConv, gcn": lambda: layers.SAGEConv(FEATURES, CLASSES, "gcn", bias=False),
}


@pytest.mark.mostly_slow("*-2-True")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("name", LAYERS)
def test_strategies_give_the_stock_layer(name: str, devices: int, weighted: bool) -> None:
    (g, x), layer = graph(), LAYERS[name]().double()
    traced = trace(Alone(layer), (g, x), itemsize=8)
    op = next(op for op in traced.ops if op.kind == "convolution")
    problem = Problem(traced, replace(op, input_grad=True), devices)
    extra = {}
    if weighted:
        extra["edge_weight"] = torch.rand(g.num_edges(), dtype=torch.float64)
    call = Call(type(layer).__name__, (g, x), extra)
    loops = "add" if name == "SAGEConv, gcn" else False
    edges = Edges(torch.stack(g.edges()), loops)
    check_all(problem, layer, lambda conv, x: conv(g, x, **extra), call, edges, x)


STRATEGIES = ("rows, halo", "rows, vertex-cover halo", "all-to-all around aggregation")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_models_run_as_their_plans_say(strategy: str) -> None:
    (g, x), model = graph(), Two().double()
    expected = model(g, x)
    expected.square().mean().backward()
    traced = trace(model, (g, x), hag=False)
    space = space_with(traced, 4, lambda op, c: op.kind != "convolution" or c.strategy == strategy)
    plan = planned(space, space.cheapest().configs)

    def case(rank: int) -> Any:
        mine = hp.parallel.parallelize(model, (g, x), plan)
        out = mine()
        mine.parallel.mean(out.square()).backward()
        return mine.parallel.gather(out), {n: whole(p.grad) for n, p in mine.named_parameters()}

    for out, gradients in run_threads(4, case):
        torch.testing.assert_close(out, expected.detach(), rtol=1e-10, atol=1e-10)
        wanted = {n: p.grad for n, p in model.named_parameters()}
        torch.testing.assert_close(gradients, wanted, rtol=1e-10, atol=1e-10)


def test_nodes_without_edges_are_refused_as_dgl_does() -> None:
    (g, x), model = graph(), Alone(layers.GraphConv(FEATURES, CLASSES)).double()
    traced = trace(model, (g, x), hag=False)
    plan = planned(space := space_with(traced, 2, lambda op, c: True), space.cheapest().configs)

    def case(rank: int) -> None:
        with pytest.raises(ValueError, match="without edges into them"):
            hp.parallel.parallelize(model, (g, x), plan)

    run_threads(2, case)
