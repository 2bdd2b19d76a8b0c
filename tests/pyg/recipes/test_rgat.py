"""RGATConv equals stock in every setting, and gives no edge a matrix or a row of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch_geometric import nn as pyg
from torch_geometric.nn.dense.linear import Linear

import hag_plugin as hp
from hag_plugin.hag.passing import BLOCK
from hag_plugin.pyg import accelerate, explain, relation_hags
from hag_plugin.pyg.recipes.rgat import (
    PaddedPairs,
    Pairs,
    ScoredRelations,
    attends_within,
    relational_edges_there,
    rgat_forward,
)
from hag_plugin.testing import limits

from ...cases import draw_graph
from .test_attention import assert_same, run

WIDTH, OUT, EDGE, RELATIONS = 6, 4, 3, 5
NODES, EDGES = 20, 150
ADDITIVE, PRODUCT = "additive-self-attention", "multiplicative-self-attention"


def rgat(**options: Any) -> nn.Module:
    return pyg.RGATConv(WIDTH, OUT, RELATIONS, **options).double()


def edges() -> tuple[Tensor, Tensor]:
    """The last relation and the last nodes have none."""
    edge_index = torch.randint(NODES - 2, (2, EDGES))
    return edge_index, torch.randint(RELATIONS - 1, (EDGES,))


def features(rows: int = NODES) -> Tensor:
    return torch.randn(rows, WIDTH, dtype=torch.float64)


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """Any that stock takes, but `mod`."""
    mode = draw(st.sampled_from([ADDITIVE, PRODUCT]))
    weights = st.sampled_from([{}, {"num_bases": 1}, {"num_bases": 7}, {"num_blocks": 2}])
    return {
        "attention_mode": mode,
        "attention_mechanism": draw(st.sampled_from(["within-relation", "across-relation"])),
        "heads": draw(st.integers(1, 4)),
        "dim": draw(st.integers(1, 3)) if mode == PRODUCT else 1,
        "concat": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "negative_slope": draw(st.sampled_from([0.0, 0.2, 1.0, 1.5])),
        "dropout": draw(st.sampled_from([0.0, 0.5])),
        "edge_dim": draw(st.sampled_from([None, 1, EDGE])),
        **draw(weights),
    }


class Both(nn.Module):
    """A layer of two sets of nodes."""

    def __init__(self, conv: nn.Module, graph: Any) -> None:
        super().__init__()
        self.conv, self.graph = conv, graph

    def forward(self, source: Tensor, target: Tensor, *edges: Tensor) -> Any:
        if isinstance(self.graph, ScoredRelations):
            return rgat_forward(self.conv, (source, target), self.graph, *edges)
        return self.conv((source, target), self.graph, *edges)


@settings(max_examples=60)
@given(data=st.data(), options=options())
def test_any_setting(data: st.DataObject, options: dict[str, Any]) -> None:
    square = data.draw(st.booleans())
    edge_index, num_src, num_dst = draw_graph(data, square=square)
    num_edges, most = edge_index.shape[1], data.draw(st.integers(1, RELATIONS))
    torch.manual_seed(0)
    edge_type = torch.randint(most, (num_edges,))
    of_edges = [edge_type]
    if data.draw(st.booleans()):  # of which torch's softmax over nodes has wrong gradients
        edge_index, of_edges = edge_index.int(), [edge_type.int()]
    width = options["edge_dim"]
    if width is not None:
        shape = (num_edges,) if width == 1 and data.draw(st.booleans()) else (num_edges, width)
        of_edges.append(torch.randn(shape, dtype=torch.float64))
    stock = rgat(**options).train(data.draw(st.booleans()))
    ours = accelerate(copy.deepcopy(stock))
    x, target = features(num_src), features(num_dst)
    with limits(few_messages=0, passing_gain=0.0):
        for _ in range(2):
            if square:
                found = run(ours, x, edge_index, *of_edges)
                expected = run(stock, x, edge_index.long(), *of_edges)
            else:
                found = run(Both(ours, edge_index), x, target, *of_edges)
                expected = run(Both(stock, edge_index.long()), x, target, *of_edges)
            assert_same(found, expected, 1e-11)
    assert explain(ours)[0].calls.counts == {"plain": 2}


@settings(max_examples=40)
@given(data=st.data(), options=options())
def test_any_setting_over_pairs_that_nobody_counted(
    data: st.DataObject, options: dict[str, Any]
) -> None:
    """As on a device that runs launches, where a graph is met first. The last relation and some
    nodes, which hold NaN, have no edge."""
    edge_index, num_src, num_dst = draw_graph(data, square=data.draw(st.booleans()))
    num_edges, most = edge_index.shape[1], data.draw(st.integers(1, RELATIONS - 1))
    torch.manual_seed(0)
    edge_type, width = torch.randint(most, (num_edges,)), options["edge_dim"]
    of_edges = [] if width is None else [torch.randn(num_edges, width, dtype=torch.float64)]
    stock = rgat(**options).train(data.draw(st.booleans()))
    ours = accelerate(copy.deepcopy(stock))
    size, within = (num_src, num_dst), attends_within(stock)
    with limits(kernels_anywhere=True):
        made = relational_edges_there(edge_index, edge_type, size, RELATIONS, within)
    assert isinstance(made.sources, PaddedPairs)
    ends = [features(count) for count in size]
    for x, ids in zip(ends, edge_index, strict=True):
        x[torch.bincount(ids, minlength=len(x)) == 0] = float("nan")
    graph = ScoredRelations(made, edge_index)
    found = run(Both(ours, graph), *ends, edge_type, *of_edges)
    expected = run(Both(stock, edge_index), *ends, edge_type, *of_edges)
    assert_same(found, expected, 1e-11)


@settings(max_examples=100)
@given(data=st.data(), nodes=st.integers(0, 60), relations=st.integers(1, 70))
def test_pairs_that_nobody_counted(data: st.DataObject, nodes: int, relations: int) -> None:
    """Each edge has the row that it has where pairs are counted, and no place is of two."""
    num_edges = data.draw(st.integers(0, 300)) if nodes else 0
    torch.manual_seed(data.draw(st.integers(0, 99)))
    ends, types = torch.randint(max(nodes, 1), (num_edges,)), torch.randint(relations, (num_edges,))
    counted = Pairs.of(types, ends, relations, nodes)
    padded = PaddedPairs.of(types, ends, relations, nodes)
    there = padded.nodes < nodes
    assert int(there.sum()) == len(counted.nodes)
    assert len(there) < min(num_edges, relations * nodes) + BLOCK * min(num_edges, relations) + 1
    each = torch.stack([padded.relations.repeat_interleave(BLOCK), padded.nodes])[:, there]
    assert each.unique(dim=1).shape == each.shape
    weight = torch.randn(relations, 2, 3, 2, dtype=torch.float64)
    x = torch.randn(nodes, 6, dtype=torch.float64)
    rows = [pairs.times(x, weight)[pairs.of_edges] for pairs in (padded, counted)]
    torch.testing.assert_close(*rows)


@pytest.mark.parametrize("mechanism", ["within-relation", "across-relation"])
@pytest.mark.parametrize("mode", [ADDITIVE, PRODUCT])
def test_no_array_of_edges_times_features(mode: str, mechanism: str) -> None:
    nodes, num_edges, heads = 15, 4000, 2
    how = {"attention_mode": mode, "attention_mechanism": mechanism, "edge_dim": 2}
    conv = accelerate(pyg.RGATConv(24, 12, 3, heads=heads, dropout=0.5, **how))
    edge_index, edge_type = torch.randint(nodes, (2, num_edges)), torch.randint(3, (num_edges,))
    x, edge_attr = torch.randn(nodes, 24, requires_grad=True), torch.randn(num_edges, 2)
    sizes: list[int] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
            found = func(*args, **(kwargs or {}))
            leaves = torch.utils._pytree.tree_leaves(found)
            sizes.extend(t.numel() for t in leaves if isinstance(t, Tensor))
            return found

    with Recorder():
        conv(x, edge_index, edge_type, edge_attr).sum().backward()
    assert explain(conv)[0].calls.counts == {"plain": 1}
    assert max(sizes) < 2 * num_edges * heads < num_edges * 12


def test_types_and_edges_that_change() -> None:
    """What is made of one graph is not taken for another."""
    stock = rgat(attention_mechanism="within-relation")
    ours = accelerate(copy.deepcopy(stock))
    x, (edge_index, edge_type) = features(), edges()
    for change in range(3):
        if change == 1:
            edge_type = edge_type.flip(0)
        if change == 2:
            edge_type[::3] = RELATIONS - 1
        for _ in range(3):
            torch.testing.assert_close(
                ours(x, edge_index, edge_type), stock(x, edge_index, edge_type)
            )
    assert explain(ours)[0].calls.counts == {"plain": 9}


def test_layers_of_other_mechanisms_and_relations_share_a_graph() -> None:
    x, (edge_index, edge_type) = features(), edges()
    layers = [
        rgat(attention_mechanism="within-relation"),
        rgat(),
        pyg.RGATConv(WIDTH, WIDTH, RELATIONS + 2).double(),
    ]
    ours = accelerate(nn.ModuleList(copy.deepcopy(layers)))
    for _ in range(3):
        for one, other in zip(ours, layers, strict=True):
            torch.testing.assert_close(
                one(x, edge_index, edge_type), other(x, edge_index, edge_type)
            )


def test_attention_weights_are_stocks() -> None:
    stock = rgat(heads=2)
    ours = accelerate(copy.deepcopy(stock))
    x, (edge_index, edge_type) = features(), edges()
    for flag in (True, False):
        given = (x, edge_index, edge_type)
        y, (index, alpha) = ours(*given, return_attention_weights=flag)
        expected, (_, theirs) = stock(*given, return_attention_weights=flag)
        assert index is edge_index
        assert torch.equal(alpha, theirs)
        assert torch.equal(y, expected)
    assert "return_attention_weights" in explain(ours)[0].calls.reasons["stock"]
    hags = relation_hags(edge_index, edge_type, RELATIONS, (NODES, NODES))
    with pytest.raises(ValueError, match="a value for each edge"):
        ours(x, hags, return_attention_weights=True)


# What stock refuses, or takes alone ---------------------------------------------------------------

X, (INDEX, TYPES) = features(), edges()
ATTR = torch.randn(EDGES, EDGE, dtype=torch.float64)
WRONG: dict[str, tuple[Any, ...]] = {
    "a type beyond": (X, INDEX, torch.full_like(TYPES, RELATIONS)),
    "a type below": (X, INDEX, torch.full_like(TYPES, -1)),
    "a source beyond": (X, INDEX + torch.tensor([[NODES], [0]]), TYPES),
    "a target beyond": (X, INDEX + torch.tensor([[0], [NODES]]), TYPES),
    "no types": (X, INDEX),
    "types of another length": (X, INDEX, TYPES[:-1]),
    "types in a matrix": (X, INDEX, TYPES.view(-1, 1)),
    "types of floats": (X, INDEX, TYPES.double()),
    "no features of targets": ((X, None), INDEX, TYPES),
    "another size": (X, INDEX, TYPES, None, (NODES, NODES + 1)),
    "other features": (X[:, 1:], INDEX, TYPES),
    "features in a vector": (X[:, 0], INDEX, TYPES),
    "narrower features": (X.float(), INDEX, TYPES),
    "edge features": (X, INDEX, TYPES, ATTR),
}
WORDED_OTHERWISE = {"other features", "narrower features"}  # by torch, of another product


@pytest.mark.parametrize("name", WRONG)
def test_what_stock_refuses(name: str) -> None:
    stock = rgat()
    ours = accelerate(copy.deepcopy(stock))
    for _ in range(2):
        errors = []
        for conv in (stock, ours):
            with pytest.raises(Exception) as caught:  # noqa: PT011  (stock's own)
                conv(*WRONG[name])
            errors.append(caught.value)
        assert type(errors[0]) is type(errors[1])
        assert name in WORDED_OTHERWISE or str(errors[0]) == str(errors[1])


ODD: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "edge_dim without features": ({"edge_dim": EDGE}, (X, INDEX, TYPES)),
    "one row for all edges": ({"edge_dim": EDGE}, (X, INDEX, TYPES, ATTR[:1])),
    "mod": ({"mod": "f-scaled"}, (X, INDEX, TYPES)),
    "another aggregation": ({"aggr": "mean"}, (X, INDEX, TYPES)),
    "another direction": ({"flow": "target_to_source"}, (X, INDEX, TYPES)),
}


@pytest.mark.parametrize("name", ODD)
def test_left_to_stock(name: str) -> None:
    how, taken = ODD[name]
    stock = rgat(**how)
    ours = accelerate(copy.deepcopy(stock))
    for _ in range(2):
        assert torch.equal(ours(*taken), stock(*taken))
    assert explain(ours)[0].calls.counts == {"stock": 2}


def test_few_edges_for_the_relations_are_left_to_stock() -> None:
    """A product a relation costs what many edges do; but stock goes through relations, too, where
    it attends within each."""
    x, edge_index = torch.randn(100, 32), torch.randint(100, (2, 20_000))
    kinds: dict[str, tuple[int, dict[str, str]]] = {
        "across": (4000, {}),
        "few": (4, {}),
        "within": (4000, {"attention_mechanism": "within-relation"}),
    }
    ran = {}
    with limits(passing_gain=1.0):
        for name, (count, how) in kinds.items():
            conv = accelerate(pyg.RGATConv(32, 16, count, **how))
            conv(x, edge_index, torch.randint(count, (20_000,)))
            ran[name] = explain(conv)[0].calls.counts
    assert ran == {"across": {"stock": 1}, "few": {"plain": 1}, "within": {"plain": 1}}


# HAGs -------------------------------------------------------------------------------------------


def test_hags_that_are_refused() -> None:
    ours = accelerate(rgat(edge_dim=EDGE))
    hags = relation_hags(INDEX, TYPES, RELATIONS, (NODES, NODES))
    with pytest.raises(ValueError, match="got one HAG; expected a list of 5 HAGs"):
        ours(X, hags[0])
    with pytest.raises(ValueError, match="got 4; expected a list of 5 HAGs"):
        ours(X, hags[:4])
    with pytest.raises(ValueError, match="edge_type together with a HAG"):
        ours(X, hags, TYPES)
    with pytest.raises(ValueError, match="edge_attr together with a HAG"):
        ours(X, hags, None, ATTR)


def test_hags_where_stock_runs() -> None:
    """It is given their edges."""
    stock = rgat(mod="f-additive")
    ours = accelerate(copy.deepcopy(stock))
    hags = relation_hags(INDEX, TYPES, RELATIONS, (NODES, NODES))
    torch.testing.assert_close(ours(X, hags), stock(X, INDEX, TYPES))
    assert explain(ours)[0].calls.counts == {"stock": 1}


def test_hags_of_two_sets_of_nodes() -> None:
    stock = rgat(attention_mechanism="within-relation")
    ours = accelerate(copy.deepcopy(stock))
    pair, index = (features(), features(NODES - 2)), INDEX
    hags = relation_hags(index, TYPES, RELATIONS, (NODES, NODES - 2))
    for _ in range(2):
        torch.testing.assert_close(ours(pair, hags), stock(pair, index, TYPES))
    assert explain(ours)[0].calls.counts == {"plain": 2}


# Around a layer -----------------------------------------------------------------------------------


def test_what_explain_says() -> None:
    row = explain(accelerate(rgat()))[0]
    assert row.accelerated
    assert (row.aggregates, row.reason) == (
        "attention over each relation's A", "one pass over the edges, without messages",
    )  # fmt: skip


Change = Callable[[Any, list[Any]], Any]
CHANGES: dict[str, Change] = {
    "hooks": lambda conv, seen: conv.lin_edge.register_forward_hook(lambda *_: seen.append(1)),
    "a bias": lambda conv, seen: setattr(
        conv, "lin_edge", Linear(EDGE, 2 * OUT, bias=True).double()
    ),
    "another layer": lambda conv, seen: setattr(
        conv, "lin_edge", nn.Sequential(nn.Linear(EDGE, 2 * OUT), nn.Tanh()).double()
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_layer_of_edge_features(name: str) -> None:
    stock, seen = rgat(edge_dim=EDGE, heads=2), []  # type: ignore[var-annotated]
    CHANGES[name](stock, seen)
    ours = accelerate(copy.deepcopy(stock))
    taken = (X, INDEX, TYPES, ATTR)
    assert_same(run(ours, *taken), run(stock, *taken), 1e-12)
    assert explain(ours)[0].calls.counts == {"plain": 1}
    assert len(seen) == (2 if name == "hooks" else 0)


def test_hooks_and_subclasses_see_the_stock_computation() -> None:
    class Mine(pyg.RGATConv):
        """Somebody's own."""

    seen: list[Any] = []
    ours = accelerate(rgat())
    handle = ours.register_message_forward_hook(lambda *_: seen.append(1))
    y = ours(X, INDEX, TYPES)
    handle.remove()
    assert seen == [1]
    torch.testing.assert_close(ours(X, INDEX, TYPES), y)
    assert explain(ours)[0].calls.counts == {"stock": 1, "plain": 1}
    derived = accelerate(Mine(WIDTH, OUT, RELATIONS).double())
    derived(X, INDEX, TYPES)
    assert explain(derived)[0].calls.counts == {"stock": 1}


