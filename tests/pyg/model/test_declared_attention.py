"""hag_layer with a score: users' own layers of attention."""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch_geometric.nn import GATConv, MessagePassing
from torch_geometric.utils import softmax

import hag_plugin as hp
from hag_plugin.pyg import accelerate, explain
from hag_plugin.pyg.model import choice
from hag_plugin.testing import limits

from ...cases import draw_graph
from ...equality import assert_same, with_gradients

WIDTH, HEADS, OUT = 5, 2, 3
SMALL = {"few_messages": 0, "passing_gain": 0.0}


class Base(MessagePassing):
    """Keys, queries and values of several heads; what is declared of dropout and edges."""

    def __init__(self, heads: int = HEADS, **kwargs: Any) -> None:
        super().__init__(node_dim=0, **kwargs)
        self.heads, self.slope, self.drop = heads, 0.2, nn.Dropout(0.3)
        self.key, self.query, self.value = (nn.Linear(WIDTH, heads * OUT) for _ in range(3))
        self.att = nn.Parameter(torch.randn(1, heads, OUT))

    def rows(self, x: Any) -> tuple[Tensor, Tensor, Tensor]:
        source, target = x if isinstance(x, tuple) else (x, x)
        shape = (-1, self.heads, OUT)
        return (
            self.key(source).view(shape),
            self.query(target).view(shape),
            self.value(source).view(shape),
        )


@hp.hag_layer(
    score="dot",
    key="k",
    query="q",
    value="v",
    bias="term",
    dropout="drop",
    scale=lambda conv: 1 / math.sqrt(OUT),
)
class Dot(Base):  # fmt: skip
    """As TransformerConv, with a term for each edge; updates with what the node had."""

    def forward(self, x: Any, edge_index: Any, term: Any = None) -> Tensor:
        k, q, v = self.rows(x)
        return self.propagate(edge_index, k=k, q=q, v=v, term=term, root=q)

    def message(
        self, k_j: Tensor, q_i: Tensor, v_j: Tensor, term: Any, index: Tensor, ptr: Any, size_i: Any
    ) -> Tensor:
        score = (k_j * q_i).sum(-1) / math.sqrt(OUT)
        score = score if term is None else score + term
        p = F.dropout(softmax(score, index, ptr, size_i), 0.3, self.training)
        return v_j * p.unsqueeze(-1)

    def update(self, inputs: Tensor, root: Tensor) -> Tensor:
        return inputs + root


class Inherited(Dot):
    """A subclass that changes nothing."""


@hp.hag_layer(score="sum", slope="slope")
class Sum(Base):
    """As GATConv."""

    def forward(self, x: Any, edge_index: Any) -> Tensor:
        k, q, value = self.rows(x)
        return self.propagate(edge_index, key=k.sum(-1), query=q.sum(-1), value=value)

    def message(
        self, key_j: Tensor, query_i: Tensor, value_j: Tensor, index: Tensor, ptr: Any, size_i: Any
    ) -> Tensor:
        p = softmax(F.leaky_relu(key_j + query_i, self.slope), index, ptr, size_i)
        return value_j * p.unsqueeze(-1)


@hp.hag_layer(score="sum", normalise="tanh")
class OfSources(Base):
    """A score of the sources alone, which are gated."""

    def forward(self, x: Any, edge_index: Any) -> Tensor:
        k, _, value = self.rows(x)
        targets = None if isinstance(x, Tensor) else len(x[1])
        size = None if targets is None else (len(k), targets)
        return self.propagate(edge_index, key=k.sum(-1), value=value, size=size)

    def message(self, key_j: Tensor, value_j: Tensor) -> Tensor:
        return value_j * key_j.tanh().unsqueeze(-1)


@hp.hag_layer(score="vector", slope=0.1, edges="e", dropout=lambda conv: conv.drop)
class Vector(Base):
    """As GATv2Conv."""

    def forward(self, x: Any, edge_index: Any, e: Any = None) -> Tensor:
        key, query, value = self.rows(x)
        return self.propagate(edge_index, key=key, query=query, value=value, e=e)

    def message(
        self, key_j: Tensor, query_i: Tensor, value_j: Tensor, e: Any, index: Tensor, ptr: Any,
        size_i: Any,
    ) -> Tensor:  # fmt: skip
        vectors = key_j + query_i
        vectors = vectors if e is None else vectors + e.view_as(vectors)
        score = (F.leaky_relu(vectors, 0.1) * self.att).sum(-1)
        p = F.dropout(softmax(score, index, ptr, size_i), 0.3, self.training)
        return value_j * p.unsqueeze(-1)


