"""Whole models under torch.compile, and under PyG's name for it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_geometric
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch_geometric import nn as pyg
from torch_geometric.data import Data
from torch_geometric.loader import ClusterData
from torch_geometric.nn import models

import hag_plugin as hp
from hag_plugin.pyg import ToHAG, accelerate

WIDTH = 6
REVERSE = "target_to_source"
MODELS: dict[str, Callable[[], nn.Module]] = {
    "GCN": lambda: models.GCN(WIDTH, 8, 2, 3),
    "GraphSAGE": lambda: models.GraphSAGE(WIDTH, 8, 2, 3),
    "GIN": lambda: models.GIN(WIDTH, 8, 2, 3),
}
REVERSED: dict[str, Callable[[], nn.Module]] = {
    "GCNConv": lambda: pyg.GCNConv(WIDTH, 3, flow=REVERSE),
    "SAGEConv": lambda: pyg.SAGEConv(WIDTH, 3, flow=REVERSE),
    "GraphConv max": lambda: pyg.GraphConv(WIDTH, 3, aggr="max", flow=REVERSE),
    "EGConv": lambda: pyg.EGConv(
        WIDTH, 4, ["symnorm", "max", "std"], num_heads=2, num_bases=2, flow=REVERSE
    ),
    "DirGNNConv": lambda: pyg.DirGNNConv(pyg.SAGEConv(WIDTH, 3)),
    "DirGNNConv of GCNConv": lambda: pyg.DirGNNConv(pyg.GCNConv(WIDTH, 3)),
    "DirGNNConv of GATConv": lambda: pyg.DirGNNConv(pyg.GATConv(WIDTH, 3, add_self_loops=False)),
    "HypergraphConv": lambda: pyg.HypergraphConv(WIDTH, 3),
}


def compiled(model: nn.Module, backend: Any, fullgraph: bool) -> nn.Module:
    torch._dynamo.reset()
    with warnings.catch_warnings():  # PyG's name is deprecated in favour of torch's
        warnings.simplefilter("ignore")
        made: nn.Module = torch_geometric.compile(model, backend=backend, fullgraph=fullgraph)
    return made


def edges_between(nodes: int, generator: torch.Generator) -> torch.Tensor:
    """Directed edges with duplicates; the last node has one on both sides."""
    edges = torch.randint(nodes, (2, 4 * nodes), generator=generator)
    edges[0, 0] = edges[1, -1] = nodes - 1
    return edges


@pytest.mark.mostly_slow("SAGEConv", "GCNConv")
@pytest.mark.parametrize("name", [*MODELS, *REVERSED])
def test_compiled_equals_stock(name: str) -> None:
    """Whole graphs, forward and backward; and not one compilation for each HAG."""
    generator = torch.Generator().manual_seed(0)
    stock = (MODELS | REVERSED)[name]().double()
    backend = CompileCounterWithBackend("aot_eager")
    ours = compiled(accelerate(copy.deepcopy(stock)), backend, fullgraph=True)
    for nodes in (20, 27, 33, 41):
        edge_index = edges_between(nodes, generator)
        if nodes == 33:  # a symmetric graph, which is its own reverse
            edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
        x = torch.randn(nodes, WIDTH, dtype=torch.float64)
        results = []
        for model, graph in (
            (ours, hp.build_hag(edge_index, num_nodes=nodes)),
            (stock, edge_index),
        ):
            leaf = x.clone().requires_grad_()
            model.zero_grad()
            y = model(leaf, graph)
            (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
            results.append([y, leaf.grad, *(p.grad for p in model.parameters())])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert backend.frame_count <= 2  # the second with sizes that vary


class Through(nn.Module):
    """Turns its graph round, and does something that no compiled graph holds, in between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = pyg.GCNConv(WIDTH, 3)

    def forward(self, x: torch.Tensor, edge_index: Any) -> torch.Tensor:
        back = edge_index.flip([0])
        torch._dynamo.graph_break()
        out: torch.Tensor = self.conv(x, back)
        return out


def test_a_reversed_graph_leaves_compiled_code() -> None:
    edge_index = edges_between(20, torch.Generator().manual_seed(0))
    x, stock = torch.randn(20, WIDTH), Through()
    ours = compiled(accelerate(copy.deepcopy(stock)), "eager", fullgraph=False)
    hag = hp.build_hag(edge_index, num_nodes=20)
    torch.testing.assert_close(ours(x, hag), stock(x, edge_index))


def test_a_hag_for_each_fixed_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts as ClusterData cuts them; METIS itself is in packages that are not installed here."""
    edge_index = torch.randint(40, (2, 200))
    data = Data(x=torch.randn(40, WIDTH), edge_index=edge_index)
    monkeypatch.setattr(
        ClusterData, "_metis", lambda self, edges, n: torch.arange(int(n)) * 4 // int(n)
    )
    clusters = ClusterData(data, num_parts=4, log=False)
    parts = [ToHAG()(part) for part in clusters]
    stock = models.GraphSAGE(WIDTH, 8, 2, 3)
    ours = accelerate(copy.deepcopy(stock))
    assert len(parts) == 4
    assert sum(part.hag.num_edges for part in parts) > 0
    for part in parts:
        assert part.hag.num_dst == part.num_nodes == 10
        torch.testing.assert_close(ours(part.x, part.hag), stock(part.x, part.edge_index))
