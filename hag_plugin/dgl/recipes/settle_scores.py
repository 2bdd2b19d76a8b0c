"""`settle_scores`: what a call of a layer of attention runs on, and why.

As `settle` for a step of message passing: the only place where that is decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from dgl import DGLGraph
from dgl.heterograph import DGLBlock
from torch import Tensor

from hag_plugin.devices import kind_of
from hag_plugin.dgl.aggregation.choice import (
    ISOLATED,
    NO_EDGES,
    NO_GRAPH,
    OTHER_EDGE_ROWS,
    OTHER_EDGE_TYPES,
    OTHER_EDGE_WEIGHTS,
    OTHER_GRAPH,
    OTHER_ROWS,
    RETURNS_SCORES,
    SCORED,
    SCORED_AUTOCAST,
    SCORED_COMPILED,
    SCORED_FEW,
    SCORED_FIRST,
    SEVERAL_TYPES,
    Choice,
    Ran,
)
from hag_plugin.dgl.aggregation.relation import num_nodes, plain_edges, relations_of
from hag_plugin.dgl.aggregation.rows import is_taken, why_not_taken
from hag_plugin.dgl.recipes.attention import Attention, draws, why_stock
from hag_plugin.dgl.recipes.scored import ScoredGraph, typed_edges
from hag_plugin.dgl.recipes.table import Recipe
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.passing import Messages
from hag_plugin.ops import gpu
from hag_plugin.ops.edge_list import EdgeList, isolated
from hag_plugin.recall import value_of


def settle_scores(conv: Any, recipe: Recipe, call: Mapping[str, Any]) -> Choice:
    """What a call of a layer of attention runs on, and why.

    Args:
        conv: the layer, with the session of its model.
        recipe: its recipe.
        call: the arguments of `forward`, by name.
    """
    attention, (name, *_) = recipe.attention, recipe.record.graphs
    assert attention is not None
    graph, feat = call.get(name), call.get(recipe.record.features or "")
    reason = why_stock(conv) or _why_not_scored(attention, graph, feat, call)
    if reason is not None:
        return Choice(None, reason)
    edges = _edges_attended_over(conv, attention, graph, feat, call)
    if isinstance(edges, str):
        return Choice(None, edges)
    allows = getattr(conv, "_allow_zero_in_degree", attention.allows_isolated)
    if not allows and _has_isolated(edges.hag):
        return Choice(None, ISOLATED)  # DGL says what is wrong

    def run() -> Ran:
        given = {**call, name: ScoredGraph(edges, graph)}
        return Ran(attention.run(conv, **given), "plain", SCORED)

    return Choice(run, SCORED)


def _has_isolated(hag: HAG) -> bool:
    """Whether a target has no edge."""
    found = isolated(hag)
    # Where the host has read nothing of the graph, it does so here, once.
    return found is not None and hag.kept("has isolated", lambda: bool(found.any()))


def _why_not_scored(
    attention: Attention, graph: Any, feat: Any, call: Mapping[str, Any]
) -> str | None:
    """Why a layer that scores edges runs DGL's code in this call. None: it need not.

    Where something does not fit, DGL says so in its own words.
    """
    if torch.compiler.is_compiling():
        return SCORED_COMPILED
    if not isinstance(graph, DGLGraph):
        return NO_GRAPH
    if type(graph) not in (DGLGraph, DGLBlock):  # which those with HAGs equal
        return OTHER_GRAPH
    if len(graph.canonical_etypes) != 1:
        return SEVERAL_TYPES
    pair = feat if isinstance(feat, tuple) else (feat,)
    if torch.is_autocast_enabled(graph.device.type):
        return SCORED_AUTOCAST
    if call.get("get_attention"):
        return RETURNS_SCORES
    for x in pair:
        if not isinstance(x, Tensor) or x.dim() not in attention.dims:
            return OTHER_ROWS
        if not is_taken(x) or x.dtype == torch.float16:  # which DGL refuses
            return why_not_taken(x)
    return _why_other_rows(attention, graph, pair) or _why_other_values(
        attention, graph, pair[0], call
    )


def _why_other_rows(attention: Attention, graph: Any, pair: tuple[Tensor, ...]) -> str | None:
    """The same for features of nodes."""
    sizes, x = num_nodes(graph, 0), pair[0]
    if any(each.device != graph.device for each in pair):
        return OTHER_ROWS
    source, target = graph._graph.metagraph.find_edge(0)
    if len(pair) == 1:
        is_known = source == target or (graph.is_block and attention.targets_first)
    else:
        apart = attention.pairs == "apart" and source != target
        is_known = len(pair) == 2 and (apart or attention.pairs == "always")
    if not is_known or tuple(map(len, pair)) != sizes[: len(pair)]:
        return OTHER_ROWS
    if pair[-1].dtype != x.dtype or pair[-1].shape[1:-1] != x.shape[1:-1]:
        return OTHER_ROWS
    return None


def _why_other_values(
    attention: Attention, graph: Any, x: Tensor, call: Mapping[str, Any]
) -> str | None:
    """The same for what is given of edges."""
    num_edges = graph._graph.num_edges(0)
    if num_edges == 0:
        return NO_EDGES
    weight = call.get("edge_weight")
    if weight is not None and not (_are_of_edges(weight, (num_edges,), x.dtype) and x.dim() == 2):
        return OTHER_EDGE_WEIGHTS
    rows = call.get(attention.edge_rows)
    if attention.edge_rows and not _are_of_edges(rows, (num_edges, -1), x.dtype):
        return OTHER_EDGE_ROWS
    types = call.get(attention.edge_types)
    if attention.edge_types and not _are_of_edges(types, (num_edges,), torch.int64):
        return OTHER_EDGE_TYPES
    return None


def _are_of_edges(values: Any, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether these are what a layer has of its edges: -1 in a shape is any number."""
    if not isinstance(values, Tensor) or values.dim() != len(shape) or values.dtype != dtype:
        return False
    fits = all(n in (length, -1) for n, length in zip(shape, values.shape, strict=True))
    if dtype.is_floating_point:
        return fits and is_taken(values)
    return fits and (values.is_cpu or gpu.is_home(values))


