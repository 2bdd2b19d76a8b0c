"""The one table: a recipe for each PyG layer that a HAG serves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch_geometric
from torch_geometric import nn
from torch_geometric.nn.dense.linear import Linear

from hag_plugin.hag.program import SelfLoops
from hag_plugin.pyg.aggregation.aggregators import REDUCERS
from hag_plugin.pyg.recipes import forwards, reorder
from hag_plugin.pyg.recipes.recipe import Call, Condition, Recipe
from hag_plugin.pyg.recipes.weighted import as_given, normalised

WEIGHT = ("edge_weight",)
WEIGHED: dict[str, Any] = {"edge_arguments": WEIGHT, "weigh": as_given}
NORMALISED: dict[str, Any] = {"edge_arguments": WEIGHT, "weigh": normalised}

SOURCE_TO_TARGET = Condition(
    lambda conv: conv.flow != "source_to_target",
    lambda conv: f"flow={conv.flow!r}: this layer looks at its edges in one direction",
    "flow='source_to_target'",
)
SUM = Condition(
    lambda conv: REDUCERS.get(type(conv.aggr_module)) != "sum",
    lambda conv: f"aggr={conv.aggr!r} is not a sum",
    "aggr='sum'",
)
SUM_OR_MEAN = Condition(
    lambda conv: REDUCERS.get(type(conv.aggr_module)) not in ("sum", "mean"),
    lambda conv: f"aggr={conv.aggr!r} is not sum or mean",
    "aggr='sum' or 'mean'",
)
NO_CACHE = Condition(
    lambda conv: conv.cached,
    lambda conv: "cached=True: it aggregates in its first call only",
    "cached=False",
)
NO_EDGE_DROPOUT = Condition(
    lambda conv: conv.dropout > 0 and conv.training,
    lambda conv: f"dropout={conv.dropout} drops edges in training",
    "no edge dropout (dropout=0, or evaluation)",
)
NO_ATTENTION = Condition(
    lambda conv: getattr(conv, "attention", False) or getattr(conv, "use_attention", False),
    lambda conv: "attention weights every edge",
    "no attention",
)
ONE_LAYER_BEFORE = Condition(
    lambda conv: not _are_linear(conv.pre_nns),
    lambda conv: "pre_layers > 1 makes messages of both ends, or the first layer was replaced",
    "pre_layers=1",
)
NO_EDGE_FEATURES = Condition(
    lambda conv: conv.edge_dim is not None,
    lambda conv: f"edge_dim={conv.edge_dim} takes edge features",
    "edge_dim=None",
)
NO_ACTIVATION = Condition(
    lambda conv: conv.act is not None,
    lambda conv: "act is applied to messages of both ends",
    "act=None",
)
NO_SEGMENT_MATMUL = Condition(
    lambda conv: (
        torch_geometric.typing.WITH_SEGMM
        and torch_geometric.backend.use_segment_matmul is not False
        and conv.num_bases is None
        and conv.num_blocks is None
        and REDUCERS.get(type(conv.aggr_module)) != "sum"
    ),
    lambda conv: "pyg_lib's segment_matmul aggregates all relations at once",
    "no pyg_lib's segment_matmul with another aggr than sum",
)
LOOPS = Condition(
    lambda conv: not conv.add_self_loops,
    lambda conv: "add_self_loops=False: it then expects a loop on each node",
    "add_self_loops=True",
)


def _are_linear(towers: Any) -> bool:
    for tower in towers._modules.values():
        if len(tower._modules) != 1:
            return False
        (first,) = tower._modules.values()
        if first._forward_hooks or first._forward_pre_hooks:
            return False
        if not isinstance(first, (Linear, torch.nn.Linear)):
            return False
    return True


def _filled(conv: Any) -> SelfLoops:
    return "fill" if conv.add_self_loops else False


def _filled_if_normalised(conv: Any) -> SelfLoops:
    return "fill" if conv.normalize and conv.add_self_loops else False


def _symmetric_if_normalised(conv: Any) -> float | None:
    return -0.5 if conv.normalize else None


def _symmetric(conv: Any) -> float:
    return -0.5


def _hypergraph_size(conv: Any, call: Call) -> tuple[int, int]:
    hyperedges = call.get("num_edges")
    if hyperedges is None:
        index = call["hyperedge_index"]
        hyperedges = int(index[1].max()) + 1 if index.numel() else 0
    return call["x"].shape[0], hyperedges


def _relational_size(conv: Any, call: Call) -> tuple[int, int]:
    x = call["x"]
    source, target = (x[0], x[1]) if isinstance(x, tuple) else (x, x)
    num_src = conv.in_channels_l if source is None else source.shape[0]
    return num_src, num_src if target is None else target.shape[0]


# improved=True changes nothing here: gcn_norm ignores it for a plain edge index without weights
# (torch_geometric/nn/conv/gcn_conv.py, add_remaining_self_loops of edge_attr=None).
_GCN = Recipe(
    self_loops=_filled_if_normalised,
    scale=_symmetric_if_normalised,
    **NORMALISED,
    yields=True,
    cache="_cached_edge_index",
)
_RELATIONAL = Recipe(
    features=None,
    forward=forwards.rgcn,
    relations=lambda conv: conv.num_relations,
    size=_relational_size,
    matrix="each relation's A",
)

RECIPES: dict[type, Recipe] = {
    # Messages are the sources' features as they are.
    nn.SAGEConv: Recipe(
        keeps=lambda conv: reorder.is_bare(conv.lin_l), forward=reorder.sage, yields=True
    ),
    nn.GINConv: Recipe(keeps=lambda conv: True, forward=reorder.gin, yields=True),
    nn.GraphConv: Recipe(
        **WEIGHED,
        keeps=lambda conv: reorder.is_bare(conv.lin_rel),
        forward=reorder.graph,
        yields=True,
    ),
    nn.SimpleConv: Recipe(
        self_loops=lambda conv: "add" if conv.combine_root == "self_loop" else False,
        **WEIGHED,
        yields=True,
    ),
    nn.GatedGraphConv: Recipe(**WEIGHED, yields=True),
    nn.SignedConv: Recipe(graphs=("pos_edge_index", "neg_edge_index"), yields=True),
    nn.MFConv: Recipe(forward=forwards.mf, conditions=(SOURCE_TO_TARGET,), yields=True),
    nn.WLConvContinuous: Recipe(
        forward=forwards.wl_continuous,
        edge_arguments=WEIGHT,
        conditions=(SOURCE_TO_TARGET,),
        yields=True,
    ),
    # Normalised as GCN is.
    nn.GCNConv: replace(_GCN, forward=reorder.gcn),
    nn.APPNP: replace(_GCN, conditions=(NO_EDGE_DROPOUT,)),
    nn.GCN2Conv: _GCN,
    nn.SGConv: Recipe(self_loops=_filled, scale=_symmetric, **NORMALISED, conditions=(NO_CACHE,)),
    nn.SSGConv: Recipe(self_loops=_filled, scale=_symmetric, **NORMALISED, conditions=(NO_CACHE,)),
    nn.MixHopConv: Recipe(self_loops=_filled, scale=_symmetric, **NORMALISED),
    nn.TAGConv: Recipe(scale=_symmetric_if_normalised, **NORMALISED, yields=True),
    nn.LGConv: Recipe(scale=_symmetric_if_normalised, **NORMALISED, yields=True),
    nn.ARMAConv: Recipe(scale=_symmetric, **NORMALISED),
    # Normalised in ways of their own.
    nn.EGConv: Recipe(reduce=forwards.eg_aggregate, self_loops=_filled, cache="_cached_edge_index"),
    nn.ClusterGCNConv: Recipe(
        self_loops=lambda conv: "fill",
        forward=forwards.cluster_gcn,
        conditions=(LOOPS, SUM, SOURCE_TO_TARGET),
        matrix="D^-1 (A with one loop a node)",
    ),
    nn.ChebConv: Recipe(
        self_loops=lambda conv: "fill",
        forward=forwards.cheb,
        edge_arguments=WEIGHT,
        conditions=(SUM, SOURCE_TO_TARGET),
        matrix="the scaled Laplacian",
    ),
    nn.HypergraphConv: Recipe(
        graphs=("hyperedge_index",),
        forward=forwards.hypergraph,
        size=_hypergraph_size,
        conditions=(NO_ATTENTION, SUM_OR_MEAN),
        matrix="the incidence of hyperedges, and back",
        returns=True,
    ),
    # A graph for each relation.
    nn.RGCNConv: replace(_RELATIONAL, conditions=(NO_SEGMENT_MATMUL,)),
    nn.FastRGCNConv: replace(_RELATIONAL, conditions=(SUM_OR_MEAN,), yields=True),
    nn.FiLMConv: Recipe(
        forward=forwards.film,
        relations=lambda conv: conv.num_relations if conv.num_relations > 1 else None,
        conditions=(NO_ACTIVATION, SUM_OR_MEAN, SOURCE_TO_TARGET),
        yields=True,
    ),
    # A term of the target, or a transform of the source, apart from the aggregation.
    nn.LEConv: Recipe(
        source="a",
        target="b",
        offset=lambda conv, b: -b,
        edge_arguments=WEIGHT,
        yields=True,
    ),
    nn.GeneralConv: Recipe(
        message=forwards.general_message,
        offset=forwards.general_offset,
        edge_arguments=("edge_attr",),
        conditions=(NO_ATTENTION,),
        yields=True,
    ),
    nn.PNAConv: Recipe(
        message=forwards.pna_message,
        offset=forwards.pna_offset,
        edge_arguments=("edge_attr",),
        conditions=(NO_EDGE_FEATURES, ONE_LAYER_BEFORE),
        yields=True,
    ),
    nn.GENConv: Recipe(message=forwards.gen_message, edge_arguments=("edge_attr",), yields=True),
}


def recipe_of(cls: type) -> Recipe | None:
    """The recipe of exactly this class: of the table, or declared by `hag_layer`."""
    declared = getattr(cls, "_hag_recipe", None)
    return declared if declared is not None else RECIPES.get(cls)
