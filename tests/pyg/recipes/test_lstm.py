"""Accelerated layers with `aggr="lstm"`: over the prefix tree of a graph that came back."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric import nn as pyg

import hag_plugin as hp
from hag_plugin.data import datasets
from hag_plugin.pyg import accelerate, explain
from hag_plugin.sequence import SequentialHAG, build_sequence
from hag_plugin.testing import limits

WIDTH = 4
LSTM = {"aggr": "lstm", "aggr_kwargs": {"in_channels": WIDTH, "out_channels": WIDTH}}


def two_layers() -> dict[str, Any]:
    return {**LSTM, "aggr_kwargs": {**LSTM["aggr_kwargs"], "num_layers": 2}}  # type: ignore[dict-item]


LAYERS: dict[str, Callable[[], Any]] = {
    "SAGEConv": lambda: pyg.SAGEConv(WIDTH, 3, aggr="lstm"),
    "SAGEConv, two layers": lambda: pyg.SAGEConv(WIDTH, 3, **two_layers()),
    "SAGEConv, projected": lambda: pyg.SAGEConv(
        WIDTH, 3, aggr="lstm", project=True, normalize=True, root_weight=False
    ),
    "GraphConv": lambda: pyg.GraphConv(WIDTH, 3, **LSTM),
    "GINConv": lambda: pyg.GINConv(nn.Linear(WIDTH, 3), train_eps=True, **LSTM),
    "SimpleConv": lambda: pyg.SimpleConv(combine_root="cat", **LSTM),
    "GatedGraphConv": lambda: pyg.GatedGraphConv(WIDTH, 2, **LSTM),
    "GENConv": lambda: pyg.GENConv(WIDTH, WIDTH, norm="layer", **LSTM),
}


def sorted_graph(num_src: int = 23, num_dst: int = 23) -> Tensor:
    """By target, sources in no order; duplicates, equal lists and isolated nodes."""
    generator = torch.Generator().manual_seed(6)
    source = torch.randint(num_src, (60,), generator=generator)
    target = torch.randint(num_dst // 2, (60,), generator=generator)
    edges = torch.stack([source, target])
    edges = torch.cat([edges, edges[:, :20], torch.stack([source, target + num_dst // 2])], 1)
    return edges[:, torch.sort(edges[1], stable=True).indices]


def cliques(count: int, size: int) -> Tensor:
    """Complete graphs with loops: the lists of each are equal."""
    nodes = torch.arange(size)
    one = torch.stack([nodes.repeat(size), nodes.repeat_interleave(size)])
    return torch.cat([one + i * size for i in range(count)], 1)


def results(layer: Any, x: Any, *graph: Any, **kwargs: Any) -> list[Tensor]:
    """Output and the gradients of features and parameters."""
    given = [x] if isinstance(x, Tensor) else list(x)
    leaves = [each.clone().requires_grad_() for each in given]
    y = layer(leaves[0] if isinstance(x, Tensor) else tuple(leaves), *graph, **kwargs)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    inputs = [*leaves, *layer.parameters()]
    found = torch.autograd.grad((y * weight).sum(), inputs, allow_unused=True)
    return [
        y.detach(),
        *(torch.zeros_like(i) if g is None else g for g, i in zip(found, inputs, strict=True)),
    ]


def assert_equal(ours: list[Tensor], stock: list[Tensor]) -> None:
    for a, b in zip(ours, stock, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


# A plain edge index -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_a_graph_that_comes_back_runs_on_its_tree(
    name: str, walks: list[SequentialHAG], always_pays: None
) -> None:
    edges, x = sorted_graph(), torch.randn(23, WIDTH, dtype=torch.float64)
    layer = LAYERS[name]().double()
    stock = results(layer, x, edges)
    accelerate(layer)
    for forward in range(3):
        assert_equal(results(layer, x, edges), stock)
        assert bool(walks) == (forward > 0)
    assert all(tree is walks[0] for tree in walks)  # built once
    hp.restore(layer)
    walks.clear()
    assert_equal(results(layer, x, edges), stock)
    assert not walks


def test_two_sets_of_nodes(walks: list[SequentialHAG], always_pays: None) -> None:
    edges = sorted_graph(30, 17)
    x = torch.randn(30, WIDTH, dtype=torch.float64), torch.randn(17, 5, dtype=torch.float64)
    layer = pyg.SAGEConv((WIDTH, 5), 3, aggr="lstm").double()
    stock = results(layer, x, edges)
    accelerate(layer)
    for _ in range(2):
        assert_equal(results(layer, x, edges), stock)
    assert len(walks) == 1


@pytest.mark.parametrize("name", ["MUTAG", "BZR_MD"])
def test_real_graphs(
    name: str, shared_data: Path, walks: list[SequentialHAG], always_pays: None
) -> None:
    data = datasets.load(name, shared_data / "npz", features=False)
    nodes = 600
    edges = data.edge_index[:, (data.edge_index < nodes).all(0)]
    edges = edges[:, torch.sort(edges[1], stable=True).indices]
    x = torch.randn(nodes, WIDTH, dtype=torch.float64)
    layer = pyg.SAGEConv(WIDTH, 3, aggr="lstm").double()
    stock = results(layer, x, edges)
    accelerate(layer)
    for _ in range(2):
        assert_equal(results(layer, x, edges), stock)
    assert len(walks) == 1


def test_counts_decide(walks: list[SequentialHAG]) -> None:
    layer = accelerate(pyg.SAGEConv(16, 3, aggr="lstm"))
    x = torch.randn(1200, 16)
    shared = cliques(30, 40)
    for _ in range(2):
        layer(x, shared)
    assert len(walks) == 1
    assert explain(layer)[0].accelerated
    assert explain(layer)[0].reason == "1,200 steps of the prefix tree, 48,000 of stock"
    generator = torch.Generator().manual_seed(0)
    apart = torch.randint(1200, (2, 20_000), generator=generator)
    apart = apart[:, apart[1].sort(stable=True).indices]
    for _ in range(2):
        layer(x, apart)
    assert len(walks) == 1
    row = explain(layer)[0]
    assert not row.accelerated
    assert row.reason.startswith("stock is as fast: ")


def test_an_unsorted_graph_is_refused_in_stocks_words(always_pays: None) -> None:
    layer, edges = accelerate(LAYERS["SAGEConv"]()), sorted_graph().flip(1)
    for _ in range(3):
        with pytest.raises(ValueError, match="is not sorted"):
            layer(torch.randn(23, WIDTH), edges)


def test_sorted_then_changed_in_place(walks: list[SequentialHAG], always_pays: None) -> None:
    layer, edges = accelerate(LAYERS["SAGEConv"]().double()), sorted_graph()
    x = torch.randn(23, WIDTH, dtype=torch.float64)
    for _ in range(2):
        layer(x, edges)
    edges[0, :30] = 3
    stock = hp.restore(copy.deepcopy(layer))
    for _ in range(2):
        torch.testing.assert_close(layer(x, edges), stock(x, edges))
    assert walks[0] is not walks[-1]


def hooked() -> Any:
    layer = LAYERS["SAGEConv"]()
    layer.aggr_module.lstm.register_forward_hook(lambda *_: None)
    return layer


STOCK: dict[str, tuple[Callable[[], Any], str]] = {
    "dropout": (
        lambda: pyg.SAGEConv(WIDTH, 3, aggr="lstm", aggr_kwargs={"num_layers": 2, "dropout": 0.5}),
        "dropout=0.5 in training",
    ),
    "both directions": (
        lambda: pyg.SimpleConv(
            aggr="lstm",
            aggr_kwargs={**LSTM["aggr_kwargs"], "bidirectional": True},  # type: ignore[dict-item]
        ),
        "bidirectional=True",
    ),
    "hooks": (hooked, "hooks on its aggregation"),
    "scaled": (
        lambda: pyg.GCNConv(
            WIDTH, 3, aggr="lstm", aggr_kwargs={"in_channels": 3, "out_channels": 3}
        ),
        "not the rows of the sources alone",
    ),
    "self-loops": (
        lambda: pyg.SimpleConv(combine_root="self_loop", **LSTM),
        "not the rows of the sources alone",
    ),
}


@pytest.mark.parametrize("name", STOCK)
def test_what_is_left_to_stock(name: str, walks: list[SequentialHAG], always_pays: None) -> None:
    make, words = STOCK[name]
    layer, edges, x = accelerate(make()), sorted_graph(), torch.randn(23, WIDTH)
    row = explain(layer)[0]
    assert not row.accelerated
    assert words in row.reason
    if name in ("scaled", "self-loops"):  # stock appends loops, and is then not sorted
        return
    for _ in range(2):
        torch.manual_seed(0)
        ours = layer(x, edges)
        torch.manual_seed(0)
        assert torch.equal(ours, hp.restore(copy.deepcopy(layer))(x, edges))
    assert not walks
    layer.eval()
    for _ in range(2):
        layer(x, edges)
    assert bool(walks) == (name == "dropout")


def test_calls_that_are_left_to_stock(walks: list[SequentialHAG], always_pays: None) -> None:
    edges, x = sorted_graph(), torch.randn(23, WIDTH)
    layer = accelerate(LAYERS["GraphConv"]())
    for _ in range(2):
        layer(x, edges, edge_weight=torch.rand(edges.shape[1]))
        with torch.autocast("cpu"):
            layer(x, edges)
    assert not walks
    with pytest.raises(ValueError, match="edge_weight together with a HAG"):
        layer(x, build_sequence(edges, num_nodes=23), edge_weight=torch.rand(edges.shape[1]))


@pytest.mark.parametrize("change", ["none", "gradients", "in place", "aggregation"])
def test_what_is_left_to_stock_is_asked_anew_where_something_changed(
    change: str, walks: list[SequentialHAG]
) -> None:
    edges, x = sorted_graph(), torch.randn(23, WIDTH)
    layer = accelerate(LAYERS["SAGEConv"]())
    with limits(tree_gain=math.inf):
        for _ in range(2):
            layer(x, edges)
        assert not explain(layer)[0].accelerated
    if change == "in place":
        edges[0, 0] = (edges[0, 0] + 1) % 23
    elif change == "aggregation":
        layer.aggr_module = copy.deepcopy(layer.aggr_module)
    with limits(tree_gain=0.0), torch.set_grad_enabled(change != "gradients"):
        expected = hp.restore(copy.deepcopy(layer))(x, edges)
        for _ in range(2):
            torch.testing.assert_close(layer(x, edges), expected)
    assert bool(walks) == (change != "none")


def test_explain_before_and_after_accelerate() -> None:
    layer = LAYERS["SAGEConv"]()
    assert explain(layer)[0].reason == "eligible: call accelerate"
    row = explain(accelerate(layer))[0]
    assert row.accelerated
    assert row.aggregates == "lstm over A"
    assert "graph that comes back" in row.reason


# A tree where an edge index stands --------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_a_tree_in_place_of_an_edge_index(name: str, walks: list[SequentialHAG]) -> None:
    edges, x = sorted_graph(), torch.randn(23, WIDTH, dtype=torch.float64)
    layer = LAYERS[name]().double()
    stock = results(layer, x, edges)
    tree = build_sequence(edges, num_nodes=23)
    assert_equal(results(accelerate(layer), x, tree), stock)
    assert walks


@hp.hag_layer
class Own(pyg.MessagePassing):
    """A layer that its user declared."""

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        out: Tensor = self.propagate(edge_index, x=x)
        return out

    def message(self, x_j: Tensor) -> Tensor:
        return x_j.tanh()


@pytest.mark.parametrize(
    "make",
    [
        lambda: pyg.SAGEConv(WIDTH, 3),
        lambda: pyg.GCNConv(WIDTH, 3),
        lambda: pyg.GATConv(WIDTH, 3),
        lambda: pyg.MFConv(WIDTH, 3),
        lambda: Own(),
        lambda: Own(**LSTM),
    ],
)
def test_layers_that_need_plain_edges_get_those_of_the_tree(
    make: Callable[[], Any], walks: list[SequentialHAG]
) -> None:
    edges, x = sorted_graph(), torch.randn(23, WIDTH, dtype=torch.float64)
    layer = make().double()
    stock = results(layer, x, edges)
    assert_equal(results(accelerate(layer), x, build_sequence(edges, num_nodes=23)), stock)
    assert not walks


def test_a_tree_of_another_order_is_that_order(walks: list[SequentialHAG]) -> None:
    edges, x = sorted_graph(), torch.randn(23, WIDTH, dtype=torch.float64)
    tree = build_sequence(edges, num_nodes=23, order="frequency")
    layer = LAYERS["SAGEConv"]().double()
    stock = results(layer, x, tree.edge_index)
    assert_equal(results(accelerate(layer), x, tree), stock)
    assert walks == [tree]


def test_a_tree_of_other_nodes_is_refused() -> None:
    layer = accelerate(LAYERS["SAGEConv"]())
    tree = build_sequence(sorted_graph(), num_nodes=23)
    with pytest.raises(ValueError, match="x has 24 rows"):
        layer(torch.randn(24, WIDTH), tree)


def test_two_sets_of_nodes_and_a_tree() -> None:
    edges = sorted_graph(30, 17)
    x = torch.randn(30, WIDTH, dtype=torch.float64), torch.randn(17, 5, dtype=torch.float64)
    tree = build_sequence(edges, size=(30, 17))
    for aggr in ("lstm", "mean"):
        layer = pyg.SAGEConv((WIDTH, 5), 3, aggr=aggr).double()
        stock = results(layer, x, edges)
        assert_equal(results(accelerate(layer), x, tree), stock)
