"""The records of PyG's layers. Degrees are normalised by as in its `gcn_norm` (conv/gcn_conv.py).

`improved=True` of GCNConv changes nothing where there are no edge weights: `gcn_norm` ignores it
for a plain edge index then (`add_remaining_self_loops` of edge_attr=None).
"""

from __future__ import annotations

from typing import Any

from hag_plugin.hag.program import SelfLoops
from hag_plugin.layers.record import Record


def reducers(layer: Any) -> tuple[str, ...]:
    """What a layer aggregates with, as in ("mean", "max", "std")."""
    own: list[str] | None = layer.__dict__.get("aggregators")  # EGConv's
    if own is not None:
        return tuple(own)
    module = layer._modules["aggr_module"]  # asked at calls: not through `Module.__getattr__`
    module = module._modules.get("aggr", module)  # of one with scales of degrees
    several = module._modules.get("aggrs")
    members = [module] if several is None else several._modules.values()
    return tuple([type(m).__name__.removesuffix("Aggregation").lower() for m in members])


def filled(layer: Any) -> SelfLoops:
    """One loop a node, where the layer normalises and adds loops."""
    normalises = layer.__dict__.get("normalize", True)
    return "fill" if normalises and layer.add_self_loops else False


def attended(layer: Any) -> SelfLoops:
    """One loop a node in place of those there are, where the layer adds loops."""
    return "fill" if layer.__dict__.get("add_self_loops", False) else False


def symmetric(layer: Any) -> tuple[float, float]:
    """`D^-1/2` on both sides, where the layer normalises."""
    return (-0.5, -0.5) if layer.__dict__.get("normalize", True) else (0.0, 0.0)


WEIGHT = ("edge_weight",)
ATTRIBUTES = ("edge_attr",)
NORMALISED: dict[str, Any] = {"edge_values": WEIGHT, "exponents": symmetric}
GCN: dict[str, Any] = {**NORMALISED, "self_loops": filled}
ATTENTION: dict[str, Any] = {"attends": lambda conv: True, "self_loops": attended}
RELATIONAL: dict[str, Any] = {
    "features": None,
    "relations": lambda conv: conv.num_relations,
    "weight": "weight",
    "root": "root",
    "bias": "bias",
    "inputs": -2,
    "coefficients": "comp",
}


def _conv(name: str, **facts: Any) -> Record:
    return Record(f"torch_geometric.nn.conv.{name}", **{"reduce": reducers, **facts})


def _of_model(name: str, **facts: Any) -> Record:
    given = {"reduce": reducers, "features": None, "edge_values": WEIGHT, **facts}
    return Record(f"torch_geometric.nn.models.{name}", **given)


