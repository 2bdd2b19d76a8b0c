"""`HagGraph`: a DGLGraph whose `update_all` runs on HAGs, and `reverse` and `to_plain` for it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import dgl
import torch
from dgl import DGLGraph, core
from dgl.base import ALL
from dgl.heterograph import DGLBlock, pad_tuple, reduce_dict_data
from torch import Tensor

from hag_plugin.arguments import check_kind
from hag_plugin.dgl.aggregation.choice import CHANGED, NODE_FUNCTION, UNFIT
from hag_plugin.dgl.aggregation.relation import Relation, relations_of
from hag_plugin.dgl.recipes import gated, propagate
from hag_plugin.dgl.recipes.calls import note
from hag_plugin.hag.hag import HAG
from hag_plugin.modes import outside_inference
from hag_plugin.saved import set_module


class HagMixin:
    """What `HagGraph` and `HagBlock` add to DGL's classes.

    The relations belong to the structure (`_graph`, an index that DGL never changes but replaces)
    for which they were made: a graph that was changed has another, and runs DGL's own code.
    """

    _hag_relations: tuple[Relation, ...] = ()
    _hag_index: Any = None

    @property
    def hag(self) -> HAG | None:
        """The HAG of a graph with one edge type; None after the graph was changed.

        Raises:
            ValueError: there are several edge types; take `graph[etype].hag`.
        """
        relations = relations_of(self)
        if relations is None:
            return None
        if len(relations) != 1:
            raise ValueError(
                f"this graph has {len(relations)} edge types; expected one: take graph[etype].hag"
            )
        return relations[0].hag(self, 0)

    # Message passing ----------------------------------------------------------------------------

    def update_all(
        self,
        message_func: Any,
        reduce_func: Any,
        apply_node_func: Any = None,
        etype: Any = None,
    ) -> None:
        """As `DGLGraph.update_all`; on the HAG where the message is known to allow it."""
        graph: Any = self
        relations = relations_of(self)
        single = etype is not None or len(graph.canonical_etypes) == 1
        if relations is None or apply_node_func is not None:
            note("stock", CHANGED if relations is None else NODE_FUNCTION)
        elif single:  # otherwise DGL says what is wrong
            etid = graph.get_etype_id(etype)
            out = propagate.run(graph, etid, relations[etid], message_func, reduce_func)
            if out is not None:
                _, target = graph._graph.metagraph.find_edge(etid)
                graph._set_n_repr(target, ALL, out)
                return
        super().update_all(message_func, reduce_func, apply_node_func, etype)  # type: ignore[misc]

    def apply_edges(self, func: Any, edges: Any = ALL, etype: Any = None) -> None:
        """As `DGLGraph.apply_edges`; GatedGraphConv's calls wait for its `update_all`."""
        if relations_of(self) is None or not gated.put_off(self, func, edges):
            super().apply_edges(func, edges, etype)  # type: ignore[misc]

    def multi_update_all(
        self, etype_dict: dict[Any, Any], cross_reducer: Any, apply_node_func: Any = None
    ) -> None:
        """As `DGLGraph.multi_update_all`, edge type by edge type on its HAG."""
        graph: Any = self
        relations = relations_of(self)
        calls = [(etype, pad_tuple(call, 3)) for etype, call in etype_dict.items()]
        if relations is None or any(call is None for _, call in calls):
            note("stock", CHANGED if relations is None else UNFIT)
            super().multi_update_all(etype_dict, cross_reducer, apply_node_func)  # type: ignore[misc]
            return
        outputs: dict[int, list[dict[str, Tensor]]] = defaultdict(list)
        order: dict[int, list[int]] = defaultdict(list)
        reduce_func: Any = None
        for etype, (message_func, reduce_func, node_func) in calls:
            etid = graph.get_etype_id(etype)
            _, target = graph._graph.metagraph.find_edge(etid)
            out = None
            if node_func is None:
                out = propagate.run(
                    graph, etid, relations[etid], message_func, reduce_func, empty_rows_zero=False
                )
            else:
                note("stock", NODE_FUNCTION)
            if out is None:
                out = core.message_passing(graph[etype], message_func, reduce_func, node_func)
            outputs[target].append(out)
            order[target].append(etid)
        for target, found in outputs.items():
            merged = reduce_dict_data(found, cross_reducer, order[target])
            # As in DGL, the last reducer decides for all.
            if core.is_builtin(reduce_func) and reduce_func.name in ("min", "max"):
                merged = {k: v.masked_fill(torch.isinf(v), 0) for k, v in merged.items()}
            graph._node_frames[target].update(merged)
            if apply_node_func is not None:
                graph.apply_nodes(apply_node_func, ALL, graph.ntypes[target])

    # Degrees are DGL's own, which layers ask for inside of torch's transforms, too ----------------

    def in_degrees(self, *args: Any, **kwargs: Any) -> Any:
        """As `DGLGraph.in_degrees`."""
        with outside_inference():
            return super().in_degrees(*args, **kwargs)  # type: ignore[misc]

    def out_degrees(self, *args: Any, **kwargs: Any) -> Any:
        """As `DGLGraph.out_degrees`."""
        with outside_inference():
            return super().out_degrees(*args, **kwargs)  # type: ignore[misc]

    # Copies, which keep the relations -----------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key)  # type: ignore[misc]
        relations, graph = relations_of(self), self
        if relations is not None and len(part.canonical_etypes) == 1:
            whole = key if isinstance(key, tuple) else (slice(None), key, slice(None))
            etids = graph._find_etypes(whole)  # type: ignore[attr-defined]
            if len(etids) == 1:
                bind(part, (relations[int(etids[0])],))
        return part

    def clone(self) -> Any:
        """As `DGLGraph.clone`; the copy shares the HAGs."""
        return self._same(super().clone())  # type: ignore[misc]

    def formats(self, formats: Any = None) -> Any:
        """As `DGLGraph.formats`; the copy shares the HAGs."""
        result = super().formats(formats)  # type: ignore[misc]
        return result if formats is None else self._same(result)

    def astype(self, idtype: Any) -> Any:
        """As `DGLGraph.astype`; the copy shares the HAGs."""
        return self._same(super().astype(idtype))  # type: ignore[misc]

    def to(self, device: Any, **kwargs: Any) -> Any:
        """As `DGLGraph.to`; the HAGs go along."""
        moved = super().to(device, **kwargs)  # type: ignore[misc]
        relations = relations_of(self)
        if moved is not self and relations is not None:
            bind(moved, tuple(relation.to(moved.device) for relation in relations))
        return moved

    def reverse(self, *args: Any, **kwargs: Any) -> Any:
        """As `DGLGraph.reverse`, with the reversed HAGs."""
        return reverse(self, *args, **kwargs)

    def add_edges(self, u: Any, v: Any, data: Any = None, etype: Any = None) -> None:
        """As `DGLGraph.add_edges`.

        The HAGs are dropped, unless one loop is added to each node, as `dgl.add_self_loop` does.
        """
        graph: Any = self
        relations = relations_of(self)
        looped = None
        if relations is not None and _is_loop_for_each(graph, u, v, etype):
            etid = graph.get_etype_id(etype)
            looped = relations[etid].with_loops()
        super().add_edges(u, v, data, etype)  # type: ignore[misc]
        if looped is not None and relations is not None:
            bind(self, (*relations[:etid], looped, *relations[etid + 1 :]))

    def _same(self, copy: Any) -> Any:
        relations = relations_of(self)
        return copy if relations is None else bind(copy, relations)


