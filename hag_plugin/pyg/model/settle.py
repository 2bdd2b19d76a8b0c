"""`settle`: what a call of a layer runs on, and why. The only place where that is decided.

A layer's `forward` obeys it, and `explain` prints it: before the first call what is known of the
layer as it is set up (`why_never`), afterwards what became of its calls (`calls.note`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch_geometric import EdgeIndex
from torch_geometric.nn.aggr import LSTMAggregation

from hag_plugin.explanation import Kind
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.passing import Messages, plain_hag
from hag_plugin.layers.pyg import NO_RECORD
from hag_plugin.limits import limits
from hag_plugin.modes import outside_inference
from hag_plugin.ops.registration import DTYPES
from hag_plugin.pyg.aggregation import aggregators
from hag_plugin.pyg.aggregation.aggregators import REDUCERS
from hag_plugin.pyg.model import compiled, edge_order
from hag_plugin.pyg.model import session as sessions
from hag_plugin.pyg.recipes import lstm
from hag_plugin.pyg.recipes.adjacency import hag_of, is_adjacency, parts_of, shape_of
from hag_plugin.pyg.recipes.attention import edges_of, edges_of_hag, messages_of
from hag_plugin.pyg.recipes.recipe import PAIRS, Call, Recipe, stock_class
from hag_plugin.pyg.recipes.relations import (
    plain_relation_hags,
    plain_relations,
    relation_hags,
)
from hag_plugin.pyg.recipes.scored import EdgeList, ScoredGraph, ScoredTypes, joined_edges
from hag_plugin.pyg.recipes.table import recipe_of
from hag_plugin.pyg.recipes.weighted import weighted_graph
from hag_plugin.recall import Passing, decide, is_run_again
from hag_plugin.sequence.cost import are_taken, note_counts, why_not_shared
from hag_plugin.sequence.prefix_tree import SequentialHAG

GRAPHS = (HAG, SequentialHAG)

# Why, in words.
PASSED = "a HAG was passed"
TREE_PASSED = "a prefix tree was passed"
BACK = "its graph came back"
FACTORS = "its graph came back, with edge weights that are products of node factors"
NO_FACTORS = "edge weights are learned, or not a product of node factors"
FEW = "few messages in training: stock is as fast"
MET = "first met: its rows are summed as they are"
MET_WEIGHTS = "first met: its rows are summed as they are, with its edge weights"
MET_FEW = "first met, with few messages: stock is as fast"
FIRST = "first met: a graph gets its HAG when it comes back in a later forward"
MANY_MET = "too many edges to search in training: its rows are summed as they are; call build_hag"
COMPILED = "compiled with an edge_index that only stock's code takes here: pass a HAG"
COMPILED_PLAIN = "compiled with an edge_index: the plain graph, and its HAG once it came back"
SPARSE = "sparse adjacency: pass edge_index or a HAG"
OTHER_TENSOR = "{}: only plain tensors are known again"
NO_EDGES = "no edge index of shape [2, E]"
INFERENCE = "a tensor made in inference mode is not known again"
MANY = "too many edges to search in training: call build_hag"
NOT_ACCELERATED = "not accelerated"
FILLS = "cached=True: stock keeps the graph of this call"
OTHER_CACHE = "cached=True: it runs the graph of its first call"
ONE_VALUE = "{} has a value for each edge"
OTHER_WEIGHTS = (
    "edge weights of another shape than [E], or with an aggregation that is no sum or mean"
)
NO_TYPES = "edge_type is no tensor"
NOT_TAKEN = "the features are not dense tensors of a floating dtype"
TWO_SIDES = "flow='target_to_source' with two sets of nodes is left to stock"
NO_ROWS = "features are not rows of nodes"
LSTM_FEATURES = "the features are no dense matrix of a floating dtype on the CPU, or autocast"
SCORED = "attention in one pass over its edges: no messages are made"
SCORED_PASSED = "a HAG was passed; attention in one pass over its edges: no messages are made"
SCORED_FEW = "attention with few edges for its nodes: stock is as fast"
SCORED_ELSEWHERE = "attention on a GPU"
SCORED_COMPILED = "attention in compiled code"
SCORED_AUTOCAST = "attention under autocast"
RETURNS_SCORES = "return_attention_weights: it returns a value for each edge"
OTHER_WEIGHT = "edge_weight where it normalises, or none where it does not"
OTHER_ATTRIBUTES = "edge_attr without edge_dim, or edge_dim without edge_attr"
NO_LISTS = "there are no edges"
LSTM_SLOW = "the LSTM is as fast without the prefix tree of this graph"

# Before torch 2.7 nobody can tell, and what is compiled may have to run without hag_plugin.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)

PARAMETERS = "_hag_parameters"  # of an accelerated class: the names of what its `forward` takes

# What is kept of an edge index on which stock's code was found to be as fast, with the layer's
# aggregation and whether there were gradients.
LEFT = "left to stock"

_WIDE = 256  # bytes of a row, where features do not tell


class Choice(NamedTuple):
    """What a call runs on.

    Attributes:
        kind: "stock"; or "HAG" or "plain", where a HAG, a prefix tree or a graph with weights is
            given to the recipe. Whether a HAG's program shares sums is told after the call, when it
            is there.
        reason: why, in words.
        changed: the arguments to replace: a tensor by its HAG, or a HAG that cannot be used by its
            edges.
    """

    kind: Kind
    reason: str
    changed: Mapping[str, Any]


NOTHING: Mapping[str, Any] = {}
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
            and _has_few(conv, graph.shape[-1], features)
            and (may_be_small(conv, recipe) or _has_cache(conv, recipe))
        ):
            return _FEW
        reason = why_never(conv, recipe) or _why_not_taken(conv, recipe, features)
        if reason is not None:
            return Choice("stock", reason, NOTHING)
        if recipe.scores(conv):
            return _settle_scores(conv, recipe, name, call, graph, features, None)
        given = _edge_values(recipe.record.edge_values, call) if recipe.record.edge_values else None
        if given is not None and not recipe.fuses_weights:
            return Choice("stock", ONE_VALUE.format(given), NOTHING)
        if is_adjacency(graph):
            return _settle_adjacency(conv, recipe, name, call, session)
        if type(graph) is EdgeIndex:  # known again by the tensor that it holds
            graph = _plain_if_as_said(recipe, conv, call, graph)
        if not _is_edge_index(graph):
            return Choice("stock", _why_unknown(graph), NOTHING)
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
        passing = _passing(
            *(conv, recipe, call, graph, size),
            lambda both: plain_hag(graph, size, both=both),
        )
        hag = session.hag_of(graph, size, conv, given_first, passing)
        if hag is None:
            return Choice("stock", _why_unknown(graph), NOTHING)
        if type(hag) is Passing:
            return Choice("plain", _why_passing(graph, MET), {name: hag.value})
        return Choice("HAG", BACK, {name: hag})
    if isinstance(graph, HAG):
        return _settle_hags(conv, recipe, name, call, [graph], features)
    if isinstance(graph, SequentialHAG):
        _refuse_edge_values(conv, recipe.record.edge_values, call)
        reason = NO_LISTS if graph.num_edges == 0 else _why_no_tree(conv, recipe, features)
        if reason is None:
            return Choice("HAG", TREE_PASSED, NOTHING)
        return Choice("stock", reason, _plain(conv, graph, name, call))
    if recipe.attention is not None and isinstance(graph, dict):
        return _settle_types(conv, recipe, name, call)
    if graph is not None and is_relations(graph):
        return _settle_hags(conv, recipe, name, call, graph, features)
    session = conv.__dict__.get("_hag_session")
    if session is not None and is_adjacency(graph) and not torch.compiler.is_compiling():
        return _settle_adjacency(conv, recipe, name, call, session)
    return Choice("stock", "no graph" if graph is None else SPARSE, NOTHING)


def _settle_compiled(conv: Any, recipe: Recipe, name: str, call: Call, features: Any) -> Choice:
    """The same for an edge index in code that is compiled: see `compiled`."""
    graph = call[name]
    if recipe.scores(conv):
        return Choice("stock", SCORED_COMPILED, NOTHING)
    is_typed = recipe.record.relations is not None and recipe.record.relations(conv) is not None
    if (
        _is_exporting()
        or conv.__dict__.get(compiled.NAME) is None
        or recipe.size is not None
        or is_typed
        or conv.__dict__.get("cached")
        or not _is_edge_index(graph)
        or _edge_values(recipe.record.edge_values, call) is not None
        or type(conv._modules["aggr_module"]) is LSTMAggregation
        or why_never(conv, recipe) is not None
        or _why_not_taken(conv, recipe, features) is not None
    ):
        return _COMPILED
    hag = compiled.hag_in_traced_code(conv, graph, graph_size(recipe, conv, call))
    return Choice("plain", COMPILED_PLAIN, {name: hag})


def _settle_each(conv: Any, recipe: Recipe, call: Call) -> Choice:
    """The same for all graphs that a call is given."""
    found = [settle(conv, recipe, call, name) for name in recipe.record.graphs]
    changed = {name: value for choice in found for name, value in choice.changed.items()}
    leading = next((choice for choice in found if choice.kind != "stock"), found[0])
    return Choice(leading.kind, leading.reason, changed)


def _settle_hags(
    conv: Any, recipe: Recipe, name: str, call: Call, hags: Sequence[HAG], features: Any
) -> Choice:
    """The same where HAGs were passed: one, or one for each relation."""
    graph = call[name]
    is_one = graph is hags[0]
    if is_one:
        if recipe.record.edge_values:
            _refuse_edge_values(conv, recipe.record.edge_values, call)
        if recipe.record.relations is not None:
            _check_relations(conv, recipe, None)
    else:
        _check_relations(conv, recipe, hags)
        _refuse_edge_values(conv, ("edge_type",), call)
    if _are_few(conv, recipe, hags, call, features):
        reason = FEW
    else:
        found = why_never(conv, recipe) or _why_not_taken(conv, recipe, features)
        scores = recipe.scores(conv)
        if found is None and scores:
            found = _why_not_scored(conv, recipe, call, features)
            size = graph.num_src, graph.num_dst
            if found is None and not _score_pays(conv, recipe, graph.num_edges, size, features):
                found = SCORED_FEW
        if found is None:
            return _scored(conv, name, graph, features) if scores else _PASSED
        reason = found
    if reason is not FEW or conv._explain is True or not edge_order.has_free_aggregation(conv):
        _refuse_if_ordered(conv, recipe, call, reason)
    if reason is FEW and is_one and isinstance(features, Tensor):  # its rows tell the size
        return Choice("stock", FEW, {name: plain_edges(graph)})
    if is_one:
        return Choice("stock", reason, _plain(conv, graph, name, call))
    edge_index, edge_type = plain_relations(hags)
    return Choice("stock", reason, {name: edge_index, "edge_type": edge_type})


def _settle_weights(
    conv: Any, recipe: Recipe, name: str, call: Call, edge_index: Tensor, size: tuple[int, int]
) -> Choice:
    """The same for an edge index with edge weights that a recipe may have a use for."""
    weight = call.get("edge_weight")
    is_linear = REDUCERS.get(type(conv.aggr_module)) in ("sum", "mean")
    takes = recipe.fuses_weights and is_linear
    if not takes or not isinstance(weight, Tensor) or weight.dim() != 1:
        return Choice("stock", OTHER_WEIGHTS, NOTHING)
    session = conv.__dict__["_hag_session"]
    may_pass = lambda make: _passing(conv, recipe, call, edge_index, size, make)  # noqa: E731
    features = call.get(recipe.record.features or recipe.source)
    edges = edge_index, weight
    graph = weighted_graph(conv, recipe.record, session, edges, size, features, may_pass)
    if graph is None:
        return Choice("stock", _why_unknown(edge_index), NOTHING)
    changed = {name: graph, "edge_weight": None}
    if graph.is_passing:
        return Choice("plain", _why_passing(edge_index, MET_WEIGHTS), changed)
    if graph.weight is not None:
        return Choice("plain", NO_FACTORS, changed)
    return Choice("HAG", FACTORS, changed)


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
        passing=_passing(
            *(conv, recipe, call, edge_index, size),
            lambda both: plain_relation_hags(*relations, both=both),
            graphs=count,
        ),
    )
    if hags is None:
        return Choice("stock", _why_unknown(edge_index), NOTHING)
    if type(hags) is Passing:
        reason = _why_passing(edge_index, MET)
        return Choice("plain", reason, {name: hags.value, "edge_type": None})
    return Choice("HAG", BACK, {name: hags, "edge_type": None})


def _passing(
    conv: Any,
    recipe: Recipe,
    call: Call,
    edge_index: Tensor,
    size: tuple[int, int],
    make: Callable[[bool], Any],
    graphs: int = 1,
    features: Any = None,
) -> Callable[[], Any]:
    """What makes a graph that is met first, where that pays; None otherwise.

    Args:
        make: makes it; whether the reverse, too.
        graphs: how many graphs that is.
        features: of both sides, where the call has them by type.
    """
    derived = torch.is_grad_enabled()  # asked here: what is kept is made without gradients

    def passing() -> Any:
        given = features
        if given is None:
            given = call.get(recipe.record.features or recipe.source)
        pair = given[:2] if isinstance(given, PAIRS) else (given, given)
        if not edge_index.is_cpu or not _are_rows(conv, pair, call.get("size"), size):
            return None
        x, row_bytes = pair[0], _WIDE
        if x is not None and x.is_floating_point():
            row_bytes = x.element_size() * x.shape.numel() // max(x.shape[conv.node_dim], 1)
        weighted = recipe.scale(conv) is not None or call.get("edge_weight") is not None
        messages = Messages(edge_index.shape[1], size, row_bytes, derived, graphs, weighted)
        if recipe.scores(conv):
            messages = _with_scores(conv, recipe, messages, x)
        if not messages.pays():
            return None
        both = derived or recipe.returns or conv.flow != "source_to_target"
        return sessions.made(lambda: make(both))

    return passing


def _with_scores(conv: Any, recipe: Recipe, messages: Messages, x: Tensor) -> Messages:
    """The messages of a layer that scores them: of its own width, and over its loops, too."""
    heads, numbers = messages_of(conv, x)
    loops = min(messages.size) if recipe.record.self_loops(conv) else 0
    return messages._replace(
        num_edges=messages.num_edges + loops,
        row_bytes=x.element_size() * numbers,
        weighted=False,
        heads=heads,
    )


def _score_pays(
    conv: Any, recipe: Recipe, num_edges: int, size: tuple[int, int], features: Any
) -> bool:
    """Whether scoring the edges of a graph that is there already is sooner than stock's code."""
    x = features[0] if isinstance(features, PAIRS) else features
    messages = Messages(num_edges, size, 0, torch.is_grad_enabled(), graphs=0)
    return _with_scores(conv, recipe, messages, x).pays()


