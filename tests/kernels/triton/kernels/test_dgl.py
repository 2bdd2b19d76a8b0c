"""Layers of DGL's whose graphs and features are where the kernels run.

On a CPU their tensors stand for a card's: DGL has no build here that has one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

dgl = pytest.importorskip("dgl", reason="DGL is not installed")
import dgl.nn.pytorch as layers  # noqa: E402

import hag_plugin as hp  # noqa: E402
from hag_plugin.dgl import explain  # noqa: E402
from hag_plugin.dgl.aggregation.choice import TIES  # noqa: E402
from hag_plugin.testing import count_programs, limits  # noqa: E402

from .conftest import NODES  # noqa: E402

TYPES = 3
# A layer, and what it is given besides: of an edge a number or a type.
LAYERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "graph": (lambda: layers.GraphConv(3, 2, allow_zero_in_degree=True), ""),
    "graph, weights": (lambda: layers.GraphConv(3, 2, allow_zero_in_degree=True), "weight"),
    "sage": (lambda: layers.SAGEConv(3, 2, "mean"), ""),
    "gin, max": (lambda: layers.GINConv(nn.Linear(3, 2), "max"), ""),
    "gat": (lambda: layers.GATConv(3, 2, 2, allow_zero_in_degree=True), ""),
    "gatv2": (lambda: layers.GATv2Conv(3, 2, 2, allow_zero_in_degree=True), ""),
    "relations": (lambda: layers.RelGraphConv(3, 2, TYPES), "type"),
}


def given_of(what: str, num_edges: int) -> dict[str, Tensor]:
    if what == "type":
        return {"etypes": torch.randint(0, TYPES, (num_edges,))}
    return {"edge_weight": torch.rand(num_edges)} if what else {}


@pytest.mark.parametrize(
    ("name", "passes"), [*((name, "HAG") for name in LAYERS), ("graph", "graph"), ("gat", "graph")]
)
def test_layers(name: str, passes: str, graph: Tensor, kernel_device: str) -> None:
    """Over a graph with a HAG, and over one that came back."""
    make, what = LAYERS[name]
    plain = dgl.graph(tuple(graph), num_nodes=NODES).to(kernel_device)
    own = hp.dgl.ToHAG()(plain) if passes == "HAG" else plain
    stock = make().to(kernel_device)
    ours = hp.accelerate(copy.deepcopy(stock))
    of_edges = {k: t.to(kernel_device) for k, t in given_of(what, graph.shape[1]).items()}
    x = torch.randn(NODES, 3).to(kernel_device)
    derived = "max" not in name
    found: list[Any] = []
    with limits(few_messages=0, passing_gain=0.0), torch.set_grad_enabled(derived):
        for conv, structure in ((ours, own), (stock, plain)):
            for _ in range(3 if conv is ours and (what or passes == "graph") else 1):
                leaf = x.clone().requires_grad_(derived)
                with count_programs() as ran:
                    y = conv(structure, leaf, **of_edges)
                    grads = (
                        torch.autograd.grad(y.square().sum(), [leaf, *conv.parameters()])
                        if derived
                        else ()
                    )
            assert bool(ran.programs) == (conv is ours)
            found.append((y, *grads))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_ties_are_left_to_dgl(graph: Tensor, kernel_device: str) -> None:
    """A maximum's gradients: whose they are on a card, DGL does not say."""
    own = hp.dgl.ToHAG()(dgl.graph(tuple(graph), num_nodes=NODES).to(kernel_device))
    conv = hp.accelerate(layers.GINConv(None, "max")).to(kernel_device)
    conv(own, torch.randn(NODES, 3, device=kernel_device, requires_grad=True))
    (row,) = explain(conv)
    assert row.calls.reasons == {"stock": TIES.format("max")}
