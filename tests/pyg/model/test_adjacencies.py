"""Sparse adjacencies in accelerated models: met first and coming back, with values or without."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hag_plugin.pyg import accelerate, explain
from hag_plugin.pyg.model import choice
from hag_plugin.pyg.recipes.adjacency import DUPLICATES, LOOPED, VALUES
from hag_plugin.testing import count_programs, limits

from ...cases import draw_graph, random_graph
from ..recipes.test_table import CONFIGURATIONS, WIDTH, assert_close, count_calls, run
from .test_passing import NUM_NODES, edges_of, features

LAYOUTS = ("CSR", "CSC", "COO")
pytestmark = pytest.mark.filterwarnings("ignore:.*(Sparse|sparse)")

# Layers in which values are weights, and some in which they are more.
WEIGH: dict[str, Callable[[], Any]] = {
    "gcn": lambda: pyg.GCNConv(WIDTH, 4),
    "gcn-improved": lambda: pyg.GCNConv(WIDTH, 4, improved=True),
    "gcn-bare": lambda: pyg.GCNConv(WIDTH, 4, normalize=False),
    "graph": lambda: pyg.GraphConv(WIDTH, 4),
    "graph-mean": lambda: pyg.GraphConv(WIDTH, 4, aggr="mean"),
    "sage": lambda: pyg.SAGEConv(WIDTH, 4),
    "gin": lambda: pyg.GINConv(nn.Linear(WIDTH, 4)),
    "tag": lambda: pyg.TAGConv(WIDTH, 4),
    "sg": lambda: pyg.SGConv(WIDTH, 4, K=2),
    "lg": lambda: pyg.LGConv(),
    "simple-loops": lambda: pyg.SimpleConv(combine_root="self_loop"),
    "appnp": lambda: pyg.APPNP(2, 0.1),
}
MORE: dict[str, Callable[[], Any]] = {
    "sage-max": lambda: pyg.SAGEConv(WIDTH, 4, aggr="max"),
    "sage-std": lambda: pyg.SAGEConv(WIDTH, 4, aggr="std"),
    "graph-min": lambda: pyg.GraphConv(WIDTH, 4, aggr="min"),
    "mf": lambda: pyg.MFConv(WIDTH, 4),
    "cluster": lambda: pyg.ClusterGCNConv(WIDTH, 4),
    "eg": lambda: pyg.EGConv(WIDTH, 4, num_heads=2, num_bases=2),
    "labels": lambda: pyg.LabelPropagation(2, 0.5),
    "pdn": lambda: pyg.PDNConv(WIDTH, 4, edge_dim=1, hidden_channels=2),
}


def adjacency(
    edge_index: Tensor,
    layout: str,
    size: tuple[int, int],
    values: Tensor | float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Rows are targets. Duplicates stay, in COO uncoalesced."""
    if isinstance(values, float):
        values = torch.full((edge_index.shape[1],), values, dtype=dtype)
    if layout == "COO":
        distinct = edge_index.unique(dim=1).shape[1] == edge_index.shape[1]
        adj_t = torch.sparse_coo_tensor(edge_index.flip(0), values, size[::-1])
        return adj_t.coalesce() if distinct else adj_t
    major, minor = edge_index.flip(0) if layout == "CSR" else edge_index
    order = torch.argsort(major, stable=True)
    starts = torch.zeros(size[1] if layout == "CSR" else size[0], dtype=torch.int64)
    starts = torch.cat([starts.new_zeros(1), starts.index_add(0, major, major * 0 + 1).cumsum(0)])
    make = torch.sparse_csr_tensor if layout == "CSR" else torch.sparse_csc_tensor
    return make(starts, minor[order].contiguous(), values[order], size[::-1])


def without_duplicates(edge_index: Tensor, loops: bool) -> Tensor:
    edges = edge_index.unique(dim=1)
    return edges if loops else edges[:, edges[0] != edges[1]]


def is_taken(stock: nn.Module, *given: Any) -> bool:
    """Whether stock takes such a matrix."""
    try:
        stock(*given)
    except Exception:
        return False
    return True


