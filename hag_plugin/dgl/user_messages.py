"""Messages defined in Python: those of DGL's own layers, and those declared with `hag_layer`."""

from __future__ import annotations

from typing import Any

from dgl.nn.pytorch import RelGraphConv, SAGEConv
from dgl.nn.pytorch.conv.dgnconv import DGNConvTower
from dgl.nn.pytorch.conv.pnaconv import PNAConvTower

from hag_plugin.dgl import declared, sequential, towers, typed
from hag_plugin.dgl.messages import Outputs
from hag_plugin.dgl.relation import Relation

# DGL's own message functions that come to rows which a HAG can aggregate: what runs them.
KNOWN: dict[Any, Any] = {
    RelGraphConv.message: typed.run,
    PNAConvTower.message: towers.run,
    DGNConvTower.message: towers.run,
}


def run(
    graph: Any, etid: int, relation: Relation, message_func: Any, reduce_func: Any
) -> Outputs | None:
    """As `messages.run`."""
    runs = KNOWN.get(getattr(message_func, "__func__", None))
    if getattr(reduce_func, "__func__", None) is SAGEConv._lstm_reducer:
        runs = sequential.run
    if runs is None and declared.declaration_of(graph) is not None:
        runs = declared.run
    if runs is None:
        return None
    found: Outputs | None = runs(graph, etid, relation, message_func, reduce_func)
    return found
