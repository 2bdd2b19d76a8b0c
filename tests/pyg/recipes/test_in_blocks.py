"""Layers whose messages come in blocks of edges equal stock, and make no tensor of edges."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch_geometric import nn as pyg

import hag_plugin as hp
from hag_plugin.pyg import accelerate, explain, restore
from hag_plugin.pyg.recipes.forms import FORMS
from hag_plugin.testing import limits

from ...cases import draw_graph
from ...equality import assert_same, with_gradients
from ..conftest import Graph

WIDTH, OUT, EDGE = 6, 4, 3
Make = Callable[[], nn.Module]
DEGREES = torch.tensor([2, 5, 3, 1])
# 64 edges a block.
SMALL = {"block_edges": 0, "block_messages": 0, "block_matrix": 0, "block_bytes": 1}


def mlp(*widths: int, act: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    parts = [part for pair in pairwise(widths) for part in (nn.Linear(*pair), act())]
    return nn.Sequential(*parts[:-1])


def pna(**how: Any) -> nn.Module:
    aggregators = how.pop("aggregators", ["mean", "max", "std"])
    scalers = ["identity", "amplification", "attenuation"]
    return pyg.PNAConv(WIDTH, 6, aggregators, scalers, DEGREES, **how)


def in_evaluation(conv: nn.Module) -> nn.Module:
    return conv.eval()


# By what they are given beside features and edges.
ALONE: dict[str, Make] = {
    "gated": lambda: pyg.ResGatedGraphConv(WIDTH, OUT),
    "gated-act": lambda: pyg.ResGatedGraphConv(WIDTH, OUT, act=nn.Tanh(), root_weight=False),
    "gated-max": lambda: pyg.ResGatedGraphConv(WIDTH, OUT, aggr="max"),
    "edge": lambda: pyg.EdgeConv(mlp(2 * WIDTH, 8, OUT)),
    "edge-linear": lambda: pyg.EdgeConv(nn.Linear(2 * WIDTH, OUT), aggr="mean"),
    "edge-sum": lambda: pyg.EdgeConv(pyg.MLP([2 * WIDTH, 8, OUT], norm=None), aggr="add"),
    "edge-normed": lambda: pyg.EdgeConv(
        nn.Sequential(nn.Linear(2 * WIDTH, 8), nn.LayerNorm(8), nn.PReLU(), nn.Linear(8, OUT))
    ),
    "edge-activation-first": lambda: pyg.EdgeConv(
        nn.Sequential(nn.Tanh(), nn.Linear(2 * WIDTH, OUT))
    ),
    "edge-counted": lambda: in_evaluation(
        pyg.EdgeConv(nn.Sequential(nn.Linear(2 * WIDTH, OUT), nn.BatchNorm1d(OUT), nn.Dropout(0.5)))
    ),
    "edge-several": lambda: pyg.EdgeConv(
        mlp(2 * WIDTH, OUT), aggr=pyg.MultiAggregation(["sum", "std", "max"])
    ),
    "edge-softmax": lambda: pyg.EdgeConv(
        mlp(2 * WIDTH, OUT), aggr=pyg.SoftmaxAggregation(learn=True)
    ),
    "cg": lambda: pyg.CGConv(WIDTH),
    "film": lambda: pyg.FiLMConv(WIDTH, OUT),
    "film-tanh": lambda: pyg.FiLMConv(WIDTH, OUT, act=nn.Tanh(), aggr="add"),
    "pna-both": lambda: pna(pre_layers=2, towers=2, divide_input=True),
}
EDGES: dict[str, Make] = {
    "gated-edges": lambda: pyg.ResGatedGraphConv(WIDTH, OUT, edge_dim=EDGE),
    "gated-edges-mean": lambda: pyg.ResGatedGraphConv(
        WIDTH, OUT, edge_dim=EDGE, aggr="mean", bias=False
    ),
    "gine": lambda: pyg.GINEConv(mlp(WIDTH, OUT), edge_dim=EDGE, train_eps=True),
    "gine-mean": lambda: pyg.GINEConv(mlp(WIDTH, OUT), edge_dim=EDGE, aggr="mean"),
    "gen": lambda: pyg.GENConv(WIDTH, OUT, edge_dim=EDGE),
    "gen-learned": lambda: pyg.GENConv(WIDTH, OUT, edge_dim=EDGE, learn_t=True, bias=True),
    "gen-powermean": lambda: pyg.GENConv(WIDTH, OUT, edge_dim=EDGE, aggr="powermean", learn_p=True),
    "gen-sum": lambda: pyg.GENConv(WIDTH, OUT, edge_dim=EDGE, aggr="add"),
    "pna": lambda: pna(edge_dim=EDGE),
    "pna-towers": lambda: pna(edge_dim=EDGE, towers=2, divide_input=True, pre_layers=2),
    "pna-one": lambda: pna(edge_dim=EDGE, aggregators=["sum"], towers=3),
    "cg-edges": lambda: pyg.CGConv(WIDTH, dim=EDGE),
    "cg-edges-bare": lambda: pyg.CGConv(WIDTH, dim=EDGE, aggr="mean", bias=False),
    "nn": lambda: pyg.NNConv(WIDTH, OUT, mlp(EDGE, 5, WIDTH * OUT)),
    "nn-max": lambda: pyg.NNConv(WIDTH, OUT, nn.Linear(EDGE, WIDTH * OUT), aggr="max"),
    "gmm": lambda: pyg.GMMConv(WIDTH, OUT, dim=EDGE, kernel_size=2),
    "gmm-separate": lambda: pyg.GMMConv(
        WIDTH, OUT, dim=EDGE, kernel_size=2, separate_gaussians=True, aggr="add"
    ),
    "general-edges": lambda: pyg.GeneralConv(WIDTH, OUT, in_edge_channels=EDGE),
    "general-edges-mean": lambda: pyg.GeneralConv(
        WIDTH, OUT, in_edge_channels=EDGE, aggr="mean", directed_msg=False
    ),
}
POINTS: dict[str, Make] = {
    "point": lambda: pyg.PointNetConv(mlp(WIDTH + 3, 8, OUT), nn.Linear(OUT, 5)),
    "point-no-loops": lambda: pyg.PointNetConv(mlp(WIDTH + 3, OUT), add_self_loops=False),
    "point-graph": lambda: pyg.PointGNNConv(mlp(WIDTH, 3), mlp(3 + WIDTH, 8, OUT), mlp(OUT, WIDTH)),
}
NORMALS: dict[str, Make] = {"pairs": lambda: pyg.PPFConv(mlp(WIDTH + 4, 8, OUT))}
LAYERS = ALONE | EDGES | POINTS | NORMALS
BIPARTITE = [
    *("gated", "edge", "edge-linear", "cg", "film", "gated-edges", "gine", "gen"),
    *("cg-edges", "nn", "gmm", "general-edges"),
]
FIRST = [name for name in LAYERS if "-" not in name or name.endswith("-edges")]
STOCK: dict[str, tuple[Make, str]] = {
    "dropout": (
        lambda: pyg.EdgeConv(nn.Sequential(nn.Linear(2 * WIDTH, OUT), nn.Dropout(0.5))),
        "draws for all edges at once",
    ),
    "batch-norm": (
        lambda: pyg.EdgeConv(nn.Sequential(nn.Linear(2 * WIDTH, OUT), nn.BatchNorm1d(OUT))),
        "normalised over all edges at once",
    ),
    "mlp-batch-norm": (
        lambda: pyg.EdgeConv(pyg.MLP([2 * WIDTH, 8, OUT])),
        "normalised over all edges at once",
    ),
    "median": (lambda: pyg.EdgeConv(mlp(2 * WIDTH, OUT), aggr="median"), "is left to stock"),
    "function": (lambda: pyg.FiLMConv(WIDTH, OUT, act=lambda x: x - x.mean(0)), "is a function"),
    "unknown": (
        lambda: pyg.EdgeConv(nn.Sequential(nn.Linear(2 * WIDTH, OUT), nn.Softmax(dim=0))),
        "may see several edges at once",
    ),
    "relations": (lambda: pyg.FiLMConv(WIDTH, OUT, num_relations=2), "for each relation"),
}


@pytest.fixture(autouse=True)
def small_blocks() -> Iterator[None]:
    """Small graphs take several blocks."""
    with limits(**SMALL):
        yield


def hubs(num_edges: int = 900, num_nodes: int = 40, num_src: int | None = None) -> Tensor:
    """With a hub of many more edges than a block, loops, duplicates and isolated nodes."""
    source = torch.randint(0, num_src or num_nodes - 3, (num_edges,))
    target = torch.randint(0, num_nodes - 3, (num_edges,))
    target[: num_edges // 3] = 5
    return torch.stack([source, target])[:, torch.randperm(num_edges)]


def arguments(name: str, x: Any, edge_index: Tensor, dtype: torch.dtype) -> list[Any]:
    num_edges, num_nodes = edge_index.shape[1], len(x[0] if isinstance(x, tuple) else x)
    if name in EDGES:
        return [x, edge_index, torch.rand(num_edges, EDGE, dtype=dtype)]
    if name in POINTS:
        return [x, torch.randn(num_nodes, 3, dtype=dtype), edge_index]
    if name in NORMALS:
        positions = torch.randn(2, num_nodes, 3, dtype=dtype)
        return [x, positions[0], nn.functional.normalize(positions[1], dim=-1), edge_index]
    return [x, edge_index]


def run(conv: nn.Module, given: list[Any]) -> list[Tensor | None]:
    """The output, then the gradients of all inputs and parameters."""
    leaves: list[Tensor] = []

    def taken(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(taken, value))
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        leaves.append(value.detach().requires_grad_())
        return leaves[-1]

    values = list(map(taken, given))
    conv.zero_grad()
    y = conv(*values)
    return with_gradients(y, [*leaves, *conv.parameters()])


def twins(make: Make, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    stock = make().to(dtype)
    return stock, accelerate(copy.deepcopy(stock))


def counts(conv: nn.Module) -> dict[Any, int]:
    return dict(explain(conv)[0].calls.counts)


def test_every_form_is_tried() -> None:
    assert {type(make()) for make in LAYERS.values()} == set(FORMS) - {pyg.DynamicEdgeConv}


@pytest.mark.parametrize("name", LAYERS)
def test_equal_to_stock(name: str) -> None:
    stock, ours = twins(LAYERS[name])
    x = torch.randn(40, WIDTH, dtype=torch.float64)
    given = arguments(name, x, hubs(), torch.float64)
    assert_same(run(ours, given), run(stock, given), 1e-12)
    assert counts(ours) == {"blocks": 1}
    with torch.no_grad():
        assert_same([ours(*given)], [stock(*given)], 1e-12)
    assert counts(ours) == {"blocks": 2}


@pytest.mark.parametrize("name", [n for n in LAYERS if n not in POINTS | NORMALS])
def test_against_the_edges(name: str) -> None:
    """With flow="target_to_source", whatever then runs."""
    stock, ours = twins(LAYERS[name])
    stock.flow = ours.flow = "target_to_source"
    x = torch.randn(40, WIDTH, dtype=torch.float64)
    given = arguments(name, x, hubs(), torch.float64)
    assert_same(run(ours, given), run(stock, given), 1e-12)


@pytest.mark.parametrize("name", ["gated", "edge", "cg-edges", "gine", "gen", "pna", "nn", "gmm"])
@pytest.mark.parametrize("graph", ["Cora", "IMDB-MULTI"], indirect=True)
def test_real_graphs(name: str, graph: Graph) -> None:
    stock, ours = twins(LAYERS[name])
    x = torch.randn(graph.num_dst, WIDTH, dtype=torch.float64)
    given = arguments(name, x, graph.edge_index, torch.float64)
    with limits(**SMALL | {"block_bytes": 1 << 16}):
        assert_same(run(ours, given), run(stock, given), 1e-12)
    assert counts(ours) == {"blocks": 1}


@pytest.mark.parametrize("name", BIPARTITE)
def test_bipartite(name: str) -> None:
    make: dict[str, Make] = {
        "gated": lambda: pyg.ResGatedGraphConv((WIDTH, 5), OUT),
        "gated-edges": lambda: pyg.ResGatedGraphConv((WIDTH, 5), OUT, edge_dim=EDGE),
        "cg": lambda: pyg.CGConv((WIDTH, 5)),
        "cg-edges": lambda: pyg.CGConv((WIDTH, 5), dim=EDGE),
        "film": lambda: pyg.FiLMConv((WIDTH, 5), OUT),
        "general-edges": lambda: pyg.GeneralConv((WIDTH, 5), OUT, in_edge_channels=EDGE),
        "gen": lambda: pyg.GENConv((WIDTH, 5), OUT, edge_dim=EDGE),
        "nn": lambda: pyg.NNConv((WIDTH, 5), OUT, nn.Linear(EDGE, WIDTH * OUT)),
        "gmm": lambda: pyg.GMMConv((WIDTH, 5), OUT, dim=EDGE, kernel_size=2),
    }
    stock, ours = twins(make.get(name, LAYERS[name]))
    width = 5 if name in make else WIDTH
    x = (
        torch.randn(70, WIDTH, dtype=torch.float64),
        torch.randn(40, width, dtype=torch.float64),
    )
    given = arguments(name, x, hubs(num_src=70), torch.float64)
    assert_same(run(ours, given), run(stock, given), 1e-12)
    assert counts(ours) == {"blocks": 1}


@pytest.mark.parametrize("name", FIRST)
@settings(max_examples=15)
@given(data=st.data())
def test_hostile_graphs(name: str, data: st.DataObject) -> None:
    edge_index, num_nodes, _ = draw_graph(data, square=True)
    with limits(**SMALL):
        stock, ours = twins(LAYERS[name])
        x = torch.randn(num_nodes, WIDTH, dtype=torch.float64)
        edge_index = edge_index.repeat(1, data.draw(st.sampled_from([1, 5])))
        given = arguments(name, x, edge_index, torch.float64)
        try:
            expected = run(stock, given)
        except ValueError:  # of batch normalisation, behind the messages
            with pytest.raises(ValueError, match="Expected more than 1 value"):
                run(ours, given)
            return
        assert_same(run(ours, given), expected, 1e-12)


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite(name: str, value: float) -> None:
    stock, ours = twins(LAYERS[name])
    x, edge_index = torch.randn(40, WIDTH, dtype=torch.float64), hubs()
    x[7, 2] = x[39] = value  # the last one is isolated
    given = arguments(name, x, edge_index, torch.float64)
    with torch.no_grad():
        assert_same([ours(*given)], [stock(*given)], 1e-12)
    for one, other in zip(run(ours, given), run(stock, given), strict=True):
        if one is not None and other is not None:
            assert torch.equal(one.isfinite(), other.isfinite())


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 2e-5), (torch.bfloat16, 0.2), (torch.float16, 0.03)]
)
def test_other_dtypes(name: str, dtype: torch.dtype, bound: float) -> None:
    stock, ours = twins(LAYERS[name], dtype)
    given = arguments(name, torch.randn(40, WIDTH).to(dtype), hubs(300), dtype)
    try:
        expected = run(stock, given)
    except RuntimeError as error:
        with pytest.raises(RuntimeError, match=str(error)[:20]):
            run(ours, given)
        return
    assert_same(run(ours, given), expected, bound)


class Largest(TorchDispatchMode):
    """The most numbers of a tensor that an operator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, Tensor) and each.is_floating_point():
                self.numbers = max(self.numbers, each.numel())
        return out


