"""`update_all` of a graph with a HAG gives what DGL's own gives, on any graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

dgl = pytest.importorskip("dgl", reason="DGL is not installed")
import dgl.function as fn  # noqa: E402

from hag_plugin.dgl import ToHAG  # noqa: E402
from hag_plugin.dgl.aggregation.ties import sources_are_in_order  # noqa: E402
from hag_plugin.testing import Ran, limits  # noqa: E402

REDUCERS = ("sum", "mean", "max", "min")
TO_HAG = ToHAG()


@st.composite
def graphs(draw: st.DrawFn) -> Any:
    """Homogeneous or bipartite, with duplicates, loops and isolated nodes; int32 or int64 ids."""
    idtype = draw(st.sampled_from([torch.int32, torch.int64]))
    num_src = draw(st.integers(1, 12))
    square = draw(st.booleans())
    num_dst = num_src if square else draw(st.integers(1, 12))
    pairs = st.tuples(st.integers(0, num_src - 1), st.integers(0, num_dst - 1))
    drawn = draw(st.lists(pairs, max_size=50))
    # Sorted: the sources of each node are in order, as max and min with gradients need them.
    drawn = sorted(drawn) if draw(st.booleans()) else drawn
    edges = torch.tensor(drawn, dtype=idtype).view(-1, 2).T
    if square:
        return dgl.graph(tuple(edges), num_nodes=num_src, idtype=idtype)
    return dgl.heterograph(
        {("a", "r", "b"): tuple(edges)}, {"a": num_src, "b": num_dst}, idtype=idtype
    )


def outputs(graph: Any, x: Tensor, message: Any, reduce: Any) -> tuple[Tensor, Tensor | None]:
    """What `update_all` gives, and the gradient of its product with fixed numbers."""
    x = x.detach().clone().requires_grad_(x.requires_grad)
    with graph.local_scope():
        graph.srcdata["x"] = x
        graph.update_all(message, reduce)
        y = graph.dstdata["y"]
    if not x.requires_grad:
        return y, None
    factor = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    (y * factor).sum().backward()
    return y.detach(), x.grad


def assert_equal(graph: Any, x: Tensor, message: Any, reduce: Any, tolerance: float) -> None:
    ours = outputs(TO_HAG(graph), x, message, reduce)
    stock = outputs(graph, x, message, reduce)
    for a, b in zip(ours, stock, strict=True):
        if b is None:
            assert a is None
        elif reduce.name in ("max", "min"):
            assert torch.equal(a, b)
        else:
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


@settings(max_examples=150)
@given(
    graphs(),
    st.sampled_from(REDUCERS),
    st.sampled_from([(), (3,), (2, 4)]),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
    st.integers(0, 99),
)
def test_copy_u(
    graph: Any, reduce: str, shape: tuple[int, ...], dtype: torch.dtype, grad: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    # Few values: ties in max and min, whose gradients must go where DGL sends them.
    x = torch.randint(-2, 3, (graph.num_src_nodes(), *shape)).to(dtype).requires_grad_(grad)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    assert_equal(graph, x, fn.copy_u("x", "m"), getattr(fn, reduce)("m", "y"), tolerance)


@settings(max_examples=60)
@given(graphs(), st.sampled_from(REDUCERS), st.data())
def test_not_finite(graph: Any, reduce: str, data: st.DataObject) -> None:
    values = st.sampled_from([0.0, 1.0, -2.0, float("nan"), float("inf"), float("-inf")])
    count = graph.num_src_nodes() * 2
    x = torch.tensor(data.draw(st.lists(values, min_size=count, max_size=count))).view(-1, 2)
    ours = outputs(TO_HAG(graph), x, fn.copy_u("x", "m"), getattr(fn, reduce)("m", "y"))[0]
    stock = outputs(graph, x, fn.copy_u("x", "m"), getattr(fn, reduce)("m", "y"))[0]
    torch.testing.assert_close(ours, stock, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("reduce", REDUCERS)
def test_the_hag_runs(reduce: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not DGL's kernel: the tests above would pass if nothing was accelerated."""
    graph = ToHAG()(dgl.graph(([0, 1, 2], [1, 0, 0])))

    def forbidden(*_: Any) -> None:
        raise AssertionError("DGL's own code ran")

    monkeypatch.setattr(dgl.core, "message_passing", forbidden)
    graph.ndata["x"] = torch.ones(3, 2, requires_grad=True)
    graph.update_all(fn.copy_u("x", "m"), getattr(fn, reduce)("m", "y"))
    with pytest.raises(AssertionError, match="DGL's own"):
        graph.update_all(fn.copy_u("x", "m"), fn.sum("m", "y"), lambda nodes: {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduce", ["max", "min"])
def test_gradients_of_ties(reduce: str, dtype: torch.dtype, ran: Ran) -> None:
    """To the first or last source, as DGL's kernel of the dtype; on the HAG where that can be."""
    edges = torch.randint(40, (2, 400))
    message, reducer = fn.copy_u("x", "m"), getattr(fn, reduce)("m", "y")
    for width in (1, 5, 16, 33):
        x = torch.randint(2, (40, width)).to(dtype).requires_grad_()
        for order in (edges[0].argsort(), torch.arange(400)):
            graph = dgl.graph(tuple(edges[:, order]), num_nodes=40)
            before = len(ran.forward)
            assert_equal(graph, x, message, reducer, 0)
            assert len(ran.forward) - before == (order[0] != 0)
    assert {run.operator for run in ran.programs} <= {"winners"}  # no even ties


def test_order_of_sources() -> None:
    for edges, in_order in (
        (([0, 1, 2, 0], [0, 0, 0, 1]), True),
        (([1, 0, 2, 0], [1, 1, 0, 0]), False),
        (([2, 2, 1, 1], [0, 0, 1, 1]), True),  # duplicates
        (([3, 0], [0, 1]), True),  # another node's sources start anew
        (([0, 1, 0], [0, 0, 0]), False),
        (([], []), True),
    ):
        graph = dgl.graph(edges, num_nodes=4)
        assert sources_are_in_order(graph, 0) == in_order
        assert not sources_are_in_order(graph.formats("coo"), 0)


def test_half_types() -> None:
    graph = dgl.rand_graph(20, 100)
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.randn(20, 8).to(dtype)
        exact = outputs(graph, x.double(), fn.copy_u("x", "m"), fn.sum("m", "y"))[0]
        ours = outputs(TO_HAG(graph), x, fn.copy_u("x", "m"), fn.sum("m", "y"))[0]
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), exact, rtol=1e-2, atol=1e-2)


