"""DGL's layers of attention equal stock on every graph, and make no rows of edges."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

dgl = pytest.importorskip("dgl", reason="DGL is not installed")
import dgl.function as fn  # noqa: E402
from dgl.nn.functional import edge_softmax  # noqa: E402
from dgl.nn.pytorch import (  # noqa: E402
    AGNNConv,
    DotGatConv,
    EdgeGATConv,
    EGATConv,
    GATConv,
    GATv2Conv,
    GraphConv,
    HeteroGraphConv,
    HGTConv,
)

import hag_plugin as hp  # noqa: E402
from hag_plugin.dgl import ToHAG, accelerate, explain, restore  # noqa: E402
from hag_plugin.dgl.aggregation import choice  # noqa: E402
from hag_plugin.dgl.recipes.table import OTHER_FORWARD, RECIPES  # noqa: E402
from hag_plugin.testing import Ran, count_programs, limits  # noqa: E402

from ...cases import draw_graph  # noqa: E402
from ...equality import assert_same, with_gradients  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # DGL's own
WIDTH, OUT = 6, 4
Make = Callable[..., nn.Module]

LAYERS: dict[str, Make] = {
    "gat": lambda w=WIDTH: GATConv(w, OUT, 1, allow_zero_in_degree=True),
    "gat, drops": lambda w=WIDTH: GATConv(w, OUT, 3, 0.3, 0.4, 0.1, allow_zero_in_degree=True),
    "gat, residual": lambda w=WIDTH: GATConv(
        w, OUT, 2, attn_drop=0.5, residual=True, activation=torch.tanh, allow_zero_in_degree=True
    ),
    "gat, same width": lambda w=WIDTH: GATConv(
        w, 2, 3, residual=True, bias=False, allow_zero_in_degree=True
    ),
    "gatv2": lambda w=WIDTH: GATv2Conv(w, OUT, 1, allow_zero_in_degree=True),
    "gatv2, drops": lambda w=WIDTH: GATv2Conv(w, OUT, 3, 0.3, 0.4, allow_zero_in_degree=True),
    "gatv2, residual": lambda w=WIDTH: GATv2Conv(
        w, OUT, 2, 0.0, 0.5, 0.3, True, nn.ELU(), True, False
    ),
    "gatv2, same width": lambda w=WIDTH: GATv2Conv(
        w, 3, 2, residual=True, allow_zero_in_degree=True
    ),
    "dot": lambda w=WIDTH: DotGatConv(w, OUT, 3, allow_zero_in_degree=True),
    "agnn": lambda w=WIDTH: AGNNConv(0.7, allow_zero_in_degree=True),
    "agnn, fixed": lambda w=WIDTH: AGNNConv(learn_beta=False, allow_zero_in_degree=True),
}
# By what they are given of nodes and edges beside features.
EDGE, TYPES = 5, 3
VALUES: dict[str, Make] = {
    "edge-gat": lambda w=WIDTH: EdgeGATConv(w, EDGE, OUT, 1, allow_zero_in_degree=True),
    "edge-gat, drops": lambda w=WIDTH: EdgeGATConv(
        w, EDGE, OUT, 3, 0.3, 0.4, 0.1, False, torch.tanh, True, False
    ),
    "egat": lambda w=WIDTH: EGATConv(w, EDGE, OUT, 3, 2),
    "hgt": lambda: HGTConv(WIDTH, 3, 2, TYPES, TYPES, dropout=0.2),
    "hgt, normalised": lambda: HGTConv(WIDTH, 2, 4, TYPES, TYPES, use_norm=True),
}
SHARED: dict[str, Make] = {
    "gatv2, shared": lambda: GATv2Conv(
        WIDTH, OUT, 2, 0.2, 0.2, share_weights=True, allow_zero_in_degree=True
    ),
}
EVERY = LAYERS | SHARED | VALUES
PAIR = (WIDTH, WIDTH)
FIRST = [name for name in LAYERS if "," not in name]


@pytest.fixture(autouse=True)
def forced() -> Iterator[None]:
    """Small graphs are taken, too: what is tested is what runs, not whether it pays."""
    with limits(passing_gain=0.0):
        yield


def features(*rows: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(n, WIDTH, dtype=dtype) for n in rows]


class Pair(nn.Module):
    """A layer that is given features of sources and of targets."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, graph: Any, source: Tensor, target: Tensor) -> Any:
        return self.conv(graph, (source, target))