@hp.hag_layer(score="given", bias="weight", value="x", normalise="none")
class Given(MessagePassing):
    """Weights of edges, of rows without heads."""

    def forward(self, x: Any, edge_index: Any, weight: Tensor) -> Tensor:
        return self.propagate(edge_index, x=x, weight=weight)

    def message(self, x_j: Tensor, weight: Tensor) -> Tensor:
        return x_j * weight.view(-1, 1)


@hp.hag_layer(score="dot", key="x", query="x", value="x")
class OneHead(MessagePassing):
    """Rows without heads, which are keys, queries and values at once."""

    def forward(self, x: Any, edge_index: Any) -> Tensor:
        return self.propagate(edge_index, x=x)

    def message(self, x_i: Tensor, x_j: Tensor, index: Tensor, ptr: Any, size_i: Any) -> Tensor:
        return x_j * softmax((x_i * x_j).sum(-1, keepdim=True), index, ptr, size_i)


LAYERS: dict[str, Callable[[], Any]] = {
    "dot": Dot,
    "dot-term": Dot,
    "inherited": Inherited,
    "sum": Sum,
    "sources": OfSources,
    "vector": Vector,
    "vector-edges": lambda: Vector(heads=1),
    "given": Given,
    "one-head": OneHead,
}
OF_EDGES = {"dot-term": (HEADS,), "vector-edges": (OUT,), "given": ()}
ALONE = [name for name in LAYERS if name not in OF_EDGES]


def values_of_edges(name: str, num_edges: int, dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(num_edges, *OF_EDGES[name], dtype=dtype)] if name in OF_EDGES else []


def run(conv: nn.Module, x: Any, *rest: Any) -> list[Tensor | None]:
    """The output, then the gradients of all inputs and parameters."""
    pair = x if isinstance(x, tuple) else (x,)
    pair = tuple(part.detach().requires_grad_() for part in pair)
    others = [r.detach().requires_grad_() if _is_float(r) else r for r in rest]
    conv.zero_grad()
    torch.manual_seed(3)
    y = conv(pair if len(pair) > 1 else pair[0], *others)
    return with_gradients(
        y, [*pair, *(other for other in others if _is_float(other)), *conv.parameters()]
    )


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", LAYERS)
def test_equals_stock(name: str, training: bool, awkward: Any) -> None:
    stock = LAYERS[name]().double().train(training)
    ours = accelerate(copy.deepcopy(stock))
    x = torch.randn(awkward.num_src, WIDTH).double()
    edges = values_of_edges(name, awkward.edge_index.shape[1], torch.float64)
    given = x, awkward.edge_index, *edges
    expected = run(stock, *given)
    with limits(**SMALL):
        for _ in range(3):  # met first, then kept
            assert_same(run(ours, *given), expected, 1e-12)
    calls = explain(ours)[0].calls
    assert calls.counts == {"plain": 3}
    assert set(calls.reasons.values()) == {choice.SCORED}


@pytest.mark.parametrize("name", ALONE)
def test_takes_a_hag(name: str, awkward: Any) -> None:
    conv = LAYERS[name]().double()
    hag = hp.build_hag(awkward.edge_index, num_nodes=awkward.num_src)
    x = torch.randn(awkward.num_src, WIDTH).double()
    expected = run(conv, x, hag.edge_index)
    with limits(**SMALL):
        assert_same(run(conv, x, hag), expected, 1e-12)


@pytest.mark.parametrize("sizes", [(9, 5), (4, 8), (0, 3), (3, 0)])
@pytest.mark.parametrize("name", [name for name in ALONE if name != "one-head"])
def test_two_sets_of_nodes(name: str, sizes: tuple[int, int]) -> None:
    num_edges = 30 if all(sizes) else 0
    edge_index = torch.stack([torch.randint(max(size, 1), (num_edges,)) for size in sizes])
    pair = tuple(torch.randn(size, WIDTH).double() for size in sizes)
    stock = LAYERS[name]().double()
    ours = accelerate(copy.deepcopy(stock))
    with limits(**SMALL):
        assert_same(run(ours, pair, edge_index), run(stock, pair, edge_index), 1e-12)
    assert explain(ours)[0].calls.counts == {"plain": 1}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.mostly_slow("dot-term", "vector-edges")