def assert_equal(stock: nn.Module, x: Tensor, *given: Any) -> set[str]:
    """Equal when it is met first and when it comes back; with what reasons."""
    ours = accelerate(copy.deepcopy(stock))
    reasons: set[str] = set()
    expected = run(stock, [x], *given)
    for _ in range(3):
        for mine, of_stock in zip(run(ours, [x], *given), expected, strict=True):
            torch.testing.assert_close(mine, of_stock, equal_nan=True, rtol=1e-9, atol=1e-9)
        reasons |= set(explain(ours)[0].calls.reasons.values())
    return reasons


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [n for n in CONFIGURATIONS if "-" not in n])
def test_every_layer(name: str, layout: str) -> None:
    stock = CONFIGURATIONS[name]().double()
    x = features().requires_grad_()
    args = [x, x.flip(0)] if isinstance(stock, pyg.GCN2Conv) else [x]
    for loops in (False, True):
        for value in (1.0, 0.5):
            edges = without_duplicates(edges_of(5), loops)
            adj_t = adjacency(edges, layout, (NUM_NODES, NUM_NODES), value)
            if is_taken(stock, *args, adj_t):
                assert_equal(stock, x, *args, adj_t)


VALUES_OF = st.sampled_from([1.0, 1.0, 0.5, -2.0, 0.0, float("inf"), float("nan")])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [*WEIGH, *MORE])
@settings(max_examples=25)
@given(data=st.data())
def test_hostile_matrices(name: str, layout: str, data: st.DataObject) -> None:
    edges, num_src, num_dst = draw_graph(data, square=data.draw(st.booleans()))
    if layout != "COO" and data.draw(st.booleans()):
        edges = edges.unique(dim=1)
    drawn = data.draw(st.lists(VALUES_OF, min_size=edges.shape[1], max_size=edges.shape[1]))
    values = torch.tensor(drawn, dtype=torch.float64)
    if data.draw(st.booleans()):
        values = torch.ones_like(values)
    adj_t = adjacency(edges, layout, (num_src, num_dst), values)
    stock = (WEIGH | MORE)[name]().double()
    if num_src != num_dst and name.partition("-")[0] not in ("sage", "graph", "gin"):
        return
    x = features(num_src).requires_grad_()
    given_x: Any = x if num_src == num_dst else (x, features(num_dst))
    if not is_taken(stock, given_x, adj_t):
        return
    if data.draw(st.booleans()):
        assert_equal(stock, x, given_x, adj_t)
        return
    ours = accelerate(copy.deepcopy(stock))
    with torch.no_grad():
        for _ in range(2):
            mine, of_stock = ours(given_x, adj_t), stock(given_x, adj_t)
            torch.testing.assert_close(mine, of_stock, equal_nan=True, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [1.0, 0.5])
