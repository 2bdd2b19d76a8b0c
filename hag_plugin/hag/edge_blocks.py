"""Edges in the order of their targets, cut into blocks: what messages are computed over that are
made of both ends of an edge, or of what an edge has of its own."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hag_plugin.hag.graph import canonical_graph, check_edge_index, inverse_of, slots_of
from hag_plugin.kept import Keeper
from hag_plugin.modes import outside_inference


class Block(NamedTuple):
    """Consecutive edges, and the rows of targets that they lead to.

    Attributes:
        first_edge: of the block; the next block's is `last_edge`.
        last_edge: one past its last.
        first_row: the first row that the block reads or writes.
        last_row: one past its last. Rows without edges belong to one block, too.
    """

    first_edge: int
    last_edge: int
    first_row: int
    last_row: int


class EdgeBlocks(Keeper):
    """The edges of a graph in the order of their targets, and of their sources for each.

    Attributes:
        source: of each edge, int64 `[E]`.
        target: likewise, never decreasing.
        order: which of the edges that were given each is, int64 `[E]`; None: these very edges.
        row_ptr: where each target's edges begin, int64 `[num_dst + 1]`.
        num_src: number of sources.
        num_dst: number of targets.
    """

    def __init__(self, edge_index: Tensor, size: tuple[int, int]) -> None:
        """Sorts edges.

        Args:
            edge_index: int32 or int64 `[2, E]`, sources and targets.
            size: how many of both.

        Raises:
            TypeError: `edge_index` is no dense tensor of integers.
            ValueError: it has another shape, or an id is out of range.
        """
        check_edge_index(edge_index)
        self.num_src, self.num_dst = size
        with outside_inference():
            row_ptr, col = canonical_graph(edge_index, *size)
            slots = slots_of(edge_index, row_ptr, col, size[0])
            is_sorted = bool((slots.diff() > 0).all())
            self.order = None if is_sorted else inverse_of(slots)
            self.source = torch.from_numpy(col).long()
            self.row_ptr = torch.from_numpy(row_ptr)
            rows = torch.arange(self.num_dst)
            self.target = rows.repeat_interleave(self.row_ptr.diff(), output_size=len(col))

    @property
    def num_edges(self) -> int:
        """How many edges."""
        return len(self.source)

    def degrees(self) -> Tensor:
        """The number of edges of each target, int64 `[num_dst]`."""
        return self.kept("degrees", self.row_ptr.diff)

    def cut(self, most: int, whole: bool) -> list[Block]:
        """The edges in blocks.

        Args:
            most: edges of a block.
            whole: whether all edges of a target are in one block. One that has more of them than
                `most` then is a block of its own; else it is cut.
        """
        return self.kept(("blocks", most, whole), lambda: list(self._cut(most, whole)))

    def _cut(self, most: int, whole: bool) -> list[Block]:
        starts, num_edges = self.row_ptr, self.num_edges
        if num_edges == 0:
            return [Block(0, 0, 0, self.num_dst)]
        found, edge, row = [], 0, 0
        while edge < num_edges:
            end = min(edge + most, num_edges)
            last = int(torch.searchsorted(starts, end, right=True)) - 1  # rows before it end here
            next_row = last
            if whole:
                if int(starts[last]) == edge:  # a row with more edges, and empty ones before it
                    next_row = last = last + 1
                end = int(starts[last])
                if end == num_edges:  # rows without edges behind the last one
                    last = self.num_dst
            elif int(starts[last]) < end:
                last += 1
            found.append(Block(edge, end, row, last))
            edge, row = end, next_row
        return found