def _are_rows(conv: Any, pair: Sequence[Any], given: Any, size: tuple[int, int]) -> bool:
    """Whether features are rows in main memory, as many as the sizes say that a call gave. Where
    they are not, stock says so in its own words."""
    for x, rows in zip(pair, size, strict=True):
        if x is None:
            continue
        if not isinstance(x, Tensor) or not x.is_cpu or (x.dim() < 2 and x.is_floating_point()):
            return False
        if given is not None and x.shape[conv.node_dim] != rows:
            return False
    return True


def _settle_adjacency(conv: Any, recipe: Recipe, name: str, call: Call, session: Any) -> Choice:
    """The same for a sparse adjacency. Stock's own code makes no messages of it: only what comes
    back is worth a HAG."""
    adj_t, features = call[name], call.get(recipe.record.features or recipe.source)
    reason = why_never(conv, recipe) or _why_not_taken(conv, recipe, features)
    given = _edge_values(recipe.record.edge_values, call)
    keeps = recipe.cache is not None and conv.cached
    if reason is None and given is not None:
        reason = ONE_VALUE.format(given)
    if reason is None and (keeps or recipe.record.relations is not None):
        reason = SPARSE
    if reason is not None or conv.flow != "source_to_target":
        return Choice("stock", reason or SPARSE, NOTHING)
    size = shape_of(adj_t)
    parts = parts_of(adj_t)
    if size != graph_size(recipe, conv, call) or parts[-1].requires_grad:
        return Choice("stock", SPARSE, NOTHING)
    adds_loops = recipe.record.self_loops(conv) is not False
    how = ("adjacency", *size, adds_loops)
    reader, occasion = session.occasions.of(conv, features)
    found = session.graphs.value(
        parts,
        how,
        lambda: sessions.build(len(parts[-1]), lambda: hag_of(adj_t, adds_loops)),
        reader=reader,
        occasion=occasion,
    )
    if isinstance(found, HAG):
        return Choice("HAG", BACK, {name: found})
    return Choice("stock", FIRST if found is None else found, NOTHING)


