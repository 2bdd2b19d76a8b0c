"""A graph of which each rank has its part of a store: what ranks tell each other of theirs.

A rank has the edges into its own nodes. Which of its rows others read, and the degrees of those
that it reads, it is told, and where vertex covers are wanted the edges that leave it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hag_plugin.hag.program import SelfLoops
from hag_plugin.parallel.execution.graphs.graph_parts import ELSEWHERE, Halo, LocalGraph
from hag_plugin.parallel.execution.graphs.local_graphs import RankGraphs, by_target
from hag_plugin.parallel.graphs.store.partitioned_data import PartitionedData
from hag_plugin.parallel.graphs.vertex_cover import Edges
from hag_plugin.parallel.ranks.comm import Group

SETUP = "setup"  # the phase under which what ranks tell each other is counted
NO_WHOLE = "each rank has the edges into its own part of a store alone"


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """A part, and what the other ranks told of theirs.

    Attributes:
        part: of this rank.
        send: int64, own rows that others read, by reader.
        send_counts: how many each reads.
        degree: int64 `[n + H]`, edges into each own node, and into those of the halo.
        loops: int64 `[n + H]`, those of them that come from the node itself.
        edges: sources, targets and numbers by target, in the store's numbers: the edges into the
            own nodes, and where they were asked for those out of them.
    """

    part: PartitionedData
    send: np.ndarray
    send_counts: tuple[int, ...]
    degree: np.ndarray
    loops: np.ndarray
    edges: Edges

    @classmethod
    def of(cls, part: PartitionedData, group: Group, leaving: bool) -> Neighbourhood:
        """What the ranks of a group find out together; every one of them calls it.

        Args:
            part: of this rank.
            group: all ranks, as many as there are parts.
            leaving: whether they tell each other of the edges that leave them.

        Raises:
            ValueError: what a part says of another does not fit it.
        """
        group, parts = group.counted_as(SETUP), part.manifest.parts
        receive, send = parts[group.rank].halo, tuple(p.halo[group.rank] for p in parts)
        with group.together("reading the part's edges"):
            edges, loops = _edges_into(part)
            degree = np.stack([part.indptr.diff().numpy(), loops], axis=1)
            wanted = torch.from_numpy(part.halo.numpy().astype(np.int64))
            outer = _outer(part, edges) if leaving else []
        asked = _exchanged(wanted, receive, send, group) - part.first
        with group.together("comparing the parts"):
            if len(asked) and not 0 <= int(asked.min()) <= int(asked.max()) < part.num_nodes:
                raise ValueError(
                    f"part {part.rank}: others read its nodes {int(asked.min())} to "
                    f"{int(asked.max())}; expected 0 to {part.num_nodes - 1}"
                )
            told = torch.from_numpy(degree)[asked]
        degree = np.concatenate([degree, _exchanged(told, send, receive, group).numpy()])
        if leaving:
            edges = _with_leaving(part, edges, outer, group)
        return cls(part, asked.numpy(), send, degree[:, 0], degree[:, 1], edges)


def _edges_into(part: PartitionedData) -> tuple[Edges, np.ndarray]:
    """The edges into the own nodes by target, and how many of them are loops, of each node."""
    source, target = part.edge_index.numpy()
    before = sum(other.edges for other in part.manifest.parts[: part.rank])
    number = before + np.arange(part.num_edges)
    own = target[source == target] - part.first
    halo, others = part.halo.numpy(), source[_outside(part, source)]
    if not np.array_equal(np.append(halo, ELSEWHERE)[np.searchsorted(halo, others)], others):
        raise ValueError(f"part {part.rank} has sources that are not in its halo")
    return (source, target, number), np.bincount(own, minlength=part.num_nodes)


def _outside(part: PartitionedData, nodes: np.ndarray) -> np.ndarray:
    return (nodes < part.first) | (nodes >= part.first + part.num_nodes)


def _outer(part: PartitionedData, edges: Edges) -> list[Tensor]:
    """The edges that come from each part, int64 `[k, 3]`; none of its own."""
    from_others = _outside(part, edges[0])
    listed = torch.from_numpy(np.stack([values[from_others] for values in edges], axis=1))
    owner = part.owners(listed[:, 0])
    order = owner.argsort(stable=True)
    counts = torch.bincount(owner, minlength=part.ranks)
    return [*torch.split(listed[order], counts.tolist())]


def _with_leaving(part: PartitionedData, edges: Edges, outer: list[Tensor], group: Group) -> Edges:
    """The edges, and those out of the own nodes, of which the ranks that they go to tell."""
    counts = [len(each) for each in outer]
    receive = [others[group.rank] for others in group.collect(counts)]
    told = _exchanged(torch.cat(outer), counts, receive, group).numpy()
    joined = (np.concatenate([one, other]) for one, other in zip(edges, told.T, strict=True))
    source, target, number = joined
    return by_target(source, target, number, part.manifest.nodes)


def _exchanged(x: Tensor, send: Any, receive: Any, group: Group) -> Tensor:
    """Rows from each rank for the rows that went to it, on the CPU."""
    return group.all_to_all(x.to(group.device), send, receive, SETUP, "exchange").cpu()


class StoredGraphs(RankGraphs):
    """A graph of which each rank has its part.

    Nodes of local graphs have local names, and degrees go by them: the own nodes, then those of the
    halo; nodes that no edge of the part reads are `ELSEWHERE`.

    Args:
        known: the part, and what others told.
        self_loops: those the layer adds.
    """

    def __init__(self, known: Neighbourhood, self_loops: SelfLoops) -> None:
        part, first = known.part, known.part.first
        assert part.rank is not None  # it has edges
        super().__init__(
            known.edges,
            part.manifest.edges,
            np.diff(part.manifest.first),
            part.rank,
            self_loops,
            range(first, first + part.num_nodes),
        )
        self._known, self._halo_nodes = known, part.halo.numpy().astype(np.int64)

    def in_degree(self, relation: int | None = None) -> Tensor:
        """Edges into each own node and each of the halo, loops counted: int64 `[n + H]`."""
        degree = self._known.degree
        if self.self_loops == "fill":
            degree = degree - self._known.loops
        return torch.from_numpy(degree + (self.self_loops is not False))

    def out_degree(self) -> Tensor:
        """Is not known.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"degrees of sources are not counted: {NO_WHOLE}")

    def whole(self, listed: bool = False) -> LocalGraph:
        """All edges, where there is one part.

        Raises:
            NotImplementedError: there are more.
        """
        if len(self.rows) > 1:
            raise NotImplementedError(f"the whole graph is nowhere: {NO_WHOLE}")
        return super().whole(listed)

    def halo(self, columns: int = 1) -> Halo:
        """As `RankGraphs.halo`.

        Raises:
            NotImplementedError: several parts are to be one.
        """
        if columns > 1:
            raise NotImplementedError(f"{columns} parts cannot be one: {NO_WHOLE}")
        return super().halo()

    def _names(self, nodes: np.ndarray) -> np.ndarray:
        """The local names of nodes that have the store's numbers, or are `ELSEWHERE`."""
        own, halo = nodes - self._looping.start, self._halo_nodes
        count = len(self._looping)
        place = np.searchsorted(halo, nodes)
        read = np.append(halo, ELSEWHERE)[place] == nodes
        read &= nodes != ELSEWHERE
        names = np.where(read, count + place, ELSEWHERE)
        return np.where((own >= 0) & (own < count), own, names)

    def _wanted(
        self, block: int, bounds: np.ndarray, ends: np.ndarray
    ) -> tuple[np.ndarray, tuple[int, ...]]:
        return self._known.send, self._known.send_counts
