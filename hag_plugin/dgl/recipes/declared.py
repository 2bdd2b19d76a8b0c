"""Messages that a user's layer declares, with `hag_layer`, to depend on the source node alone.

They are computed once a node instead of once an edge, and aggregated on the HAG.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from dgl import core
from dgl.function.base import BuiltinFunction
from dgl.function.reducer import SimpleReduceFunction
from torch import Tensor
from torch.nn import Module

from hag_plugin.dgl.aggregation.choice import UNFIT, UNKNOWN_REDUCER, Choice, LeftToDGL, Ran, stored
from hag_plugin.dgl.aggregation.relation import Relation, edge_index
from hag_plugin.dgl.aggregation.rows import REDUCERS, settle_rows
from hag_plugin.ops.registration import is_transformed

CHECKED_EDGES = 96
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


class Nothing:
    """Stands where a message would find its target's or its edge's features."""

    def __init__(self, name: str, layer: str) -> None:
        self._name = name
        self._layer = layer

    def _refuse(self, *_: Any) -> Any:
        raise ValueError(
            f"{self._layer} is declared with hag_layer, but its message reads edges.{self._name}; "
            "expected a message of edges.src alone"
        )

    __getitem__ = __contains__ = __iter__ = __len__ = _refuse


def declaration_of(graph: Any) -> Module | None:
    """The declared layer that is running on this graph, if one is."""
    layer: Module | None = graph.__dict__.get("_hag_layer")
    return layer


def settle(
    graph: Any, etid: int, relation: Relation, message_func: Any, reduce_func: Any
) -> Choice:
    """For a user's message with one of DGL's builtin reducers."""
    if isinstance(message_func, BuiltinFunction) or not callable(message_func):
        return Choice(None, UNFIT)
    if type(reduce_func) is not SimpleReduceFunction or reduce_func.name not in REDUCERS:
        return Choice(None, UNKNOWN_REDUCER)

    def run() -> Ran:
        rows = _messages(graph, etid, message_func)
        field = reduce_func.msg_field
        if not isinstance(rows, dict) or not isinstance(rows.get(field), Tensor):
            raise LeftToDGL(UNFIT)
        settled = settle_rows(graph, etid, relation, rows[field], reduce_func.name)
        choice = stored(settled, reduce_func.out_field)
        if choice.run is None:
            raise LeftToDGL(choice.reason)
        return choice.run()

    return Choice(run, relation.origin)


def _messages(graph: Any, etid: int, message_func: Any) -> Any:
    """The messages, a row a source node; the first time they are compared with DGL's.

    Raises:
        ValueError: a message depends on more than its source.
    """
    layer = declaration_of(graph)
    assert layer is not None
    name = type(layer).__name__
    frame = graph._node_frames[graph._graph.metagraph.find_edge(etid)[0]]
    nodes = SimpleNamespace(src=frame, dst=Nothing("dst", name), data=Nothing("data", name))
    unchecked = "_hag_checked" not in layer.__dict__ and not is_transformed()
    if unchecked and graph.num_edges(graph.canonical_etypes[etid]):
        _check(graph, etid, layer, message_func, nodes)
        layer.__dict__["_hag_checked"] = True
    return message_func(nodes)


def _check(graph: Any, etid: int, layer: Module, message_func: Any, nodes: Any) -> None:
    """Compares the first edges' messages with those of their sources, in evaluation mode.

    Raises:
        ValueError: they differ: the message depends on more than the source node.
    """
    edges = torch.arange(
        min(CHECKED_EDGES, graph.num_edges(graph.canonical_etypes[etid])), dtype=graph.idtype
    )
    source = edge_index(graph, etid)[0, : len(edges)].long()
    modes = [(module, module.training) for module in layer.modules()]
    layer.eval()
    try:
        with torch.random.fork_rng([]), torch.no_grad():
            ours = message_func(nodes)
            etype = graph.canonical_etypes[etid]
            stock = core.invoke_edge_udf(graph[etype], edges, etype, message_func)
    finally:
        for module, training in modes:
            module.training = training
    for field, message in stock.items():
        rows = ours[field][source] if len(ours[field]) > int(source.max()) else None
        if rows is None or rows.shape != message.shape or not _agree(rows, message):
            raise ValueError(
                f"{type(layer).__name__} is declared with hag_layer, but on the first edges its "
                f"message {field!r} differs from that of the source nodes: it depends on more than "
                "the source node, or mixes nodes"
            )


def _agree(rows: Tensor, message: Tensor) -> bool:
    sizes = message.abs().nan_to_num(0.0, 0.0)
    scale = max(1.0, float(sizes.max())) if sizes.numel() else 1.0
    atol = TOLERANCE.get(message.dtype, 1e-2) * scale
    return torch.allclose(rows, message, rtol=0, atol=atol, equal_nan=True)