def _settle_scores(
    conv: Any,
    recipe: Recipe,
    name: str,
    call: Call,
    edge_index: Tensor,
    features: Any,
    size: tuple[int, int] | None,
) -> Choice:
    """The same for an edge index where the layer scores each edge.

    Args:
        features: of both sides.
        size: the numbers of sources and targets; None: those of the call.
    """
    if type(edge_index) is EdgeIndex and size is None:
        edge_index = _plain_if_as_said(recipe, conv, call, edge_index)
    if is_adjacency(edge_index) or not _is_edge_index(edge_index):
        return Choice("stock", _why_unknown(edge_index), NOTHING)
    reason = _why_not_scored(conv, recipe, call, features)
    if reason is not None:
        return Choice("stock", reason, NOTHING)
    if size is None:
        size = graph_size(recipe, conv, call)
    if not _score_pays(conv, recipe, edge_index.shape[1], size, features):
        return Choice("stock", SCORED_FEW, NOTHING)
    x = features[0] if isinstance(features, PAIRS) else features
    session, dtype = conv.__dict__["_hag_session"], x.dtype
    how = (recipe.record.self_loops(conv), any(recipe.record.exponents(conv)), dtype)

    def make(both: bool) -> EdgeList:
        return edges_of(conv, edge_index, size, both, dtype)

    reader, occasion = session.occasions.of(conv, features)
    edges = session.graphs.value(
        (edge_index,),
        ("edges attended over", *size, *how),
        lambda: sessions.made(lambda: make(True)),
        reader=reader,
        occasion=occasion,
        passing=_passing(conv, recipe, call, edge_index, size, make, features=features),
    )
    if edges is None:
        return Choice("stock", MET_FEW, NOTHING)
    is_passing = type(edges) is Passing
    graph = ScoredGraph(edges.value if is_passing else edges, edge_index, is_passing)
    return Choice("plain", SCORED, {name: graph})