def test_sampled_batches_leave_nothing() -> None:
    ours = accelerate(rgat(dropout=0.5))
    for _ in range(5):
        ours(X, *edges()).sum().backward()
    assert len(ours._hag_session.graphs) == 0
    assert hp.explain(ours)[0].calls.counts == {"plain": 5}


def test_compiled_code_runs_stock() -> None:
    stock = rgat()
    torch._dynamo.reset()
    compiled = torch.compile(accelerate(copy.deepcopy(stock)), backend="eager")
    hags = relation_hags(INDEX, TYPES, RELATIONS, (NODES, NODES))
    expected = stock(X, INDEX, TYPES)
    torch.testing.assert_close(compiled(X, INDEX, TYPES), expected)
    torch.testing.assert_close(compiled(X, hags), expected)
    assert explain(compiled)[0].calls.counts == {"stock": 2}


def test_graphs_of_inference_serve_training() -> None:
    stock = rgat(dropout=0.5, attention_mechanism="within-relation")
    ours = accelerate(copy.deepcopy(stock))
    with torch.inference_mode():
        for _ in range(3):
            ours(X, INDEX, TYPES)
    assert_same(run(ours, X, INDEX, TYPES), run(stock, X, INDEX, TYPES), 1e-12)
    assert explain(ours)[0].calls.counts == {"plain": 4}
