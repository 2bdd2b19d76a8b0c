"""What rules a recipe out, and what to ask of a layer instead."""

from __future__ import annotations

from typing import Any

import torch
import torch_geometric
from torch_geometric.nn.dense.linear import Linear

from hag_plugin.modes import has_hooks
from hag_plugin.pyg.aggregation.aggregators import REDUCERS
from hag_plugin.pyg.recipes.recipe import Condition

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
    lambda conv: (
        "pre_layers > 1 makes messages of both ends, or the first layer was replaced or has hooks"
    ),
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
        if has_hooks(tower) or has_hooks(first):
            return False
        if not isinstance(first, (Linear, torch.nn.Linear)):
            return False
    return True
