"""Edges sorted by target, and then by source, on disk: a distribution sort.

Edges come in any order and are kept in one file (`Spool`). Counts of targets tell which ranges of
them have as many edges as fit into memory; each range gets a file, which is then sorted alone. So
all reads and writes are sequential, and every edge is written twice. What edges have goes along.

duckdb sorts as well (`examples/multi_gpu/sorting.py`: 10 million edges within 256 MiB took 1.7
seconds of a processor here, 1.1 there). It would stand in for the 120 lines from `sorted_rows` on,
and want about as many: columns of the new numbers and of what edges have, of any shape; the edge's
number as a third key, 8 bytes an edge, so that equal edges stay in order; rows given back part by
part; its limit and its errors, of a full disk say, put into ours. And whoever cuts a graph would
need it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from hag_plugin.files import DatasetError
from hag_plugin.hag.graph import MAX_NODES
from hag_plugin.parallel.graphs.store.bars import QUIET, Bars
from hag_plugin.parallel.graphs.store.part_files import naming, write_all
from hag_plugin.parallel.graphs.store.streams import EdgeStream, RowStream

BINS = 1 << 20  # of targets that are counted
EDGE_BYTES = 48  # that sorting an edge takes: its key, source and target, and what is between
VALUE_BYTES = 24  # that it takes more where it has values, and three times their bytes
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
        values: what these edges have, `[E']` with a field for each name; of edges that are
            repeated in the order in which they came. None where they were not wanted.
    """

    first: int
    degree: np.ndarray
    sources: np.ndarray
    values: np.ndarray | None = None


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
        values: the dtype of what an edge has, a field for each name; None: nothing.

    Raises:
        DatasetError: an id is no node's; edges are not as many as their values.
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
        self.values = value_type(stream)
        for name, rows in stream.values.items():
            self._keep(name, rows)

    def _keep(self, name: str, rows: RowStream) -> None:
        """Writes what edges have into a file of its own."""
        path, count = self._path_of(name), 0
        with naming(path), open(path, "wb", buffering=0) as file:
            blocks = rows.blocks(self._block)
            for block in self.bars.over(blocks, f"reading {name}", len, self.edges):
                count += len(block)
                write_all(file, np.ascontiguousarray(block, rows.dtype.newbyteorder("=")))
        if count != self.edges:
            raise DatasetError(f"{name} has {count:,} rows; expected {self.edges:,}, one an edge")

    def _path_of(self, name: str) -> Path:
        return self._path.with_name(f"{self._path.name}-{name}")

    @property
    def fields(self) -> dict[str, np.dtype[Any]]:
        """Those of `values`, by name."""
        values = self.values
        return {} if values is None else {name: values[name] for name in values.names or ()}

    def held(self) -> Iterator[np.ndarray]:
        """What edges have, `[k]` of `values`; as many at a time as `blocks` has."""
        names = self.fields
        with ExitStack() as stack:
            files = {name: stack.enter_context(open(self._path_of(name), "rb")) for name in names}
            for at in range(0, self.edges, self._block):
                out = np.empty(min(self._block, self.edges - at), self.values)
                for name, each in names.items():
                    base, shape = each.base, each.shape
                    count = out.size * int(np.prod(shape))
                    out[name] = np.fromfile(files[name], base, count).reshape(out.size, *shape)
                yield out

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Sources and targets, int32 `[k]` each."""
        return self.bars.over(self._blocks(), "sorting edges", lambda b: len(b[0]), self.edges)

    def _blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with naming(self._path), open(self._path, "rb") as file:
            while (pairs := np.fromfile(file, np.int32, 2 * self._block)).size:
                source, target = pairs.reshape(-1, 2).T
                yield source, target

    def unlink(self) -> None:
        """Deletes the files."""
        self._path.unlink()
        for name in self.fields:
            self._path_of(name).unlink()


def value_type(stream: EdgeStream) -> np.dtype[Any] | None:
    """Of what an edge has, a field for each name; None where it has nothing."""
    values = stream.values.items()
    found = [(name, rows.dtype.newbyteorder("="), rows.shape) for name, rows in values]
    return np.dtype(found) if found else None


def _numbered(
    spool: Spool, numbering: Numbering, both: bool, valued: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """Sources and targets in the new numbering, int64; with `both`, reversed and without loops.
    With `valued` also what they have, both directions beside each other: so what an edge has that
    came twice is what it had first, in each.
    """
    held = spool.held() if valued else repeat(None)
    for (source, target), values in zip(spool.blocks(), held, strict=False):
        source, target = numbering(source), numbering(target)
        if both:
            kept = source != target
            source, target = source[kept], target[kept]
            if values is not None:
                ends = np.stack([source, target], axis=1)
                yield ends.ravel(), ends[:, ::-1].ravel(), values[kept].repeat(2)
                continue
            yield target, source, None
        yield source, target, values


def sorted_rows(
    spool: Spool,
    numbering: Numbering,
    both: bool,
    memory: int,
    folder: Path,
    valued: bool = False,
) -> Iterator[Rows]:
    """All rows in the order of their numbers; none crosses the border of a part.

    Args:
        spool: the edges.
        numbering: of nodes.
        both: every edge in both directions, once, without loops; otherwise all edges as they are.
        memory: bytes that sorting may take.
        folder: for files that are gone at the end.
        valued: with what edges have, where they have something.

    Raises:
        DatasetError: the edges into one node do not fit.
    """
    dtype: np.dtype[Any] = np.dtype(np.int64)
    each = EDGE_BYTES
    if valued and spool.values is not None:
        dtype = np.dtype([("key", np.int64), ("values", spool.values)])
        each += VALUE_BYTES + 3 * spool.values.itemsize
    valued = dtype.names is not None
    nodes = max(numbering.nodes, 1)
    width = -(-nodes // BINS)
    count = np.zeros(-(-nodes // width), np.int64)
    for _, target, _ in _numbered(spool, numbering, both):
        count += np.bincount(target // width, minlength=len(count))
    bounds = _bounds(count, width, numbering.first, each, memory)
    paths = [folder / f"bucket-{number}" for number in range(len(bounds) - 1)]
    for path in paths:
        path.touch()
    for source, target, values in _numbered(spool, numbering, both, valued):
        records = target * nodes + source
        if values is not None:
            key, records = records, np.empty(len(target), dtype)
            records["key"], records["values"] = key, values
        _distribute(records, target, bounds, paths)
    for number, path in enumerate(paths):
        yield _sorted(path, int(bounds[number]), int(bounds[number + 1]), nodes, both, dtype)


def _bounds(count: np.ndarray, width: int, first: np.ndarray, each: int, memory: int) -> np.ndarray:
    """Where buckets begin, and N: edges and nodes of each, at `each` bytes, fit into memory; all
    are of one part.
    """
    most = max(memory // each, 1)
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
                        f"takes {each * int(count[own]):,} bytes, and {memory:,} are left of "
                        "memory; expected a larger one"
                    )
                until = own + 1
            at = min(until * width, end)
            bounds.append(at)
    return np.array(bounds, np.int64)


def _nodes(own: int, width: int) -> str:
    return "one node" if width == 1 else f"{width} nodes with numbers from {own * width} on"


def _distribute(
    records: np.ndarray, target: np.ndarray, bounds: np.ndarray, paths: list[Path]
) -> None:
    bucket = np.searchsorted(bounds, target, "right") - 1
    if len(paths) > 1:
        small = bucket.astype(np.uint16 if len(paths) < 1 << 16 else np.int64)
        records = records[np.argsort(small, kind="stable")]  # radix sort
    ends = np.cumsum(np.bincount(bucket, minlength=len(paths)))
    for number in np.flatnonzero(np.diff(ends, prepend=0)).tolist():
        begin = ends[number - 1] if number else 0
        with naming(paths[number]), open(paths[number], "ab", buffering=0) as file:
            write_all(file, records[begin : ends[number]])


def _sorted(
    path: Path, first: int, last: int, nodes: int, distinct: bool, dtype: np.dtype[Any]
) -> Rows:
    records, values = np.fromfile(path, dtype), None
    path.unlink()
    if dtype.names is None:
        key = records
        key.sort()
    else:
        order = np.argsort(records["key"], kind="stable")
        key, values = records["key"][order], records["values"][order]
        del order
    del records
    if distinct:
        kept = np.diff(key, prepend=-1) > 0
        key, values = key[kept], None if values is None else values[kept]
    target = key // nodes
    key -= target * nodes
    target -= first
    degree = np.bincount(target, minlength=last - first)
    return Rows(first, degree, key.astype(np.int32), values)
