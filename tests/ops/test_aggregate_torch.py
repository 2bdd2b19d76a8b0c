"""The operators of `aggregate` in torch's own machinery: its checks and its compiler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import hag_plugin as hp

from ..cases import random_graph
from ..equality import assert_alike


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_opcheck_of_aggregate(reduce: str, transposed: bool) -> None:
    hag = hp.build_hag(random_graph(6, 4, 15), size=(6, 4))
    rows, num_rows = (4, 6) if transposed else (6, 4)
    x = torch.randn(2, rows, 3, requires_grad=True)
    s = torch.randn(rows, requires_grad=True)
    t = torch.randn(num_rows, requires_grad=True)
    for source, target in ((None, None), (s, None), (s, t)):
        torch.library.opcheck(
            torch.ops.hag_plugin.aggregate.default,
            (x, hag.row_ptr, hag.col, source, target, num_rows, "", transposed, reduce),
        )


def test_opcheck_of_the_others() -> None:
    hag = hp.build_hag(random_graph(6, 4, 15), size=(6, 4))
    graph = (hag.row_ptr, hag.col)
    x = torch.randn(6, 3, requires_grad=True)
    ops = torch.ops.hag_plugin
    torch.library.opcheck(ops.extremum.default, (x, *graph, "", True, 4))
    x = x.detach()
    y = ops.extremum(x, *graph, "", True, 4)
    v = torch.randn(6, 3, requires_grad=True)
    torch.library.opcheck(ops.masked_sum.default, (v, x, y, *graph, "", False))
    torch.library.opcheck(ops.masked_sum.default, (None, x, y, *graph, "", False))
    w = torch.randn(4, 3, requires_grad=True)
    torch.library.opcheck(ops.masked_sum.default, (w, x, y, *graph, "", True))
    torch.library.opcheck(ops.winners.default, (x.requires_grad_(), *graph, "", True, False, 4))
    grad = torch.randn(4, 3, requires_grad=True)
    winner = torch.tensor([[0, 5, -1]]).expand(4, 3)
    torch.library.opcheck(ops.add_to_winners.default, (grad, winner, *graph, 6, ""))


@pytest.fixture
def traced_anew() -> Iterator[None]:
    """What torch kept on disk of an earlier run may call an operator that has changed since."""
    torch._dynamo.reset()
    with torch._functorch.config.patch(enable_autograd_cache=False):
        yield


@pytest.mark.mostly_slow("aot_eager")
@pytest.mark.usefixtures("traced_anew")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_whole(backend: str) -> None:

    def layer(x: Tensor, w: Tensor, s: Tensor, hag: hp.HAG) -> Tensor:
        y = hp.aggregate(x @ w, hag, "mean", self_loops="fill", source_scale=s)
        return hp.aggregate(y.relu(), hag, "max") + hp.aggregate(y, hag, "min", ties="first")

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    hag = hp.build_hag(random_graph(20, 20, 90), num_nodes=20)
    inputs = [torch.randn(20, 5), torch.randn(5, 4), torch.randn(20)]
    assert_alike((layer, compiled), inputs, hag)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs, hag), layer(*inputs, hag))


def test_graphs_of_other_sizes_do_not_recompile() -> None:
    torch._dynamo.reset()
    compilations = []

    def backend(module: Any, inputs: Any) -> Any:
        compilations.append(module)
        return torch._dynamo.lookup_backend("aot_eager")(module, inputs)

    @torch.compile(fullgraph=True, backend=backend)
    def layer(x: Tensor, hag: hp.HAG) -> Tensor:
        return hp.aggregate(hp.aggregate(x, hag, "mean").relu(), hag, "max")

    for seed in range(6):
        nodes = 20 + 3 * seed
        edges = random_graph(nodes, nodes, 90 + seed, seed)
        hag = hp.build_hag(edges, num_nodes=nodes)
        x = torch.randn(nodes, 5, dtype=torch.float64, requires_grad=True)
        y = layer(x, hag)
        y.sum().backward()
        expected = hp.aggregate(hp.aggregate(x.detach(), hag, "mean").relu(), hag, "max")
        torch.testing.assert_close(y.detach(), expected)
    assert len(compilations) <= 2
