"""Training with and without HAGs from one seed gives the same losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

dgl = pytest.importorskip("dgl", reason="DGL is not installed")
from dgl.dataloading import GraphDataLoader  # noqa: E402
from dgl.nn.pytorch import GINConv, GraphConv, SAGEConv  # noqa: E402

import hag_plugin as hp  # noqa: E402
from hag_plugin.data.graph_files import load_npz  # noqa: E402
from hag_plugin.dgl import ToHAG, collate  # noqa: E402

EPOCHS = 8


class GraphNet(nn.Module):
    """GIN, then GCN, then a readout."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first = GINConv(nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 16)))
        self.second = GraphConv(16, 16, allow_zero_in_degree=True)
        self.out = nn.Linear(16, classes)

    def forward(self, graph: Any) -> Tensor:
        x = torch.log1p(graph.in_degrees().double()).unsqueeze(1)
        x = self.second(graph, self.first(graph, x).relu()).relu()
        with graph.local_scope():
            graph.ndata["x"] = x
            return self.out(dgl.mean_nodes(graph, "x"))


def imdb(folder: Path, transform: Any) -> list[tuple[Any, Tensor]]:
    data = load_npz(folder / "npz" / "IMDB-MULTI.npz", features=False)
    assert data.graph_ptr is not None
    assert data.y is not None
    whole = dgl.graph(tuple(data.edge_index), num_nodes=data.num_nodes)
    sizes = data.graph_ptr.diff()
    graph_of = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    whole = whole.edge_subgraph(  # edges in the order of their graphs, as unbatch needs them
        torch.argsort(graph_of[data.edge_index[1]], stable=True), relabel_nodes=False
    )
    whole.set_batch_num_nodes(sizes)
    whole.set_batch_num_edges(torch.bincount(graph_of[whole.edges()[1]], minlength=len(sizes)))
    return [(transform(g), label) for g, label in zip(dgl.unbatch(whole), data.y, strict=True)]


def losses(model: nn.Module, batches: Any, step: Any) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    curve = []
    for _ in range(EPOCHS):
        for batch in batches:
            optimizer.zero_grad()
            loss = step(model, batch)
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
    return curve


@pytest.mark.slow
def test_graph_classification_on_imdb(shared_data: Path) -> None:
    curves = []
    for transform in (ToHAG(), lambda graph: graph):
        graphs = imdb(shared_data, transform)
        loader = GraphDataLoader(
            graphs, batch_size=128, shuffle=True, collate_fn=collate,
            generator=torch.Generator().manual_seed(1),
        )  # fmt: skip
        torch.manual_seed(0)
        model = GraphNet(3).double()
        curves.append(
            losses(model, loader, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]))
        )
    ours, stock = map(torch.tensor, curves)
    assert stock[-12:].mean() < stock[:12].mean()
    torch.testing.assert_close(ours, stock, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("way", ["ToHAG", "accelerate"])
def test_node_classification_on_cora(way: str, shared_data: Path) -> None:
    data = load_npz(shared_data / "npz" / "Cora.npz")
    assert data.x is not None
    graph = dgl.graph(tuple(data.edge_index), num_nodes=data.num_nodes).add_self_loop()
    x, y = data.x[:, :200].double(), data.y

    class NodeNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = GraphConv(200, 16), SAGEConv(16, data.num_classes, "gcn")

        def forward(self, graph: Any, x: Tensor) -> Tensor:
            return self.second(graph, self.first(graph, x).relu())

    curves = []
    for accelerated in (True, False):
        torch.manual_seed(0)
        model = NodeNet().double()
        structure = ToHAG()(graph) if accelerated and way == "ToHAG" else graph
        if accelerated and way == "accelerate":
            hp.accelerate(model)
        curves.append(
            losses(model, [structure], lambda m, g: nn.functional.cross_entropy(m(g, x), y))
        )
    assert curves[1][-1] < curves[1][0]
    torch.testing.assert_close(*map(torch.tensor, curves), rtol=1e-6, atol=1e-6)
