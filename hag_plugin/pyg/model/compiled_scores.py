"""Plain edge indices whose edges are scored, in code that `torch.compile` traces.

As in `compiled`, an operator gives the token of the graph: of the plain one, since attention shares
no sums. A layer that puts loops of its own in place of those of the edge index does so in that
operator, for how many edges there are then is told by no shape (see `LoopedHAG`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hag_plugin.hag.graph import Arrays
from hag_plugin.hag.hag import HAG, EdgeHAG, LoopedHAG, find, of_arrays
from hag_plugin.hag.passing import plain_hag
from hag_plugin.modes import outside_inference
from hag_plugin.ops.edge_list import EdgeList
from hag_plugin.pyg.recipes.scored import (
    EdgeType,
    How,
    PaddedScores,
    ScoredGraph,
    ScoredTypes,
    check_ends,
    edges_of_hag,
    edges_there,
    joined_index,
    joined_size,
)
from hag_plugin.recall import Known, Recall

_SCORED = Recall(64)  # edges that are attended over, of edge indices
_LATEST: deque[Any] = deque(maxlen=2)  # what was made of those that are not known again


def scored_in_traced_code(edge_index: Tensor, size: tuple[int, int], how: How) -> ScoredGraph:
    """What stands for an edge index whose edges are scored, while a layer's call is traced.

    Args:
        edge_index: int32 or int64 `[2, E]`.
        size: the numbers of sources and targets.
        how: the layer takes it.
    """
    derived = torch.is_grad_enabled()
    row_ptr, token = torch.ops.hag_plugin_pyg.attended.default(
        edge_index, *size, how.loops, derived
    )
    hag = (LoopedHAG if how.loops else EdgeHAG)(edge_index, row_ptr, token, size[0])
    return _traced_scores(hag, edge_index, how)


def scored_hag_in_traced_code(hag: HAG, how: How) -> ScoredGraph:
    """The same where a layer is given a HAG: of its edges, in its order."""
    edge_index = hag.edge_index
    if how.loops:
        row_ptr, col, token = hag.arrays
        token = torch.ops.hag_plugin_pyg.attended_hag.default(row_ptr, col, token, hag.num_src)
        hag = LoopedHAG(edge_index, row_ptr, token, hag.num_src)
    return _traced_scores(hag, edge_index, how)


def joined_in_traced_code(
    graphs: Mapping[EdgeType, Tensor], sizes: Mapping[str, int]
) -> ScoredTypes:
    """What stands for the edges of several types: as `joined_edges` has them."""
    size, types = joined_size(graphs, sizes), tuple(graphs)
    edge_index = joined_index(graphs, sizes)
    row_ptr, token = torch.ops.hag_plugin_pyg.joined.default(
        edge_index, list(graphs.values()), *size,
        [name for source, _, target in types for name in (source, target)],
        list(sizes), list(sizes.values()), torch.is_grad_enabled(),
    )  # fmt: skip
    return ScoredTypes(EdgeList(EdgeHAG(edge_index, row_ptr, token, size[0])), types)


def _traced_scores(hag: HAG, edge_index: Tensor, how: How) -> ScoredGraph:
    loops = min(hag.num_src, hag.num_dst) if how.loops else 0
    graph = TracedScores(EdgeList(hag, loops=loops), edge_index)
    if how.weights is not None:
        graph.edges.weight = graph.normalised(how.weights)
    return graph


class TracedScores(PaddedScores):
    """A graph whose edges are scored in traced code."""

    def order(self) -> Tensor | None:
        """The row of each of the graph's edges; of as many as it may have. None: in this order."""
        hag = self.hag
        if not isinstance(hag, EdgeHAG):
            return None
        order: Tensor = torch.ops.hag_plugin_pyg.order.default(
            *hag.arrays, hag.num_src, hag.is_looped
        )
        return order

    def isolated(self) -> Tensor | None:
        """As of a `ScoredGraph`, which of them there are is not known here."""
        if self.edges.loops and self.hag.is_square:
            return None
        counts, (_, target) = self.counts(), self.index().long()
        found = target.new_zeros(self.hag.num_dst).index_add(0, target, counts.long())
        isolated: Tensor = found == 0
        return isolated


# The operators ----------------------------------------------------------------------------------


def _attended(
    edge_index: Tensor, num_src: int, num_dst: int, loops: bool, derived: bool
) -> tuple[Tensor, Tensor]:
    token = _edges(edge_index, (num_src, num_dst), loops, derived).hag.arrays.token
    assert token is not None
    return edge_index.new_empty(num_dst + 1, dtype=torch.int64), token.clone()