def _settle_types(conv: Any, recipe: Recipe, name: str, call: Call) -> Choice:
    """The same for a dictionary with a graph for each type of edges."""
    graphs, rows = call[name], call[recipe.record.features or recipe.source]
    if recipe.joins:
        return _settle_joined(conv, recipe, name, graphs, rows)
    found, choice = {}, Choice("stock", "no graph", NOTHING)
    for key, graph in graphs.items():
        pair = rows[key[0]], rows[key[-1]]
        if isinstance(graph, HAG):
            given = {**call, name: graph}
            choice = _settle_hags(conv, recipe, name, given, [graph], pair)
        elif isinstance(graph, Tensor) and not torch.compiler.is_compiling():
            choice = Choice("stock", why_never(conv, recipe) or "", NOTHING)
            if not choice.reason:
                size = pair[0].shape[0], pair[1].shape[0]
                choice = _settle_scores(conv, recipe, name, call, graph, pair, size)
        found[key] = choice.changed.get(name, graph)
    changed = any(found[key] is not graph for key, graph in graphs.items())
    return Choice(choice.kind, choice.reason, {name: found} if changed else NOTHING)


def _settle_joined(conv: Any, recipe: Recipe, name: str, graphs: Any, rows: Any) -> Choice:
    """The same where the edges of all types are attended over as one graph's."""
    plain = {key: plain_edges(g) if isinstance(g, HAG) else g for key, g in graphs.items()}
    features = tuple(rows.values())
    reason = why_never(conv, recipe) or _why_not_scored(conv, recipe, NOTHING, features)
    if not plain or not all(type(g) is Tensor and _is_edge_index(g) for g in plain.values()):
        reason = reason or SPARSE
    passed = any(isinstance(g, HAG) for g in graphs.values())
    if reason is None and not _joined_pay(conv, plain, rows, 0):
        reason = SCORED_FEW
    if reason is not None:
        return Choice("stock", reason, {name: plain} if passed else NOTHING)
    sizes = {key: x.shape[0] for key, x in rows.items()}
    session, first = conv.__dict__["_hag_session"], features[0]

    def make() -> EdgeList | None:
        edges: EdgeList | None = sessions.made(lambda: joined_edges(plain, sizes))
        return edges

    reader, occasion = session.occasions.of(conv, first)
    edges = session.graphs.value(
        tuple(graphs.values()),
        ("edges attended over", *plain, *sizes.items()),
        make,
        reader=reader,
        occasion=occasion,
        passing=lambda: make() if passed or _joined_pay(conv, plain, rows, 1) else None,
    )
    if edges is None:
        return Choice("stock", MET_FEW, {name: plain} if passed else NOTHING)
    is_passing = type(edges) is Passing
    graph = ScoredTypes(edges.value if is_passing else edges, tuple(plain))
    return Choice("plain", SCORED_PASSED if passed else SCORED, {name: graph})


