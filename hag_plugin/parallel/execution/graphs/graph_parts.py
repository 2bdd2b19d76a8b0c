"""What one rank aggregates over: a graph in local numbers, and which rows are sent and received."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hag_plugin.hag.build import build_hag
from hag_plugin.hag.hag import HAG
from hag_plugin.ops.weights import edge_slots

ELSEWHERE = -1  # no node: rows that were scaled and summed where they came from


@dataclass(frozen=True, eq=False)
class LocalGraph:
    """Edges from rows that a rank holds to those that it computes, a layer's loops among them.

    Attributes:
        index: int32 or int64 `[2, E]` in local numbers, by target.
        sources: int64 `[S]`, the node of each source row, or `ELSEWHERE`.
        targets: int64 `[T]`, the node of each target row, or `ELSEWHERE`.
        numbers: int64 `[E]`, of each edge in the whole graph, or `ELSEWHERE`; or what makes them.
        targets_first: the targets are the first sources.
        types: int64 `[E]`, the relation of each edge, where the graph has relations.
    """

    index: np.ndarray
    sources: np.ndarray
    targets: np.ndarray
    numbers: np.ndarray | Callable[[], np.ndarray]
    targets_first: bool = False
    types: np.ndarray | None = None
    _hags: dict[tuple[str, int | None, torch.device], HAG] = field(default_factory=dict, repr=False)
    _apart: dict[tuple[int, int, bool], tuple[LocalGraph, LocalGraph]] = field(
        default_factory=dict, repr=False
    )
    _made: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False)

    @cached_property
    def edges(self) -> np.ndarray:
        """`numbers`, made once they are asked for."""
        return _made(self.numbers)

    def apart(self, some: slice, follow: bool = False) -> tuple[LocalGraph, LocalGraph]:
        """The edges from some of the sources, whose only sources they are, and those from others;
        cut once.

        `follow`: the others' sources are those behind, not all.
        """
        key = some.start, some.stop, follow
        if key not in self._apart:
            self._apart[key] = self._cut(*key)
        return self._apart[key]

    def _cut(self, begin: int, end: int, follow: bool) -> tuple[LocalGraph, LocalGraph]:
        all_rows = len(self.sources)
        numbers = self.numbers  # the parts do not keep this graph
        own = (self.index[0] >= begin) & (self.index[0] < end)

        def part(mine: bool, first: int, last: int) -> LocalGraph:
            chosen = own if mine else ~own
            index = np.empty((2, int(np.count_nonzero(chosen))), self.index.dtype)
            for row in range(2):  # one that is chosen from both at once has them side by side
                index[row] = self.index[row][chosen]
            index[0] -= first
            types = None if self.types is None else self.types[chosen]
            return replace(
                self, index=index, sources=self.sources[first:last],
                numbers=lambda: _made(numbers)[own if mine else ~own], targets_first=False,
                types=types, _hags={}, _apart={}, _made={},
            )  # fmt: skip

        return part(True, begin, end), part(False, end if follow else 0, all_rows)

    def into(self, first: int, last: int) -> tuple[np.ndarray, LocalGraph]:
        """The edges into targets `first` to `last`, which must be the first sources of this graph,
        and are those of its part; and what sources the part has: behind these, int64 increasing,
        the others that its edges have.
        """
        assert self.targets_first  # a layer that adds loops takes them for that
        ends = np.array([first, last], self.index.dtype)  # of another, all would be converted
        chosen = slice(*np.searchsorted(self.index[1], ends))
        read, own = self.index[0, chosen].astype(np.int64), np.arange(first, last)
        outside = (read < first) | (read >= last)
        others = np.unique(read[outside])
        place = np.where(outside, len(own) + np.searchsorted(others, read), read - first)
        index, sources = np.stack([place, self.index[1, chosen] - first]), np.append(own, others)
        types = None if self.types is None else self.types[chosen]
        part = replace(
            self, index=index, sources=self.sources[sources], targets=self.targets[first:last],
            numbers=lambda: self.edges[chosen], types=types, _hags={}, _apart={}, _made={},
        )  # fmt: skip
        return sources, part

    def scale(
        self,
        values: Tensor | None,
        ends: Literal["sources", "targets"],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Tensor | None:
        """What nodes have, `[N]`, of the sources or targets; 1 of those `ELSEWHERE`. Made once for
        layers that have the same.
        """
        if values is None:
            return None

        def make() -> Tensor:
            padded = torch.cat([values, values.new_ones(1)])
            return padded[torch.from_numpy(getattr(self, ends))].to(dtype).to(device)

        return self._kept(("scale", ends, dtype, device), values, make)

    def weights(
        self, of: Callable[[np.ndarray], Tensor], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """The weights of the edges in the order that HAGs have them, `[E]`, from what gives them by
        their numbers. Made once for layers that have the same.
        """

        def make() -> Tensor:
            weight = of(self.edges).to(dtype)
            slots = edge_slots(torch.from_numpy(self.index), self.hag("none", device).cpu())
            return torch.zeros_like(weight).index_put((slots,), weight).to(device)

        return self._kept(("weights", dtype, device), of, make)

    def both_ends(self, device: torch.device) -> Tensor:
        """int64 `[2, E]`, `index` as PyG's layers take it; made once."""
        return self._kept(
            ("both ends", device),
            self.index,
            lambda: torch.from_numpy(self.index).long().to(device),
        )

    def _kept(self, key: tuple[Any, ...], of: Any, make: Callable[[], Tensor]) -> Tensor:
        """What was made of an object, which is kept with it: its id is its own while it lives."""
        full = (id(of), *key)
        if full not in self._made:
            self._made[full] = of, make()
        made: Tensor = self._made[full][1]
        return made

    def hag(self, method: str, device: torch.device, relation: int | None = None) -> HAG:
        """The graph, or that of one relation, ready to be aggregated over; built once.

        Args:
            method: "auto" searches a HAG, "none" is the plain graph.
            device: where it is used.
            relation: all of them where it is None.
        """
        key = (method, relation, device)
        if key not in self._hags:
            index = self.index
            if relation is not None:
                assert self.types is not None  # the graph was made with types
                index = index[:, self.types == relation]
            size = (len(self.sources), len(self.targets))
            self._hags[key] = build_hag(
                torch.from_numpy(np.ascontiguousarray(index)),
                size=size,
                method=method,
                targets_first=self.targets_first and size[0] != size[1],
                device=device,
            )
        return self._hags[key]