# Weights ----------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(graphs(), st.sampled_from(["sum", "mean"]), st.booleans(), st.booleans(), st.integers(0, 99))
def test_weights(graph: Any, reduce: str, factorises: bool, column: bool, seed: int) -> None:
    torch.manual_seed(seed)
    source, target = graph.edges()
    weight = torch.rand(graph.num_edges(), dtype=torch.float64) + 0.5
    if factorises:
        s, t = torch.rand(graph.num_src_nodes()) + 0.5, torch.rand(graph.num_dst_nodes()) + 0.5
        weight = (s.double()[source.long()] * t.double()[target.long()]).contiguous()
    graph.edata["w"] = weight.view(-1, 1) if column else weight
    x = torch.randn(graph.num_src_nodes(), 3, dtype=torch.float64, requires_grad=True)
    for _ in range(3):  # the weights come back
        assert_equal(graph, x, fn.u_mul_e("x", "w", "m"), getattr(fn, reduce)("m", "y"), 1e-10)


def weighted(graph: Any, weight: Tensor) -> Tensor:
    with graph.local_scope():
        graph.ndata["x"], graph.edata["w"] = torch.ones(4, 2), weight
        graph.update_all(fn.u_mul_e("x", "w", "m"), fn.sum("m", "y"))
        return graph.ndata["y"]


def test_which_weights_take_the_hag(ran: Ran) -> None:
    graph = ToHAG()(dgl.graph(tuple(torch.cartesian_prod(torch.arange(4), torch.arange(4)).T)))
    weighted(graph, torch.full((16, 1), 3.0))
    assert len(ran.forward) == 1  # all the same: at once
    factors = torch.tensor([1.0, 2.0, 4.0, 3.0])
    weight = factors[graph.edges()[0]] * factors[graph.edges()[1]]
    before = weighted(graph, weight)
    assert len(ran.forward) == 1  # met for the first time
    torch.testing.assert_close(weighted(graph, weight), before)
    assert [run.operator for run in ran.forward] == ["aggregate"] * 2
    weight[3] += 50.0  # changed in place: no product any more
    for _ in range(3):
        torch.testing.assert_close(weighted(graph, weight)[3], before[3] + 50)
    assert [run.operator for run in ran.forward[2:]] == ["head_sum"] * 3
    for _ in range(3):
        weighted(graph, torch.ones(16).requires_grad_())  # its gradient is wanted
        weighted(graph, torch.ones(16, 2))  # a weight a feature
    assert [run.operator for run in ran.forward[5:]] == ["head_sum"] * 3


# The shapes of features and of weights, without nodes and edges; the second with as many heads.
SHAPES = [
    ((), ()),
    ((3,), ()),
    ((3,), (1,)),
    ((2, 4), (2, 1)),
    ((2, 4), (1, 1)),
    ((3, 2, 4), (3, 2, 1)),
    ((2, 4), (2, 4)),
    ((1, 4), (2, 1)),
]