def _joined_pay(
    conv: Any, graphs: Mapping[Any, Tensor], rows: Mapping[str, Tensor], made: int
) -> bool:
    """Whether the edges of all types are attended over sooner than stock does.

    Args:
        made: how many graphs are made for it: 1, or 0 if it is there already.
    """
    heads, numbers = messages_of(conv, x := next(iter(rows.values())))
    size = (sum(len(x) for x in rows.values()),) * 2
    num_edges, row_bytes = sum(g.shape[1] for g in graphs.values()), x.element_size() * numbers
    derived = torch.is_grad_enabled()
    return Messages(num_edges, size, row_bytes, derived, made, heads=heads).pays()


def _scored(conv: Any, name: str, hag: HAG, features: Any) -> Choice:
    """What a call that scores the edges of a HAG runs on."""
    x = features[0] if isinstance(features, PAIRS) else features
    return Choice("plain", SCORED_PASSED, {name: edges_of_hag(conv, hag, x.dtype)})


def _why_not_scored(conv: Any, recipe: Recipe, call: Call, features: Any) -> str | None:
    """Why a layer that scores edges runs stock in this call. None: it need not."""
    pair = features if isinstance(features, PAIRS) else (features,)
    for x in pair:
        if x is not None and not x.is_cpu:
            return SCORED_ELSEWHERE
        if x is not None and x.dim() != 2:
            return NO_ROWS
    if torch.compiler.is_compiling():
        return SCORED_COMPILED
    if torch.is_autocast_enabled("cpu"):
        return SCORED_AUTOCAST
    if call.get("return_attention_weights") is not None:
        return RETURNS_SCORES
    if "edge_attr" in call or "lin_edge" in conv.__dict__["_modules"]:
        given = call.get("edge_attr")
        if (given is None) != (getattr(conv, "lin_edge", None) is None):
            return OTHER_ATTRIBUTES
    if "edge_weight" in recipe.record.edge_values:
        normalises = recipe.scale(conv) is not None
        if normalises != (call.get("edge_weight") is None):
            return OTHER_WEIGHT
    return None