def values(name: str, graph: Any, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """What a layer of `VALUES` is given beside features."""
    num_edges = graph.num_edges()
    if name.startswith("hgt"):
        return [torch.randint(TYPES, (n,)) for n in (graph.num_src_nodes(), num_edges)]
    return [torch.randn(num_edges, EDGE, dtype=dtype)]


def run(layer: nn.Module, graph: Any, *given: Tensor) -> list[Tensor | None]:
    """The output, then the gradients of all inputs and parameters."""
    taken = [g.detach().clone().requires_grad_(g.is_floating_point()) for g in given]
    layer.zero_grad()
    torch.manual_seed(3)
    y = layer(graph, *taken)
    y = torch.cat([each.flatten() for each in y]) if isinstance(y, tuple) else y
    return with_gradients(y, [*(t for t in taken if t.is_floating_point()), *layer.parameters()])


def counts(model: nn.Module, place: int = 0) -> dict[Any, int]:
    return explain(model)[place].calls.counts


def reason(model: nn.Module) -> str:
    return explain(model)[0].calls.reasons["stock"]


def test_every_recipe_of_attention_is_tried() -> None:
    tried = {type(make()) for make in (LAYERS | VALUES).values()}
    assert tried == {cls for cls, recipe in RECIPES.items() if recipe.attention is not None}


# Equal to stock ---------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("idtype", [torch.int64, torch.int32], ids=str)
@pytest.mark.parametrize("name", LAYERS | SHARED)
def test_equals_stock(
    name: str, idtype: torch.dtype, training: bool, multigraph: Any, ran: Ran
) -> None:
    stock = (LAYERS | SHARED)[name]().double().train(training)
    ours, graph = accelerate(copy.deepcopy(stock)), multigraph(idtype)
    (x,) = features(57)
    expected = run(stock, graph, x)
    for times in range(1, 4):  # met, came back, known
        assert_same(run(ours, graph, x), expected, 1e-12)
        assert counts(ours) == {"plain": times}
    assert {each.operator for each in ran.programs} == {"attend", "attend_backward"}
    assert not graph.ndata
    assert not graph.edata


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("kind", ["graph", "block", "HAG"])
@pytest.mark.parametrize("name", VALUES)
def test_values_of_edges(name: str, kind: str, training: bool, multigraph: Any, block: Any) -> None:
    """In the order of DGL's edges, which is not that of their targets."""
    plain = block() if kind == "block" else multigraph()
    if (
        name == "egat"
    ):  # which takes one tensor on one set of nodes, and refuses nodes without edges
        plain = dgl.add_self_loop(multigraph())
    stock = VALUES[name]().double().train(training)
    ours, graph = accelerate(copy.deepcopy(stock)), ToHAG()(plain) if kind == "HAG" else plain
    given = [*features(plain.num_src_nodes()), *values(name, plain)]
    expected = run(stock, plain, *given)
    for times in range(1, 4):
        assert_same(run(ours, graph, *given), expected, 1e-12)
        assert counts(ours) == {"plain": times}
    again = [given[0], *values(name, plain)]  # others on the same graph
    assert_same(run(ours, graph, *again), run(stock, plain, *again), 1e-12)
    assert counts(ours) == {"plain": 4}
    single, narrow = VALUES[name]().train(training), [g.float() if g.is_floating_point() else g
                                                      for g in given]  # fmt: skip
    ours = accelerate(copy.deepcopy(single))
    assert_same(run(ours, graph, *narrow), run(single, plain, *narrow), 5e-5)
    assert counts(ours) == {"plain": 1}


@pytest.mark.parametrize("name", ["edge-gat", "edge-gat, drops", "egat"])
def test_values_of_edges_beside_pairs(name: str, hetero: Any) -> None:
    class Given(nn.Module):
        def __init__(self, conv: nn.Module) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, graph: Any, source: Tensor, target: Tensor, rows: Tensor) -> Any:
            return self.conv(graph, (source, target), rows)

    plays = hetero()["plays"]
    whole = torch.arange(plays.num_dst_nodes())  # so that none is without an edge
    graph = dgl.add_edges(plays, whole, whole)
    stock = VALUES[name](PAIR).double()
    ours = accelerate(Given(copy.deepcopy(stock)))
    given = [*features(graph.num_src_nodes(), graph.num_dst_nodes()), *values(name, graph)]
    for _ in range(2):
        assert_same(run(ours, graph, *given), run(Given(stock), graph, *given), 1e-12)
    assert counts(ours) == {"plain": 2}


