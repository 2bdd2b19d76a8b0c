"""Making a store: a graph goes by once, in bounded memory, and each part gets its files."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hag_plugin.arguments import (
    brief,
    check_choice,
    check_flag,
    check_optional_flag,
    check_path,
    whole,
)
from hag_plugin.files import DatasetError
from hag_plugin.hag.graph import MAX_NODES
from hag_plugin.kernels import _cpu
from hag_plugin.parallel.graphs.stats import hag_counts, part_hag
from hag_plugin.parallel.graphs.store.assign import METHODS, assign, numbered
from hag_plugin.parallel.graphs.store.bars import Bars
from hag_plugin.parallel.graphs.store.folder import whole_folder
from hag_plugin.parallel.graphs.store.manifest import (
    LOOPS,
    Manifest,
    Part,
    array_path,
    groups,
    part_folder,
)
from hag_plugin.parallel.graphs.store.part_files import (
    NAME,
    OWN,
    ArrayFile,
    FileRecord,
    open_array,
)
from hag_plugin.parallel.graphs.store.sorting import (
    BLOCK_BYTES,
    MOST_BLOCK,
    Numbering,
    Rows,
    Spool,
    sorted_rows,
    value_type,
)
from hag_plugin.parallel.graphs.store.streams import RowStream, stream_of
from hag_plugin.saved import set_module

MEMORY = 4 << 30
LEAST_MEMORY = 64 << 20  # beside what the process has already, and what there is for each node
# For each node: its number, its part while it is assigned, and whether a part reads it.
NODE_BYTES = 9
# For each edge and each node of a part whose HAG is searched. Measured: 49 to 85 bytes an edge
# where nodes have 20 to 64, 111 where they have 4, and 232 where they have one.
HAG_BYTES = 120
MOST_PARTS = 1 << 15
WORK = "work"  # the folder of what is gone at the end


@set_module("hag_plugin.parallel")
def write_partitions(
    data: Any,
    ranks: int,
    folder: str | os.PathLike[str],
    *,
    method: str = "auto",
    assignment: np.ndarray | None = None,
    undirected: bool = False,
    memory: int = MEMORY,
    hag: bool = False,
    progress: bool | None = None,
) -> Manifest:
    """Cuts a graph into parts, and writes each into a folder of its own, for `PartitionedData`.

    Edges are read once, block by block, and sorted on disk. `folder` appears when all is written,
    or not at all. While it is made its disk holds, beside it, 16 bytes for each edge; up to 32 with
    Fennel, or where the graph is undirected.

    Args:
        data: PyG's `Data`, a DGL graph, or the stream of a file or folder
            (`hag_plugin.data.edge_folders.open_graph`). All that has a row for each node is kept,
            and what edges have.
        ranks: R, how many parts.
        folder: a new one.
        method: how nodes are assigned. "contiguous": blocks of their numbers. "fennel": as a
            stream, where most neighbours are, whatever the size of the graph. "metis" and "labels":
            as `partition` does, in memory. "auto": METIS, where it is installed and the graph fits,
            otherwise Fennel; or contiguous blocks where these cut no more edges.
        assignment: int `[N]`, the part of each node, made elsewhere; then `method` is not used.
        undirected: take every edge in both directions, once, without loops. Both have what was
            given with the first of them.
        memory: bytes that the process may have in all.
        hag: search the HAG of each part, and keep what it saves, for plans. The edges of one part
            are then in memory at a time, at 120 bytes for each, and for each node of it.
        progress: show a bar of each pass over edges or nodes; by default of those that take more
            than two seconds.

    Raises:
        DatasetError: an edge or a row is wrong; `where` says which.
        ValueError: an argument is wrong, or the memory is not enough.
        OSError: a file can't be written, as where the disk is full. It names the file.

    Example:
        >>> import tempfile, types
        >>> edges = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
        >>> data = types.SimpleNamespace(edge_index=edges, num_nodes=4, y=torch.arange(4))
        >>> with tempfile.TemporaryDirectory() as there:
        ...     found = write_partitions(data, 2, f"{there}/parts")
        >>> found.ranks, found.edges, found.cut, found.names
        (2, 4, 0.0, ('y',))
    """
    stream = stream_of(data)
    ranks = whole("ranks", ranks, 1, MOST_PARTS)
    check_path("folder", folder)
    check_choice("method", method, METHODS)
    check_flag("undirected", undirected)
    check_flag("hag", hag)
    memory = whole("memory", memory, 1, 2**63 - 1)
    check_optional_flag("progress", progress)
    bars = Bars(progress)
    nodes = stream.num_nodes
    if assignment is not None:
        assignment = _checked(assignment, ranks)
        nodes = len(assignment) if nodes is None else nodes
    for name, rows in stream.values.items():
        _check_rows(name, rows)
        if name in stream.rows:
            raise ValueError(f"{name!r} is what nodes have, and edges; expected two names")
    for name, rows in stream.rows.items():
        _check_rows(name, rows)
        nodes = rows.rows if nodes is None else nodes
        if rows.rows != nodes:
            raise DatasetError(f"{name} has {rows.rows:,} rows; expected {nodes:,}, one a node")
    with whole_folder(folder) as made:
        work = made / WORK
        work.mkdir()
        left = _left(memory, nodes or 0)
        values = value_type(stream)
        each = BLOCK_BYTES + (0 if values is None else 8 * values.itemsize)
        block = max(min(MOST_BLOCK, left // each // 2), 1)
        spool = Spool(stream, work / "edges", nodes, block, bars)
        nodes = spool.largest + 1 if nodes is None else nodes
        whole("the number of nodes", nodes, 0, MAX_NODES)
        left = _left(memory, nodes) - block * each
        if assignment is None:
            numbering, taken = assign(spool, nodes, ranks, method, left, work)
        else:
            if len(assignment) != nodes:
                raise ValueError(
                    f"assignment has {len(assignment):,} parts; expected {nodes:,}, one a node"
                )
            numbering, taken = numbered(assignment, ranks), "assignment"
        del assignment
        for part in range(ranks):
            part_folder(made, part).mkdir()
        files = _write_rows(made, numbering, _with_ids(stream.rows, nodes), left, bars)
        parts, fingerprint = _write_edges(made, work, spool, numbering, undirected, left)
        if hag:
            parts = _with_hags(made, numbering, parts, left, bars)
        merged = {count: _merged(made, numbering, parts, count) for count in groups(ranks)}
        found = Manifest(
            nodes,
            sum(part.edges for part in parts),
            taken,
            undirected,
            stream.words,
            fingerprint,
            merged,
            tuple(stream.values),
            tuple(
                replace(part, files={**part.files, **own})
                for part, own in zip(parts, files, strict=True)
            ),
        )
        shutil.rmtree(work)
        found.save(made)
    return found


def _checked(assignment: Any, parts: int) -> np.ndarray:
    """int32 `[N]`."""
    try:
        array = np.asarray(assignment)
    except Exception as e:  # of torch's tensors of other kinds, say
        raise ValueError(f"assignment is {brief(assignment)}; expected whole numbers [N]") from e
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise ValueError(
            f"assignment is {array.dtype} {list(array.shape)}; expected whole numbers [N]"
        )
    if array.size and not 0 <= int(array.min()) <= int(array.max()) < parts:
        raise ValueError(
            f"assignment has parts {array.min()} to {array.max()}; expected 0 to {parts - 1}"
        )
    return array.astype(np.int32)


def _check_rows(name: str, rows: RowStream) -> None:
    if NAME.fullmatch(name) is None or name in OWN:
        raise ValueError(
            f"{name!r} can't be the name of what nodes or edges have; expected letters, digits "
            f"and _, and none of {', '.join(OWN)}"
        )
    try:
        torch.from_numpy(np.zeros(0, rows.dtype.newbyteorder("=")))
    except TypeError as e:
        raise ValueError(f"{name} is {rows.dtype}; expected numbers that torch has") from e


def _left(memory: int, nodes: int) -> int:
    """The bytes of `memory` that neither the process has, nor each node needs."""
    there = resident()
    left = memory - there - NODE_BYTES * nodes
    if left < LEAST_MEMORY:
        needed = there + NODE_BYTES * nodes + LEAST_MEMORY
        raise ValueError(
            f"memory is {memory:,} bytes; expected {needed:,} or more: the process has {there:,}, "
            f"and {nodes:,} nodes need {NODE_BYTES * nodes:,}"
        )
    return left


def resident() -> int:
    """The bytes that this process has in memory."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):  # not Linux: the most it ever had
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * resource.getpagesize()


