"""Weighted sums against `reference.py`: results, gradients, memory, and what they refuse.

Tests with "kernels" in their name also run under each instruction set (test_instruction_sets.py).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hag_plugin as hp
from hag_plugin.ops.weights import edge_slots, weighted_aggregate

from .. import reference
from ..cases import DTYPES, MODES, draw_graph, random_graph
from ..equality import assert_weighted_equal

WIDTHS = (1, 2, 3, 7, 16, 33, 64, 130, 300)


def aggregate(x: Tensor, edges: Tensor, weight: Tensor, hag: hp.HAG, *args: Any, **how: Any) -> Any:
    """`weighted_aggregate` with weights in the order of `edges`, where gradients go too."""
    ordered = weight.new_empty(len(weight)).index_put((edge_slots(edges, hag),), weight)
    return weighted_aggregate(x, hag, ordered, *args, **how)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_kernels_equal_reference(reduce: str, mode: Any, dtype: torch.dtype) -> None:
    edges = random_graph(40, 40, 200)
    hag = hp.build_hag(edges, num_nodes=40)
    weight, loops = torch.randn(edges.shape[1]), torch.randn(40)
    s, t = torch.randn(40), torch.randn(40)
    for width in WIDTHS:
        x = torch.randn(40, width).to(dtype)
        y = aggregate(x, edges, weight, hag, reduce, self_loops=mode)
        assert y.dtype == dtype
        assert_weighted_equal(y, x, edges, weight, 40, reduce, self_loops=mode)
        how = {"self_loops": mode, "source_scale": s, "target_scale": t}
        if mode:
            how["loop_weight"] = loops
        y = aggregate(x, edges, weight, hag, reduce, **how)
        assert_weighted_equal(y, x, edges, weight, 40, reduce, **how)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernels_give_the_gradients_of_reference(dtype: torch.dtype) -> None:
    edges = random_graph(40, 30, 200)
    hag = hp.build_hag(edges, size=(40, 30))
    for width in WIDTHS:
        inputs = [torch.randn(2, 40, width).to(dtype), torch.randn(edges.shape[1]),
                  torch.randn(40), torch.randn(30)]  # fmt: skip
        grad = torch.randn(2, 30, width).to(dtype)
        mine = [v.clone().requires_grad_() for v in inputs]
        theirs = [v.double().requires_grad_() for v in inputs]
        x, weight, s, t = mine
        aggregate(x, edges, weight, hag, source_scale=s, target_scale=t).backward(grad)
        x, weight, s, t = theirs
        y = reference.weighted_aggregate(x, edges, weight, 30, source_scale=s, target_scale=t)
        y.backward(grad.double())
        rtol = {torch.float64: 1e-11, torch.float32: 1e-4}.get(dtype, 20 * torch.finfo(dtype).eps)
        if dtype == torch.float64:
            assert mine[1].grad.dtype == torch.float32
            mine, theirs = mine[:1], theirs[:1]
        for a, b in zip(mine, theirs, strict=True):
            atol = rtol * float(b.grad.abs().max())
            torch.testing.assert_close(a.grad.double(), b.grad, rtol=rtol, atol=atol)


@settings(max_examples=60)
@given(data=st.data())
def test_any_small_graph(data: st.DataObject) -> None:
    square = data.draw(st.booleans())
    edges, num_src, num_dst = draw_graph(data, square)
    mode = data.draw(st.sampled_from(MODES)) if square else False
    reduce = data.draw(st.sampled_from(["sum", "mean"]))
    hag = hp.build_hag(edges, size=(num_src, num_dst))
    x = torch.randn(num_src, data.draw(st.integers(1, 9)), dtype=torch.float64)
    weight = torch.randn(edges.shape[1], dtype=torch.float64)
    y = aggregate(x, edges, weight, hag, reduce, self_loops=mode)
    assert_weighted_equal(y, x, edges, weight, num_dst, reduce, self_loops=mode)
    ones = torch.ones(edges.shape[1], dtype=torch.float64)
    plain = hp.aggregate(x, hag, reduce, self_loops=mode)
    torch.testing.assert_close(aggregate(x, edges, ones, hag, reduce, self_loops=mode), plain)


@pytest.mark.parametrize("transposed", [False, True])
def test_kernels_sum_long_rows_in_parts(transposed: bool) -> None:
    edges = random_graph(50, 50, 300)
    hub = torch.stack([torch.randint(0, 50, (13_000,)), torch.full((13_000,), 7)])
    edges = torch.cat([edges, hub, torch.tensor([[3], [49]]).expand(2, 4097)], 1)
    edges = edges[:, torch.randperm(edges.shape[1])]
    if transposed:
        edges = edges.flip(0)
    hag = hp.build_hag(edges, num_nodes=50)
    weight = torch.rand(edges.shape[1], dtype=torch.float64, requires_grad=True)
    for mode in MODES:
        x = torch.randn(2, 50, 19, dtype=torch.float64, requires_grad=True)
        y = aggregate(x, edges, weight, hag, self_loops=mode)
        assert_weighted_equal(y.detach(), x.detach(), edges, weight.detach(), 50, self_loops=mode)
        expected = reference.weighted_aggregate(x, edges, weight, 50, self_loops=mode)
        grad = torch.randn(2, 50, 19, dtype=torch.float64)
        mine = torch.autograd.grad(y, (x, weight), grad)
        for a, b in zip(mine, torch.autograd.grad(expected, (x, weight), grad), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-9)


def test_targets_that_are_the_first_sources() -> None:
    edges = random_graph(9, 5, 30)
    hag = hp.build_hag(edges, size=(9, 5), targets_first=True)
    x = torch.randn(9, 6, dtype=torch.float64)
    weight = torch.randn(edges.shape[1], dtype=torch.float64)
    for mode in MODES:
        y = aggregate(x, edges, weight, hag, "mean", self_loops=mode)
        assert_weighted_equal(y, x, edges, weight, 5, "mean", self_loops=mode)


@pytest.mark.parametrize("lead", [(1,), (3,), (2, 3), (0,), (2, 1, 2)])
def test_leading_dimensions_and_strides(lead: tuple[int, ...]) -> None:
    edges = random_graph(20, 20, 90)
    hag = hp.build_hag(edges, num_nodes=20)
    weight = torch.randn(edges.shape[1], dtype=torch.float64)
    base = torch.randn(*lead, 20, 34, dtype=torch.float64)
    for x in (base, base[..., 5:20], base[..., ::2], base[..., :1].expand(base.shape),
              base.transpose(-1, -2)[..., :20, :].contiguous().transpose(-1, -2)):  # fmt: skip
        x = x.detach().requires_grad_()
        y = aggregate(x, edges, weight, hag)
        assert_weighted_equal(y.detach(), x.detach(), edges, weight, 20)
        y.sum().backward()
        (expected,) = torch.autograd.grad(
            reference.weighted_aggregate(x, edges, weight, 20).sum(), x
        )
        torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize(("num_src", "num_dst"), [(0, 0), (1, 1), (0, 3), (3, 0), (5, 2)])
def test_graphs_with_no_edge(num_src: int, num_dst: int) -> None:
    hag = hp.build_hag(torch.zeros(2, 0, dtype=torch.int64), size=(num_src, num_dst))
    weight = torch.zeros(0, requires_grad=True)
    x = torch.randn(num_src, 5, requires_grad=True)
    for reduce in ("sum", "mean"):
        y = weighted_aggregate(x, hag, weight, reduce)
        assert torch.equal(y, torch.zeros(num_dst, 5))
        y.sum().backward()
        assert torch.equal(x.grad, torch.zeros(num_src, 5))
        assert weight.grad.shape == (0,)


def test_zero_width() -> None:
    hag = hp.build_hag(random_graph(5, 5, 9), num_nodes=5)
    x = torch.zeros(5, 0, requires_grad=True)
    weight = torch.randn(hag.num_edges, requires_grad=True)
    y = weighted_aggregate(x, hag, weight, self_loops="fill")
    assert y.shape == (5, 0)
    y.sum().backward()
    assert x.grad.shape == (5, 0)
    assert torch.equal(weight.grad, torch.zeros(hag.num_edges))


@pytest.mark.parametrize("where", ["x", "weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_stand_where_the_reference_has_them(value: float, where: str) -> None:
    edges = random_graph(40, 40, 150)
    hag = hp.build_hag(edges, num_nodes=40)
    x, weight = torch.randn(40, 33), torch.randn(edges.shape[1])
    weight[::5] = 0.0
    (x if where == "x" else weight)[7] = value
    for mode in MODES:
        y = aggregate(x, edges, weight, hag, self_loops=mode)
        expected = reference.weighted_aggregate(x, edges, weight, 40, self_loops=mode)
        assert torch.equal(y.isnan(), expected.isnan())
        assert torch.equal(y.isinf(), expected.isinf())


# Gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_gradients(reduce: Any, mode: Any) -> None:
    num_dst = 5 if mode else 4
    edges = random_graph(5, num_dst, 12)
    hag = hp.build_hag(edges, size=(5, num_dst))
    shapes = ((2, 5, 2), (edges.shape[1],), (5,), (num_dst,), (num_dst,))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def scaled(x: Tensor, w: Tensor, s: Tensor, t: Tensor, loops: Tensor) -> Tensor:
        return weighted_aggregate(
            x, hag, w, reduce, self_loops=mode, source_scale=s, target_scale=t,
            loop_weight=loops if mode else None,
        )  # fmt: skip

    used = inputs if mode else inputs[:4]
    function = scaled if mode else lambda *v: scaled(*v, inputs[4])
    assert torch.autograd.gradcheck(function, used)
    assert torch.autograd.gradgradcheck(function, used)
    for needed in range(1, 16):  # every subset of what may need a gradient
        some = [v.detach().requires_grad_(bool(needed >> i & 1)) for i, v in enumerate(used)]
        assert torch.autograd.gradcheck(function, some)


def test_gradients_without_scales() -> None:
    edges = random_graph(5, 5, 12)
    for edges_ in (edges, torch.cat([edges, edges.flip(0)], 1)):  # the other is symmetric
        hag = hp.build_hag(edges_, num_nodes=5)
        x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(edges_.shape[1], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(weighted_aggregate, (x, hag, weight))
        assert torch.autograd.gradgradcheck(weighted_aggregate, (x, hag, weight))


def largest_allocation(function: Any, x: Tensor, weight: Tensor) -> int:
    """Bytes, over a forward pass and two backward passes."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as run:
        first = torch.autograd.grad(function(x).square().sum(), (x, weight), create_graph=True)
        torch.autograd.grad(sum(g.square().sum() for g in first), (x, weight))
    return int(max(event.self_cpu_memory_usage for event in run.events()))


