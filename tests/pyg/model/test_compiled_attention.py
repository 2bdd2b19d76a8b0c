"""Layers of attention in compiled code equal stock, and make no messages there either."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, jvp, vmap
from torch_geometric import nn as pyg

import hag_plugin as hp
from hag_plugin.pyg import accelerate, explain
from hag_plugin.pyg.model import choice
from hag_plugin.pyg.model import compiled_scores as in_traced_code
from hag_plugin.pyg.recipes.rgat import attends_within
from hag_plugin.pyg.recipes.table import RECIPES
from hag_plugin.testing import Ran, limits

from ...equality import assert_same
from ..recipes.test_attention import (
    ALONE,
    BIPARTITE,
    EDGES,
    INITIAL,
    LAYERS,
    OUT,
    TYPED,
    WEIGHTED,
    WIDTH,
    arguments,
    handed,
    run,
)

# Where stock's code breaks the graph, torch's tracer looks at what is no leaf.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


@pytest.fixture(autouse=True)
def _whatever_the_size() -> Iterator[None]:
    with limits(passing_gain=0.0):
        yield


TAKEN = ALONE | EDGES | INITIAL | WEIGHTED
Make = Callable[[], nn.Module]


def edges_between(num_src: int, num_dst: int, degree: int = 4) -> Tensor:
    """With duplicates, and loops, one of them twice; the last nodes have an edge."""
    edges = torch.randint(min(num_src, num_dst), (2, degree * num_dst))
    edges[:, :4] = torch.tensor([[1, 2, 2, num_src - 1], [1, 2, 2, num_dst - 1]])
    edges[:, 5], edges[:, 6] = edges[:, 7], torch.tensor([num_src - 1, 0])
    return edges


def compiled(model: nn.Module, backend: Any, **how: Any) -> nn.Module:
    torch._dynamo.reset()
    made: nn.Module = torch.compile(model, backend=backend, **how)  # type: ignore[assignment]
    return made


def is_broken(stock: nn.Module) -> bool:
    """Whether no compiler traces stock's code in one piece."""
    return isinstance(stock, pyg.SuperGATConv) and stock.training


