"""The kernels against the reference, through `aggregate`."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import hag_plugin as hp
from hag_plugin.hag.gpu.schedule import schedule_of
from hag_plugin.reducers import REDUCES

from .... import reference
from .conftest import NODES, in_turn

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
WIDTHS = (1, 3, 16, 33, 64, 130)
MODES: tuple[Any, ...] = (False, "add", "fill")


def assert_equal(x: Tensor, y: Tensor, edge_index: Tensor, reduce: str, **how: Any) -> None:
    """`y` is what the reference makes of `x` in float64, up to the rounding of its dtype."""
    edge_index = edge_index.cpu()
    how = {k: v.detach().cpu().double() if isinstance(v, Tensor) else v for k, v in how.items()}
    num_dst, x64 = y.shape[-2], x.detach().cpu().double()
    expected = reference.aggregate(x64, edge_index, num_dst, reduce, **how)
    found = y.detach().cpu().double()
    if reduce in ("max", "min") and not {"source_scale", "target_scale"} & how.keys():
        assert torch.equal(found.nan_to_num(7e77), expected.nan_to_num(7e77))
        return
    absolute = {k: v.abs() if isinstance(v, Tensor) else v for k, v in how.items()}
    size = expected.abs()
    if reduce not in ("max", "min"):
        size = reference.aggregate(x64.abs(), edge_index, num_dst, reduce, **absolute)
    terms = max(edge_index.shape[1], 1)
    relative = {torch.float64: 1e-12}.get(x.dtype, 1e-6 * math.sqrt(terms))
    half = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}.get(x.dtype, 0.0)
    tolerance = relative * size + 2 * half * expected.abs() + (2.0**-23 if half else 0)
    assert ((found - expected).abs() <= tolerance).all(), (found - expected).abs().max()


@pytest.mark.parametrize(
    ("width", "dtype", "reduces"),
    in_turn(itertools.product(WIDTHS, DTYPES), (("sum", "max"), ("sum", "min"), ("mean", "max"))),
)
def test_every_width_and_dtype(
    width: int, dtype: torch.dtype, reduces: tuple[str, ...], kernel_device: str
) -> None:
    """On a graph so small that the interpreter is not busy for minutes with wide rows."""
    clique = torch.combinations(torch.arange(4)).T
    edge_index = torch.cat([clique, clique.flip(0), torch.tensor([[0, 0, 4], [1, 4, 4]])], 1)
    hag = hp.build_hag(edge_index, num_nodes=6).to(kernel_device)
    assert schedule_of(hag.program("add")).scratch_rows
    x = torch.randn(6, width).to(dtype).to(kernel_device)
    for reduce in reduces:
        y = hp.aggregate(x, hag, reduce, self_loops="add")
        assert_equal(x, y, edge_index, reduce, self_loops="add")


@pytest.mark.parametrize(("dtype", "method"), in_turn(DTYPES, ("auto", "greedy", "none")))
def test_deep_programs_and_long_rows(
    dtype: torch.dtype, method: str, graph: Tensor, kernel_device: str
) -> None:
    hag = hp.build_hag(graph, num_nodes=NODES, method=method).to(kernel_device)
    assert schedule_of(hag.program()).num_levels > 2
    x = torch.randn(NODES, 3).to(dtype).to(kernel_device)
    for reduce in REDUCES:
        assert_equal(x, hp.aggregate(x, hag, reduce), graph, reduce)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reduce", REDUCES)
def test_scales_and_loops(
    reduce: str, mode: hp.hag.SelfLoops, graph: Tensor, kernel_device: str
) -> None:
    hag = hp.build_hag(graph, num_nodes=NODES).to(kernel_device)
    x = torch.randn(NODES, 5, device=kernel_device)
    source_scale, target_scale = torch.randn(2, NODES, device=kernel_device)
    one = {"source_scale": source_scale}, {"target_scale": target_scale}
    alone = one[(REDUCES.index(reduce) + MODES.index(mode)) % 2]
    for scales in (alone, {"source_scale": source_scale, "target_scale": target_scale}):
        y = hp.aggregate(x, hag, reduce, self_loops=mode, **scales)
        assert_equal(x, y, graph, reduce, self_loops=mode, **scales)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_subtraction(dtype: torch.dtype, graph: Tensor, kernel_device: str) -> None:
    hag = hp.build_hag(graph, num_nodes=NODES, allow_subtraction=True).to(kernel_device)
    assert hag.program().diagonal == -1
    x, scale = torch.randn(NODES, 5).to(dtype).to(kernel_device), torch.randn(NODES)
    y = hp.aggregate(x, hag, source_scale=scale.to(kernel_device))
    closed = torch.cat([graph, torch.arange(NODES).expand(2, -1)], 1)
    # The terms that are rounded are those of A + I.
    size = reference.aggregate(x.cpu().double().abs(), closed, NODES, source_scale=scale.abs())
    expected = reference.aggregate(x.cpu().double(), graph, NODES, source_scale=scale)
    assert ((y.cpu().double() - expected).abs() <= 2.0**-6 * size).all()


def test_nan_and_infinity(graph: Tensor, kernel_device: str) -> None:
    hag = hp.build_hag(graph, num_nodes=NODES).to(kernel_device)
    x = torch.randn(NODES, 4)
    x[2, 0], x[3, 1], x[4, 2], x[:, 3] = math.nan, math.inf, -math.inf, -math.inf
    for reduce in ("sum", "max", "min"):
        y = hp.aggregate(x.to(kernel_device), hag, reduce).cpu()
        expected = reference.aggregate(x, graph, NODES, reduce)
        torch.testing.assert_close(y, expected, equal_nan=True)
        assert reduce == "sum" or torch.equal(y.isnan(), expected.isnan())


def test_batches_and_strides(graph: Tensor, kernel_device: str) -> None:
    hag = hp.build_hag(graph, num_nodes=NODES).to(kernel_device)
    wide = torch.randn(2, 2, NODES, 8, device=kernel_device)
    turned = torch.randn(5, NODES, device=kernel_device).T
    spread = torch.randn(3, 1, 5, device=kernel_device).expand(3, NODES, 5)
    for x in (wide, wide[:, 0, :, 3:8], turned, spread, wide[0, ..., :1]):
        assert_equal(x, hp.aggregate(x, hag), graph, "sum")
    assert_equal(wide, hp.aggregate(wide, hag, "max"), graph, "max")
    out = torch.empty(NODES, 5, device=kernel_device)
    assert hp.aggregate(turned, hag, out=out) is out
    assert_equal(turned, out, graph, "sum")


@pytest.mark.parametrize("method", ["auto", "greedy", "none"])
def test_bipartite(method: str, kernel_device: str) -> None:
    edge_index = torch.stack([torch.randint(0, 15, (60,)), torch.randint(0, 6, (60,))])
    hag = hp.build_hag(edge_index, size=(15, 6), method=method).to(kernel_device)
    x = torch.randn(15, 7, device=kernel_device, requires_grad=True)
    y = hp.aggregate(x, hag)
    assert_equal(x, y, edge_index, "sum")
    grad = torch.randn(6, 7, device=kernel_device)
    y.backward(grad)
    assert_equal(grad, x.grad.new_tensor(x.grad.tolist()), edge_index.flip(0), "sum")


@pytest.mark.parametrize(("nodes", "edges"), [(0, 0), (1, 0), (3, 0), (2, 1)])
def test_small(nodes: int, edges: int, kernel_device: str) -> None:
    edge_index = torch.zeros(2, edges, dtype=torch.long)
    hag = hp.build_hag(edge_index, num_nodes=nodes).to(kernel_device)
    for width in (0, 3):
        x = torch.randn(nodes, width, device=kernel_device, requires_grad=True)
        for reduce in ("sum", "mean", "max"):
            y = hp.aggregate(x, hag, reduce)
            assert_equal(x, y, edge_index, reduce)
            y.sum().backward()
    empty = torch.randn(0, nodes, 3, device=kernel_device)
    assert hp.aggregate(empty, hag).shape == (0, nodes, 3)


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_graph(data: st.DataObject, kernel_device: str) -> None:
    nodes = data.draw(st.integers(1, 14))
    node = st.integers(0, nodes - 1)
    edges = data.draw(st.lists(st.tuples(node, node), max_size=70))
    edge_index = torch.tensor(edges, dtype=torch.long).reshape(-1, 2).T
    mode = data.draw(st.sampled_from(MODES))
    reduce = data.draw(st.sampled_from(REDUCES))
    method = data.draw(st.sampled_from(("auto", "greedy", "none")))
    hag = hp.build_hag(edge_index, num_nodes=nodes, method=method).to(kernel_device)
    x = torch.randn(nodes, 3, device=kernel_device)
    y = hp.aggregate(x, hag, reduce, self_loops=mode)
    assert_equal(x, y, edge_index, reduce, self_loops=mode)
