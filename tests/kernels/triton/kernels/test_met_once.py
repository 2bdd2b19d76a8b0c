"""Graphs that are met once, made on the device: the kernels over them, and the layers that meet
them."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hag_plugin as hp
from hag_plugin.hag.graph import with_own_loops
from hag_plugin.hag.passing import plain_hag, plain_hag_there
from hag_plugin.ops.attention import OF_EDGES, attend
from hag_plugin.ops.weights import weighted_aggregate
from hag_plugin.testing import count_programs, limits

from .... import reference
from ....attending import how_of, tensors_of
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


@pytest.mark.parametrize(
    ("reduce", "ties", "mode"),
    [
        ("sum", "even", False),
        ("sum", "even", "add"),
        ("mean", "even", "fill"),
        ("max", "even", "add"),
        ("min", "first", "fill"),
        ("max", "last", False),
    ],
)
def test_aggregates(reduce: Any, ties: Any, mode: Any, graph: Tensor, met: hp.HAG) -> None:
    """With the gradients of the HAG that is made on the host; few values, so that many tie."""
    on_host = hp.build_hag(graph, num_nodes=NODES, method="none").to(met.device)
    x = torch.randint(-1, 2, (NODES, 5), device=met.device).double()
    grad = torch.randn(NODES, 5, dtype=torch.float64)
    found = []
    for hag in (met, on_host):
        leaf = x.clone().requires_grad_()
        y = hp.aggregate(leaf, hag, reduce, self_loops=mode, ties=ties)
        assert_equal(x, y.detach(), graph, reduce, self_loops=mode)
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


def test_compiled_attention_over_a_new_graph(graph: Tensor, kernel_device: str) -> None:
    """With loops of the layer's own, whose number no shape tells, and features of edges."""
    torch._dynamo.reset()
    stock = pyg.GATConv(3, 2, edge_dim=2).double().to(kernel_device)
    ours = torch.compile(hp.accelerate(copy.deepcopy(stock)), backend="aot_eager", fullgraph=True)
    edges, values = graph.to(kernel_device), torch.randn(graph.shape[1], 2, dtype=torch.float64)
    found = []
    for model in (ours, stock):
        x = torch.linspace(-1, 1, NODES * 3).view(NODES, 3).double().to(kernel_device)
        leaves = [x.requires_grad_(), values.to(kernel_device, copy=True).requires_grad_()]
        with count_programs() as ran:
            y = model(leaves[0], edges, leaves[1])
            grads = torch.autograd.grad(y.square().sum(), [*leaves, *model.parameters()])
        assert {type(run.program).__name__ for run in ran.programs} == (
            {"DeviceHAG"} if model is ours else set()
        )
        found.append((y, *grads))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", ["given, masked", "vector with edges"])