@pytest.mark.parametrize("name", LAYERS)
def test_makes_no_tensor_of_edges(name: str) -> None:
    stock, ours = twins(LAYERS[name], torch.float32)
    num_edges, num_nodes = 6000, 60
    edge_index = torch.stack([torch.arange(num_edges) * 7, torch.arange(num_edges)]) % num_nodes
    given = arguments(name, torch.randn(num_nodes, WIDTH), edge_index, torch.float32)
    found = []
    for conv in (stock, ours):
        with Largest() as largest:
            run(conv, given)
        found.append(largest.numbers)
    assert counts(ours) == {"blocks": 1}
    of_user = num_edges * EDGE if name in EDGES else 0
    assert found[0] >= num_edges * OUT
    assert found[1] <= max(of_user, num_edges * OUT // 2)


@pytest.mark.parametrize("name", STOCK)
def test_what_must_see_all_edges_is_left_to_stock(name: str) -> None:
    make, reason = STOCK[name]
    stock, ours = twins(make)
    given = [torch.randn(40, WIDTH, dtype=torch.float64), hubs()]
    if name == "relations":
        given.append(torch.arange(900) % 2)
    torch.manual_seed(1)
    expected = stock(*given)
    torch.manual_seed(1)
    assert torch.equal(ours(*given), expected)
    row = explain(ours)[0]
    assert "blocks" not in row.calls.counts
    assert name == "relations" or reason in row.calls.reasons["stock"]
    assert reason in row.reason or name == "relations"


def test_hooks_autocast_explain_and_chunks_see_stock() -> None:
    given = [torch.randn(40, WIDTH), hubs()]
    seen: list[Any] = []

    def hooked(conv: Any) -> None:
        conv.nn[0].register_forward_hook(lambda module, args, out: seen.append(len(out)))

    def watched(conv: Any) -> None:
        conv.register_message_forward_hook(lambda module, args, out: seen.append(len(out)))

    for prepare in (hooked, watched):
        _, ours = twins(LAYERS["edge"], torch.float32)
        prepare(ours)
        ours(*given)
        assert counts(ours) == {"stock": 1}
    assert seen == [900, 900]
    stock, ours = twins(LAYERS["edge"], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(*given), stock(*given))
    assert counts(ours) == {"stock": 1}
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: None)
    try:
        ours(*given)
    finally:
        handle.remove()
    assert counts(ours) == {"stock": 2}
    ours.explain = True
    with pytest.raises(ValueError, match="edge_mask"):
        ours(*given)
    ours.explain = None
    ours(*given)
    assert counts(ours) == {"stock": 2, "blocks": 1}


