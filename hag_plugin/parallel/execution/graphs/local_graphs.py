"""The part of a graph that one rank aggregates over, for each way of splitting it.

A rank computes the rows of its targets and holds the rows of its sources: its own, and those (or
partial sums) that others send. Put together, the ranks' edges are those of the whole graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from hag_plugin.hag.graph import check_edge_index
from hag_plugin.hag.program import SelfLoops
from hag_plugin.parallel.execution.graphs.graph_parts import ELSEWHERE, Cover, Halo, LocalGraph
from hag_plugin.parallel.graphs.vertex_cover import CoveredEdges, Edges

T = TypeVar("T")
Weights = Callable[[np.ndarray], Tensor]
"""Of edges, by their numbers, int64 `[k]`: float64 `[k]`."""


class RankGraphs:
    """One graph as a rank knows it: all of its edges, or those that touch the rank's nodes.

    Args:
        edges: makes sources, targets and numbers, int64 each, by target.
        count: E, of the whole graph.
        rows: int64 `[P]`, how many nodes each rank has, in order.
        rank: whose part is wanted.
        self_loops: those the layer adds: False, "add" or "fill".
        looping: the nodes whose loops the rank knows.
        types: int64 `[E]`, the relation of each edge.
        sources: int64 `[P]`, how many nodes each rank has that edges come from, where these are of
            another type than those that they go to.

    Attributes:
        nodes: N.
        num_sources: nodes that edges come from; N where they are the same.
        self_loops: as given.
        rows: as given.
        rank: as given.
    """

    def __init__(
        self,
        edges: Callable[[], Edges],
        count: int,
        rows: np.ndarray,
        rank: int,
        self_loops: SelfLoops,
        looping: range,
        types: np.ndarray | None = None,
        sources: np.ndarray | None = None,
    ) -> None:
        self.rows, self.rank, self.self_loops = rows, rank, self_loops
        self._same = sources is None
        self._own = rows if sources is None else sources
        self.nodes, self.num_sources = int(rows.sum()), int(self._own.sum())
        self._list, self._count, self._types, self._looping = edges, count, types, looping
        self._made: dict[tuple[object, ...], Any] = {}

    @property
    def _edges(self) -> Edges:
        return self._keep(("edges",), self._list)

    def forget(self) -> None:
        """Drops what was made of the edges; what is asked for again is made again."""
        made = [*self._made.values()]
        self._made.clear()  # of merged ones, too
        for each in made:
            if isinstance(each, RankGraphs):
                each.forget()

    # Degrees ---------------------------------------------------------------------------------

    def in_degree(self, relation: int | None = None) -> Tensor:
        """Edges into each node as the layer aggregates them, loops counted: int64 `[N]`.

        `relation`: of which alone they are.
        """
        _, target, number = self._listed(self.self_loops is not False)
        if relation is not None:
            assert self._types is not None  # the graph was made with types
            target = target[self._types[number] == relation]
        return torch.from_numpy(np.bincount(target, minlength=self.nodes))

    def scale(self, exponent: float, relation: int | None = None) -> Tensor:
        """Powers of `in_degree`, float64 `[N]`, 0 where that is 0; layers on the graph share it."""
        key = ("scale", exponent, relation)
        return self._keep(key, lambda: power(self.in_degree(relation), exponent))

    def out_degree(self) -> Tensor:
        """Edges out of each node, those loops counted that were given: int64 `[N]`."""
        return torch.from_numpy(np.bincount(self._edges[0], minlength=self.num_sources))

    def listed(self) -> tuple[Tensor, Tensor]:
        """All edges, the layer's loops among them: `[2, E']` by target, and their numbers `[E']`.

        Edges are numbered as given; the loop of node v is number E + v.
        """
        source, target, number = self._listed(True)
        return torch.from_numpy(np.stack([source, target])), torch.from_numpy(number)

    def loops(self) -> tuple[Tensor, Tensor]:
        """Nodes that have an edge to themselves, and the numbers of these edges: `[L]` each."""
        source, target, number = self._edges
        own = source == target
        return torch.from_numpy(source[own]), torch.from_numpy(number[own])

    # What edges have ---------------------------------------------------------------------------

    def taken(self, given: Tensor, numbers: np.ndarray) -> Tensor:
        """What some edges have, by their numbers: of all, `[E, ...]`, as the layer was given it."""
        return given[torch.from_numpy(numbers).to(given.device)]

    def weights(self, given: Tensor, loop: float) -> Weights:
        """What gives the weights of edges, float64, by their numbers; 1 of those `ELSEWHERE`.
        Layers on the graph with the same weights share it.

        Args:
            given: of the edges without those loops that the layer adds, `[E]` or `[E, 1]`.
            loop: of these; where the layer fills in, that of a loop that was given goes first.
        """
        key = ("weights", id(given), loop)
        return self._keep(key, lambda: (given, self._weights(given, loop)))[1]

    def _weights(self, given: Tensor, loop: float) -> Weights:
        known = given.detach().cpu().double().view(-1)
        loops = torch.full((self.nodes,), loop, dtype=torch.float64)
        if self.self_loops == "fill":
            nodes, numbers = self.loops()
            loops[nodes] = known[numbers]
        padded = torch.cat([known, loops, known.new_ones(1)])  # the last is ELSEWHERE
        return lambda numbers: padded[torch.from_numpy(numbers)]

    def weighted_scale(self, exponent: float, given: Tensor, loop: float) -> Tensor:
        """Powers of `weighted_degree`, as `scale`."""
        key = ("weighted scale", exponent, id(given), loop)
        of = given, loop
        return self._keep(key, lambda: (of, power(self.weighted_degree(*of), exponent)))[1]

    def weighted_degree(self, given: Tensor, loop: float) -> Tensor:
        """The sum of the weights of the edges into each node, those of loops counted: float64
        `[N]`; arguments as of `weights`.
        """
        (_, target), number = self.listed()
        degree = torch.zeros(self.nodes, dtype=torch.float64)
        return degree.index_add(0, target, self.weights(given, loop)(number.numpy()))

    def _listed(self, loops: bool) -> Edges:
        if not loops or self.self_loops is False:
            return self._edges
        return self._keep(("listed",), self._with_loops)

    def _with_loops(self) -> Edges:
        source, target, number = self._edges
        kept = source != target if self.self_loops == "fill" else np.ones(len(source), bool)
        own = np.arange(self._looping.start, self._looping.stop)
        return by_target(
            np.concatenate([source[kept], own]),
            np.concatenate([target[kept], own]),
            np.concatenate([number[kept], self._count + own]),
            self.nodes,
        )

    # Parts -----------------------------------------------------------------------------------

    def whole(self) -> LocalGraph:
        """All edges."""
        return self._keep(("whole",), self._whole)

    def gathered(self, own_first: bool = False) -> LocalGraph:
        """The edges into the own rows, from the rows of all.

        Args:
            own_first: the own rows are the first sources, those of others follow. If not, sources
                are in order.
        """
        key = ("gathered", own_first, len(self.rows))
        return self._keep(key, lambda: self._gathered(own_first))

    def halo(self) -> Halo:
        """The edges into the own rows, and the rows they read."""
        return self._keep(("halo", len(self.rows)), self._halo)

    def cover(self) -> Cover:
        """The edges into the own rows, with a vertex cover of those from others."""
        return self._keep(("cover", len(self.rows)), self._cover)

    def merged(self, count: int) -> RankGraphs:
        """The same where the parts of each `count` neighbours are one: of a grid, the group that
        exchanges has one rank of each; of all ranks, there is one part.
        """
        return self if count == 1 else self._keep(("merged", count), lambda: self._merged(count))

    def _merged(self, count: int) -> RankGraphs:
        rows, own = (each.reshape(-1, count).sum(axis=1) for each in (self.rows, self._own))
        found = RankGraphs(
            self._list, self._count, rows, self.rank // count, self.self_loops, self._looping,
            self._types, None if self._same else own,
        )  # fmt: skip
        found._made = self._made  # listed once
        return found

    def _keep(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made

    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the sources of each rank begin and end, and its targets."""
        both = self._own, self.rows
        sources, targets = (np.concatenate([[0], np.cumsum(rows)]) for rows in both)
        return sources, targets

    def _graph(
        self,
        edges: Edges,
        sources: np.ndarray,
        targets: np.ndarray,
        targets_first: bool = False,
    ) -> LocalGraph:
        """Edges in local numbers."""
        return LocalGraph(
            np.stack(edges[:2]),
            self._names(sources),
            self._names(targets),
            edges[2],
            targets_first,
            self._relations(edges[2]),
        )

    def _relations(self, numbers: np.ndarray) -> np.ndarray | None:
        """The relation of each edge, by its number, -1 of those `ELSEWHERE`; None: it has none."""
        return None if self._types is None else np.where(numbers < 0, -1, self._types[numbers])

    def _names(self, nodes: np.ndarray) -> np.ndarray:
        """What local graphs call these nodes."""
        return nodes

    def _whole(self) -> LocalGraph:
        sources, targets = np.arange(self.num_sources), np.arange(self.nodes)
        return self._graph(self._listed(True), sources, targets)

    def _inside(self, first: int, last: int) -> Edges:
        """The edges into nodes `first` to `last`, loops listed."""
        source, target, number = self._listed(True)
        inside = slice(*np.searchsorted(target, [first, last]))
        return source[inside], target[inside] - first, number[inside]

    def _gathered(self, own_first: bool) -> LocalGraph:
        (first, last), inside = (ends[self.rank : self.rank + 2] for ends in self._bounds())
        source, target, number = self._inside(*inside)
        nodes = np.arange(self.num_sources)
        if own_first:
            own = (source >= first) & (source < last)
            source = np.where(own, source - first, source + (last - first) * (source < first))
            nodes = np.concatenate([nodes[first:last], nodes[:first], nodes[last:]])
        targets = np.arange(*inside)
        return self._graph((source, target, number), nodes, targets, own_first and self._same)

    def _halo(self) -> Halo:
        (bounds, ends), rank = self._bounds(), self.rank
        first, last = bounds[rank : rank + 2]
        source, target, number = self._inside(*ends[rank : rank + 2])
        seen, position = np.unique(source, return_inverse=True)
        own = (seen >= first) & (seen < last)
        local = np.where(own, seen - first, last - first + np.cumsum(~own) - 1)
        halo, nodes = seen[~own], np.arange(first, last)
        graph = self._graph(
            (local[position], target, number),
            np.concatenate([nodes, halo]),
            np.arange(*ends[rank : rank + 2]),
            self._same,
        )
        send, counts = self._wanted(bounds, ends)
        return Halo(lambda: graph, send, counts, _counts(np.searchsorted(halo, bounds)))

    def _wanted(self, bounds: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
        """The own rows that each other rank reads, and how many; arguments as of `_bounds`."""
        first, last = bounds[self.rank : self.rank + 2]
        source, target, _ = self._edges
        inside = (target >= ends[self.rank]) & (target < ends[self.rank + 1])
        leaving = (source >= first) & (source < last) & ~inside
        reader = np.searchsorted(ends, target[leaving], side="right") - 1
        number = max(self.num_sources, 1)
        pairs = np.unique(reader * number + source[leaving])
        counts = np.bincount(pairs // number, minlength=len(bounds) - 1)
        return pairs % number - first, tuple(counts.tolist())

    def _cover(self) -> Cover:
        (bounds, ends), rank = self._bounds(), self.rank
        first, last = bounds[rank : rank + 2]
        begin, end = ends[rank : rank + 2]
        source, target, number = self._inside(begin, end)
        inner = (source >= first) & (source < last)
        # Sources in local numbers: own rows, then what is received.
        pieces = [(source[inner] - first, target[inner], number[inner])]
        received: list[int] = []
        mine = int(last - first)
        for other in range(len(self.rows)):
            cover = self._pair(other, rank)
            start = mine + sum(received)
            received.append(cover.size)
            row, target, number = cover.by_row
            pieces.append((start + np.searchsorted(cover.rows, row), target - begin, number))
            row = start + len(cover.rows) + np.arange(len(cover.sums))
            pieces.append((row, cover.sums - begin, np.full(len(row), ELSEWHERE)))
        nodes, others = np.arange(first, last), np.full(sum(received), ELSEWHERE)
        edges, sources = _joined(pieces, mine + sum(received)), np.concatenate([nodes, others])
        graph = self._graph(edges, sources, np.arange(begin, end), self._same)
        send, counts = self._sent(first)
        return Cover(graph, send, counts, tuple(received))

    def _sent(self, first: int) -> tuple[LocalGraph, tuple[int, ...]]:
        """From the own rows to the buffer that is sent: rows as they are, and partial sums."""
        pieces: list[Edges] = []
        counts: list[int] = []
        for other in range(len(self.rows)):
            cover, start = self._pair(self.rank, other), sum(counts)
            counts.append(cover.size)
            place = start + np.arange(len(cover.rows))
            pieces.append((cover.rows - first, place, np.full(len(place), ELSEWHERE)))
            source, target, number = cover.by_sum
            place = start + len(place) + np.searchsorted(cover.sums, target)
            pieces.append((source - first, place, number))
        mine = int(self._own[self.rank])
        edges = _joined(pieces, mine)
        nowhere = np.full(sum(counts), ELSEWHERE)
        graph = self._graph(edges, np.arange(first, first + mine), nowhere)
        return graph, tuple(counts)

    def _pair(self, sender: int, receiver: int) -> CoveredEdges:
        """What covers the edges from one rank's rows to another's; both compute the same."""
        bounds, ends = self._bounds()
        source, target, number = self._edges
        inside = slice(*np.searchsorted(target, ends[receiver : receiver + 2]))
        source, target, number = source[inside], target[inside], number[inside]
        cut = (source >= bounds[sender]) & (source < bounds[sender + 1])
        if sender == receiver:
            cut[:] = False
        return CoveredEdges.of(source[cut], target[cut], number[cut])


class LocalGraphs(RankGraphs):
    """One graph, of which every rank has all edges.

    Args:
        edge_index: int `[2, E]` of the whole graph; row 0 sources, row 1 targets.
        rows: as of `RankGraphs`, like the others.
        rank: as above.
        self_loops: as above.
        edge_type: int64 `[E]`, the relation of each edge.
        sources: as above.

    Raises:
        ValueError: an argument does not fit the others.

    Example:
        >>> edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
        >>> graphs = LocalGraphs(edges, np.array([2, 2]), rank=0)
        >>> halo = graphs.halo()
        >>> halo.graph.sources.tolist(), halo.send.tolist(), halo.receive_counts
        ([0, 1, 3], [1], (0, 1))
    """

    def __init__(
        self,
        edge_index: Tensor,
        rows: np.ndarray,
        rank: int,
        *,
        self_loops: SelfLoops = False,
        edge_type: Tensor | None = None,
        sources: np.ndarray | None = None,
    ) -> None:
        check_edge_index(edge_index)
        rows = np.asarray(rows, np.int64)
        own = rows if sources is None else np.asarray(sources, np.int64)
        nodes, num_sources = int(rows.sum()), int(own.sum())
        if not 0 <= rank < len(rows):
            raise ValueError(f"rank is {rank}; expected 0 to {len(rows) - 1}")
        source, target = edge_index.detach().cpu().long().numpy()
        for ids, limit in ((source, num_sources), (target, nodes)):
            if ids.size and (ids.min() < 0 or ids.max() >= limit):
                raise ValueError(
                    f"edge_index has ids {ids.min()} to {ids.max()}; expected 0 to {limit - 1}"
                )
        if self_loops is not False and sources is not None:
            raise ValueError(
                f"self_loops is {self_loops!r} where edges go from one type of nodes to another; "
                "expected False"
            )
        if edge_type is not None and edge_type.shape != (len(source),):
            raise ValueError(
                f"edge_type has shape {list(edge_type.shape)}; expected [{len(source)}], one for "
                "each edge"
            )
        super().__init__(
            lambda: by_target(source, target, np.arange(len(source)), num_sources),
            len(source),
            rows,
            rank,
            self_loops,
            range(nodes),
            None if edge_type is None else edge_type.cpu().long().numpy(),
            None if sources is None else own,
        )


def power(degree: Tensor, exponent: float) -> Tensor:
    """Powers of degrees, float64; 0 where the degree is 0."""
    degree = degree.double()
    return degree.pow(exponent).masked_fill(degree == 0, 0.0)


def by_target(source: np.ndarray, target: np.ndarray, number: np.ndarray, sources: int) -> Edges:
    """The edges, those of a target by source."""
    order = np.argsort(target * max(sources, 1) + source, kind="stable")
    return source[order], target[order], number[order]


def _joined(pieces: list[Edges], sources: int) -> Edges:
    source, target, number = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
    return by_target(source, target, number, sources)


def _counts(bounds: np.ndarray) -> tuple[int, ...]:
    return tuple(np.diff(bounds).tolist())
