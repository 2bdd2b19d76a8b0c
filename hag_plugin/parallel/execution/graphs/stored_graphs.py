"""A graph of which each rank has its part of a store: what ranks tell each other of theirs.

A rank has the edges into its own nodes; of a grid, those into the nodes of its row. Which of its
rows others read, and the degrees of those that it reads, it is told, and where vertex covers are
wanted the edges that leave it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hag_plugin.hag.program import SelfLoops
from hag_plugin.parallel.execution.graphs.graph_parts import ELSEWHERE, Halo, LocalGraph
from hag_plugin.parallel.execution.graphs.local_graphs import RankGraphs, Weights, by_target
from hag_plugin.parallel.execution.graphs.part_edges import count_loops, local_graph
from hag_plugin.parallel.graphs.store.block import Block
from hag_plugin.parallel.graphs.vertex_cover import Edges
from hag_plugin.parallel.ranks.comm import Group

SETUP = "setup"  # the phase under which what ranks tell each other is counted


@dataclass(eq=False)
class Neighbourhood:
    """A block of a store, and what the ranks that have others told of theirs.

    Attributes:
        block: of this rank.
        send: int64, own rows that others read, by reader.
        send_counts: how many each reads.
        degree: int64 `[n + H]`, edges into each own node, and into those of the halo.
        loops: int64 `[n + H]`, those of them that come from the node itself.
        leaving: the edges out of the own nodes, too; None where these were not asked for.
        weights: of what may be weights of edges, by name float64 `[n + H, 3]`: their sum over the
            edges into each own node and each of the halo, without and with loops, and that of the
            last loop.
    """

    block: Block
    send: np.ndarray
    send_counts: tuple[int, ...]
    degree: np.ndarray
    loops: np.ndarray
    leaving: Leaving | None
    weights: dict[str, np.ndarray]

    @property
    def edges(self) -> Edges:
        """The edges that the rank knows, as of `Leaving`; made anew where these are its own."""
        return _edges_into(self.block) if self.leaving is None else self.leaving.edges

    @classmethod
    def of(cls, block: Block, group: Group, peers: Group, leaving: bool) -> Neighbourhood:
        """What ranks find out together; every one of them calls it.

        Args:
            block: of this rank.
            group: all ranks: all go on, or none.
            peers: one rank of each block.
            leaving: whether they tell each other of the edges that leave them.

        Raises:
            ValueError: what a block says of another does not fit it.
        """
        peers, number = peers.counted_as(SETUP), block.number
        receive, send = (tuple(c.tolist()) for c in (block.reads[number], block.reads[:, number]))
        with group.together("reading the part's edges"):
            degree = np.stack([np.diff(block.indptr), count_loops(block)], axis=1)
            wanted = torch.from_numpy(block.halo.astype(np.int64))
            edges = _edges_into(block) if leaving else None
            values = _values(block)
            outer = [] if edges is None else _outer(block, edges)
            weights = _weights(block, edges or _edges_into(block), values) if values else {}
        asked = _exchanged(wanted, receive, send, peers) - block.first
        with group.together("comparing the parts"):
            nodes = block.last - block.first
            if len(asked) and not 0 <= int(asked.min()) <= int(asked.max()) < nodes:
                raise ValueError(
                    f"rank {group.rank}: others read its nodes {int(asked.min())} to "
                    f"{int(asked.max())}; expected 0 to {nodes - 1}"
                )

        def with_halo(own: np.ndarray) -> np.ndarray:
            told = _exchanged(torch.from_numpy(own)[asked], send, receive, peers)
            return np.concatenate([own, told.numpy()])

        degree = with_halo(degree)
        weights = {name: with_halo(own) for name, own in weights.items()}
        out = None if edges is None else Leaving.of(block, edges, outer, values, peers)
        return cls(block, asked.numpy(), send, degree[:, 0], degree[:, 1], out, weights)


def _edges_into(block: Block) -> Edges:
    """The edges into the own nodes by target."""
    source, target = block.edge_index()
    return source, target, block.before + np.arange(len(source))


@dataclass(frozen=True, eq=False)
class Leaving:
    """The edges that touch a rank's nodes.

    Attributes:
        edges: sources, targets and numbers by target, in the store's numbers, of those into the
            nodes and of those out of them.
        numbers: int64 `[L]`, increasing, of those out of them to others.
        weights: of these what may be weights, by name float64 `[L]`.
    """

    edges: Edges
    numbers: np.ndarray
    weights: dict[str, np.ndarray]

    @classmethod
    def of(
        cls, block: Block, edges: Edges, outer: list[Tensor], values: dict[str, np.ndarray],
        peers: Group,
    ) -> Leaving:  # fmt: skip
        """With what the ranks that edges go to tell of them; arguments as in `Neighbourhood.of`."""
        counts = [len(each) for each in outer]
        receive = [others[peers.rank] for others in peers.collect(counts)]
        listed = torch.cat(outer)
        told = _exchanged(listed, counts, receive, peers).numpy().T
        order, weights = np.argsort(told[2]), {}
        for name, weight in values.items():
            mine = torch.from_numpy(weight)[listed[:, 2] - block.before]
            weights[name] = _exchanged(mine, counts, receive, peers).numpy()[order]
        source, target, number = map(np.concatenate, zip(edges, told, strict=True))
        known = by_target(source, target, number, int(block.bounds[-1]))
        return cls(known, told[2][order], weights)


def _values(block: Block) -> dict[str, np.ndarray]:
    """What may be weights of edges, by name float64 `[E']`: not several numbers an edge."""
    return {
        name: values.reshape(-1).astype(np.float64)
        for name, values in block.values.items()
        if values.dtype.kind != "c" and np.prod(values.shape[1:]) == 1
    }


def _weights(block: Block, edges: Edges, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As of `Neighbourhood`, of the own nodes."""
    found, nodes = {}, block.last - block.first
    target, loop = edges[1] - block.first, edges[0] == edges[1]
    for name, weight in values.items():
        sums = [np.bincount(target[kept], weight[kept], nodes) for kept in (~loop, slice(None))]
        last = np.zeros(nodes)
        last[target[loop]] = weight[loop]
        found[name] = np.stack([*sums, last], axis=1)
    return found


