"""Plain graphs in an accelerated model: a graph that comes back gets its HAG."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from dgl import DGLGraph

from hag_plugin.dgl.edge_data import is_run_again
from hag_plugin.dgl.graph import CLASSES, relations_of, view
from hag_plugin.dgl.relation import Relation

MAX_SEARCHED_EDGES = 20_000_000  # larger graphs are searched only where ToHAG is called
MAX_GRAPHS = 8  # graphs remembered by one accelerated model


@dataclass
class Seen:
    """A graph's structure that was met, and its HAGs once it came back."""

    index: weakref.ref[Any]
    forward: int
    relations: tuple[Relation, ...] | None = None
    refused: bool = False


class Session:
    """What the root of an accelerated model knows about the graphs its layers were called with.

    The root's forward pre-hook (the session itself) counts forwards. A graph is known by the
    identity of its structure, which DGL replaces when edges change. Met in a first forward it
    runs DGL's own code; only when it comes back in a later forward its HAGs are built, so that
    sampled blocks and batches are never searched. Copies and pickles start anew.
    """

    def __init__(self) -> None:
        self.forwards = 0
        self._seen: OrderedDict[int, Seen] = OrderedDict()
        self._lock = threading.RLock()

    def __call__(self, module: Any, inputs: Any) -> None:
        """The forward pre-hook of the root module."""
        if not is_run_again():
            self.forwards += 1

    def __reduce__(self) -> tuple[type[Session], tuple[()]]:
        return Session, ()

    @property
    def num_graphs(self) -> int:
        """Number of graphs that run on HAGs now."""
        return sum(seen.relations is not None for seen in self._seen.values())

    def graph(self, graph: DGLGraph) -> DGLGraph:
        """A graph on HAGs that shares everything with `graph`, or `graph` itself."""
        if type(graph) not in CLASSES or relations_of(graph) is not None:
            return graph
        relations = self._relations_of(graph)
        return graph if relations is None else view(graph, relations)

    def _relations_of(self, graph: DGLGraph) -> tuple[Relation, ...] | None:
        index = graph._graph
        with self._lock:
            seen = self._seen.get(id(index))
            if seen is None or seen.index() is not index:
                seen = self._seen[id(index)] = Seen(weakref.ref(index), self.forwards)
            self._seen.move_to_end(id(index))
            self._forget()
            if seen.relations is None and not seen.refused and self.forwards > seen.forward:
                seen.refused = _is_too_large(graph)
                if not seen.refused:
                    seen.relations = tuple(Relation({}) for _ in graph.canonical_etypes)
            return seen.relations

    def _forget(self) -> None:
        for key in [k for k, seen in self._seen.items() if seen.index() is None]:
            del self._seen[key]
        while len(self._seen) > MAX_GRAPHS:
            self._seen.popitem(last=False)


class LayerHook:
    """The forward pre-hook of a layer: its graphs are replaced by those of the session."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __call__(self, module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        args = tuple(self._replaced(arg) for arg in args)
        return args, {name: self._replaced(value) for name, value in kwargs.items()}

    def _replaced(self, value: Any) -> Any:
        return self.session.graph(value) if isinstance(value, DGLGraph) else value


def _is_too_large(graph: DGLGraph) -> bool:
    num_edges = sum(graph.num_edges(etype) for etype in graph.canonical_etypes)
    if num_edges <= MAX_SEARCHED_EDGES:
        return False
    warnings.warn(
        f"a graph with {num_edges:,} edges came back; from {MAX_SEARCHED_EDGES:,} edges on, its "
        "HAG is not built during training: call hag_plugin.dgl.ToHAG()(graph) once and pass that "
        "graph",
        stacklevel=2,
    )
    return True
