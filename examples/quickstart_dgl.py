"""Three ways into hag_plugin for DGL, offline, in seconds.

Run: python examples/quickstart_dgl.py
"""

import os

os.environ.setdefault("DGLBACKEND", "pytorch")
import dgl
import dgl.function as fn
import torch
from dgl.data import KarateClubDataset
from dgl.dataloading import GraphDataLoader
from dgl.nn import GINConv, GraphConv
from torch import nn

import hag_plugin as hp
from hag_plugin.dgl import ToHAG, accelerate, collate, explain, hag_layer


def graph_classification() -> None:
    """1. A transform: `update_all` of its graphs runs on the HAG, in any model."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = GINConv(nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 16)))
            self.out = nn.Linear(16, 2)

        def forward(self, graph):
            x = self.conv(graph, torch.ones(graph.num_nodes(), 1)).relu()
            with graph.local_scope():
                graph.ndata["x"] = x
                return self.out(dgl.sum_nodes(graph, "x"))

    def ring_or_clique(i: int) -> dgl.DGLGraph:
        n = 5 + i % 8
        nodes = torch.arange(n)
        if i % 2:
            return dgl.add_reverse_edges(dgl.graph((nodes, nodes.roll(1))))
        return dgl.graph(tuple(torch.cartesian_prod(nodes, nodes).T)).remove_self_loop()

    # With a dataset class: GINDataset("IMDBMULTI", transform=ToHAG()), or last in a Compose.
    to_hag = ToHAG()
    dataset = [(to_hag(ring_or_clique(i)), i % 2) for i in range(128)]
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(5):
        # `collate` batches graphs with their HAGs; without it, batches are plain graphs.
        for graph, label in GraphDataLoader(
            dataset, batch_size=32, shuffle=True, collate_fn=collate
        ):
            optimizer.zero_grad()
            out = model(graph)
            nn.functional.cross_entropy(out, label).backward()
            optimizer.step()
    right = (out.argmax(-1) == label).float().mean()
    stats = graph.hag.stats()
    print(f"1. graphs: {right:.0%} right in the last batch; its HAG reads {stats.rows_read} rows")
    print(f"   where the plain graph reads {stats.rows_read_before}")


def node_classification(graph: dgl.DGLGraph) -> None:
    """2. A plain graph: one that comes back in a second forward gets its HAG."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([GraphConv(34, 16), GraphConv(16, 4)])

        def forward(self, graph, x):
            x = self.layers[0](graph, x).relu()
            return self.layers[1](graph, x)

    model = Net()
    x = torch.eye(34)
    before = model(graph, x)
    accelerate(model)
    for _ in range(3):
        after = model(graph, x)
    print(f"2. one graph: accelerated and stock differ by {(after - before).abs().max():.1e}")
    print(explain(model))
    hp.restore(model)


def own_layer(graph: dgl.DGLGraph) -> None:
    """3. A decorator for a layer of your own, whose message depends on the source node alone.

    Layers that use `fn.copy_u` need none.
    """

    @hag_layer
    class GatedConv(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.gate = nn.Linear(width, 1)

        def forward(self, graph, x):
            with graph.local_scope():
                graph.ndata["x"] = x
                graph.update_all(self.message, fn.mean("m", "y"))
                return graph.ndata["y"]

        def message(self, edges):
            return {"m": self.gate(edges.src["x"]).sigmoid() * edges.src["x"]}

    conv, x = GatedConv(34), torch.eye(34)
    difference = (conv(ToHAG()(graph), x) - conv(graph, x)).abs().max()
    print(f"3. own layer: with and without a HAG it differs by {difference:.1e}")


if __name__ == "__main__":
    torch.manual_seed(0)
    karate = KarateClubDataset()[0]
    graph_classification()
    node_classification(karate)
    own_layer(karate)
