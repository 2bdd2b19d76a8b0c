"""Layers of PyG's models that aggregate rows: labels that spread, and LINKX's rows of weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric import nn as pyg
from torch_geometric.nn.models.linkx import SparseLinear

import hag_plugin as hp
from hag_plugin.pyg import accelerate, explain
from hag_plugin.pyg.recipes.recipe import stock_class
from hag_plugin.pyg.recipes.table import RECIPES
from hag_plugin.testing import Ran

CLASSES = 5


@pytest.fixture
def float64_weights() -> Iterator[None]:
    """PyG's weights have the default dtype, whatever that of the labels."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def first_third(n: int) -> Tensor:
    return torch.arange(n) % 3 == 0


def turned(x: Tensor) -> Tensor:
    return x.sin()


LABELS: dict[str, Callable[[int], Tensor]] = {
    "labels": lambda n: torch.arange(n) % CLASSES,
    "column": lambda n: (torch.arange(n) % CLASSES).view(-1, 1),
    "scores": lambda n: torch.rand(n, CLASSES).double(),
    "half": lambda n: torch.rand(n, CLASSES).half(),
    "counts": lambda n: torch.arange(n * 2).view(n, 2) % 2,
}
OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "alone": lambda n: {},
    "mask": lambda n: {"mask": first_third(n)},
    "step": lambda n: {"mask": first_third(n).nonzero().view(-1), "post_step": turned},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("labels", LABELS)
def test_label_propagation(
    labels: str, options: str, awkward: Any, float64_weights: None, ran: Ran
) -> None:
    n, edge_index = awkward.num_src, awkward.edge_index
    stock = pyg.LabelPropagation(3, 0.7)
    ours, y, given = accelerate(copy.deepcopy(stock)), LABELS[labels](n), OPTIONS[options](n)
    expected = stock(y, edge_index, **given)
    for edges in (hp.build_hag(edge_index, num_nodes=n), edge_index, edge_index):
        got = ours(y, edges, **given)
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    assert len(ran.forward) == 3 * 3  # with a HAG, and with edges, met first and come back
    assert "stock" not in explain(ours)[0].calls.counts


@pytest.mark.parametrize("kind", ["ones", "factors", "any"])
def test_label_propagation_takes_weights_as_they_are(
    kind: str, awkward: Any, float64_weights: None, ran: Ran
) -> None:
    n, (source, target) = awkward.num_src, awkward.edge_index
    factors = torch.rand(2, n)
    weight = {
        "ones": torch.ones(len(source)),
        "factors": factors[0, source] * factors[1, target],
        "any": torch.rand(len(source)),
    }[kind]
    stock, y = pyg.LabelPropagation(2, 0.5), LABELS["scores"](n)
    other = pyg.LGConv()  # which normalises them, in the same model
    ours = accelerate(torch.nn.ModuleList([copy.deepcopy(stock), copy.deepcopy(other)]))
    for _ in range(3):
        torch.testing.assert_close(
            ours[0](y, awkward.edge_index, edge_weight=weight),
            stock(y, awkward.edge_index, edge_weight=weight),
        )
        torch.testing.assert_close(
            ours[1](y, awkward.edge_index, weight), other(y, awkward.edge_index, weight)
        )
    assert ran.forward


def test_correct_and_smooth(awkward: Any, float64_weights: None, ran: Ran) -> None:
    n, edge_index = awkward.num_src, awkward.edge_index
    mask = first_third(n)
    soft, true = torch.rand(n, CLASSES).softmax(1), (torch.arange(n) % CLASSES)[mask]
    for scaled in (True, False):
        stock = pyg.CorrectAndSmooth(3, 0.8, 2, 0.6, autoscale=scaled)
        ours = accelerate(copy.deepcopy(stock))
        for edges in (hp.build_hag(edge_index, num_nodes=n), edge_index, edge_index):
            for method in ("forward", "correct", "smooth"):
                expected = getattr(stock, method)(soft, true, mask, edge_index)
                got = getattr(ours, method)(soft, true, mask, edges)
                torch.testing.assert_close(got, expected, equal_nan=True)
    assert len(ran.forward) >= 2 * 2 * (3 + 2)


def test_linkx(awkward: Any, ran: Ran) -> None:
    n, edge_index = awkward.num_src, awkward.edge_index
    stock = pyg.LINKX(n, 4, 6, 3, 2).double()
    ours, x = accelerate(copy.deepcopy(stock)), torch.randn(n, 4, dtype=torch.float64)
    weight = torch.rand(edge_index.shape[1], dtype=torch.float64, requires_grad=True)
    calls = [(hp.build_hag(edge_index, num_nodes=n), None), *2 * [(edge_index, None)]]
    for edges, given in (*calls, *2 * [(edge_index, weight)]):
        found = []
        for model, graph in ((ours, edges), (stock, edge_index)):
            model.zero_grad()
            weight.grad = None
            y = model(x, graph, given)
            y.sin().sum().backward()
            found.append([y, weight.grad, *(p.grad for p in model.parameters())])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b)
    assert len(ran.forward) == 5
    layer = ours.edge_lin
    assert stock_class(layer) is SparseLinear
    assert SparseLinear in RECIPES
    assert explain(ours)[0].aggregates == "sum over A"