def test_gradients_on_a_batch() -> None:
    graphs = [random_graph(n, n, 4 * n, seed=n) for n in (5, 9, 3)]
    hag = hp.batch([hp.build_hag(g, num_nodes=n) for g, n in zip(graphs, (5, 9, 3), strict=True)])
    edges = torch.cat([g + first for g, first in zip(graphs, (0, 5, 14), strict=True)], 1)
    x = torch.randn(17, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(edges.shape[1], dtype=torch.float64, requires_grad=True)
    grad = torch.randn(17, 6, dtype=torch.float64)
    y = aggregate(x, edges, weight, hag, "mean")
    expected = reference.weighted_aggregate(x, edges, weight, 17, "mean")
    torch.testing.assert_close(y, expected)
    mine = torch.autograd.grad(y, (x, weight), grad)
    for a, b in zip(mine, torch.autograd.grad(expected, (x, weight), grad), strict=True):
        torch.testing.assert_close(a, b)


def test_no_array_of_edges_times_features() -> None:
    edges = torch.cartesian_prod(torch.arange(200), torch.arange(200)).t()
    hag = hp.build_hag(edges, num_nodes=200, method="none")
    x = torch.randn(200, 64, requires_grad=True)
    weight = torch.randn(hag.num_edges, requires_grad=True)
    messages = hag.num_edges * 64 * 4

    def plain(x: Tensor) -> Tensor:
        return reference.weighted_aggregate(x, hag.edge_index, weight, 200)

    def fused(x: Tensor) -> Tensor:
        return weighted_aggregate(x, hag, weight, "mean", self_loops="fill")

    assert largest_allocation(plain, x, weight) >= messages
    fused(x).sum().backward()  # what the HAG keeps is there from now on
    assert 0 < largest_allocation(fused, x, weight) < messages / 16


# Refusals --------------------------------------------------------------------------------------


def test_what_weighted_aggregate_refuses() -> None:
    hag = hp.build_hag(torch.tensor([[0, 1, 2], [1, 0, 0]]), size=(3, 4))
    x, weight = torch.randn(3, 2), torch.ones(3)

    def refused(error: type[Exception], match: str, *args: Any, **kwargs: Any) -> None:
        with pytest.raises(error, match=match):
            weighted_aggregate(*args, **kwargs)

    refused(ValueError, r"weight has shape \[4\]; expected \[3\]", x, hag, torch.ones(4))
    refused(TypeError, "weight has dtype torch.int64", x, hag, torch.ones(3).long())
    refused(TypeError, "weight is a list", x, hag, [1.0] * 3)
    refused(TypeError, "hag is a Tensor", x, weight, weight)
    refused(TypeError, "x has dtype torch.int64", x.long(), hag, weight)
    refused(ValueError, "x has 5 rows", torch.randn(5, 2), hag, weight)
    refused(ValueError, "reduce is 'max'; expected one of", x, hag, weight, "max")
    refused(ValueError, "self_loops is True; expected one of", x, hag, weight, self_loops=True)
    refused(ValueError, "needs targets that are sources too", x, hag, weight, self_loops="add")
    refused(ValueError, "self_loops is False", x, hag, weight, loop_weight=torch.ones(4))
    refused(ValueError, r"source_scale has shape \[2\]; expected \[3\]", x, hag, weight,
            source_scale=torch.ones(2))  # fmt: skip
    with pytest.raises(ValueError, match=r"expected torch.float32 \[3\]"):
        torch.ops.hag_plugin.weighted_sum(
            x, torch.ones(2), hag.row_ptr, hag.col, None, None, 4, "", False, "sum"
        )
    with pytest.raises(ValueError, match="differ in dimension -2 only"):
        torch.ops.hag_plugin.edge_dot(
            x, torch.randn(4, 3), hag.row_ptr, hag.col, None, None, "", "sum"
        )
