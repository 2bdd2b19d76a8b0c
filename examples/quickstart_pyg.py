"""Three ways into hag_plugin for PyTorch Geometric, offline, in seconds.

Run: python examples/quickstart_pyg.py
"""

import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.datasets import KarateClub
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv, GINConv, MessagePassing, global_add_pool

import hag_plugin as hp
from hag_plugin.pyg import ToHAG, accelerate, explain, hag_layer


def graph_classification() -> None:
    """1. A dataset transform: models take `batch.hag` where `batch.edge_index` stood."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = GINConv(nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 16)))
            self.out = nn.Linear(16, 2)

        def forward(self, x, edge_index, batch):
            return self.out(global_add_pool(self.conv(x, edge_index).relu(), batch))

    def ring_or_clique(i: int) -> Data:
        n = 5 + i % 8
        nodes = torch.arange(n)
        edges = (
            torch.stack([nodes, nodes.roll(1)]) if i % 2 else torch.cartesian_prod(nodes, nodes).T
        )
        edges = torch.cat([edges, edges.flip(0)], dim=1).unique(dim=1)
        edges = edges[:, edges[0] != edges[1]]
        return Data(x=torch.ones(n, 1), edge_index=edges, y=torch.tensor([i % 2]))

    # With a dataset class: TUDataset(root, name, pre_transform=ToHAG()), saved with the graphs.
    to_hag = ToHAG()
    dataset = [to_hag(ring_or_clique(i)) for i in range(128)]
    model = accelerate(Net())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(5):
        for batch in DataLoader(dataset, batch_size=32, shuffle=True):
            optimizer.zero_grad()
            out = model(batch.x, batch.hag, batch.batch)
            nn.functional.cross_entropy(out, batch.y).backward()
            optimizer.step()
    right = (out.argmax(-1) == batch.y).float().mean()
    stats = batch.hag.stats()
    print(f"1. graphs: {right:.0%} right in the last batch; its HAG reads {stats.rows_read} rows")
    print(f"   where the plain graph reads {stats.rows_read_before}")


def node_classification() -> None:
    """2. A plain edge_index: one that comes back in a second forward gets its HAG."""
    data = KarateClub()[0]
    layers = nn.ModuleList([GCNConv(data.num_features, 16), GCNConv(16, 4)])

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x, edge_index):
            x = self.layers[0](x, edge_index).relu()
            return self.layers[1](x, edge_index)

    model = Net()
    before = model(data.x, data.edge_index)
    accelerate(model)
    for _ in range(3):
        after = model(data.x, data.edge_index)
    print(f"2. one graph: accelerated and stock differ by {(after - before).abs().max():.1e}")
    print(explain(model))
    hp.pyg.restore(model)


def own_layer() -> None:
    """3. A decorator for a layer of your own, whose message depends on the source node alone."""

    @hag_layer
    class GatedConv(MessagePassing):
        def __init__(self, width: int) -> None:
            super().__init__(aggr="mean")
            self.gate = nn.Linear(width, 1)

        def forward(self, x, edge_index):
            return self.propagate(edge_index, x=x, gate=self.gate(x).sigmoid())

        def message(self, x_j, gate_j):
            return gate_j * x_j

    data = KarateClub()[0]
    conv = GatedConv(data.num_features)
    hag = hp.build_hag(data.edge_index, num_nodes=data.num_nodes)
    difference = (conv(data.x, hag) - conv(data.x, data.edge_index)).abs().max()
    print(f"3. own layer: HAG and edge_index differ by {difference:.1e}")


if __name__ == "__main__":
    torch.manual_seed(0)
    graph_classification()
    node_classification()
    own_layer()