RECORDS = (
    # Messages are the sources' features as they are.
    _conv(
        "sage_conv.SAGEConv", weight="lin_l.weight", root="lin_r.weight", bias="lin_l.bias"
    ),
    _conv("gin_conv.GINConv"),
    _conv(
        "graph_conv.GraphConv", edge_values=WEIGHT, weight="lin_rel.weight",
        root="lin_root.weight", bias="lin_rel.bias",
    ),
    _conv(
        "simple_conv.SimpleConv", edge_values=WEIGHT,
        self_loops=lambda conv: "add" if conv.combine_root == "self_loop" else False,
    ),
    _conv("gated_graph_conv.GatedGraphConv", edge_values=WEIGHT),
    _conv("signed_conv.SignedConv", graphs=("pos_edge_index", "neg_edge_index")),
    _conv("mf_conv.MFConv"),
    _conv("wl_conv_continuous.WLConvContinuous", edge_values=WEIGHT),
    # Normalised as GCN is.
    _conv("gcn_conv.GCNConv", **GCN, weight="lin.weight", bias="bias"),
    _conv("appnp.APPNP", **GCN),
    _conv("gcn2_conv.GCN2Conv", **GCN),
    _conv("sg_conv.SGConv", **GCN),
    _conv("ssg_conv.SSGConv", **GCN),
    _conv("mixhop_conv.MixHopConv", **GCN),
    _conv("tag_conv.TAGConv", **NORMALISED),
    _conv("lg_conv.LGConv", **NORMALISED),
    _conv("arma_conv.ARMAConv", **NORMALISED),
    _conv("pdn_conv.PDNConv", edge_values=ATTRIBUTES, exponents=symmetric, self_loops=filled),
    # Normalised in ways of their own.
    _conv("eg_conv.EGConv", self_loops=filled),
    _conv(
        "cluster_gcn_conv.ClusterGCNConv",
        self_loops=lambda conv: "fill", exponents=lambda conv: (0.0, -1.0),
    ),
    _conv(
        "cheb_conv.ChebConv", edge_values=WEIGHT, self_loops=lambda conv: "fill",
        matrix="the scaled Laplacian",
    ),
    _conv(
        "hypergraph_conv.HypergraphConv", graphs=("hyperedge_index",),
        matrix="the incidence of hyperedges, and back",
    ),
    # A graph for each relation.
    _conv("rgcn_conv.RGCNConv", **RELATIONAL),
    _conv("rgcn_conv.FastRGCNConv", **RELATIONAL),
    _conv(
        "film_conv.FiLMConv",
        relations=lambda conv: conv.num_relations if conv.num_relations > 1 else None,
    ),
    # A term of the target, or a transform of the source, apart from the aggregation.
    _conv("le_conv.LEConv", edge_values=WEIGHT),
    _conv(
        "general_conv.GeneralConv", edge_values=ATTRIBUTES, attends=lambda conv: conv.attention
    ),
    _conv("pna_conv.PNAConv", edge_values=ATTRIBUTES),
    _conv("gen_conv.GENConv", edge_values=ATTRIBUTES),
    # Attention: a score of both ends weighs each message.
    _conv("gat_conv.GATConv", **ATTENTION, edge_values=ATTRIBUTES),
    _conv("gatv2_conv.GATv2Conv", **ATTENTION, edge_values=ATTRIBUTES),
    _conv("transformer_conv.TransformerConv", **ATTENTION, edge_values=ATTRIBUTES),
    _conv("agnn_conv.AGNNConv", **ATTENTION),
    _conv(
        "fa_conv.FAConv", **ATTENTION | {"self_loops": filled}, edge_values=WEIGHT,
        exponents=symmetric,
    ),
    _conv("supergat_conv.SuperGATConv", **ATTENTION),
    _conv(
        "han_conv.HANConv", **ATTENTION, graphs=("edge_index_dict",), features="x_dict",
    ),
    _conv(
        "hgt_conv.HGTConv", **ATTENTION, graphs=("edge_index_dict",), features="x_dict",
        matrix="the edges of all types",
    ),
    _conv(
        "rgat_conv.RGATConv", **ATTENTION, edge_values=ATTRIBUTES,
        relations=lambda conv: conv.num_relations,
    ),
    # Of models: labels are spread; a row of weights for each node is summed (LINKX).
    _of_model("label_prop.LabelPropagation", exponents=symmetric, weights_as_given=True),
    _of_model("linkx.SparseLinear"),
)  # fmt: skip

# What has no record, and why: by the name of the class, as not every version of PyG has all.
# tests/layers/test_scan.py finds those that are missing here.
_ATTENTION = "attention weighs each edge by both of its ends"
_BOTH = "its message is made of both ends of an edge"
_EDGE = "its message is made of features of the edge"
_FILTER = "a filter weighs each edge's message, feature by feature"
_POSITIONS = "its message is made of the positions of both ends"
NO_RECORD: dict[str, str] = {
    **dict.fromkeys(
        (
            *("DNAConv", "FeaStConv", "FusedGATConv", "GATEConv", "HEATConv"),
            *("LPAttLayer", "PointTransformerConv", "ViS_MP", "ViS_MP_Vertex"),
        ),
        _ATTENTION,
    ),
    **dict.fromkeys(("CGConv", "DynamicEdgeConv", "EdgeConv"), _BOTH),
    **dict.fromkeys(("GINEConv", "GMMConv", "NNConv", "SplineConv"), _EDGE),
    **dict.fromkeys(("CFConv", "NeighborEmbedding"), _FILTER),
    **dict.fromkeys(("PPFConv", "PointGNNConv", "PointNetConv"), _POSITIONS),
    "GravNetConv": "its graph of nearest neighbours is another in each call",
    "LPFormer": "it hands its edges on to LPAttLayer",
    "MeshCNNConv": "it takes the edges of a node one by one",
    "PANConv": "its matrix, a learned sum of powers, is another in each call",
    "ResGatedGraphConv": "gates weigh each edge by both of its ends",
}
