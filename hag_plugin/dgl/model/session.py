"""Plain graphs in an accelerated model: a graph that comes back gets its HAG."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import torch
from dgl import DGLGraph
from torch import Tensor
from torch.nn import Module

from hag_plugin.dgl.aggregation.choice import (
    BACK,
    FIRST,
    MANY,
    NO_STEP,
    OTHER_GRAPH,
)
from hag_plugin.dgl.aggregation.relation import PassingRelation, Relation, relations_of
from hag_plugin.dgl.aggregation.rows import first_met_pays
from hag_plugin.dgl.data.graph import CLASSES, view
from hag_plugin.limits import limits
from hag_plugin.occasions import Occasions
from hag_plugin.recall import Recall, is_run_again, value_of
from hag_plugin.saved import set_module


@set_module("hag_plugin.dgl")
class Session:
    """What the root of an accelerated model knows about the graphs its layers were called with.

    The root's forward pre-hook (the session itself) counts forwards, or the root, where it is a
    layer. A graph is known by the
    identity of its structure, which DGL replaces when edges change. Met in a first forward it
    runs DGL's own code, but for steps that are sure to gain from a plain kernel. Only when it
    comes back in a later forward its HAGs are built, so that sampled blocks and batches are never
    searched. For layers that are called by other ways `occasions` says what a coming back is.
    Copies and pickles start anew.
    """

    def __init__(self, root: Module | None = None) -> None:
        self.occasions = Occasions(root)
        self.graphs = Recall(limits.dgl_graphs)
        self._given: weakref.WeakSet[Relation] = weakref.WeakSet()  # those that came with a graph

    def __call__(self, module: Any, inputs: Any) -> None:
        """The forward pre-hook of the root module."""
        self.begin()

    def begin(self) -> None:
        """A forward of the root begins."""
        self.occasions.begin(counts=not is_run_again())

    def __reduce__(self) -> tuple[type[Session], tuple[()]]:
        return Session, ()

    @property
    def num_graphs(self) -> int:
        """Number of graphs that run on HAGs now."""
        return sum(isinstance(relations, tuple) for relations in self.graphs.values())

    def graph(self, graph: DGLGraph, layer: Module, features: Any) -> tuple[DGLGraph, str]:
        """A graph on HAGs that shares everything with `graph`; or `graph` itself.

        Args:
            graph: any.
            layer: that is called with it.
            features: that the layer is given.

        Returns:
            The graph, and why DGL's own code does all of a call if no step says otherwise.
        """
        if type(graph) not in CLASSES:
            return graph, OTHER_GRAPH
        given = relations_of(graph)
        if given is not None:
            self._given.update(given)
            return graph, NO_STEP
        reader, occasion = self.occasions.of(layer, features)
        make = lambda: _relations(graph)  # noqa: E731
        passing = lambda: (PassingRelation(),) if _may_gain(graph, features) else None  # noqa: E731
        relations: tuple[Relation, ...] | str | None = value_of(
            self.graphs.value(
                *((graph._graph,), "relations", make),
                reader=reader,
                occasion=occasion,
                passing=passing,
            )
        )
        if isinstance(relations, tuple):
            return view(graph, relations), NO_STEP
        return graph, FIRST if relations is None else relations

    def forget(self) -> None:
        """Forgets all graphs, and what is known of edges of those that came with HAGs."""
        self.graphs.clear()
        for relation in self._given:
            relation.memory.clear()


def _may_gain(graph: DGLGraph, features: Any) -> bool:
    """Whether a step over a graph that is met first may be sooner than DGL's. No step is wider than
    the features that a layer is given, as a rule."""
    x = features[0] if isinstance(features, (tuple, list)) else features
    if not isinstance(x, Tensor) or len(graph.canonical_etypes) != 1:
        return False
    if graph.num_edges() < limits.dgl_edges:
        return False
    derived = torch.is_grad_enabled()
    return first_met_pays(x, True, derived) or first_met_pays(x, False, derived)


def _relations(graph: DGLGraph) -> tuple[Relation, ...] | str:
    """The relations of a graph that came back; or why it gets none."""
    if _is_too_large(graph):
        return MANY
    return tuple(Relation({}, origin=BACK) for _ in graph.canonical_etypes)


def _is_too_large(graph: DGLGraph) -> bool:
    num_edges = sum(graph.num_edges(etype) for etype in graph.canonical_etypes)
    most = limits.searched_edges
    if num_edges <= most:
        return False
    warnings.warn(
        f"a graph with {num_edges:,} edges came back; from {most:,} edges on, its "
        "HAG is not built during training: call hag_plugin.dgl.ToHAG()(graph) once and pass that "
        "graph",
        stacklevel=2,
    )
    return True
