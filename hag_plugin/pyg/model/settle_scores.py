"""What a call of a layer that scores its edges runs on, and why: over an edge index, a matrix, a
HAG or edges of several types; and in code that is compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch_geometric import EdgeIndex

from hag_plugin.devices import kind_of
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.passing import Messages, runs_launches
from hag_plugin.limits import limits
from hag_plugin.modes import untraced
from hag_plugin.ops import gpu
from hag_plugin.ops.edge_list import EdgeList
from hag_plugin.pyg.model import compiled
from hag_plugin.pyg.model import session as sessions
from hag_plugin.pyg.model.choice import (
    EXPORTED,
    NO_ROWS,
    NO_TYPES,
    NOT_ACCELERATED,
    NOTHING,
    OTHER_EDGES,
    RETURNS_SCORES,
    SCORED,
    SCORED_COMPILED,
    SCORED_ELSEWHERE,
    SCORED_FEW,
    SCORED_PASSED,
    SPARSE,
    TYPED_COMPILED,
    UNCHECKED_COMPILED,
    UNTRACED,
    Choice,
)
from hag_plugin.pyg.model.compiled_scores import (
    joined_in_traced_code,
    scored_hag_in_traced_code,
    scored_in_traced_code,
)
from hag_plugin.pyg.model.facts import (
    graph_size,
    is_edge_index,
    plain_edges,
    plain_if_as_said,
    why_met,
    why_never,
    why_not_taken,
    why_unknown,
)
from hag_plugin.pyg.model.first_met import first_met, with_scores
from hag_plugin.pyg.recipes.adjacency import is_adjacency, num_entries, parts_of, shape_of
from hag_plugin.pyg.recipes.declared import CHECKED, Attention
from hag_plugin.pyg.recipes.recipe import PAIRS, Call, Recipe, of_sources
from hag_plugin.pyg.recipes.rgat import (
    ScoredRelations,
    attends_within,
    relational_edges,
    relational_edges_there,
)
from hag_plugin.pyg.recipes.scored import (
    How,
    ScoredGraph,
    ScoredTypes,
    edges_of,
    edges_of_hag,
    edges_of_matrix,
    edges_there,
    joined_edges,
    scored,
)
from hag_plugin.recall import value_of


def settle_scores(
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
        edge_index = plain_if_as_said(recipe, conv, call, edge_index)
    if is_adjacency(edge_index) or not is_edge_index(edge_index):
        return Choice("stock", why_unknown(edge_index), NOTHING)
    reason = why_not_scored(conv, recipe, call, features)
    if reason is not None:
        return Choice("stock", reason, NOTHING)
    if size is None:
        size = graph_size(recipe, conv, call)
    if recipe.record.relations is not None:
        return _settle_relations(conv, recipe, name, call, edge_index, features, size)
    if not score_pays(conv, recipe, edge_index.shape[1], size, features):
        return Choice("stock", SCORED_FEW, NOTHING)
    how = _how(conv, recipe, features)

    def make(both: bool) -> EdgeList:
        return edges_of(edge_index, size, how, both=both)

    def there(both: bool) -> EdgeList:
        return edges_there(edge_index, size, how, both=both, draws=recipe.breaks(conv))

    edges = _kept(conv, recipe, call, (edge_index,), size, how, features, make, there=there)
    if edges is None:
        return Choice("stock", why_met(edge_index), NOTHING)
    return Choice("plain", SCORED, {name: scored(edges, edge_index)})


def _is_lifted(adj_t: Any, how: How) -> bool:
    """Whether stock makes messages of the entries of a matrix."""
    if not isinstance(adj_t, Tensor) or adj_t.layout == torch.sparse_csc:
        return False
    return how.loops or adj_t.layout == torch.sparse_csr or adj_t.is_coalesced()


@untraced
def settle_scored_matrix(
    conv: Any, recipe: Recipe, name: str, call: Call, adj_t: Any, features: Any
) -> Choice:
    """The same for a sparse matrix, of whose entries stock makes messages, too.

    Values that are rows are the features of edges, of layers that know any, where none are given
    beside the matrix; stock makes no use of those that are numbers. A layer that declares its
    attention may.
    """
    size, how, values = shape_of(adj_t), _how(conv, recipe, features), parts_of(adj_t)[-1]
    given, of_rows = call.get("edge_attr"), values.dim() > 1
    if given is None and of_rows and "edge_attr" in recipe.record.edge_values:
        given = values
    call = {**call, "edge_attr": given}
    reason = why_not_scored(conv, recipe, call, features)
    is_own = given is values
    if reason is None and (
        not _is_lifted(adj_t, how)
        or recipe.record.relations is not None
        or recipe.forward is not None
        or isinstance(recipe.attention, Attention)
        or (how.weights is not None and of_rows)
        or adj_t.requires_grad
        or values.requires_grad
        or isinstance(getattr(conv, "fill_value", None), Tensor)
        or (how.loops and given is not None and not is_own)
        or call.get("size") is not None
        or size != graph_size(recipe, conv, call)
    ):
        reason = SPARSE
    if reason is None and not score_pays(conv, recipe, num_entries(adj_t), size, features):
        reason = SCORED_FEW
    if reason is not None:
        return Choice("stock", reason, NOTHING)

    def make(both: bool) -> EdgeList:
        return edges_of_matrix(adj_t, conv, how, both=both)

    key = ("of a matrix", *how, getattr(conv, "fill_value", None))
    edges = _kept(conv, recipe, call, parts_of(adj_t), size, key, features, make, adj_t)
    if edges is None:
        return Choice("stock", why_met(values, on_device=False), NOTHING)
    graph = {name: ScoredGraph(edges, edges.edge_index)}
    return Choice("plain", SCORED, graph | {"edge_attr": edges.values} if is_own else graph)


def settle_traced(
    conv: Any,
    recipe: Recipe,
    name: str,
    call: Call,
    edge_index: Tensor,
    features: Any,
    size: tuple[int, int] | None,
) -> Choice:
    """The same in code that is compiled: see `compiled_scores`. How many edges there are counts
    only where the code is compiled for that number."""
    reason = why_never(conv, recipe) or why_not_taken(conv, recipe, features)
    reason = reason or why_not_scored(conv, recipe, call, features)
    reason = reason or _why_not_traced(conv, recipe)
    if reason is None and not (type(edge_index) is Tensor and is_edge_index(edge_index)):
        reason = SCORED_COMPILED
    if reason is None and _is_fused(conv, recipe, edge_index, of_sources(features)):
        reason = SCORED_FEW
    if reason is not None:
        return Choice("stock", reason, NOTHING)
    size = size or graph_size(recipe, conv, call)
    graph = scored_in_traced_code(edge_index, size, _how(conv, recipe, features))
    return Choice("plain", SCORED, {name: graph})


def _is_fused(conv: Any, recipe: Recipe, edge_index: Tensor, x: Tensor) -> bool:
    """Whether there are so few messages that stock's code, fused by the compiler, is as fast."""
    few = recipe.fused_below[torch.is_grad_enabled()]
    if gpu.is_home(x) or not limits.passing_gain:
        return False
    _, numbers = recipe.numbers(conv, x)
    return bool(statically_known_true(edge_index.shape[1] * numbers < few))


