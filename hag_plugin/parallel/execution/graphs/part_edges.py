"""The edges of a block of a store in local numbers, some at a time from their file.

What is held of an edge is what `LocalGraph` has of it, 8 bytes; nothing else is made of all of them
before it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hag_plugin.hag.program import SelfLoops
from hag_plugin.parallel.execution.graphs.graph_parts import ELSEWHERE, LocalGraph
from hag_plugin.parallel.graphs.store.block import Block

MOST = 1 << 22  # edges at a time


def count_loops(block: Block, most: int = MOST) -> np.ndarray:
    """How many edges each node of a block has from itself, int64 `[n]`.

    Args:
        block: of a rank.
        most: edges at a time.

    Raises:
        ValueError: an edge comes from a node that is neither the block's nor of its halo.
    """
    loops = np.zeros(block.last - block.first, np.int64)
    halo = block.halo
    for rows, source, target in _some_edges(block, most):
        others = source[block.outside(source)]
        if not np.array_equal(np.append(halo, ELSEWHERE)[np.searchsorted(halo, others)], others):
            raise ValueError(f"the part of nodes {block.first} to {block.last - 1} has sources "
                             "that are not in its halo")  # fmt: skip
        looping = target[source - block.first == target] - rows.start
        loops[rows.start : rows.stop] = np.bincount(looping, minlength=len(rows))
    return loops


def local_graph(block: Block, self_loops: SelfLoops, loops: int, most: int = MOST) -> LocalGraph:
    """The edges into the nodes of a block, by target, the loops that a layer adds among them.

    Sources are the block's nodes, then those of its halo. Edges have their numbers in the whole
    graph, where the loop of node v is number E + v.

    Args:
        block: of a rank.
        self_loops: those the layer adds: False, "add" or "fill".
        loops: edges of the block that are loops.
        most: edges at a time.
    """
    nodes, halo = block.last - block.first, block.halo
    count = len(block.sources) + (self_loops is not False) * nodes - (self_loops == "fill") * loops
    index, end = np.empty((2, count), np.int32), 0
    for rows, source, target in _some_edges(block, most):
        outside = block.outside(source)
        place = nodes + np.searchsorted(halo, source[outside])
        source -= np.int32(block.first)
        source[outside] = place
        if self_loops is not False:
            kept, order = _with_loops(rows, source, target, self_loops)
            own = np.arange(rows.start, rows.stop, dtype=np.int32)
            source, target = (np.append(each[kept], own)[order] for each in (source, target))
        begin, end = end, end + len(source)
        index[0, begin:end], index[1, begin:end] = source, target

    def numbers() -> np.ndarray:
        return _numbers(block, self_loops, count, most)

    sources, targets = np.arange(nodes + len(halo)), np.arange(nodes)
    return LocalGraph(index, sources, targets, numbers, targets_first=True)


def _numbers(block: Block, self_loops: SelfLoops, count: int, most: int) -> np.ndarray:
    """The numbers of the edges of `local_graph`, int64 `[count]`."""
    if self_loops is False:
        return block.before + np.arange(count)
    numbers, number, end = np.empty(count, np.int64), block.before, 0
    first = int(block.edges.sum()) + block.first
    for rows, source, target in _some_edges(block, most):
        kept, order = _with_loops(rows, source - np.int32(block.first), target, self_loops)
        given, number = np.arange(number, number + len(source)), number + len(source)
        found = np.append(given[kept], first + np.arange(rows.start, rows.stop))[order]
        begin, end = end, end + len(found)
        numbers[begin:end] = found
    return numbers


def _with_loops(
    rows: range, source: np.ndarray, target: np.ndarray, self_loops: SelfLoops
) -> tuple[slice | np.ndarray, np.ndarray]:
    """Which edges into some rows are kept; and the order by target of these, and of a loop of each
    row behind them."""
    kept = source != target if self_loops == "fill" else slice(None)
    own = np.arange(rows.start, rows.stop, dtype=np.int32)
    return kept, np.argsort(np.append(target[kept], own), kind="stable")


def _some_edges(block: Block, most: int) -> Iterator[tuple[range, np.ndarray, np.ndarray]]:
    """Some of the block's nodes at a time, and the edges into them: int32 each, copies, the sources
    by the store's numbers, the targets by the block's. A node's edges are not cut."""
    indptr, first, nodes = block.indptr, 0, block.last - block.first
    while first < nodes:
        fits = int(np.searchsorted(indptr, indptr[first] + most, side="right")) - 1
        last = min(max(fits, first + 1), nodes)
        degree = np.diff(indptr[first : last + 1])
        target = np.repeat(np.arange(first, last, dtype=np.int32), degree)
        yield range(first, last), np.array(block.sources[indptr[first] : indptr[last]]), target
        first = last
