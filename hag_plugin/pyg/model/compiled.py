"""Plain edge indices in code that `torch.compile` traces: an operator finds the HAG when it runs.

What is traced is the same whatever the graph. The operator gives the token of a HAG: of that of the
graph, once it came back to the model, as `occasions` says; of the plain graph until then, and where
its edges are scored. A layer that puts loops of its own in place of those of the edge index does so
in that operator, for how many edges there are then is told by no shape (see `LoopedHAG`).
"""

from __future__ import annotations

import weakref
from collections import deque
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch_geometric.utils import scatter
from torch_geometric.utils.loop import compute_loop_attr

from hag_plugin.hag.build import build_hag
from hag_plugin.hag.graph import Arrays
from hag_plugin.hag.hag import HAG, EdgeHAG, LoopedHAG, find, of_arrays
from hag_plugin.modes import outside_inference
from hag_plugin.ops.edge_list import EdgeList
from hag_plugin.ops.weights import edge_slots
from hag_plugin.pyg.recipes.recipe import Recipe
from hag_plugin.pyg.recipes.scored import How, ScoredGraph, edges_of, edges_of_hag
from hag_plugin.pyg.recipes.weighted import WeightedGraph
from hag_plugin.recall import Known, Recall, value_of

NAME = "_hag_name"  # in a layer: a number of its own, int64 `[]`: layers share compiled code

_names = count()
_LAYERS: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_PLAIN = Recall(64)  # plain graphs of edge indices, until they come back
_SLOTS = Recall(64)  # where the edges of edge indices lie in the order of their HAGs
_SCORED = Recall(64)  # edges that are attended over, of edge indices
_LATEST: deque[Any] = deque(maxlen=2)  # what was made of edge indices that are not known again


# Before torch 2.7 nobody can tell, and what is compiled may have to run without hag_plugin.
is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def may_meet(conv: Any) -> bool:
    """Whether the operators below may stand in the code of a layer that is traced."""
    return conv.__dict__.get(NAME) is not None and not is_exporting()


def name_layer(conv: Any) -> None:
    """Gives a layer a name of its own, by which compiled code finds it."""
    name = next(_names)
    with outside_inference():
        conv.__dict__[NAME] = torch.tensor(name, device="cpu")
    _LAYERS[name] = conv


def hag_in_traced_code(conv: Any, edge_index: Tensor, size: tuple[int, int]) -> HAG:
    """What stands for the HAG of an edge index while a layer's call is traced."""
    row_ptr, token = torch.ops.hag_plugin_pyg.meet.default(edge_index, *size, conv.__dict__[NAME])
    return EdgeHAG(edge_index, row_ptr, token, size[0])


def weights_in_traced_code(conv: Any, recipe: Recipe, hag: HAG, weight: Tensor) -> WeightedGraph:
    """The same for an edge index with weights `[E]`, which may be learned: as `gcn_norm` and
    `add_self_loops` make them, without a mask, whose size would not be known."""
    record, edge_index = recipe.record, hag.arrays.col
    slots = torch.ops.hag_plugin_pyg.slots.default(*hag.arrays, hag.num_src)
    ordered = weight.new_empty(weight.shape).index_put((slots,), weight)
    loops, loop_weight, scales = record.self_loops(conv), None, None
    source, target = edge_index.long()
    if loops == "fill":
        filled = 2.0 if getattr(conv, "improved", False) else 1.0
        is_loop, nowhere = source == target, hag.num_dst
        loop_weight = weight.new_full((nowhere + 1,), filled)
        loop_weight = loop_weight.index_put((target.where(is_loop, nowhere),), weight)[:-1]
        weight = weight.where(~is_loop, 0.0)
    if any(record.exponents(conv)):
        degree = weight.new_zeros(hag.num_dst).index_add(0, target, weight)
        degree = degree if loop_weight is None else degree + loop_weight
        scale = degree.pow(-0.5)
        scale = scale.masked_fill(scale == float("inf"), 0.0)
        scales = scale, scale
    return WeightedGraph(hag, scales, ordered, weight.dtype, False, loops, loop_weight)


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


def _traced_scores(hag: HAG, edge_index: Tensor, how: How) -> ScoredGraph:
    loops = min(hag.num_src, hag.num_dst) if how.loops else 0
    graph = TracedScores(EdgeList(hag, loops=loops), edge_index)
    if how.weights is not None:
        graph.edges.weight = graph.normalised(how.weights)
    return graph


