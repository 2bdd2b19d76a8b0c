"""Every class of dgl.nn that takes a graph: how it is made, and what it is called with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dgl
import dgl.nn.pytorch as layers
import torch
from torch import nn

NODES, EDGES, WIDTH, TYPES = 15, 60, 4, 3


def disordered() -> Any:
    """Edges in a random order, some of them twice; each node has a loop, so none is alone."""
    generator = torch.Generator().manual_seed(4)
    edges = torch.randint(NODES, (2, EDGES), generator=generator)
    edges = torch.cat([edges, edges[:, :10], torch.arange(NODES).expand(2, -1)], dim=1)
    edges = edges[:, torch.randperm(edges.shape[1], generator=generator)]
    return dgl.graph(tuple(edges), num_nodes=NODES)


class Data:
    """Features of a graph."""

    def __init__(self, graph: Any, dtype: torch.dtype) -> None:
        torch.default_generator.manual_seed(1)
        nodes, edges = graph.num_nodes(), graph.num_edges()
        self.x = torch.randn(nodes, WIDTH).to(dtype).requires_grad_()
        self.z = torch.randn(nodes, WIDTH).to(dtype)
        # Many equal numbers, and edge features that tell edges apart which are there twice.
        self.steps = torch.randint(3, (nodes, WIDTH)).to(dtype).requires_grad_()
        self.e = torch.randn(edges, WIDTH).to(dtype).requires_grad_()
        self.w = (torch.rand(edges) + 0.2).to(dtype)
        self.positions = torch.randn(nodes, 3).to(dtype)
        self.types = torch.randint(TYPES, (edges,))
        self.kinds = torch.randint(TYPES, (nodes,))
        self.labels = torch.randint(TYPES, (nodes,))
        graph.ndata["eig"] = torch.randn(nodes, 3).to(dtype)


def graph_conv(**how: Any) -> nn.Module:
    return layers.GraphConv(WIDTH, 3, **how)


# How a class is made, and what it is called with beside the graph, which comes first.
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[Data], tuple[Any, ...]]]] = {
    "AGNNConv": (layers.AGNNConv, lambda d: (d.x,)),
    "APPNPConv": (lambda: layers.APPNPConv(2, 0.1), lambda d: (d.x,)),
    "APPNPConv, weights": (lambda: layers.APPNPConv(2, 0.1), lambda d: (d.x, d.w)),
    "AtomicConv": (
        lambda: layers.AtomicConv(*(torch.ones(3) * i for i in (2.0, 1.0, 0.5))),
        lambda d: (d.x[:, :1], d.w.unsqueeze(1)),
    ),
    "AvgPooling": (layers.AvgPooling, lambda d: (d.x,)),
    "CFConv": (lambda: layers.CFConv(WIDTH, WIDTH, 5, 3), lambda d: (d.x, d.e)),
    "ChebConv": (lambda: layers.ChebConv(WIDTH, 3, 3), lambda d: (d.x, [1.9])),
    "DGNConv": (
        lambda: layers.DGNConv(WIDTH, 3, ["mean", "dir1-av"], ["identity"], 2.5),
        lambda d: (d.x, None, d.positions),
    ),
    "DotGatConv": (lambda: layers.DotGatConv(WIDTH, 3, 2), lambda d: (d.x, True)),
    "EGATConv": (lambda: layers.EGATConv(WIDTH, WIDTH, 3, 3, 2), lambda d: (d.x, d.e, d.w, True)),
    "EGNNConv": (
        lambda: layers.EGNNConv(WIDTH, 5, 3, WIDTH),
        lambda d: (d.x, d.positions, d.e),
    ),
    "EdgeConv": (lambda: layers.EdgeConv(WIDTH, 3), lambda d: (d.x,)),
    "EdgeGATConv": (lambda: layers.EdgeGATConv(WIDTH, WIDTH, 3, 2), lambda d: (d.x, d.e, True)),
    "EdgeWeightNorm": (layers.EdgeWeightNorm, lambda d: (d.w,)),
    "GATConv": (lambda: layers.GATConv(WIDTH, 3, 2), lambda d: (d.x, d.w, True)),
    "GATv2Conv": (lambda: layers.GATv2Conv(WIDTH, 3, 2), lambda d: (d.x, True)),
    "GCN2Conv": (lambda: layers.GCN2Conv(WIDTH, 1), lambda d: (d.x, d.z)),
    "GCN2Conv, weights": (lambda: layers.GCN2Conv(WIDTH, 1), lambda d: (d.x, d.z, d.w)),
    **{
        f"GINConv, {how}": (
            lambda how=how: layers.GINConv(nn.Linear(WIDTH, 3), how, learn_eps=True),
            lambda d: (d.steps,),
        )
        for how in ("sum", "mean", "max")
    },
    "GINConv, weights": (lambda: layers.GINConv(nn.Linear(WIDTH, 3)), lambda d: (d.x, d.w)),
    "GINEConv": (lambda: layers.GINEConv(nn.Linear(WIDTH, 3)), lambda d: (d.x, d.e)),
    "GMMConv": (lambda: layers.GMMConv(WIDTH, 3, WIDTH, 2, "max"), lambda d: (d.x, d.e)),
    "GatedGraphConv": (lambda: layers.GatedGraphConv(WIDTH, WIDTH, 2, 1), lambda d: (d.x,)),
    "GatedGraphConv, types": (
        lambda: layers.GatedGraphConv(WIDTH, WIDTH, 2, TYPES),
        lambda d: (d.x, d.types),
    ),
    "GlobalAttentionPooling": (
        lambda: layers.GlobalAttentionPooling(nn.Linear(WIDTH, 1)),
        lambda d: (d.x, True),
    ),
    **{
        f"GraphConv, {norm}": (lambda norm=norm: graph_conv(norm=norm), lambda d: (d.x,))
        for norm in ("none", "both", "right", "left")
    },
    "GraphConv, weights": (graph_conv, lambda d: (d.x, None, d.w)),
    "GroupRevRes": (
        lambda: layers.GroupRevRes(layers.GraphConv(2, 2), 2),
        lambda d: (d.x.repeat(1, 1),),
    ),
    "HGTConv": (
        lambda: layers.HGTConv(WIDTH, 2, 2, TYPES, TYPES, 0.0),
        lambda d: (d.x, d.kinds, d.types),
    ),
    "HeteroGraphConv": (
        lambda: layers.HeteroGraphConv({"_E": graph_conv()}),
        lambda d: ({"_N": d.x},),
    ),
    "LabelPropagation": (lambda: layers.LabelPropagation(3, 0.5), lambda d: (d.labels,)),
    "MaxPooling": (layers.MaxPooling, lambda d: (d.x,)),
    "NNConv": (
        lambda: layers.NNConv(WIDTH, 3, nn.Linear(WIDTH, WIDTH * 3), "max"),
        lambda d: (d.x, d.e),
    ),
    "PNAConv": (
        lambda: layers.PNAConv(WIDTH, 3, ["mean", "max", "sum", "var"], ["identity"], 2.5),
        lambda d: (d.x,),
    ),
    "PNAConv, edges": (
        lambda: layers.PNAConv(WIDTH, 3, ["mean", "max"], ["amplification"], 2.5, 0.0, 1, WIDTH),
        lambda d: (d.x, d.e),
    ),
    "RelGraphConv": (lambda: layers.RelGraphConv(WIDTH, 3, TYPES), lambda d: (d.x, d.types)),
    "RelGraphConv, norm": (
        lambda: layers.RelGraphConv(WIDTH, 3, TYPES, "basis", 2),
        lambda d: (d.x, d.types, d.w.unsqueeze(1)),
    ),
    **{
        f"SAGEConv, {how}": (
            lambda how=how: layers.SAGEConv(WIDTH, 3, how),
            lambda d: (d.steps,),
        )
        for how in ("mean", "gcn", "pool", "lstm")
    },
    "SAGEConv, weights": (lambda: layers.SAGEConv(WIDTH, 3, "mean"), lambda d: (d.x, d.w)),
    "SGConv": (lambda: layers.SGConv(WIDTH, 3, 2), lambda d: (d.x,)),
    "SGConv, cached": (lambda: layers.SGConv(WIDTH, 3, 2, cached=True), lambda d: (d.z,)),
    "Sequential": (lambda: layers.Sequential(graph_conv()), lambda d: (d.x,)),
    "Set2Set": (lambda: layers.Set2Set(WIDTH, 2, 1), lambda d: (d.x,)),
    "SetTransformerDecoder": (
        lambda: layers.SetTransformerDecoder(WIDTH, 2, 2, 5, 1, 2),
        lambda d: (d.x,),
    ),
    "SetTransformerEncoder": (
        lambda: layers.SetTransformerEncoder(WIDTH, 2, 2, 5),
        lambda d: (d.x,),
    ),
    "SortPooling": (lambda: layers.SortPooling(4), lambda d: (d.x,)),
    "SumPooling": (layers.SumPooling, lambda d: (d.x,)),
    "TAGConv": (lambda: layers.TAGConv(WIDTH, 3), lambda d: (d.x,)),
    "TAGConv, weights": (lambda: layers.TAGConv(WIDTH, 3), lambda d: (d.x, d.w)),
    "TWIRLSConv": (lambda: layers.TWIRLSConv(WIDTH, 3, 5, 2), lambda d: (d.x,)),
    "TWIRLSConv, attention": (
        lambda: layers.TWIRLSConv(WIDTH, 3, 5, 2, attention=True, alp=0.5),
        lambda d: (d.x,),
    ),
    "TWIRLSUnfoldingAndAttention": (
        lambda: layers.TWIRLSUnfoldingAndAttention(WIDTH, 0.5, 1.0, 2),
        lambda d: (d.x,),
    ),
    "WeightAndSum": (lambda: layers.WeightAndSum(WIDTH), lambda d: (d.x,)),
}