def _edges_attended_over(
    conv: Any, attention: Attention, graph: Any, feat: Any, call: Mapping[str, Any]
) -> EdgeList | str:
    """The edges of a graph as a layer attends over them; or why DGL's own code is to run."""
    x = feat[0] if isinstance(feat, tuple) else feat
    heads, numbers = attention.sizes(conv, x)
    given = heads if call.get("edge_weight") is not None or draws(conv) else 0
    if attention.edge_rows:
        given += attention.given(heads, call[attention.edge_rows].shape[1])
    derived = torch.is_grad_enabled()
    messages = Messages(
        graph._graph.num_edges(0),
        num_nodes(graph, 0),
        x.element_size() * numbers,
        derived,
        heads=heads,
        in_kernels=True,
        by_vectors=attention.by_vectors,
        given=given,
        device=kind_of(x.device).name,
    )
    if not messages._replace(graphs=0).pays():
        return SCORED_FEW
    types = call[attention.edge_types] if attention.edge_types else None
    relations = relations_of(graph)
    if relations is not None and types is None:
        return relations[0].attended(graph, 0, "scores", messages.pays) or SCORED_FIRST

    def make(both: bool) -> EdgeList:
        return plain_edges(graph, 0, both) if types is None else typed_edges(graph, types, both)

    session = conv.__dict__["_hag_dgl_session"]
    reader, occasion = session.occasions.of(conv, feat)
    edges: Any = session.graphs.value(
        (graph._graph,) if types is None else (graph._graph, types),
        "edges attended over",
        lambda: make(True),
        reader=reader,
        occasion=occasion,
        passing=lambda: make(derived) if messages.pays() else None,
    )
    if edges is None:
        return SCORED_FIRST
    return value_of(edges)  # type: ignore[no-any-return]
