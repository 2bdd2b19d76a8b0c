"""`update_all` on HAGs under torch's transforms, where DGL's own functions have no derivatives.

So they are compared with torch's gather and scatter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

dgl = pytest.importorskip("dgl", reason="DGL is not installed")
import dgl.function as fn  # noqa: E402
from dgl.nn.pytorch import GraphConv, SAGEConv  # noqa: E402

import hag_plugin as hp  # noqa: E402
from hag_plugin.dgl import ToHAG  # noqa: E402

from ...derivatives import EVERY, FIRST, SECOND, linearised  # noqa: E402

REDUCE = {"sum": "sum", "mean": "mean", "max": "amax", "min": "amin"}
NODES, WIDTH = 6, 3


def edges() -> Tensor:
    """In order of targets and sources, with duplicates and a node without edges."""
    pairs = torch.randint(NODES - 1, (18, 2))
    pairs = torch.cat([pairs, pairs[:4]])
    order = (pairs[:, 1] * NODES + pairs[:, 0]).argsort()
    return pairs[order].t()


def update_all(graph: Any, message: Any, reduce: str) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        with graph.local_scope():
            graph.ndata["x"] = x
            graph.update_all(message, getattr(fn, reduce)("m", "y"))
            y: Tensor = graph.ndata["y"]
            return y

    return run


def expected(edges: Tensor, reduce: str, weight: Tensor) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        messages = x[edges[0]] * weight.unsqueeze(-1)
        index = edges[1].unsqueeze(-1).expand_as(messages)
        zeros = x.new_zeros(NODES, WIDTH)
        return zeros.scatter_reduce(0, index, messages, REDUCE[reduce], include_self=False)

    return run


@pytest.mark.filterwarnings(
    "ignore:There is a performance drop", "ignore:Attempted to insert a get_attr Node"
)
@pytest.mark.parametrize("transform", EVERY)
@pytest.mark.parametrize("kind", ["sum", "mean", "max", "min", "u_mul_e"])
def test_update_all(kind: str, transform: Any) -> None:
    pairs = edges()
    graph = dgl.graph(tuple(pairs), num_nodes=NODES)
    weight = torch.ones(pairs.shape[1], dtype=torch.float64)
    x, v = torch.randn(2, NODES, WIDTH, dtype=torch.float64)
    reduce, message = kind, fn.copy_u("x", "m")
    if kind == "u_mul_e":
        factor = torch.rand(NODES, dtype=torch.float64) + 0.5
        weight = factor[pairs[0]] * factor[pairs[1]]
        reduce, message = "sum", fn.u_mul_e("x", "w", "m")
    graph.edata["w"] = weight
    graph = ToHAG()(graph)
    f, g = update_all(graph, message, reduce), expected(pairs, reduce, weight)
    if kind == "u_mul_e":
        f(x), f(x)  # factors are looked for when the weights come back
    torch.testing.assert_close(transform(f, x, v), transform(g, x, v))
    torch.testing.assert_close(f(x), g(x))  # nothing of the transform was kept


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")
@pytest.mark.parametrize("ties", [0, 1])
@pytest.mark.parametrize("transform", EVERY[:3])
def test_ties_go_where_plain_gradients_go(transform: Any, ties: int) -> None:
    """DGL's gradient of a maximum, in a transform as outside; the tangent is its transpose."""
    pairs = edges()
    graph = ToHAG()(dgl.graph(tuple(pairs), num_nodes=NODES))
    f = update_all(graph, fn.copy_u("x", "m"), "max")
    x = torch.full((NODES, WIDTH), float(ties), dtype=torch.float64)
    v = torch.randn(NODES, WIDTH, dtype=torch.float64)
    rows = []
    for weight in torch.eye(NODES * WIDTH, dtype=torch.float64):
        leaf = x.clone().requires_grad_()
        rows.append(torch.autograd.grad(f(leaf), leaf, weight.view_as(x))[0].flatten())
    matrix = torch.stack(rows)  # [outputs, inputs]
    if transform.__name__ == "vjp":
        wanted = f(x).cos().flatten() @ matrix
    else:
        wanted = matrix @ v.flatten()
    torch.testing.assert_close(transform(f, x, v).flatten(), wanted)


@pytest.mark.filterwarnings(
    "ignore:There is a performance drop", "ignore:Attempted to insert a get_attr Node"
)
@pytest.mark.parametrize("layer", ["graph", "mean", "gcn", "pool"])
# DGL's GraphConv asks for degrees, which a trace must not do.
@pytest.mark.parametrize("transform", [t for t in (*FIRST, *SECOND) if t is not linearised])
def test_layers(layer: str, transform: Any) -> None:
    """Every derivative of an accelerated layer is that of its dense matrix."""
    pairs = torch.cat([edges(), torch.arange(NODES).expand(2, -1)], dim=1)
    pairs = pairs[:, (pairs[1] * NODES + pairs[0]).argsort()]
    graph = dgl.graph(tuple(pairs), num_nodes=NODES)
    source, target = pairs
    conv = GraphConv(WIDTH, 2) if layer == "graph" else SAGEConv(WIDTH, 2, layer)
    conv = hp.accelerate(conv.double())
    x, v = torch.randn(2, NODES, WIDTH, dtype=torch.float64)
    for _ in range(3):
        conv(graph, x)

    def f(x: Tensor) -> Tensor:
        y: Tensor = conv(graph, x)
        return y

    def scattered(x: Tensor) -> Tensor:
        rows = conv.fc_pool(x).relu() if layer == "pool" else x
        if layer == "graph":
            rows = x * source.bincount().double().rsqrt().unsqueeze(-1)
        index = target.unsqueeze(-1).expand(-1, WIDTH)
        how = {"pool": "amax", "mean": "mean"}.get(layer, "sum")
        zeros = torch.zeros_like(rows)
        near = zeros.scatter_reduce(0, index, rows[source], how, include_self=False)
        degree = target.bincount().double().unsqueeze(-1)
        if layer == "graph":
            return (near * degree.rsqrt()) @ conv.weight + conv.bias
        if layer == "gcn":
            return conv.fc_neigh((near + x) / (degree + 1))
        return conv.fc_self(x) + conv.fc_neigh(near)

    torch.testing.assert_close(f(x), scattered(x))
    torch.testing.assert_close(transform(f, x, v), transform(scattered, x, v))