def _why_not_traced(conv: Any, recipe: Recipe) -> str | None:
    """Why a layer that scores edges runs stock in compiled code. None: it need not."""
    if compiled.is_exporting():
        return EXPORTED
    if conv.__dict__.get("_hag_session") is None:
        return NOT_ACCELERATED
    if isinstance(recipe.attention, Attention) and CHECKED not in conv.__dict__:
        return UNCHECKED_COMPILED
    if recipe.breaks(conv):
        return UNTRACED
    return TYPED_COMPILED if recipe.record.relations is not None else None


def _kept(
    conv: Any,
    recipe: Recipe,
    call: Call,
    tensors: tuple[Tensor, ...],
    size: tuple[int, int],
    how: tuple[Any, ...],
    features: Any,
    make: Callable[[bool], Any],
    adj_t: Any = None,
    there: Callable[[bool], Any] | None = None,
) -> Any:
    """The edges that a layer attends over, kept while the tensors come back that they were made of.

    None: there are none of such tensors, or they are met first, and making them does not pay.

    Args:
        tensors: of the edges, of which the first is their edge index.
        how: what the edges depend on besides.
        make: makes them; whether the reverse, too.
        adj_t: the matrix whose tensors they are, if they are one's.
        there: makes them of tensors that are met first, wherever they are.
    """
    graph = tensors[0] if adj_t is None else adj_t
    met = conv, recipe, call, graph, size, there or make
    edges = conv.__dict__["_hag_session"].made_of(
        tensors,
        ("edges attended over", *size, *how),
        lambda: sessions.made(lambda: make(True)),
        conv,
        features,
        passing=first_met(*met, features=features, on_device=there is not None),
    )
    return value_of(edges)


