"""`SequentialHAG`: the prefix tree of ordered neighbour lists, for aggregates that keep an order.

Where an aggregate reads its neighbours one after another (an LSTM), what two nodes can share is the
beginning of their lists. The prefix tree shares every beginning there is, so it is the optimal HAG
of a sequential aggregate (arXiv 1906.03707, Theorem 3): one step a distinct prefix.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hag_plugin.arguments import check_choice, pair
from hag_plugin.hag.graph import MAX_NODES, check_edge_index
from hag_plugin.modes import numpy_of, outside_inference
from hag_plugin.saved import set_module

Order = Literal["stock", "id", "frequency", "degree"]
ORDERS: tuple[Order, ...] = ("stock", "id", "frequency", "degree")
Array = np.ndarray


@set_module("hag_plugin.sequence")
@dataclass(frozen=True)
class SequenceStats:
    """What a prefix tree costs, and what the lists cost one by one (`_before`).

    Attributes:
        steps: distinct prefixes: steps of a recurrent cell.
        steps_before: edges.
        aggregations: distinct prefixes of two or more, the paper's binary aggregations.
        aggregations_before: neighbours beyond the first, of all targets.
        rows_read: rows of sources and of kept states. A prefix of one is its source's row; a state
            that has one use alone is not kept, so it is not read.
        rows_read_before: edges.
        longest: length of the longest list, the number of levels.
    """

    steps: int
    steps_before: int
    aggregations: int
    aggregations_before: int
    rows_read: int
    rows_read_before: int
    longest: int


@set_module("hag_plugin.sequence")
@dataclass(frozen=True, eq=False)
class SequentialHAG:
    """The prefix tree of the neighbour lists of a graph's targets.

    Prefix 0 is the empty list. Prefixes are numbered level by level: `level_ptr[t]` is the first
    one of length `t`.

    Attributes:
        level_ptr: int64 `[longest + 2]`, on the CPU.
        parent: int64 `[P + 1]`, the prefix without its last neighbour, counted from the first of
            its own level.
        source: int64 `[P + 1]`, the last neighbour; `num_src` for the empty list.
        edge: int64 `[P + 1]`, an edge that is the last of this prefix, a column of the
            `edge_index` given; -1 for the empty list.
        end: int64 `[num_dst]`, the prefix that is a target's whole list.
        num_src: number of sources.
        num_edges: number of edges, duplicates counted.
    """

    level_ptr: Tensor
    parent: Tensor
    source: Tensor
    edge: Tensor
    end: Tensor
    num_src: int
    num_edges: int

    @property
    def num_dst(self) -> int:
        """Number of targets."""
        return self.end.shape[0]

    @property
    def num_prefixes(self) -> int:
        """P: distinct prefixes, the empty list left out."""
        return self.source.shape[0] - 1

    @property
    def longest(self) -> int:
        """Length of the longest list."""
        return self.level_ptr.shape[0] - 2

    @property
    def device(self) -> torch.device:
        """Where the arrays are."""
        return self.source.device

    def to(self, device: torch.device | str) -> SequentialHAG:
        """The tree with its arrays on `device`."""
        kept = ("level_ptr", "num_src", "num_edges")
        names = [f.name for f in fields(self) if f.name not in kept]
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    @cached_property
    def list_lengths(self) -> Tensor:
        """Neighbours of each target, int64 `[num_dst]`."""
        level = torch.searchsorted(self.level_ptr.to(self.device), self.end, right=True)
        return level - 1

    @property
    def is_square(self) -> bool:
        """Whether sources and targets may be the same nodes."""
        return self.num_src == self.num_dst

    @cached_property
    def edge_index(self) -> Tensor:
        """The edges, int64 `[2, E]`: by target, each list in the tree's order.

        Example:
            >>> tree = build_sequence(torch.tensor([[2, 1, 0], [1, 0, 1]]), num_nodes=3)
            >>> tree.edge_index.tolist()
            [[1, 2, 0], [0, 1, 1]]
        """
        lengths = self.list_lengths
        first = self.level_ptr.tolist()
        starts = lengths.cumsum(0) - lengths
        target = torch.arange(self.num_dst, device=self.device).repeat_interleave(lengths)
        source = torch.zeros_like(target)
        prefix = self.end.clone()
        for level in range(self.longest, 0, -1):
            rows = (lengths >= level).nonzero().view(-1)
            here = prefix[rows]
            source[starts[rows] + level - 1] = self.source[here]
            prefix[rows] = self.parent[here] + first[level - 1]
        return torch.stack([source, target])

    def stats(self) -> SequenceStats:
        """Counts steps, binary aggregations and rows read.

        Example:
            >>> edges = torch.tensor([[0, 1, 2, 0, 1], [0, 0, 0, 1, 1]])
            >>> build_sequence(edges, num_nodes=3).stats().steps  # (0), (0 1), (0 1 2)
            3
        """
        parent = self.parent + self._level_starts
        uses = torch.bincount(parent[1:], minlength=self.num_prefixes + 1)
        uses += torch.bincount(self.end, minlength=self.num_prefixes + 1)
        first = self.level_ptr.tolist()
        ones, pairs = first[1], first[min(2, self.longest + 1)]
        kept = uses[pairs:]
        aggregations = self.num_prefixes + 1 - pairs
        rows_read = aggregations + int(uses[ones:pairs].sum()) + int(kept[kept > 1].sum())
        return SequenceStats(
            steps=self.num_prefixes,
            steps_before=self.num_edges,
            aggregations=aggregations,
            aggregations_before=int((self.list_lengths - 1).clamp(min=0).sum()),
            rows_read=rows_read,
            rows_read_before=self.num_edges,
            longest=self.longest,
        )

    @property
    def _level_starts(self) -> Tensor:
        """The first prefix of the level above, for every prefix, int64 `[P + 1]`."""
        starts = torch.cat([self.level_ptr[:1], self.level_ptr[:-2]])
        counts = self.level_ptr.diff()
        return starts.repeat_interleave(counts).to(self.device)


def build_sequence(
    edge_index: Tensor,
    *,
    num_nodes: int | None = None,
    size: tuple[int, int] | None = None,
    order: Order = "stock",
) -> SequentialHAG:
    """Builds the prefix tree of the neighbour lists of all targets.

    Every order but "stock" **changes the model**: an LSTM reads its neighbours in another order,
    so train and use it with the same one. More is shared when frequent sources come first.

    Args:
        edge_index: int32 or int64 `[2, E]`; row 0 sources, row 1 targets. Duplicates count.
        num_nodes: number of nodes; by default the largest id + 1.
        size: `(num_src, num_dst)` of a bipartite graph, instead of `num_nodes`.
        order: of the neighbours of a target. "stock": as their edges come in `edge_index`, which is
            the order that PyG and DGL have; "id": increasing; "frequency": the source with
            most edges first; "degree": the source with the largest in-degree first. Equals by id.

    Returns:
        The tree; its memory is linear in the number of distinct prefixes.

    Raises:
        TypeError: `edge_index` is of the wrong type or dtype.
        ValueError: an argument or an id is out of range.

    Example:
        >>> edges = torch.tensor([[0, 1, 0, 1, 2], [2, 2, 3, 3, 3]])
        >>> tree = build_sequence(edges, num_nodes=4)
        >>> tree.num_prefixes, tree.num_edges
        (3, 5)
    """
    check_choice("order", order, ORDERS)
    check_edge_index(edge_index)
    source, target = numpy_of(edge_index).astype(np.int64)
    num_src, num_dst = _checked_size(source, target, num_nodes, size)
    if order == "degree" and num_src != num_dst:
        raise ValueError(f"order='degree' needs one set of nodes; got {num_src} and {num_dst}")
    by = _sort(source, target, num_src, order)
    row_ptr = np.concatenate([[0], np.cumsum(np.bincount(target, minlength=num_dst))])
    levels, end = _grow(source[by], row_ptr, num_src)
    level_ptr = np.concatenate([[0], np.cumsum([len(level[0]) for level in levels])])
    parent, last, place = (np.concatenate(part) for part in zip(*levels, strict=True))
    edge = np.concatenate([[-1], by[place[1:]]])
    arrays = {"level_ptr": level_ptr, "parent": parent, "source": last, "edge": edge, "end": end}
    with outside_inference():
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        tree = SequentialHAG(**tensors, num_src=num_src, num_edges=len(source))
        return tree.to(edge_index.device)


def _checked_size(
    source: Array, target: Array, num_nodes: int | None, size: tuple[int, int] | None
) -> tuple[int, int]:
    if num_nodes is not None and size is not None:
        raise ValueError("num_nodes and size were both given; expected one of them")
    largest = int(max(source.max(), target.max())) + 1 if len(source) else 0
    if size is None:
        size = (largest if num_nodes is None else num_nodes,) * 2
    num_src, num_dst = pair("size" if num_nodes is None else "num_nodes", size, MAX_NODES)
    for name, ids, count in (("source", source, num_src), ("target", target, num_dst)):
        if len(ids) and not (ids.min() >= 0 and ids.max() < count):
            wrong = ids[(ids < 0) | (ids >= count)][0]
            raise ValueError(f"edge_index holds {name} {wrong}; expected 0 to {count - 1}")
    return num_src, num_dst


def _sort(source: Array, target: Array, num_src: int, order: Order) -> Array:
    """The edges by target, those of one target in `order`: int64 `[E]`."""
    if order == "stock":
        return np.argsort(target, kind="stable")
    rank = np.arange(num_src)
    if order != "id":
        count = np.bincount(source if order == "frequency" else target, minlength=num_src)
        rank[np.argsort(-count, kind="stable")] = np.arange(num_src)
    return np.lexsort((rank[source], target))


def _grow(
    col: Array, row_ptr: Array, num_src: int
) -> tuple[list[tuple[Array, Array, Array]], Array]:
    """Level by level: `(parent, source, place in col)` of the prefixes of a length; the ends.

    Targets that share a prefix are one group; a level splits each group by its next neighbour.
    """
    length = np.diff(row_ptr)
    row = np.argsort(-length, kind="stable")  # the longest first: those that go on are a slice
    going_on = np.searchsorted(-length[row], -np.arange(1, int(length.max(initial=0)) + 1), "right")
    end = np.zeros(len(length), np.int64)
    group = np.zeros(len(length), np.int64)
    zero = np.zeros(1, np.int64)
    levels = [(zero, np.full(1, num_src, np.int64), zero)]
    first = 1
    for level, count in enumerate(going_on):
        place = row_ptr[row[:count]] + level
        key = group[:count] * num_src + col[place]
        by = np.argsort(key)
        key = key[by]
        starts = np.concatenate([[True], key[1:] != key[:-1]])
        group = np.empty(count, np.int64)
        group[by] = np.cumsum(starts) - 1
        key = key[starts]
        levels.append((key // num_src, key % num_src, place[by[starts]]))
        end[row[:count]] = first + group  # until a longer prefix of the same target overwrites it
        first += len(key)
    return levels, end
