"""Graphs from files: `.npz`, HAG files and edge lists."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hag_plugin import generators
from hag_plugin.graph_data import MAX_ID, DatasetError, GraphData
from hag_plugin.hag import HAG

EDGE_LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".edges", ".edgelist", ".el")
MAX_DENSE_FEATURES = 2**31  # values; larger feature matrices are refused


def is_hag_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file holds a HAG that `HAG.save` wrote (going by its header entry)."""
    if Path(path).suffix.lower() != ".npz" or not Path(path).is_file():
        return False
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return "header" in file.files
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return False


def load_npz(path: str | os.PathLike[str], *, features: bool = True) -> GraphData:
    """A graph from an `.npz`, or the graph of a HAG file.

    The arrays: `edge_index` int `[2, E]`; and, where there are any, `num_nodes`, `x` `[N, F]` or
    its CSR form (`x_indptr`, `x_indices`, `x_data`, `x_shape`), `node_label` `[N]` (becomes
    one-hot features), `y`, `graph_ptr` `[G + 1]`, and `train_mask`, `val_mask`, `test_mask`.
    Instead of `edge_index`, graphs without loops may be kept as the upper triangle:
    `compact_upper_deg` `[N]`, the number of neighbours after each node, and
    `compact_upper_col_local`, these neighbours, counted from the graph's first node.
    """
    path = Path(path)
    if is_hag_file(path):
        try:
            hag = HAG.load(path)
        except ValueError as e:
            raise DatasetError(str(e)) from e
        if not hag.is_square:
            raise DatasetError(f"{path.name} holds a bipartite HAG; expected one set of nodes")
        return GraphData(path.stem, f"the HAG file {path.name}", hag.edge_index, hag.num_dst)
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            skipped = () if features else ("x", "x_indptr", "x_indices", "x_data", "x_shape")
            arrays = {key: file[key] for key in file.files if key not in skipped}
    except Exception as e:  # zipfile, zlib and NumPy each have their own
        raise DatasetError(f"{path.name} is not a readable .npz file: {e}") from e
    if "compact_upper_deg" in arrays:
        arrays["edge_index"] = _expand_upper(path, arrays)
    if "edge_index" not in arrays:
        raise DatasetError(
            f"{path.name} holds {sorted(arrays)}; expected at least edge_index [2, E]"
        )
    edges = arrays["edge_index"]
    if edges.dtype.kind not in "iu" or edges.ndim != 2 or edges.shape[0] != 2:
        raise DatasetError(
            f"{path.name}: edge_index is {edges.dtype} {list(edges.shape)}; expected integers "
            "[2, E]"
        )
    num_nodes = int(arrays["num_nodes"]) if "num_nodes" in arrays else None
    if num_nodes is None:
        num_nodes = int(edges.max()) + 1 if edges.size else 0

    def tensor(key: str, dtype: torch.dtype) -> Tensor | None:
        return torch.from_numpy(arrays[key]).to(dtype) if key in arrays else None

    masks = {key: tensor(key, torch.bool) for key in ("train_mask", "val_mask", "test_mask")}
    x = _features(path, arrays, num_nodes) if features else None
    return GraphData(
        path.stem,
        f"the file {path.name}",
        torch.from_numpy(edges.astype(np.int64, order="C")),
        num_nodes,
        x=x,
        y=tensor("y", torch.int64),
        graph_ptr=tensor("graph_ptr", torch.int64),
        **masks,
    )


def _expand_upper(path: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    missing = {"graph_ptr", "num_nodes", "compact_upper_col_local"} - arrays.keys()
    if missing:
        raise DatasetError(f"{path.name} has compact_upper_deg but not {sorted(missing)}")
    num_nodes = int(arrays["num_nodes"])
    graph_ptr = arrays["graph_ptr"].astype(np.int64)
    degree, column = arrays["compact_upper_deg"], arrays["compact_upper_col_local"]
    if len(degree) != num_nodes or degree.sum(dtype=np.int64) != len(column) or (
        graph_ptr.size < 2 or graph_ptr[-1] != num_nodes
    ):  # fmt: skip
        raise DatasetError(f"{path.name}: the compact arrays do not fit {num_nodes} nodes")
    first = np.repeat(graph_ptr[:-1], np.diff(graph_ptr))
    source = np.repeat(np.arange(num_nodes, dtype=np.int64), degree)
    return generators.undirected(np.stack([source, first[source] + column]), num_nodes)


def _features(path: Path, arrays: dict[str, np.ndarray], num_nodes: int) -> Tensor | None:
    if "x_indptr" in arrays:
        missing = {"x_indices", "x_data", "x_shape"} - arrays.keys()
        if missing:
            raise DatasetError(f"{path.name} has x_indptr but not {sorted(missing)}")
        rows, columns = (int(size) for size in arrays["x_shape"])
        if rows * columns > MAX_DENSE_FEATURES:
            raise DatasetError(f"{path.name}: x is {rows} x {columns}; too large as a dense matrix")
        x = np.zeros((rows, columns), np.float32)
        x[np.repeat(np.arange(rows), np.diff(arrays["x_indptr"])), arrays["x_indices"]] = arrays[
            "x_data"
        ]
        return torch.from_numpy(x)
    if "x" in arrays:
        return torch.from_numpy(arrays["x"].astype(np.float32))
    if "node_label" in arrays and len(arrays["node_label"]) == num_nodes:
        _, label = np.unique(arrays["node_label"], return_inverse=True)
        return torch.nn.functional.one_hot(torch.from_numpy(label)).float()
    return None


def load_edge_list(
    path: str | os.PathLike[str], *, relabel: bool = False, undirected: bool = False
) -> GraphData:
    """A graph from text: a line an edge, source and target, by blanks, tabs or commas.

    Empty lines and lines that begin with `#` or `%` are skipped; columns after the second are
    ignored. See `load` for `relabel` and `undirected`.
    """
    path = Path(path)
    edges = _parse_edges(path)
    ids = np.unique(edges)
    note = ""
    if relabel:
        edges = np.searchsorted(ids, edges)
        num_nodes = len(ids)
        if num_nodes and ids[-1] != num_nodes - 1:
            note = ", ids relabelled in increasing order"
    else:
        num_nodes = int(ids[-1]) + 1 if len(ids) else 0
        if num_nodes > len(ids):
            note = (
                f", {num_nodes - len(ids):,} of the ids 0..{num_nodes - 1} do not occur and are "
                "isolated nodes (--relabel drops them)"
            )
    if undirected:
        edges = generators.undirected(edges, num_nodes)
        note += ", both directions of every edge"
    return GraphData(path.stem, f"the edge list {path.name}{note}", torch.from_numpy(edges),
                     num_nodes)  # fmt: skip


def _parse_edges(path: Path) -> np.ndarray:
    """int64 `[2, E]`; the first bad line is named."""
    pairs: list[int] = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                text = line.strip()
                if not text or text[0] in "#%":
                    continue
                try:
                    source, target = (int(f) for f in text.replace(",", " ").split()[:2])
                except ValueError:
                    raise DatasetError(
                        f"{path.name}, line {number}: {text[:60]!r}; expected two node ids"
                    ) from None
                if not (0 <= source <= MAX_ID and 0 <= target <= MAX_ID):
                    raise DatasetError(
                        f"{path.name}, line {number}: {text[:60]!r}; expected ids from 0 to "
                        f"{MAX_ID} (2^31 - 2)"
                    )
                pairs += (source, target)
    except UnicodeDecodeError as e:
        raise DatasetError(f"{path.name} is not a text file: {e.reason}") from e
    edges = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return np.ascontiguousarray(edges.T)