def _made(numbers: np.ndarray | Callable[[], np.ndarray]) -> np.ndarray:
    return numbers if isinstance(numbers, np.ndarray) else numbers()


@dataclass(frozen=True, eq=False)
class Halo:
    """A part of the nodes with the rows of others that its edges read.

    Attributes:
        make: makes `graph`.
        send: int64, own rows to send, by receiver; a row may go to several.
        send_counts: rows for each rank of the group.
        receive_counts: rows from each rank of the group.
    """

    make: Callable[[], LocalGraph]
    send: np.ndarray
    send_counts: tuple[int, ...]
    receive_counts: tuple[int, ...]

    @cached_property
    def graph(self) -> LocalGraph:
        """Its sources are the own rows, then the halo by owner."""
        return self.make()

    def apart(self) -> tuple[LocalGraph, LocalGraph]:
        """The edges from the own rows, and those from the halo."""
        return self._parts

    @cached_property
    def _parts(self) -> tuple[LocalGraph, LocalGraph]:
        graph = vars(self).get("graph") or self.make()  # what nobody has asked for is not kept
        own = len(graph.sources) - sum(self.receive_counts)
        return graph.apart(slice(0, own), follow=True)


@dataclass(frozen=True, eq=False)
class Cover:
    """A part of the nodes with what covers its edges from others with the fewest rows.

    For each pair of parts a minimum vertex cover of the edges between them: of its sources the
    rows are sent, of its targets the sums over the sources that are not.

    Attributes:
        graph: its sources are the own rows, then what was received, by sender.
        send: from the own rows to what is sent, by receiver.
        send_counts: rows for each rank.
        receive_counts: rows from each rank.
    """

    graph: LocalGraph
    send: LocalGraph
    send_counts: tuple[int, ...]
    receive_counts: tuple[int, ...]

    def apart(self) -> tuple[LocalGraph, LocalGraph]:
        """The edges from the own rows, and those from what was received."""
        own = len(self.graph.sources) - sum(self.receive_counts)
        return self.graph.apart(slice(0, own), follow=True)