class TracedScores(ScoredGraph):
    """A graph whose edges are scored in traced code.

    With loops of the layer's own it has a row for each edge that it is given, and then one for each
    of those; the rows of loops that it is given are of no edge.
    """

    def index(self) -> Tensor:
        """The ends of each row, `[2, E]`."""
        if not self.edges.loops:
            return self.edge_index
        loops = torch.arange(self.edges.loops, device=self.edge_index.device)
        return torch.cat([self.edge_index, loops.to(self.edge_index).expand(2, -1)], dim=1)

    def counts(self) -> Tensor:
        """Whether a row is of an edge, bool `[E]`."""
        source, target = self.edge_index
        of_own = torch.ones(self.edges.loops, dtype=torch.bool, device=source.device)
        return torch.cat([source != target, of_own]) if self.edges.loops else source == source

    def normalised(self, dtype: torch.dtype) -> Tensor:
        """The weight of each row that `gcn_norm` gives the edges, `[E]`."""
        source, target = self.index().long()
        counts = self.counts().to(dtype)
        scale = counts.new_zeros(self.hag.num_dst).index_add(0, target, counts).pow(-0.5)
        scale = scale.masked_fill(scale == float("inf"), 0.0)
        return scale[source] * counts * scale[target]

    def dropped(self, value: Tensor, p: float, dtype: torch.dtype) -> Tensor:
        """As of a `ScoredGraph`: stock draws for the edges that there are, one after the other."""
        drawn = super().dropped(value, p, dtype)
        if not self.edges.loops:
            return drawn
        return drawn[self.counts().cumsum(0).sub(1).clamp(min=0)]

    def order(self) -> Tensor | None:
        """The row of each of the graph's edges; of as many as it may have. None: in this order."""
        hag = self.hag
        if not isinstance(hag, EdgeHAG):
            return None
        order: Tensor = torch.ops.hag_plugin_pyg.order.default(
            *hag.arrays, hag.num_src, hag.is_looped
        )
        return order

    def values(self, conv: Any, edge_attr: Tensor | None) -> Tensor | None:
        """A value for each row, of those of the edges that it is given."""
        num_nodes = self.edges.loops
        if edge_attr is None or not num_nodes:
            return edge_attr
        source, target = self.edge_index.long()
        is_loop = source == target
        if isinstance(conv.fill_value, str):
            column = target.where(~is_loop & (target < num_nodes), num_nodes)
            filled = scatter(edge_attr, column, 0, num_nodes + 1, conv.fill_value)[:-1]
        else:
            filled = compute_loop_attr(
                self.edge_index, edge_attr, num_nodes, False, conv.fill_value
            )
        is_loop = is_loop.view(-1, *[1] * (edge_attr.dim() - 1))
        return torch.cat([edge_attr.masked_fill(is_loop, 0.0), filled])


def _attended(
    edge_index: Tensor, num_src: int, num_dst: int, loops: bool, derived: bool
) -> tuple[Tensor, Tensor]:
    token = _edges(edge_index, (num_src, num_dst), loops, derived).hag.arrays.token
    assert token is not None
    return edge_index.new_empty(num_dst + 1, dtype=torch.int64), token.clone()


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
            edges = edges_of(edge_index, size, How(loops, None), both=derived)
        _SCORED.put((edge_index,), (*size, loops), edges)
        if Known.of((edge_index,), contents=False) is None:
            _LATEST.append(edges)
    return edges


def _order(row_ptr: Tensor, edge_index: Tensor, token: Tensor, num_src: int, loops: bool) -> Tensor:
    size = num_src, len(row_ptr) - 1
    edges = _edges(edge_index, size, loops, derived=False)
    graph = ScoredGraph(edges, edge_index)
    order = graph.order()
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


def _slots(row_ptr: Tensor, edge_index: Tensor, token: Tensor, num_src: int) -> Tensor:
    size = num_src, len(row_ptr) - 1
    slots: Tensor | None = _SLOTS.get((edge_index,), size)
    if slots is None:
        slots = edge_slots(edge_index, of_arrays(Arrays(row_ptr, edge_index, token), num_src))
        _SLOTS.put((edge_index,), size, slots)
    return slots.clone()


def _meet(edge_index: Tensor, num_src: int, num_dst: int, layer: Tensor) -> tuple[Tensor, Tensor]:
    size, conv, hag = (num_src, num_dst), _LAYERS.get(int(layer)), None
    session = None if conv is None else conv.__dict__.get("_hag_session")
    if session is not None:
        hag = value_of(session.hag_of(edge_index, size, conv, None))
    if hag is None:
        hag = _plain(edge_index, size)
    elif len(_PLAIN):
        _PLAIN.drop((edge_index,), size)
    assert hag.arrays.token is not None
    return edge_index.new_empty(num_dst + 1, dtype=torch.int64), hag.arrays.token.clone()


def _plain(edge_index: Tensor, size: tuple[int, int]) -> HAG:
    hag: HAG | None = _PLAIN.get((edge_index,), size)
    if hag is None:
        with outside_inference():
            hag = build_hag(edge_index, size=size, method="none")
        _PLAIN.put((edge_index,), size, hag)
        if Known.of((edge_index,), contents=False) is None:
            _LATEST.append(hag)
    return hag


def _shape(edge_index: Tensor, num_src: int, num_dst: int, *_: Any) -> tuple[Tensor, Tensor]:
    row_ptr = edge_index.new_empty(num_dst + 1, dtype=torch.int64)
    return row_ptr, torch.empty((), dtype=torch.int64, device="cpu")


_library: Any = torch.library.Library("hag_plugin_pyg", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "meet(Tensor edge_index, SymInt num_src, SymInt num_dst, Tensor layer) -> (Tensor, Tensor)"
)
_library.impl("meet", _meet, "CompositeExplicitAutograd")
torch.library.register_fake("hag_plugin_pyg::meet", _shape, lib=_library)
_library.define(
    "attended(Tensor edge_index, SymInt num_src, SymInt num_dst, bool loops, bool derived)"
    " -> (Tensor, Tensor)"
)
_library.impl("attended", _attended, "CompositeExplicitAutograd")
torch.library.register_fake("hag_plugin_pyg::attended", _shape, lib=_library)
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
_library.define("slots(Tensor row_ptr, Tensor edge_index, Tensor token, SymInt num_src) -> Tensor")
_library.impl("slots", _slots, "CompositeExplicitAutograd")
torch.library.register_fake(
    "hag_plugin_pyg::slots",
    lambda row_ptr, edge_index, token, num_src: edge_index.new_empty(
        edge_index.shape[1], dtype=torch.int64
    ),
    lib=_library,
)