def test_values_that_do_not_fit(multigraph: Any) -> None:
    graph = dgl.add_self_loop(multigraph())
    (x,) = features(57, dtype=torch.float32)
    rows, other = torch.randn(graph.num_edges(), EDGE), torch.randn(graph.num_edges())
    types = [torch.zeros(n, dtype=torch.int64) for n in (57, graph.num_edges())]
    layers: dict[str, list[tuple[Any, ...]]] = {
        "edge-gat": [(rows[:7],), (rows.double(),), (), (rows, 1)],
        "egat": [(rows[:7],), (rows.double(),), (rows, other.double())],
        "hgt": [(types[0],), (types[0], types[1][:7]), (types[0], types[1] + TYPES), (*types, 1)],
    }
    for name, wrong in layers.items():
        ours = accelerate(VALUES[name]())
        for each in wrong:
            if name == "edge-gat" and len(each) == 2:
                assert len(ours(graph, x, *each)) == 2  # get_attention
                assert reason(ours) == choice.RETURNS_SCORES
            else:
                assert error_of(ours, graph, x, *each) is error_of(
                    restore(copy.deepcopy(ours)), graph, x, *each
                )


def test_weights_beside_values_of_edges(multigraph: Any) -> None:
    graph = dgl.add_self_loop(multigraph())
    stock = VALUES["egat"]().double()
    ours = accelerate(copy.deepcopy(stock))
    weight = torch.rand(graph.num_edges(), dtype=torch.float64)
    given = [*features(57), *values("egat", graph), weight]
    assert_same(run(ours, graph, *given), run(stock, graph, *given), 1e-12)
    assert counts(ours) == {"plain": 1}


@pytest.mark.parametrize("name", LAYERS | SHARED)
def test_float32(name: str, multigraph: Any) -> None:
    stock = (LAYERS | SHARED)[name]()
    ours, graph = accelerate(copy.deepcopy(stock)), multigraph()
    (x,) = features(57, dtype=torch.float32)
    assert_same(run(ours, graph, x), run(stock, graph, x), 2e-5)
    assert counts(ours) == {"plain": 1}


@pytest.mark.parametrize("name", LAYERS | SHARED)
def test_blocks(name: str, block: Any) -> None:
    """Targets are the first sources."""
    stock, graph = (LAYERS | SHARED)[name]().double(), block()
    ours = accelerate(copy.deepcopy(stock))
    (x,) = features(graph.num_src_nodes())
    for _ in range(2):
        assert_same(run(ours, graph, x), run(stock, graph, x), 1e-12)
    assert counts(ours) == {"plain": 2}


@pytest.mark.parametrize("in_width", [WIDTH, PAIR], ids=["one linear layer", "two"])
@pytest.mark.parametrize("kind", ["block", "edge type"])
@pytest.mark.parametrize("name", LAYERS)
def test_pairs(name: str, kind: str, in_width: Any, block: Any, hetero: Any) -> None:
    graph = block() if kind == "block" else hetero()["plays"]
    stock = LAYERS[name](in_width).double()
    needs_two = name.startswith("dot") and in_width is WIDTH  # dotgatconv.py has one for pairs only
    pair = features(graph.num_src_nodes(), graph.num_dst_nodes())
    ours = accelerate(Pair(copy.deepcopy(stock)))
    if needs_two:
        with pytest.raises(AttributeError, match="fc_src"):
            ours(graph, *pair)
        return
    for _ in range(2):
        assert_same(run(ours, graph, *pair), run(Pair(stock), graph, *pair), 1e-12)
    assert counts(ours) == {"plain": 2}