def _settle_lstm(conv: Any, recipe: Recipe, name: str, call: Call, session: Any) -> Choice:
    """The same for an edge index where the layer aggregates with an LSTM."""
    edge_index = call[name]
    things, about = (edge_index, conv._modules["aggr_module"]), (LEFT, torch.is_grad_enabled())
    if decide(about, lambda: session.verdicts.get(things, about) is not None):
        return Choice("stock", LSTM_SLOW, NOTHING)
    reason = _why_no_tree(conv, recipe, call.get(recipe.record.features or recipe.source))
    if reason is not None:
        return Choice("stock", reason, NOTHING)
    given = _edge_values(recipe.record.edge_values, call)
    if given is not None:
        return Choice("stock", ONE_VALUE.format(given), NOTHING)
    if not _is_edge_index(edge_index):
        return Choice("stock", _why_unknown(edge_index), NOTHING)
    size = graph_size(recipe, conv, call)
    make = lambda: lstm.find_tree(edge_index, size)  # noqa: E731
    features = call.get(recipe.record.features or recipe.source)
    found = session.built_of((edge_index,), ("sequence", *size), make, conv, features)
    if found is None:
        reason = _why_unknown(edge_index) if edge_index.numel() else NO_LISTS
        return Choice("stock", reason, NOTHING)
    module = conv.aggr_module.lstm
    note_counts(module, found.counts)
    if found.tree is not None and found.counts.pays(module):
        return Choice("HAG", BACK, {name: found.tree})
    if not is_run_again():
        session.verdicts.put(things, about, True)
    return Choice("stock", LSTM_SLOW, NOTHING)


# What a layer is like ---------------------------------------------------------------------------

HOOKS = tuple(
    f"_{name}_forward_{when}"
    for name in ("propagate", "message", "aggregate", "message_and_aggregate")
    for when in ("pre_hooks", "hooks")
)
OVERRIDABLE = ("message", "aggregate", "update", "message_and_aggregate")


def why_never(conv: Any, recipe: Recipe) -> str | None:
    """Why a layer, as it is set up now, must run its stock code, whatever its call. None: it
    need not."""
    reason = why_not_as_set_up(conv, recipe)
    if reason is not None or recipe.reduce is not None:
        return reason
    module = conv._modules["aggr_module"]
    if type(module) in REDUCERS:
        return None
    reason = aggregators.why_stock(module)
    if reason is not None:
        return f"aggr={conv.aggr!r}: {reason}"
    if recipe.offset is not None and not aggregators.takes_offset(module):
        return f"aggr={conv.aggr!r} of messages with a term of the target"
    if recipe.record.self_loops(conv) is not False or recipe.scale(conv) is not None:
        return f"aggr={conv.aggr!r} over a graph with self-loops or scales that the layer adds"
    return None


def why_not_as_set_up(conv: Any, recipe: Recipe) -> str | None:
    """The same, whatever its aggregation."""
    own = conv.__dict__  # this is run at every call
    if _is_traced():
        return "traces and ONNX files hold stock's code, which runs without hag_plugin"
    if own["_explain"] is True:
        return "explain=True needs one message an edge"
    if own["_decomposed_layers"] > 1:
        return f"decomposed_layers={conv._decomposed_layers} runs the stock code in chunks"
    for name in HOOKS:
        if own[name]:
            return "hooks on propagate, message or aggregate see the stock computation"
    for name in OVERRIDABLE:
        if name in own:
            return "message, aggregate or update was replaced on the instance"
    for condition in recipe.conditions:
        if condition.holds(conv):
            return condition.reason(conv)
    return None


def _is_traced() -> bool:
    """Whether torch.jit.trace or torch.onnx.export is writing down what runs."""
    if torch.compiler.is_compiling():
        return bool(torch.onnx.is_in_onnx_export())
    return torch._C._get_tracing_state() is not None


def why_no_lstm(conv: Any, recipe: Recipe) -> str | None:
    """Why a layer, as it is set up now, runs no LSTM over a prefix tree. None: it may."""
    reason = why_not_as_set_up(conv, recipe)
    if reason is not None:
        return reason
    if not lstm.is_lstm(conv):
        return f"aggr={conv.aggr!r} does not read its messages in an order"
    apart = recipe.offset is not None or recipe.reduce is not None
    looped = recipe.record.self_loops(conv) is not False or recipe.scale(conv) is not None
    whole = recipe.record.relations is None and recipe.forward in lstm.REORDERED
    if apart or looped or not whole:
        return "aggr='lstm': its messages are not the rows of the sources alone"
    if conv.flow != "source_to_target":
        return f"aggr='lstm' with flow={conv.flow!r}"
    if conv.aggr_module._forward_hooks or conv.aggr_module._forward_pre_hooks:
        return "hooks on its aggregation see the stock computation"
    return why_not_shared(conv.aggr_module.lstm)


