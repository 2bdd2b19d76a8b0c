"""Folders of graphs, read block by block: OGB's raw files, parts of DGL's, and stores of ours.

As `edge_stream` reads files; numbers of nodes are those of the folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hag_plugin.data.edge_stream import Archive, open_edges
from hag_plugin.data.source import Source
from hag_plugin.extras import needed_by
from hag_plugin.files import DatasetError, read_json
from hag_plugin.parallel.graphs.store.manifest import FILE as MANIFEST
from hag_plugin.parallel.graphs.store.manifest import Manifest, array_path
from hag_plugin.parallel.graphs.store.part_files import open_array
from hag_plugin.parallel.graphs.store.streams import DGL_OWN, EdgeStream, RowStream

WHOLE_NUMBER = re.compile(r"\s*[+-]?[0-9]+\s*")
SPLITS = {"train": "train_mask", "valid": "val_mask", "test": "test_mask"}
NAMES = {"node_feat": "x", "node_label": "y", "edge_feat": "edge_attr"}  # of OGB's
OF_NODES, OF_EDGES = {"feat": "x", "label": "y"}, {"feat": "edge_attr", "weight": "edge_weight"}


def open_graph(
    path: str | os.PathLike[str], columns: Mapping[str, str] | None = None
) -> EdgeStream:
    """The graph of a file, as `open_edges` reads it, or of a folder.

    A folder is OGB's of one graph, with `raw/` in it or that itself: `edge.csv.gz` and the like, or
    `data.npz`; or what `dgl.distributed.partition_graph` has written, whose nodes have DGL's
    numbers then; or a store, as `write_partitions` makes, whose nodes get the numbers back that
    they had. Features are `x` and labels `y` of OGB's; a split is masks. What edges have is kept:
    `edge_attr` of OGB's and of DGL's `feat`, `edge_weight` of DGL's `weight`, the rest by its name.

    Args:
        path: of the file or folder.
        columns: of a file, as `open_edges` takes them.

    Raises:
        DatasetError: it can't be read, or holds something else. It names the file.
        OSError: a file can't be opened.
    """
    folder = Path(path)
    if not folder.is_dir():
        return open_edges(path, columns)
    for column in (columns or {}).values():
        raise DatasetError(f"{folder} is a folder; expected a file with a column {column!r}")
    for raw in (folder / "raw", folder):
        if (raw / "data.npz").is_file():
            return _with_split(_ogb_arrays(raw), raw)
        if _csv_of(raw, "edge") is not None:
            return _with_split(_ogb_texts(raw), raw)
    if (folder / MANIFEST).exists():
        return _stored_parts(folder)
    for each in sorted(folder.glob("*.json")):
        try:
            document = read_json(each)
        except ValueError as e:
            raise DatasetError(str(e)) from e
        if isinstance(document, dict) and "num_parts" in document and "part-0" in document:
            return _dgl_parts(each, document)
    raise DatasetError(
        f"{folder} is a folder without raw/edge.csv.gz, raw/data.npz, {MANIFEST} or the .json of "
        "DGL's parts; expected a file of edges, OGB's raw folder, a store, or what "
        "dgl.distributed.partition_graph wrote"
    )


# OGB --------------------------------------------------------------------------------------------


def _csv_of(folder: Path, name: str) -> Path | None:
    paths = (folder / f"{name}{suffix}" for suffix in (".csv.gz", ".csv"))
    return next((path for path in paths if path.is_file()), None)


class _Table:
    """Numbers in a text without a head, separated by commas."""

    def __init__(self, path: Path, dtype: Any = None) -> None:
        self.source = Source(path)
        first = self.source.text_head().split("\n", 1)[0]
        values = first.split(",")
        self.columns = len(values) if first.strip() else 0
        whole = all(map(WHOLE_NUMBER.fullmatch, values))
        self.dtype = np.dtype(dtype or (np.int64 if whole else np.float32))

    def blocks(self, most: int) -> Iterator[np.ndarray]:
        """Rows `[k, columns]`."""
        line = 0
        options: dict[str, Any] = {"delimiter": ",", "comments": None, "encoding": None, "ndmin": 2}
        with self.source.text() as file:
            while lines := [*islice(file, most)]:
                try:
                    found = np.loadtxt(lines, dtype=self.dtype, **options)
                except (ValueError, OverflowError) as e:
                    raise DatasetError(f"{self.source.name}, lines {line + 1:,} on: {e}") from e
                if found.shape != (len(lines), self.columns):
                    raise DatasetError(
                        f"{self.source.name}, lines {line + 1:,} on: {found.shape[0]:,} rows of "
                        f"{found.shape[1]}; expected {self.columns} numbers a line"
                    )
                line += len(lines)
                yield found

    def rows(self, nodes: int | None) -> RowStream:
        """A row for each node, or edge: None; of one column, a number."""
        shape = () if self.columns == 1 else (self.columns,)

        def blocks(most: int) -> Iterator[np.ndarray]:
            for block in self.blocks(most):
                yield block.reshape(-1, *shape)

        return RowStream(nodes, self.dtype, shape, blocks)


def _ogb_texts(folder: Path) -> EdgeStream:
    path, counts = _csv_of(folder, "edge"), _csv_of(folder, "num-node-list")
    assert path is not None  # it was seen
    if counts is None:
        missing = folder / "num-node-list.csv.gz"
        raise DatasetError(f"{missing} is missing; expected it beside {path.name}")
    numbers = [int(n) for block in _Table(counts, np.int64).blocks(1 << 16) for n in block.flat]
    if len(numbers) != 1 or numbers[0] < 0:
        raise DatasetError(f"{counts} holds {len(numbers):,} graphs; expected one")
    nodes, edges = numbers[0], _Table(path, np.int64)
    if edges.columns not in (0, 2):
        raise DatasetError(f"{path}, line 1: {edges.columns} columns; expected source,target")

    def tables(of: str, count: int | None) -> dict[str, RowStream]:
        found = {}
        for each in sorted(folder.glob(f"{of}[-_]*.csv*")):
            name = each.name.partition(".csv")[0].replace("-", "_")
            name = NAMES.get(name, name)
            dtype = np.float32 if name in ("x", "edge_weight") else None
            found[name] = _Table(each, dtype).rows(count)
        return found

    def blocks(most: int) -> Iterator[np.ndarray]:
        for block in edges.blocks(most):
            yield block.T

    def where(edge: int) -> str:
        with edges.source.text() as file:
            line = next(islice(file, edge, None), "").strip()
        return f"{path}, line {edge + 1:,}: {line}"

    words, rows = f"{folder} read as: OGB's raw files", tables("node", nodes)
    return EdgeStream(blocks, words, nodes, where, rows, tables("edge", None))


def _ogb_arrays(folder: Path) -> EdgeStream:
    source = Source(folder / "data.npz")
    archive = Archive(source)
    for key in ("edge_index", "num_nodes_list"):
        if key not in archive.sizes:
            raise DatasetError(f"{source.name} has {sorted(archive.sizes)}; expected {key!r}")
    counts = archive.rows("num_nodes_list")
    if counts.rows != 1:
        raise DatasetError(f"{source.name} holds {counts.rows:,} graphs; expected one")
    nodes = archive.number("num_nodes_list")
    archives = [archive]
    if (folder / "node-label.npz").is_file():
        archives.append(Archive(Source(folder / "node-label.npz")))
    rows, values = (
        {
            NAMES.get(key, key): _flat(each.rows(key))
            for each in archives
            for key in each.sizes
            if key.startswith(of) and key != "edge_index"
        }
        for of in ("node_", "edge_")
    )
    found = archive.edges(["edge_index"], nodes)
    words = f"{folder} read as: OGB's raw arrays"
    return replace(found, words=words, rows=rows, values=values)


def _flat(rows: RowStream) -> RowStream:
    """Rows of one number as numbers."""
    if rows.shape != (1,):
        return rows

    def blocks(most: int) -> Iterator[np.ndarray]:
        for block in rows.blocks(most):
            yield block.reshape(-1)

    return replace(rows, shape=(), blocks=blocks)


def _with_split(stream: EdgeStream, raw: Path) -> EdgeStream:
    """The same with the masks of a split beside the raw folder, where there is one."""
    folders = [each for each in (raw.parent / "split").glob("*") if each.is_dir()]
    if raw.name != "raw" or len(folders) != 1:
        return stream
    masks = {}
    for part, name in SPLITS.items():
        path = _csv_of(folders[0], part)
        if path is not None:
            assert stream.num_nodes is not None  # OGB says it
            masks[name] = _mask(path, stream.num_nodes)
    return replace(stream, rows={**stream.rows, **masks})


def _mask(path: Path, nodes: int) -> RowStream:
    """Whether nodes are among those that a file lists."""

    def blocks(most: int) -> Iterator[np.ndarray]:
        listed = [block.reshape(-1) for block in _Table(path, np.int64).blocks(1 << 16)]
        ids = np.sort(np.concatenate([np.zeros(0, np.int64), *listed]))
        if len(ids) and not 0 <= ids[0] <= ids[-1] < nodes:
            raise DatasetError(f"{path} has nodes {ids[0]} to {ids[-1]}; expected 0 to {nodes - 1}")
        for first in range(0, nodes, most):
            last = min(first + most, nodes)
            mask = np.zeros(last - first, bool)
            mask[ids[slice(*np.searchsorted(ids, [first, last]))] - first] = True
            yield mask

    return RowStream(nodes, np.dtype(bool), (), blocks)


# DGL --------------------------------------------------------------------------------------------


def _dgl_parts(path: Path, document: Mapping[str, Any]) -> EdgeStream:
    """What `dgl.distributed.partition_graph` wrote: one part is in memory at a time."""
    with needed_by(f"{path} tells of parts of a DGL graph, which"):
        import dgl
        from dgl.data.utils import load_tensors
    bounds = dgl_bounds(document, path)
    parts = [document.get(f"part-{number}") for number in range(len(bounds) - 1)]
    if not all(isinstance(part, dict) for part in parts):
        raise DatasetError(f"{path} does not tell of all its {len(parts)} parts")

    def file_of(number: int, key: str) -> Path:
        return path.parent / str((parts[number] or {}).get(key))

    def loaded(number: int, key: str, load: Callable[[str], Any]) -> Any:
        file = file_of(number, key)
        try:
            return load(str(file))
        except Exception as e:  # DGL raises its own
            raise DatasetError(f"{file} can't be read: {e}") from e

    def blocks(most: int) -> Iterator[np.ndarray]:
        for number in range(len(parts)):
            graph = loaded(number, "part_graph", lambda name: dgl.load_graphs(name)[0][0])
            own = graph.edata["inner_edge"].bool()
            ids = graph.ndata[dgl.NID]
            pairs = np.stack([ids[end[own]].numpy() for end in graph.edges()])
            yield from EdgeStream.of(pairs, bounds[-1]).blocks(most)

    counts = [last - first for first, last in pairwise(bounds)]

    def rows_of(file: str, name: str, like: Any, counts: list[int] | None) -> RowStream:
        def blocks(most: int) -> Iterator[np.ndarray]:
            for number in range(len(parts)):
                values = loaded(number, file, load_tensors).get(name)
                wanted = None if counts is None else counts[number]
                if values is None or wanted not in (None, len(values)):
                    words = "" if wanted is None else f" of {wanted:,} rows"
                    raise DatasetError(f"{file_of(number, file)} has no {name!r}{words}")
                yield from RowStream.of(values.numpy()).blocks(most)

        return RowStream(None if counts is None else bounds[-1], like.dtype, like.shape[1:], blocks)

    def all_of(file: str, names: dict[str, str], counts: list[int] | None) -> dict[str, RowStream]:
        found = {}
        for name, values in loaded(0, file, load_tensors).items():
            key = name.rpartition("/")[2]
            if key not in DGL_OWN:
                found[names.get(key, key)] = rows_of(file, name, values.numpy(), counts)
        return found

    rows = all_of("node_feats", OF_NODES, counts)
    values = all_of("edge_feats", OF_EDGES, None) if "edge_feats" in (parts[0] or {}) else {}
    words = f"{path} read as: parts of a DGL graph"
    return EdgeStream(blocks, words, bounds[-1], rows=rows, values=values)


def dgl_bounds(document: Mapping[str, Any], path: Path) -> list[int]:
    """Where the nodes of each of DGL's parts begin, and N.

    Raises:
        DatasetError: the document does not say, or there are several types of nodes.
    """
    types = document.get("node_map")
    if not isinstance(types, dict) or len(types) != 1:
        raise DatasetError(f"{path} has no node_map of one type of nodes")
    (ranges,) = types.values()
    try:
        pairs = np.array(ranges, np.int64).reshape(document["num_parts"], 2)
    except (TypeError, ValueError) as e:
        raise DatasetError(f"{path}: node_map is no list of ranges: {e}") from e
    found = [0, *pairs[:, 1].tolist()]
    if pairs[:, 0].tolist() != found[:-1] or found != sorted(found):
        raise DatasetError(f"{path}: the ranges in node_map do not follow each other")
    return found


# Stores -----------------------------------------------------------------------------------------


def _stored_parts(folder: Path) -> EdgeStream:
    """A store that `write_partitions` has made, as what it was made of: by the numbers of before.

    Takes 16 bytes for each node.
    """
    known = Manifest.load(folder)
    first, nodes = known.first, known.nodes
    every = range(known.ranks)

    def opened(part: int, name: str) -> np.ndarray:
        return open_array(array_path(folder, part, name), known.parts[part].files[name], True)

    before = np.concatenate([opened(part, "nodes") for part in every])
    place = np.full(nodes, -1)  # the store's number, by that of before
    if nodes and 0 <= before.min() <= before.max() < nodes:
        place[before] = np.arange(nodes)
    if (place < 0).any():
        raise DatasetError(f"{folder}: the nodes of its parts are not 0 to {nodes - 1}, each once")

    def blocks(most: int) -> Iterator[np.ndarray]:
        for part in every:
            indptr, sources = opened(part, "indptr"), opened(part, "sources")
            if len(sources) != indptr[-1] or (np.diff(indptr) < 0).any():
                path = array_path(folder, part, "indptr")
                raise DatasetError(f"{path} does not run from 0 to {len(sources)}, in order")
            for at in range(0, len(sources), most):
                end = min(at + most, len(sources))
                row, last = np.searchsorted(indptr, [at, end], "right") - 1
                ends = np.clip(indptr[row : last + 2], at, end)
                target = np.repeat(np.arange(row, row + len(ends) - 1), np.diff(ends))
                yield before[np.stack([sources[at:end], first[part] + target])]

    def of_nodes(name: str) -> RowStream:
        def blocks(most: int) -> Iterator[np.ndarray]:
            arrays = [opened(part, name) for part in every]
            for at in range(0, nodes, most):
                numbers = place[at : at + most]
                owners = np.searchsorted(first, numbers, "right") - 1
                found = np.empty((len(numbers), *shape), dtype)
                for part in np.unique(owners):
                    own = owners == part
                    found[own] = arrays[part][numbers[own] - first[part]]
                yield found

        dtype, shape = kind(name)
        return RowStream(nodes, dtype, shape, blocks)

    def of_edges(name: str) -> RowStream:
        def blocks(most: int) -> Iterator[np.ndarray]:
            for part in every:
                yield from RowStream.of(opened(part, name)).blocks(most)

        return RowStream(None, *kind(name), blocks)

    def kind(name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
        record = known.parts[0].files[name]
        return np.dtype(record.dtype), record.shape[1:]

    rows = {name: of_nodes(name) for name in known.names}
    values = {name: of_edges(name) for name in known.edge_names}
    words = f"{folder} read as: a store of {known.ranks} parts"
    return EdgeStream(blocks, words, nodes, rows=rows, values=values)