@pytest.mark.parametrize("name", FIRST)
def test_pairs_on_one_set_of_nodes(name: str, multigraph: Any) -> None:
    """Where both have one name in stock's frame, the second stands for both."""
    stock, graph = LAYERS[name](PAIR).double(), multigraph()
    ours, pair = accelerate(Pair(copy.deepcopy(stock))), features(57, 57)
    assert_same(run(ours, graph, *pair), run(Pair(stock), graph, *pair), 1e-12)
    assert counts(ours) == {"stock" if name in ("dot", "agnn") else "plain": 1}


@pytest.mark.parametrize("name", ["gat", "gat, drops", "gat, residual", "agnn"])
def test_rows_of_several_dimensions(name: str, multigraph: Any, block: Any) -> None:
    stock = LAYERS[name]().double()
    ours = accelerate(copy.deepcopy(stock))
    for graph in (multigraph(), block()):
        x = torch.randn(graph.num_src_nodes(), 3, WIDTH, dtype=torch.float64)
        assert_same(run(ours, graph, x), run(stock, graph, x), 1e-12)
    assert counts(ours) == {"plain": 2}


@pytest.mark.parametrize("name", ["gat", "gat, drops", "gat, residual"])
def test_edge_weights(name: str, multigraph: Any) -> None:
    """Learned ones, in the order of DGL's edges, which is not that of their targets."""
    stock, graph = LAYERS[name]().double(), multigraph()
    ours = accelerate(copy.deepcopy(stock))
    (x,), weight = features(57), torch.randn(graph.num_edges(), dtype=torch.float64)
    for _ in range(2):
        assert_same(run(ours, graph, x, weight), run(stock, graph, x, weight), 1e-12)
    assert counts(ours) == {"plain": 2}


@settings(max_examples=60)
@given(data=st.data(), name=st.sampled_from(sorted(EVERY)))
def test_hostile_graphs(data: st.DataObject, name: str) -> None:
    edge_index, num_nodes, _ = draw_graph(data, square=True)
    graph = dgl.graph(tuple(edge_index), num_nodes=num_nodes)
    if name == "egat":
        graph = dgl.add_self_loop(graph)
    torch.manual_seed(0)
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]))
    stock = EVERY[name]().to(dtype)
    (x,), more = features(num_nodes, dtype=dtype), []
    if name in VALUES:
        more = values(name, graph, dtype)
    if data.draw(st.booleans()):
        x[0, 0] = data.draw(st.sampled_from([float("nan"), float("inf"), -float("inf")]))
        stock.eval()
    with limits(passing_gain=0.0):
        ours = accelerate(copy.deepcopy(stock))
        bound = {8: 1e-11, 4: 2e-4}[dtype.itemsize]
        found, expected = (run(layer, graph, x, *more) for layer in (ours, stock))
        assert_same(found, expected, bound)


@pytest.mark.parametrize("rows", [2, 3], ids=["vectors", "matrices"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 1.0])
@pytest.mark.parametrize("where", ["alone", "a source", "a target", "both"])
def test_rows_that_no_edge_asks_for(where: str, value: float, rows: int) -> None:
    """What multiplies the rows of all targets takes nothing from those of nodes without an edge."""
    own = {"alone": [], "a source": [(19, 2)], "a target": [(2, 19)], "both": [(19, 2), (3, 19)]}
    edges = torch.cat([torch.randint(18, (80, 2)), torch.tensor(own[where]).long().view(-1, 2)])
    graph = dgl.graph(tuple(edges.t()), num_nodes=20)
    stock = LAYERS["agnn"]().double()
    x = torch.randn(20, *[3] * (rows - 2), WIDTH, dtype=torch.float64)
    x[19] = value
    with limits(passing_gain=0.0):
        ours = accelerate(copy.deepcopy(stock))
        for _ in range(2):
            assert_same(run(ours, graph, x), run(stock, graph, x), 1e-11)
    assert counts(ours) == {"plain": 2}