def _outer(block: Block, edges: Edges) -> list[Tensor]:
    """The edges that come from each block, int64 `[k, 3]`; none of its own."""
    from_others = block.outside(edges[0])
    listed = torch.from_numpy(np.stack([values[from_others] for values in edges], axis=1))
    owner = torch.searchsorted(torch.from_numpy(block.bounds), listed[:, 0].clone(), right=True) - 1
    order = owner.argsort(stable=True)
    counts = torch.bincount(owner, minlength=len(block.edges))
    return [*torch.split(listed[order], counts.tolist())]


def _exchanged(x: Tensor, send: Any, receive: Any, group: Group) -> Tensor:
    """Rows from each rank for the rows that went to it, on the CPU."""
    return group.all_to_all(x.to(group.device), send, receive, SETUP, "exchange").cpu()


class StoredGraphs(RankGraphs):
    """A graph of which each rank has its part, or that of its row of a grid, or all.

    Nodes of local graphs have local names, and degrees go by them: the own nodes, then those of the
    halo; nodes that no edge of the part reads are `ELSEWHERE`.

    Args:
        known: what was opened and told, where so many neighbours' parts are one.
        self_loops: those the layer adds.
        given: what stands for what edges have, by name.
        edge_type: the one of them that is the relation of each edge, or None.
        merged: which of those that are known this is.
    """

    def __init__(
        self,
        known: Mapping[int, Neighbourhood],
        self_loops: SelfLoops,
        given: Mapping[str, Tensor],
        edge_type: Tensor | None = None,
        merged: int = 1,
    ) -> None:
        self._opened, self._known, self._given = known, known[merged], given
        self._edge_type = edge_type
        block = self._known.block
        super().__init__(
            lambda: self._known.edges,
            int(block.edges.sum()),
            np.diff(block.bounds),
            block.number,
            self_loops,
            range(block.first, block.last),
        )
        self._halo_nodes = block.halo.astype(np.int64)

    @property
    def _edges(self) -> Edges:
        return self._known.edges  # not kept

    def forget(self) -> None:
        super().forget()
        self._known.leaving = None  # covers are asked for once

    def _merged(self, count: int) -> StoredGraphs:
        return StoredGraphs(self._opened, self.self_loops, self._given, self._edge_type, count)

    def in_degree(self, relation: int | None = None) -> Tensor:
        """Edges into each own node and each of the halo, loops counted: int64 `[n + H]`; of one
        relation those into own nodes alone, 0 of the halo.
        """
        degree, block = self._known.degree, self._known.block
        if relation is not None:
            types = self._relations(block.before + np.arange(len(block.sources)))
            target = np.repeat(np.arange(block.last - block.first), np.diff(block.indptr))
            return torch.from_numpy(np.bincount(target[types == relation], minlength=len(degree)))
        if self.self_loops == "fill":
            degree = degree - self._known.loops
        return torch.from_numpy(degree + (self.self_loops is not False))

    def out_degree(self) -> Tensor:
        """Is not known.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("degrees of sources are not counted of a store")

    def taken(self, given: Tensor, numbers: np.ndarray) -> Tensor:
        name = self._name_of(given)
        if name is None:
            return super().taken(given, numbers)
        block = self._known.block
        return torch.from_numpy(block.values[name])[torch.from_numpy(numbers - block.before)]

    def _weights(self, given: Tensor, loop: float) -> Weights:
        name = self._name_of(given)
        if name is None:
            return super()._weights(given, loop)
        block = self._known.block
        own = torch.from_numpy(block.values[name]).double().view(-1)
        loops = self._loops(name, loop)[: block.last - block.first]
        out = self._known.leaving  # edges that a vertex cover sums here
        others = np.empty(0, np.int64) if out is None else out.numbers
        told = own[:0] if out is None else torch.from_numpy(out.weights[name])
        padded = torch.cat([own, loops, told, own.new_ones(1)])
        ends = len(own), len(own) + len(loops)

        def taken(numbers: np.ndarray) -> Tensor:
            of_loops = numbers - self._count - block.first + ends[0]
            place = np.where(numbers < self._count, numbers - block.before, of_loops)
            elsewhere = (numbers < self._count) & ((place < 0) | (place >= ends[0]))
            of_others = ends[1] + np.searchsorted(others, numbers)
            place = np.where(elsewhere, of_others, place)
            return padded[torch.from_numpy(np.where(numbers == ELSEWHERE, ELSEWHERE, place))]

        return taken

    def weighted_degree(self, given: Tensor, loop: float) -> Tensor:
        name = self._name_of(given)
        if name is None:
            return super().weighted_degree(given, loop)
        sums = self._known.weights[name]
        degree = torch.from_numpy(sums[:, 0 if self.self_loops == "fill" else 1])
        return degree if self.self_loops is False else degree + self._loops(name, loop)

    def _loops(self, name: str, loop: float) -> Tensor:
        """Weights of the loops of own nodes, and of those of the halo: float64 `[n + H]`."""
        known = self._known
        there = (known.loops > 0) & (self.self_loops == "fill")
        return torch.from_numpy(np.where(there, known.weights[name][:, 2], loop))

    def _name_of(self, given: Tensor) -> str | None:
        """What the store calls values of edges; None: they are no store's, but of all edges."""
        return next((name for name, each in self._given.items() if each is given), None)

    def whole(self) -> LocalGraph:
        """All edges, where all parts are one.

        Raises:
            NotImplementedError: they are not.
        """
        if len(self.rows) > 1:
            raise NotImplementedError(f"of {len(self.rows)} parts no one has the whole graph")
        return super().whole()

    def _whole(self) -> LocalGraph:
        return self._local()

    def _halo(self) -> Halo:
        known, make = self._known, self._local
        receive = known.block.reads[known.block.number]
        return Halo(make, known.send, known.send_counts, tuple(receive.tolist()))

    def _local(self) -> LocalGraph:
        block = self._known.block
        own = self._known.loops[: block.last - block.first]
        graph = local_graph(block, self.self_loops, int(own.sum()))
        if self._edge_type is None:
            return graph
        return replace(graph, types=self._relations(graph.edges))

    def _relations(self, numbers: np.ndarray) -> np.ndarray | None:
        if self._edge_type is None:
            return None
        name = self._name_of(self._edge_type)
        assert name is not None  # others are refused
        block = self._known.block
        return np.where(numbers < 0, -1, block.values[name].reshape(-1)[numbers - block.before])

    def _names(self, nodes: np.ndarray) -> np.ndarray:
        """The local names of nodes that have the store's numbers, or are `ELSEWHERE`."""
        own, halo = nodes - self._looping.start, self._halo_nodes
        count = len(self._looping)
        place = np.searchsorted(halo, nodes)
        read = np.append(halo, ELSEWHERE)[place] == nodes
        read &= nodes != ELSEWHERE
        names = np.where(read, count + place, ELSEWHERE)
        return np.where((own >= 0) & (own < count), own, names)