@pytest.mark.parametrize("name", LAYERS)
def test_compiled(name: str) -> None:
    """Once its declaration was checked, without a break and for all sizes."""
    stock = LAYERS[name]().double()
    ours = accelerate(copy.deepcopy(stock))
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("aot_eager")
    checked = torch.compile(ours, backend=backend, fullgraph=True)
    for nodes in (20, 27, 33):
        edges = torch.randint(nodes, (2, 4 * nodes))
        x = torch.randn(nodes, WIDTH).double()
        given = x, edges, *values_of_edges(name, 4 * nodes, torch.float64)
        expected = run(stock, *given)
        model = torch.compile(ours, backend="aot_eager") if nodes == 20 else checked
        assert_same(run(model, *given), expected, 1e-12)
        kind = "stock" if nodes == 20 else "plain"
        reason = choice.UNCHECKED_COMPILED if nodes == 20 else choice.SCORED
        assert explain(ours)[0].calls.reasons[kind] == f"compiled: {reason}"
        if nodes == 20:
            with limits(**SMALL):
                run(ours, *given)  # compares them
    assert backend.frame_count <= 2
    if name in ALONE:
        hag = hp.build_hag(edges, num_nodes=33)
        expected = run(stock, x, hag.edge_index)
        assert_same(run(checked, x, hag), expected, 1e-12)
        assert explain(ours)[0].calls.reasons["plain"] == f"compiled: {choice.SCORED_PASSED}"


@settings(max_examples=25)
@given(data=st.data(), name=st.sampled_from(sorted(LAYERS)))
def test_hostile_graphs(data: st.DataObject, name: str) -> None:
    edge_index, num_nodes, _ = draw_graph(data, square=True)
    torch.manual_seed(0)
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]))
    stock = LAYERS[name]().to(dtype)
    x = torch.randn(num_nodes, WIDTH, dtype=dtype)
    if data.draw(st.booleans()):
        x[0, 0] = data.draw(st.sampled_from([float("nan"), float("inf"), -float("inf")]))
        stock.eval()
    given = x, edge_index, *values_of_edges(name, edge_index.shape[1], dtype)
    with limits(**SMALL):
        found, expected = (run(c, *given) for c in (accelerate(copy.deepcopy(stock)), stock))
        # What is 0 in one order of sums and 1e-9 in another is NaN and Inf when it meets Inf.
        found = [
            f if f is None else e.where(~(f.isfinite() | e.isfinite()), f)
            for f, e in zip(found, expected, strict=True)
        ]
        assert_same(found, expected, {8: 1e-11, 4: 2e-4}[dtype.itemsize])


def test_the_example_of_the_documentation() -> None:
    page = (Path(__file__).parents[3] / "docs" / "layers.md").read_text()
    code = re.findall(r"### Your own attention.*?```python\n(.*?)```", page, re.DOTALL)
    names = {"hp": hp, "torch": torch, "F": F, "softmax": softmax}
    made: dict[str, Any] = {**names, "MessagePassing": MessagePassing}
    exec(code[0], made)
    stock = made["MyAttention"](WIDTH, HEADS).double()
    ours = accelerate(copy.deepcopy(stock))
    given = torch.randn(30, WIDTH).double(), torch.randint(30, (2, 200))
    with limits(**SMALL):
        assert_same(run(ours, *given), run(stock, *given), 1e-12)
    assert explain(ours)[0].calls.counts == {"plain": 1}


# What is declared, and is not so -----------------------------------------------------------------


def _wrong(**declared: Any) -> Any:
    """A layer whose message is a softmax of products, declared as something else."""

    @hp.hag_layer(**declared)
    class Wrong(Base):
        def forward(self, x: Any, edge_index: Any) -> Tensor:
            key, query, value = self.rows(x)
            return self.propagate(edge_index, key=key, query=query, value=value)

        def message(
            self, key_j: Tensor, query_i: Tensor, value_j: Tensor, index: Tensor, ptr: Any,
            size_i: Any,
        ) -> Tensor:  # fmt: skip
            p = softmax((key_j * query_i).sum(-1), index, ptr, size_i)
            return value_j * p.unsqueeze(-1)

    return Wrong()