@pytest.mark.parametrize("name", FIRST)
def test_bfloat16(name: str, multigraph: Any) -> None:
    """As near to the layer in float64 as stock is, or nearer."""
    half, graph = torch.bfloat16, multigraph()
    exact = LAYERS[name]().to(half).double().eval()
    ours, stock = accelerate(copy.deepcopy(exact).to(half)), copy.deepcopy(exact).to(half)
    (x,) = features(57, dtype=half)
    truth, y, theirs = exact(graph, x.double()), ours(graph, x), stock(graph, x)
    assert y.dtype == theirs.dtype == half
    bound = (theirs.double() - truth).abs().max() + 4 * torch.finfo(half).eps * truth.abs().max()
    assert (y.double() - truth).abs().max() <= bound
    assert counts(ours) == {"plain": 1}


@pytest.mark.parametrize("name", FIRST)
def test_second_derivatives(name: str) -> None:
    """DGL's softmax over edges has none: what is right is told by differences."""
    graph = dgl.graph(([0, 1, 2, 2, 3, 0], [1, 1, 0, 0, 2, 2]), num_nodes=5)
    layer = accelerate(LAYERS[name]().double())
    (x,) = features(5)
    layer(graph, x.requires_grad_())
    assert torch.autograd.gradcheck(lambda v: layer(graph, v), (x,))
    assert torch.autograd.gradgradcheck(lambda v: layer(graph, v), (x,))
    assert {*counts(layer)} == {"plain"}


@pytest.mark.parametrize("name", FIRST)
def test_transforms_of_functions(name: str, multigraph: Any) -> None:
    layer, graph = accelerate(LAYERS[name]().double()), multigraph()
    (x, tangent) = features(57, 57)
    _, along = torch.func.jvp(lambda v: layer(graph, v), (x,), (tangent,))
    step = 1e-6
    apart = (layer(graph, x + step * tangent) - layer(graph, x - step * tangent)) / (2 * step)
    torch.testing.assert_close(along, apart, rtol=1e-6, atol=1e-7)
    several = torch.stack(features(57, 57))
    mapped = torch.func.vmap(lambda v: layer(graph, v))(several)
    torch.testing.assert_close(mapped, torch.stack([layer(graph, v) for v in several]))


class Largest(TorchDispatchMode):
    """The most numbers that a tensor of some call has."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, Tensor):
                self.numbers = max(self.numbers, each.numel())
        return out


@pytest.mark.parametrize("name", FIRST)
def test_no_rows_of_edges(name: str) -> None:
    graph = dgl.graph(tuple(torch.randint(20, (2, 5000))))
    stock = LAYERS[name]()
    ours = accelerate(copy.deepcopy(stock))
    (x,) = features(20, dtype=torch.float32)
    run(ours, graph, x)
    found = []
    for layer in (ours, stock):
        with Largest() as largest:
            run(layer, graph, x)
        found.append(largest.numbers)
    assert found[0] < 5000  # no number of each edge either, without dropout
    assert found[1] >= 5000


@pytest.mark.parametrize("name", [*FIRST, "edge-gat", "egat", "hgt"])
def test_real_graphs(name: str, real_graph: Any) -> None:
    graph = dgl.add_self_loop(real_graph)
    stock = EVERY[name]()
    ours = accelerate(copy.deepcopy(stock))
    (x,) = features(graph.num_nodes(), dtype=torch.float32)
    more = values(name, graph, torch.float32) if name in VALUES else []
    assert_same(run(ours, graph, x, *more), run(stock, graph, x, *more), 1e-4)
    assert counts(ours) == {"plain": 1}


# Graphs with HAGs, and of several types -----------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_graphs_with_hags(name: str, multigraph: Any) -> None:
    stock = LAYERS[name]().double()
    ours, plain = accelerate(copy.deepcopy(stock)), multigraph()
    made = ToHAG()(plain)
    pairs = [
        (made, plain),
        (made.clone(), plain),
        (hp.dgl.reverse(made), dgl.reverse(plain)),
        (hp.dgl.batch([made, made]), dgl.batch([plain, plain])),
        (dgl.add_self_loop(made), dgl.add_self_loop(plain)),
    ]
    for graph, other in pairs:
        (x,) = features(other.num_nodes())
        assert_same(run(ours, graph, x), run(stock, other, x), 1e-12)
    assert counts(ours) == {"plain": len(pairs)}
    made.add_edges([0], [1])
    plain.add_edges([0], [1])
    assert_same(run(ours, made, x[:57]), run(stock, plain, x[:57]), 1e-12)


def test_edge_types(hetero: Any) -> None:
    """Inside of HeteroGraphConv each graph is made anew in each call."""
    graph = hetero()
    convs = {
        etype: GATConv(PAIR, OUT, 2, attn_drop=0.3, allow_zero_in_degree=True)
        for etype in graph.etypes
    }
    stock = HeteroGraphConv(convs).double()
    x = dict(zip(graph.ntypes, features(*map(graph.num_nodes, graph.ntypes)), strict=True))
    ours = accelerate(copy.deepcopy(stock))
    for _ in range(3):
        found = []
        for model in (stock, ours):
            torch.manual_seed(2)
            found.append(model(graph, (x, x)))
        for kind in found[0]:
            torch.testing.assert_close(found[1][kind], found[0][kind])
    assert [counts(ours, place) for place in (1, 2, 3)] == [{"plain": 3}] * 3


def test_edges_are_sorted_once(multigraph: Any) -> None:
    """Two layers of a model share what was made of a graph, at its first meeting and later."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = GATConv(WIDTH, WIDTH, 1, allow_zero_in_degree=True)
            self.second = GATv2Conv(WIDTH, OUT, 2, allow_zero_in_degree=True)

        def forward(self, graph: Any, x: Tensor) -> Any:
            return self.second(graph, self.first(graph, x).flatten(1))

    def attended_over() -> set[int]:
        """The graphs of one call's layers."""
        with count_programs() as ran:
            model(graph, x)
        graphs.append({run.program for run in ran.programs})
        return {id(each) for each in graphs[-1]}

    graphs: list[Any] = []  # kept, so that no two of them share an address
    model, graph = accelerate(Two()), multigraph()
    (x,) = features(57, dtype=torch.float32)
    first, second, third = (attended_over() for _ in range(3))
    assert len(first) == len(second) == 1
    assert second == third != first
    hp.forget(model)
    assert len(attended_over() - first - second) == 1


