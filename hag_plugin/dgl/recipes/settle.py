"""`settle`: what a step of message passing over one edge type runs on, and why.

The only place where that is decided: `update_all` obeys it, and `explain` prints what it said. The
message decides which recipe is asked.
"""

from __future__ import annotations

from typing import Any

from dgl.function.message import BinaryMessageFunction, CopyMessageFunction
from dgl.function.reducer import SimpleReduceFunction
from dgl.nn.pytorch import RelGraphConv, SAGEConv
from dgl.nn.pytorch.conv.dgnconv import DGNConvTower
from dgl.nn.pytorch.conv.pnaconv import PNAConvTower

from hag_plugin.dgl.aggregation.choice import (
    FACTORS,
    FIRST,
    UNFIT,
    UNKNOWN_MESSAGE,
    WEIGHTED_EXTREMUM,
    Choice,
    stored,
)
from hag_plugin.dgl.aggregation.relation import Relation
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
        and isinstance(message_func, (CopyMessageFunction, BinaryMessageFunction))
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
        if factors is not None:
            return settle_rows(graph, etid, relation, x, reduce, scales=factors, because=FACTORS)
    return settle_weighted_rows(graph, etid, relation, x, weight, reduce)
