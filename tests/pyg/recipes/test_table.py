"""Every layer of the recipe table equals stock: outputs and all gradients, in float64."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch_geometric import nn as pyg
from torch_geometric.nn import aggr
from torch_geometric.nn.models.linkx import SparseLinear

import hag_plugin as hp
from hag_plugin.pyg import accelerate, explain, layers, relation_hags, restore
from hag_plugin.pyg.recipes.recipe import stock_class
from hag_plugin.pyg.recipes.table import RECIPES

WIDTH, OUT = 6, 4
RELATIONS = 3
REVERSE = "target_to_source"
DEGREES = torch.tensor([3, 10, 20, 15, 9, 4, 1])  # a histogram
ALL = ["mean", "max", "sum", "std", "var", "min"]
SCALERS = ["identity", "amplification", "attenuation", "linear", "inverse_linear"]


def pna(aggregators: list[str], scalers: list[str], **options: Any) -> nn.Module:
    return pyg.PNAConv(WIDTH, OUT, aggregators, scalers, DEGREES, **options)


def rgcn(cls: Any, **options: Any) -> nn.Module:
    return cls(WIDTH, OUT, RELATIONS, **options)


# The first configuration of each class also runs on real graphs.
CONFIGURATIONS: dict[str, Callable[[], nn.Module]] = {
    "gated": lambda: pyg.GatedGraphConv(WIDTH, 2),
    "gated-max": lambda: pyg.GatedGraphConv(WIDTH + 1, 1, aggr="max", bias=False),
    "mf": lambda: pyg.MFConv(WIDTH, OUT, max_degree=4),
    "mf-mean": lambda: pyg.MFConv(WIDTH, OUT, max_degree=2, aggr="mean", bias=False),
    "mf-reverse": lambda: pyg.MFConv(WIDTH, OUT, max_degree=2, flow=REVERSE),
    "signed": lambda: pyg.SignedConv(WIDTH, OUT, first_aggr=True),
    "signed-second": lambda: pyg.SignedConv(WIDTH // 2, OUT, first_aggr=False, aggr="sum"),
    "wl": lambda: pyg.WLConvContinuous(),
    "wl-reverse": lambda: pyg.WLConvContinuous(flow=REVERSE),
    "rgcn": lambda: rgcn(pyg.RGCNConv),
    "rgcn-bases": lambda: rgcn(pyg.RGCNConv, num_bases=2, aggr="sum", root_weight=False),
    "rgcn-blocks": lambda: rgcn(pyg.RGCNConv, num_blocks=2, bias=False),
    "rgcn-max": lambda: rgcn(pyg.RGCNConv, aggr="max"),
    "rgcn-reverse": lambda: rgcn(pyg.RGCNConv, flow=REVERSE),
    "fast": lambda: rgcn(pyg.FastRGCNConv),
    "fast-bases": lambda: rgcn(pyg.FastRGCNConv, num_bases=2, aggr="add"),
    "fast-blocks": lambda: rgcn(pyg.FastRGCNConv, num_blocks=2),
    "eg": lambda: pyg.EGConv(WIDTH, OUT, num_heads=2, num_bases=3),
    "eg-all": lambda: pyg.EGConv(
        WIDTH, OUT, ["sum", "mean", "symnorm", "min", "max", "var", "std"], num_heads=2
    ),
    "eg-no-symnorm": lambda: pyg.EGConv(WIDTH, OUT, ["max", "std", "mean"], num_heads=4),
    "eg-no-loops": lambda: pyg.EGConv(
        WIDTH, OUT, ["sum", "var"], num_heads=2, add_self_loops=False, bias=False
    ),
    "eg-cached": lambda: pyg.EGConv(WIDTH, OUT, num_heads=2, cached=True),
    "eg-reverse": lambda: pyg.EGConv(WIDTH, OUT, ["symnorm", "std"], num_heads=2, flow=REVERSE),
    "sg": lambda: pyg.SGConv(WIDTH, OUT, K=2),
    "sg-no-loops": lambda: pyg.SGConv(WIDTH, OUT, add_self_loops=False, flow=REVERSE),
    "sg-cached": lambda: pyg.SGConv(WIDTH, OUT, K=2, cached=True),
    "ssg": lambda: pyg.SSGConv(WIDTH, OUT, alpha=0.2, K=3),
    "tag": lambda: pyg.TAGConv(WIDTH, OUT, K=2),
    "tag-unnormalised": lambda: pyg.TAGConv(WIDTH, OUT, K=2, normalize=False, flow=REVERSE),
    "appnp": lambda: pyg.APPNP(3, 0.1),
    "appnp-dropout": lambda: pyg.APPNP(2, 0.1, dropout=0.5).eval(),
    "appnp-cached": lambda: pyg.APPNP(2, 0.1, cached=True),
    "appnp-plain": lambda: pyg.APPNP(2, 0.1, add_self_loops=False, normalize=False, cached=True),
    "gcn2": lambda: pyg.GCN2Conv(WIDTH, 0.3, theta=0.5, layer=2),
    "gcn2-weights": lambda: pyg.GCN2Conv(WIDTH, 0.3, shared_weights=False, flow=REVERSE),
    "lg": lambda: pyg.LGConv(),
    "lg-unnormalised": lambda: pyg.LGConv(normalize=False, aggr="max"),
    "arma": lambda: pyg.ARMAConv(WIDTH, OUT, num_stacks=3, num_layers=2),
    "arma-shared": lambda: pyg.ARMAConv(
        WIDTH, OUT, num_layers=2, shared_weights=True, act=None, bias=False, flow=REVERSE
    ),
    "mixhop": lambda: pyg.MixHopConv(WIDTH, OUT),
    "mixhop-no-loops": lambda: pyg.MixHopConv(WIDTH, OUT, powers=[1, 3], add_self_loops=False),
    "pdn": lambda: pyg.PDNConv(WIDTH, OUT, 3, 5),
    "pdn-plain": lambda: pyg.PDNConv(WIDTH, OUT, 3, 5, add_self_loops=False, bias=False),
    "cheb": lambda: pyg.ChebConv(WIDTH, OUT, K=3),
    "cheb-rw": lambda: pyg.ChebConv(WIDTH, OUT, K=4, normalization="rw", bias=False),
    "cheb-none": lambda: pyg.ChebConv(WIDTH, OUT, K=3, normalization=None),
    "cheb-one": lambda: pyg.ChebConv(WIDTH, OUT, K=1),
    "cheb-reverse": lambda: pyg.ChebConv(WIDTH, OUT, K=2, flow=REVERSE),
    "cluster": lambda: pyg.ClusterGCNConv(WIDTH, OUT, diag_lambda=0.7),
    "cluster-plain": lambda: pyg.ClusterGCNConv(WIDTH, OUT),
    "le": lambda: pyg.LEConv(WIDTH, OUT),
    "le-mean": lambda: pyg.LEConv(WIDTH, OUT, aggr="mean", bias=False),
    "le-max": lambda: pyg.LEConv(WIDTH, OUT, aggr="max", flow=REVERSE),
    "le-power": lambda: pyg.LEConv(WIDTH, OUT, aggr="powermean"),
    "hyper": lambda: pyg.HypergraphConv(WIDTH, OUT),
    "hyper-mean": lambda: pyg.HypergraphConv(WIDTH, OUT, aggr="mean", bias=False),
    "general": lambda: pyg.GeneralConv(WIDTH, OUT),
    "general-both": lambda: pyg.GeneralConv(
        WIDTH, OUT, aggr="mean", directed_msg=False, heads=3, l2_normalize=True
    ),
    "general-max": lambda: pyg.GeneralConv(WIDTH, OUT, aggr="max", directed_msg=False),
    "general-sum": lambda: pyg.GeneralConv(WIDTH, OUT, directed_msg=False, flow=REVERSE),
    "pna": lambda: pna(["mean", "max", "min", "std"], SCALERS[:3]),
    "pna-all": lambda: pna(ALL, SCALERS, towers=2, post_layers=2),
    "pna-divided": lambda: pna(["var", "sum"], ["linear"], towers=2, divide_input=True),
    "pna-trained": lambda: pna(["sum"], SCALERS, train_norm=True, flow=REVERSE),
    "pna-deep": lambda: pna(["mean", "max"], ["identity"], pre_layers=2),
    "gen": lambda: pyg.GENConv(WIDTH, OUT, norm="layer"),
    "gen-learned": lambda: pyg.GENConv(
        WIDTH, OUT, learn_t=True, t=0.3, msg_norm=True, learn_msg_scale=True, norm="layer"
    ),
    "gen-semi": lambda: pyg.GENConv(WIDTH, WIDTH, aggr="softmax_sg", t=2.0, norm="layer"),
    "gen-power": lambda: pyg.GENConv(WIDTH, OUT, aggr="power", p=2.0, learn_p=True, norm="layer"),
    "gen-several": lambda: pyg.GENConv(WIDTH, OUT, aggr=["softmax", "std", "max"], norm="layer"),
    "film": lambda: pyg.FiLMConv(WIDTH, OUT, act=None),
    "film-relations": lambda: pyg.FiLMConv(WIDTH, OUT, RELATIONS, act=None, aggr="sum"),
    "film-relu": lambda: pyg.FiLMConv(WIDTH, OUT),
}
AGGREGATIONS: dict[str, Callable[[], Any]] = {
    "var": lambda: "var",
    "std": lambda: "std",
    "var-semi": lambda: aggr.VarAggregation(semi_grad=True),
    "std-semi": lambda: aggr.StdAggregation(semi_grad=True),
    "softmax": lambda: "softmax",
    "softmax-channels": lambda: aggr.SoftmaxAggregation(t=0.5, learn=True, channels=WIDTH),
    "powermean": lambda: "powermean",
    "powermean-channels": lambda: aggr.PowerMeanAggregation(p=3.0, learn=True, channels=WIDTH),
    "variance-preserving": lambda: aggr.VariancePreservingAggregation(),
    "several": lambda: ["mean", "max", "std", "sum", "softmax", "powermean"],
    "several-sum": lambda: aggr.MultiAggregation(["mean", "var"], mode="sum"),
    "several-projected": lambda: aggr.MultiAggregation(
        ["mean", "min"], mode="proj", mode_kwargs={"in_channels": WIDTH, "out_channels": WIDTH}
    ),
    "scaled": lambda: aggr.DegreeScalerAggregation(["mean", "std"], SCALERS, DEGREES),
    "scaled-one": lambda: aggr.DegreeScalerAggregation(
        aggr.SoftmaxAggregation(), SCALERS[1:3], DEGREES
    ),
}
for _name, _make in AGGREGATIONS.items():
    CONFIGURATIONS[f"aggr-{_name}"] = lambda make=_make: pyg.SimpleConv(make())  # type: ignore[misc]
STOCK = {
    *("mf-reverse", "wl-reverse", "cheb-reverse", "sg-cached", "le-power", "pna-deep"),
    "film-relu",
}
FIRST = [name for name in CONFIGURATIONS if "-" not in name]
CASES = [
    *((name, "multigraph") for name in CONFIGURATIONS),
    *((name, graph) for name in FIRST for graph in ("Cora", "MUTAG", "IMDB-MULTI")),
]


def test_every_recipe_is_tried() -> None:
    tried = {type(make()) for make in CONFIGURATIONS.values()}
    elsewhere = {pyg.GCNConv, pyg.SAGEConv, pyg.GINConv, pyg.GraphConv}  # test_equal.py
    elsewhere |= {pyg.LabelPropagation, SparseLinear}  # test_rows_of_models.py
    elsewhere |= {c for c, recipe in RECIPES.items() if recipe.attention is not None}
    assert tried | elsewhere == set(RECIPES)


def assert_close(ours: Tensor, stock: Tensor) -> None:
    assert ours.shape == stock.shape
    assert ours.dtype == stock.dtype
    if stock.numel():
        bound = 1e-10 * max(1.0, stock.abs().max().item())
        assert (ours - stock).abs().max().item() <= bound


def run(conv: nn.Module, leaves: list[Tensor], *arguments: Any) -> list[Tensor]:
    """The output, then the gradients of the inputs and of all parameters."""
    leaves = [*leaves, *conv.parameters()]
    for leaf in leaves:
        leaf.grad = None
    y = conv(*arguments)
    if y.requires_grad:
        weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        (y * weight).sum().backward()
    return [y.detach(), *(torch.zeros(0) if p.grad is None else p.grad.clone() for p in leaves)]


def variants(conv: Any, x: Tensor, graph: Any) -> tuple[list[Any], list[Any]]:
    """Arguments of a call with tensors, and the same with HAGs."""
    edges, n = graph.edge_index, graph.num_src
    size = (n, n)
    if isinstance(conv, pyg.SignedConv):
        other = edges[:, ::3].contiguous()
        hags = [hp.build_hag(e, num_nodes=n) for e in (edges, other)]
        return [x, edges, other], [x, *hags]
    if isinstance(conv, pyg.HypergraphConv):
        edges = torch.stack([edges[0], edges[1] // 2])
        weight = torch.rand(int(edges[1].max()) + 1, dtype=x.dtype)
        hag = hp.build_hag(edges, size=(n, len(weight)))
        return [x, edges, weight], [x, hag, weight]
    if getattr(conv, "num_relations", 1) > 1:
        types = torch.randint(RELATIONS, (edges.shape[1],))
        return [x, edges, types], [x, relation_hags(edges, types, RELATIONS, size)]
    first = [x, x.detach().flip(0)] if isinstance(conv, pyg.GCN2Conv) else [x]
    return [*first, edges], [*first, hp.build_hag(edges, num_nodes=n)]


@pytest.mark.mostly_slow("*-multigraph")
@pytest.mark.parametrize(("name", "graph"), CASES, indirect=["graph"])
def test_layer_equals_stock(name: str, graph: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = CONFIGURATIONS[name]().double()
    accelerated = accelerate(copy.deepcopy(stock))
    x = torch.randn(graph.num_src, WIDTH, dtype=torch.float64).requires_grad_()
    plain, handed = variants(stock, x, graph)
    assert explain(accelerated)[0].accelerated == (name not in STOCK), explain(accelerated)
    with torch.no_grad():
        stock(*plain), accelerated(*plain)  # a layer with a cache fills it
    expected = run(stock, [x], *plain)
    calls = count_calls(type(stock), monkeypatch)
    for arguments in (handed, plain, plain):  # tensors: came back, then known
        for ours, theirs in zip(run(accelerated, [x], *arguments), expected, strict=True):
            assert_close(ours, theirs)
    assert bool(calls) == (name in STOCK - {"sg-cached"})


@pytest.mark.parametrize("name", sorted(STOCK))
def test_reasons_are_those_of_the_page(name: str) -> None:
    """What explain says is a condition that docs/layers.md names, or an aggregation."""
    conv = accelerate(CONFIGURATIONS[name]())
    stock = stock_class(conv)
    reason = explain(conv)[0].reason
    held = [c for c in RECIPES[stock].conditions if c.holds(conv)]
    needs = [c.needs for c in held if reason.startswith(c.reason(conv))]
    row = next(row for row in layers() if row.name == stock.__name__)
    assert reason.startswith("aggr=") if not needs else all(n in row.eligible_when for n in needs)


def count_calls(stock: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each call of a stock class's `propagate`."""
    calls: list[int] = []
    propagate = stock.propagate
    monkeypatch.setattr(stock, "propagate", lambda *a, **k: calls.append(1) or propagate(*a, **k))
    return calls