@pytest.mark.parametrize("name", ["edge", "gated-edges", "gine", "pna", "gmm", "gen-learned"])
def test_second_derivatives(name: str) -> None:
    def second(conv: nn.Module) -> list[Tensor]:
        conv.zero_grad()
        leaves = [g.detach().requires_grad_() if g.is_floating_point() else g for g in given]
        floats = [leaf for leaf in leaves if leaf.is_floating_point()]
        firsts = torch.autograd.grad(conv(*leaves).sin().sum(), floats, create_graph=True)
        torch.stack([first.square().sum() for first in firsts]).sum().backward()
        wanted = [*floats, *conv.parameters()]
        return [torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in wanted]

    stock, ours = twins(LAYERS[name])
    given = arguments(name, torch.randn(40, WIDTH, dtype=torch.float64), hubs(), torch.float64)
    assert_same(list(second(ours)), list(second(stock)), 1e-10)
    assert counts(ours) == {"blocks": 1}


def test_forward_mode_and_transforms_run_stock() -> None:
    stock, ours = twins(LAYERS["edge"])
    x, edge_index = torch.randn(40, WIDTH, dtype=torch.float64), hubs()
    tangent = torch.randn_like(x)
    found, expected = (
        torch.func.jvp(lambda x, conv=conv: conv(x, edge_index), (x,), (tangent,))
        for conv in (ours, stock)
    )
    torch.testing.assert_close(found, expected)
    assert "blocks" not in counts(ours)