class Written(nn.Module):
    """Attention that its user wrote, of DGL's pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, 2 * OUT)
        self.left, self.right = nn.Parameter(torch.randn(2, OUT)), nn.Parameter(torch.randn(2, OUT))
        self.drop = nn.Dropout(0.3)

    def forward(self, graph: Any, x: Tensor) -> Tensor:
        with graph.local_scope():
            rows = self.project(x).view(-1, 2, OUT)
            graph.ndata["x"] = rows
            graph.ndata["l"] = (rows * self.left).sum(-1, keepdim=True)
            graph.ndata["r"] = (rows * self.right).sum(-1, keepdim=True)
            graph.apply_edges(fn.u_add_v("l", "r", "e"))
            graph.edata["a"] = self.drop(edge_softmax(graph, graph.edata["e"].sigmoid()))
            graph.update_all(fn.u_mul_e("x", "a", "m"), fn.sum("m", "y"))
            return graph.ndata["y"]  # type: ignore[no-any-return]


def test_attention_of_users(multigraph: Any, ran: Ran) -> None:
    """On a graph with a HAG; on a plain one that comes back, where the class is declared."""
    stock, graph = Written().double(), multigraph()
    declared = hp.hag_layer(type("Declared", (Written,), {"forward": Written.forward}))
    ours = declared().double()
    ours.load_state_dict(stock.state_dict())
    (x,) = features(57)
    expected = run(stock, graph, x)
    assert_same(run(stock, ToHAG()(graph), x), expected, 1e-12)
    assert [each.operator for each in ran.forward] == ["head_sum"]
    accelerate(ours)
    for _ in range(3):
        assert_same(run(ours, graph, x), expected, 1e-12)
    assert counts(ours) == {"stock": 1, "plain": 2}


# Left to stock ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gat", "gat, drops", "gatv2", "gatv2, drops", "dot"])
def test_attention_itself_is_stocks(name: str, multigraph: Any) -> None:
    stock, graph = LAYERS[name]().double(), multigraph()
    ours = accelerate(copy.deepcopy(stock))
    (x,) = features(57)
    results = []
    for layer in (stock, ours):
        torch.manual_seed(1)
        results.append(layer(graph, x, get_attention=True))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert reason(ours) == choice.RETURNS_SCORES


@pytest.mark.parametrize("name", FIRST)
def test_nodes_without_edges(name: str, multigraph: Any) -> None:
    stock, graph = LAYERS[name](), multigraph()
    stock._allow_zero_in_degree = False
    ours = accelerate(copy.deepcopy(stock))
    (x,) = features(57, dtype=torch.float32)
    for _ in range(2):
        with pytest.raises(dgl.DGLError, match="0-in-degree"):
            ours(graph, x)
    whole = dgl.add_self_loop(graph)
    assert_same(run(ours, whole, x), run(stock, whole, x), 2e-5)
    assert counts(ours) == {"plain": 1}


def error_of(layer: nn.Module, *args: Any) -> type[Exception]:
    try:
        layer(*args)
    except Exception as error:
        return type(error)
    raise AssertionError("no error")


def test_other_arguments(multigraph: Any, hetero: Any) -> None:
    """What does not fit is DGL's to refuse, or to run."""
    layer, graph = accelerate(GATConv(WIDTH, OUT, 2, allow_zero_in_degree=True)), multigraph()
    (x,) = features(57, dtype=torch.float32)
    wrong: list[tuple[Any, ...]] = [
        (graph, x, None, False, 1),
        (graph, x[:50]),
        (graph, x.double()),
        (graph, x.half()),
        (graph, x.to("meta")),
        (graph, x, torch.rand(7)),
        (hetero(), x),
        (None, x),
        (graph,),
        (),
    ]
    for args in wrong:
        assert error_of(layer, *args) is error_of(restore(copy.deepcopy(layer)), *args)
    assert not counts(layer)
    empty = dgl.graph(([], []), num_nodes=57)
    assert not layer(empty, x).flatten(1)[:, 0].isnan().any()
    assert reason(layer) == choice.NO_EDGES


