"""Accelerated layers under forward-mode AD and torch.func's transforms equal stock."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric import nn as pyg

from hag_plugin.pyg import accelerate

from ...derivatives import (
    batched_gradients,
    dual,
    forward_over_forward,
    forward_over_reverse,
    gradients_of_many,
    jvp,
    linearised,
    vjp,
)
from .test_table import CONFIGURATIONS as TABLE
from .test_table import RELATIONS, WIDTH, assert_close, variants

LAYERS: dict[str, Callable[[], nn.Module]] = {
    **TABLE,
    "gcn": lambda: pyg.GCNConv(WIDTH, 4),
    "gcn-widening": lambda: pyg.GCNConv(WIDTH, 9, bias=False),
    "sage": lambda: pyg.SAGEConv(WIDTH, 4),
    "sage-max": lambda: pyg.SAGEConv(WIDTH, 4, aggr="max", project=True),
    "sage-lstm": lambda: pyg.SAGEConv(WIDTH, 4, aggr="lstm"),
    "gin": lambda: pyg.GINConv(nn.Linear(WIDTH, 4), train_eps=True),
    "graph": lambda: pyg.GraphConv(WIDTH, 9),
    "graph-min": lambda: pyg.GraphConv(WIDTH, 4, aggr="min"),
    "rgat": lambda: pyg.RGATConv(WIDTH, 4, RELATIONS, heads=2, concat=False),
    "rgat-within": lambda: pyg.RGATConv(
        WIDTH, 4, RELATIONS, attention_mechanism="within-relation", num_blocks=2
    ),
    "rgat-product": lambda: pyg.RGATConv(
        WIDTH, 4, RELATIONS, attention_mode="multiplicative-self-attention", dim=2, num_bases=2
    ),
}
HESSIANS = ("gcn", "sage", "sage-max", "gin", "pna", "gen", "eg", "cheb", "sage-lstm", "rgat")


# of torch's own batching rules
pytestmark = pytest.mark.filterwarnings(
    "ignore:There is a performance drop", "ignore:Attempted to insert a get_attr Node"
)

TRANSFORMS = (
    *(jvp, dual, linearised, vjp, gradients_of_many),
    *(batched_gradients, forward_over_reverse, forward_over_forward),
)


def small_graph(nodes: int = 7) -> Any:
    """Directed, with duplicates, loops and a node without edges."""
    edges = torch.randint(nodes - 1, (2, 3 * nodes))
    edges = torch.cat([edges, edges[:, :4]], dim=1)
    edges = edges[:, edges[1].argsort(stable=True)]  # as an LSTM must have them
    return SimpleNamespace(edge_index=edges, num_src=nodes)


def of_features(conv: Any, arguments: list[Any]) -> Callable[[Tensor], Tensor]:
    return lambda x: conv(x, *arguments[1:])


@pytest.mark.mostly_slow("lg", "rgcn", "rgcn-bases", "sage-lstm", "hyper-mean")
@pytest.mark.parametrize("name", LAYERS)
def test_layer_derives_as_stock(name: str) -> None:
    """With a HAG given, which is new to the transform; and with edges that came back."""
    graph = small_graph()
    stock = LAYERS[name]().double().eval()
    x, v = torch.randn(2, graph.num_src, WIDTH, dtype=torch.float64)
    plain, handed = variants(stock, x, graph)
    ours = accelerate(copy.deepcopy(stock))
    stock(*plain), ours(*plain), ours(*plain)  # fills caches, and makes the HAG of the edges
    f = of_features(stock, plain)
    for transform in TRANSFORMS:
        try:
            expected = transform(f, x, v)
        except (NotImplementedError, RuntimeError):  # stock has no such derivative
            continue
        with_edges, with_hag = of_features(ours, plain), of_features(ours, handed)
        for g in (with_edges,) if name == "sage-lstm" else (with_edges, with_hag):
            assert_close(transform(g, x, v), expected)
            assert_close(g(x).detach(), f(x).detach())  # nothing of the transform was kept


@pytest.mark.parametrize("name", HESSIANS)
def test_hessian(name: str) -> None:
    graph = small_graph(4)
    stock = LAYERS[name]().double().eval()
    x = torch.randn(graph.num_src, WIDTH, dtype=torch.float64)
    plain, handed = variants(stock, x, graph)
    ours = accelerate(copy.deepcopy(stock))
    for arguments in (plain, plain, handed):
        if name != "sage-lstm" or arguments is plain:
            ours(*arguments)
            f, g = of_features(ours, arguments), of_features(stock, plain)
            hessians = [torch.func.hessian(lambda x, h=h: h(x).pow(3).sum())(x) for h in (f, g)]
            assert_close(*hessians)


@pytest.mark.parametrize("name", ["gcn", "sage", "sage-max", "gin", "pna", "rgat"])
def test_gradients_by_parameters(name: str) -> None:
    """One model for many sets of parameters and of features; features are constant."""
    graph = small_graph()
    stock = LAYERS[name]().double().eval()
    x = torch.randn(graph.num_src, WIDTH, dtype=torch.float64)
    plain, handed = variants(stock, x, graph)
    ours = accelerate(copy.deepcopy(stock))
    parameters = {n: torch.stack([p, 2 * p, p.cos()]).detach() for n, p in stock.named_parameters()}

    def gradients(conv: nn.Module, arguments: list[Any]) -> dict[str, Tensor]:
        def loss(parameters: dict[str, Tensor]) -> Tensor:
            y: Tensor = torch.func.functional_call(conv, parameters, tuple(arguments))
            return y.square().sum()

        found: dict[str, Tensor] = torch.vmap(torch.func.grad(loss))(parameters)
        return found

    expected = gradients(stock, plain)
    for arguments in (plain, plain, plain, handed, handed, handed):
        for name, grad in gradients(ours, arguments).items():
            assert_close(grad, expected[name])
        assert_close(ours(*arguments).detach(), stock(*plain).detach())
