"""Graphs that an accelerated DGL model meets first: only what is sure to gain is not DGL's own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

dgl = pytest.importorskip("dgl", reason="DGL is not installed")
from dgl.nn.pytorch import GINConv, GraphConv, SAGEConv  # noqa: E402

import hag_plugin as hp  # noqa: E402
from hag_plugin.dgl import explain  # noqa: E402
from hag_plugin.dgl.aggregation.choice import BACK, FIRST, MET, NOT_FINITE  # noqa: E402
from hag_plugin.testing import limits  # noqa: E402

from ..conftest import _block, _hetero, _multigraph  # noqa: E402
from ..recipes.test_layers import LAYERS, WIDTH  # noqa: E402

GRAPHS = {"graph": _multigraph, "block": _block, "int32": lambda: _multigraph(torch.int32)}


@pytest.fixture
def takes_all() -> Iterator[None]:
    """Graphs of these tests are small."""
    with limits(dgl_edges=0, dgl_row_bytes=0, dgl_gradient_bytes=0):
        yield


def features(graph: Any, width: int = WIDTH) -> Any:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(graph.num_src_nodes(), width, generator=generator)
    return x.requires_grad_(torch.is_grad_enabled())


def outcome(conv: nn.Module, graph: Any, x: Tensor, *args: Any) -> list[Tensor]:
    pair = (x, x[: graph.num_dst_nodes()]) if graph.is_block else x
    y = conv(graph, pair, *args)
    if not y.requires_grad:
        return [y]
    wanted = [x, *conv.parameters()] if x.requires_grad else [*conv.parameters()]
    grads = torch.autograd.grad(y.square().sum(), wanted, allow_unused=True)
    return [y, *(g for g in grads if g is not None)]


def kinds(conv: nn.Module) -> dict[str, str]:
    (row,) = explain(conv)
    return dict(row.calls.reasons)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("shape", GRAPHS)
@pytest.mark.parametrize("kind", ["mean", "gcn", "pool", "lstm"])
def test_sage(kind: str, shape: str, grad: bool, takes_all: None) -> None:
    graph = GRAPHS[shape]()
    stock = SAGEConv(WIDTH, 4, kind)
    ours = hp.accelerate(copy.deepcopy(stock))
    with torch.set_grad_enabled(grad):
        x = features(graph)
        expected = outcome(stock, graph, x)
        for reason in (MET, BACK):
            found = outcome(ours, graph, x)
            for mine, of_dgl in zip(found, expected, strict=True):
                torch.testing.assert_close(mine, of_dgl, rtol=1e-4, atol=1e-5)
            if kind == "lstm" or grad == (kind == "pool"):
                continue
            assert reason in kinds(ours).values()


# The others take more than features.
PLAIN = [
    n for n in LAYERS if not n.startswith(("Cheb", "DGN", "GCN2", "Rel", "Edge")) and "," not in n
]


@pytest.mark.parametrize("name", PLAIN)
def test_every_layer(name: str, takes_all: None) -> None:
    graph = _multigraph()
    torch.manual_seed(0)
    stock = LAYERS[name]()
    ours = hp.accelerate(copy.deepcopy(stock))
    for grad in (False, True):
        graph = _multigraph()
        with torch.set_grad_enabled(grad):
            x = features(graph)
            torch.manual_seed(0)
            expected = outcome(stock, graph, x)
            torch.manual_seed(0)
            found = outcome(ours, graph, x)
        for mine, of_dgl in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, of_dgl, rtol=1e-4, atol=1e-4)


def test_each_block_is_met_once(takes_all: None) -> None:
    """The reverse serves gradients, and nothing is searched."""
    stock = GraphConv(WIDTH, 8, norm="right", allow_zero_in_degree=True)
    ours = hp.accelerate(copy.deepcopy(stock))
    for seed in range(4):
        graph = dgl.rand_graph(30, 200 + seed)
        x = features(graph)
        for mine, of_dgl in zip(outcome(ours, graph, x), outcome(stock, graph, x), strict=True):
            torch.testing.assert_close(mine, of_dgl, rtol=1e-4, atol=1e-5)
    (row,) = explain(ours)
    assert row.calls.counts == {"plain": 4}


def test_values_that_are_not_finite(takes_all: None) -> None:
    graph, stock = _multigraph(), GINConv(None, "max")
    ours, x = hp.accelerate(copy.deepcopy(stock)), torch.randn(57, WIDTH)
    x[3], x[5] = float("nan"), float("-inf")
    with torch.no_grad():
        torch.testing.assert_close(ours(graph, x), stock(graph, x), equal_nan=True)
    assert kinds(ours) == {"stock": NOT_FINITE}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_that_were_not_measured_stay(dtype: torch.dtype, takes_all: None) -> None:
    graph, ours = _multigraph(), hp.accelerate(GINConv(None, "sum"))
    x = torch.randn(57, WIDTH).to(dtype).requires_grad_()
    try:
        ours(graph, x)
    except dgl.DGLError:  # DGL takes no such features here
        return
    assert kinds(ours) == {"stock": FIRST}


def test_edge_types(takes_all: None) -> None:
    graph = _hetero()
    ours, stock = (
        dgl.nn.pytorch.HeteroGraphConv(
            {etype: GraphConv(WIDTH, 4, allow_zero_in_degree=True) for etype in graph.etypes}
        )
        for _ in range(2)
    )
    ours.load_state_dict(stock.state_dict())
    hp.accelerate(ours)
    x = {ntype: torch.randn(graph.num_nodes(ntype), WIDTH) for ntype in graph.ntypes}
    for _ in range(2):
        found, expected = ours(graph, x), stock(graph, x)
        for ntype, rows in expected.items():
            torch.testing.assert_close(found[ntype], rows, rtol=1e-4, atol=1e-5)


def test_which_steps_gain() -> None:
    """Wide maxima in inference, and sums with large gradients; all else is DGL's at once."""
    graph = dgl.rand_graph(3000, 20_000)
    narrow, wide = torch.randn(3000, 8), torch.randn(3000, 256)
    large = torch.randn(3000, 3000).requires_grad_()
    for aggregator, x, grad, runs in (
        ("max", narrow, False, False),
        ("max", wide, False, True),
        ("max", large, True, False),
        ("sum", wide, False, False),
        ("sum", wide, True, False),
        ("sum", large, True, True),
    ):
        ours = hp.accelerate(GINConv(None, aggregator))
        with torch.set_grad_enabled(grad):
            ours(graph, x)
        assert kinds(ours) == ({"plain": MET} if runs else {"stock": FIRST})
    few = dgl.rand_graph(300, 900)
    ours = hp.accelerate(GINConv(None, "max"))
    with torch.no_grad():
        ours(few, wide[:300])
    assert kinds(ours) == {"stock": FIRST}
