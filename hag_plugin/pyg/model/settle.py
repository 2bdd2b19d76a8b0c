"""`settle`: what a call of a layer runs on, and why. The only place where that is decided.

A layer's `forward` obeys it, and `explain` prints it: before the first call what is known of the
layer as it is set up (`why_never`), afterwards what became of its calls (`calls.note`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.nn.aggr import LSTMAggregation

from hag_plugin.hag.hag import HAG
from hag_plugin.hag.passing import plain_hag
from hag_plugin.pyg.aggregation.aggregators import REDUCERS
from hag_plugin.pyg.aggregation.neighbourhoods import check_sizes
from hag_plugin.pyg.model import compiled, edge_order
from hag_plugin.pyg.model.choice import (
    BACK,
    COMPILED,
    COMPILED_BARE,
    COMPILED_PLAIN,
    COMPILED_WEIGHTS,
    FACTORS,
    FEW,
    FILLS,
    LSTM_SLOW,
    MET,
    MET_WEIGHTS,
    NO_FACTORS,
    NO_LISTS,
    NO_TYPES,
    NOT_ACCELERATED,
    NOTHING,
    ONE_VALUE,
    OTHER_CACHE,
    OTHER_WEIGHTS,
    PASSED,
    SCORED_PASSED,
    SORTED,
    SPARSE,
    TREE_PASSED,
    Choice,
)
from hag_plugin.pyg.model.facts import (
    are_few,
    as_plain,
    check_relations,
    edge_values_of,
    graph_size,
    has_cache,
    has_few,
    is_edge_index,
    is_multiplied,
    is_relations,
    may_be_small,
    plain_edges,
    plain_if_as_said,
    refuse_edge_values,
    refuse_if_ordered,
    why_never,
    why_no_tree,
    why_not_taken,
    why_passing,
    why_unknown,
)
from hag_plugin.pyg.model.first_met import first_met
from hag_plugin.pyg.model.settle_product import settle_product
from hag_plugin.pyg.model.settle_scores import (
    scored_hag,
    settle_scored_matrix,
    settle_scores,
    settle_traced,
    settle_types,
    why_no_scores,
)
from hag_plugin.pyg.recipes import lstm
from hag_plugin.pyg.recipes.adjacency import is_adjacency, num_entries
from hag_plugin.pyg.recipes.recipe import PAIRS, Call, Recipe
from hag_plugin.pyg.recipes.relations import plain_relation_hags, plain_relations, relation_hags
from hag_plugin.pyg.recipes.weighted import weighted_graph
from hag_plugin.recall import Passing, decide, is_run_again
from hag_plugin.sequence.cost import note_counts
from hag_plugin.sequence.prefix_tree import SequentialHAG

GRAPHS = (HAG, SequentialHAG)

# What is kept of an edge index on which stock's code was found to be as fast, with the layer's
# aggregation and whether there were gradients.
LEFT = "left to stock"

_FEW = Choice("stock", FEW, NOTHING)  # made at every call otherwise
_COMPILED = Choice("stock", COMPILED, NOTHING)
_PASSED = Choice("HAG", PASSED, NOTHING)


def settle(conv: Any, recipe: Recipe, call: Call, name: str | None = None) -> Choice:
    """What a call of a layer runs on, and why. The order of the questions is here.

    Args:
        conv: the layer.
        recipe: its recipe.
        call: the arguments of `forward`, or of a declared layer's `propagate`, by name.
        name: the graph that is asked for, where a call is given several; None: all.

    Raises:
        ValueError: a HAG was passed with what it cannot stand beside, or the layer depends on the
            order of edges.
    """
    if name is None:
        if len(recipe.record.graphs) > 1:
            return _settle_each(conv, recipe, call)
        name = recipe.record.graphs[0]
    graph = call.get(name)
    features = call.get(recipe.record.features or recipe.source)
    if isinstance(graph, Tensor):
        if torch.compiler.is_compiling():
            return _settle_compiled(conv, recipe, name, call, features)
        own = conv.__dict__
        session = own.get("_hag_session")
        if session is None:
            return Choice("stock", NOT_ACCELERATED, NOTHING)
        if type(own["_modules"]["aggr_module"]) is LSTMAggregation:
            return _settle_lstm(conv, recipe, name, call, session)
        if (
            recipe.yields
            and has_few(conv, num_entries(graph), features)
            and (may_be_small(conv, recipe) or has_cache(conv, recipe))
        ):
            return _FEW
        reason = why_never(conv, recipe) or why_not_taken(conv, recipe, features)
        if reason is not None:
            return Choice("stock", reason, NOTHING)
        if recipe.scores(conv):
            if is_adjacency(graph):
                return settle_scored_matrix(conv, recipe, name, call, graph, features)
            return settle_scores(conv, recipe, name, call, graph, features, None)
        names = recipe.record.edge_values
        given = edge_values_of(names, call) if names else None
        if given is not None and not recipe.fuses_weights:
            return Choice("stock", ONE_VALUE.format(given), NOTHING)
        if is_adjacency(graph):
            return settle_product(conv, recipe, name, call, session)
        multiplied = False
        if type(graph) is EdgeIndex:  # known again by the tensor that it holds
            multiplied = is_multiplied(conv, graph)
            graph = plain_if_as_said(recipe, conv, call, graph)
        if not is_edge_index(graph):
            return Choice("stock", why_unknown(graph), NOTHING)
        size = graph_size(recipe, conv, call)
        if recipe.cache is not None and conv.cached and getattr(conv, "normalize", True):
            edges = None if given is not None else graph
            reason = _why_cached(conv, recipe, edges, features, size)
            if reason is not None:
                return Choice("stock", reason, NOTHING)
        if given is not None:
            return _settle_weights(conv, recipe, name, call, graph, size)
        if recipe.record.relations is not None:
            count = recipe.record.relations(conv)
            if count is not None:
                return _settle_relations(conv, recipe, name, call, graph, count, size)
        given_first = next(iter(call.values()))  # features, by whatever name
        passing = None
        if not multiplied:
            passing = first_met(
                *(conv, recipe, call, graph, size),
                lambda both: plain_hag(graph, size, both=both),
                on_device=True,
            )
        hag = session.hag_of(graph, size, conv, given_first, passing)
        if hag is None:
            return Choice("stock", SORTED if multiplied else why_unknown(graph), NOTHING)
        if type(hag) is Passing:
            return Choice("plain", why_passing(graph, MET), {name: hag.value})
        return Choice("HAG", BACK, {name: hag})
    if isinstance(graph, HAG):
        return _settle_hags(conv, recipe, name, call, [graph], features)
    if isinstance(graph, SequentialHAG):
        refuse_edge_values(conv, recipe.record.edge_values, call)
        reason = NO_LISTS if graph.num_edges == 0 else why_no_tree(conv, recipe, features)
        if reason is None:
            return Choice("HAG", TREE_PASSED, NOTHING)
        return Choice("stock", reason, as_plain(conv, graph, name, call))
    if recipe.attention is not None and isinstance(graph, dict):
        return settle_types(conv, recipe, name, call)
    if graph is not None and is_relations(graph):
        if recipe.scores(conv):
            return _settle_scored_relations(conv, recipe, name, call, graph)
        return _settle_hags(conv, recipe, name, call, graph, features)
    session = conv.__dict__.get("_hag_session")
    if session is not None and is_adjacency(graph) and not torch.compiler.is_compiling():
        return settle_product(conv, recipe, name, call, session)
    return Choice("stock", "no graph" if graph is None else SPARSE, NOTHING)


def _settle_compiled(conv: Any, recipe: Recipe, name: str, call: Call, features: Any) -> Choice:
    """The same for an edge index in code that is compiled: see `compiled`."""
    graph = call[name]
    if recipe.scores(conv):
        return settle_traced(conv, recipe, name, call, graph, features, None)
    is_typed = recipe.record.relations is not None and recipe.record.relations(conv) is not None
    if (
        not compiled.may_meet(conv)
        or recipe.size is not None
        or is_typed
        or conv.__dict__.get("cached")
        or not is_edge_index(graph)
        or type(conv._modules["aggr_module"]) is LSTMAggregation
        or why_never(conv, recipe) is not None
        or why_not_taken(conv, recipe, features) is not None
    ):
        return _COMPILED
    if edge_values_of(recipe.record.edge_values, call) is None:
        hag = compiled.hag_in_traced_code(conv, graph, graph_size(recipe, conv, call))
        return Choice("plain", COMPILED_PLAIN, {name: hag})
    weight = call.get("edge_weight")
    if not _is_taken(weight, conv, recipe) or conv.flow != "source_to_target":
        return _COMPILED
    if recipe.scale(conv) is None:
        return Choice("stock", COMPILED_BARE, NOTHING)
    hag = compiled.hag_in_traced_code(conv, graph, graph_size(recipe, conv, call))
    weighted = compiled.weights_in_traced_code(conv, recipe, hag, weight)
    return Choice("plain", COMPILED_WEIGHTS, {name: weighted, "edge_weight": None})


def _settle_each(conv: Any, recipe: Recipe, call: Call) -> Choice:
    """The same for all graphs that a call is given."""
    found = [settle(conv, recipe, call, name) for name in recipe.record.graphs]
    changed = {name: value for choice in found for name, value in choice.changed.items()}
    # Torch 2.8 traces no `next` that is given what to take otherwise.
    leading = [*[choice for choice in found if choice.kind != "stock"], found[0]][0]
    return Choice(leading.kind, leading.reason, changed)


def _settle_hags(
    conv: Any, recipe: Recipe, name: str, call: Call, hags: Sequence[HAG], features: Any
) -> Choice:
    """The same where HAGs were passed: one, or one for each relation."""
    graph = call[name]
    is_one = graph is hags[0]
    if is_one:
        if recipe.record.edge_values:
            refuse_edge_values(conv, recipe.record.edge_values, call)
        if recipe.record.relations is not None:
            check_relations(conv, recipe, None)
    else:
        check_relations(conv, recipe, hags)
        refuse_edge_values(conv, ("edge_type",), call)
    if are_few(conv, recipe, hags, call, features):
        reason = FEW
    else:
        found, scores = why_never(conv, recipe), recipe.scores(conv)
        if found is None and scores:
            found = why_no_scores(conv, recipe, call, graph, features)
        elif found is None:
            found = why_not_taken(conv, recipe, features)
        if found is None:
            return scored_hag(conv, recipe, name, graph, features) if scores else _PASSED
        reason = found
    if reason is not FEW or conv._explain is True or not edge_order.has_free_aggregation(conv):
        refuse_if_ordered(conv, recipe, call, reason)
    if reason is FEW and is_one and isinstance(features, Tensor):  # its rows tell the size
        return Choice("stock", FEW, {name: plain_edges(graph)})
    if is_one:
        return Choice("stock", reason, as_plain(conv, graph, name, call))
    edge_index, edge_type = plain_relations(hags)
    return Choice("stock", reason, {name: edge_index, "edge_type": edge_type})


def _settle_weights(
    conv: Any, recipe: Recipe, name: str, call: Call, edge_index: Tensor, size: tuple[int, int]
) -> Choice:
    """The same for an edge index with edge weights that a recipe may have a use for."""
    weight = call.get("edge_weight")
    if not _is_taken(weight, conv, recipe):
        return Choice("stock", OTHER_WEIGHTS, NOTHING)
    session = conv.__dict__["_hag_session"]
    met = conv, recipe, call, edge_index, size
    may_pass = lambda make: first_met(*met, make, on_device=True)  # noqa: E731
    features = call.get(recipe.record.features or recipe.source)
    edges = edge_index, weight
    graph = weighted_graph(conv, recipe.record, session, edges, size, features, may_pass)
    if graph is None:
        return Choice("stock", why_unknown(edge_index), NOTHING)
    changed = {name: graph, "edge_weight": None}
    if graph.is_passing:
        return Choice("plain", why_passing(edge_index, MET_WEIGHTS), changed)
    if graph.weight is not None:
        return Choice("plain", NO_FACTORS, changed)
    return Choice("HAG", FACTORS, changed)


def _is_taken(weight: Any, conv: Any, recipe: Recipe) -> TypeGuard[Tensor]:
    """Whether a layer multiplies messages by these weights, one an edge, and sums them."""
    is_linear = REDUCERS.get(type(conv.aggr_module)) in ("sum", "mean")
    takes = recipe.fuses_weights and is_linear
    return bool(takes and isinstance(weight, Tensor) and weight.dim() == 1)


def _settle_relations(
    conv: Any,
    recipe: Recipe,
    name: str,
    call: Call,
    edge_index: Tensor,
    count: int,
    size: tuple[int, int],
) -> Choice:
    """The same for an edge index with a type for each edge."""
    edge_type = call.get("edge_type")
    if not isinstance(edge_type, Tensor):
        return Choice("stock", NO_TYPES, NOTHING)
    relations = edge_index, edge_type, count, size
    hags = conv.__dict__["_hag_session"].built_of(
        (edge_index, edge_type),
        (count, *size),
        lambda: relation_hags(*relations),
        conv,
        next(iter(call.values())),
        passing=first_met(
            *(conv, recipe, call, edge_index, size),
            lambda both: plain_relation_hags(*relations, both=both),
            graphs=count,
            on_device=True,
        ),
    )
    if hags is None:
        return Choice("stock", why_unknown(edge_index), NOTHING)
    if type(hags) is Passing:
        reason = why_passing(edge_index, MET)
        return Choice("plain", reason, {name: hags.value, "edge_type": None})
    return Choice("HAG", BACK, {name: hags, "edge_type": None})


def _settle_scored_relations(
    conv: Any, recipe: Recipe, name: str, call: Call, hags: Sequence[HAG]
) -> Choice:
    """The same for a HAG of each relation, where the layer scores each edge: as for their edges."""
    check_relations(conv, recipe, hags)
    refuse_edge_values(conv, ("edge_type", *recipe.record.edge_values), call)
    features = call.get(recipe.record.features or recipe.source)
    source, target = features if isinstance(features, PAIRS) else (features, features)
    for hag in hags:
        check_sizes(hag, call.get("size"), (source, target), conv.node_dim)
    edge_index, edge_type = plain_relations(hags)
    plain = {name: edge_index, "edge_type": edge_type}
    found = settle(conv, recipe, {**call, **plain}, name)
    if found.kind == "stock":
        refuse_if_ordered(conv, recipe, call, found.reason)
        return found._replace(changed=plain)
    return Choice(found.kind, SCORED_PASSED, {**plain, **found.changed})


def _why_cached(
    conv: Any, recipe: Recipe, edge_index: Tensor | None, features: Any, size: tuple[int, int]
) -> str | None:
    """Why a layer with `cached=True` runs stock; `edge_index` is None where it has weights.

    Stock runs the graph of its first call for ever, whatever it is given: let it fill its cache,
    and follow only as long as the graph is the same.
    """
    session = conv.__dict__["_hag_session"]
    if not has_cache(conv, recipe):
        if edge_index is not None:
            session.fills_cache(conv, edge_index, size)
            session.hag_of(edge_index, size, conv, features)
        return FILLS
    known = edge_index is not None and session.is_cached(conv, edge_index, size)
    return None if known else OTHER_CACHE


def _settle_lstm(conv: Any, recipe: Recipe, name: str, call: Call, session: Any) -> Choice:
    """The same for an edge index where the layer aggregates with an LSTM."""
    edge_index = call[name]
    things, about = (edge_index, conv._modules["aggr_module"]), (LEFT, torch.is_grad_enabled())
    if decide(about, lambda: session.verdicts.get(things, about) is not None):
        return Choice("stock", LSTM_SLOW, NOTHING)
    reason = why_no_tree(conv, recipe, call.get(recipe.record.features or recipe.source))
    if reason is not None:
        return Choice("stock", reason, NOTHING)
    given = edge_values_of(recipe.record.edge_values, call)
    if given is not None:
        return Choice("stock", ONE_VALUE.format(given), NOTHING)
    if not is_edge_index(edge_index):
        return Choice("stock", why_unknown(edge_index), NOTHING)
    size = graph_size(recipe, conv, call)
    make = lambda: lstm.find_tree(edge_index, size)  # noqa: E731
    features = call.get(recipe.record.features or recipe.source)
    found = session.built_of((edge_index,), ("sequence", *size), make, conv, features)
    if found is None:
        reason = why_unknown(edge_index) if edge_index.numel() else NO_LISTS
        return Choice("stock", reason, NOTHING)
    module = conv.aggr_module.lstm
    note_counts(module, found.counts)
    if found.tree is not None and found.counts.pays(module):
        return Choice("HAG", BACK, {name: found.tree})
    if not is_run_again():
        session.verdicts.put(things, about, True)
    return Choice("stock", LSTM_SLOW, NOTHING)