# Around a layer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIRST)
def test_copies_and_weights(name: str, awkward: Any) -> None:
    stock = CONFIGURATIONS[name]().double().eval()
    ours = accelerate(CONFIGURATIONS[name]().double().eval())
    ours.load_state_dict(stock.state_dict(), strict=True)
    stock.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(awkward.num_src, WIDTH, dtype=torch.float64)
    plain, handed = variants(stock, x, awkward)
    expected = stock(*plain)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(twin) is type(ours)
        for arguments in (handed, plain, plain):
            assert_close(twin(*arguments), expected)
        assert twin._hag_session.num_hags > 0
    assert type(restore(ours)) is type(stock)
    assert_close(ours(*plain), expected)


@pytest.mark.parametrize("name", [name for name in FIRST if name != "mf"])  # stock cannot
def test_autocast(name: str, awkward: Any) -> None:
    stock = CONFIGURATIONS[name]().eval()
    ours = accelerate(copy.deepcopy(stock))
    x = torch.randn(awkward.num_src, WIDTH)
    plain, handed = variants(stock, x, awkward)
    handed = [h.float() if isinstance(h, Tensor) and h.is_floating_point() else h for h in handed]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, y = stock(*plain), ours(*handed)
    assert y.dtype == expected.dtype
    scale = expected.float().abs().max()
    assert (y.float() - expected.float()).abs().max() <= 0.05 * scale