def may_be_small(conv: Any, recipe: Recipe) -> bool:
    """Whether a layer leaves a call with few messages to stock."""
    return recipe.yields and recipe.scale(conv) is None and not conv.__dict__.get("cached")


def why_no_recipe(stock: type) -> str:
    """Why no call of a layer of this class runs on a HAG."""
    known = next((c.__name__ for c in stock.__mro__[1:] if recipe_of(c) is not None), None)
    if known is not None:
        return f"a subclass of {known} may do something else: declare it with @hag_layer"
    if stock.__module__.startswith("torch_geometric."):
        return f"no recipe: {NO_RECORD.get(stock.__name__, 'it is not known yet')}"
    return "no recipe: if its message depends on the source node alone, declare it with @hag_layer"


# What a call is like ----------------------------------------------------------------------------


def _has_few(conv: Any, num_edges: int, features: Any) -> bool:
    """Whether a call has so few messages that stock's code is as fast: never in inference."""
    if num_edges >= limits.few_messages or not torch.is_grad_enabled():
        return False
    x = features[0] if isinstance(features, PAIRS) else features
    if not isinstance(x, Tensor) or x.dim() < 2:
        return False
    few = num_edges * x.numel() < limits.few_messages * x.shape[conv.node_dim]
    return few and not torch.compiler.is_compiling()


def _are_few(conv: Any, recipe: Recipe, hags: Sequence[HAG], call: Call, features: Any) -> bool:
    """The same of HAGs. Not where sizes or devices are wrong: the recipe says so."""
    if not recipe.yields or not torch.is_grad_enabled():
        return False
    num_edges = hags[0].num_edges if len(hags) == 1 else sum(hag.num_edges for hag in hags)
    if not (_has_few(conv, num_edges, features) and may_be_small(conv, recipe)):
        return False
    num_src, num_dst = graph_size(recipe, conv, call)
    device = (features[0] if isinstance(features, PAIRS) else features).device
    for hag in hags:
        if hag.num_src != num_src or hag.num_dst != num_dst or hag.device != device:
            return False
    return True


def _has_cache(conv: Any, recipe: Recipe) -> bool:
    """Whether a layer with `cached=True` keeps a graph by now; as it was, where it runs again."""
    name = recipe.cache
    return name is not None and decide(name, lambda: getattr(conv, name) is not None)


def _why_cached(
    conv: Any, recipe: Recipe, edge_index: Tensor | None, features: Any, size: tuple[int, int]
) -> str | None:
    """Why a layer with `cached=True` runs stock; `edge_index` is None where it has weights.

    Stock runs the graph of its first call for ever, whatever it is given: let it fill its cache,
    and follow only as long as the graph is the same.
    """
    session = conv.__dict__["_hag_session"]
    if not _has_cache(conv, recipe):
        if edge_index is not None:
            session.fills_cache(conv, edge_index, size)
            session.hag_of(edge_index, size, conv, features)
        return FILLS
    known = edge_index is not None and session.is_cached(conv, edge_index, size)
    return None if known else OTHER_CACHE


def _why_not_taken(conv: Any, recipe: Recipe, features: Any) -> str | None:
    """Why a recipe cannot run on these features. None: it can."""
    if recipe.record.features is None:
        return None
    if not isinstance(features, PAIRS):
        return None if features is None or _is_taken(features) else NOT_TAKEN
    if not all(f is None or _is_taken(f) for f in features):
        return NOT_TAKEN
    if conv.flow == "target_to_source" and features[0] is not features[-1]:
        return TWO_SIDES  # PyG's generated code lifts x[0] here, its Python code x[1]
    return None


def _is_taken(x: Any) -> bool:
    return isinstance(x, Tensor) and x.layout == torch.strided and x.dtype in DTYPES


def _why_no_tree(conv: Any, recipe: Recipe, features: Any) -> str | None:
    """Why a call runs no LSTM over a prefix tree. None: it may."""
    reason = why_no_lstm(conv, recipe)
    if reason is not None:
        return reason
    source = features[0] if isinstance(features, PAIRS) else features
    if source is None or conv.node_dim not in (-2, 0):
        return NO_ROWS
    return None if are_taken(conv.aggr_module.lstm, source) else LSTM_FEATURES


def _is_edge_index(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.int32, torch.int64) and tensor.dim() == 2 and tensor.shape[0] == 2


def _plain_if_as_said(recipe: Recipe, conv: Any, call: Call, edge_index: Any) -> Any:
    """The tensor of an `EdgeIndex` that has no values and as many nodes as there are features;
    otherwise itself."""
    said = edge_index.sparse_size()
    found = graph_size(recipe, conv, call)
    fits = all(s is None or s == n for s, n in zip(said, found, strict=True))
    return edge_index.as_tensor() if fits and edge_index._value is None else edge_index


def _why_passing(edge_index: Tensor, reason: str) -> str:
    """Why the rows of an edge index are summed as they are."""
    return MANY_MET if edge_index.shape[1] > limits.searched_edges else reason