class SameAsStock(type):
    """The class of classes that equal DGL's own, and stand for it as a key.

    Where DGL takes no class but its own it asks `type(g) == DGLGraph` (`dgl.save_graphs` does).
    What it then reads of a graph with HAGs is what it reads of a plain one.
    """

    _hag_stock: type

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is cls._hag_stock

    def __hash__(cls) -> int:
        return type.__hash__(cls._hag_stock)


@set_module("hag_plugin.dgl")
class HagGraph(HagMixin, DGLGraph, metaclass=SameAsStock):  # type: ignore[misc]
    """A `DGLGraph` whose `update_all` runs on the HAG, made by `ToHAG`."""

    _hag_stock = DGLGraph


@set_module("hag_plugin.dgl")
class HagBlock(HagMixin, DGLBlock, metaclass=SameAsStock):  # type: ignore[misc]
    """A `DGLBlock` whose `update_all` runs on the HAG, made by `ToHAG`."""

    _hag_stock = DGLBlock


# DGL's classes, which ours equal, and what a graph of these becomes.
CLASSES: dict[type, type] = {DGLGraph: HagGraph, DGLBlock: HagBlock}


def bind(graph: Any, relations: tuple[Relation, ...]) -> Any:
    """Gives a graph the class that runs on HAGs, and its relations. In place.

    Raises:
        TypeError: the graph is of a class that is not DGL's own.
    """
    cls = CLASSES.get(type(graph))
    if cls is None:
        raise TypeError(
            f"expected a DGLGraph or a DGLBlock, got {type(graph).__module__}."
            f"{type(graph).__qualname__}"
        )
    graph.__class__ = cls
    graph._hag_relations = relations
    graph._hag_index = graph._graph
    return graph


