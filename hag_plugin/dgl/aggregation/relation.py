"""`Relation`: the HAG of one edge type of a DGL graph, and what is known of its edge data."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from dgl import DGLGraph
from torch import Tensor

from hag_plugin.dgl.aggregation.choice import GIVEN, MET
from hag_plugin.explanation import Kind
from hag_plugin.hag.build import build_hag
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.passing import plain_hag
from hag_plugin.hag.program import SelfLoops
from hag_plugin.modes import outside_inference
from hag_plugin.ops.edge_list import EdgeList
from hag_plugin.recall import Recall, value_of
from hag_plugin.saved import set_module

MAX_REMEMBERED = 16  # edge tensors and the like, of one edge type


@set_module("hag_plugin.dgl")
class Relation:
    """One edge type. Its HAG is built when it is first needed; copies of a graph share it.

    Attributes:
        options: further arguments of `build_hag`.
        self_loops: False, or "add" where a loop for each node was added after the HAG was built.
        origin: how the edges came to have a HAG, in words.
        memory: what is known of the edges and of tensors with one value an edge.
        is_passing: whether the graph is met first, and may never come back: nothing is searched.
    """

    is_passing = False

    def __init__(
        self,
        options: dict[str, Any],
        hag: HAG | None = None,
        self_loops: SelfLoops = False,
        origin: str = GIVEN,
    ) -> None:
        self.options = options
        self.origin = origin
        self.self_loops: SelfLoops = self_loops
        self.memory = Recall(MAX_REMEMBERED)
        self._hag = hag
        self._attended: EdgeList | None = None
        self._lock = threading.RLock()

    @property
    def is_built(self) -> bool:
        """Whether the HAG is there."""
        return self._hag is not None

    def hag(self, graph: DGLGraph, etid: int) -> HAG:
        """The HAG, built from the graph's edges if it is not there yet."""
        with self._lock:
            if self._hag is None:
                with outside_inference(), torch.no_grad():
                    size = num_nodes(graph, etid)
                    self._hag = build_hag(edge_index(graph, etid), size=size, **self.options)
            return self._hag

    def attended(
        self, graph: DGLGraph, etid: int, purpose: str, pays: Callable[[], bool]
    ) -> EdgeList | None:
        """The edges for who scores or weighs them, for which no HAG is searched.

        Args:
            graph: the graph that owns the edge type.
            etid: number of the edge type.
            purpose: what they are asked for.
            pays: whether they are worth it when they are asked for the first time for this purpose;
                None is given where they are not. The next time they are.
        """

        def make() -> EdgeList:
            with self._lock:
                if self._attended is None:
                    hag = self._hag if self.self_loops is False else None
                    self._attended = plain_edges(graph, etid) if hag is None else EdgeList(hag)
                return self._attended

        passing = lambda: make() if pays() else None  # noqa: E731
        found: EdgeList | None
        found = value_of(self.memory.value((self,), ("edges", purpose), make, passing=passing))
        return found

    def prepare(self, graph: DGLGraph, etid: int, transpose: bool) -> None:
        """Builds the HAG and its programs, and the reversed graph's, which gradients need."""
        self.hag(graph, etid).prepare((self.self_loops,), transpose=transpose)

    def reversed(self) -> Relation:
        """The relation of the reversed edges."""
        hag = None if self._hag is None else self._hag.transpose()
        return Relation(self.options, hag, self.self_loops, self.origin)

    def with_loops(self) -> Relation | None:
        """The relation once every node got one loop more; None where that cannot be told."""
        if self._hag is None or self.self_loops is not False:
            return None
        return Relation(self.options, self._hag, "add", self.origin)

    def to(self, device: torch.device | str) -> Relation:
        """The relation with its HAG on a device."""
        hag = None if self._hag is None else self._hag.to(device)
        return Relation(self.options, hag, self.self_loops, self.origin)

    def __getstate__(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in ("options", "self_loops", "origin")}
        return {**state, "hag": self._hag}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class PassingRelation(Relation):
    """The relation of a graph that is met first. Steps that are not sure to gain are DGL's."""

    is_passing = True

    def __init__(self) -> None:
        super().__init__({}, origin=MET)

    def hag(self, graph: DGLGraph, etid: int) -> HAG:
        """The plain graph as a HAG, with its reverse where gradients may be asked for."""
        with self._lock:
            if self._hag is None:
                both = torch.is_grad_enabled()
                with outside_inference(), torch.no_grad():
                    edges, size = edge_index(graph, etid), num_nodes(graph, etid)
                    self._hag = plain_hag(edges, size, both=both)
            return self._hag


def ran_on(
    hag: HAG, reason: str, self_loops: SelfLoops = False, *, idempotent: bool = False
) -> tuple[Kind, str]:
    """What the last `aggregate` ran on, and why.

    A program of the HAG that shares sums, or the graph as it is.
    """
    ran = hag.ran(self_loops, idempotent)
    if ran is None:  # compiled, it did not run yet
        return "HAG", reason
    is_plain = ran.program.__dict__.get("is_plain")
    if is_plain is None:
        with outside_inference():
            is_plain = ran.program.is_plain
    return ("plain" if is_plain else "HAG"), reason + ran.why


def edge_index(graph: DGLGraph, etid: int) -> Tensor:
    """The edges of one type, `[2, E]`, in the order of their ids."""
    etype = graph.canonical_etypes[etid]
    if any("coo" in names for names in graph.formats().values()):
        return torch.stack(graph.edges(order="eid", etype=etype))
    # DGL puts edges in the order of their ids only where it may keep them as a list.
    source, target, eid = graph.edges(form="all", order="srcdst", etype=etype)
    edges = torch.stack([source, target])
    return torch.empty_like(edges).index_copy_(1, eid.long(), edges)


def plain_edges(graph: DGLGraph, etid: int, both: bool = True) -> EdgeList:
    """The edges of one type, of which no HAG is searched.

    Args:
        graph: the graph that owns the edge type.
        etid: number of the edge type.
        both: whether their reverse is made, too, which gradients need.
    """
    with outside_inference(), torch.no_grad():
        return EdgeList(plain_hag(edge_index(graph, etid), num_nodes(graph, etid), both=both))


def relations_of(graph: Any) -> tuple[Relation, ...] | None:
    """The relations of a graph; None where it has none, or was changed since they were made."""
    index = graph.__dict__.get("_hag_index")
    return graph._hag_relations if index is not None and index is graph._graph else None


def num_nodes(graph: DGLGraph, etid: int) -> tuple[int, int]:
    """Number of source and of target nodes of an edge type."""
    source, target = graph._graph.metagraph.find_edge(etid)
    return graph._graph.num_nodes(source), graph._graph.num_nodes(target)
