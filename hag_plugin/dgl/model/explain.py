"""`explain`: what happens to each layer of a DGL model, and why."""

from __future__ import annotations

from typing import Any

from torch.nn import Module

from hag_plugin.dgl.model.accelerate import is_accelerated, is_layer
from hag_plugin.dgl.recipes.table import recipe_of
from hag_plugin.explanation import Explanation, Row


def explain(module: Module) -> Explanation:
    """Says of each layer that takes a graph what is aggregated, whether over a HAG, and why not.

    "HAG: yes" is what a graph from `ToHAG` gets in any model, and a plain graph that comes back in
    an accelerated one.

    Example:
        >>> import torch
        >>> from dgl.nn import GATConv, SAGEConv
        >>> model = torch.nn.ModuleList([SAGEConv(4, 2, "mean"), GATConv(2, 2, 1)])
        >>> [(row.layer, row.aggregates) for row in explain(model)]
        [('SAGEConv', 'mean over A'), ('GATConv', '')]
    """
    return Explanation(
        tuple(
            _row(name, layer)
            for name, layer in module.named_modules()
            if is_layer(layer) or _is_dgl_convolution(layer)
        )
    )


def _is_dgl_convolution(layer: Module) -> bool:
    return any(
        cls.__module__.startswith("dgl.nn.pytorch.conv.") for cls in type(layer).__mro__
    ) and (not type(layer).__name__.endswith(("Tower", "EdgeWeightNorm")))


def _row(name: str, layer: Any) -> Row:
    cls = type(layer)
    if getattr(cls, "_hag_declared", False):
        return Row(name, cls.__name__, True, "its message, once a node", _hint(layer))
    recipe = recipe_of(cls)
    if recipe is None:
        words = "not known to aggregate rows of source nodes: as before"
        return Row(name, cls.__name__, False, "", words)
    reason = recipe.ruled_out(layer)
    if reason is not None:
        return Row(name, cls.__name__, False, "", reason)
    note = "; ".join(words for words in (recipe.note(layer), _hint(layer)) if words)
    return Row(name, cls.__name__, True, recipe.aggregates(layer), note)


def _hint(layer: Module) -> str:
    if is_accelerated(layer):
        return "plain graphs, dgl.batch's too: once they come back"
    return "plain graphs: call accelerate"
