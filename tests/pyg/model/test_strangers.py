"""Graphs that do not come back: after many, most of those that follow are not looked at."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hag_plugin.pyg import accelerate
from hag_plugin.pyg.model import choice
from hag_plugin.testing import limits

NODES, EDGES, WIDTH, MANY = 20, 60, 4, 5
LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "SAGE": pyg.SAGEConv,
    "GCN": pyg.GCNConv,
    "GraphConv": pyg.GraphConv,
    "GIN": lambda i, o: pyg.GINConv(nn.Linear(i, o)),
    "GAT": pyg.GATConv,
    "GATv2": lambda i, o: pyg.GATv2Conv(i, o // 2, heads=2),
    "Transformer": pyg.TransformerConv,
}


class Twice(nn.Module):
    """One graph, two layers."""

    def __init__(self, make: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([make(WIDTH, WIDTH), make(WIDTH, WIDTH)])

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        for layer in self.layers:
            x = layer(x, edge_index)
        return x


@pytest.fixture(autouse=True)
def few() -> Iterator[None]:
    """Whatever is met first is left to stock, but kernels are taken for what came back."""
    with limits(strangers=MANY, few_messages=0, passing_gain=1e6):
        yield


def looked(model: Any) -> list[bool]:
    """Whether each layer looked at the graph of its last call, which was left to stock."""
    reasons = [layer._hag_calls.reasons["stock"] for layer in model.layers]
    assert set(reasons) <= {choice.MET_FEW, choice.STRANGER}
    return [reason == choice.MET_FEW for reason in reasons]


def graph(seed: int, num_edges: int = EDGES) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, NODES, (2, num_edges), generator=generator)


def features() -> Tensor:
    return torch.randn(NODES, WIDTH, dtype=torch.float64)


def model_of(name: str, met: int = MANY) -> tuple[Any, Any]:
    """A stock model and it accelerated, which met so many graphs."""
    stock = Twice(LAYERS[name]).double()
    ours = accelerate(copy.deepcopy(stock))
    for seed in range(met):
        x = features()
        torch.testing.assert_close(ours(x, graph(seed)), stock(x, graph(seed)))
    return stock, ours


PLAIN = [name for name in LAYERS if "AT" not in name and name != "Transformer"]


@pytest.mark.parametrize("name", PLAIN)
def test_most_are_not_looked_at(name: str) -> None:
    stock, ours = model_of(name)
    assert all(looked(ours))
    looks = 0
    for seed in range(3 * MANY):
        x = features()
        torch.testing.assert_close(ours(x, graph(100 + seed)), stock(x, graph(100 + seed)))
        looks += sum(looked(ours))
    assert looks == 2 * 3  # one of so many, by each layer
    for layer in ours.layers:
        assert layer._hag_calls.counts == {"stock": 4 * MANY}


@pytest.mark.parametrize("name", LAYERS)
def test_one_that_comes_back_is_noticed(name: str) -> None:
    """In as many calls as graphs are left alone, twice; then it is never left again."""
    stock, ours = model_of(name)
    again = graph(50)
    with limits(passing_gain=0.0 if name not in PLAIN else 1e6):  # of scores, for all graphs
        for _ in range(2 * MANY):
            x = features()
            torch.testing.assert_close(ours(x, again), stock(x, again))
        counts = dict(ours.layers[0]._hag_calls.counts)
        assert sum(counts.values()) > counts["stock"]
        x = features()
        torch.testing.assert_close(ours(x, again), stock(x, again))
    assert ours.layers[0]._hag_calls.counts["stock"] == counts["stock"]


KINDS: dict[str, Callable[[Any], Any]] = {
    "more edges": lambda m: m(features(), graph(70, EDGES + 1)),
    "no gradients": torch.no_grad()(lambda m: m(features(), graph(70))),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PLAIN)
def test_another_kind_is_looked_at(name: str, kind: str) -> None:
    _, ours = model_of(name)
    KINDS[kind](ours)
    assert all(looked(ours))


@pytest.mark.parametrize("name", PLAIN)
def test_what_came_back_ends_it(name: str) -> None:
    _, ours = model_of(name, met=MANY - 2)
    again = graph(50)
    for _ in range(3):
        ours(features(), again)
    for seed in range(MANY):
        ours(features(), graph(80 + seed))
        assert all(looked(ours))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_checkpoints(name: str, reentrant: bool) -> None:
    stock, ours = model_of(name)
    again = graph(50)
    for seed in range(2 * MANY):
        for edges in (graph(90 + seed), again):
            found = []
            x = features()
            for m in (stock, ours):
                given = x.clone().requires_grad_()
                checkpoint(m, given, edges, use_reentrant=reentrant).sum().backward()
                found.append(given.grad)
            torch.testing.assert_close(found[1], found[0])


def test_errors_are_stock_s() -> None:
    _, ours = model_of("SAGE")
    with pytest.raises((IndexError, RuntimeError), match=r"index|indices|out of"):
        ours(features(), torch.full((2, 5), NODES + 7))
