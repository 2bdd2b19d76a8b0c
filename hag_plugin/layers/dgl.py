"""The records of DGL's layers, whose `forward` calls `update_all`."""

from __future__ import annotations

from typing import Any

from hag_plugin.hag.program import SelfLoops
from hag_plugin.layers.record import Record

EXPONENTS = {"none": (0.0, 0.0), "both": (-0.5, -0.5), "right": (0.0, -1.0), "left": (-1.0, 0.0)}
SAGE = {"mean": "mean", "gcn": "mean", "pool": "max", "lstm": "lstm"}


def symmetric(layer: Any) -> tuple[float, float]:
    """`D^-1/2` on both sides."""
    return EXPONENTS["both"]


def with_itself(layer: Any) -> SelfLoops:
    """SAGEConv("gcn"): the mean over neighbours and the node itself."""
    return "add" if layer._aggre_type == "gcn" else False


def aggregators(layer: Any) -> tuple[str, ...]:
    """Those of the towers."""
    return tuple(layer.towers[0].aggregators)


def always(layer: Any) -> bool:
    """A layer of attention."""
    return True


WEIGHT = ("edge_weight",)


def _conv(name: str, **facts: Any) -> Record:
    given = {"graphs": ("graph",), "features": "feat", **facts}
    return Record(f"dgl.nn.pytorch.{name}", **given)


RECORDS = (
    _conv(
        "conv.graphconv.GraphConv", edge_values=WEIGHT,
        exponents=lambda conv: EXPONENTS[conv._norm], weight="weight", bias="bias", inputs=-2,
    ),
    _conv(
        "conv.sageconv.SAGEConv", edge_values=WEIGHT, self_loops=with_itself,
        reduce=lambda conv: (SAGE[conv._aggre_type],),
        weight="fc_neigh.weight", root="fc_self.weight", bias="fc_self.bias bias",
    ),
    _conv(
        "conv.ginconv.GINConv", edge_values=WEIGHT, reduce=lambda conv: (conv._aggregator_type,)
    ),
    _conv("conv.sgconv.SGConv", edge_values=WEIGHT, exponents=symmetric),
    _conv("conv.tagconv.TAGConv", edge_values=WEIGHT, exponents=symmetric),
    _conv("conv.gcn2conv.GCN2Conv", edge_values=WEIGHT, exponents=symmetric),
    _conv("conv.chebconv.ChebConv", exponents=symmetric),
    _conv("conv.appnpconv.APPNPConv", edge_values=WEIGHT, exponents=symmetric),
    _conv(
        "conv.gatedgraphconv.GatedGraphConv",
        relations=lambda conv: conv._n_etypes if conv._n_etypes > 1 else None,
    ),
    _conv(
        "conv.relgraphconv.RelGraphConv", graphs=("g",),
        relations=lambda conv: conv.linear_r.num_types,
    ),
    _conv("conv.pnaconv.PNAConv", features="node_feat", reduce=aggregators),
    _conv("conv.dgnconv.DGNConv", features="node_feat", reduce=aggregators),
    _conv("conv.gatconv.GATConv", edge_values=WEIGHT, attends=always),
    _conv("conv.gatv2conv.GATv2Conv", attends=always),
    _conv("conv.dotgatconv.DotGatConv", attends=always),
    _conv("conv.agnnconv.AGNNConv", attends=always),
    _conv(
        "conv.edgegatconv.EdgeGATConv", edge_values=("edge_feat",), attends=always,
    ),
    _conv(
        "conv.egatconv.EGATConv", features="nfeats", edge_values=("efeats", "edge_weight"),
        attends=always,
    ),
    _conv(
        "conv.hgtconv.HGTConv", graphs=("g",), features="x", edge_values=("etype",), attends=always
    ),
    _conv("hetero.HeteroGraphConv", graphs=("g",), features="inputs"),
)  # fmt: skip
