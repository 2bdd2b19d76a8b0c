"""Minimum vertex covers of bipartite graphs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hag_plugin.extras import needed_by

Edges = tuple[np.ndarray, np.ndarray, np.ndarray]  # sources, targets, numbers


@dataclass(frozen=True, eq=False)
class CoveredEdges:
    """Edges from one part to another, by what is sent for them.

    Attributes:
        rows: sources whose rows are sent, increasing.
        sums: targets whose partial sums are sent, increasing.
        by_row: the edges of these rows.
        by_sum: the others, which are summed before.
    """

    rows: np.ndarray
    sums: np.ndarray
    by_row: Edges
    by_sum: Edges

    @classmethod
    def of(cls, source: np.ndarray, target: np.ndarray, number: np.ndarray) -> CoveredEdges:
        """The edges, int64 `[E]` each, with a minimum cover."""
        rows, sums = minimum_cover(source, target)
        sent = np.isin(source, rows)
        by_row, by_sum = ((source[k], target[k], number[k]) for k in (sent, ~sent))
        return cls(rows, sums, by_row, by_sum)

    @property
    def size(self) -> int:
        """Rows that are sent, sums counted."""
        return len(self.rows) + len(self.sums)


def minimum_cover(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The fewest sources and targets of which every edge has one (König's theorem).

    From a maximum matching: of what can be reached from unmatched sources by paths that alternate
    between other edges and matched ones, the targets; and the sources that cannot be reached.

    Args:
        source: int64 `[E]`.
        target: int64 `[E]`; sources and targets are different things, whatever their ids.

    Returns:
        The sources and the targets of the cover, increasing.

    Raises:
        ImportError: scipy, which finds the matching, is not installed.

    Example:
        >>> rows, sums = minimum_cover(np.array([0, 0, 0, 1, 2]), np.array([5, 6, 7, 8, 8]))
        >>> rows.tolist(), sums.tolist()
        ([0], [8])
    """
    if not len(source):
        return source[:0], target[:0]
    with needed_by("a vertex cover", "parallel"):
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import maximum_bipartite_matching

    sources, row = np.unique(source, return_inverse=True)
    targets, column = np.unique(target, return_inverse=True)
    graph = coo_array((np.ones(len(row), np.int8), (row, column))).tocsr()
    partner = maximum_bipartite_matching(graph, perm_type="column")  # of each source, or -1
    matched = np.full(len(targets), -1)  # of each target, its source
    matched[partner[partner >= 0]] = np.flatnonzero(partner >= 0)
    reached, seen = partner < 0, np.zeros(len(targets), bool)
    front = np.flatnonzero(reached)
    while len(front):
        on_front = np.zeros(len(sources), bool)
        on_front[front] = True
        fresh = np.unique(column[on_front[row]])
        fresh = fresh[~seen[fresh]]
        seen[fresh] = True
        front = matched[fresh]  # every one is matched: the matching is a maximum
        front = front[~reached[front]]
        reached[front] = True
    return sources[~reached], targets[seen]