@pytest.mark.mostly_slow(
    *("gat-heads-training", "gat-filled-max-*", "gatv2-edges-evaluation", "fa-training"),
    *("transformer-edges-training", "supergat-product-*", "general-product-training"),
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", TAKEN)
def test_equals_stock(name: str, training: bool) -> None:
    """Whatever the size, without a break and with no more than the compilation for sizes that vary;
    graphs that come back, too."""
    stock = TAKEN[name]().double().train(training)
    ours = accelerate(copy.deepcopy(stock))
    if is_broken(stock):  # as outside of compiled code: see below
        return
    backend = CompileCounterWithBackend("aot_eager")
    model = compiled(ours, backend, fullgraph=True)
    graphs = [(nodes, edges_between(nodes, nodes)) for nodes in (20, 27, 33)]
    for nodes, edges in [*graphs, *graphs]:
        given = arguments(name, nodes, edges, torch.float64)
        assert_same(run(model, *given), run(stock, *given), 1e-12)
    restarts = name == "general-product"  # the tracer starts anew for a number that is a tensor
    assert backend.frame_count <= 2 + restarts
    calls = explain(ours)[0].calls
    assert calls.counts == {"plain": backend.frame_count}
    assert calls.reasons == {"plain": f"compiled: {choice.SCORED}"}


@pytest.mark.mostly_slow("gat", "agnn")
@pytest.mark.parametrize("name", TAKEN)
def test_where_every_number_is_a_symbol(name: str) -> None:
    """`dynamic=True` makes symbols of the numbers that layers hold, too: slopes, dimensions."""
    stock = TAKEN[name]().double().eval()
    ours = accelerate(copy.deepcopy(stock))
    model = compiled(ours, "aot_eager", dynamic=True)
    given = arguments(name, 20, edges_between(20, 20), torch.float64)
    assert_same(run(model, *given), run(stock, *given), 1e-12)
    assert explain(ours)[0].calls.reasons == {"plain": f"compiled: {choice.SCORED}"}


@pytest.mark.mostly_slow("gat", "transformer", "fa")
@pytest.mark.parametrize("name", ALONE | INITIAL)
def test_takes_a_hag(name: str) -> None:
    stock = (ALONE | INITIAL)[name]().double().eval()
    ours = accelerate(copy.deepcopy(stock))
    model = compiled(ours, "aot_eager", fullgraph=True)
    given = arguments(name, 20, edges_between(20, 20), torch.float64)
    given, edges = handed(name, given, 20)
    for _ in range(2):
        assert_same(run(model, *given), run(stock, *edges), 1e-12)
    assert explain(ours)[0].calls.reasons == {"plain": f"compiled: {choice.SCORED_PASSED}"}


@pytest.mark.mostly_slow("gat-sizes0")
@pytest.mark.parametrize("sizes", [(30, 17), (17, 30)])
@pytest.mark.parametrize("name", BIPARTITE)
def test_two_sets_of_nodes(name: str, sizes: tuple[int, int]) -> None:
    stock = BIPARTITE[name]().double()
    ours = accelerate(copy.deepcopy(stock))
    pair = tuple(torch.randn(n, w).double() for n, w in zip(sizes, (WIDTH, 5), strict=True))
    edges = edges_between(*sizes)
    results = []
    for model in (compiled(ours, "aot_eager", fullgraph=True), stock):
        taken = tuple(x.clone().requires_grad_() for x in pair)
        model.zero_grad()
        y = model(taken, edges)
        y.square().sum().backward()
        results.append([y.detach(), *(x.grad for x in (*taken, *model.parameters()))])
    assert_same(*results, 1e-12)
    assert set(explain(ours)[0].calls.counts) == {"plain"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gat-heads", "transformer-edges"])
def test_dropout_is_the_one_of_compiled_stock(name: str) -> None:
    """The same numbers are drawn, and as many, for the edges that there are."""
    stock = TAKEN[name]().double()
    ours = accelerate(copy.deepcopy(stock))
    torch._dynamo.reset()
    theirs = torch.compile(stock)
    model = torch.compile(ours, fullgraph=True)
    for nodes in (20, 27):
        given = arguments(name, nodes, edges_between(nodes, nodes), torch.float64)
        expected, after = run(theirs, *given), torch.rand(3)
        assert_same(run(model, *given), expected, 1e-12)
        assert torch.equal(torch.rand(3), after)


HOSTILE: dict[str, tuple[int, Tensor]] = {
    "no edges": (5, torch.zeros(2, 0, dtype=torch.int64)),
    "loops alone": (4, torch.arange(4).repeat(2, 2)),
    "one node": (1, torch.zeros(2, 1, dtype=torch.int64)),
    "no node": (0, torch.zeros(2, 0, dtype=torch.int64)),
    "int32": (6, torch.arange(12, dtype=torch.int32).view(2, 6) % 5),
    "not contiguous": (6, (torch.arange(12).view(6, 2) % 5).t()),
}


@pytest.mark.mostly_slow("gat-filled-*", "transformer-edges-int32", "fa-no edges")
@pytest.mark.parametrize("graph", HOSTILE)
@pytest.mark.parametrize("name", ["gat-filled", "gatv2-edges", "transformer-edges", "fa"])
def test_hostile_graphs(name: str, graph: str) -> None:
    nodes, edges = HOSTILE[graph]
    stock = TAKEN[name]().double()
    model = compiled(accelerate(copy.deepcopy(stock)), "aot_eager", fullgraph=True)
    given = arguments(name, nodes, edges, torch.float64)
    # torch 2.13's own gradients are wrong where indices are int32
    long = [g.long() if isinstance(g, Tensor) and g.dtype == torch.int32 else g for g in given]
    found, expected = run(model, *given), run(stock, *long)
    if nodes == 0:  # stock leaves out what it has no edges for, and its gradients are None
        found, expected = found[:1], expected[:1]
    assert_same(found, expected, 1e-12)


# What is compiled -------------------------------------------------------------------------------


def tensors_of(graph: Any) -> list[Tensor]:
    """What the nodes of a traced graph give."""
    found = []
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        found += value if isinstance(value, tuple | list) else [value]
    return [v for v in found if isinstance(v, Tensor)]


@pytest.mark.parametrize("name", ["gat-mean", "gat-filled", "gatv2-heads", "transformer-heads"])
def test_no_messages(name: str) -> None:
    """Forward and backward are our operators, and no tensor has a row of features for each edge."""
    graphs: list[Any] = []

    def keep(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    conv = accelerate(TAKEN[name]())
    model = compiled(conv, aot_autograd(fw_compiler=keep, bw_compiler=keep), fullgraph=True)
    nodes, edges = 12, edges_between(12, 12, degree=40)
    given = arguments(name, nodes, edges, torch.float32)
    model(given[0].requires_grad_(), *given[1:]).sum().backward()
    ops = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert "hag_plugin.attend.default" in ops
    assert "hag_plugin.attend_backward.default" in ops
    features = edges.shape[1] * OUT
    assert features > max(t.numel() for g in graphs for t in tensors_of(g) if t.dim() == 3)
    row = getattr(conv, "heads", 1) * OUT
    for tensor in (t for graph in graphs for t in tensors_of(graph)):
        assert tensor.dim() < 2 or len(tensor) < edges.shape[1] or tensor.shape[1:].numel() < row


def test_sampled_batches_compile_once() -> None:
    """Of sizes that change; the tensors are gone before the backward, and nothing is left."""
    stock = nn.ModuleList([pyg.GATConv(WIDTH, WIDTH), pyg.GATv2Conv(WIDTH, WIDTH)])
    ours, backend = copy.deepcopy(stock), CompileCounterWithBackend("aot_eager")

    class Net(nn.Module):
        def __init__(self, layers: Any) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x, edge_index).relu()
            return x

    model = compiled(accelerate(Net(ours)), backend, fullgraph=True)
    before = len(in_traced_code._SCORED)
    for nodes in range(20, 28):
        edges, x = edges_between(nodes, nodes), torch.randn(nodes, WIDTH)
        expected, found = Net(stock)(x, edges), model(x, edges)
        torch.testing.assert_close(found, expected)
        expected.sum().backward()
        del edges
        found.sum().backward()
        del found, expected
    for a, b in zip(ours.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
    assert backend.frame_count <= 2
    assert len(in_traced_code._SCORED) <= before


def test_edges_that_are_written_to() -> None:
    conv = pyg.GATConv(WIDTH, OUT).double()
    model = compiled(accelerate(copy.deepcopy(conv)), "aot_eager", fullgraph=True)
    edges = edges_between(20, 20)
    for _ in range(3):
        given = arguments("gat", 20, edges, torch.float64)
        assert_same(run(model, *given), run(conv, *given), 1e-12)
        edges.copy_(edges_between(20, 20))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference(mode: Any) -> None:
    conv = pyg.GATv2Conv(WIDTH, OUT).eval()
    model = compiled(accelerate(copy.deepcopy(conv)), "aot_eager", fullgraph=True)
    with mode():
        edges, x = edges_between(20, 20), torch.randn(20, WIDTH)
        for _ in range(2):
            torch.testing.assert_close(model(x, edges), conv(x, edges))


def test_graphs_that_are_forgotten_before_the_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operators then make them anew, with the loops."""
    conv = pyg.GATConv(WIDTH, OUT, edge_dim=3).double()
    model = compiled(accelerate(copy.deepcopy(conv)), "aot_eager", fullgraph=True)
    given = arguments("gat-edges", 20, edges_between(20, 20), torch.float64)
    results = []
    for each in (model, conv):
        taken = [t.requires_grad_() if t.is_floating_point() else t for t in given]
        each.zero_grad()
        y = each(*taken)
        in_traced_code._SCORED.clear()
        in_traced_code._LATEST.clear()
        results.append(list(torch.autograd.grad(y.square().sum(), list(each.parameters()))))
    assert_same(*results, 1e-12)


# What is left to stock --------------------------------------------------------------------------


def test_every_layer_is_tried() -> None:
    """The rest has edges of several types, and tests of its own."""
    typed = {type(make()) for make in TYPED.values()} | {pyg.HANConv, pyg.HGTConv}
    attending = {cls for cls, recipe in RECIPES.items() if recipe.attention is not None}
    assert {type(make()) for make in TAKEN.values()} == attending - typed


ACROSS = [name for name, make in TYPED.items() if not attends_within(make())]
WITHIN = [name for name in TYPED if name not in ACROSS]


@pytest.mark.mostly_slow("rgat")
@pytest.mark.parametrize("name", ACROSS)
def test_pairs_of_nodes_and_relations_are_stocks(name: str) -> None:
    stock = LAYERS[name]()
    ours = accelerate(copy.deepcopy(stock))
    given = arguments(name, 20, edges_between(20, 20), torch.float32)
    found = compiled(ours, "eager", fullgraph=True)(*given)
    torch.manual_seed(0)
    assert found.shape == stock(*given).shape
    assert explain(ours)[0].calls.reasons == {"stock": f"compiled: {choice.TYPED_COMPILED}"}


class Around(nn.Module):
    """A layer between others, which are compiled."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, *given: Any) -> Tensor:
        y: Tensor = self.conv(x.tanh(), *given)
        return y.relu() + 1.0


@pytest.mark.mostly_slow("supergat", "rgat-within")
@pytest.mark.parametrize("name", [*(n for n in ALONE if n.startswith("supergat")), *WITHIN])
def test_between_two_parts_of_compiled_code(name: str, ran: Ran) -> None:
    """Where stock's code breaks the graph, the call runs as it does outside of compiled code."""
    stock = Around(LAYERS[name]().double())
    ours = accelerate(copy.deepcopy(stock))
    backend = CompileCounterWithBackend("aot_eager")
    model = compiled(ours, backend)
    with limits(few_messages=0, passing_gain=0.0):
        for nodes in (20, 27):
            given = arguments(name, nodes, edges_between(nodes, nodes), torch.float64)
            assert_same(run(model, *given), run(stock, *given), 1e-12)
    assert explain(ours)[0].calls.reasons == {"plain": choice.SCORED}
    assert backend.frame_count >= 2
    assert len(ran.forward) >= 2


@pytest.mark.parametrize("name", ["supergat", "rgat-within"])
def test_a_hag_between_two_parts_of_compiled_code(name: str) -> None:
    stock = LAYERS[name]().double()
    ours = accelerate(copy.deepcopy(stock))
    given = arguments(name, 20, edges_between(20, 20), torch.float64)
    given, edges = handed(name, given, 20)
    with limits(few_messages=0, passing_gain=0.0):
        assert_same(run(compiled(ours, "aot_eager"), *given), run(stock, *edges), 1e-12)
    assert explain(ours)[0].calls.reasons == {"plain": choice.SCORED_PASSED}


def test_attention_weights_are_stocks() -> None:
    stock = pyg.GATConv(WIDTH, OUT)
    ours = accelerate(copy.deepcopy(stock))
    given = arguments("gat", 20, edges_between(20, 20), torch.float32)
    how = {"return_attention_weights": True}
    found, expected = compiled(ours, "eager")(*given, **how), stock(*given, **how)
    torch.testing.assert_close(found, expected)
    assert explain(ours)[0].calls.reasons == {"stock": f"compiled: {choice.RETURNS_SCORES}"}


@pytest.mark.parametrize("as_hag", [False, True], ids=["edges", "HAGs"])
@pytest.mark.parametrize("cls", [pyg.HANConv, pyg.HGTConv])
def test_types_of_edges(cls: Any, as_hag: bool) -> None:
    types = [("a", "to", "b"), ("b", "to", "a"), ("a", "to", "a")]
    sizes = {"a": 20, "b": 30}
    stock = cls({"a": WIDTH, "b": WIDTH}, 8, (["a", "b"], types), heads=2).double()
    ours = accelerate(copy.deepcopy(stock))
    x = {kind: torch.randn(n, WIDTH).double() for kind, n in sizes.items()}
    edges = {t: edges_between(sizes[t[0]], sizes[t[2]]) for t in types}
    graphs: dict[Any, Any] = edges
    if as_hag:
        graphs = {t: hp.build_hag(e, size=(sizes[t[0]], sizes[t[2]])) for t, e in edges.items()}
    found, expected = compiled(ours, "aot_eager")(x, graphs), stock(x, edges)
    for kind in sizes:
        torch.testing.assert_close(found[kind], expected[kind])
    calls = explain(ours)[0].calls
    reason = choice.SCORED_PASSED if as_hag and cls is pyg.HANConv else choice.SCORED
    assert calls.reasons == {"plain": f"compiled: {reason}"}


class Joined(nn.Module):
    """HGTConv, of features by the type of their nodes."""

    def __init__(self, conv: nn.Module, types: Any) -> None:
        super().__init__()
        self.conv, self.types = conv, types

    def forward(self, a: Tensor, b: Tensor, *edges: Tensor) -> Tensor:
        y = self.conv({"a": a, "b": b}, dict(zip(self.types, edges, strict=True)))
        return torch.cat([y["a"], y["b"]])


HGT_TYPES = [("a", "to", "b"), ("b", "to", "a"), ("a", "to", "a"), ("b", "from", "a")]


def hgt(types: Any = HGT_TYPES, **options: Any) -> Joined:
    conv = pyg.HGTConv({"a": WIDTH, "b": 5}, WIDTH, (["a", "b"], HGT_TYPES), **options)
    return Joined(conv.double(), types)


def typed_features(sizes: dict[str, int]) -> list[Tensor]:
    pairs = zip(sizes.values(), (WIDTH, 5), strict=True)
    return [torch.randn(n, width, dtype=torch.float64) for n, width in pairs]


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("count", [4, 2])
def test_training_over_edges_of_several_types(count: int, heads: int) -> None:
    """Whatever the size, in one piece; graphs that come back, too. Not every type has edges."""
    stock = hgt(HGT_TYPES[:count], heads=heads)
    ours = accelerate(copy.deepcopy(stock))
    backend = CompileCounterWithBackend("aot_eager")
    model = compiled(ours, backend, fullgraph=True)
    graphs = []
    for a, b in ((20, 30), (31, 17), (12, 12)):
        sizes = {"a": a, "b": b}
        edges = [edges_between(sizes[t[0]], sizes[t[2]], 3 + n) for n, t in enumerate(stock.types)]
        edges[1] = edges[1][:, :0]
        graphs.append((sizes, edges))
    for sizes, edges in [*graphs, *graphs]:
        x = typed_features(sizes)
        expected = run(stock, *x, *edges)
        for _ in range(2):
            assert_same(run(model, *x, *edges), expected, 1e-12)
        edges[0].copy_(edges[0].flip(1).roll(1, 1))
        assert_same(run(model, *x, *edges), run(stock, *x, *edges), 1e-12)
    assert backend.frame_count <= 3
    assert set(explain(ours)[0].calls.counts) == {"plain"}


@pytest.mark.slow
def test_inductor_takes_edges_of_several_types() -> None:
    stock = hgt(heads=2)
    ours = accelerate(copy.deepcopy(stock))
    x = typed_features({"a": 20, "b": 30})
    edges = [edges_between({"a": 20, "b": 30}[t[0]], {"a": 20, "b": 30}[t[2]]) for t in HGT_TYPES]
    model = compiled(ours, "inductor", fullgraph=True)
    for _ in range(2):
        assert_same(run(model, *x, *edges), run(stock, *x, *edges), 1e-12)


@pytest.mark.parametrize("wrong", [(0, 20), (1, 30), (0, -1)], ids=str)
def test_ids_beyond_the_nodes_of_their_type(wrong: tuple[int, int]) -> None:
    """Joined with those of other types they would be ids of others."""
    ours = accelerate(hgt())
    sizes = {"a": 20, "b": 30}
    edges = [edges_between(sizes[t[0]], sizes[t[2]]) for t in HGT_TYPES]
    edges[0][wrong[0], 0] = wrong[1]
    with pytest.raises(ValueError, match=r"beyond|negative"):
        compiled(ours, "aot_eager")(*typed_features(sizes), *edges)


def test_no_messages_of_several_types() -> None:
    graphs: list[Any] = []

    def keep(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    model = compiled(
        accelerate(hgt(heads=2)), aot_autograd(fw_compiler=keep, bw_compiler=keep), fullgraph=True
    )
    sizes = {"a": 12, "b": 12}
    edges = [edges_between(12, 12, degree=40) for _ in HGT_TYPES]
    model(*(x.requires_grad_() for x in typed_features(sizes)), *edges).sum().backward()
    assert len(graphs) == 2
    for tensor in (t for graph in graphs for t in tensors_of(graph)):
        assert tensor.numel() < edges[0].shape[1] * WIDTH or tensor.dtype == torch.int64


# Transforms -------------------------------------------------------------------------------------


@pytest.mark.mostly_slow("gat-filled")
@pytest.mark.parametrize("name", ["gat-mean", "gat-filled", "gatv2-mean", "transformer-mean"])
def test_transforms_inside_of_compiled_code(name: str) -> None:
    """Of `torch.func`, whose derivatives are made of pieces: with a row for each possible edge."""
    stock = TAKEN[name]().double()
    ours, parameters = accelerate(copy.deepcopy(stock)), dict(stock.named_parameters())
    x, *rest = arguments(name, 20, edges_between(20, 20), torch.float64)

    def call(model: nn.Module, parameters: Any, x: Tensor) -> Tensor:
        y: Tensor = functional_call(model, parameters, (x, *rest))
        return y

    def compiled_grad(model: nn.Module) -> Any:
        loss = lambda p, x: call(model, p, x).square().sum()  # noqa: E731
        return lambda *given: grad(loss)(*given)

    def compiled_jvp(model: nn.Module) -> Any:
        at = lambda x: call(model, parameters, x)  # noqa: E731
        return lambda x, t: jvp(at, (x,), (t,))

    tangent = torch.randn_like(x)
    for make, given in ((compiled_grad, (parameters, x)), (compiled_jvp, (x, tangent))):
        torch._dynamo.reset()
        found = torch.compile(make(ours), backend="aot_eager")(*given)
        torch.testing.assert_close(found, make(stock)(*given), rtol=1e-9, atol=1e-9)
    assert explain(ours)[0].calls.reasons == {"plain": f"compiled: {choice.SCORED}"}
    xs = torch.stack([x, tangent])
    each = lambda xs: vmap(lambda x: call(ours, parameters, x))(xs)  # noqa: E731
    expected = torch.stack([stock(x, *rest), stock(tangent, *rest)])
    torch.testing.assert_close(torch.compile(each, backend="aot_eager")(xs), expected)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ["gat", "gatv2", "transformer", "agnn"])
def test_few_edges_are_left_to_the_compiler(name: str, dynamic: bool) -> None:
    """Where it compiles for their number; code for any number runs as for many."""
    stock = LAYERS[name]().eval()
    ours = accelerate(copy.deepcopy(stock))
    model = compiled(ours, "aot_eager", fullgraph=True, dynamic=dynamic)
    with limits(passing_gain=1.6), torch.no_grad():
        for nodes in (20, 2000) if not dynamic else (20,):
            given = arguments(name, nodes, edges_between(nodes, nodes, 40), torch.float32)
            assert_same(model(*given), stock(*given), 1e-5)
    reasons = explain(ours)[0].calls.reasons
    fused, scored = f"compiled: {choice.SCORED_FEW}", f"compiled: {choice.SCORED}"
    assert reasons == ({"plain": scored} if dynamic else {"stock": fused, "plain": scored})
