"""Graphs that do not come back: after many, most of those that follow are not looked at."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

dgl = pytest.importorskip("dgl", reason="DGL is not installed")
from dgl.nn.pytorch import (  # noqa: E402
    DotGatConv,
    GATConv,
    GATv2Conv,
    GINConv,
    GraphConv,
    HeteroGraphConv,
    SAGEConv,
)

from hag_plugin.dgl import ToHAG, accelerate, explain  # noqa: E402
from hag_plugin.dgl.aggregation.choice import FIRST, OF_STRANGERS, STRANGER  # noqa: E402
from hag_plugin.testing import limits  # noqa: E402

NODES, EDGES, WIDTH, MANY = 20, 60, 4, 5
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "SAGE": lambda: SAGEConv(WIDTH, WIDTH, "mean"),
    "pool": lambda: SAGEConv(WIDTH, WIDTH, "pool"),
    "GraphConv": lambda: GraphConv(WIDTH, WIDTH, norm="right", allow_zero_in_degree=True),
    "GIN": lambda: GINConv(nn.Linear(WIDTH, WIDTH)),
    "GAT": lambda: GATConv(WIDTH, WIDTH, 1, allow_zero_in_degree=True),
    "GATv2": lambda: GATv2Conv(WIDTH, WIDTH, 1, allow_zero_in_degree=True),
    "DotGat": lambda: DotGatConv(WIDTH, WIDTH, 1, allow_zero_in_degree=True),
}
OF_SUMS = ["SAGE", "pool", "GraphConv", "GIN"]


class Twice(nn.Module):
    """One graph, two layers."""

    def __init__(self, make: Callable[[], nn.Module], named: bool) -> None:
        super().__init__()
        self.layers, self.named = nn.ModuleList([make(), make()]), named

    def forward(self, graph: Any, x: Tensor) -> Tensor:
        for layer in self.layers:
            y = layer(graph=graph, feat=x) if self.named else layer(graph, x)
            x = y.reshape(graph.num_dst_nodes(), WIDTH)
            if graph.is_block and len(x) < graph.num_src_nodes():
                x = torch.cat([x, x.new_ones(graph.num_src_nodes() - len(x), WIDTH)])
        return x[: graph.num_dst_nodes()]


@pytest.fixture(autouse=True)
def few() -> Iterator[None]:
    """Attention is left to DGL, too, where its graph is met first."""
    with limits(strangers=MANY, passing_gain=1e6):
        yield


def graph(seed: int, num_edges: int = EDGES, block: bool = False) -> Any:
    generator = torch.Generator().manual_seed(seed)
    source, target = torch.randint(0, NODES // 2, (2, num_edges), generator=generator)
    source = source.sort().values  # for maxima
    if block:
        sizes = {"num_src_nodes": NODES, "num_dst_nodes": NODES // 2}
        return dgl.create_block((source, target), **sizes)
    return dgl.graph((source, target), num_nodes=NODES)


def features() -> Tensor:
    return torch.randn(NODES, WIDTH)


def reasons(model: Any) -> list[str]:
    return [row.calls.reasons["stock"] for row in explain(model)]


def counts(model: Any) -> list[dict[Any, int]]:
    return [row.calls.counts for row in explain(model)]


def looked(model: Any) -> list[bool]:
    """Whether each layer of sums looked at the graph of its last call, which was left to DGL."""
    assert {*reasons(model)} <= {FIRST, STRANGER}
    return [reason == FIRST for reason in reasons(model)]


def check(stock: Any, ours: Any, given: Any) -> None:
    x = features()
    torch.testing.assert_close(ours(given, x), stock(given, x))


def model_of(name: str, met: int = MANY, named: bool = False, block: bool = False) -> Any:
    """A stock model and it accelerated, which met so many graphs."""
    stock = Twice(LAYERS[name], named)
    ours = accelerate(copy.deepcopy(stock))
    for seed in range(met):
        check(stock, ours, graph(seed, block=block))
    return stock, ours


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("name", OF_SUMS)
def test_most_are_not_looked_at(name: str, named: bool, block: bool) -> None:
    stock, ours = model_of(name, named=named, block=block)
    assert all(looked(ours))
    looks = 0
    for seed in range(3 * MANY):
        check(stock, ours, graph(100 + seed, block=block))
        looks += sum(looked(ours))
    assert looks == 2 * 3  # one of so many, by each layer
    assert counts(ours) == [{"stock": 4 * MANY}] * 2


@pytest.mark.parametrize("name", LAYERS)
def test_all_are_left_for_a_reason(name: str) -> None:
    stock, ours = model_of(name)
    for seed in range(MANY - 1):
        check(stock, ours, graph(200 + seed))
        assert {*reasons(ours)} <= {*OF_STRANGERS.values()}
    assert counts(ours) == [{"stock": 2 * MANY - 1}] * 2


@pytest.mark.parametrize("name", LAYERS)
def test_one_that_comes_back_is_noticed(name: str) -> None:
    """In as many calls as graphs are left alone, twice; then it is never left again."""
    stock, ours = model_of(name)
    again = graph(50)
    with limits(passing_gain=0.0):
        for _ in range(2 * MANY):
            check(stock, ours, again)
        before = counts(ours)[0]["stock"]
        assert sum(counts(ours)[0].values()) > before
        check(stock, ours, again)
    assert counts(ours)[0]["stock"] == before


KINDS: dict[str, Callable[[Any], Any]] = {
    "more edges": lambda m: m(graph(70, EDGES + 1), features()),
    "no gradients": torch.no_grad()(lambda m: m(graph(70), features())),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OF_SUMS)
def test_another_kind_is_looked_at(name: str, kind: str) -> None:
    _, ours = model_of(name)
    KINDS[kind](ours)
    assert all(looked(ours))


@pytest.mark.parametrize("name", LAYERS)
def test_one_with_a_hag_is_run_on_it(name: str) -> None:
    stock, ours = model_of(name)
    with limits(passing_gain=0.0):
        check(stock, ours, ToHAG()(graph(60)))
    assert [sum(found.values()) - found["stock"] for found in counts(ours)] == [1, 1]


@pytest.mark.parametrize("name", OF_SUMS)
def test_what_came_back_ends_it(name: str) -> None:
    stock, ours = model_of(name, met=MANY - 2)
    again = graph(50)
    for _ in range(3):
        check(stock, ours, again)
    for seed in range(MANY):
        check(stock, ours, graph(80 + seed))
        assert all(looked(ours))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_checkpoints(name: str, reentrant: bool) -> None:
    stock, ours = model_of(name)
    again = graph(50)
    for seed in range(2 * MANY):
        for given in (graph(90 + seed), again):
            found = []
            x = features()
            for m in (stock, ours):
                leaf = x.clone().requires_grad_()
                checkpoint(m, given, leaf, use_reentrant=reentrant).sum().backward()
                found.append(leaf.grad)
            torch.testing.assert_close(found[1], found[0])


def test_layers_inside_of_others_are_told_of() -> None:
    """The outer one is called with a graph of several types, which is always looked at."""
    stock = HeteroGraphConv({"r": SAGEConv(WIDTH, WIDTH, "mean"), "s": GraphConv(WIDTH, WIDTH)})
    ours = accelerate(copy.deepcopy(stock))
    for seed in range(3 * MANY):
        generator = torch.Generator().manual_seed(seed)
        ends = torch.randint(0, NODES, (2, EDGES), generator=generator)
        ring = torch.arange(NODES), torch.arange(NODES).roll(1)
        types = {("a", "r", "a"): tuple(ends), ("a", "s", "a"): ring}
        hetero = dgl.heterograph(types, num_nodes_dict={"a": NODES})
        x = features()
        torch.testing.assert_close(ours(hetero, {"a": x})["a"], stock(hetero, {"a": x})["a"])
        assert {*reasons(ours)} <= {FIRST, STRANGER}
    assert counts(ours) == [{"stock": 3 * MANY}] * 3


def test_errors_are_those_of_dgl() -> None:
    said = []
    for model in model_of("SAGE"):
        with pytest.raises((RuntimeError, dgl.DGLError)) as error:
            model(graph(30), torch.randn(NODES - 3, WIDTH))
        said.append(str(error.value))
    assert said[0] == said[1]