@settings(max_examples=80)
@given(graphs(), st.sampled_from(["sum", "mean"]), st.sampled_from(SHAPES), st.booleans())
def test_learned_weights(graph: Any, reduce: str, shapes: Any, loops: bool) -> None:
    """Outputs and the gradients of features and of weights, whatever the edges' order."""
    made = TO_HAG(graph)
    if loops and graph.is_homogeneous:
        made, graph = dgl.add_self_loop(made), dgl.add_self_loop(graph)
    of_nodes, of_edges = shapes
    torch.manual_seed(0)
    x = torch.randn(graph.num_src_nodes(), *of_nodes, dtype=torch.float64)
    w = torch.randn(graph.num_edges(), *of_edges, dtype=torch.float64)
    with limits(passing_gain=0.0):
        ours, stock = ([*weighted_outputs(g, x, w, reduce)] for g in (made, graph))
    for a, b in zip(ours, stock, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def weighted_outputs(graph: Any, x: Tensor, w: Tensor, reduce: str) -> list[Tensor]:
    x, w = (value.clone().requires_grad_() for value in (x, w))
    with graph.local_scope():
        graph.srcdata["x"], graph.edata["w"] = x, w
        graph.update_all(fn.u_mul_e("x", "w", "m"), getattr(fn, reduce)("m", "y"))
        y = graph.dstdata["y"]
    (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    return [y.detach(), *(torch.zeros_like(v) if v.grad is None else v.grad for v in (x, w))]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_which_shapes_of_weights_are_taken(shapes: Any, ran: Ran) -> None:
    graph = TO_HAG(dgl.rand_graph(10, 40))
    x, w = torch.randn(10, *shapes[0]), torch.randn(40, *shapes[1])
    for _ in range(3):
        weighted_outputs(graph, x, w, "sum")
    is_row = shapes in (((2, 4), (2, 4)), ((1, 4), (2, 1)))
    assert len(ran.forward) == (0 if is_row else 2)  # not when it was met first
    with limits(passing_gain=0.0):
        weighted_outputs(TO_HAG(dgl.rand_graph(10, 40)), x, w, "sum")
    assert len(ran.forward) == (0 if is_row else 3)


def test_second_derivatives_of_weights() -> None:
    graph = TO_HAG(dgl.graph(([0, 1, 2, 2, 3, 0], [1, 1, 0, 0, 2, 2]), num_nodes=5))

    def function(x: Tensor, w: Tensor) -> Tensor:
        with graph.local_scope():
            graph.ndata["x"], graph.edata["w"] = x, w
            graph.update_all(fn.u_mul_e("x", "w", "m"), fn.sum("m", "y"))
            return graph.ndata["y"]  # type: ignore[no-any-return]

    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(6, 2, 1, dtype=torch.float64, requires_grad=True)
    function(x, w)
    assert torch.autograd.gradcheck(function, (x, w))
    assert torch.autograd.gradgradcheck(function, (x, w))


# What is left to DGL ----------------------------------------------------------------------------


def test_everything_else_is_as_before() -> None:
    plain = dgl.rand_graph(10, 40)
    graph = ToHAG()(plain)
    x, e = torch.randn(10, 3), torch.randn(40, 3)
    calls = [
        (fn.copy_e("e", "m"), fn.sum("m", "y")),
        (fn.u_add_v("x", "x", "m"), fn.max("m", "y")),
        (fn.u_mul_e("x", "e", "m"), fn.min("m", "y")),
        (lambda edges: {"m": edges.src["x"] * edges.dst["x"]}, fn.sum("m", "y")),
        (fn.copy_u("x", "m"), lambda nodes: {"y": nodes.mailbox["m"].prod(1)}),
    ]
    for message, reduce in calls:
        out = []
        for g in (graph, plain):
            with g.local_scope():
                g.ndata["x"], g.edata["e"] = x, e
                g.update_all(message, reduce)
                out.append(g.ndata["y"])
        assert torch.equal(*out)
    torch.testing.assert_close(dgl.ops.copy_u_sum(graph, x), dgl.ops.copy_u_sum(plain, x))


def test_errors_are_dgls() -> None:
    graph = ToHAG()(dgl.rand_graph(10, 40))
    graph.ndata["x"] = torch.randn(10, 3)
    with pytest.raises(dgl.DGLError, match="must be equal to the message field"):
        graph.update_all(fn.copy_u("x", "m"), fn.sum("n", "y"))
    with pytest.raises(KeyError):
        graph.update_all(fn.copy_u("absent", "m"), fn.sum("m", "y"))
    graph.ndata["i"] = torch.ones(10, 3, dtype=torch.int64)
    with pytest.raises(dgl.DGLError, match="float"):
        graph.update_all(fn.copy_u("i", "m"), fn.sum("m", "y"))


def test_no_nodes_no_edges() -> None:
    for graph in (dgl.graph(([], [])), dgl.graph(([], []), num_nodes=3)):
        x = torch.ones(graph.num_nodes(), 2)
        for reduce in REDUCERS:
            assert_equal(graph, x, fn.copy_u("x", "m"), getattr(fn, reduce)("m", "y"), 0)


@pytest.mark.filterwarnings("ignore::UserWarning")  # those of torch.compile about DGL
def test_compiled() -> None:
    graph = ToHAG()(dgl.rand_graph(10, 40))
    conv = dgl.nn.SAGEConv(3, 2, "mean")
    x = torch.randn(10, 3)
    torch.testing.assert_close(torch.compile(conv, backend="eager")(graph, x), conv(graph, x))
