"""Edges sorted by target, and then by source, on disk: a distribution sort.

Edges come in any order and are kept in one file (`Spool`). Counts of targets tell which ranges of
them have as many edges as fit into memory; each range gets a file, which is then sorted alone. So
all reads and writes are sequential, and every edge is written twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hag_plugin.files import DatasetError
from hag_plugin.hag.graph import MAX_NODES
from hag_plugin.parallel.graphs.store.bars import QUIET, Bars
from hag_plugin.parallel.graphs.store.part_files import naming, write_all
from hag_plugin.parallel.graphs.store.streams import EdgeStream

BINS = 1 << 20  # of targets that are counted
EDGE_BYTES = 48  # that sorting an edge takes: its key, source and target, and what is between
BLOCK_BYTES = 128  # that an edge of a block takes while it is read, checked and put in its place
MOST_BLOCK = 1 << 20  # edges of a block


@dataclass(frozen=True, eq=False)
class Numbering:
    """The numbers that nodes have in the store: increasing by part.

    Attributes:
        first: int64 `[R + 1]`, the first number of each part, and N.
        position: int32 `[N]`, the number of each node, or None: nodes keep theirs.
    """

    first: np.ndarray
    position: np.ndarray | None = None

    @property
    def nodes(self) -> int:
        """N."""
        return int(self.first[-1])

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """int64, the numbers of some nodes."""
        return (ids if self.position is None else self.position[ids]).astype(np.int64)

    def parts_of(self, numbers: np.ndarray) -> np.ndarray:
        """The parts that have these numbers."""
        return np.searchsorted(self.first, numbers, "right") - 1


@dataclass(frozen=True, eq=False)
class Rows:
    """Targets that follow each other, with their sources.

    Attributes:
        first: number of the first target.
        degree: int64 `[n]`, edges of each.
        sources: int32 `[E']`, increasing for each target.
    """

    first: int
    degree: np.ndarray
    sources: np.ndarray


class Spool:
    """All edges in one file, as they came.

    Args:
        stream: the edges.
        path: of the file.
        num_nodes: N where it is known: larger ids are refused.
        block: edges at a time.
        bars: of passes over the edges.

    Attributes:
        edges: E.
        bars: as given.
        largest: the largest id, or -1.

    Raises:
        DatasetError: an id is no node's.
    """

    def __init__(
        self,
        stream: EdgeStream,
        path: Path,
        num_nodes: int | None,
        block: int,
        bars: Bars = QUIET,
    ) -> None:
        self._path, self._block, self.bars = path, block, bars
        self.edges, self.largest = 0, -1
        limit = MAX_NODES if num_nodes is None else num_nodes
        with naming(path), open(path, "wb", buffering=0) as file:
            read = bars.over(stream.blocks(block), "reading edges", lambda p: p.shape[1], None)
            for pairs in read:
                if not pairs.size:
                    continue
                least, most = int(pairs.min()), int(pairs.max())
                if least < 0 or most >= limit:
                    wrong = int(((pairs < 0) | (pairs >= limit)).any(0).argmax())
                    raise DatasetError(
                        f"{stream.where(self.edges + wrong)}; expected ids from 0 to {limit - 1}"
                    )
                self.largest = max(self.largest, most)
                self.edges += pairs.shape[1]
                write_all(file, np.ascontiguousarray(pairs.T, np.int32))

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Sources and targets, int32 `[k]` each."""
        return self.bars.over(self._blocks(), "sorting edges", lambda b: len(b[0]), self.edges)

    def _blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with naming(self._path), open(self._path, "rb") as file:
            while (pairs := np.fromfile(file, np.int32, 2 * self._block)).size:
                source, target = pairs.reshape(-1, 2).T
                yield source, target

    def unlink(self) -> None:
        """Deletes the file."""
        self._path.unlink()


def _numbered(
    spool: Spool, numbering: Numbering, both: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Sources and targets in the new numbering, int64; with `both`, reversed and without loops."""
    for source, target in spool.blocks():
        source, target = numbering(source), numbering(target)
        if both:
            kept = source != target
            source, target = source[kept], target[kept]
            yield target, source
        yield source, target


def sorted_rows(
    spool: Spool, numbering: Numbering, both: bool, memory: int, folder: Path
) -> Iterator[Rows]:
    """All rows in the order of their numbers; none crosses the border of a part.

    Args:
        spool: the edges.
        numbering: of nodes.
        both: every edge in both directions, once, without loops; otherwise all edges as they are.
        memory: bytes that sorting may take.
        folder: for files that are gone at the end.

    Raises:
        DatasetError: the edges into one node do not fit.
    """
    nodes = max(numbering.nodes, 1)
    width = -(-nodes // BINS)
    count = np.zeros(-(-nodes // width), np.int64)
    for _, target in _numbered(spool, numbering, both):
        count += np.bincount(target // width, minlength=len(count))
    bounds = _bounds(count, width, numbering.first, max(memory // EDGE_BYTES, 1), memory)
    paths = [folder / f"bucket-{number}" for number in range(len(bounds) - 1)]
    for path in paths:
        path.touch()
    for source, target in _numbered(spool, numbering, both):
        _distribute(source, target, nodes, bounds, paths)
    for number, path in enumerate(paths):
        yield _sorted(path, int(bounds[number]), int(bounds[number + 1]), nodes, both)


def _bounds(count: np.ndarray, width: int, first: np.ndarray, most: int, memory: int) -> np.ndarray:
    """Where buckets begin, and N: each holds `most` edges and nodes at most, of one part."""
    load = np.concatenate([[0], np.cumsum(count + width)])
    bounds = [0]
    for begin, end in zip(first[:-1].tolist(), first[1:].tolist(), strict=True):
        at = begin
        while at < end:
            own = at // width
            until = int(np.searchsorted(load, load[own] + most, "right")) - 1
            if until <= own:
                if count[own] > most:
                    raise DatasetError(
                        f"{int(count[own]):,} edges lead to {_nodes(own, width)}; sorting them "
                        f"takes {EDGE_BYTES * int(count[own]):,} bytes, and {memory:,} are left of "
                        "memory; expected a larger one"
                    )
                until = own + 1
            at = min(until * width, end)
            bounds.append(at)
    return np.array(bounds, np.int64)


def _nodes(own: int, width: int) -> str:
    return "one node" if width == 1 else f"{width} nodes with numbers from {own * width} on"


def _distribute(
    source: np.ndarray, target: np.ndarray, nodes: int, bounds: np.ndarray, paths: list[Path]
) -> None:
    bucket = np.searchsorted(bounds, target, "right") - 1
    key = target * nodes + source
    if len(paths) > 1:
        small = bucket.astype(np.uint16 if len(paths) < 1 << 16 else np.int64)
        key = key[np.argsort(small, kind="stable")]  # radix sort
    ends = np.cumsum(np.bincount(bucket, minlength=len(paths)))
    for number in np.flatnonzero(np.diff(ends, prepend=0)).tolist():
        begin = ends[number - 1] if number else 0
        with naming(paths[number]), open(paths[number], "ab", buffering=0) as file:
            write_all(file, key[begin : ends[number]])


def _sorted(path: Path, first: int, last: int, nodes: int, distinct: bool) -> Rows:
    key = np.fromfile(path, np.int64)
    path.unlink()
    key.sort()
    if distinct:
        key = key[np.diff(key, prepend=-1) > 0]
    target = key // nodes
    key -= target * nodes
    target -= first
    return Rows(first, np.bincount(target, minlength=last - first), key.astype(np.int32))