@pytest.mark.parametrize(
    "declared",
    [
        {"score": "dot", "scale": 0.5},
        {"score": "dot", "slope": 0.2},
        {"score": "dot", "normalise": "tanh"},
        {"score": "dot", "value": "key"},
        {"score": "dot", "query": "value"},
        {"score": "vector"},
        {"score": "vector", "weight": lambda conv: conv.att * 2},
    ],
    ids=lambda declared: ", ".join(declared),
)
def test_a_wrong_declaration_is_found(declared: Any, awkward: Any) -> None:
    x = torch.randn(awkward.num_src, WIDTH)
    conv = accelerate(_wrong(**declared))
    with limits(**SMALL), pytest.raises(ValueError, match="declared with hag_layer"):
        conv(x, awkward.edge_index)
    right = accelerate(_wrong(score="dot"))
    with limits(**SMALL):
        right(x, awkward.edge_index)
    assert explain(right)[0].calls.counts == {"plain": 1}


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"score": "cosine"}, "score is 'cosine'; expected one of"),
        ({"score": "dot", "normalise": "relu"}, "normalise is 'relu'"),
        ({"score": "dot", "keys": "k"}, "hag_layer got 'keys'; expected some of"),
        ({"score": "dot", "weight": "att"}, "weight is of no use with the score 'dot'"),
        ({"score": "sum", "scale": 2.0}, "scale is of no use"),
        ({"score": "dot", "edges": "e"}, "edges is of no use"),
        ({"score": "given"}, "needs a bias"),
        ({"score": "given", "bias": "b", "key": "k"}, "key is of no use"),
        ({"score": "dot", "key": 3}, "key is 3; expected the name of an argument"),
        ({"slope": 0.2}, "got 'slope', which needs a score"),
    ],
    ids=str,
)
def test_what_cannot_be_declared(declared: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        _wrong(**declared)


def test_classes_that_cannot_be_declared() -> None:
    with pytest.raises(TypeError, match="is a GATConv"):
        hp.hag_layer(score="sum")(type("Mine", (GATConv,), {}))
    with pytest.raises(TypeError, match="hag_layer takes a subclass of MessagePassing"):
        hp.pyg.hag_layer(score="sum")(nn.Linear)
    own = {"aggregate": lambda self, inputs: inputs}
    with pytest.raises(TypeError, match="has its own aggregate"):
        hp.hag_layer(score="sum")(type("Mine", (MessagePassing,), own))


class Dropping(Base):
    """A softmax of products with a dropout, or one of values, or none."""

    def __init__(self, p: float = 0.4, of: str = "softmax") -> None:
        super().__init__()
        self.p, self.of = p, of

    def forward(self, x: Any, edge_index: Any, edge_attr: Any = None) -> Tensor:
        key, query, value = self.rows(x)
        more = {"edge_attr": edge_attr}
        return self.propagate(edge_index, key=key, query=query, value=value, **more)

    def message(
        self, key_j: Tensor, query_i: Tensor, value_j: Tensor, edge_attr: Any, index: Tensor,
        ptr: Any, size_i: Any,
    ) -> Tensor:  # fmt: skip
        score = (key_j * query_i).sum(-1)
        score = score if edge_attr is None else score + edge_attr
        p = softmax(score, index, ptr, size_i)
        p = F.dropout(p, self.p, self.training) if self.of == "softmax" else p
        out = value_j * p.unsqueeze(-1)
        return F.dropout(out, self.p, self.training) if self.of == "values" else out


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("declared", "of"),
    [({}, "softmax"), ({"dropout": 0.3}, "softmax"), ({"dropout": 0.4}, ""), ({}, "values")],
    ids=str,
)
def test_a_dropout_that_is_not_declared_is_found(
    declared: Any, of: str, training: bool, awkward: Any
) -> None:
    cls = hp.hag_layer(score="dot", **declared)(type("Own", (Dropping,), {}))
    conv = accelerate(cls(of=of).train(training))
    given = torch.randn(awkward.num_src, WIDTH), awkward.edge_index
    with limits(**SMALL), pytest.raises(ValueError, match="in training its message draws"):
        conv(*given)