def _why_unknown(edge_index: Tensor) -> str:
    """Why nothing was made of an edge index."""
    if edge_index.layout != torch.strided:
        return SPARSE
    if type(edge_index) is not Tensor and type(edge_index) is not Parameter:
        return OTHER_TENSOR.format(type(edge_index).__name__)
    if not _is_edge_index(edge_index):
        return NO_EDGES
    if edge_index.is_inference() and not edge_index.is_cpu:
        return INFERENCE
    if edge_index.shape[1] > limits.searched_edges:
        return MANY
    return MET_FEW if edge_index.is_cpu else FIRST


def _edge_values(names: tuple[str, ...], call: Call) -> str | None:
    """The first of the arguments `names`, one value an edge each, that a call gives."""
    for name in names:
        if call.get(name) is not None:
            return name
    return None


def graph_size(recipe: Recipe, conv: Any, call: Call) -> tuple[int, int]:
    """The number of nodes on both sides, as `MessagePassing._collect` finds it."""
    if recipe.size is not None:
        return recipe.size(conv, call)
    x = call[recipe.record.features or recipe.source]
    given = call.get("size")
    if given is None and isinstance(x, Tensor):
        num_nodes = x.shape[conv.node_dim]
        return num_nodes, num_nodes
    pair = list(x) if isinstance(x, PAIRS) else [x, x]
    size = list(given or (None, None))
    for dim, features in enumerate(pair):
        if size[dim] is None and features is not None:
            size[dim] = features.shape[conv.node_dim]
    num_src = size[0] if size[0] is not None else size[1]
    num_dst = size[1] if size[1] is not None else size[0]
    return int(num_src), int(num_dst)


# What cannot be -----------------------------------------------------------------------------------


def is_relations(graph: Any) -> bool:
    """Whether a graph argument is a sequence of HAGs, one for each relation."""
    return isinstance(graph, PAIRS) and bool(graph) and isinstance(graph[0], HAG)


def _check_relations(conv: Any, recipe: Recipe, graphs: Sequence[HAG] | None) -> None:
    """Raises ValueError unless there are as many HAGs as relations; None stands for one HAG."""
    count = None if recipe.record.relations is None else recipe.record.relations(conv)
    if count is None and graphs is not None:
        raise ValueError(f"{stock_class(conv).__name__} got {len(graphs)} HAGs; expected one HAG")
    if count is not None and (graphs is None or len(graphs) != count):
        raise ValueError(
            f"{stock_class(conv).__name__} got {'one HAG' if graphs is None else len(graphs)}; "
            f"expected a list of {count} HAGs, one for each relation, as "
            "hag_plugin.pyg.relation_hags makes it"
        )


def _refuse_edge_values(conv: Any, names: tuple[str, ...], call: Call) -> None:
    given = _edge_values(names, call) if names else None
    if given is not None:
        refuse_edge_values(conv, given)


def refuse_edge_values(conv: Any, given: str) -> None:
    """Raises ValueError: what was given has a value for each edge."""
    raise ValueError(
        f"{stock_class(conv).__name__} got {given} together with a HAG. Edge weights have an "
        "order that a HAG does not keep; pass edge_index instead"
    )


def _refuse_if_ordered(conv: Any, recipe: Recipe, call: Call, reason: str) -> None:
    stock = stock_class(conv)
    is_declared = getattr(stock, "_hag_recipe", None) is recipe
    changes = recipe.scale(conv) is not None or recipe.record.self_loops(conv) is not False
    if is_declared and changes:
        raise ValueError(f"a HAG cannot be used here: {reason}; pass edge_index instead")
    ordered = edge_order.why_ordered(conv, stock, "forward", dict(call))
    if ordered is not None:
        edge_order.refuse(stock, ordered)


# Edges in place of a graph --------------------------------------------------------------------


def _plain(conv: Any, graph: HAG | SequentialHAG, name: str, call: Call) -> dict[str, Any]:
    """The arguments that say with plain edges what a graph says."""
    plain: dict[str, Any] = {name: plain_edges(graph)}
    names = getattr(type(conv), PARAMETERS, ())
    if call.get("size") is None and "size" in names and not graph.is_square:
        plain["size"] = (graph.num_src, graph.num_dst)
    if "num_edges" in names:
        plain["num_edges"] = graph.num_dst
    return plain


def plain_edges(graph: HAG | SequentialHAG) -> Tensor:
    """The edge index of a HAG or a prefix tree."""
    if not torch.compiler.is_compiling():
        if isinstance(graph, HAG):
            return graph.own_edge_index
    elif torch.onnx.is_in_onnx_export():
        from torch.utils._python_dispatch import _disable_current_modes

        with _disable_current_modes():  # a constant of the file
            return graph.edge_index
    with outside_inference():
        return graph.edge_index
