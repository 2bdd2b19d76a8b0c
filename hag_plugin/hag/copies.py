"""Sources that are copies of others: where their features are alike, sums over them are shared.

In a batch of overlapping subgraphs a node stands once for each subgraph that it is in. A first
layer, which sees the node's own features, adds up the same rows again and again; later layers do
not. So nobody says which layer it is: the rows are compared, byte by byte, at each call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hag_plugin.hag import constants
from hag_plugin.hag.candidates import Choice, arithmetic_of, bytes_of_a_row
from hag_plugin.hag.cost import Work
from hag_plugin.hag.graph import Graph, canonical_graph, with_own_loops
from hag_plugin.hag.program import SELF_LOOPS, Options, Program, SelfLoops
from hag_plugin.hag.state import entry
from hag_plugin.kernels import _cpu
from hag_plugin.modes import Array, outside_inference

# Rows of which one is compared before all are: layers whose copies differ mostly show it there.
SEEN_AT_ONCE = 31
REST = 16  # calls after one in which all rows were compared in vain
WORTH_IT = 0.9  # of the seconds without: with more, a gain is not sure


class HAG(Protocol):
    """What is asked of a `HAG` here."""

    options: Options

    def choice(
        self, width: int, dtype: torch.dtype, self_loops: SelfLoops, *, idempotent: bool
    ) -> Choice: ...
    def candidates(self, self_loops: SelfLoops, *, idempotent: bool) -> dict[str, Program]: ...
    def chosen(self, self_loops: SelfLoops, idempotent: bool, x: Tensor) -> Program: ...
    def copies_mode(self, self_loops: SelfLoops) -> SelfLoops: ...
    def numpy(self) -> tuple[Array, Array]: ...
    def _state(self) -> dict[str, Any]: ...


class Copies:
    """What the sources of a graph are copies of, and the graph in which one stands for all.

    Attributes:
        first: the first copy of each source, int32 `[num_src]`; a source is none of a later one.
        graphs: for a self-loop mode, the HAG of all its edges, loops included, in which each source
            gave way to its first copy.
    """

    def __init__(self, first: Tensor, graphs: Mapping[SelfLoops, HAG]) -> None:
        self.first = first
        self.graphs = dict(graphs)
        self._pays: dict[tuple[Any, ...], bool] = {}
        self._rests: dict[tuple[Any, ...], int] = {}  # calls that are not looked at

    def program(
        self, graph: HAG, self_loops: SelfLoops, idempotent: bool, x: Tensor, scale: Tensor | None
    ) -> Program | None:
        """The program that shares sums across copies, if it pays and copies are alike; or None.

        Args:
            graph: whose copies these are.
            self_loops: the mode.
            idempotent: for max and min.
            x: `[*, num_src, F]`, of any strides.
            scale: of the sources, `[num_src]`.
        """
        merged = self.graphs.get(graph.copies_mode(self_loops))
        if merged is None or x.device.type != "cpu" or not x.numel() or not self._num_copies:
            return None
        key = self_loops, idempotent, x.shape[-1], x.dtype
        if key not in self._pays:
            self._pays[key] = self._is_faster(graph, merged, *key)
        if not self._pays[key]:
            return None
        if self._rests.get(key, 0) > 0:
            self._rests[key] -= 1
            return None
        if not self._are_alike(x, scale, SEEN_AT_ONCE):
            return None
        if not self._are_alike(x, scale, 1):
            self._rests[key] = 0 if graph.options.choose == "hag" else REST
            return None
        return merged.chosen(False, idempotent, x)

    def _is_faster(
        self, graph: HAG, merged: HAG, loops: SelfLoops, idempotent: bool, width: int, dtype: Any
    ) -> bool:
        """Whether the cost model says so, with what it takes to compare the rows."""
        if graph.options.choose in ("hag", "plain"):
            return graph.options.choose == "hag"
        row_bytes, arithmetic = bytes_of_a_row(width, dtype), arithmetic_of(dtype, idempotent)
        c = constants.in_force()

        def seconds(hag: HAG, mode: SelfLoops) -> float:
            name = hag.choice(width, dtype, mode, idempotent=idempotent).name
            program = hag.candidates(mode, idempotent=idempotent)[name]
            work = Work.of(program)
            return float(work.seconds(row_bytes, constants=c, arithmetic=arithmetic))

        compared = Work(0, 0, self._num_copies, self._num_copies, 0, len(self._first))
        looks = float(compared.seconds(row_bytes, constants=c))
        return seconds(merged, False) + looks < WORTH_IT * seconds(graph, loops)

    def _are_alike(self, x: Tensor, scale: Tensor | None, step: int) -> bool:
        """Whether copies have the same features, and the same scale, bit by bit.

        Args:
            x: as for `program`.
            scale: the same.
            step: every so many sources are looked at.
        """
        if x.stride(-1) != 1 and x.shape[-1] > 1:
            return False
        x = x.detach()
        layers = [x] if x.dim() == 2 else list(x.flatten(0, -3))
        if scale is not None:
            layers.append(scale.detach().contiguous().unsqueeze(-1))
        return all(self._alike(each, step) for each in layers)

    def _alike(self, x: Tensor, step: int) -> bool:
        size = x.element_size()
        row = x.shape[1] * size, x.stride(0) * size
        threads = torch.get_num_threads()
        alike: bool = _cpu.rows_alike(x.data_ptr(), self._first, *row, step, threads)
        return alike

    @cached_property
    def _first(self) -> Array:
        return self.first.numpy()

    @cached_property
    def _num_copies(self) -> int:
        return int((self._first != np.arange(len(self._first))).sum())

    # Moving and keeping ---------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Tensors, numbers and strings that make these again."""
        graphs = [{"self_loops": mode or "", "hag": g._state()} for mode, g in self.graphs.items()]
        return {"first": self.first, "graphs": graphs}

    @classmethod
    def of(
        cls, state: Any, graph: Graph, rebuild: Callable[[Any], HAG], verify: bool, copy: bool
    ) -> Copies:
        """Those of a state.

        Args:
            state: as `state` gives it.
            graph: whose copies these are.
            rebuild: makes a HAG of its state.
            verify: check that they are this graph's.
            copy: `first`; otherwise it becomes their own.

        Raises:
            ValueError: they are not.
        """
        first = entry(state, "first", Tensor).detach()
        if verify:
            check_first(first, graph.num_src)
        graphs: dict[SelfLoops, HAG] = {}
        for each in entry(state, "graphs", list):
            mode: Any = entry(each, "self_loops", str) or False
            if mode not in SELF_LOOPS or mode in graphs:
                raise ValueError(
                    f"copies have graphs for {mode!r}, which is no mode or there twice"
                )
            graphs[mode] = rebuild(entry(each, "hag", dict))
            if verify:
                edges = merged_edges(graph, first, graph.check_self_loops(mode))
                expected = canonical_graph(edges, graph.num_src, graph.num_dst)
                if not all(map(np.array_equal, graphs[mode].numpy(), expected)):
                    raise ValueError(f"copies hold other edges than the graph's, for {mode!r}")
        return cls(first.clone() if copy else first, graphs)