def test_a_tensor_in_place_of_a_parameter_gets_its_gradient() -> None:
    stock, ours = twins(lambda: pyg.EdgeConv(mlp(2 * WIDTH, 8, OUT)))
    given = [torch.randn(40, WIDTH, dtype=torch.float64), hubs()]
    found = []
    for conv in (stock, ours):
        last: Any = conv.nn[2]
        weight = last.weight.detach().clone().requires_grad_()
        del last.weight
        last.weight = weight * 2
        conv(*given).sum().backward()
        found.append(weight.grad)
    torch.testing.assert_close(found[1], found[0])
    values = {name: p.detach().clone().requires_grad_() for name, p in twins(
        LAYERS["edge"])[0].named_parameters()}  # fmt: skip
    sums = []
    for conv in twins(LAYERS["edge"]):
        out = torch.func.functional_call(conv, values, tuple(given))
        sums.append(torch.autograd.grad(out.sin().sum(), list(values.values())))
    torch.testing.assert_close(sums[1], sums[0])


def test_wrong_widths_are_refused_as_stock_refuses_them() -> None:
    x, edge_index = torch.randn(40, WIDTH, dtype=torch.float64), hubs()
    for make, rest in (
        (lambda: pyg.CGConv(WIDTH, dim=EDGE), ()),
        (lambda: pna(edge_dim=EDGE), ()),
        (lambda: pyg.ResGatedGraphConv(WIDTH, OUT, edge_dim=EDGE), (torch.rand(900, 2).double(),)),
        (lambda: pyg.EdgeConv(nn.Linear(WIDTH, OUT)), ()),
        (lambda: pyg.GINEConv(mlp(WIDTH, OUT)), (torch.rand(900, EDGE).double(),)),
    ):
        for conv in twins(make):
            with pytest.raises((RuntimeError, ValueError, AssertionError)):
                conv(x, edge_index, *rest)
    for conv in twins(LAYERS["edge"]):
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            conv(x, edge_index + 30)


