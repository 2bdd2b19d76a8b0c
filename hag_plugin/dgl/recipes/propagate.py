"""One step of message passing over one edge type: on its HAG, or left to DGL.

DGL's builtin `copy_u` with sum, mean, max or min is what a HAG computes. `u_mul_e` comes to it
where the weights are products of a number of the source and one of the target. A few user-defined
functions of DGL's own layers, and those declared with `hag_layer`, come to it too.
"""

from __future__ import annotations

from typing import Any

import torch
from dgl.function.message import BinaryMessageFunction, CopyMessageFunction
from dgl.function.reducer import SimpleReduceFunction
from dgl.nn.pytorch import RelGraphConv, SAGEConv
from dgl.nn.pytorch.conv.dgnconv import DGNConvTower
from dgl.nn.pytorch.conv.pnaconv import PNAConvTower
from torch import Tensor

from hag_plugin.dgl.aggregation.relation import Relation
from hag_plugin.dgl.aggregation.rows import (
    REDUCERS,
    Outputs,
    aggregate_rows,
    edge_factors,
    is_scalar_weight,
    is_taken,
)
from hag_plugin.dgl.recipes import declared, gated, lstm, pna, typed

# DGL's own message functions that come to rows which a HAG can aggregate: what runs them.
KNOWN: dict[Any, Any] = {
    RelGraphConv.message: typed.run,
    PNAConvTower.message: pna.run,
    DGNConvTower.message: pna.run,
}


@torch.compiler.disable  # type: ignore[untyped-decorator]
def run(
    graph: Any,
    etid: int,
    relation: Relation,
    message_func: Any,
    reduce_func: Any,
    empty_rows_zero: bool = True,
) -> Outputs | None:
    """What `update_all` stores in the target nodes; None where DGL's own code is to run.

    Args:
        graph: the graph that owns the edge type, with the features in its frames.
        etid: number of the edge type.
        relation: that of the edge type.
        message_func: as for `update_all`.
        reduce_func: as for `update_all`.
        empty_rows_zero: nodes without edges get 0 from max and min; otherwise the infinity that
            DGL merges edge types with.
    """
    if torch._C._get_tracing_state() is not None and torch.onnx.is_in_onnx_export():
        raise RuntimeError(
            "ONNX has no operator for an aggregation on a HAG: call hag_plugin.restore(model), and "
            "hag_plugin.dgl.to_plain(graph) on a graph from ToHAG, before torch.onnx.export"
        )
    if type(reduce_func) is SimpleReduceFunction and reduce_func.name in REDUCERS:
        field = getattr(message_func, "out_field", None)
        if isinstance(message_func, CopyMessageFunction | BinaryMessageFunction):
            if field != reduce_func.msg_field:
                return None  # DGL says what is wrong
            if message_func.name == "copy_e":
                return gated.run(graph, etid, relation, message_func, reduce_func)
            y = _run_builtin(graph, etid, relation, message_func, reduce_func.name, empty_rows_zero)
            return None if y is None else {reduce_func.out_field: y}
    return _run_user_message(graph, etid, relation, message_func, reduce_func)


def _run_builtin(
    graph: Any, etid: int, relation: Relation, message_func: Any, reduce: str, empty: bool
) -> Tensor | None:
    source, _ = graph._graph.metagraph.find_edge(etid)
    frame = graph._node_frames[source]
    if message_func.name == "copy_u":
        if message_func.in_field not in frame:
            return None
        return aggregate_rows(graph, etid, relation, frame[message_func.in_field], reduce, empty)
    if message_func.name != "u_mul_e" or reduce not in ("sum", "mean"):
        return None
    edges = graph._edge_frames[etid]
    if message_func.lhs_field not in frame or message_func.rhs_field not in edges:
        return None
    x, weight = frame[message_func.lhs_field], edges[message_func.rhs_field]
    if not is_taken(x) or not is_scalar_weight(weight, x):
        return None
    factors = edge_factors(graph, etid, relation, weight)
    if factors is None:
        return None
    return aggregate_rows(graph, etid, relation, x, reduce, scales=factors)


def _run_user_message(
    graph: Any, etid: int, relation: Relation, message_func: Any, reduce_func: Any
) -> Outputs | None:
    """Messages defined in Python: those of DGL's own layers, and those that are declared."""
    runs = KNOWN.get(getattr(message_func, "__func__", None))
    if getattr(reduce_func, "__func__", None) is SAGEConv._lstm_reducer:
        runs = lstm.run
    if runs is None and declared.declaration_of(graph) is not None:
        runs = declared.run
    if runs is None:
        return None
    found: Outputs | None = runs(graph, etid, relation, message_func, reduce_func)
    return found
