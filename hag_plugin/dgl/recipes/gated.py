"""GatedGraphConv with several edge types (arXiv 1511.05493): a linear layer for each type.

DGL computes `a_v = sum over e from u to v of (W_t x_u + b_t)`, `t` the type of `e`, in two steps:
`apply_edges`, type by type, stores a row an edge, and `update_all` sums these. Here a row is
computed once for each pair of a type and a source that occurs, and rows are summed on a HAG whose
sources these pairs are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import torch
from dgl.function.message import CopyMessageFunction
from dgl.nn.pytorch import GatedGraphConv
from torch import Tensor, nn

from hag_plugin.dgl.aggregation.choice import (
    EDGE_ROWS,
    FIRST_TYPES,
    TYPES,
    UNKNOWN_REDUCER,
    Choice,
    Ran,
)
from hag_plugin.dgl.aggregation.relation import Relation, edge_index, num_nodes, ran_on
from hag_plugin.dgl.aggregation.rows import is_taken, why_not_taken
from hag_plugin.hag.build import build_hag
from hag_plugin.hag.hag import HAG
from hag_plugin.modes import has_hooks, outside_inference
from hag_plugin.ops.aggregate import aggregate
from hag_plugin.recall import checksum

FEATURES, MESSAGES = "h", "W_e*h"  # the fields that the layer names


def _message_code() -> CodeType | None:
    """The code of the function that the layer hands to `apply_edges`; None: it is another."""
    codes = [c for c in GatedGraphConv.forward.__code__.co_consts if isinstance(c, CodeType)]
    known = len(codes) == 1 and codes[0].co_freevars == ("i", "self")
    return codes[0] if known else None


MESSAGE_CODE = _message_code()


def why_stock(layer: Any) -> str | None:
    """Why a layer with several edge types must run its stock code. None: it need not."""
    for linear in layer.linears:
        if type(linear) is not nn.Linear:
            return f"a linear layer was replaced by a {type(linear).__name__}"
        if has_hooks(linear):
            return "hooks on its linear layers see the stock computation"
    return None


@dataclass
class PutOff:
    """The calls of `apply_edges` of one step of a layer, put off until their rows are summed.

    Attributes:
        layer: the GatedGraphConv.
        frame: the edge features of the layer's call.
        linears: the linear layer of each type that occurs.
        edges: the ids of its edges.
    """

    layer: nn.Module
    frame: Any
    linears: list[nn.Linear] = field(default_factory=list)
    edges: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Pairs:
    """The pairs of a type and a source that occur.

    Attributes:
        sources: for each type, the nodes that are the source of an edge of it, increasing.
        hag: from the pairs, type by type, to the targets.
    """

    sources: tuple[Tensor, ...]
    hag: HAG


def put_off(graph: Any, func: Any, edges: Any) -> bool:
    """Whether a call of `apply_edges` is the layer's, and was noted on the graph for `settle`."""
    if MESSAGE_CODE is None or getattr(func, "__code__", None) is not MESSAGE_CODE:
        return False
    which, layer = (cell.cell_contents for cell in func.__closure__)
    if not isinstance(edges, Tensor) or why_stock(layer) is not None:
        return False
    if not edges.is_cpu:  # edges of a type are known by what they hold
        return False
    frame = graph._edge_frames[0]
    noted: PutOff | None = graph.__dict__.get("_hag_put_off")
    if noted is None or noted.frame is not frame or noted.layer is not layer:
        noted = graph._hag_put_off = PutOff(layer, frame)
    noted.linears.append(layer.linears[which])
    noted.edges.append(edges)
    return True


def settle(
    graph: Any, etid: int, relation: Relation, message_func: Any, reduce_func: Any
) -> Choice:
    """For the sum of the calls that were put off; where DGL's own code is to run, it makes them.

    The HAG is built when a layer is called again with the same types, so that batches never wait
    for one.
    """
    noted: PutOff | None = graph.__dict__.pop("_hag_put_off", None)
    if noted is None or noted.frame is not graph._edge_frames[etid]:
        return Choice(None, EDGE_ROWS)
    x = graph._node_frames[0][FEATURES]
    summed = isinstance(message_func, CopyMessageFunction) and reduce_func.name == "sum"
    if not summed:
        return _made(graph, noted, UNKNOWN_REDUCER)
    if not is_taken(x):
        return _made(graph, noted, why_not_taken(x))
    pairs = _pairs(graph, etid, relation, noted)
    if pairs is None:
        return _made(graph, noted, FIRST_TYPES)

    def run() -> Ran:
        rows = [
            linear(x.index_select(0, sources))
            for linear, sources in zip(noted.linears, pairs.sources, strict=True)
        ]
        sums = aggregate(torch.cat(rows), pairs.hag)
        ran = ran_on(pairs.hag, relation.origin + TYPES)
        return Ran({reduce_func.out_field: sums}, *ran)

    return Choice(run, relation.origin + TYPES)


def _made(graph: Any, noted: PutOff, reason: str) -> Choice:
    """DGL's own code, once the calls that were put off have been made."""
    for linear, edges in zip(noted.linears, noted.edges, strict=True):
        graph.apply_edges(_message(linear), edges)
    return Choice(None, reason)


def _message(linear: nn.Linear) -> Any:
    return lambda edges: {MESSAGES: linear(edges.src[FEATURES])}


def _pairs(graph: Any, etid: int, relation: Relation, noted: PutOff) -> Pairs | None:
    def make() -> Pairs:
        with outside_inference(), torch.no_grad():
            return _make_pairs(graph, etid, noted.edges, relation.options)

    # The layer finds the edges of each type anew in every call: they are known by what they hold.
    # It did not come back before it has other edge features: all steps of a call share these.
    types = tuple(map(checksum, noted.edges))
    call = noted.frame.__dict__.setdefault("_hag_call", object())
    pairs: Pairs | None = relation.memory.value(
        (), ("pairs", types), make, reader=noted.layer, occasion=call
    )
    return pairs


def _make_pairs(graph: Any, etid: int, edges: Sequence[Tensor], options: dict[str, Any]) -> Pairs:
    source, target = edge_index(graph, etid).long()
    sources, pairs, first = [], [], 0
    for ids in edges:
        nodes, pair = torch.unique(source[ids.long()], return_inverse=True)
        sources.append(nodes)
        pairs.append(torch.stack([first + pair, target[ids.long()]]))
        first += len(nodes)
    size = (first, num_nodes(graph, etid)[1])
    return Pairs(tuple(sources), build_hag(torch.cat(pairs, 1), size=size, **options))