@pytest.mark.mostly_slow("lg", "rgcn")
@pytest.mark.parametrize("name", FIRST)
def test_compile_fullgraph(name: str) -> None:
    """Few compilations for HAGs of many sizes."""
    torch._dynamo.reset()
    stock = CONFIGURATIONS[name]().double().eval()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(accelerate(copy.deepcopy(stock)), backend=counter, fullgraph=True)
    for nodes in (31, 40, 55):

        class Graph:
            edge_index = torch.randint(nodes, (2, 4 * nodes))
            num_src = nodes

        x = torch.randn(nodes, WIDTH, dtype=torch.float64)
        plain, handed = variants(stock, x, Graph)
        assert_close(compiled(*handed), stock(*plain))
    assert counter.frame_count <= 2


# Wrong graphs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIRST)
def test_wrong_number_of_rows(name: str, awkward: Any) -> None:
    conv = accelerate(CONFIGURATIONS[name]())
    x = torch.randn(awkward.num_src, WIDTH)
    _, handed = variants(conv, x, awkward)
    rest = handed[1:] if name != "gcn2" else [x[:-3], *handed[2:]]
    with pytest.raises(ValueError, match=r"rows|nodes|size"):
        conv(x[:-3], *rest)


def test_device(awkward: Any) -> None:
    hag = hp.build_hag(awkward.edge_index, num_nodes=awkward.num_src).to("meta")
    for name in ("pna", "gated", "le", "cheb"):
        with pytest.raises((ValueError, RuntimeError), match="meta"):
            accelerate(CONFIGURATIONS[name]())(torch.randn(awkward.num_src, WIDTH), hag)
