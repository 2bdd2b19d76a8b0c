"""The models of the epochs suite, in PyG and in DGL, with the same weights."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import peers
from .graphs import Graph

KINDS = ("GCN", "SAGE-mean", "GIN")
ATTENTION = "GAT"  # of PyG, on a GPU
HEADS = 4
FEATURES, CLASSES = 64, 16


class Net(nn.Module):
    """Two layers with a ReLU between them; `graph_first` is how DGL's layers are called."""

    def __init__(self, layers: list[nn.Module], graph_first: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.graph_first = graph_first

    def forward(self, x: Tensor, graph: Any) -> Tensor:
        """Class scores `[N, CLASSES]` of features `[N, FEATURES]`."""
        first, second = self.layers
        if self.graph_first:
            scores: Tensor = second(graph, first(graph, x).relu())
        else:
            scores = second(first(x, graph).relu(), graph)
        return scores


def _perceptron(width_in: int, width_out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width_in, width_out), nn.ReLU(), nn.Linear(width_out, width_out))


def pyg_net(kind: str, hidden: int, seed: int, normalised: bool = False) -> Net:
    """The model of PyG layers.

    Args:
        kind: of `KINDS`, or `ATTENTION`.
        hidden: hidden features.
        seed: of the weights.
        normalised: the graph it gets is a matrix that GCN's norm was applied to.
    """
    from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv

    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for width_in, width_out in ((FEATURES, hidden), (hidden, CLASSES)):
        if kind == "GCN":
            layers.append(GCNConv(width_in, width_out, normalize=not normalised))
        elif kind == "SAGE-mean":
            layers.append(SAGEConv(width_in, width_out, aggr="mean"))
        elif kind == ATTENTION:
            layers.append(GATConv(width_in, width_out // HEADS, HEADS))
        else:
            layers.append(GINConv(_perceptron(width_in, width_out)))
    return Net(layers, graph_first=False)


def dgl_net(kind: str, hidden: int, seed: int) -> Net:
    """The model of DGL layers, with the weights of `pyg_net`."""
    dgl = peers.load("dgl")
    made = dgl.nn.pytorch
    layers: list[nn.Module] = []
    for width_in, width_out in ((FEATURES, hidden), (hidden, CLASSES)):
        if kind == "GCN":
            layers.append(made.GraphConv(width_in, width_out, allow_zero_in_degree=True))
        elif kind == "SAGE-mean":
            layers.append(made.SAGEConv(width_in, width_out, "mean"))
        else:
            layers.append(made.GINConv(_perceptron(width_in, width_out), "sum"))
    net = Net(layers, graph_first=True)
    for theirs, ours in zip(net.layers, pyg_net(kind, hidden, seed).layers, strict=True):
        _take_weights(kind, theirs, ours)
    return net


@torch.no_grad()
def _take_weights(kind: str, theirs: Any, ours: Any) -> None:
    """Copies the weights of a PyG layer into the DGL layer that computes the same."""
    if kind == "GCN":
        theirs.weight.copy_(ours.lin.weight.t())
        theirs.bias.copy_(ours.bias)
    elif kind == "SAGE-mean":
        theirs.fc_neigh.weight.copy_(ours.lin_l.weight)
        theirs.fc_self.bias.copy_(ours.lin_l.bias)
        theirs.fc_self.weight.copy_(ours.lin_r.weight)
    else:
        theirs.apply_func.load_state_dict(ours.nn.state_dict())


def normalised_csr(graph: Graph) -> Tensor:
    """GCN's matrix D^-1/2 (A + I) D^-1/2 as a torch CSR tensor, by PyG's own `gcn_norm`."""

    def make() -> Tensor:
        from torch_geometric.nn.conv.gcn_conv import gcn_norm

        n = graph.num_nodes
        edges, weight = gcn_norm(graph.edge_index, None, n)
        order = (edges[1] * n + edges[0]).argsort()
        counts = torch.bincount(edges[1], minlength=n)
        row_ptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).int()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.sparse_csr_tensor(
                row_ptr, edges[0][order].int(), weight[order], size=(n, n)
            )

    matrix: Tensor = graph.kept("normalised csr", make)
    return matrix


@dataclass(frozen=True)
class Side:
    """A model with what it runs on.

    Attributes:
        net: the model.
        graph: what its layers take for a graph.
        x: features `[N, FEATURES]`.
        labels: int64 `[N]`.
        optimizer: of its weights.
    """

    net: Net
    graph: Any
    x: Tensor
    labels: Tensor
    optimizer: torch.optim.Optimizer

    def loss(self) -> Tensor:
        """Cross-entropy over all nodes."""
        return nn.functional.cross_entropy(self.net(self.x, self.graph), self.labels)

    def train(self) -> None:
        """One full-batch training epoch."""
        self.optimizer.zero_grad()
        torch.autograd.backward(self.loss())
        self.optimizer.step()

    def infer(self) -> Tensor:
        """One full-batch inference epoch: class scores."""
        with torch.no_grad():
            scores: Tensor = self.net(self.x, self.graph)
        return scores

    def gradient_norm(self) -> float:
        """Norm of the gradient over all weights: the same for transposed weights."""
        self.optimizer.zero_grad()
        torch.autograd.backward(self.loss())
        squares = [p.grad.double().square().sum() for p in self.net.parameters()
                   if p.grad is not None]  # fmt: skip
        self.optimizer.zero_grad()
        return float(torch.stack(squares).sum().sqrt())
