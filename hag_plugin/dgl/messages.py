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
from torch import Tensor

from hag_plugin.dgl.relation import Relation, edge_index, num_nodes
from hag_plugin.dgl.ties import tie_rule
from hag_plugin.hag.hag import HAG
from hag_plugin.modes import outside_inference
from hag_plugin.ops.aggregate import Ties, aggregate
from hag_plugin.ops.registration import DTYPES, is_fixed, is_transformed, needs_grad, number
from hag_plugin.ops.weights import factorise

REDUCERS = ("sum", "mean", "max", "min")
DEVICES = ("cpu",)  # elsewhere DGL's own kernels run
Outputs = dict[str, Tensor]


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
    from hag_plugin.dgl import gated, user_messages

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
    found: Outputs | None = user_messages.run(graph, etid, relation, message_func, reduce_func)
    return found


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
    if not is_taken(x) or not _is_scalar_weight(weight, x):
        return None
    factors = edge_factors(graph, etid, relation, weight)
    if factors is None:
        return None
    return aggregate_rows(graph, etid, relation, x, reduce, scales=factors)


def aggregate_rows(
    graph: Any,
    etid: int,
    relation: Relation,
    x: Tensor,
    reduce: Any,
    empty_rows_zero: bool = True,
    scales: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor | None:
    """Aggregates rows of any shape, `[N]`, `[N, F]` or `[N, H, D]`; None: left to DGL."""
    if not is_taken(x):
        return None
    extremum = reduce in ("max", "min")
    ties: Ties = "first"
    if extremum and (needs_grad(x) or is_transformed()):
        found = tie_rule(graph, etid, relation, x.dtype)
        if found is None:
            return None  # DGL breaks ties in an order of its own
        ties = found
    hag = relation.hag(graph, etid)
    rows = x.reshape(x.shape[0], -1) if x.dim() != 2 else x
    source_scale, target_scale = scales
    y = aggregate(
        rows,
        hag,
        reduce,
        self_loops=relation.self_loops,
        source_scale=source_scale,
        target_scale=target_scale,
        ties=ties,
    )
    if extremum:
        # DGL's max and min skip NaN and turn infinities into 0: rare, and left to it.
        if number(torch.isfinite(y).all()) is False:  # in a batch of torch.vmap nobody knows
            return None
        if not empty_rows_zero:
            y = _with_infinite_empty_rows(y, hag, relation, reduce)
    return y.reshape(y.shape[0], *x.shape[1:])


def _with_infinite_empty_rows(y: Tensor, hag: HAG, relation: Relation, reduce: str) -> Tensor:
    empty = hag.degree(relation.self_loops) == 0
    return y.masked_fill(empty.unsqueeze(-1), float("-inf" if reduce == "max" else "inf"))


def is_taken(x: Tensor) -> bool:
    """Whether features are of a kind that `aggregate` takes."""
    return (
        x.layout == torch.strided
        and x.dtype in DTYPES
        and x.device.type in DEVICES
        and x.dim() >= 1
        and x.numel() > 0
        and not hasattr(type(x), "__tensor_flatten__")
    )


# Weights ----------------------------------------------------------------------------------------


def _is_scalar_weight(weight: Tensor, x: Tensor) -> bool:
    """Whether weights are fixed and one number an edge, whatever the shape of the features."""
    return (
        weight.dtype == x.dtype
        and 1 <= weight.dim() <= x.dim()
        and weight.numel() == weight.shape[0]
        and is_fixed(weight)
    )


def edge_factors(
    graph: Any, etid: int, relation: Relation, weight: Tensor
) -> tuple[Tensor | None, Tensor | None] | None:
    """Factors of sources and targets whose products are the weights; None: unknown or none.

    Weights that are all the same are recognised at once, others when the tensor comes back.
    """
    with outside_inference():  # is_fixed: no tracer watches it
        flat = weight.detach().flatten()
        constant = _constant(flat)
    if constant is not None:
        if constant == 1.0:
            return None, None
        return None, flat[:1].expand(num_nodes(graph, etid)[1])

    def work_out() -> tuple[Tensor, Tensor] | None:
        with outside_inference(), torch.no_grad():
            return factorise(edge_index(graph, etid), flat, *num_nodes(graph, etid))

    found: tuple[Tensor, Tensor] | None = relation.memory.value((weight,), "weight", work_out)
    return found


def _constant(weight: Tensor) -> float | None:
    """The value of all weights, or None. Most tensors are told by three of their values."""
    if weight.numel() == 0:
        return None
    first = float(weight[0])
    if first != float(weight[weight.numel() // 2]) or first != float(weight[-1]):
        return None
    low, high = torch.aminmax(weight)
    return first if bool(low == high) else None