@pytest.mark.parametrize("name", ["edge_attr", "edge_weight", "b"])
def test_a_bias_of_any_name(name: str, awkward: Any) -> None:
    def forward(self: Any, x: Any, edge_index: Any, bias: Any = None) -> Tensor:
        key, query, value = self.rows(x)
        more = {name: bias}
        return self.propagate(edge_index, key=key, query=query, value=value, **more)

    source = f"def message(self, key_j, query_i, value_j, {name}, index, ptr, size_i):\n"
    source += "    return Dropping.message("
    source += f"self, key_j, query_i, value_j, {name}, index, ptr, size_i)\n"
    made: dict[str, Any] = {"Dropping": Dropping}
    exec(source, made)
    cls = type("Own", (Dropping,), {"forward": forward, "message": made["message"]})
    stock = hp.hag_layer(score="dot", bias=name, dropout="p")(cls)().double()
    stock.lin_edge = None  # as many layers have
    ours = accelerate(copy.deepcopy(stock))
    x = torch.randn(awkward.num_src, WIDTH).double()
    bias = torch.randn(awkward.edge_index.shape[1], HEADS).double()
    with limits(**SMALL):
        for given in ((x, awkward.edge_index), (x, awkward.edge_index, bias)):
            assert_same(run(ours, *given), run(stock, *given), 1e-12)
    assert explain(ours)[0].calls.counts == {"plain": 2}


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"score": "dot", "key": "k_j"}, "key='k_j', but propagate got none of that name; it got"),
        ({"score": "dot", "value": "x"}, "value='x', but propagate got none"),
        ({"score": "given", "bias": "b"}, "bias='b', but propagate got none"),
        ({"score": "dot", "scale": "no"}, "its scale as the attribute 'no', but has none"),
        ({"score": "vector", "weight": "no"}, "its weight as the attribute 'no', but has none"),
        ({"score": "dot", "slope": "a.b"}, "its slope as the attribute 'a.b', but has none"),
    ],
    ids=str,
)
def test_names_of_nothing(declared: Any, words: str, awkward: Any) -> None:
    conv = accelerate(_wrong(**declared))
    with limits(**SMALL), pytest.raises(ValueError, match=words):
        conv(torch.randn(awkward.num_src, WIDTH), awkward.edge_index)


class Tempered(MessagePassing):
    """A product with a temperature that is learned, and a dropout of its own mode."""

    def __init__(self) -> None:
        super().__init__()
        self.tau, self.slope = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(0.2))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Any, edge_index: Any) -> Tensor:
        return self.propagate(edge_index, x=x)

    def message(self, x_i: Tensor, x_j: Tensor, index: Tensor, ptr: Any, size_i: Any) -> Tensor:
        score = (x_i * x_j).sum(-1, keepdim=True) * self.tau
        return x_j * self.drop(softmax(score, index, ptr, size_i))


OWN_ROWS = {"score": "dot", "key": "x", "query": "x", "value": "x", "dropout": "drop"}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dropping", [True, False])
def test_a_scale_that_is_learned(dropping: bool, training: bool, awkward: Any) -> None:
    """And a dropout that is on, or off, whatever the layer is."""
    cls = hp.hag_layer(**OWN_ROWS, scale="tau")(type("Own", (Tempered,), {}))
    stock = cls().double().train(training)
    stock.drop.train(dropping)
    ours = accelerate(copy.deepcopy(stock))
    given = torch.randn(awkward.num_src, WIDTH).double(), awkward.edge_index
    with limits(**SMALL):
        assert_same(run(ours, *given), run(stock, *given), 1e-12)
    assert ours.tau.grad is not None
    assert explain(ours)[0].calls.counts == {"plain": 1}


def test_a_slope_that_is_learned_is_refused(awkward: Any) -> None:
    cls = hp.hag_layer(**OWN_ROWS, scale="tau", slope="slope")(type("Own", (Tempered,), {}))
    given = torch.randn(awkward.num_src, WIDTH), awkward.edge_index
    with (
        limits(**SMALL),
        pytest.raises(TypeError, match="tensor with gradients; expected a number"),
    ):
        accelerate(cls())(*given)