def test_explain_tells_of_blocks() -> None:
    _, ours = twins(LAYERS["gine"], torch.float32)
    given = arguments("gine", torch.randn(40, WIDTH), hubs(), torch.float32)
    assert "large calls run in blocks of edges" in explain(ours)[0].reason
    with limits(block_edges=10_000):
        ours(*given)
    assert counts(ours) == {"stock": 1}
    ours(*given)
    row = explain(ours)[0]
    assert row.calls.counts == {"stock": 1, "blocks": 1}
    assert row.calls.reasons["blocks"] == "in blocks of edges: its message, block by block"
    assert "1 blocks (in blocks of edges" in str(explain(ours))


def test_restored_copied_and_saved() -> None:
    stock, ours = twins(LAYERS["cg-edges"])
    given = arguments("cg-edges", torch.randn(40, WIDTH).double(), hubs(), torch.float64)
    expected = run(stock, given)
    for conv in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        conv = accelerate(conv)
        assert_same(run(conv, given), expected, 1e-12)
        assert counts(conv) == {"blocks": 1}
    run(ours, given)
    back = restore(ours)
    assert type(back) is pyg.CGConv
    assert_same(run(back, given), expected, 0.0)


def test_sampled_batches_leave_nothing() -> None:
    _, ours = twins(LAYERS["edge"], torch.float32)
    session: Any = ours._hag_session
    for _ in range(5):
        run(ours, [torch.randn(40, WIDTH), hubs()])
    gc.collect()
    assert counts(ours) == {"blocks": 5}
    assert len(session.verdicts) == 0
    edge_index = hubs()
    for _ in range(2):
        run(ours, [torch.randn(40, WIDTH), edge_index])
    assert len(session.verdicts) == 1
    edge_index[:] = edge_index.flip(1)  # written to: sorted anew
    stock = hp.pyg.restore(copy.deepcopy(ours))
    x = torch.randn(40, WIDTH)
    torch.testing.assert_close(ours(x, edge_index), stock(x, edge_index))


