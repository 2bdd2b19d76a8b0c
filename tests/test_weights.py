"""Edge weights: their factors, their slots in a HAG, and the weighted sum with its gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hag_plugin as hp
from hag_plugin import reference
from hag_plugin.kernels import _cpu
from hag_plugin.weights import edge_slots, factorise, weighted_aggregate

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
WIDTHS = (1, 2, 3, 7, 16, 33, 64, 130, 300)
MODES = (False, "add", "fill")
EVERY_ISA = "kernels"  # tests with this in their name also run under each instruction set


def draw_graph(data: st.DataObject, square: bool = False) -> tuple[Tensor, int, int]:
    """Directed, with duplicates, self-loops, isolated nodes; sometimes without an edge."""
    num_src = data.draw(st.integers(1, 12))
    num_dst = num_src if square else data.draw(st.integers(1, 12))
    pairs = st.tuples(st.integers(0, num_src - 1), st.integers(0, num_dst - 1))
    edges = torch.tensor(data.draw(st.lists(pairs, max_size=40)), dtype=torch.int64)
    return edges.view(-1, 2).t(), num_src, num_dst


# Factors ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_products_are_found_exactly(data: st.DataObject) -> None:
    edges, num_src, num_dst = draw_graph(data)
    powers = st.sampled_from([0.0, 1.0, -1.0, 0.5, -4.0, 2.0**20, 2.0**-30])
    s = torch.tensor(data.draw(st.lists(powers, min_size=num_src, max_size=num_src)))
    t = torch.tensor(data.draw(st.lists(powers, min_size=num_dst, max_size=num_dst)))
    for dtype in (torch.float64, torch.float32):
        weight = s.to(dtype)[edges[0]] * t.to(dtype)[edges[1]]
        found = factorise(edges, weight, num_src, num_dst, tolerance=0.0)
        assert found is not None
        assert torch.equal(found[0][edges[0]] * found[1][edges[1]], weight.double())
        for side, factor in zip(edges, found, strict=True):
            assert factor.dtype == torch.float64
            alone = torch.bincount(side, minlength=len(factor)) == 0
            assert (factor[alone] == 1).all()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_one_weight_out_of_line_is_noticed(data: st.DataObject) -> None:
    edges, num_src, num_dst = draw_graph(data)
    # The edge 0 -> 0 four ways round a cycle of two sources and two targets.
    edges = torch.cat([edges, torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]])], 1)
    num_src, num_dst = max(num_src, 2), max(num_dst, 2)
    s, t = torch.rand(num_src) + 0.5, torch.rand(num_dst) + 0.5
    weight = s[edges[0]] * t[edges[1]]
    assert factorise(edges, weight, num_src, num_dst) is not None
    changed = weight.clone()
    changed[-data.draw(st.integers(1, 4))] *= data.draw(st.sampled_from([1.001, -1.0, 0.0, 1e9]))
    assert factorise(edges, changed, num_src, num_dst) is None
    assert factorise(edges, weight * 1.001 ** (edges[0] == 1), num_src, num_dst) is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rounded_products_are_found(dtype: torch.dtype) -> None:
    edges = torch.randint(0, 300, (2, 3000))
    s = torch.randn(300, dtype=torch.float64).exp()
    exact = s[edges[0]] * s.flip(0)[edges[1]]
    found = factorise(edges, exact.to(dtype), 300, 300, tolerance=16 * torch.finfo(dtype).eps)
    assert found is not None
    wrong = (found[0][edges[0]] * found[1][edges[1]] / exact - 1).abs().max()
    assert wrong <= 17 * torch.finfo(dtype).eps


def test_duplicates_must_agree() -> None:
    edges = torch.tensor([[0, 0, 1], [1, 1, 0]])
    assert factorise(edges, torch.tensor([2.0, 2.0, 3.0]), 2, 2) is not None
    assert factorise(edges, torch.tensor([2.0, 2.5, 3.0]), 2, 2) is None


def test_zeros() -> None:
    square = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]])
    for weight, found in (
        ([0.0, 0.0, 0.0, 0.0], ([0.0, 0.0], [0.0, 0.0])),
        ([0.0, 0.0, 1.0, 1.0], ([0.0, 1.0], [1.0, 1.0])),
        ([1.0, 0.0, -1.0, -0.0], ([1.0, -1.0], [1.0, 0.0])),
    ):
        factors = factorise(square, torch.tensor(weight), 2, 2)
        assert factors is not None
        assert [f.tolist() for f in factors] == list(found)
    assert factorise(square, torch.tensor([0.0, 1.0, 1.0, 1.0]), 2, 2) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers(value: float) -> None:
    assert factorise(torch.tensor([[0], [0]]), torch.tensor([value]), 1, 1) is None


def test_factors_are_balanced() -> None:
    # A path 0 -> 0 <- 1 -> 1 <- 2 ... along which s falls from 1 by 2^-200 a step.
    edges = torch.tensor([[0, 1, 1, 2, 2, 3], [0, 0, 1, 1, 2, 2]])
    weight = torch.tensor([1.0, 2.0**-200] * 3, dtype=torch.float64)
    found = factorise(edges, weight, 4, 3)
    assert found is not None
    for factor in found:
        assert factor.log2().abs().max() <= 301
    weight[1::2] = 2.0**-400  # s would span 2^1200
    assert factorise(edges, weight, 4, 3) is None
    for large in (1e30, 1e-30):
        found = factorise(edges, torch.full((6,), large), 4, 3)
        assert found is not None
        for factor in found:
            assert (factor / large**0.5).log2().abs().max() <= 1
    apart = torch.tensor([[0, 1], [0, 1]])
    found = factorise(apart, torch.tensor([1e30, 1e-30]), 2, 2)
    assert found is not None
    torch.testing.assert_close(found[0], found[1], rtol=1.0, atol=0.0)


@pytest.mark.parametrize(("num_src", "num_dst"), [(0, 0), (3, 0), (2, 4)])
def test_no_edges(num_src: int, num_dst: int) -> None:
    found = factorise(torch.zeros(2, 0, dtype=torch.int32), torch.zeros(0), num_src, num_dst)
    assert found is not None
    assert torch.equal(found[0], torch.ones(num_src, dtype=torch.float64))
    assert torch.equal(found[1], torch.ones(num_dst, dtype=torch.float64))


def test_factors_of_real_graphs(shared_data: Path) -> None:
    for name in ("Cora", "MUTAG", "CiteSeer"):
        with np.load(shared_data / "npz" / f"{name}.npz") as arrays:
            edges = torch.from_numpy(arrays["edge_index"].astype(np.int64))
        nodes = int(edges.max()) + 1
        loops = torch.arange(nodes).expand(2, nodes)
        edges = torch.cat([edges[:, edges[0] != edges[1]], loops], 1)
        scale = torch.bincount(edges[1]).float().rsqrt()
        weight = scale[edges[0]] * scale[edges[1]]  # GCN's
        found = factorise(edges, weight, nodes, nodes)
        assert found is not None
        torch.testing.assert_close(
            (found[0][edges[0]] * found[1][edges[1]]).float(), weight, rtol=1e-6, atol=0.0
        )
        assert factorise(edges, torch.rand(edges.shape[1]), nodes, nodes) is None


def test_what_factorise_refuses() -> None:
    edges, weight = torch.tensor([[0, 1], [1, 3]]), torch.ones(2)

    def refused(error: type[Exception], match: str, *args: Any, **kwargs: Any) -> None:
        with pytest.raises(error, match=match):
            factorise(*args, **kwargs)

    refused(ValueError, "target of edge 1 is 3; expected 0 to 2", edges, weight, 3, 3)
    refused(ValueError, "source of edge 1 is 1; expected 0 to 0", edges, weight, 1, 4)
    refused(ValueError, r"weight has shape \[3\]; expected \[2\]", edges, torch.ones(3), 4, 4)
    refused(TypeError, "dtype torch.int64; expected a floating", edges, torch.tensor([1, 1]), 4, 4)
    refused(TypeError, "weight is a list", edges, [1.0, 1.0], 4, 4)
    refused(TypeError, "edge_index has dtype", edges.float(), weight, 4, 4)
    refused(ValueError, "tolerance is -1.0", edges, weight, 4, 4, tolerance=-1.0)


# Slots -----------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_slots_are_a_stable_permutation(data: st.DataObject) -> None:
    edges, num_src, num_dst = draw_graph(data)
    hag = hp.build_hag(edges, size=(num_src, num_dst))
    slots = edge_slots(edges.int(), hag)
    sorted_edges = sorted(range(edges.shape[1]), key=lambda e: (*edges[:, e].tolist()[::-1], e))
    assert slots[sorted_edges].tolist() == list(range(edges.shape[1]))
    assert torch.equal(hag.edge_index[:, slots], edges)


def test_slots_of_another_graph() -> None:
    edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
    hag = hp.build_hag(edges, num_nodes=3)
    with pytest.raises(ValueError, match="has 2 edges and the HAG 3"):
        edge_slots(edges[:, :2], hag)
    with pytest.raises(ValueError, match="they differ at edge 2, 0 -> 2"):
        edge_slots(edges.flip(0), hag)
    with pytest.raises(ValueError, match="another graph"):
        edge_slots(edges + torch.tensor([[3], [0]]), hag)
    with pytest.raises(ValueError, match="another graph"):
        edge_slots(edges - torch.tensor([[0], [1]]), hag)
    with pytest.raises(ValueError, match="another graph"):
        edge_slots(edges.index_fill(1, torch.tensor([0]), 2), hag)  # a row with one edge too many


# Weighted sums ---------------------------------------------------------------------------------


def random_graph(num_src: int, num_dst: int, num_edges: int, seed: int = 0) -> Tensor:
    """Some edges are duplicates, some self-loops; the last rows have no edge."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(0, num_src, (num_edges,), generator=generator)
    target = torch.randint(0, max(num_dst - 2, 1), (num_edges,), generator=generator)
    edges = torch.stack([source, target])
    return torch.cat([edges, edges[:, : num_edges // 8]], dim=1)


def aggregate(x: Tensor, edges: Tensor, weight: Tensor, hag: hp.HAG, *args: Any, **how: Any) -> Any:
    """`weighted_aggregate` with weights in the order of `edges`, where gradients go too."""
    ordered = weight.new_empty(len(weight)).index_put((edge_slots(edges, hag),), weight)
    return weighted_aggregate(x, hag, ordered, *args, **how)


def assert_equal(
    y: Tensor, x: Tensor, edges: Tensor, weight: Tensor, num_dst: int, *args: Any, **how: Any
) -> None:
    """Within rounding of a float64 reference, relative to the row's sum of absolute values."""
    wide = {k: v.double() if isinstance(v, Tensor) else v for k, v in how.items()}
    size = {k: v.abs() if isinstance(v, Tensor) else v for k, v in wide.items()}
    graph = edges, weight.double(), num_dst
    expected = reference.weighted_aggregate(x.double(), *graph, *args, **wide)
    absolute = edges, weight.double().abs(), num_dst
    bound = reference.weighted_aggregate(x.double().abs(), *absolute, *args, **size)
    terms = torch.bincount(edges[1], minlength=num_dst).add(2).sqrt().unsqueeze(-1)
    bound = bound * (1e-12 if y.dtype == torch.float64 else 1e-6 * terms)
    if y.dtype in (torch.float16, torch.bfloat16):
        info = torch.finfo(y.dtype)
        bound = bound + 2 * info.eps * expected.abs() + 2 * info.smallest_normal * info.eps
    assert y.shape == expected.shape
    wrong = ~((y.double() - expected).abs() <= bound)
    assert not wrong.any(), (wrong.nonzero()[:5], y[wrong][:5], expected[wrong][:5])


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
        assert_equal(y, x, edges, weight, 40, reduce, self_loops=mode)
        how = {"self_loops": mode, "source_scale": s, "target_scale": t}
        if mode:
            how["loop_weight"] = loops
        y = aggregate(x, edges, weight, hag, reduce, **how)
        assert_equal(y, x, edges, weight, 40, reduce, **how)


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


@settings(max_examples=60, deadline=None)
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
    assert_equal(y, x, edges, weight, num_dst, reduce, self_loops=mode)
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
        assert_equal(y.detach(), x.detach(), edges, weight.detach(), 50, self_loops=mode)
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
        assert_equal(y, x, edges, weight, 5, "mean", self_loops=mode)


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
        assert_equal(y.detach(), x.detach(), edges, weight, 20)
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


# torch's own machinery -------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("loops", ["", "fill"])
def test_opcheck(loops: str, transposed: bool) -> None:
    num_dst = 6 if loops else 4
    hag = hp.build_hag(random_graph(6, num_dst, 15), size=(6, num_dst))
    rows, num_rows = (num_dst, 6) if transposed else (6, num_dst)
    x = torch.randn(2, rows, 3, requires_grad=True)
    weight = torch.randn(hag.num_edges + (num_dst if loops else 0), requires_grad=True)
    s, t = torch.randn(rows, requires_grad=True), torch.randn(num_rows, requires_grad=True)
    ops = torch.ops.hag_plugin
    for source, target in ((None, None), (s, None), (s, t)):
        torch.library.opcheck(
            ops.weighted_sum.default,
            (x, weight, hag.row_ptr, hag.col, source, target, num_rows, loops, transposed, "mean"),
        )
    a, b = torch.randn(2, 6, 3, requires_grad=True), torch.randn(2, num_dst, 3, requires_grad=True)
    graph = (hag.row_ptr, hag.col)
    torch.library.opcheck(ops.edge_dot.default, (a, b, *graph, None, None, loops, "sum"))


def test_compiles_whole() -> None:
    torch._dynamo.reset()

    def layer(x: Tensor, w: Tensor, s: Tensor, hag: hp.HAG) -> Tensor:
        y = weighted_aggregate(x, hag, w.sigmoid(), "mean", self_loops="fill", source_scale=s)
        return weighted_aggregate(y.relu(), hag, w)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for seed, nodes in enumerate((20, 25)):
        edges = random_graph(nodes, nodes, 90 + nodes, seed)
        hag = hp.build_hag(edges, num_nodes=nodes)
        inputs = [torch.randn(nodes, 5), torch.randn(edges.shape[1]), torch.randn(nodes)]
        results = []
        for function in (layer, compiled):
            leaves = [v.clone().requires_grad_() for v in inputs]
            y = function(*leaves, hag)
            y.square().sum().backward()
            results.append([y.detach(), *(v.grad for v in leaves)])
        for eager, other in zip(*results, strict=True):
            torch.testing.assert_close(other, eager, rtol=1e-4, atol=1e-5)


def test_dispatch_modes_see_the_operator() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    hag = hp.build_hag(random_graph(9, 9, 30), num_nodes=9)
    x, weight = torch.randn(9, 4, requires_grad=True), torch.randn(hag.num_edges)
    plain = weighted_aggregate(x, hag, weight)
    with Recorder():
        y = weighted_aggregate(x, hag, weight)
    assert torch.equal(y, plain)
    assert "hag_plugin.weighted_sum.default" in seen


def test_identity_lost_falls_back_to_the_arrays() -> None:
    edges = random_graph(40, 40, 200)
    hag = hp.build_hag(edges, num_nodes=40)
    weight = torch.randn(hag.num_edges)
    x = torch.randn(40, 8)
    clone = hag.row_ptr.clone(), hag.col.clone()
    for transposed in (False, True):
        results = [
            torch.ops.hag_plugin.weighted_sum(x, weight, *g, None, None, 40, "", transposed, "mean")
            for g in (clone, (hag.row_ptr, hag.col))
        ]
        assert torch.equal(*results)


def test_inference_mode_and_autocast() -> None:
    edges = random_graph(9, 9, 30)
    hag = hp.build_hag(edges, num_nodes=9)
    x, weight = torch.randn(9, 4, requires_grad=True), torch.randn(hag.num_edges)
    with torch.inference_mode():
        weighted_aggregate(x, hag, weight)
        torch.ops.hag_plugin.weighted_sum(
            x, weight, hag.row_ptr, hag.col, None, None, 9, "", True, "mean"
        )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = weighted_aggregate(x, hag, weight, "mean", self_loops="add")
    assert y.dtype == torch.float32
    y.sum().backward()


# Threads and processes -------------------------------------------------------------------------


def test_threads_agree_bitwise() -> None:
    edges = random_graph(2000, 2000, 30_000)
    edges = torch.cat(
        [edges, torch.stack([torch.arange(2000).repeat(5), torch.full((10_000,), 3)])], 1
    )
    hag = hp.build_hag(edges, num_nodes=2000, method="none")
    x, weight = torch.randn(2000, 37), torch.randn(hag.num_edges)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        leaves = [v.clone().requires_grad_() for v in (x, weight)]
        y = weighted_aggregate(leaves[0], hag, leaves[1], self_loops="add")
        results.append((y.detach(), *torch.autograd.grad(y, leaves, x)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def run_python(code: str, **env: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
        env={**os.environ, **env}, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_runs_alone() -> None:
    code = """
import os, torch, hag_plugin as hp
from hag_plugin.weights import weighted_aggregate
torch.set_num_threads(2)
hag = hp.build_hag(torch.randint(0, 2000, (2, 40000)), num_nodes=2000, method="none")
x, weight = torch.randn(2000, 64), torch.randn(40000)
y = weighted_aggregate(x, hag, weight)
child = os.fork()
if child == 0:  # torch's own parallel operators would hang here, so numpy compares
    os._exit(0 if (weighted_aggregate(x, hag, weight).numpy() == y.numpy()).all() else 3)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(status, torch.equal(weighted_aggregate(x, hag, weight), y))
"""
    assert run_python(code).split() == ["0", "True"]


@pytest.mark.skipif("HAG_PLUGIN_ISA" in os.environ, reason="runs under each instruction set")
@pytest.mark.parametrize("isa", _cpu.instruction_sets())
def test_every_instruction_set(isa: str) -> None:
    if isa == _cpu.instruction_set():
        pytest.skip("the others of this file ran on it")
    arguments = ["-q", "-x", "-k", EVERY_ISA, "-p", "no:cacheprovider", __file__]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "--import-mode=importlib", *arguments],
        capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "HAG_PLUGIN_ISA": isa},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


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