def test_rows_of_no_edge(
    form: str, graph: Tensor, kernel_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loops that others are in place of send nothing, and get gradients of 0."""
    new_empty = Tensor.new_empty

    def poisoned(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        made = new_empty(self, *args, **kwargs)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(Tensor, "new_empty", poisoned)
    num_edges = graph.shape[1]
    sizes = NODES, NODES, num_edges + NODES
    given = tensors_of(form, sizes, (2, 3, 4, 2), device=kernel_device)
    hag = plain_hag_there(graph.to(kernel_device), (NODES, NODES), loops=NODES)
    own = torch.cat([graph[0] != graph[1], torch.ones(NODES, dtype=torch.bool)])
    assert not own.all()
    leaves = {name: t.requires_grad_() for name, t in given.items()}
    y = attend(hag, order=hag.order, **leaves, **how_of(form))
    grad = torch.randn_like(y)
    found = torch.autograd.grad(y, list(leaves.values()), grad)
    theirs = {name: t.detach().cpu().requires_grad_() for name, t in given.items()}
    rows = {n: t[own] if n in OF_EDGES else t for n, t in theirs.items()}
    edges = with_own_loops(graph, NODES)
    expected = reference.attend(edge_index=edges, num_dst=NODES, **rows, **how_of(form))
    wanted = torch.autograd.grad(
        expected, list(theirs.values()), grad.cpu(), allow_unused=True, materialize_grads=True
    )
    for mine, one in zip((y, *found), (expected, *wanted), strict=True):
        torch.testing.assert_close(mine.cpu(), one, rtol=1e-9, atol=1e-9)
    for name, mine in zip(given, found, strict=True):
        assert name not in OF_EDGES or not mine.cpu()[~own].any()


RELATIONS = 3
# A layer, and what it is given besides features and edges: of an edge a number, numbers or a type.
LAYERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "gcn": (lambda: pyg.GCNConv(3, 2), ""),
    "sage": (lambda: pyg.SAGEConv(3, 2), ""),
    "sage, max": (lambda: pyg.SAGEConv(3, 2, aggr="max"), ""),
    "gin": (lambda: pyg.GINConv(nn.Linear(3, 2)), ""),
    "gcn, weights": (lambda: pyg.GCNConv(3, 2, improved=True), "weight"),
    "gcn, weights back": (lambda: pyg.GCNConv(3, 2, flow="target_to_source"), "weight"),
    "gcn, bare weights": (lambda: pyg.GCNConv(3, 2, add_self_loops=False), "weight"),
    "graph, weights": (lambda: pyg.GraphConv(3, 2, aggr="mean"), "weight"),
    "gat": (lambda: pyg.GATConv(3, 2, heads=2), ""),
    "gat, values": (lambda: pyg.GATConv(3, 2, edge_dim=2, fill_value=0.5), "values"),
    "transformer": (lambda: pyg.TransformerConv(3, 2, heads=2, edge_dim=2), "values"),
    "agnn": (lambda: pyg.AGNNConv(), ""),
    "fa": (lambda: _FA(), ""),
    "rgcn": (lambda: pyg.RGCNConv(3, 2, RELATIONS), "type"),
    "film": (lambda: pyg.FiLMConv(3, 2, RELATIONS, act=None), "type"),
    "rgat": (lambda: pyg.RGATConv(3, 2, RELATIONS, heads=2), "type"),
    "rgat, within": (
        lambda: pyg.RGATConv(3, 2, RELATIONS, attention_mechanism="within-relation"),
        "type",
    ),
    "supergat": (lambda: pyg.SuperGATConv(3, 2, heads=2, edge_sample_ratio=0.6), ""),
    "supergat, no loss": (lambda: pyg.SuperGATConv(3, 2, heads=2).eval(), ""),
}


class _FA(nn.Module):
    """FAConv, which is given features twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = pyg.FAConv(3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        y: Tensor = self.conv(x, 2 * x, edge_index)
        return y


@pytest.mark.parametrize("name", LAYERS)
def test_layers_over_new_graphs(name: str, graph: Tensor, kernel_device: str) -> None:
    """A graph is met once, and its rows are summed on the kernels at once."""
    make, given = LAYERS[name]
    stock = make().double().to(kernel_device)
    ours = hp.accelerate(copy.deepcopy(stock))
    edges = graph.flip(1)[:, 1:].contiguous().to(kernel_device)
    num_edges = edges.shape[1]
    of_edges = {
        "": [],
        "weight": [torch.rand(num_edges).double()],
        "values": [torch.randn(num_edges, 2).double()],
        "type": [torch.randint(0, RELATIONS, (num_edges,))],
    }[given]
    x = torch.randn(NODES, 3).double()
    found = []
    for model in (ours, stock):
        leaf, *values = (t.to(kernel_device, copy=True) for t in (x, *of_edges))
        leaves = [t.requires_grad_() for t in (leaf, *values) if t.is_floating_point()]
        leaves += list(model.parameters())
        for seed in (torch.manual_seed, random.seed, np.random.seed):  # of edges that are drawn
            seed(5)
        with limits(few_messages=0, passing_gain=0.0), count_programs() as ran:
            y = model(leaf, edges, *values)
            total = y.square().sum()
            if "supergat" in name:
                total = total + model.get_attention_loss()
            grads = torch.autograd.grad(total, leaves, allow_unused=True)
        assert (ran.plain > 0) == (model is ours)
        assert not ran.hag
        if model is ours:
            made = {type(run.program).__name__ for run in ran.programs}
            assert made <= {"DeviceProgram", "DeviceHAG"}
        found.append((y, *(g for g in grads if g is not None)))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
