"""Aggregates of features that do not change are computed once; all that changes is noticed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, GINConv, GraphConv, SAGEConv

import hag_plugin as hp
from hag_plugin.pyg.aggregation import constant
from hag_plugin.testing import limits

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "GCNConv, narrower": lambda: GCNConv(6, 4),
    "GCNConv, wider": lambda: GCNConv(6, 9),
    "GCNConv, no bias": lambda: GCNConv(6, 4, bias=False),
    "SAGEConv": lambda: SAGEConv(6, 4, aggr="mean"),
    "SAGEConv, wider": lambda: SAGEConv(6, 9, normalize=True),
    "SAGEConv, max": lambda: SAGEConv(6, 4, aggr="max"),
    "GINConv": lambda: GINConv(nn.Linear(6, 4), train_eps=True),
    "GraphConv": lambda: GraphConv(6, 4),
    "GraphConv, wider": lambda: GraphConv(6, 9, aggr="max"),
}


def edges(seed: int = 0) -> Tensor:
    return torch.randint(0, 30, (2, 200), generator=torch.Generator().manual_seed(seed))


def features(seed: int = 0) -> Tensor:
    return torch.randn(
        30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(100 + seed)
    )


class Pair:
    """A stock layer and its accelerated copy, on one graph."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        torch.manual_seed(1)
        self.stock: Any = make().double()
        self.fast: Any = hp.accelerate(copy.deepcopy(self.stock))
        self.edge_index = edges()
        self.hag = hp.build_hag(self.edge_index, num_nodes=30)

    def agree(self, x: Tensor) -> None:
        """Output and gradients of both are the same."""
        self.stock.zero_grad()
        self.fast.zero_grad()
        expected, got = self.stock(x, self.edge_index), self.fast(x, self.hag)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
        expected.sin().sum().backward()
        got.sin().sum().backward()
        for p, q in zip(self.stock.parameters(), self.fast.parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-9, atol=1e-9)

    def kept(self) -> Tensor | None:
        """What the accelerated layer keeps."""
        memory = constant._MEMORY.get(self.fast)
        found = () if memory is None else memory.values()
        results = [kept.aggregate for kept in found if kept is not None]
        return results[0] if results else None


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
def test_features_that_come_back_are_aggregated_once(make: Callable[[], nn.Module]) -> None:
    pair, x = Pair(make), features()
    for _ in range(4):
        pair.agree(x)
    first = pair.kept()
    assert first is not None
    pair.agree(x)
    assert pair.kept() is first
    before = constant.bytes_kept()
    del x
    assert pair.kept() is None
    assert constant.bytes_kept() == before - first.nbytes


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
def test_writes_are_noticed(make: Callable[[], nn.Module]) -> None:
    pair, x = Pair(make), features()
    for write in (
        lambda: x.mul_(2.0),
        lambda: x[3:5].fill_(7.0),
        lambda: x.view(-1)[:2].zero_(),
        lambda: pair.kept().zero_(),
    ):
        for _ in range(3):
            pair.agree(x)
        assert pair.kept() is not None
        write()
        pair.agree(x)


def test_another_graph_or_another_setting_is_noticed() -> None:
    pair, x = Pair(LAYERS["GCNConv, narrower"]), features()
    for seed in (1, 2, 1):
        for _ in range(3):
            pair.agree(x)
        pair.edge_index = edges(seed)
        pair.hag = hp.build_hag(pair.edge_index, num_nodes=30)
        pair.agree(x)
    for _ in range(3):
        pair.agree(x)
    pair.stock.add_self_loops = pair.fast.add_self_loops = False
    pair.agree(x)


def test_nothing_is_kept_of_what_is_learned_traced_or_too_large() -> None:
    pair = Pair(LAYERS["SAGEConv"])
    learned = features().requires_grad_()
    for _ in range(3):
        pair.agree(learned)
    for _ in range(3):
        pair.agree(features())  # a new tensor each time
    with torch.inference_mode():
        x = features()
        for _ in range(3):
            pair.fast(x, pair.hag)
    assert pair.kept() is None
    x = features()
    with limits(constant_bytes=0):
        for _ in range(3):
            pair.agree(x)
    assert pair.kept() is None


def test_the_public_name_of_the_limit() -> None:
    with limits(constant_bytes=7):
        assert hp.pyg.constant.LIMIT == 7
        hp.pyg.constant.LIMIT = 0
        pair, x = Pair(LAYERS["SAGEConv"]), features()
        for _ in range(3):
            pair.agree(x)
        assert pair.kept() is None
    assert hp.pyg.constant.LIMIT == 1 << 30


def test_what_inference_computes_first_serves_training() -> None:
    pair, x = Pair(LAYERS["GCNConv, narrower"]), features()
    with torch.no_grad():
        for _ in range(3):
            pair.fast(x, pair.hag)
    assert pair.kept() is not None
    pair.agree(x)


def test_a_watched_linear_map_sees_what_stock_shows_it() -> None:
    pair, x = Pair(LAYERS["GCNConv, narrower"]), features()
    seen: list[Tensor] = []
    for layer in (pair.stock, pair.fast):
        layer.lin.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    for _ in range(3):
        pair.agree(x)
    assert len(seen) == 6
    assert all(torch.equal(s, x) for s in seen)


def test_copies_and_states_do_not_carry_what_is_kept() -> None:
    pair, x = Pair(LAYERS["SAGEConv"]), features()
    for _ in range(3):
        pair.agree(x)
    kept = constant.bytes_kept()
    clone = copy.deepcopy(pair.fast)
    assert constant.bytes_kept() == kept
    assert clone.state_dict().keys() == pair.stock.state_dict().keys()
    torch.testing.assert_close(clone(x, pair.hag), pair.stock(x, pair.edge_index))


class Handing(nn.Module):
    """In place of a linear map: hands on what it is given."""

    bias = None

    def forward(self, x: Tensor) -> Tensor:
        return x


# Layers whose output is their aggregate.
BARE: dict[str, Callable[[], nn.Module]] = {
    "SAGEConv": lambda: SAGEConv(6, 6, root_weight=False),
    "GraphConv": lambda: GraphConv(6, 6),
    "GINConv": lambda: GINConv(nn.Identity()),
    "GCNConv": lambda: GCNConv(6, 6, bias=False),
}


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("name", BARE)
def test_what_is_kept_is_not_handed_out(name: str, pair: bool) -> None:
    stock = BARE[name]().double()
    for attribute in ("lin_l", "lin_rel", "lin"):
        if hasattr(stock, attribute):
            setattr(stock, attribute, Handing())
    if name == "GraphConv":
        stock.lin_root = nn.Identity()
    if pair and name in ("GCNConv", "GraphConv"):
        pytest.skip("it takes no sources alone")
    fast = hp.accelerate(copy.deepcopy(stock))
    x, edge_index = features(), edges()
    given = (x, None) if pair else x
    hag = hp.build_hag(edge_index, num_nodes=30)
    for graph in (edge_index, hag):
        for _ in range(4):
            expected = stock(given, edge_index)
            one, other = fast(given, graph), fast(given, graph)
            one.detach().numpy()[:] = 7.0
            torch.testing.assert_close(other, expected, rtol=1e-10, atol=1e-10)
