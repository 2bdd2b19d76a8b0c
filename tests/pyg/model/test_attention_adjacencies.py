"""Layers of attention over sparse adjacencies: wherever stock takes one, equal to it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric import nn as pyg

from hag_plugin.pyg import accelerate, explain, hag_layer
from hag_plugin.pyg.model import choice

from ...cases import draw_graph
from ...equality import assert_same
from ..recipes.test_attention import ALONE, EDGES, INITIAL, LAYERS, OUT, WIDTH, run
from .test_adjacencies import LAYOUTS, adjacency, is_taken

pytestmark = pytest.mark.filterwarnings("ignore:.*(Sparse|sparse)")
NODES = 30


def edges_between(num_src: int, num_dst: int) -> Tensor:
    """With duplicates, and loops, one of them twice."""
    edges = torch.randint(min(num_src, num_dst), (2, 4 * num_dst))
    edges[:, :4] = torch.tensor([[1, 2, 2, num_src - 1], [1, 2, 2, num_dst - 1]])
    edges[:, 5] = edges[:, 6]
    return edges


def arguments(name: str, adj_t: Tensor) -> list[Any]:
    """The features, and the matrix."""
    x = torch.randn(adj_t.shape[1], WIDTH, dtype=torch.float64)
    return [x, torch.randn_like(x), adj_t] if name in INITIAL else [x, adj_t]


def assert_equal(stock: nn.Module, *given: Any) -> set[str]:
    """Equal when it is met first and when it comes back; what it ran on."""
    ours = accelerate(copy.deepcopy(stock))
    expected = run(stock, *given)
    for _ in range(3):
        assert_same(run(ours, *given), expected, 1e-10)
    return set(explain(ours)[0].calls.counts)


def is_one_pass(stock: nn.Module) -> bool:
    """SuperGATConv draws edges of a matrix for its loss."""
    return not isinstance(stock, pyg.SuperGATConv)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ALONE | INITIAL)
def test_numbers(name: str, layout: str) -> None:
    """Values that are numbers, 1 or not; with edges that stand twice, or without."""
    stock = LAYERS[name]().double()
    edges = edges_between(NODES, NODES)
    for index in (edges, edges.unique(dim=1)):
        for value in (1.0, 0.5):
            args = arguments(name, adjacency(index, layout, (NODES, NODES), value))
            if is_taken(stock, *args):
                kinds = assert_equal(stock, *args)
                assert kinds == ({"plain"} if is_one_pass(stock) else {"stock"})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", EDGES)
def test_rows(name: str, layout: str) -> None:
    """Values that are rows are edge features, of loops that the layer fills in, too."""
    stock, taken = LAYERS[name]().double(), 0
    edges = edges_between(NODES, NODES)
    for index in (edges, edges.unique(dim=1)):
        features = torch.randn(index.shape[1], 3, dtype=torch.float64)
        args = arguments(name, with_rows(index, layout, features))
        if is_taken(stock, *args):
            taken += 1
            assert assert_equal(stock, *args) == {"plain"}
    assert taken or layout == "CSC"


def with_rows(index: Tensor, layout: str, features: Tensor) -> Tensor:
    """A matrix of rows; its rows are targets."""
    size = (NODES, NODES, features.shape[1])
    if layout == "COO":
        made = torch.sparse_coo_tensor(index.flip(0), features, size)
        return made if features.requires_grad else made.coalesce()
    of_numbers = adjacency(index, layout, (NODES, NODES))
    if layout == "CSR":
        parts = of_numbers.crow_indices(), of_numbers.col_indices(), features
        return torch.sparse_csr_tensor(*parts, size)
    parts = of_numbers.ccol_indices(), of_numbers.row_indices(), features
    return torch.sparse_csc_tensor(*parts, size)


@pytest.mark.parametrize("name", ALONE | INITIAL)
def test_rows_that_a_layer_does_not_know(name: str) -> None:
    """Some leave them out, others fail."""
    stock = LAYERS[name]().double()
    features = torch.randn(4 * NODES, 3, dtype=torch.float64)
    args = arguments(name, with_rows(edges_between(NODES, NODES), "CSR", features))
    ours = accelerate(copy.deepcopy(stock))
    if is_taken(copy.deepcopy(stock), *args):
        assert_equal(stock, *args)
    else:
        assert not is_taken(ours, *args)


def test_declared_attention_is_stocks() -> None:
    """PyG gives its message the values of a matrix, by a name that is declared here."""
    stock = Weighing()
    ours = accelerate(copy.deepcopy(stock))
    x, edges = torch.randn(NODES, WIDTH), edges_between(NODES, NODES)
    adj_t = adjacency(edges, "CSR", (NODES, NODES), torch.rand(edges.shape[1]))
    torch.testing.assert_close(ours(x, adj_t), stock(x, adj_t))
    assert explain(ours)[0].calls.reasons == {"stock": choice.SPARSE}


@hag_layer(score="dot", key="x", query="x", value="x", bias="edge_weight", normalise="tanh")
class Weighing(pyg.MessagePassing):
    def forward(self, x: Tensor, edge_index: Any, edge_weight: Any = None) -> Tensor:
        return self.propagate(edge_index, x=x, edge_weight=edge_weight)

    def message(self, x_j: Tensor, x_i: Tensor, edge_weight: Any) -> Tensor:
        score = (x_j * x_i).sum(-1)
        score = score if edge_weight is None else score + edge_weight
        return x_j * score.tanh().unsqueeze(-1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["gatv2-edges-no-loops", "transformer-edges"])
def test_edge_features_beside_a_matrix(name: str, layout: str) -> None:
    """They are those of its entries, in their order."""
    stock = LAYERS[name]().double()
    edges = edges_between(NODES, NODES).unique(dim=1)
    args = arguments(name, adjacency(edges, layout, (NODES, NODES)))
    features = torch.randn(edges.shape[1], 3, dtype=torch.float64)
    if is_taken(stock, *args, features):
        assert assert_equal(stock, *args, features) == {"plain"}
    else:
        assert layout == "CSC"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sizes", [(30, 17), (17, 30)], ids=str)
@pytest.mark.parametrize("loops", [True, False])
def test_two_sets_of_nodes(layout: str, sizes: tuple[int, int], loops: bool) -> None:
    stock = pyg.GATConv((WIDTH, 5), OUT, heads=2, add_self_loops=loops).double()
    pair = tuple(torch.randn(n, w).double() for n, w in zip(sizes, (WIDTH, 5), strict=True))
    adj_t = adjacency(edges_between(*sizes).unique(dim=1), layout, sizes)
    if is_taken(stock, pair, adj_t):
        ours = accelerate(copy.deepcopy(stock))
        for _ in range(2):
            torch.testing.assert_close(ours(pair, adj_t), stock(pair, adj_t))
        assert explain(ours)[0].calls.counts == {"plain": 2}
    else:
        assert loops or layout == "CSC"


@settings(max_examples=30)
@given(
    data=st.data(),
    name=st.sampled_from([n for n in ALONE if is_one_pass(ALONE[n]())]),
    layout=st.sampled_from(LAYOUTS),
)
def test_hostile_graphs(data: st.DataObject, name: str, layout: str) -> None:
    edge_index, num_nodes, _ = draw_graph(data, square=True)
    torch.manual_seed(0)
    stock = LAYERS[name]().double()
    args = arguments(name, adjacency(edge_index, layout, (num_nodes, num_nodes)))
    if is_taken(stock, *args):
        assert_equal(stock, *args)


def test_a_matrix_that_is_written_to() -> None:
    stock = pyg.GATConv(WIDTH, OUT, edge_dim=3).double()
    ours = accelerate(copy.deepcopy(stock))
    features = torch.randn(4 * NODES, 3, dtype=torch.float64)
    adj_t = with_rows(edges_between(NODES, NODES), "CSR", features)
    for _ in range(3):
        args = arguments("gat", adj_t)
        assert_same(run(ours, *args), run(stock, *args), 1e-10)
        adj_t.values().mul_(0.5)


LEFT: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {
    "size": lambda: (pyg.GATConv(WIDTH, OUT), {"size": (NODES, NODES)}),
    "attention weights": lambda: (pyg.GATConv(WIDTH, OUT), {"return_attention_weights": True}),
    "other features": lambda: (pyg.GATConv(WIDTH, OUT, edge_dim=3), {}),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_to_stock(name: str) -> None:
    stock, how = LEFT[name]()
    ours = accelerate(copy.deepcopy(stock))
    x = torch.randn(NODES, WIDTH)
    adj_t = adjacency(edges_between(NODES, NODES), "CSR", (NODES, NODES), dtype=torch.float32)
    found, expected = ours(x, adj_t, **how), stock(x, adj_t, **how)
    if name == "attention weights":
        found, expected = found[0], expected[0]
    torch.testing.assert_close(found, expected)
    assert explain(ours)[0].calls.counts == {"stock": 1}


def test_values_with_gradients_are_stocks() -> None:
    stock = pyg.TransformerConv(WIDTH, OUT, edge_dim=3)
    ours = accelerate(copy.deepcopy(stock))
    edges = edges_between(NODES, NODES).unique(dim=1)
    values = torch.randn(edges.shape[1], 3, requires_grad=True)
    x, found = torch.randn(NODES, WIDTH), []
    for model in (ours, stock):
        y = model(x, with_rows(edges, "COO", values).coalesce())
        found.append(torch.autograd.grad(y.square().sum(), values)[0])
    torch.testing.assert_close(*found)
    assert explain(ours)[0].calls.reasons == {"stock": choice.SPARSE}
