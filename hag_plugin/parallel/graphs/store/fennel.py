"""Fennel: nodes go to parts as they come, with the graph on disk (Tsourakakis et al., WSDM 2014).

A node goes where most of its neighbours are, less what the part's size costs:
`|N(v) & S| - alpha * gamma * |S|^(gamma - 1)` with `gamma = 3/2` and `alpha = sqrt(R) M / N^(3/2)`.
Nodes of a block choose at once, and those that gain most go first where a part has little room.
Later passes know the parts of all neighbours (restreaming: Nishimura and Ugander, KDD 2013).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hag_plugin.parallel.graphs.partition import IMBALANCE
from hag_plugin.parallel.graphs.store.part_files import naming, write_all
from hag_plugin.parallel.graphs.store.sorting import EDGE_BYTES, Numbering, Spool, sorted_rows

PASSES = 10
MOST_NODES = 4096  # of a block
BLOCKS = 16  # of a part, at least: nodes of a block do not see where the others go
MOST_COUNTS = 1 << 21  # of a block's nodes times parts


def fennel(
    spool: Spool,
    nodes: int,
    parts: int,
    memory: int,
    folder: Path,
    block: int | None = None,
    passes: int = PASSES,
) -> np.ndarray:
    """The part of each node, int32 `[N]`; none is larger than 1.03 N / R, rounded up.

    Args:
        spool: the edges; directions, loops and repetitions do not matter.
        nodes: N.
        parts: R.
        memory: bytes that this may take; what it gives back not counted.
        folder: for files that are gone at the end.
        block: nodes that choose at once; by default as many as change little of a part.
        passes: over all nodes.
    """
    if block is None:
        most = min(MOST_NODES, MOST_COUNTS // parts, nodes // (parts * BLOCKS))
        block = max(most, 1)
    neighbours = Neighbours.of(spool, nodes, memory, folder)
    owner = np.full(nodes, parts, np.int32)  # `parts`: nowhere yet
    sizes = np.zeros(parts + 1, np.int64)
    sizes[parts] = nodes
    largest = -(-int(np.ceil(IMBALANCE * nodes)) // parts)
    penalty = 1.5 * np.sqrt(parts) * (neighbours.ends / 2) / max(nodes, 1) ** 1.5
    each = (b for _ in range(passes) for b in neighbours.blocks(block, memory // EDGE_BYTES))
    shown = spool.bars.over(each, "assigning nodes", lambda b: len(b[1]), passes * nodes)
    for first, degree, ids in shown:
        chosen = slice(first, first + len(degree))
        key = np.repeat(np.arange(len(degree)) * (parts + 1), degree) + owner[ids]
        counts = np.bincount(key, minlength=len(degree) * (parts + 1))
        sizes -= np.bincount(owner[chosen], minlength=parts + 1)
        counts = counts.reshape(-1, parts + 1)[:, :parts]
        owner[chosen] = _choose(counts, sizes[:parts], largest, penalty)
        sizes += np.bincount(owner[chosen], minlength=parts + 1)
    neighbours.unlink()
    return owner


def _choose(counts: np.ndarray, sizes: np.ndarray, largest: int, penalty: float) -> np.ndarray:
    """The part of each node of a block.

    Args:
        counts: int `[b, R]`, neighbours of each in each part.
        sizes: int64 `[R]`, nodes that the parts have.
        largest: of a part.
        penalty: times the root of its size: what a part's size costs.
    """
    room = largest - sizes
    score = counts - penalty * np.sqrt(sizes)
    chosen = np.full(len(counts), -1, np.int32)
    waiting = np.arange(len(counts))
    while len(waiting):
        score[:, room <= 0] = -np.inf
        best = score[waiting].argmax(axis=1)
        gain = score[waiting, best]
        order = np.lexsort((-gain, best))
        starts = np.searchsorted(best[order], np.arange(len(room)))
        place = np.arange(len(order)) - starts[best[order]]
        goes = order[place < room[best[order]]]
        chosen[waiting[goes]] = best[goes]
        room = room - np.bincount(best[goes], minlength=len(room))
        stays = np.ones(len(waiting), bool)
        stays[goes] = False
        waiting = waiting[stays]
    return chosen


class Neighbours:
    """The neighbours of each node on disk, in both directions, once, without loops.

    Attributes:
        ends: how many, over all nodes.
    """

    def __init__(self, folder: Path) -> None:
        self._degree, self._ids = folder / "degree", folder / "neighbours"
        self.ends = 0

    @classmethod
    def of(cls, spool: Spool, nodes: int, memory: int, folder: Path) -> Neighbours:
        """Those of a graph of `nodes` nodes; arguments as for `fennel`."""
        found, same = cls(folder), Numbering(np.array([0, nodes]))
        with naming(folder), open(found._degree, "wb", buffering=0) as degree, open(
            found._ids, "wb", buffering=0
        ) as ids:  # fmt: skip
            for rows in sorted_rows(spool, same, True, memory, folder):
                found.ends += len(rows.sources)
                write_all(degree, rows.degree.astype(np.int32))
                write_all(ids, rows.sources)
        return found

    def blocks(self, nodes: int, most: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """The first node of some, how many neighbours each has, and these.

        Args:
            nodes: at a time.
            most: neighbours at a time, but for one node that has more.
        """
        first = 0
        with open(self._degree, "rb") as degrees, open(self._ids, "rb") as ids:
            while len(rest := np.fromfile(degrees, np.int32, nodes)):
                while len(rest):
                    ends = np.cumsum(rest, dtype=np.int64)
                    fit = max(int(np.searchsorted(ends, most, "right")), 1)
                    yield first, rest[:fit], np.fromfile(ids, np.int32, int(ends[fit - 1]))
                    first, rest = first + fit, rest[fit:]

    def unlink(self) -> None:
        """Deletes the files."""
        self._degree.unlink()
        self._ids.unlink()
