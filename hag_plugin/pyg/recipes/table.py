"""The one table: a recipe for each PyG layer that a HAG serves.

A layer with nothing but its record has a plain `Recipe`. What the others need beyond that is here,
or beside the function that runs in place of their own, in `forwards`.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

from torch_geometric import nn
from torch_geometric.nn.models.linkx import SparseLinear

from hag_plugin.layers.pyg import RECORDS
from hag_plugin.pyg.recipes import attention, forwards, reorder
from hag_plugin.pyg.recipes.conditions import NO_CACHE, NO_EDGE_DROPOUT
from hag_plugin.pyg.recipes.recipe import Recipe

_CACHES = Recipe(cache="_cached_edge_index")

OWN: dict[type, Recipe] = {
    nn.SAGEConv: Recipe(keeps=lambda conv: reorder.is_bare(conv.lin_l), forward=reorder.sage),
    nn.GINConv: Recipe(keeps=lambda conv: True, forward=reorder.gin),
    nn.GraphConv: Recipe(keeps=lambda conv: reorder.is_bare(conv.lin_rel), forward=reorder.graph),
    nn.GCNConv: replace(_CACHES, forward=reorder.gcn),
    nn.APPNP: replace(_CACHES, conditions=(NO_EDGE_DROPOUT,)),
    nn.GCN2Conv: _CACHES,
    nn.SGConv: Recipe(conditions=(NO_CACHE,)),
    nn.SSGConv: Recipe(conditions=(NO_CACHE,)),
    nn.LEConv: Recipe(source="a", target="b", offset=lambda conv, b: -b, fuses=False),
    SparseLinear: Recipe(source="weight", size=lambda conv, call: (conv.in_channels,) * 2),
    **forwards.RECIPES,
    **attention.RECIPES,
}
_CLASSES = (
    (getattr(import_module(record.name.rpartition(".")[0]), record.layer), record)
    for record in RECORDS
)
RECIPES: dict[type, Recipe] = {
    cls: replace(OWN.get(cls, Recipe()), record=record) for cls, record in _CLASSES
}


def recipe_of(cls: type) -> Recipe | None:
    """The recipe of exactly this class: of the table, or declared by `hag_layer`."""
    declared = getattr(cls, "_hag_recipe", None)
    return declared if declared is not None else RECIPES.get(cls)