def test_checkpoints_run_the_same_again() -> None:
    stock, ours = twins(LAYERS["gated-edges"])
    x, edge_index, edge_attr = arguments(
        "gated-edges", torch.randn(40, WIDTH).double(), hubs(), torch.float64
    )

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = ours

        def forward(self, *given: Tensor) -> Any:
            return checkpoint(self.conv, *given, use_reentrant=False)

    given = [x, edge_index, edge_attr]
    assert_same(run(Checkpointed(), given), run(stock, given), 1e-12)
    assert counts(ours) == {"blocks": 1}


def test_compiled_code_runs_stock() -> None:
    stock, ours = twins(LAYERS["edge"], torch.float32)
    given = [torch.randn(40, WIDTH), hubs()]
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given), stock(*given))
    assert "blocks" not in counts(ours)


def test_any_number_of_threads_gives_the_same() -> None:
    """The same bits, but in gradients of weights: torch's own products have others there."""
    _, ours = twins(LAYERS["pna"], torch.float32)
    given = arguments("pna", torch.randn(40, WIDTH), hubs(), torch.float32)
    one = run(ours, given)
    torch.set_num_threads(2)
    pairs = list(zip(run(ours, given), one, strict=True))
    of_rows = len(pairs) - len(list(ours.parameters()))
    for number, (found, expected) in enumerate(pairs):
        assert (found is None) == (expected is None)
        if number < of_rows:
            assert found is None or torch.equal(found, expected)
        else:
            torch.testing.assert_close(found, expected)


def test_small_matrices_of_edges_are_left_to_stock_in_training() -> None:
    conv = accelerate(pyg.NNConv(4, 4, nn.Linear(3, 16)))
    given = torch.randn(20, 4), torch.randint(20, (2, 200)), torch.randn(200, 3)
    with limits(**SMALL | {"block_matrix": 17}):
        conv(*given)
        with torch.no_grad():
            conv(*given)
    assert explain(conv)[0].calls.counts == {"stock": 1, "blocks": 1}
