"""How DGL's kernels break ties in max and min, and where a HAG breaks them in the same way.

The gradient goes to one of the sources that hold the extremum: to the first or to the last that the
kernel meets, which depends on the dtype and on the processor. On a HAG the source with the smallest
or the largest number gets it. That is the same where a node's sources are met in order.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import dgl
import torch
from torch import Tensor

from hag_plugin.dgl.aggregation.choice import NO_EDGES, TIES, UNSORTED
from hag_plugin.dgl.aggregation.relation import Relation
from hag_plugin.modes import outside_inference

TIED = 3  # sources of the graph that tells
WIDTHS = (1, 24)


def tie_rule(
    graph: Any, etid: int, relation: Relation, dtype: torch.dtype
) -> tuple[Literal["first", "last"] | None, str]:
    """The rule by which a HAG gives DGL's gradients of max and min; None, and why there is none."""
    rule = _rule(dtype, bool(dgl.is_libxsmm_enabled()))
    if rule is None:
        return None, TIES
    if not _are_in_order(graph, etid, relation):
        return None, UNSORTED
    # Of a graph without edges DGL's gradient goes to node 0.
    return (rule, "") if graph.num_edges(graph.canonical_etypes[etid]) else (None, NO_EDGES)


def _are_in_order(graph: Any, etid: int, relation: Relation) -> bool:
    structure = (graph._graph,)
    known: bool | None = relation.memory.get(structure, "order")
    if known is None:
        known = sources_are_in_order(graph, etid)
        relation.memory.put(structure, "order", known)
    return known


def sources_are_in_order(graph: Any, etid: int) -> bool:
    """Whether DGL's kernels meet the sources of each node in the order of their numbers. O(edges).

    Args:
        graph: the graph that owns the edge type.
        etid: number of the edge type.
    """
    if not any("csc" in names for names in graph.formats().values()):
        return False  # kernels run over the list of edges
    with outside_inference(), torch.no_grad():
        row_ptr, col, _ = graph.adj_tensors("csc", etype=graph.canonical_etypes[etid])
        falls = (col[1:] < col[:-1]).nonzero().flatten() + 1
        if falls.numel() == 0:
            return True
        return bool(torch.isin(falls, row_ptr).all())


@cache
def _rule(dtype: torch.dtype, libxsmm: bool) -> Literal["first", "last"] | None:
    """Which of tied sources DGL's kernel takes, by asking it. `libxsmm` is part of the key only."""
    winners = {_winner(dtype, width, reduce) for width in WIDTHS for reduce in ("max", "min")}
    if winners == {0}:
        return "first"
    return "last" if winners == {TIED - 1} else None


def _winner(dtype: torch.dtype, width: int, reduce: str) -> int | None:
    # Within a checkpoint, what is saved here is none of its tensors: it runs again without.
    own = torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved)
    with outside_inference(), torch.enable_grad(), own:
        graph = dgl.graph((torch.arange(TIED), torch.zeros(TIED, dtype=torch.int64)))
        x = torch.ones(TIED, width, dtype=dtype, requires_grad=True)
        try:
            y = getattr(dgl.ops, f"copy_u_{reduce}")(graph, x)[0]
        except dgl.DGLError:  # a dtype that DGL does not take, which it says itself
            return None
        grad: Tensor = torch.autograd.grad(y.sum(), x)[0]
    rows = grad.sum(1).nonzero().flatten().tolist()
    return rows[0] if len(rows) == 1 else None