def test_the_check_sees_through_parameters_and_rows_that_hide_it(awkward: Any) -> None:
    conv = accelerate(_wrong(score="vector"))
    nn.init.zeros_(conv.att)
    for part in (conv.key, conv.query):
        nn.init.zeros_(part.weight)
    with limits(**SMALL), pytest.raises(ValueError, match="declared with hag_layer"):
        conv(torch.ones(awkward.num_src, WIDTH), awkward.edge_index)


def test_values_of_edges_that_are_not_declared(awkward: Any) -> None:
    conv = accelerate(hp.hag_layer(score="dot", dropout="p")(type("Own", (Dropping,), {}))())
    x, bias = torch.randn(awkward.num_src, WIDTH), torch.randn(awkward.edge_index.shape[1], HEADS)
    with limits(**SMALL), pytest.raises(ValueError, match="must be declared, as bias or edges"):
        conv(x, awkward.edge_index, bias)


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_may_be_written_to(name: str, awkward: Any) -> None:
    stock = LAYERS[name]().double().eval()
    ours = accelerate(copy.deepcopy(stock))
    edges = values_of_edges(name, awkward.edge_index.shape[1], torch.float64)
    found = []
    for conv in (stock, ours):
        x = torch.randn(awkward.num_src, WIDTH, generator=torch.Generator().manual_seed(0)).double()
        with limits(**SMALL):
            y = conv(x.requires_grad_(), awkward.edge_index, *edges).mul_(2.0).relu_()
        found.append(with_gradients(y, [x]))
    assert_same(found[1], found[0], 1e-12)


def test_a_weight_that_is_a_module(awkward: Any) -> None:
    conv = accelerate(_wrong(score="vector", weight="key"))
    with limits(**SMALL), pytest.raises(TypeError, match="is a Linear; expected a tensor"):
        conv(torch.randn(awkward.num_src, WIDTH), awkward.edge_index)


# What stays with stock, and what goes on working -----------------------------------------------


@pytest.mark.parametrize(
    "options", [{"aggr": "max"}, {"aggr": "mean"}, {"flow": "target_to_source"}], ids=str
)
def test_other_aggregations_and_directions(options: Any, awkward: Any) -> None:
    stock = Dot(**options).double()
    ours = accelerate(copy.deepcopy(stock))
    given = torch.randn(awkward.num_src, WIDTH).double(), awkward.edge_index
    with limits(**SMALL):
        assert_same(run(ours, *given), run(stock, *given), 1e-12)
    assert explain(ours)[0].calls.counts == {"stock": 1}


def test_edge_values_beside_a_hag(awkward: Any) -> None:
    hag = hp.build_hag(awkward.edge_index, num_nodes=awkward.num_src)
    x, term = torch.randn(awkward.num_src, WIDTH), torch.randn(hag.num_edges, HEADS)
    with pytest.raises(ValueError, match="Dot got term together with a HAG"):
        Dot()(x, hag, term)


def test_without_acceleration_stock_runs(awkward: Any) -> None:
    conv = Dot()
    conv(torch.randn(awkward.num_src, WIDTH), awkward.edge_index)
    assert "_hag_checked" not in conv.__dict__


def test_hooks_see_the_stock_computation(awkward: Any) -> None:
    conv, seen = accelerate(Dot()), []
    conv.register_message_forward_hook(lambda *given: seen.append(given))
    with limits(**SMALL):
        conv(torch.randn(awkward.num_src, WIDTH), awkward.edge_index)
    assert len(seen) == 1
    assert explain(conv)[0].calls.counts == {"stock": 1}


@pytest.mark.parametrize("name", LAYERS)
def test_copies(name: str, awkward: Any) -> None:
    conv = accelerate(LAYERS[name]().eval())
    x = torch.randn(awkward.num_src, WIDTH)
    given = x, awkward.edge_index, *values_of_edges(name, awkward.edge_index.shape[1], x.dtype)
    with limits(**SMALL):
        expected = conv(*given)
        for twin in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
            torch.testing.assert_close(twin(*given), expected)


@pytest.mark.parametrize("name", ["dot", "given"])
def test_wrong_number_of_edges(name: str, awkward: Any) -> None:
    conv = accelerate(LAYERS[name]())
    shape = (awkward.edge_index.shape[1] - 1, HEADS) if name == "dot" else (3,)
    with limits(**SMALL), pytest.raises((ValueError, RuntimeError)):
        conv(torch.randn(awkward.num_src, WIDTH), awkward.edge_index, torch.randn(shape))