def _settle_relations(
    conv: Any,
    recipe: Recipe,
    name: str,
    call: Call,
    edge_index: Tensor,
    features: Any,
    size: tuple[int, int],
) -> Choice:
    """The same where each edge has a type, whose matrix the layer multiplies its ends with."""
    pair = features if isinstance(features, PAIRS) else (features, features)
    reason = _why_no_types(edge_index, call.get("edge_type"), call.get("edge_attr"))
    if any(x is None or len(x) != rows for x, rows in zip(pair, size, strict=True)):
        reason = NO_ROWS
    if reason is None and not score_pays(conv, recipe, edge_index.shape[1], size, features):
        reason = SCORED_FEW
    if reason is not None:
        return Choice("stock", reason, NOTHING)
    tensors, how = (edge_index, call["edge_type"]), (conv.num_relations, attends_within(conv))

    def make(both: bool) -> EdgeList:
        return relational_edges(*tensors, size, *how, both=both)

    def there(both: bool) -> EdgeList:
        return relational_edges_there(*tensors, size, *how, both=both)

    edges = _kept(conv, recipe, call, tensors, size, how, features, make, there=there)
    if edges is None:
        return Choice("stock", why_met(edge_index), NOTHING)
    return Choice("plain", SCORED, {name: ScoredRelations(edges, edge_index)})


def _why_no_types(edge_index: Tensor, edge_type: Any, edge_attr: Any) -> str | None:
    """Why edges are not taken with these types and features. None: they are."""
    if not isinstance(edge_type, Tensor) or edge_type.dtype not in (torch.int32, torch.int64):
        return NO_TYPES
    rows = edge_index.shape[1:]
    fits = edge_type.shape == rows and edge_type.device == edge_index.device
    if edge_attr is not None:
        fits = fits and edge_attr.dim() in (1, 2) and edge_attr.shape[:1] == rows
    return None if fits else OTHER_EDGES


def settle_types(conv: Any, recipe: Recipe, name: str, call: Call) -> Choice:
    """The same for a dictionary with a graph for each type of edges."""
    graphs, rows = call[name], call[recipe.record.features or recipe.source]
    if recipe.joins:
        return _settle_joined(conv, recipe, name, graphs, rows)
    found, choice = {}, Choice("stock", "no graph", NOTHING)
    for key, graph in graphs.items():
        pair = rows[key[0]], rows[key[-1]]
        if isinstance(graph, HAG):
            choice = _settle_hag(conv, recipe, name, call, graph, pair)
        elif isinstance(graph, Tensor) and torch.compiler.is_compiling():
            size = pair[0].shape[0], pair[1].shape[0]
            choice = settle_traced(conv, recipe, name, call, graph, pair, size)
        elif isinstance(graph, Tensor):
            choice = Choice("stock", why_never(conv, recipe) or "", NOTHING)
            if not choice.reason:
                size = pair[0].shape[0], pair[1].shape[0]
                choice = settle_scores(conv, recipe, name, call, graph, pair, size)
        found[key] = choice.changed.get(name, graph)
    changed = any(found[key] is not graph for key, graph in graphs.items())
    return Choice(choice.kind, choice.reason, {name: found} if changed else NOTHING)


def _settle_hag(
    conv: Any, recipe: Recipe, name: str, call: Call, hag: HAG, features: Any
) -> Choice:
    """The same for a HAG of one type of edges."""
    reason = why_never(conv, recipe) or why_no_scores(conv, recipe, call, hag, features)
    if reason is not None:
        return Choice("stock", reason, {name: plain_edges(hag)})
    return scored_hag(conv, recipe, name, hag, features)


