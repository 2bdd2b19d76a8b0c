"""Parts of a store that are neighbours, as one: what a rank has of the edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Block:
    """The edges into some parts that follow each other; nodes have the store's numbers.

    The store is cut into B blocks of equally many parts.

    Attributes:
        number: which of them.
        bounds: int64 `[B + 1]`, the first node of each, and N.
        edges: int64 `[B]`, edges into the nodes of each.
        reads: int64 `[B, B]`, rows that each reads of each other one.
        indptr: int64 `[n + 1]`, where the edges of each of its n nodes begin.
        sources: int32 `[E']`, the sources of the edges that lead to them.
        halo: int32 `[H]`, nodes of others that are sources of its edges, increasing.
        values: what its edges have, `[E', ...]` by name.
    """

    number: int
    bounds: np.ndarray
    edges: np.ndarray
    reads: np.ndarray
    indptr: np.ndarray
    sources: np.ndarray
    halo: np.ndarray
    values: dict[str, np.ndarray]

    @property
    def first(self) -> int:
        """Its first node."""
        return int(self.bounds[self.number])

    @property
    def last(self) -> int:
        """The node behind its last one."""
        return int(self.bounds[self.number + 1])

    @property
    def before(self) -> int:
        """Edges into the nodes of the blocks before."""
        return int(self.edges[: self.number].sum())

    def edge_index(self) -> np.ndarray:
        """int64 `[2, E']`, by target."""
        targets = np.repeat(np.arange(self.first, self.last), np.diff(self.indptr))
        return np.stack([self.sources.astype(np.int64), targets])

    def outside(self, nodes: np.ndarray) -> np.ndarray:
        """Whether nodes are of other blocks."""
        return (nodes < self.first) | (nodes >= self.last)


def joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """One after the other; of one array itself, which may be mapped."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
