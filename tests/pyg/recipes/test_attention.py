"""Layers of attention equal stock, and make no messages."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric import nn as pyg

import hag_plugin as hp
from hag_plugin.pyg import accelerate, explain, relation_hags, restore
from hag_plugin.pyg.recipes.relations import plain_relations
from hag_plugin.pyg.recipes.table import RECIPES
from hag_plugin.testing import Ran, limits

from ...cases import draw_graph
from ...equality import assert_same, with_gradients

WIDTH, OUT, EDGE, RELATIONS = 6, 4, 3, 5
REVERSE = "target_to_source"
Make = Callable[[], nn.Module]

# By what they are given beside features and edges.
ALONE: dict[str, Make] = {
    "gat": lambda: pyg.GATConv(WIDTH, OUT),
    "gat-heads": lambda: pyg.GATConv(WIDTH, OUT, heads=3, dropout=0.4, residual=True),
    "gat-mean": lambda: pyg.GATConv(WIDTH, OUT, heads=8, concat=False, bias=False),
    "gat-no-loops": lambda: pyg.GATConv(WIDTH, OUT, heads=2, add_self_loops=False, dropout=0.2),
    "gatv2": lambda: pyg.GATv2Conv(WIDTH, OUT),
    "gatv2-heads": lambda: pyg.GATv2Conv(WIDTH, OUT, heads=3, dropout=0.4, share_weights=True),
    "gatv2-mean": lambda: pyg.GATv2Conv(WIDTH, OUT, heads=2, concat=False, residual=True),
    "gatv2-no-loops": lambda: pyg.GATv2Conv(WIDTH, OUT, heads=2, add_self_loops=False),
    "transformer": lambda: pyg.TransformerConv(WIDTH, OUT),
    "transformer-heads": lambda: pyg.TransformerConv(WIDTH, OUT, heads=3, beta=True, dropout=0.3),
    "transformer-mean": lambda: pyg.TransformerConv(WIDTH, OUT, heads=2, concat=False),
    "transformer-bare": lambda: pyg.TransformerConv(WIDTH, OUT, root_weight=False, bias=False),
    "agnn": lambda: pyg.AGNNConv(),
    "agnn-no-loops": lambda: pyg.AGNNConv(add_self_loops=False),
    "agnn-fixed": lambda: pyg.AGNNConv(requires_grad=False, add_self_loops=False),
    "supergat": lambda: pyg.SuperGATConv(WIDTH, OUT, heads=2, dropout=0.3),
    "supergat-product": lambda: pyg.SuperGATConv(
        WIDTH, OUT, heads=3, attention_type="SD", concat=False, edge_sample_ratio=0.7
    ),
    "general": lambda: pyg.GeneralConv(WIDTH, OUT, attention=True, heads=2),
    "general-product": lambda: pyg.GeneralConv(
        WIDTH, OUT, attention=True, attention_type="dot_product", heads=3
    ),
}
EDGES: dict[str, Make] = {
    "gat-edges": lambda: pyg.GATConv(WIDTH, OUT, heads=3, edge_dim=EDGE, dropout=0.3),
    "gat-filled": lambda: pyg.GATConv(WIDTH, OUT, edge_dim=EDGE, fill_value=0.5),
    "gat-filled-max": lambda: pyg.GATConv(WIDTH, OUT, edge_dim=EDGE, fill_value="max"),
    "gatv2-edges": lambda: pyg.GATv2Conv(WIDTH, OUT, heads=3, edge_dim=EDGE, dropout=0.3),
    "gatv2-edges-no-loops": lambda: pyg.GATv2Conv(WIDTH, OUT, edge_dim=EDGE, add_self_loops=False),
    "transformer-edges": lambda: pyg.TransformerConv(
        WIDTH, OUT, heads=3, edge_dim=EDGE, dropout=0.2, beta=True
    ),
}
INITIAL: dict[str, Make] = {
    "fa": lambda: pyg.FAConv(WIDTH, dropout=0.3),
    "fa-no-loops": lambda: pyg.FAConv(WIDTH, add_self_loops=False, eps=0.0),
}
WEIGHTED: dict[str, Make] = {"fa-weights": lambda: pyg.FAConv(WIDTH, normalize=False, dropout=0.2)}
WITHIN = {"attention_mechanism": "within-relation"}
TIMES = {"attention_mode": "multiplicative-self-attention"}


def rgat(**options: Any) -> nn.Module:
    return pyg.RGATConv(WIDTH, OUT, RELATIONS, **options)


TYPED: dict[str, Make] = {
    "rgat": lambda: rgat(),
    "rgat-heads": lambda: rgat(heads=3, dropout=0.4),
    "rgat-within": lambda: rgat(**WITHIN, heads=2, dropout=0.3, negative_slope=0.5),
    "rgat-product": lambda: rgat(**TIMES, heads=2, concat=False),
    "rgat-products": lambda: rgat(**TIMES, heads=2, dim=3, dropout=0.3),
    "rgat-products-mean": lambda: rgat(**TIMES, **WITHIN, heads=3, dim=2, concat=False),
    "rgat-bases": lambda: rgat(num_bases=2, heads=2, concat=False, bias=False),
    "rgat-blocks": lambda: rgat(num_blocks=2, heads=3, **WITHIN),
}
TYPED_EDGES: dict[str, Make] = {
    "rgat-edges": lambda: rgat(heads=3, edge_dim=EDGE, dropout=0.3),
    "rgat-edges-within": lambda: rgat(heads=2, edge_dim=EDGE, num_bases=4, **WITHIN),
    "rgat-edges-product": lambda: rgat(heads=2, edge_dim=EDGE, num_blocks=2, **TIMES, dim=2),
}
LAYERS = ALONE | EDGES | INITIAL | WEIGHTED | TYPED | TYPED_EDGES
STOCK: dict[str, Make] = {
    "gat-max": lambda: pyg.GATConv(WIDTH, OUT, aggr="max"),
    "gat-reverse": lambda: pyg.GATConv(WIDTH, OUT, flow=REVERSE),
    "fa-cached": lambda: pyg.FAConv(WIDTH, cached=True),
    "general-both": lambda: pyg.GeneralConv(WIDTH, OUT, attention=True, directed_msg=False),
    "general-edges": lambda: pyg.GeneralConv(WIDTH, OUT, in_edge_channels=EDGE, attention=True),
    **{
        f"rgat-{mod}": lambda mod=mod: rgat(mod=mod)  # type: ignore[misc]
        for mod in ("additive", "scaled", "f-additive", "f-scaled")
    },
}
FIRST = [name for name in LAYERS if "-" not in name]


# Any layer of attention, with an aggregation or a direction that it does not attend with.
OTHERWISE = [{"aggr": "mean"}, {"aggr": "max"}, {"flow": REVERSE}]
OPTIONS: dict[str, Callable[..., nn.Module]] = {
    "gat": lambda **o: pyg.GATConv(WIDTH, OUT, **o),
    "gatv2": lambda **o: pyg.GATv2Conv(WIDTH, OUT, **o),
    "transformer": lambda **o: pyg.TransformerConv(WIDTH, OUT, **o),
    "agnn": lambda **o: pyg.AGNNConv(**o),
    "fa": lambda **o: pyg.FAConv(WIDTH, **o),
    "supergat": lambda **o: pyg.SuperGATConv(WIDTH, OUT, **o),
    "rgat": rgat,
    "general": lambda **o: pyg.GeneralConv(WIDTH, OUT, attention=True, **o),
    "general-product": lambda **o: pyg.GeneralConv(
        WIDTH, OUT, attention=True, attention_type="dot_product", **o
    ),
}


def arguments(name: str, num_nodes: int, edge_index: Tensor, dtype: torch.dtype) -> list[Any]:
    x = torch.randn(num_nodes, WIDTH, dtype=dtype)
    num_edges = edge_index.shape[1]
    if name in EDGES or name == "general-edges":
        return [x, edge_index, torch.randn(num_edges, EDGE, dtype=dtype)]
    if name in WEIGHTED:
        return [x, torch.randn_like(x), edge_index, torch.rand(num_edges, dtype=dtype)]
    if name in INITIAL or name == "fa-cached":
        return [x, torch.randn_like(x), edge_index]
    if name.startswith("rgat"):
        features = [torch.randn(num_edges, EDGE, dtype=dtype)] if name in TYPED_EDGES else []
        return [x, edge_index, torch.randint(RELATIONS - 1, (num_edges,)), *features]
    return [x, edge_index]


def handed(name: str, given: list[Any], num_nodes: int) -> tuple[list[Any], list[Any]]:
    """The same arguments with HAGs, and with the edges of these."""
    if name in TYPED:
        x, *edges = given
        hags = relation_hags(*edges, RELATIONS, (num_nodes, num_nodes))
        return [x, hags], [x, *plain_relations(hags)]
    *features, edge_index = given
    hag = hp.build_hag(edge_index, num_nodes=num_nodes)
    return [*features, hag], [*features, hag.edge_index]


def run(conv: nn.Module, *given: Any) -> list[Tensor | None]:
    """The output, then the gradients of all inputs and parameters."""
    taken = [g.detach().requires_grad_() if _is_float(g) else g for g in given]
    conv.zero_grad()
    torch.manual_seed(3)
    y = conv(*taken)
    return with_gradients(y, [g for g in taken if _is_float(g)] + list(conv.parameters()))


def _is_float(value: Any) -> bool:
    is_dense = isinstance(value, Tensor) and value.layout == torch.strided
    return is_dense and value.is_floating_point()


def test_every_recipe_of_attention_is_tried() -> None:
    tried = {type(make()) for make in LAYERS.values()}
    attending = {cls for cls, recipe in RECIPES.items() if recipe.attention is not None}
    assert tried | {pyg.HANConv, pyg.HGTConv} == attending


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", LAYERS)
def test_equals_stock(name: str, training: bool, awkward: Any, ran: Ran) -> None:
    stock = LAYERS[name]().double().train(training)
    ours = accelerate(copy.deepcopy(stock))
    given = arguments(name, awkward.num_src, awkward.edge_index, torch.float64)
    expected = run(stock, *given)
    for times in range(1, 4):  # met, came back, known
        assert_same(run(ours, *given), expected, 1e-12)
        assert explain(ours)[0].calls.counts == {"plain": times}
    assert len(ran.forward) >= 3


@pytest.mark.parametrize("name", ALONE | INITIAL | TYPED)
def test_takes_a_hag(name: str, awkward: Any) -> None:
    """Dropout is drawn for the edges in the order that the HAG gives them in."""
    stock = LAYERS[name]().double()
    ours = accelerate(copy.deepcopy(stock))
    given = arguments(name, awkward.num_src, awkward.edge_index, torch.float64)
    given, edges = handed(name, given, awkward.num_src)
    expected = run(stock, *edges)
    for _ in range(2):
        assert_same(run(ours, *given), expected, 1e-12)
    assert explain(ours)[0].calls.counts == {"plain": 2}


@settings(max_examples=25)
@given(data=st.data(), name=st.sampled_from(sorted(LAYERS)))
def test_hostile_graphs(data: st.DataObject, name: str) -> None:
    edge_index, num_nodes, _ = draw_graph(data, square=True)
    torch.manual_seed(0)
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]))
    stock = LAYERS[name]().to(dtype)
    given = arguments(name, num_nodes, edge_index, dtype)
    compared: int | None = None
    if data.draw(st.booleans()):
        # What is multiplied once a node, not once an edge, spreads it to the gradient of the
        # product's weights from nodes without an edge, too.
        compared = (
            1 if name.startswith(("general", "supergat", "rgat", "transformer-edges")) else None
        )
        given[0][0, 0] = data.draw(st.sampled_from([float("nan"), float("inf"), -float("inf")]))
        stock.eval()
    with limits(few_messages=0, passing_gain=0.0):
        ours = accelerate(copy.deepcopy(stock))
        try:
            expected = run(stock, *given)
        except IndexError:  # SuperGATConv with no edge left to draw: PyG gives it no integers
            with pytest.raises(IndexError):
                run(ours, *given)
            return
        found = run(ours, *given)
        assert_same(found[:compared], expected[:compared], {8: 1e-11, 4: 2e-4}[dtype.itemsize])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FIRST)
def test_half_types(name: str, dtype: torch.dtype, awkward: Any) -> None:
    """As near to the layer in float64 as stock is, or nearer."""
    exact = LAYERS[name]().to(dtype).double().eval()
    given = arguments(name, awkward.num_src, awkward.edge_index, dtype)
    ours, stock = accelerate(copy.deepcopy(exact).to(dtype)), copy.deepcopy(exact).to(dtype)
    truth = exact(*(g.double() if _is_float(g) else g for g in given))
    y, theirs = ours(*given), stock(*given)
    assert y.dtype == theirs.dtype
    bound = (theirs.double() - truth).abs().max() + 4 * torch.finfo(dtype).eps * truth.abs().max()
    assert (y.double() - truth).abs().max() <= bound


BIPARTITE: dict[str, Make] = {
    "gat": lambda: pyg.GATConv((WIDTH, 5), OUT, heads=2),
    "gat-no-loops": lambda: pyg.GATConv((WIDTH, 5), OUT, heads=2, add_self_loops=False),
    "gatv2": lambda: pyg.GATv2Conv((WIDTH, 5), OUT, heads=2),
    "transformer": lambda: pyg.TransformerConv((WIDTH, 5), OUT, heads=2),
}


@pytest.mark.parametrize("sizes", [(30, 17), (17, 30)], ids=str)
@pytest.mark.parametrize("name", BIPARTITE)
def test_two_sets_of_nodes(name: str, sizes: tuple[int, int]) -> None:
    stock = BIPARTITE[name]().double()
    ours = accelerate(copy.deepcopy(stock))
    edge_index = torch.stack([torch.randint(n, (120,)) for n in sizes])
    pair = [torch.randn(n, w, dtype=torch.float64) for n, w in zip(sizes, (WIDTH, 5), strict=True)]

    class Both(nn.Module):
        def __init__(self, conv: nn.Module) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, source: Tensor, target: Tensor) -> Any:
            return self.conv((source, target), edge_index)

    for _ in range(2):
        assert_same(run(Both(ours), *pair), run(Both(stock), *pair), 1e-12)
    assert explain(ours)[0].calls.counts == {"plain": 2}


def test_sources_alone() -> None:
    """gat_conv.py takes no features of the targets."""
    stock = pyg.GATConv((WIDTH, WIDTH), OUT, add_self_loops=False).double()
    ours = accelerate(copy.deepcopy(stock))
    edge_index = torch.stack([torch.randint(30, (90,)), torch.randint(12, (90,))])
    x = torch.randn(30, WIDTH, dtype=torch.float64)
    expected = stock((x, None), edge_index, size=(30, 12))
    torch.testing.assert_close(ours((x, None), edge_index, size=(30, 12)), expected)
    assert explain(ours)[0].calls.counts == {"plain": 1}


TYPES = (["a", "b"], [("a", "x", "b"), ("b", "y", "a"), ("a", "z", "a")])
COUNTS = {"a": 20, "b": 30}


@pytest.mark.parametrize("as_hag", [False, True], ids=["edges", "HAGs"])
@pytest.mark.parametrize("cls", [pyg.HANConv, pyg.HGTConv])
def test_types_of_edges(cls: Any, as_hag: bool) -> None:
    stock = cls(WIDTH, 8, TYPES, heads=2).double()
    x = {kind: torch.randn(n, WIDTH, dtype=torch.float64) for kind, n in COUNTS.items()}
    edges = {
        t: torch.stack([torch.randint(COUNTS[t[0]], (90,)), torch.randint(COUNTS[t[2]], (90,))])
        for t in TYPES[1]
    }
    graphs: Any = edges
    if as_hag:
        graphs = {t: hp.build_hag(e, size=(COUNTS[t[0]], COUNTS[t[2]])) for t, e in edges.items()}

    class Stacked(nn.Module):
        def __init__(self, conv: nn.Module, graphs: Any) -> None:
            super().__init__()
            self.conv, self.graphs = conv, graphs

        def forward(self, a: Tensor, b: Tensor) -> Any:
            return torch.cat(list(self.conv({"a": a, "b": b}, self.graphs).values()))

    ours = accelerate(copy.deepcopy(stock))
    with torch.no_grad():
        stock(x, edges), ours(x, graphs)  # lazy layers get their sizes
    ours.load_state_dict(stock.state_dict())
    expected = run(Stacked(stock, edges), x["a"], x["b"])
    for _ in range(3):
        assert_same(run(Stacked(ours, graphs), x["a"], x["b"]), expected, 1e-12)
    assert explain(ours)[0].calls.counts == {"plain": 4}


# What stock runs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STOCK)
def test_left_to_stock(name: str, awkward: Any) -> None:
    stock = STOCK[name]().double()
    ours = accelerate(copy.deepcopy(stock))
    assert not explain(ours)[0].accelerated
    given = arguments(name, awkward.num_src, awkward.edge_index, torch.float64)
    assert_same(run(ours, *given), run(stock, *given), 1e-12)
    assert explain(ours)[0].calls.counts == {"stock": 1}


def test_every_layer_is_tried_otherwise() -> None:
    attending = {type(make()) for make in LAYERS.values()}
    assert {type(make()) for make in OPTIONS.values()} == attending


@pytest.mark.parametrize("options", OTHERWISE, ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_other_aggregations_and_directions(name: str, options: Any, awkward: Any) -> None:
    stock = OPTIONS[name](**options).double()
    ours = accelerate(copy.deepcopy(stock))
    given = arguments(name, awkward.num_src, awkward.edge_index, torch.float64)
    for _ in range(2):
        assert_same(run(ours, *given), run(stock, *given), 1e-12)
    assert not explain(ours)[0].accelerated
    assert explain(ours)[0].calls.counts == {"stock": 2}


@pytest.mark.parametrize("normalize", [True, False])
def test_edge_weights_that_stock_refuses(normalize: bool, awkward: Any) -> None:
    """fa_conv.py takes them where it does not normalise, and there alone."""
    ours = accelerate(pyg.FAConv(WIDTH, normalize=normalize).double())
    x, x_0, edge_index = arguments("fa", awkward.num_src, awkward.edge_index, torch.float64)
    weight = torch.rand(edge_index.shape[1], dtype=torch.float64) if normalize else None
    with pytest.raises(AssertionError):
        ours(x, x_0, edge_index, weight)


def test_tensors_of_several_dtypes(awkward: Any) -> None:
    """They promote each other as in stock: scores that are wider, weights that are narrower."""
    wide = pyg.GATConv(WIDTH, OUT, heads=2, dropout=0.3)
    wide.att_src, wide.att_dst = nn.Parameter(wide.att_src.double()), wide.att_dst
    narrow = pyg.FAConv(WIDTH, normalize=False).double()
    for stock, name, dtype in ((wide, "gat", torch.float32), (narrow, "fa-weights", torch.float64)):
        ours = accelerate(copy.deepcopy(stock))
        given = arguments(name, awkward.num_src, awkward.edge_index, dtype)
        if name == "fa-weights":
            given[-1] = given[-1].float()
        assert_same(run(ours, *given), run(stock, *given), 1e-5)
        assert explain(ours)[0].calls.counts == {"plain": 1}


@pytest.mark.parametrize("name", ["gat", "gatv2", "transformer", "gat-heads", "fa"])
def test_attention_weights_are_stocks(name: str, awkward: Any) -> None:
    stock = LAYERS[name]().double()
    ours = accelerate(copy.deepcopy(stock))
    given = arguments(name, awkward.num_src, awkward.edge_index, torch.float64)
    results = []
    for conv in (stock, ours):
        torch.manual_seed(1)
        results.append(conv(*given, return_attention_weights=True))
    (y, (index, alpha)), (ours_y, (ours_index, ours_alpha)) = results
    assert torch.equal(index, ours_index)
    assert torch.equal(alpha, ours_alpha)
    assert torch.equal(y, ours_y)
    assert "return_attention_weights" in explain(ours)[0].calls.reasons["stock"]
    hag = hp.build_hag(awkward.edge_index, num_nodes=awkward.num_src)
    with pytest.raises(ValueError, match="return_attention_weights"):
        ours(*given[:-1], hag, return_attention_weights=True)


def test_hooks_see_the_stock_computation(awkward: Any) -> None:
    ours = accelerate(pyg.GATConv(WIDTH, OUT).double())
    seen: list[Any] = []
    handle = ours.register_edge_update_forward_hook(lambda *_: seen.append(1))
    x = torch.randn(awkward.num_src, WIDTH, dtype=torch.float64)
    y = ours(x, awkward.edge_index)
    assert seen == [1]
    assert not explain(ours)[0].accelerated
    handle.remove()
    torch.testing.assert_close(ours(x, awkward.edge_index), y)
    assert explain(ours)[0].calls.counts == {"stock": 1, "plain": 1}


@pytest.mark.parametrize("name", FIRST)
def test_outputs_may_be_written_to(name: str, awkward: Any) -> None:
    stock = LAYERS[name]().double().eval()
    for part in (stock, copy.deepcopy(stock)):
        part.register_parameter("bias", None)
    ours = accelerate(copy.deepcopy(stock))
    torch.manual_seed(0)
    given = arguments(name, awkward.num_src, awkward.edge_index, torch.float64)
    found = []
    for conv in (stock, ours):
        x = given[0].detach().requires_grad_()
        found.append(with_gradients(conv(x, *given[1:]).mul_(2.0).relu_(), [x]))
    assert_same(found[1], found[0], 1e-12)


@pytest.mark.parametrize("when", ["forward_pre_hook", "forward_hook", "full_backward_hook"])
@pytest.mark.parametrize("cls", [pyg.GCNConv, pyg.SAGEConv, pyg.GATConv, pyg.GATv2Conv])
def test_hooks_on_the_aggregation_see_the_stock_computation(
    cls: Any, when: str, awkward: Any
) -> None:
    conv, seen = accelerate(cls(WIDTH, OUT)), []
    getattr(conv.aggr_module, f"register_{when}")(lambda *given: seen.append(1))
    x = torch.randn(awkward.num_src, WIDTH, requires_grad=True)
    for _ in range(2):
        conv(x, awkward.edge_index).sum().backward()
    assert len(seen) == 2
    assert explain(conv)[0].calls.counts == {"stock": 2}


@pytest.mark.parametrize("number", range(5))
def test_hooks_on_parts_of_the_aggregation_see_the_stock_computation(
    number: int, awkward: Any
) -> None:
    options = {"aggregators": ["mean", "max"], "scalers": ["identity", "amplification"]}
    stock = pyg.PNAConv(WIDTH, OUT, deg=torch.ones(40, dtype=torch.long), **options)
    list(stock.aggr_module.modules())[number].register_forward_hook(lambda _, __, y: _halved(y))
    ours = accelerate(copy.deepcopy(stock))
    x = torch.randn(awkward.num_src, WIDTH)
    for _ in range(2):
        assert_same([ours(x, awkward.edge_index)], [stock(x, awkward.edge_index)], 1e-5)


def _halved(y: Any) -> Any:
    return [each * 0.5 for each in y] if isinstance(y, list) else y * 0.5


def test_a_product_of_edge_features_with_hooks(awkward: Any) -> None:
    """Whoever looks on sees the layer of edge features run."""
    for name in ("gat-edges", "gatv2-edges", "transformer-edges"):
        stock = LAYERS[name]().double().eval()
        ours = accelerate(copy.deepcopy(stock))
        seen: list[Any] = []
        ours.lin_edge.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        given = arguments(name, awkward.num_src, awkward.edge_index, torch.float64)
        assert_same(run(ours, *given), run(stock, *given), 1e-12)
        assert seen


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [pyg.Linear, nn.Linear, "several"])
@pytest.mark.parametrize("name", ["gat-edges", "gatv2-edges", "transformer-edges"])
def test_another_layer_of_edge_features(name: str, kind: Any, bias: bool, awkward: Any) -> None:
    stock = LAYERS[name]().double().eval()
    edge_dim, rows = stock.lin_edge.weight.t().shape
    if kind == "several":
        own = nn.Sequential(nn.Tanh(), nn.Linear(edge_dim, rows, bias=bias))
    else:
        own = kind(edge_dim, rows, bias=bias)
        if bias:
            nn.init.normal_(own.bias)
    stock.lin_edge = own.double()
    given = arguments(name, awkward.num_src, awkward.edge_index, torch.float64)
    assert_same(run(accelerate(copy.deepcopy(stock)), *given), run(stock, *given), 1e-12)


def test_edge_values_beside_a_hag(awkward: Any) -> None:
    ours = accelerate(pyg.GATConv(WIDTH, OUT, edge_dim=EDGE))
    x, edge_index, values = arguments("gat-edges", awkward.num_src, awkward.edge_index,
                                      torch.float32)  # fmt: skip
    hag = hp.build_hag(edge_index, num_nodes=awkward.num_src)
    with pytest.raises(ValueError, match="edge_attr together with a HAG"):
        ours(x, hag, values)


def test_a_device_without_kernels_runs_stock() -> None:
    ours = accelerate(pyg.GATConv(WIDTH, OUT, add_self_loops=False).to("meta"))
    edge_index = torch.zeros(2, 9000, dtype=torch.int64, device="meta")
    assert ours(torch.empty(30, WIDTH, device="meta"), edge_index).shape == (30, OUT)
    assert "a device without kernels" in explain(ours)[0].calls.reasons["stock"]


# Around a layer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIRST)
def test_copies_and_weights(name: str, awkward: Any) -> None:
    stock = LAYERS[name]().double().eval()
    ours = accelerate(LAYERS[name]().double().eval())
    ours.load_state_dict(stock.state_dict(), strict=True)
    given = arguments(name, awkward.num_src, awkward.edge_index, torch.float64)
    expected = stock(*given)
    for twin in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(twin) is type(ours)
        torch.testing.assert_close(twin(*given), expected)
        assert explain(twin)[0].calls.counts == {"plain": 1}
    assert type(restore(ours)) is type(stock)
    assert torch.equal(ours(*given), expected)


@pytest.mark.parametrize("name", FIRST)
def test_wrong_number_of_rows(name: str, awkward: Any) -> None:
    conv = accelerate(LAYERS[name]())
    given = arguments(name, awkward.num_src, awkward.edge_index, torch.float32)
    (*features, graph), _ = handed(name, given, awkward.num_src)
    with pytest.raises(ValueError, match=r"rows|nodes|size"):
        conv(*(x[:-3] for x in features), graph)


def test_ids_out_of_range_are_stocks_to_refuse() -> None:
    ours = accelerate(pyg.GATConv(WIDTH, OUT))
    with pytest.raises((ValueError, IndexError, RuntimeError)):
        ours(torch.randn(5, WIDTH), torch.tensor([[0, 9], [1, 2]]))


def test_sampled_batches_leave_nothing(awkward: Any) -> None:
    ours = accelerate(pyg.GATConv(WIDTH, OUT, dropout=0.5))
    for _ in range(5):
        edge_index = torch.randint(40, (2, 200))
        ours(torch.randn(40, WIDTH), edge_index).sum().backward()
        del edge_index
    assert len(ours._hag_session.graphs) == 0


def test_a_model_of_pygs(cora: Any) -> None:
    data = cora[0]
    torch.manual_seed(0)
    stock = pyg.GAT(data.num_features, 8, 2, 7, heads=4, v2=True, dropout=0.5)
    ours = accelerate(copy.deepcopy(stock))
    for model in (stock, ours):
        torch.manual_seed(4)
        model(data.x, data.edge_index).logsumexp(-1).sum().backward()
    for one, other in zip(ours.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)
    assert all(row.calls.counts == {"plain": 1} for row in explain(ours))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("where", ["alone", "a source", "a target", "both"])
def test_rows_that_no_edge_asks_for(where: str, value: float, compiled: bool) -> None:
    """What multiplies the rows of all targets takes nothing from those of nodes without an edge."""
    own = {"alone": [], "a source": [(19, 2)], "a target": [(2, 19)], "both": [(19, 2), (3, 19)]}
    edges = torch.cat([torch.randint(18, (80, 2)), torch.tensor(own[where]).long().view(-1, 2)])
    x = torch.randn(20, WIDTH, dtype=torch.float64)
    x[19] = value
    for loops in (False, True):
        stock: Any = pyg.AGNNConv(add_self_loops=loops).double()
        ours: Any = accelerate(copy.deepcopy(stock))
        if compiled:
            torch._dynamo.reset()
            ours = torch.compile(ours, backend="aot_eager", fullgraph=True)
        with limits(few_messages=0, passing_gain=0.0):
            assert_same(run(ours, x, edges.t()), run(stock, x, edges.t()), 1e-11)
        assert set(explain(ours)[0].calls.counts) == {"plain"}
