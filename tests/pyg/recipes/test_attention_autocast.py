"""Attention under autocast: dtypes are stock's, and values as near to the exact ones as its own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric import nn as pyg

from hag_plugin.pyg import accelerate, explain
from hag_plugin.testing import Ran, limits

from .test_attention import FIRST, LAYERS, WIDTH, arguments
from .test_dtypes import ROUNDING, assert_alike, autocast, exactly, run

NODES, EDGES = 25, 160
HALVES = (torch.bfloat16, torch.float16)


def given_to(name: str, dtype: torch.dtype = torch.float32) -> list[Any]:
    torch.manual_seed(1)
    edges = torch.randint(NODES - 1, (2, EDGES))
    edges[:, :4] = torch.tensor([[1, 2, 2, 0], [1, 2, 2, NODES - 1]])
    given = arguments(name, NODES, edges, dtype)
    return [g.requires_grad_() if g.is_floating_point() else g for g in given]


def _forgetful(stock: Any) -> Any:
    """Without what SuperGATConv keeps of a call for its loss, of which there is no copy."""
    if isinstance(stock, pyg.SuperGATConv):
        stock.att_x = stock.att_y = None
    return stock


def assert_near(stock: nn.Module, ours: nn.Module, given: list[Any], cast: Any) -> None:
    """`ours` may be compiled."""
    exact = exactly(_forgetful(stock), given, autocast(None))
    expected = run(stock, given, autocast(cast))
    assert isinstance(expected, list), expected
    found = run(ours, given, autocast(cast))
    assert_alike(found, expected, exact, ROUNDING[cast])


@pytest.mark.mostly_slow(*(f"{name}-*" for name in FIRST))
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("cast", HALVES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer(name: str, cast: torch.dtype, training: bool, ran: Ran) -> None:
    torch.manual_seed(0)
    stock = LAYERS[name]().train(training)
    ours = accelerate(copy.deepcopy(stock))
    with limits(few_messages=0, passing_gain=0.0):
        for _ in range(2):
            assert_near(stock, ours, given_to(name), cast)
    assert explain(ours)[0].calls.counts == {"plain": 2}
    assert len(ran.forward) >= 2


@pytest.mark.parametrize("model", [torch.float64, *HALVES], ids=str)
@pytest.mark.parametrize("name", FIRST)
def test_models_of_other_dtypes(name: str, model: torch.dtype) -> None:
    """Which autocast turns to its own where it knows how; where stock fails, so may these."""
    torch.manual_seed(0)
    stock = LAYERS[name]().to(model)
    ours = accelerate(copy.deepcopy(stock))
    for features in (torch.float32, model):
        given = given_to(name, features)
        if isinstance(run(stock, given, autocast(torch.bfloat16)), list):
            with limits(few_messages=0, passing_gain=0.0):
                assert_near(stock, ours, given, torch.bfloat16)


@pytest.mark.parametrize("cls", [pyg.HANConv, pyg.HGTConv])
def test_types_of_edges(cls: Any) -> None:
    types = [("a", "to", "b"), ("b", "to", "a"), ("a", "to", "a")]
    sizes = {"a": 20, "b": 30}
    edges = {
        t: torch.stack([torch.randint(sizes[t[0]], (90,)), torch.randint(sizes[t[2]], (90,))])
        for t in types
    }

    class Stacked(nn.Module):
        def __init__(self, conv: nn.Module) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return torch.cat(list(self.conv({"a": a, "b": b}, edges).values()))

    stock = Stacked(cls({"a": WIDTH, "b": WIDTH}, 8, (["a", "b"], types), heads=2))
    ours = accelerate(copy.deepcopy(stock))
    x = [torch.randn(n, WIDTH, requires_grad=True) for n in sizes.values()]
    with limits(few_messages=0, passing_gain=0.0):
        assert_near(stock, ours, x, torch.bfloat16)
    assert set(explain(ours)[0].calls.counts) == {"plain"}


@pytest.mark.mostly_slow("gat-edges-*", "transformer-edges-*", "gatv2-*", "fa-*", "supergat-*")
@pytest.mark.parametrize("cast", HALVES, ids=str)
@pytest.mark.parametrize("name", [n for n in LAYERS if not n.startswith("rgat")])
def test_in_compiled_code(name: str, cast: torch.dtype) -> None:
    """In one piece; what is compiled with autocast is not taken without it, nor the reverse."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    stock = LAYERS[name]().eval()
    ours = accelerate(copy.deepcopy(stock))
    model: Any = torch.compile(ours, backend="aot_eager", fullgraph=True)
    given = given_to(name)
    for _ in range(2):
        assert_near(stock, model, given, cast)
        torch.testing.assert_close(model(*given), stock(*given))
    assert set(explain(ours)[0].calls.counts) == {"plain"}
