"""`settle_product`: what a call of a layer runs on whose graph is a sparse matrix, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hag_plugin.explanation import Kind
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.passing import Messages
from hag_plugin.limits import limits
from hag_plugin.modes import untraced
from hag_plugin.pyg.model import session as sessions
from hag_plugin.pyg.model.choice import (
    BACK,
    FACTORS,
    MANY_MET,
    MET,
    MET_WEIGHTS,
    NO_FACTORS,
    NOTHING,
    ONE_VALUE,
    SPARSE,
    SPARSE_FEW,
    Choice,
)
from hag_plugin.pyg.model.facts import edge_values_of, graph_size, why_never, why_not_taken
from hag_plugin.pyg.model.first_met import are_rows, row_bytes_of
from hag_plugin.pyg.recipes.adjacency import (
    graph_of,
    has_ones,
    layout_of,
    num_entries,
    parts_of,
    shape_of,
    weighs_by_values,
)
from hag_plugin.pyg.recipes.recipe import PAIRS, Call, Recipe
from hag_plugin.pyg.recipes.weighted import WeightedGraph
from hag_plugin.recall import Passing, value_of


@untraced
def settle_product(conv: Any, recipe: Recipe, name: str, call: Call, session: Any) -> Choice:
    """What a call runs on, and why. Stock's own code makes no messages of a matrix, but brings it
    into another order for each gradient."""
    adj_t, features = call[name], call.get(recipe.record.features or recipe.source)
    reason = why_never(conv, recipe) or why_not_taken(conv, recipe, features)
    given = edge_values_of(recipe.record.edge_values, call)
    keeps = recipe.cache is not None and conv.cached
    if reason is None and given is not None:
        reason = ONE_VALUE.format(given)
    if reason is None and (keeps or recipe.record.relations is not None):
        reason = SPARSE
    if reason is not None or conv.flow != "source_to_target":
        return Choice("stock", reason or SPARSE, NOTHING)
    size, parts = shape_of(adj_t), parts_of(adj_t)
    x = features[0] if isinstance(features, PAIRS) else features
    if size != graph_size(recipe, conv, call) or not _is_product(conv, adj_t, parts[-1], x):
        return Choice("stock", SPARSE, NOTHING)
    record, improved = recipe.record, getattr(conv, "improved", False)
    layer = record.self_loops(conv), record.exponents(conv), improved
    how = ("adjacency", *size, *layer, weighs_by_values(conv, recipe, adj_t))
    found = session.made_of(
        parts,
        how,
        lambda: sessions.build(len(parts[-1]), lambda: graph_of(conv, recipe, adj_t)),
        conv,
        features,
        passing=_first_met(conv, recipe, call, adj_t, features),
    )
    is_passing = type(found) is Passing
    graph = value_of(found)
    is_large = len(parts[-1]) > limits.searched_edges
    if isinstance(graph, HAG):
        if is_passing:
            return Choice("plain", MANY_MET if is_large else MET, {name: graph})
        return Choice("HAG", BACK, {name: graph})
    if isinstance(graph, WeightedGraph):
        if is_passing:
            return Choice("plain", MANY_MET if is_large else MET_WEIGHTS, {name: graph})
        kind: Kind = "HAG" if graph.weight is None else "plain"
        reason = FACTORS if graph.weight is None else NO_FACTORS
        return Choice(kind, reason, {name: graph})
    return Choice("stock", SPARSE_FEW if graph is None else graph, NOTHING)


def _first_met(
    conv: Any, recipe: Recipe, call: Call, adj_t: Any, features: Any
) -> Callable[[], Any] | None:
    """What makes the graph of a matrix that is met first, where that pays; None otherwise."""
    derived, normalised = torch.is_grad_enabled(), recipe.scale(conv) is not None
    layout, pair = layout_of(adj_t), features if isinstance(features, PAIRS) else (features,) * 2
    if not (derived or normalised or layout == torch.sparse_csc):
        return None  # stock only multiplies by it

    def passing() -> Any:
        x, size = pair[0], shape_of(adj_t)
        home = parts_of(adj_t)[1].device
        if home.type != "cpu" or not are_rows(conv, pair[:2], call.get("size"), size, home):
            return None
        messages = Messages(
            *(num_entries(adj_t), size, row_bytes_of(conv, x)),
            derived=derived and (recipe.keeps is None or x is None or x.requires_grad),
            weighted=normalised,
            layout=layout,
        )
        if not messages.pays():
            return None
        if not has_ones(adj_t) and not messages._replace(valued=True).pays():
            return None
        return sessions.made(lambda: graph_of(conv, recipe, adj_t, met=True, both=derived))

    return passing


def _is_product(conv: Any, adj_t: Any, values: Tensor, x: Any) -> bool:
    """Whether stock can multiply features by a matrix whose values are constant."""
    if values.requires_grad or (isinstance(adj_t, Tensor) and adj_t.requires_grad):
        return False
    if not conv.fuse or x is None or not isinstance(adj_t, Tensor):
        return True
    return bool(x.dim() == 2 and x.dtype == values.dtype)
