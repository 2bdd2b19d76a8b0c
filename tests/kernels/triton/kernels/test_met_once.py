"""Graphs that are met once, made on the device: the kernels over them, and the layers that meet
them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hag_plugin as hp
from hag_plugin.hag.passing import plain_hag
from hag_plugin.ops.weights import weighted_aggregate
from hag_plugin.testing import count_programs, limits

from .... import reference
from .conftest import NODES
from .test_aggregate import MODES, assert_equal
from .test_gradients import gradients

pyg = pytest.importorskip("torch_geometric").nn


@pytest.fixture
def met(graph: Tensor, kernel_device: str) -> hp.HAG:
    hag = plain_hag(graph.to(kernel_device), (NODES, NODES))
    assert type(hag) is not hp.HAG
    assert hag.device.type == kernel_device
    return hag


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
def test_aggregates(reduce: Any, mode: Any, graph: Tensor, met: hp.HAG) -> None:
    x = torch.randn(2, NODES, 5, device=met.device)
    y = hp.aggregate(x, met, reduce, self_loops=mode)
    assert_equal(x, y, graph, reduce, self_loops=mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("reduce", "ties"),
    [("sum", "even"), ("mean", "even"), ("max", "even"), ("min", "first"), ("max", "last")],
)
def test_gradients(reduce: Any, ties: Any, mode: Any, graph: Tensor, met: hp.HAG) -> None:
    """As of the HAG that is made on the host; few values, so that many sources tie."""
    on_host = hp.build_hag(graph, num_nodes=NODES, method="none").to(met.device)
    x = torch.randint(-1, 2, (NODES, 5), device=met.device).double()
    grad = torch.randn(NODES, 5, dtype=torch.float64)
    found = []
    for hag in (met, on_host):
        leaf = x.clone().requires_grad_()
        y = hp.aggregate(leaf, hag, reduce, self_loops=mode, ties=ties)
        found.append(gradients(y, [leaf], grad)[0])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("mode", MODES)
def test_weights(mode: Any, graph: Tensor, met: hp.HAG) -> None:
    weight = torch.randn(met.num_edges, dtype=torch.float64)  # in the HAG's order
    edges = met.edge_index.cpu()
    x = torch.randn(NODES, 3, dtype=torch.float64)
    given = [t.to(met.device).requires_grad_() for t in (x, weight)]
    y = weighted_aggregate(given[0], met, given[1], self_loops=mode)
    leaves = [t.clone().requires_grad_() for t in (x, weight)]
    expected = reference.weighted_aggregate(leaves[0], edges, leaves[1], NODES, self_loops=mode)
    torch.testing.assert_close(y.cpu(), expected)
    grad = torch.randn_like(x)
    for mine, theirs in zip(
        gradients(y, given, grad), torch.autograd.grad(expected, leaves, grad), strict=True
    ):
        torch.testing.assert_close(mine.cpu(), theirs)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "gcn": lambda: pyg.GCNConv(3, 2),
    "sage": lambda: pyg.SAGEConv(3, 2),
    "sage, max": lambda: pyg.SAGEConv(3, 2, aggr="max"),
    "gin": lambda: pyg.GINConv(nn.Linear(3, 2)),
    "graph": lambda: pyg.GraphConv(3, 2),
    "tag": lambda: pyg.TAGConv(3, 2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_over_new_graphs(name: str, graph: Tensor, kernel_device: str) -> None:
    """Each graph is met once, and is summed on the kernels at once."""
    stock = LAYERS[name]().double().to(kernel_device)
    ours = hp.accelerate(copy.deepcopy(stock))
    x = torch.randn(NODES, 3, dtype=torch.float64, device=kernel_device)
    for number in range(3):
        edges = graph.roll(number, 0).flip(1)[:, number:].contiguous().to(kernel_device)
        found = []
        for conv in (ours, stock):
            leaf = x.clone().requires_grad_()
            with limits(few_messages=0, passing_gain=0.0), count_programs() as ran:
                y = conv(leaf, edges)
                found.append((y, *torch.autograd.grad(y.sum(), [leaf, *conv.parameters()])))
            assert (ran.plain > 0) == (conv is ours)
            assert not ran.hag
        for mine, theirs in zip(*found, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