# Rows ---------------------------------------------------------------------------------------------


def _with_ids(rows: Mapping[str, RowStream], nodes: int) -> dict[str, RowStream]:
    """What nodes have, and the numbers that they had before."""

    def blocks(most: int) -> Iterator[np.ndarray]:
        for first in range(0, nodes, most):
            yield np.arange(first, min(first + most, nodes))

    return {"nodes": RowStream(nodes, np.dtype(np.int64), (), blocks), **rows}


def _write_rows(
    folder: Path, numbering: Numbering, streams: Mapping[str, RowStream], memory: int, bars: Bars
) -> list[dict[str, FileRecord]]:
    """Each part's rows of all that nodes have: in the order of their old numbers, as they come."""
    parts = len(numbering.first) - 1
    found: list[dict[str, FileRecord]] = [{} for _ in range(parts)]
    for name, stream in streams.items():
        files = [
            ArrayFile(array_path(folder, part, name), stream.dtype, stream.shape)
            for part in range(parts)
        ]
        row = stream.dtype.itemsize * int(np.prod(stream.shape)) + 32
        at = 0
        blocks = stream.blocks(max(min(MOST_BLOCK, memory // (8 * row)), 1))
        for rows in bars.over(blocks, f"writing {name}", len, stream.rows):
            part = numbering.parts_of(numbering(np.arange(at, at + len(rows))))
            order = np.argsort(part, kind="stable")
            ends = np.cumsum(np.bincount(part, minlength=parts))
            for number in np.flatnonzero(np.diff(ends, prepend=0)).tolist():
                begin = ends[number - 1] if number else 0
                files[number].append(rows[order[begin : ends[number]]])
            at += len(rows)
        if at != stream.rows:
            raise DatasetError(f"{name} ends after {at:,} rows; expected {stream.rows:,}")
        for number, file in enumerate(files):
            found[number][name] = file.finish()
    return found


# Edges --------------------------------------------------------------------------------------------


def _write_edges(
    folder: Path, work: Path, spool: Spool, numbering: Numbering, undirected: bool, memory: int
) -> tuple[list[Part], str]:
    """The edges of all parts, one after the other, and the fingerprint of all edges."""
    parts: list[Part] = []
    low = high = 0
    read = np.zeros(numbering.nodes, bool)  # by the part that is written
    known = (numbering, read, spool.fields)
    open_part = _OpenPart(folder, 0, *known) if len(numbering.first) > 1 else None
    written = sorted_rows(spool, numbering, undirected, memory, work, valued=True)
    shown = spool.bars.over(written, "writing edges", lambda r: len(r.degree), numbering.nodes)
    for rows in shown:
        assert open_part is not None
        while rows.first >= numbering.first[open_part.number + 1]:
            parts.append(open_part.finish())
            open_part = _OpenPart(folder, len(parts), *known)
        halves = open_part.add(rows)
        low, high = (low + halves[0]) % 2**64, (high + halves[1]) % 2**64
    while open_part is not None:
        parts.append(open_part.finish())
        more = len(parts) < len(numbering.first) - 1
        open_part = _OpenPart(folder, len(parts), *known) if more else None
    return parts, f"{low:016x}{high:016x}"


class _OpenPart:
    """A part whose edges come in the order of their targets.

    Args:
        folder: of the store.
        number: of the part.
        numbering: of nodes.
        read: bool `[N]`, all False: the nodes whose rows the part reads.
        values: the dtypes of what an edge has, by name.
    """

    def __init__(
        self,
        folder: Path,
        number: int,
        numbering: Numbering,
        read: np.ndarray,
        values: Mapping[str, np.dtype[Any]],
    ) -> None:
        self.number, self._numbering, self._read = number, numbering, read
        self._first, self._last = (int(n) for n in numbering.first[number : number + 2])
        self._edges = self._inner = self._loops = 0
        self._indptr = ArrayFile(array_path(folder, number, "indptr"), np.int64)
        self._sources = ArrayFile(array_path(folder, number, "sources"), np.int32)
        self._halo = ArrayFile(array_path(folder, number, "halo"), np.int32)
        self._values = {
            name: ArrayFile(array_path(folder, number, name), each.base, each.shape)
            for name, each in values.items()
        }
        self._indptr.append(np.zeros(1, np.int64))

    def add(self, rows: Rows) -> tuple[int, int]:
        """Writes the edges of some targets; the hash of these edges."""
        ends = np.cumsum(rows.degree)
        self._indptr.append(ends + self._edges)
        self._sources.append(rows.sources)
        for name, file in self._values.items():
            assert rows.values is not None  # the graph has some
            file.append(rows.values[name])
        own = (rows.sources >= self._first) & (rows.sources < self._last)
        self._inner += int(np.count_nonzero(own))
        self._edges += len(rows.sources)
        self._read[rows.sources] = True
        targets = np.repeat(np.arange(rows.first, rows.first + len(ends)), rows.degree)
        self._loops += int(np.count_nonzero(rows.sources == targets))
        found: tuple[int, int] = _cpu.edge_hash(rows.sources.astype(np.int64), targets)
        return found

    def finish(self) -> Part:
        """Writes which rows of others it reads."""
        self._read[self._first : self._last] = False
        first = self._numbering.first
        halo = np.zeros(len(first) - 1, np.int64)
        for ids in _flagged(self._read):
            halo += np.diff(np.searchsorted(ids, first))
            self._halo.append(ids)
        self._read[:] = False
        files = {
            "indptr": self._indptr.finish(),
            "sources": self._sources.finish(),
            "halo": self._halo.finish(),
            **{name: file.finish() for name, file in self._values.items()},
        }
        rows = self._last - self._first
        return Part(rows, self._edges, self._inner, self._loops, tuple(halo.tolist()), {}, files)


def _with_hags(
    folder: Path, numbering: Numbering, parts: list[Part], memory: int, bars: Bars
) -> list[Part]:
    """The parts with what their HAGs read and write."""
    largest = max(parts, key=lambda part: part.edges + part.rows)
    needed = HAG_BYTES * (largest.edges + largest.rows)
    if needed > memory:
        raise ValueError(
            f"the HAG of a part takes {needed:,} bytes of memory for its {largest.edges:,} edges "
            f"and {largest.rows:,} nodes, and {memory:,} are left; expected more, or no HAGs"
        )
    found = []
    edges = sum(part.edges for part in parts)
    numbers = bars.over(iter(range(len(parts))), "searching", lambda k: parts[k].edges, edges)
    for number in numbers:
        source, indptr = (
            open_array(array_path(folder, number, name), parts[number].files[name], verify=False)
            for name in ("sources", "indptr")
        )
        own = slice(*numbering.first[number : number + 2].tolist())
        target = np.repeat(np.arange(own.start, own.stop), np.diff(indptr))
        made = part_hag(source.astype(np.int64), target, own, own, same=True)
        counts = {name: hag_counts(made, loops, False) for name, loops in LOOPS.items()}
        hags = {name: (each.rows_read, each.rows_written) for name, each in counts.items()}
        found.append(replace(parts[number], hags=hags))
    return found


def _merged(
    folder: Path, numbering: Numbering, parts: list[Part], count: int
) -> tuple[tuple[int, ...], ...]:
    """Rows that each `count` parts read of each other so many: from the lists of these."""
    first = numbering.first[::count]
    found = []
    for group, (begin, end) in enumerate(pairwise(first.tolist())):
        read = np.zeros(numbering.nodes, bool)
        for part in range(group * count, (group + 1) * count):
            record = parts[part].files["halo"]
            with open(array_path(folder, part, "halo"), "rb") as file:
                file.seek(record.bytes - record.shape[0] * np.dtype(record.dtype).itemsize)
                while len(ids := np.fromfile(file, record.dtype, MOST_BLOCK)):
                    read[ids] = True
        read[begin:end] = False
        halo = np.zeros(len(first) - 1, np.int64)
        for ids in _flagged(read):
            halo += np.diff(np.searchsorted(ids, first))
        found.append(tuple(halo.tolist()))
    return tuple(found)


def _flagged(flags: np.ndarray) -> Iterator[np.ndarray]:
    """Where flags are True, some at a time."""
    for at in range(0, len(flags), MOST_BLOCK):
        yield at + np.flatnonzero(flags[at : at + MOST_BLOCK])
