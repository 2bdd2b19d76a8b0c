"""Every accelerated layer equals stock: outputs and all gradients, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, GINConv, GraphConv, SAGEConv, SimpleConv
from torch_geometric.nn.aggr import MaxAggregation

import hag_plugin as hp
from hag_plugin.pyg import accelerate, explain

WIDTH = 5
REVERSE = "target_to_source"

CONFIGURATIONS: dict[str, Callable[[], nn.Module]] = {
    "gcn": lambda: GCNConv(WIDTH, 3),
    "gcn-no-loops": lambda: GCNConv(WIDTH, 3, add_self_loops=False, bias=False),
    "gcn-improved": lambda: GCNConv(WIDTH, 3, improved=True),
    "gcn-unnormalised": lambda: GCNConv(WIDTH, 3, normalize=False),
    "gcn-mean": lambda: GCNConv(WIDTH, 3, aggr="mean"),
    "gcn-max": lambda: GCNConv(WIDTH, 3, aggr="max"),
    "gcn-reverse": lambda: GCNConv(WIDTH, 3, flow=REVERSE),
    "gcn-cached": lambda: GCNConv(WIDTH, 3, cached=True),
    "sage-mean": lambda: SAGEConv(WIDTH, 3),
    "sage-sum": lambda: SAGEConv(WIDTH, 3, aggr="sum", root_weight=False),
    "sage-max": lambda: SAGEConv(WIDTH, 3, aggr="max", normalize=True),
    "sage-max-module": lambda: SAGEConv(WIDTH, 3, aggr=MaxAggregation(), bias=False),
    "sage-min": lambda: SAGEConv(WIDTH, 3, aggr="min", project=True),
    "sage-reverse": lambda: SAGEConv(WIDTH, 3, flow=REVERSE),
    "gin": lambda: GINConv(nn.Sequential(nn.Linear(WIDTH, 4), nn.ReLU(), nn.Linear(4, 3))),
    "gin-eps": lambda: GINConv(nn.Linear(WIDTH, 3), eps=0.5, train_eps=True),
    "gin-mean": lambda: GINConv(nn.Linear(WIDTH, 3), aggr="mean"),
    "graph-add": lambda: GraphConv(WIDTH, 3),
    "graph-mean": lambda: GraphConv(WIDTH, 3, aggr="mean", bias=False),
    "graph-max": lambda: GraphConv(WIDTH, 3, aggr="max"),
    "graph-reverse": lambda: GraphConv(WIDTH, 3, aggr="min", flow=REVERSE),
    "simple": lambda: SimpleConv(),
    "simple-loop": lambda: SimpleConv("mean", combine_root="self_loop"),
    "simple-loop-max": lambda: SimpleConv("max", combine_root="self_loop"),
    "simple-sum": lambda: SimpleConv("add", combine_root="sum"),
    "simple-reverse": lambda: SimpleConv("mean", flow=REVERSE),
    "simple-cat": lambda: SimpleConv("min", combine_root="cat", flow=REVERSE),
}
GRAPHS = ("Cora", "MUTAG", "IMDB-MULTI", "multigraph", "bipartite")
SQUARE_ONLY = ("gcn", "simple-loop", "simple-cat", "sage-reverse", "graph-reverse")
CASES = [
    (name, graph)
    for name in CONFIGURATIONS
    for graph in GRAPHS
    if graph != "bipartite" or not name.startswith(SQUARE_ONLY)
]


def assert_close(ours: Tensor, stock: Tensor) -> None:
    assert ours.shape == stock.shape
    assert ours.dtype == stock.dtype
    if stock.numel():
        bound = 1e-12 * max(1.0, stock.abs().max().item())
        assert (ours - stock).abs().max().item() <= bound


def features(graph: Any, ties: bool) -> Any:
    """Float64 features, with many equal values (and no zero) if `ties`."""

    def one(rows: int) -> Tensor:
        x = torch.randn(rows, WIDTH, dtype=torch.float64)
        x = x.mul(2).round().add(0.25) if ties else x
        return x.requires_grad_()

    return one(graph.num_src) if graph.is_square else (one(graph.num_src), one(graph.num_dst))


def run(conv: nn.Module, x: Any, edges: Any) -> list[Tensor]:
    """The output, then the gradients of the inputs and of all parameters."""
    leaves = [*(x if isinstance(x, tuple) else (x,)), *conv.parameters()]
    for leaf in leaves:
        leaf.grad = None
    y = conv(x, edges)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    (y * weight).sum().backward()
    return [y.detach(), *(torch.zeros(0) if p.grad is None else p.grad.clone() for p in leaves)]


@pytest.mark.mostly_slow("*-multigraph", "*-bipartite")
@pytest.mark.parametrize(("name", "graph"), CASES, indirect=["graph"])
def test_layer_equals_stock(name: str, graph: Any) -> None:
    stock = CONFIGURATIONS[name]().double()
    accelerated = accelerate(copy.deepcopy(stock))
    hag = hp.build_hag(graph.edge_index, size=(graph.num_src, graph.num_dst))
    x = features(graph, ties="max" in name or "min" in name)
    expected = run(stock, x, graph.edge_index)
    for edges in (hag, graph.edge_index, graph.edge_index):  # tensors: first seen, then searched
        for ours, theirs in zip(run(accelerated, x, edges), expected, strict=True):
            assert_close(ours, theirs)
    left_to_stock = (name, graph.name) == ("simple-reverse", "bipartite")
    assert accelerated._hag_session.num_hags == (0 if left_to_stock else 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gcn", "sage-mean", "gin", "graph-max"])
def test_other_dtypes(name: str, dtype: torch.dtype, awkward: Any) -> None:
    stock = CONFIGURATIONS[name]().to(dtype)
    accelerated = accelerate(copy.deepcopy(stock))
    x = torch.randn(awkward.num_src, WIDTH).to(dtype)
    hag = hp.build_hag(awkward.edge_index, num_nodes=awkward.num_src)
    exact = copy.deepcopy(stock).double()(x.double(), awkward.edge_index)
    ours = accelerated(x, hag)
    assert ours.dtype == dtype
    error = (ours.double() - exact).abs().max()
    assert error <= 8 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("name", ["gcn", "sage-mean", "gin", "graph-max"])
def test_autocast(name: str, awkward: Any) -> None:
    stock = CONFIGURATIONS[name]()
    accelerated = accelerate(copy.deepcopy(stock))
    x = torch.randn(awkward.num_src, WIDTH)
    hag = hp.build_hag(awkward.edge_index, num_nodes=awkward.num_src)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, ours = stock(x, awkward.edge_index), accelerated(x, hag)
    assert ours.dtype == expected.dtype
    torch.testing.assert_close(ours, expected, atol=0.05, rtol=0.05)
    ours.float().sum().backward()


def test_static_graph_features(awkward: Any) -> None:
    stock = GCNConv(WIDTH, 3).double()
    hag = hp.build_hag(awkward.edge_index, num_nodes=awkward.num_src)
    x = torch.randn(2, awkward.num_src, WIDTH, dtype=torch.float64)
    assert_close(
        accelerate(copy.deepcopy(stock))(x, hag).detach(), stock(x, awkward.edge_index).detach()
    )


def test_other_node_dimensions(awkward: Any) -> None:
    stock = SimpleConv("sum", node_dim=0)
    hag = hp.build_hag(awkward.edge_index, num_nodes=awkward.num_src)
    for shape in ((), (WIDTH,), (2, 3)):
        x = torch.randn(awkward.num_src, *shape, dtype=torch.float64)
        assert_close(accelerate(copy.deepcopy(stock))(x, hag), stock(x, awkward.edge_index))


def test_integer_features_run_stock(awkward: Any) -> None:
    stock = SimpleConv()
    x = torch.arange(awkward.num_src * 2).view(-1, 2)
    hag = hp.build_hag(awkward.edge_index, num_nodes=awkward.num_src)
    accelerated = accelerate(copy.deepcopy(stock))
    for edges in (hag, awkward.edge_index, awkward.edge_index):
        assert torch.equal(accelerated(x, edges), stock(x, awkward.edge_index))


@pytest.mark.parametrize("graph", ["bipartite"], indirect=True)
def test_bipartite_without_target_features(graph: Any) -> None:
    stock = SAGEConv(WIDTH, 3).double()
    x = (torch.randn(graph.num_src, WIDTH, dtype=torch.float64), None)
    size = (graph.num_src, graph.num_dst)
    hag = hp.build_hag(graph.edge_index, size=size)
    accelerated = accelerate(copy.deepcopy(stock))
    expected = stock(x, graph.edge_index, size=size).detach()
    assert_close(accelerated(x, hag).detach(), expected)
    assert_close(accelerated(x, hag, size=size).detach(), expected)
    accelerated.register_message_forward_hook(lambda *_: None)  # rules the recipe out
    assert_close(accelerated(x, hag).detach(), expected)


class TestRuledOutCalls:
    def test_edge_weights(self, awkward: Any) -> None:
        stock = GCNConv(WIDTH, 3).double()
        accelerated = accelerate(copy.deepcopy(stock))
        x = torch.randn(awkward.num_src, WIDTH, dtype=torch.float64)
        weight = torch.rand(awkward.edge_index.shape[1], dtype=torch.float64)
        for _ in range(3):
            ours = accelerated(x, awkward.edge_index, edge_weight=weight)
            assert_close(ours, stock(x, awkward.edge_index, weight))
        hag = hp.build_hag(awkward.edge_index, num_nodes=awkward.num_src)
        with pytest.raises(ValueError, match="pass edge_index instead"):
            accelerated(x, hag, weight)

    @pytest.mark.parametrize("aggr", ["median", ["sum", "median"], ["mean", "mean"]])
    def test_other_aggregations(self, aggr: Any, awkward: Any) -> None:
        stock = SAGEConv(WIDTH, 3, aggr=aggr).double()
        accelerated = accelerate(copy.deepcopy(stock))
        x = torch.randn(awkward.num_src, WIDTH, dtype=torch.float64)
        hag = hp.build_hag(awkward.edge_index, num_nodes=awkward.num_src)
        for edges in (hag, awkward.edge_index, awkward.edge_index):
            assert_close(accelerated(x, edges).detach(), stock(x, awkward.edge_index).detach())
        row = explain(accelerated)[0]
        assert not row.accelerated
        assert "aggr=" in row.reason

    def test_decomposed_layers(self, awkward: Any) -> None:
        stock = GCNConv(WIDTH, 4, decomposed_layers=2).double()
        accelerated = accelerate(copy.deepcopy(stock))
        x = torch.randn(awkward.num_src, WIDTH, dtype=torch.float64)
        hag = hp.build_hag(awkward.edge_index, num_nodes=awkward.num_src)
        assert_close(accelerated(x, hag).detach(), stock(x, awkward.edge_index).detach())
        accelerated.decomposed_layers = 1
        assert explain(accelerated)[0].accelerated
        assert_close(accelerated(x, hag).detach(), stock(x, awkward.edge_index).detach())

    def test_ineligible_layers_take_hags(self, awkward: Any) -> None:
        class Mine(GATConv):
            """It may do something else."""

        stock = Mine(WIDTH, 3).double()
        accelerated = accelerate(copy.deepcopy(stock))
        x = torch.randn(awkward.num_src, WIDTH, dtype=torch.float64)
        hag = hp.build_hag(awkward.edge_index, num_nodes=awkward.num_src)
        assert_close(accelerated(x, hag).detach(), stock(x, awkward.edge_index).detach())
        with pytest.raises(ValueError, match="pass edge_index instead"):
            accelerated(x, hag, edge_attr=torch.rand(awkward.edge_index.shape[1], 1))
        assert not explain(accelerated)[0].accelerated

    @pytest.mark.parametrize("rows", [-1, 1])
    def test_wrong_number_of_rows(self, rows: int, awkward: Any) -> None:
        conv = accelerate(GCNConv(WIDTH, 3))
        hag = hp.build_hag(awkward.edge_index, num_nodes=awkward.num_src)
        with pytest.raises(ValueError, match="rows"):
            conv(torch.ones(awkward.num_src + rows, WIDTH), hag)


def test_gcn_with_a_cache_follows_stock(awkward: Any) -> None:
    """With cached=True stock runs the first graph for ever, whatever it is given."""
    stock = GCNConv(WIDTH, 3, cached=True).double()
    accelerated = accelerate(copy.deepcopy(stock))
    other = torch.randint(awkward.num_src, (2, 99))
    x = torch.randn(awkward.num_src, WIDTH, dtype=torch.float64)
    for step in range(12):
        edges = awkward.edge_index if step % 3 else other
        if step == 7:
            stock.reset_parameters()
            accelerated.reset_parameters()
            accelerated.load_state_dict(stock.state_dict())
        assert_close(accelerated(x, edges).detach(), stock(x, edges).detach())
