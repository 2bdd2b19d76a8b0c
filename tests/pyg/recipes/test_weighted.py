"""Plain edge indices with weights, under accelerate: equal to stock, and by which way."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric import nn as pyg
from torch_geometric.nn.models.linkx import SparseLinear

from hag_plugin.pyg import accelerate
from hag_plugin.pyg.recipes.table import RECIPES
from hag_plugin.testing import Ran

from .test_table import CONFIGURATIONS, FIRST, WIDTH


def fuses(conv: nn.Module) -> bool:
    return RECIPES[type(conv)].fuses_weights


REVERSE = "target_to_source"
# Those of the table as they are first configured there, but for some.
LAYERS = {name: CONFIGURATIONS[name] for name in FIRST if fuses(CONFIGURATIONS[name]())} | {
    "graph": lambda: pyg.GraphConv(WIDTH, 3),
    "graph-mean": lambda: pyg.GraphConv(WIDTH, 3, aggr="mean", flow=REVERSE),
    "simple": lambda: pyg.SimpleConv(),
    "simple-loop": lambda: pyg.SimpleConv(combine_root="self_loop"),
    "arma": lambda: pyg.ARMAConv(WIDTH, 3, num_stacks=2),  # of two layers, a kink turns half types
    "gcn": lambda: pyg.GCNConv(WIDTH, 3),
    "gcn-improved": lambda: pyg.GCNConv(WIDTH, 3, improved=True),
    "gcn-reverse": lambda: pyg.GCNConv(WIDTH, 3, add_self_loops=False, flow=REVERSE),
    "gcn-unnormalised": lambda: pyg.GCNConv(WIDTH, 3, normalize=False, aggr="mean"),
}


def test_every_layer_with_weights_is_tried() -> None:
    expected = {cls for cls, recipe in RECIPES.items() if recipe.fuses_weights}
    elsewhere = {pyg.LabelPropagation, SparseLinear}  # test_rows_of_models.py
    assert {type(make()) for make in LAYERS.values()} | elsewhere == expected


def weights(kind: str, graph: Any) -> Tensor:
    source, target = graph.edge_index
    if kind == "ones":
        return torch.ones(len(source), dtype=torch.float64)
    if kind == "factors":
        factors = 0.5 + torch.rand(2, graph.num_src, dtype=torch.float64)
        return factors[0, source] * factors[1, target]
    return 0.1 + torch.rand(len(source), dtype=torch.float64)


def run(conv: nn.Module, x: Tensor, edge_index: Tensor, weight: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_(), weight]
    arguments = [leaves[0], leaves[0]] if isinstance(conv, pyg.GCN2Conv) else [leaves[0]]
    leaves += conv.parameters()
    for leaf in leaves:
        leaf.grad = None
    y = conv(*arguments, edge_index, edge_weight=weight)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return [y.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("kind", ["ones", "factors", "any", "learned"])
@pytest.mark.parametrize("name", LAYERS)
def test_weights_equal_stock(name: str, kind: str, awkward: Any, ran: Ran) -> None:
    stock = LAYERS[name]().double()
    accelerated = accelerate(copy.deepcopy(stock))
    weight = weights(kind, awkward).requires_grad_(kind == "learned")
    x = torch.randn(awkward.num_src, WIDTH, dtype=torch.float64)
    expected = run(stock, x, awkward.edge_index, weight)
    ran_first: set[str] | None = None
    for _ in range(3):
        ran.programs.clear()
        ours = run(accelerated, x, awkward.edge_index, weight)
        assert len(ours) == len(expected)
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        assert ran.forward
        if ran_first is None:
            ran_first = {run.operator for run in ran.forward}
    assert ran_first == {"weighted_sum"}  # met first: not searched for factors
    # Loops of weight 1 spoil products; those of improved=True have weight 2.
    factorises = kind == "ones" and name != "gcn-improved"
    factorises |= kind == "factors" and RECIPES[type(stock)].record.self_loops(stock) is False
    assert {run.operator for run in ran.forward} == {"aggregate" if factorises else "weighted_sum"}


def test_weights_that_change(awkward: Any) -> None:
    stock = pyg.GCNConv(WIDTH, 3).double()
    accelerated = accelerate(copy.deepcopy(stock))
    weight = weights("any", awkward)
    x = torch.randn(awkward.num_src, WIDTH, dtype=torch.float64)
    for step in range(6):
        if step == 3:
            weight[:20] = 2.0
        given = weight if step != 4 else weight.clone()  # another tensor: its order is known
        torch.testing.assert_close(
            accelerated(x, awkward.edge_index, given), stock(x, awkward.edge_index, given)
        )


def test_dtypes_promote_as_in_stock(awkward: Any) -> None:
    x = torch.randn(awkward.num_src, WIDTH)
    for dtype in (torch.float64, torch.float32, torch.float16):
        weight = weights("any", awkward).to(dtype)
        accelerated = accelerate(pyg.SimpleConv())
        for _ in range(3):
            ours = accelerated(x, awkward.edge_index, weight)
            expected = pyg.SimpleConv()(x, awkward.edge_index, weight)
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_what_runs_stock(awkward: Any) -> None:
    """Extrema of weighted messages, weights of several columns, layers with uses of their own."""
    x = torch.randn(awkward.num_src, WIDTH, dtype=torch.float64)
    weight = weights("any", awkward)
    for stock in (
        pyg.GraphConv(WIDTH, 3, aggr="max"),
        pyg.LEConv(WIDTH, 3),
        pyg.ChebConv(WIDTH, 3, K=2),
        pyg.WLConvContinuous(),
        pyg.GCNConv(WIDTH, 3, cached=True),
    ):
        stock = stock.double()
        accelerated = accelerate(copy.deepcopy(stock))
        for _ in range(3):
            ours = accelerated(x, awkward.edge_index, weight)
            assert torch.equal(ours, stock(x, awkward.edge_index, weight))
    column = weight.view(-1, 1)
    accelerated = accelerate(pyg.SimpleConv())
    for _ in range(3):
        ours = accelerated(x, awkward.edge_index, column)
        assert torch.equal(ours, pyg.SimpleConv()(x, awkward.edge_index, column))