def _joined(
    edge_index: Tensor,
    graphs: list[Tensor],
    num_src: int,
    num_dst: int,
    ends: list[str],
    kinds: list[str],
    counts: list[int],
    derived: bool,
) -> tuple[Tensor, Tensor]:
    things, about = tuple(graphs), (*ends, *kinds, *counts)
    edges: EdgeList | None = _SCORED.get(things, about)
    if edges is None:
        with outside_inference():
            pairs = list(zip(ends[::2], ends[1::2], strict=True))
            check_ends(graphs, pairs, dict(zip(kinds, counts, strict=True)))
            edges = EdgeList(plain_hag(edge_index, (num_src, num_dst), both=derived))
        _keep(things, about, edges)
    token = edges.hag.arrays.token
    assert token is not None
    return edge_index.new_empty(num_dst + 1, dtype=torch.int64), token.clone()


def _keep(things: tuple[Tensor, ...], about: tuple[Any, ...], edges: EdgeList) -> None:
    _SCORED.put(things, about, edges)
    if Known.of(things, contents=False) is None:
        _LATEST.append(edges)


def _attended_hag(row_ptr: Tensor, col: Tensor, token: Tensor, num_src: int) -> Tensor:
    arrays = Arrays(row_ptr, col, token)
    with outside_inference():
        looped = edges_of_hag(of_arrays(arrays, num_src), How(True, None))
    if find(*arrays) is None:  # nobody else has the HAG that it is kept with
        _LATEST.append(looped)
    found = looped.hag.arrays.token
    assert found is not None
    return found.clone()


def _edges(edge_index: Tensor, size: tuple[int, int], loops: bool, derived: bool) -> EdgeList:
    """The edges that a layer attends over, kept while there is their edge index."""
    edges: EdgeList | None = _SCORED.get((edge_index,), (*size, loops))
    if edges is None:
        with outside_inference():
            edges = edges_there(edge_index, size, How(loops, None), both=derived)
        _keep((edge_index,), (*size, loops), edges)
    return edges


def _order(row_ptr: Tensor, edge_index: Tensor, token: Tensor, num_src: int, loops: bool) -> Tensor:
    edges = _edges(edge_index, (num_src, len(row_ptr) - 1), loops, derived=False)
    order = ScoredGraph(edges, edge_index).order()
    if order is not None and edges.hag.is_unread:  # it has a row for each that counts, and others
        return order.clone()
    if not loops:
        if order is None:
            return torch.arange(edge_index.shape[1], device=edge_index.device)
        return order.clone()
    source, target = edge_index
    given, own = edge_index.shape[1], edges.loops
    loops_at = torch.arange(given, given + own, device=edge_index.device)
    rows = torch.cat([(source != target).nonzero().view(-1), loops_at])
    found = rows.new_zeros(given + own)
    found[: len(rows)] = rows if order is None else rows[order]
    return found


def _shape_of_graph(edge_index: Tensor, num_dst: int) -> tuple[Tensor, Tensor]:
    row_ptr = edge_index.new_empty(num_dst + 1, dtype=torch.int64)
    return row_ptr, torch.empty((), dtype=torch.int64, device="cpu")


_library: Any = torch.library.Library("hag_plugin_pyg", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "attended(Tensor edge_index, SymInt num_src, SymInt num_dst, bool loops, bool derived)"
    " -> (Tensor, Tensor)"
)
_library.impl("attended", _attended, "CompositeExplicitAutograd")
torch.library.register_fake(
    "hag_plugin_pyg::attended",
    lambda edge_index, num_src, num_dst, *_: _shape_of_graph(edge_index, num_dst),
    lib=_library,
)
_library.define(
    "joined(Tensor edge_index, Tensor[] graphs, SymInt num_src, SymInt num_dst, str[] ends,"
    " str[] kinds, SymInt[] counts, bool derived) -> (Tensor, Tensor)"
)
_library.impl("joined", _joined, "CompositeExplicitAutograd")
torch.library.register_fake(
    "hag_plugin_pyg::joined",
    lambda edge_index, graphs, num_src, num_dst, *_: _shape_of_graph(edge_index, num_dst),
    lib=_library,
)
_library.define("attended_hag(Tensor row_ptr, Tensor col, Tensor token, SymInt num_src) -> Tensor")
_library.impl("attended_hag", _attended_hag, "CompositeExplicitAutograd")
torch.library.register_fake(
    "hag_plugin_pyg::attended_hag",
    lambda *_: torch.empty((), dtype=torch.int64, device="cpu"),
    lib=_library,
)
_library.define(
    "order(Tensor row_ptr, Tensor edge_index, Tensor token, SymInt num_src, bool loops) -> Tensor"
)
_library.impl("order", _order, "CompositeExplicitAutograd")
torch.library.register_fake(
    "hag_plugin_pyg::order",
    lambda row_ptr, edge_index, token, num_src, loops: edge_index.new_empty(
        edge_index.shape[1] + (min(num_src, row_ptr.shape[0] - 1) if loops else 0),
        dtype=torch.int64,
    ),
    lib=_library,
)