@pytest.mark.parametrize("name", WEIGH)
def test_met_first(name: str, value: float, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of stock's runs, and each is told in its own words."""
    edges = without_duplicates(edges_of(5), False)
    adj_t = adjacency(edges, layout, (NUM_NODES, NUM_NODES), value)
    stock = WEIGH[name]().double()
    x = features().requires_grad_()
    if not is_taken(stock, x, adj_t):  # gcn_norm takes no CSC
        return
    reasons = assert_equal(stock, x, x, adj_t)
    met = choice.MET if value == 1.0 and name != "gcn-improved" else choice.MET_WEIGHTS
    assert met in reasons
    assert len(reasons) == 2
    ours = accelerate(copy.deepcopy(stock))  # layers that are made later would keep the count
    calls = count_calls(type(stock), monkeypatch)
    for _ in range(3):
        ours(x, adj_t)
    assert not calls


def test_made_once_for_all_layers_and_both_directions() -> None:
    adj_t = adjacency(without_duplicates(edges_of(5), True), "CSR", (NUM_NODES, NUM_NODES))
    model = nn.ModuleList([pyg.SAGEConv(WIDTH, WIDTH).double() for _ in range(2)])

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = model

        def forward(self, x: Tensor, adj_t: Tensor) -> Tensor:
            return self.layers[1](self.layers[0](x, adj_t).relu(), adj_t)

    ours = accelerate(Two())
    with count_programs() as ran:
        ours(features().requires_grad_(), adj_t).sum().backward()
    assert ran.searches == 2
    assert ran.plain == 4


def test_a_normalised_matrix_that_comes_back_gets_a_hag() -> None:
    """Values that are products of factors, as `gcn_norm` makes them: sums are shared."""
    edges = torch.cartesian_prod(torch.arange(NUM_NODES), torch.arange(NUM_NODES)).t()
    degree = torch.full((NUM_NODES,), float(NUM_NODES), dtype=torch.float64)
    values = degree[edges[0]].rsqrt() * degree[edges[1]].rsqrt()
    adj_t = adjacency(edges, "CSR", (NUM_NODES, NUM_NODES), values)
    stock = pyg.GCNConv(WIDTH, 4, normalize=False).double()
    ours = accelerate(copy.deepcopy(stock))
    for _ in range(3):
        assert_close(ours(features(), adj_t), stock(features(), adj_t))
    assert explain(ours)[0].calls.reasons["HAG"] == choice.FACTORS


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_stays_with_stock(layout: str) -> None:
    size = (NUM_NODES, NUM_NODES)
    looped = without_duplicates(torch.cat([edges_of(5), torch.zeros(2, 1).long()], dim=1), True)
    x = features().requires_grad_()
    if layout != "CSC":
        reasons = assert_equal(WEIGH["gcn"]().double(), x, x, adjacency(looped, layout, size))
        assert reasons == {LOOPED}
    adj_t = adjacency(looped, layout, size, 2.0)
    assert assert_equal(MORE["sage-max"]().double(), x, x, adj_t) == {VALUES}
    if layout != "CSC":  # stock has no gradient of its values
        learned = adjacency(looped, layout, size, 2.0).requires_grad_()
        assert assert_equal(WEIGH["graph"]().double(), x, x, learned) == {choice.SPARSE}
    if layout == "COO":
        twice = adjacency(torch.cat([looped, looped[:, :3]], dim=1), layout, size)
        assert assert_equal(WEIGH["sage"]().double(), x, x, twice) == {DUPLICATES}
    other = adjacency(looped, layout, size, 1.0, torch.float32)
    for wrong in (other, adjacency(looped, layout, (21, NUM_NODES))):
        ours = accelerate(WEIGH["sage"]().double())
        for _ in range(2):
            with pytest.raises((RuntimeError, ValueError)):
                ours(x, wrong)


def test_uncoalesced_without_duplicates() -> None:
    edges = without_duplicates(edges_of(5), True).flip(1)
    values = torch.ones(edges.shape[1], dtype=torch.float64)
    adj_t = torch.sparse_coo_tensor(edges.flip(0), values, (NUM_NODES, NUM_NODES))
    x = features().requires_grad_()
    assert choice.MET in assert_equal(WEIGH["sage"]().double(), x, x, adj_t)


@pytest.mark.parametrize("layout", ["CSR", "CSC"])
def test_int32_indices(layout: str) -> None:
    adj_t = adjacency(without_duplicates(edges_of(5), True), layout, (NUM_NODES, NUM_NODES), 0.5)
    of_csr = layout == "CSR"
    starts = adj_t.crow_indices() if of_csr else adj_t.ccol_indices()
    others = adj_t.col_indices() if of_csr else adj_t.row_indices()
    make = torch.sparse_csr_tensor if of_csr else torch.sparse_csc_tensor
    narrow = make(starts.int(), others.int(), adj_t.values(), adj_t.shape)
    x = features().requires_grad_()
    assert_equal(WEIGH["sage"]().double(), x, x, narrow)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_sets_of_nodes(layout: str) -> None:
    edges = random_graph(20, 8, 50).unique(dim=1)
    stock = pyg.SAGEConv((WIDTH, 3), 4).double()
    for value in (1.0, 0.5):
        adj_t, x = adjacency(edges, layout, (20, 8), value), features().requires_grad_()
        reasons = assert_equal(stock, x, (x, features(8)[:, :3]), adj_t)
        assert {choice.MET, choice.MET_WEIGHTS} & reasons


@pytest.mark.parametrize("unseen", [False, True])
@pytest.mark.parametrize("part", ["values", "col_indices"])
def test_written_to_between_calls(part: str, unseen: bool) -> None:
    adj_t = adjacency(without_duplicates(edges_of(5), True), "CSR", (NUM_NODES, NUM_NODES), 0.5)
    stock = pyg.SAGEConv(WIDTH, 4).double()
    ours, x = accelerate(copy.deepcopy(stock)), features()
    for i in range(4):
        assert_close(ours(x, adj_t), stock(x, adj_t))
        tensor = getattr(adj_t, part)()
        if part == "values":
            (tensor.data if unseen else tensor)[:] = 1.0 + i
        else:
            (tensor.data if unseen else tensor)[0] = 0


def test_the_cost_model_decides() -> None:
    """Few entries, and products that are not derived, are stock's; others run as they are."""
    conv = pyg.SAGEConv(8, 8)
    few = adjacency(without_duplicates(edges_of(5), True), "CSR", (20, 20), dtype=torch.float32)
    edges = torch.randint(1500, (2, 200_000), generator=torch.Generator().manual_seed(0))
    many = adjacency(edges.unique(dim=1), "CSR", (1500, 1500), dtype=torch.float32)
    for adj_t, grad, kind in ((few, True, "stock"), (many, False, "stock"), (many, True, "plain")):
        ours = accelerate(copy.deepcopy(conv))
        x = torch.randn(adj_t.shape[0], 8, requires_grad=grad)
        with limits(few_messages=0, passing_gain=1.0), torch.set_grad_enabled(grad):
            ours(x, adj_t)
        reasons = explain(ours)[0].calls.reasons
        assert set(reasons) == {kind}
        assert reasons[kind] == (choice.MET if kind == "plain" else choice.SPARSE_FEW)


def test_few_messages_are_counted_by_entries() -> None:
    """A matrix with few columns may have many entries."""
    edges = torch.cartesian_prod(torch.arange(100), torch.arange(100)).t()
    adj_t = adjacency(edges, "CSR", (100, 100), dtype=torch.float32)
    ours = accelerate(pyg.SAGEConv(8, 8))
    with limits(few_messages=4096):
        ours(torch.randn(100, 8), adj_t)
    assert choice.FEW not in explain(ours)[0].calls.reasons.values()


def test_torch_sparse() -> None:
    torch_sparse = pytest.importorskip("torch_sparse", reason="torch_sparse is not installed")
    edges = without_duplicates(edges_of(5), False)
    bare = torch_sparse.SparseTensor.from_edge_index(edges, sparse_sizes=(20, 20)).t()
    half = bare.set_value(torch.full((bare.nnz(),), 0.5, dtype=torch.float64))
    x = features().requires_grad_()
    for name, make in (WEIGH | MORE).items():
        for adj_t in (bare, half):
            reasons = assert_equal(make().double(), x, x, adj_t)
            if name == "sage" and adj_t is bare:
                assert choice.MET in reasons


# Compiled code -----------------------------------------------------------------------------------

COMPILED: dict[str, Callable[[], Any]] = {
    **{name: WEIGH[name] for name in ("graph", "sage", "gin", "gcn")},
    "sage-max": MORE["sage-max"],
    "transformer": lambda: pyg.TransformerConv(WIDTH, 4),
    "gat": lambda: pyg.GATConv(WIDTH, 4),
    "gat-no-loops": lambda: pyg.GATConv(WIDTH, 4, add_self_loops=False),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.mostly_slow("graph-CSR", "gat-CSR", "transformer-COO")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name: str, layout: str) -> None:
    """Where stock compiles, an accelerated layer does, whether it takes the matrix or leaves it."""
    stock = COMPILED[name]().double()
    edges = without_duplicates(edges_of(5), False)
    adj_t, x = adjacency(edges, layout, (NUM_NODES, NUM_NODES)), features().requires_grad_()
    torch._dynamo.reset()
    takes = is_taken(torch.compile(copy.deepcopy(stock), backend="aot_eager"), x, adj_t)
    for gain in (0.0, 1e9):
        with limits(passing_gain=gain):
            ours = accelerate(copy.deepcopy(stock))
            model = torch.compile(ours, backend="aot_eager")
            for _ in range(2):
                if (gain == 0.0 and is_taken(stock, x, adj_t)) or takes:
                    found, expected = run(model, [x], x, adj_t), run(stock, [x], x, adj_t)
                    for a, b in zip(found, expected, strict=True):
                        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