@pytest.mark.parametrize("part", ["leaky_relu", "attn_drop"])
def test_hooks_and_other_parts_are_stocks(part: str, multigraph: Any) -> None:
    graph, (x,) = multigraph(), features(57, dtype=torch.float32)
    stock = LAYERS["gat, drops"]().eval()
    ours = accelerate(copy.deepcopy(stock))
    seen: list[Any] = []
    handle = getattr(ours, part).register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(ours(graph, x), stock(graph, x))
    assert seen == [1]
    assert not explain(ours)[0].accelerated
    assert reason(ours).startswith(f"hooks on its {part}")
    handle.remove()
    for layer in (stock, ours):
        setattr(layer, part, nn.Tanh())
    torch.testing.assert_close(ours(graph, x), stock(graph, x))
    assert "replaced by a Tanh" in reason(ours)


def test_other_parts_of_layers_with_values(multigraph: Any) -> None:
    graph, (x,) = multigraph(), features(57, dtype=torch.float32)
    for name, part in (("edge-gat", "fc_edge"), ("hgt", "relation_msg")):
        ours, given = accelerate(VALUES[name]().eval()), values(name, graph, torch.float32)
        held = getattr(ours, part)
        held = held[0] if isinstance(held, nn.ModuleList) else held
        expected, seen = ours(graph, x, *given), []
        handle = held.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        torch.testing.assert_close(ours(graph, x, *given), expected)
        assert len(seen) == 1
        handle.remove()
        assert reason(ours).startswith(f"hooks on its {part}")
    ours = accelerate(VALUES["edge-gat"]().eval())
    ours.fc_edge = nn.Linear(EDGE, OUT)
    given = values("edge-gat", graph, torch.float32)
    y = ours(graph, x, *given)
    assert "with a bias" in reason(ours)
    torch.testing.assert_close(y, restore(ours)(graph, x, *given))


def test_autocast_and_compiled_code(multigraph: Any) -> None:
    graph, (x,) = multigraph(), features(57, dtype=torch.float32)
    layer = accelerate(DotGatConv(WIDTH, OUT, 2, allow_zero_in_degree=True))
    with torch.autocast("cpu", torch.bfloat16):
        layer(graph, x)
    assert reason(layer) == choice.SCORED_AUTOCAST
    expected = layer(graph, x)
    compiled = torch.compile(layer, backend="eager")
    torch.testing.assert_close(compiled(graph, x), expected)


