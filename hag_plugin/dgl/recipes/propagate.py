"""One step of message passing over one edge type, as `settle` says: on its HAG, or left to DGL.

DGL's builtin `copy_u` with sum, mean, max or min is what a HAG computes. `u_mul_e` comes to it
where the weights are products of a number of the source and one of the target; with other weights
the graph is summed as it is. A few user-defined functions of DGL's own layers, and those declared
with `hag_layer`, come to it too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hag_plugin.dgl.aggregation.choice import LeftToDGL
from hag_plugin.dgl.aggregation.relation import Relation
from hag_plugin.dgl.recipes.calls import note
from hag_plugin.dgl.recipes.settle import settle


def refuse_onnx() -> None:
    """Raises RuntimeError, with what to do about it, while a model is exported to ONNX."""
    if torch._C._get_tracing_state() is not None and torch.onnx.is_in_onnx_export():
        raise RuntimeError(
            "ONNX has no operator for an aggregation on a HAG: call hag_plugin.restore(model), and "
            "hag_plugin.dgl.to_plain(graph) on a graph from ToHAG, before torch.onnx.export"
        )


@torch.compiler.disable  # type: ignore[untyped-decorator]
def run(
    graph: Any,
    etid: int,
    relation: Relation,
    message_func: Any,
    reduce_func: Any,
    empty_rows_zero: bool = True,
) -> dict[str, Tensor] | None:
    """What `update_all` stores in the target nodes; None where DGL's own code is to run.

    Args:
        graph: as for `settle`.
        etid: as for `settle`.
        relation: as for `settle`.
        message_func: as for `settle`.
        reduce_func: as for `settle`.
        empty_rows_zero: as for `settle`.
    """
    refuse_onnx()
    choice = settle(graph, etid, relation, message_func, reduce_func, empty_rows_zero)
    if choice.run is None:
        note("stock", choice.reason)
        return None
    try:
        ran = choice.run()
    except LeftToDGL as left:
        note("stock", str(left))
        return None
    note(ran.kind, ran.reason)
    outputs: dict[str, Tensor] = ran.value
    return outputs
