"""`explain`: what happens to each layer of a model, and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch.nn import Module
from torch_geometric.nn import MessagePassing

from hag_plugin.arguments import check_kind
from hag_plugin.explanation import Calls, Explanation, Row
from hag_plugin.limits import limits
from hag_plugin.pyg.model import facts, settle_blocks
from hag_plugin.pyg.model.calls import CALLS
from hag_plugin.pyg.recipes import lstm
from hag_plugin.pyg.recipes.recipe import stock_class
from hag_plugin.pyg.recipes.table import RECIPES, recipe_of
from hag_plugin.sequence.cost import describe

FEW = (
    "{}: in training, a call with fewer than {:,} numbers in all its messages runs stock, which is "
    "as fast there."
)


def explain(module: Module) -> Explanation:
    """Says of each message passing layer what is aggregated, whether over a HAG, and why not.

    Example:
        >>> import torch
        >>> from torch_geometric.nn import GATConv, SAGEConv
        >>> from hag_plugin.pyg import accelerate
        >>> model = accelerate(torch.nn.ModuleList([SAGEConv(4, 2), GATConv(2, 2)]))
        >>> [(row.layer, row.aggregates) for row in explain(model)]
        [('SAGEConv', 'mean over A'), ('GATConv', 'attention over A with one loop a node')]
    """
    check_kind("module", module, Module)
    layers = [
        (n, layer) for n, layer in module.named_modules() if isinstance(layer, MessagePassing)
    ]
    rows = tuple(_row(name, layer) for name, layer in layers)
    few = {r.layer for r, (_, layer) in zip(rows, layers, strict=True) if _yields(r, layer)}
    note = FEW.format(", ".join(sorted(few)), limits.few_messages)
    return Explanation(rows, (note,) if few else ())


def _yields(row: Row, layer: Any) -> bool:
    """Whether an accelerated layer leaves a call with few messages to stock."""
    recipe = recipe_of(stock_class(layer))
    if recipe is None or not row.accelerated or lstm.is_lstm(layer):
        return False
    return facts.may_be_small(layer, recipe)


def _row(name: str, layer: Any) -> Row:
    row, blocks = _row_of_hags(name, layer), settle_blocks.in_words(layer)
    if not blocks or (row.accelerated and not row.reason):
        return row
    return replace(row, reason=f"{row.reason}; {blocks}")


def _row_of_hags(name: str, layer: Any) -> Row:
    stock = stock_class(layer)
    recipe = recipe_of(stock)
    calls = layer.__dict__.get(CALLS) or Calls()
    if recipe is None:
        return Row(name, stock.__name__, False, "", facts.why_no_recipe(stock), calls)
    ready = type(layer) is not stock or getattr(stock, "_hag_recipe", None) is not None
    if lstm.is_lstm(layer) and stock in RECIPES:
        why = facts.why_no_lstm(layer, recipe)
        runs, words = (False, why) if why else describe(layer.aggr_module.lstm)
        if runs and not ready:
            runs, words = False, "eligible: call accelerate"
        return Row(name, stock.__name__, runs, recipe.record.aggregates(layer), words, calls)
    reason = facts.why_never(layer, recipe)
    if reason is None and not ready:
        reason = "eligible: call accelerate"
    accelerated = reason is None
    if reason is None and recipe.scores(layer):
        reason = "one pass over the edges, without messages"
    elif reason is None and recipe.record.edge_values:
        reason = f"calls with {', '.join(recipe.record.edge_values)} run stock"
        if recipe.fuses_weights:
            reason = "edge_weight is fused where it is a product of node factors"
    aggregates = recipe.record.aggregates(layer)
    return Row(name, stock.__name__, accelerated, aggregates, reason or "", calls)