def of_batch(
    parts: Sequence[tuple[int, Copies | None]], batch: Callable[[list[Any]], HAG]
) -> Copies | None:
    """The copies in graphs side by side; None where a graph knows of none.

    Args:
        parts: the number of sources of each graph, and its copies.
        batch: makes one HAG of several.
    """
    known = [copies for _, copies in parts if copies is not None]
    if len(known) < len(parts):
        return None
    with outside_inference():
        starts = accumulate((num_src for num_src, _ in parts), initial=0)
        pairs = zip(starts, known)  # noqa: B905  (the last start is of none)
        first = torch.cat([copies.first + start for start, copies in pairs])
        modes = [mode for mode in known[0].graphs if all(mode in c.graphs for c in known)]
        graphs = {mode: batch([copies.graphs[mode] for copies in known]) for mode in modes}
        return Copies(first, graphs)


def first_of(copies: Tensor) -> Tensor:
    """The first source with the same entry, or the same row of entries, int32 `[num_src]`."""
    if not copies.numel():  # all entries are the same: none
        return torch.zeros(len(copies), dtype=torch.int32)
    with outside_inference():
        _, kind = torch.unique(copies.detach().cpu(), dim=0, return_inverse=True)
        nodes = torch.arange(len(kind))
        first = torch.full_like(nodes, len(nodes)).scatter_reduce(0, kind, nodes, "amin")
        return first[kind].int()


def merged_edges(graph: Graph, first: Tensor, self_loops: SelfLoops) -> Tensor:
    """A graph's edges in a self-loop mode, from the first copies of their sources: `[2, E]`."""
    with outside_inference():
        edges = graph.make_edge_index().cpu()
        if self_loops == "fill":
            edges = with_own_loops(edges, graph.num_dst)
        elif self_loops == "add":
            nodes = torch.arange(graph.num_dst).expand(2, -1)
            edges = torch.cat([edges, nodes], dim=1)
        source, target = edges
        return torch.stack([first.long()[source], target])


def check_first(first: Tensor, num_src: int) -> None:
    """Raises ValueError unless these may be the first copies of so many sources."""
    if first.dtype != torch.int32 or first.shape != (num_src,) or first.layout != torch.strided:
        raise ValueError(f"first is {first.dtype} {list(first.shape)}; expected int32 [{num_src}]")
    at = first.long()
    if num_src and not bool(((at >= 0) & (at <= torch.arange(num_src))).all()):
        raise ValueError(f"first holds ids from {int(at.min())} on; expected 0 to a source's own")
    if not torch.equal(at[at], at):
        raise ValueError("first holds copies of others; expected first ones")
