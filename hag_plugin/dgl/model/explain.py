"""`explain`: what happens to each layer of a DGL model, and why."""

from __future__ import annotations

from typing import Any

from torch.nn import Module

from hag_plugin.arguments import check_kind
from hag_plugin.dgl.model.accelerate import calls_of
from hag_plugin.dgl.recipes.table import aggregates, is_convolution, recipe_of, stock_class
from hag_plugin.explanation import Calls, Explanation, Row

NOT_COUNTED = "calls are counted once accelerate was called"


def explain(module: Module) -> Explanation:
    """Says of each layer that takes a graph what is aggregated, whether over a HAG, and why not.

    "HAG: yes" is what a graph from `ToHAG` gets in any model, and a plain graph that comes back in
    an accelerated one; of a layer of attention, that it runs in one pass over the edges of any
    graph in an accelerated model. What its calls ran on is counted once `accelerate` was called:
    "HAG", if sums were shared in one; "plain", if our kernels ran on the graph as it is; "stock",
    if DGL's own code did all. A call that raised is not counted.

    Example:
        >>> import torch
        >>> from dgl.nn import GATConv, SAGEConv
        >>> model = torch.nn.ModuleList([SAGEConv(4, 2, "mean"), GATConv(2, 2, 1)])
        >>> [(row.layer, row.aggregates) for row in explain(model)]
        [('SAGEConv', 'mean over A'), ('GATConv', 'attention over A')]
    """
    check_kind("module", module, Module)
    rows, counted = [], False
    for name, layer in module.named_modules():
        if aggregates(type(layer)) or is_convolution(type(layer)):
            calls = calls_of(layer)
            counted = counted or calls is not None
            rows.append(Row(name, stock_class(layer).__name__, *_facts(layer), calls or Calls()))
    return Explanation(tuple(rows), () if counted or not rows else (NOT_COUNTED,))


def _facts(layer: Any) -> tuple[bool, str, str]:
    """Whether a layer aggregates over HAGs, what, and a note: before its first call, too."""
    cls = type(layer)
    if getattr(cls, "_hag_declared", False):
        return True, "its message, once a node", _hint(layer)
    recipe = recipe_of(cls)
    if recipe is None:
        return False, "", "not known to aggregate rows of source nodes: as before"
    reason = recipe.ruled_out(layer)
    if reason is not None:
        return False, "", reason
    hint = _hint(layer) if recipe.attention is None else _hint_of_attention(layer)
    note = "; ".join(words for words in (recipe.note(layer), hint) if words)
    return True, recipe.aggregates(layer), note


def _hint(layer: Module) -> str:
    if calls_of(layer) is not None:
        return "plain graphs, dgl.batch's too: once they come back"
    return "plain graphs: call accelerate"


def _hint_of_attention(layer: Module) -> str:
    return "" if calls_of(layer) is not None else "call accelerate"