def view(graph: DGLGraph, relations: tuple[Relation, ...]) -> Any:
    """A graph that runs on HAGs and shares everything else with `graph`, which stays as it is."""
    other = object.__new__(type(graph))
    other.__dict__.update(graph.__dict__)
    return bind(other, relations)


@set_module("hag_plugin.dgl")
def reverse(graph: DGLGraph, *args: Any, **kwargs: Any) -> Any:
    """As `dgl.reverse`, with the reversed HAGs, which are those that gradients need anyway."""
    check_kind("graph", graph, DGLGraph)
    reversed_graph = dgl.reverse(graph, *args, **kwargs)
    relations = relations_of(graph)
    if relations is None:
        return reversed_graph
    return bind(reversed_graph, tuple(relation.reversed() for relation in relations))


@set_module("hag_plugin.dgl")
def to_plain(graph: DGLGraph) -> DGLGraph:
    """The graph without its HAGs: of DGL's own class, sharing features and structure with `graph`.

    Args:
        graph: from `ToHAG`, or a plain graph, which is returned as it is. It stays as it is.

    Raises:
        TypeError: `graph` is no `DGLGraph`.

    Example:
        >>> import dgl
        >>> from hag_plugin.dgl import ToHAG
        >>> graph = ToHAG()(dgl.graph(([0, 1, 2], [1, 2, 0])))
        >>> type(graph).__name__, type(to_plain(graph)).__name__
        ('HagGraph', 'DGLGraph')
    """
    if not isinstance(graph, DGLGraph):
        raise TypeError(f"to_plain takes a DGLGraph, got a {type(graph).__name__}")
    if not isinstance(graph, HagMixin):
        return graph
    plain: DGLGraph = object.__new__(type(graph)._hag_stock)  # type: ignore[attr-defined]
    plain.__dict__.update({k: v for k, v in graph.__dict__.items() if not k.startswith("_hag_")})
    return plain


def _is_loop_for_each(graph: Any, u: Any, v: Any, etype: Any) -> bool:
    source, _, target = graph.to_canonical_etype(etype)
    if source != target or not isinstance(u, Tensor) or not isinstance(v, Tensor):
        return False
    nodes = torch.arange(graph.num_nodes(source), dtype=u.dtype, device=u.device)
    return torch.equal(u, nodes) and torch.equal(v, nodes)
