"""Whole models under torch.compile, and under PyG's name for it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch_geometric
from torch import nn
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
    "DirGNNConv": lambda: pyg.DirGNNConv(pyg.SAGEConv(WIDTH, 3)),
}


def compiled(model: nn.Module, fullgraph: bool) -> nn.Module:
    torch._dynamo.reset()
    with warnings.catch_warnings():  # PyG's name is deprecated in favour of torch's
        warnings.simplefilter("ignore")
        made: nn.Module = torch_geometric.compile(model, backend="aot_eager", fullgraph=fullgraph)
    return made


# Dynamo itself looks at the gradients of what crosses from one compiled graph to the next.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", [*MODELS, *REVERSED])
def test_compiled_equals_stock(name: str) -> None:
    """Reversed graphs are made outside of the compiled graph, so that it is not whole."""
    stock = (MODELS | REVERSED)[name]().double()
    ours = compiled(accelerate(copy.deepcopy(stock)), fullgraph=name in MODELS)
    for nodes in (20, 27):
        edge_index = torch.randint(nodes, (2, 4 * nodes))
        x = torch.randn(nodes, WIDTH, dtype=torch.float64)
        found = ours(x, hp.build_hag(edge_index, num_nodes=nodes))
        torch.testing.assert_close(found, stock(x, edge_index), rtol=1e-10, atol=1e-10)
        found.sum().backward()


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