def _settle_joined(conv: Any, recipe: Recipe, name: str, graphs: Any, rows: Any) -> Choice:
    """The same where the edges of all types are attended over as one graph's."""
    plain = {key: plain_edges(g) if isinstance(g, HAG) else g for key, g in graphs.items()}
    features = tuple(rows.values())
    reason = why_never(conv, recipe) or why_not_scored(conv, recipe, NOTHING, features)
    if not plain or not all(type(g) is Tensor and is_edge_index(g) for g in plain.values()):
        reason = reason or SPARSE
    is_traced = torch.compiler.is_compiling()
    if reason is None and is_traced:
        reason = _why_not_traced(conv, recipe)
    passed = any(isinstance(g, HAG) for g in graphs.values())
    if reason is None and not is_traced and not _joined_pay(conv, recipe, plain, rows, 0):
        reason = SCORED_FEW
    if reason is not None:
        return Choice("stock", reason, {name: plain} if passed else NOTHING)
    sizes = {key: x.shape[0] for key, x in rows.items()}
    if is_traced:
        return Choice("plain", SCORED, {name: joined_in_traced_code(plain, sizes)})
    session, first = conv.__dict__["_hag_session"], features[0]

    def passing() -> EdgeList | None:
        is_here = first.is_cpu or runs_launches(first)
        met = is_here and _joined_pay(conv, recipe, plain, rows, 1)
        return make() if passed or met else None

    def make() -> EdgeList | None:
        edges: EdgeList | None = sessions.made(lambda: joined_edges(plain, sizes))
        return edges

    key = ("edges attended over", *plain, *sizes.items())
    edges = session.made_of(tuple(graphs.values()), key, make, conv, first, passing=passing)
    if edges is None:
        return Choice("stock", why_met(first), {name: plain} if passed else NOTHING)
    graph = ScoredTypes(value_of(edges), tuple(plain))
    return Choice("plain", SCORED_PASSED if passed else SCORED, {name: graph})


def _joined_pay(
    conv: Any, recipe: Recipe, graphs: Mapping[Any, Tensor], rows: Mapping[str, Tensor], made: int
) -> bool:
    """Whether the edges of all types are attended over sooner than stock does.

    Args:
        made: how many graphs are made for it: 1, or 0 if it is there already.
    """
    x = next(iter(rows.values()))
    if gpu.is_home(x) and not made:
        return True
    heads, numbers = recipe.numbers(conv, x)
    size = (sum(len(x) for x in rows.values()),) * 2
    num_edges, row_bytes = sum(g.shape[1] for g in graphs.values()), x.element_size() * numbers
    derived = torch.is_grad_enabled()
    device = kind_of(x.device).name
    return Messages(num_edges, size, row_bytes, derived, made, heads=heads, device=device).pays()


def score_pays(
    conv: Any, recipe: Recipe, num_edges: int, size: tuple[int, int], features: Any
) -> bool:
    """Whether scoring the edges of a graph that is there already is sooner than stock's code.

    On a GPU it always is taken to be: stock's launches there are many, and write each message.
    """
    x = of_sources(features)
    if gpu.is_home(x):
        return True
    messages = Messages(num_edges, size, 0, torch.is_grad_enabled(), graphs=0)
    return with_scores(conv, recipe, messages, x).pays()


def why_no_scores(conv: Any, recipe: Recipe, call: Call, hag: HAG, features: Any) -> str | None:
    """Why a call is left to stock that scores the edges of a HAG. None: it need not be."""
    reason = why_not_taken(conv, recipe, features) or why_not_scored(conv, recipe, call, features)
    if reason is None and torch.compiler.is_compiling():
        return _why_not_traced(conv, recipe)
    size = hag.num_src, hag.num_dst
    if reason is None and not score_pays(conv, recipe, hag.num_edges, size, features):
        return SCORED_FEW
    return reason


def scored_hag(conv: Any, recipe: Recipe, name: str, hag: HAG, features: Any) -> Choice:
    """What a call that scores the edges of a HAG runs on."""
    take = edges_of_hag
    if torch.compiler.is_compiling():
        take = scored_hag_in_traced_code
    graph = take(hag, _how(conv, recipe, features))
    return Choice("plain", SCORED_PASSED, {name: graph})


def _how(conv: Any, recipe: Recipe, features: Any) -> How:
    return How.of(conv, recipe.record, of_sources(features).dtype)


def why_not_scored(conv: Any, recipe: Recipe, call: Call, features: Any) -> str | None:
    """Why a layer that scores edges runs stock in this call. None: it need not."""
    pair = features if isinstance(features, PAIRS) else (features,)
    for x in pair:
        if x is not None and not (x.is_cpu or gpu.is_home(x)):
            return SCORED_ELSEWHERE
        if x is None:
            continue
        # Compiled with `dynamic=True` these are symbols, which no tuple is seen to contain.
        is_known = any(x.dim() == rank for rank in recipe.ranks)
        if not is_known or conv.node_dim % x.dim() != 0:
            return NO_ROWS
    if call.get("return_attention_weights") is not None:
        return RETURNS_SCORES
    return recipe.unfit(conv, call)
