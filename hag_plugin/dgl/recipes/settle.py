"""`settle`: what a step of message passing over one edge type runs on, and why; and
`settle_scores`: the same for a call of a layer of attention.

The only place where that is decided: `update_all` and those layers obey it, and `explain` prints
what it said. The message decides which recipe is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from dgl import DGLGraph
from dgl.function.message import BinaryMessageFunction, CopyMessageFunction
from dgl.function.reducer import SimpleReduceFunction
from dgl.heterograph import DGLBlock
from dgl.nn.pytorch import RelGraphConv, SAGEConv
from dgl.nn.pytorch.conv.dgnconv import DGNConvTower
from dgl.nn.pytorch.conv.pnaconv import PNAConvTower
from torch import Tensor

from hag_plugin.dgl.aggregation.choice import (
    FACTORS,
    FIRST,
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
    UNFIT,
    UNKNOWN_MESSAGE,
    WEIGHTED_EXTREMUM,
    Choice,
    Ran,
    stored,
)
from hag_plugin.dgl.aggregation.relation import Relation, num_nodes, plain_edges, relations_of
from hag_plugin.dgl.aggregation.rows import (
    REDUCERS,
    edge_factors,
    is_scalar_weight,
    is_taken,
    settle_rows,
    settle_weighted_rows,
    why_not_taken,
)
from hag_plugin.dgl.recipes import declared, gated, lstm, pna, typed
from hag_plugin.dgl.recipes.attention import Attention, draws, why_stock
from hag_plugin.dgl.recipes.scored import ScoredGraph, has_isolated, typed_edges
from hag_plugin.dgl.recipes.table import Recipe
from hag_plugin.hag.passing import Messages
from hag_plugin.ops.edge_list import EdgeList
from hag_plugin.recall import Passing

# DGL's own message functions that come to rows which a HAG can aggregate: what settles them.
KNOWN: dict[Any, Any] = {
    RelGraphConv.message: typed.settle,
    PNAConvTower.message: pna.settle,
    DGNConvTower.message: pna.settle,
}


def settle(
    graph: Any,
    etid: int,
    relation: Relation,
    message_func: Any,
    reduce_func: Any,
    empty_rows_zero: bool = True,
) -> Choice:
    """What a step runs on, and why.

    Args:
        graph: the graph that owns the edge type, with the features in its frames.
        etid: number of the edge type.
        relation: that of the edge type.
        message_func: as for `update_all`.
        reduce_func: as for `update_all`.
        empty_rows_zero: nodes without edges get 0 from max and min; otherwise the infinity that
            DGL merges edge types with.
    """
    if (
        type(reduce_func) is SimpleReduceFunction
        and reduce_func.name in REDUCERS
        and isinstance(message_func, CopyMessageFunction | BinaryMessageFunction)
    ):
        if message_func.out_field != reduce_func.msg_field:
            return Choice(None, UNFIT)  # DGL says what is wrong
        if relation.is_passing and message_func.name != "copy_u":
            return Choice(None, FIRST)
        if message_func.name == "copy_e":
            return gated.settle(graph, etid, relation, message_func, reduce_func)
        rows = _settle_builtin(
            graph, etid, relation, message_func, reduce_func.name, empty_rows_zero
        )
        return stored(rows, reduce_func.out_field)
    if relation.is_passing:
        return Choice(None, FIRST)
    settles = KNOWN.get(getattr(message_func, "__func__", None))
    if getattr(reduce_func, "__func__", None) is SAGEConv._lstm_reducer:
        settles = lstm.settle
    if settles is None and declared.declaration_of(graph) is not None:
        settles = declared.settle
    if settles is None:
        return Choice(None, UNKNOWN_MESSAGE)
    choice: Choice = settles(graph, etid, relation, message_func, reduce_func)
    return choice


def _settle_builtin(
    graph: Any, etid: int, relation: Relation, message_func: Any, reduce: str, empty: bool
) -> Choice:
    source, _ = graph._graph.metagraph.find_edge(etid)
    frame = graph._node_frames[source]
    if message_func.name == "copy_u":
        if message_func.in_field not in frame:
            return Choice(None, UNFIT)
        x = frame[message_func.in_field]
        return settle_rows(graph, etid, relation, x, reduce, empty_rows_zero=empty)
    if message_func.name != "u_mul_e":
        return Choice(None, UNKNOWN_MESSAGE)
    if reduce not in ("sum", "mean"):
        return Choice(None, WEIGHTED_EXTREMUM)
    edges = graph._edge_frames[etid]
    if message_func.lhs_field not in frame or message_func.rhs_field not in edges:
        return Choice(None, UNFIT)
    x, weight = frame[message_func.lhs_field], edges[message_func.rhs_field]
    if not is_taken(x):
        return Choice(None, why_not_taken(x))
    if is_scalar_weight(weight, x):
        factors = edge_factors(graph, etid, relation, weight)
        if not isinstance(factors, str):
            return settle_rows(graph, etid, relation, x, reduce, scales=factors, because=FACTORS)
    return settle_weighted_rows(graph, etid, relation, x, weight, reduce)


# Layers of attention ----------------------------------------------------------------------------


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
    if not allows and has_isolated(edges.hag):
        return Choice(None, ISOLATED)  # DGL says what is wrong

    def run() -> Ran:
        given = {**call, name: ScoredGraph(edges, graph)}
        return Ran(attention.run(conv, **given), "plain", SCORED)

    return Choice(run, SCORED)


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
    if torch.is_autocast_enabled("cpu"):
        return SCORED_AUTOCAST
    if call.get("get_attention"):
        return RETURNS_SCORES
    pair = feat if isinstance(feat, tuple) else (feat,)
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
    return fits and (is_taken(values) if dtype.is_floating_point else values.is_cpu)


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
    )
    if not messages._replace(graphs=0).pays():
        return SCORED_FEW
    types = call[attention.edge_types] if attention.edge_types else None
    relations = relations_of(graph)
    if relations is not None and types is None:
        return relations[0].attended(graph, 0)

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
    found: EdgeList = edges.value if type(edges) is Passing else edges
    return found