class Own(GATConv):
    """A forward of its own."""

    def forward(self, graph: Any, feat: Tensor) -> Any:
        return super().forward(graph, feat).mean(1)


class Wide(GATConv):
    """Made otherwise, with DGL's forward."""

    def __init__(self) -> None:
        super().__init__(WIDTH, OUT, 5, allow_zero_in_degree=True)


def test_subclasses(multigraph: Any) -> None:
    graph, (x,) = multigraph(), features(57, dtype=torch.float32)
    for stock, kind in (
        (Own(WIDTH, OUT, 2, allow_zero_in_degree=True), "stock"),
        (Wide(), "plain"),
    ):
        ours = accelerate(copy.deepcopy(stock))
        assert isinstance(ours, type(stock))
        assert_same(run(ours, graph, x), run(stock, graph, x), 2e-5)
        assert counts(ours) == {kind: 1}
        assert explain(ours)[0].layer == type(stock).__name__
        assert explain(ours)[0].accelerated == (kind == "plain")
    assert explain(Own(WIDTH, OUT, 2))[0].reason == OTHER_FORWARD


def test_small_graphs_that_are_met_once(multigraph: Any) -> None:
    """A graph of a few hundred edges is not worth sorting once, but it is to keep."""
    graph, (x,) = multigraph(), features(57, dtype=torch.float32)
    layer = accelerate(GATConv(WIDTH, OUT, 2, allow_zero_in_degree=True))
    with limits(passing_gain=1.0):
        layer(graph, x)
        assert reason(layer) == choice.SCORED_FIRST
        for _ in range(2):
            layer(graph, x)
        given = ToHAG()(multigraph())
        layer(given, x)  # nor to put its edges in order
        assert counts(layer) == {"stock": 2, "plain": 2}
        layer(given, x)
        assert counts(layer) == {"stock": 2, "plain": 3}
        large = dgl.rand_graph(3000, 60_000)
        layer(large, torch.randn(3000, WIDTH))
        assert counts(layer) == {"stock": 2, "plain": 4}
    with limits(passing_gain=10.0):
        layer(dgl.rand_graph(200_000, 2), torch.randn(200_000, WIDTH))
    assert reason(layer) == choice.SCORED_FEW


# The layer stays what it was ----------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_copied_saved_and_restored(name: str, multigraph: Any) -> None:
    graph, (x,) = multigraph(), features(57)
    stock = LAYERS[name]().double().eval()
    ours = accelerate(copy.deepcopy(stock))
    expected = run(stock, graph, x)
    run(ours, graph, x)
    assert [*ours.state_dict()] == [*stock.state_dict()]
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert not counts(other)
        for _ in range(2):
            assert_same(run(other, graph, x), expected, 1e-12)
        assert counts(other) == {"plain": 2}
        assert_same(run(restore(other), graph, x), expected, 1e-12)
        assert type(other) is type(stock)
    assert type(restore(ours)) is type(stock)
    assert {*vars(ours)} == {*vars(stock)}
    assert not counts(ours)


def test_beside_layers_of_pyg(multigraph: Any) -> None:
    """Each library's layers are its own adapter's."""
    pyg = pytest.importorskip("torch_geometric.nn")
    model = nn.ModuleList([pyg.GATConv(WIDTH, OUT), GATConv(WIDTH, OUT, 1), GraphConv(WIDTH, OUT)])
    swapped = ["HagGATConv", "HagGATConv", "HagGraphConv"]
    hp.accelerate(model)
    assert [type(layer).__name__ for layer in model] == swapped
    hp.pyg.accelerate(model)
    hp.dgl.accelerate(model)
    assert [type(layer).__name__ for layer in model] == swapped
    hp.dgl.restore(model)
    assert type(model[1]) is GATConv
    assert type(model[0]).__name__ == "HagGATConv"
    hp.restore(model)
    assert [type(layer) for layer in model] == [pyg.GATConv, GATConv, GraphConv]
