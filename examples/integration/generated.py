"""Graphs for these examples, generated: nothing is downloaded."""

from itertools import pairwise

import torch
from torch_geometric.data import Data
from torch_geometric.utils import degree

from hag_plugin.data import generators


def communities() -> Data:
    """Nodes in cliques with bridges between them, of four classes that are seen in `x`."""
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.from_numpy(generators.cliques(num_cliques=40, size=20))
    clique = torch.arange(800) // 20
    y = clique % 4
    x = torch.nn.functional.one_hot(y, 16) + torch.randn(800, 16, generator=generator)
    train = torch.rand(800, generator=generator) < 0.5
    return Data(x=x, edge_index=edge_index, y=y, train_mask=train, val_mask=~train)


def collaborations(num_graphs: int = 96) -> list[Data]:
    """Ego networks of authors, by field, of which there are three; `x` has degrees and sizes."""
    edge_index, ptr, label = map(torch.from_numpy, generators.collaboration(num_graphs))
    graphs = []
    for i, (first, last) in enumerate(pairwise(ptr)):
        edges = edge_index[:, (edge_index[1] >= first) & (edge_index[1] < last)] - first
        nodes = int(last - first)
        links = degree(edges[1], nodes)
        x = torch.stack([links / 50, links.log1p(), torch.full((nodes,), nodes / 100)], dim=1)
        graphs.append(Data(x=x, edge_index=edges, y=label[i : i + 1]))
    return graphs
