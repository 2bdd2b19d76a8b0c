"""The operators of weighted sums in torch: its checks, compiler, modes and threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hag_plugin as hp
from hag_plugin.ops.weights import weighted_aggregate

from ..cases import random_graph
from ..equality import assert_alike


@pytest.mark.slow
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
        assert_alike((layer, compiled), inputs, hag)


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
