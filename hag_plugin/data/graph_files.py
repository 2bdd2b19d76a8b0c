"""Graphs from files: edge lists, MatrixMarket, NumPy, SciPy, Parquet and HAG files.

What a file holds is told by its content; of its name, only what contradicts the content counts.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hag_plugin.data import generators
from hag_plugin.data.edge_lists import read_edge_list
from hag_plugin.data.edges import Edges, counted, ends, from_floats, from_names, graph_of
from hag_plugin.data.graph_data import MAX_ID, GraphData
from hag_plugin.data.source import KINDS, STDIN, Source
from hag_plugin.extras import needed_by
from hag_plugin.files import DatasetError, interruptible
from hag_plugin.hag.hag import HAG

OTHER_SUFFIXES = (".zip", ".tar", ".tgz", ".h5", ".hdf5", ".pt", ".pth", ".pkl", ".mat", ".xlsx")
BANNER = "%%matrixmarket"
COMMENTS = re.compile(r"(?:[ \t]*%[^\n]*(?:\n|\Z))*")  # the banner is one, too
ODD = re.compile(r"[^0-9eEnNaAiIfFtTyY+\-.\s]")  # in no number, "nan" and "Infinity" included
MAX_DENSE_FEATURES = 2**31  # values; larger feature matrices are refused
# Arrays of an .npz that hold sources and targets, where there is no edge_index.
PAIRS = (("row", "col"), ("src", "dst"), ("source", "target"), ("u", "v"))
FEATURE_ARRAYS = ("x", "x_indptr", "x_indices", "x_data", "x_shape")
PER_NODE = ("x", "x_indptr", "y", "node_label", "graph_ptr", "train_mask", "val_mask", "test_mask")


def load_file(
    path: str | os.PathLike[str],
    *,
    features: bool = True,
    relabel: bool = False,
    undirected: bool = False,
) -> GraphData:
    """A graph from a file of any kind in `KINDS`; `-` is the standard input.

    Args:
        path: the file.
        features: read x as well, where the file has it.
        relabel: number the ids that occur 0..n-1, in increasing order; ids may then be any texts.
            Otherwise ids are kept, and ids that do not occur are isolated nodes.
        undirected: take every edge in both directions, once.

    Raises:
        DatasetError: it can't be read, or what it holds can't be a graph.
        OSError: it can't be opened.
    """
    source = Source(path)
    if source.suffix in OTHER_SUFFIXES:
        raise DatasetError(
            f"{source.name}: unknown kind of file {source.suffix!r}; expected {KINDS}"
        )
    if source.head[:2] == b"PK" or source.suffix == ".npz":
        return _load_npz(source, path, features, relabel, undirected)
    return graph_of(source.stem, _read(source, relabel), relabel, undirected)


def _read(source: Source, relabel: bool) -> Edges:
    for magic, suffix, reader in (
        (b"PAR1", ".parquet", _read_parquet),
        (b"ARROW1", ".feather", _read_parquet),
        (b"\x93NUMPY", ".npy", _read_npy),
    ):
        if source.head.startswith(magic):
            return reader(source, relabel)
        if source.suffix == suffix:
            raise DatasetError(f"{source.name} is not a readable {suffix} file")
    head = source.text_head()
    if head.lstrip().lower().startswith(BANNER):
        return _read_matrix_market(source)
    if source.suffix == ".mtx":
        raise DatasetError(
            f"{source.name}, line 1: {head.partition(chr(10))[0][:60]!r}; expected "
            "%%MatrixMarket matrix coordinate pattern general, or the like"
        )
    return read_edge_list(source, head, relabel=relabel)


def is_hag_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file holds a HAG that `HAG.save` wrote (going by its header entry)."""
    if not Path(path).is_file():
        return False
    try:
        with open(path, "rb") as raw:
            if raw.read(2) != b"PK":
                return False
            with np.load(path, allow_pickle=False) as file:
                return "header" in file.files
    except Exception:  # zipfile has its own for each way that a directory may be wrong
        return False


# MatrixMarket, Parquet, .npy --------------------------------------------------------------------


def _read_matrix_market(source: Source) -> Edges:
    """The entries of a square matrix; what its banner says to be symmetric, in both directions."""
    with needed_by(f"{source.name} is MatrixMarket, which"):
        from scipy.io import mminfo, mmread
    with source.text() as file:
        text = file.read().lstrip()  # SciPy wants the banner's first word in this case
    odd = ODD.search(text, COMMENTS.match(text).end())  # type: ignore[union-attr]
    if odd:
        line = text.count("\n", 0, odd.start()) + 1
        raise DatasetError(f"{source.name} is not valid MatrixMarket: line {line} holds "
                           f"{odd[0]!r}; expected numbers")  # fmt: skip
    # SciPy crashes at what is no number where the last line has no end.
    content = b"%%MatrixMarket" + text[len(BANNER) :].encode("utf-8", "surrogateescape") + b"\n"
    try:
        rows, columns, entries, form, field, symmetry = mminfo(io.BytesIO(content))
        least = 4 if form == "coordinate" else 2  # characters of an entry
        stored = (
            entries if symmetry == "general" or form == "coordinate" else rows * (rows - 1) // 2
        )
        if rows != columns:
            raise _not_square(source, rows, columns)
        if stored * least > len(content) + 1:
            raise DatasetError(
                f"{source.name} holds {len(content):,} characters; expected the {stored:,} entries "
                "that its size line announces"
            )
        matrix: Any = mmread(io.BytesIO(content))
    except DatasetError:
        raise
    except (ValueError, OverflowError, TypeError, IndexError, MemoryError) as e:
        raise DatasetError(f"{source.name} is not valid MatrixMarket: {e}") from e
    if form == "array":
        pairs = np.stack(np.nonzero(matrix))
        words = f", {counted(pairs.shape[1], 'value')} other than 0"
    else:
        pairs = np.stack([matrix.row, matrix.col])
        words = f", {counted(pairs.shape[1], 'stored value')}"
    if symmetry != "general":
        words += " in both directions"
    what = f"{source.name} read as: {_packed(source)}MatrixMarket, {form} {field} {symmetry}"
    return _edges(pairs, what + words + _values(field != "pattern"), num_nodes=rows)


def _not_square(source: Source, rows: int, columns: int) -> DatasetError:
    return DatasetError(
        f"{source.name} is a {rows} x {columns} matrix; expected a square one (a node is both a "
        "row and a column)"
    )


def _packed(source: Source) -> str:
    return f"{source.packing}, " if source.packing else ""


def _values(there: bool) -> str:
    return ", values ignored" if there else ""


def _edges(pairs: np.ndarray, words: str, num_nodes: int | None = None) -> Edges:
    name = words.partition(" read as:")[0]
    pairs = np.ascontiguousarray(pairs, np.int64)
    return Edges(pairs, words, lambda i: f"{name}: edge {i} is {pairs[:, i].tolist()}", num_nodes)


def _read_parquet(source: Source, relabel: bool) -> Edges:
    with needed_by(source.name):
        import pyarrow as pa
        import pyarrow.compute as compute
        import pyarrow.ipc as ipc
        import pyarrow.parquet as parquet
    parquet_file = source.head.startswith(b"PAR1")
    content = pa.BufferReader(source.read())
    try:
        file = parquet.ParquetFile(content) if parquet_file else ipc.open_file(content)
        names = (file.schema_arrow if parquet_file else file.schema).names
        if len(names) < 2:
            raise DatasetError(f"{source.name} has columns {names}; expected source and target")
        picks = [names[pick] for pick in ends(names) or (0, 1)]
        table = file.read(columns=picks) if parquet_file else file.read_all().select(picks)
    except (pa.ArrowException, OSError) as e:
        raise DatasetError(f"{source.name} is damaged or cut off: {e}") from e

    def where(edge: int) -> str:
        row = [table.column(name)[edge].as_py() for name in picks]
        return f"{source.name}, row {edge + 1}: {row}"

    columns = [table.column(name) for name in picks]
    for name, column in zip(picks, columns, strict=True):
        if column.null_count:
            row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
            raise DatasetError(f"{where(row)}; expected no null in column {name!r}")
    kind = "Parquet" if parquet_file else "Feather"
    words = (
        f"{source.name} read as: {_packed(source)}{kind}, source {picks[0]!r}, target {picks[1]!r}"
    )
    words += f", {counted(table.num_rows, 'edge')}" + (
        ", other columns ignored" if len(names) > 2 else ""
    )
    if all(pa.types.is_integer(column.type) for column in columns):
        try:
            wide = [column.cast(pa.int64()).to_numpy() for column in columns]
            return Edges(np.stack(wide), words, where)
        except pa.ArrowInvalid:
            pass  # beyond int64: as texts
    if all(pa.types.is_floating(column.type) for column in columns):
        numbers = from_floats(
            np.stack([column.to_numpy() for column in columns]).astype(np.float64)
        )
        if numbers is not None:
            return Edges(numbers, words, where)
    try:
        texts = [compute.cast(column, pa.string()) for column in columns]
    except pa.ArrowException as e:
        kinds = [str(column.type) for column in columns]
        raise DatasetError(f"{source.name} has {picks} of types {kinds}; expected node ids") from e
    both = pa.chunked_array([chunk for column in texts for chunk in column.chunks], pa.string())
    coded = both.combine_chunks().dictionary_encode()
    codes = coded.indices.to_numpy(zero_copy_only=False).reshape(2, -1)
    pairs, named = from_names(codes, coded.dictionary.to_pylist(), where, relabel)
    return Edges(pairs, words, where, named=named)


def _read_npy(source: Source, relabel: bool) -> Edges:
    try:
        array = np.load(io.BytesIO(source.read()), allow_pickle=False)
    except Exception as e:  # NumPy raises whatever a wrong header leads to
        raise DatasetError(f"{source.name} is not a readable .npy file: {e}") from e
    return _edge_array(source, "the array", array)


def _edge_array(source: Source, key: str, array: np.ndarray, nodes: int | None = None) -> Edges:
    """Edges `[2, E]`, or `[E, 2]` where that is the only way to read them."""
    if array.dtype.kind == "f" and array.ndim == 2 and key != "edge_index":
        whole = from_floats(array)
        array = array if whole is None else whole
    turned = array.ndim == 2 and array.shape[1] == 2 and array.shape[0] != 2
    if array.dtype.kind not in "iu" or array.ndim != 2 or not (turned or array.shape[0] == 2):
        raise DatasetError(
            f"{source.name}: {key} is {array.dtype} {list(array.shape)}; expected integers [2, E]"
        )
    form = "[E, 2]" if turned else "[2, E]"
    pairs = array.T if turned else array
    words = (
        f"{source.name} read as: {_packed(source)}{key} {form}, {counted(pairs.shape[1], 'edge')}"
    )
    if array.dtype == np.uint64 and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise DatasetError(f"{source.name}: {key} holds {array.max()}; expected ids below 2^63")
    return _edges(pairs, words, nodes)


# .npz -------------------------------------------------------------------------------------------


def load_npz(path: str | os.PathLike[str], *, features: bool = True) -> GraphData:
    """A graph from an `.npz`, or the graph of a HAG file.

    The arrays: `edge_index` int `[2, E]`; and, where there are any, `num_nodes`, `x` `[N, F]` or
    its CSR form (`x_indptr`, `x_indices`, `x_data`, `x_shape`), `node_label` `[N]` (becomes
    one-hot features), `y`, `graph_ptr` `[G + 1]`, and `train_mask`, `val_mask`, `test_mask`.
    Instead of `edge_index`: what `scipy.sparse.save_npz` writes, also with every name after `adj_`
    (then features may be `attr_...` and labels `labels`); two arrays `row` and `col`, `src` and
    `dst`, `source` and `target`, or `u` and `v`; `edges` `[E, 2]`. Or, of graphs without loops, the
    upper triangle: `compact_upper_deg` `[N]`, the number of neighbours after each node, and
    `compact_upper_col_local`, these neighbours, counted from the graph's first node.
    """
    return _load_npz(Source(path), path, features, False, False)


def _load_npz(
    source: Source, path: str | os.PathLike[str], features: bool, relabel: bool, undirected: bool
) -> GraphData:
    arrays = _arrays(source, features)
    if "header" in arrays:
        if relabel or undirected:
            raise DatasetError(
                f"{source.name} is a HAG file; --relabel and --undirected are for edges"
            )
        return _hag_graph(source, path)
    try:
        return _npz_graph(source, arrays, features, relabel, undirected)
    except DatasetError as e:
        words = str(e).removeprefix(f"{source.stem}: ")
        raise DatasetError(words if source.name in words else f"{source.name}: {words}") from e
    except (TypeError, ValueError, IndexError, KeyError, OverflowError) as e:
        raise DatasetError(
            f"{source.name} holds arrays that make no graph: {e}; expected numbers"
        ) from e


def _npz_graph(
    source: Source,
    arrays: dict[str, np.ndarray],
    features: bool,
    relabel: bool,
    undirected: bool,
) -> GraphData:
    edges, arrays = _npz_edges(source, arrays)
    there = [key for key in PER_NODE if key in arrays]
    if there and (relabel or undirected):
        raise DatasetError(
            f"{source.name} holds {', '.join(there)}; --relabel and --undirected are for files of "
            "edges only"
        )
    if not there:
        return graph_of(source.stem, edges, relabel, undirected)
    largest = int(edges.pairs.max()) + 1 if edges.pairs.size else 0
    num_nodes = largest if edges.num_nodes is None else edges.num_nodes

    def tensor(key: str, dtype: torch.dtype) -> Tensor | None:
        if key not in arrays:
            return None
        if arrays[key].dtype.kind not in "biuf":
            raise DatasetError(f"{key} is {arrays[key].dtype}; expected numbers")
        return torch.from_numpy(arrays[key]).to(dtype)

    masks = {key: tensor(key, torch.bool) for key in ("train_mask", "val_mask", "test_mask")}
    x = _features(source.name, arrays, num_nodes) if features else None
    return GraphData(
        source.stem,
        edges.words,
        torch.from_numpy(edges.pairs),
        num_nodes,
        x=x,
        y=tensor("y", torch.int64),
        graph_ptr=tensor("graph_ptr", torch.int64),
        **masks,
    )


def _arrays(source: Source, features: bool) -> dict[str, np.ndarray]:
    skipped = () if features else FEATURE_ARRAYS
    try:
        with interruptible(), source.open() as raw:
            entries = zipfile.ZipFile(raw).infolist()
            others = [e.filename for e in entries if not e.filename.endswith(".npy")]
            if others:
                raise DatasetError(
                    f"{source.name} is a zip archive with {', '.join(others[:3])}; expected an "
                    ".npz, whose entries all end in .npy (of another archive, give the file in it)"
                )
            read = [e for e in entries if e.filename.removesuffix(".npy") not in skipped]
            source.check_size(sum(entry.file_size for entry in read))
            raw.seek(0)
            with np.load(raw, allow_pickle=False) as file:
                return {key: file[key] for key in file.files if key not in skipped}
    except (DatasetError, MemoryError):
        raise
    except Exception as e:  # zipfile, zlib and NumPy each have their own
        raise DatasetError(f"{source.name} is not a readable .npz file: {e}") from e


def _hag_graph(source: Source, path: str | os.PathLike[str]) -> GraphData:
    if os.fspath(path) == STDIN or source.packing:
        raise DatasetError(f"{source.name} is a HAG file; expected it unpacked, by its path")
    try:
        hag = HAG.load(path)
    except ValueError as e:
        raise DatasetError(str(e)) from e
    if not hag.is_square:
        raise DatasetError(f"{source.name} holds a bipartite HAG; expected one set of nodes")
    return GraphData(source.stem, f"{source.name} read as: a HAG file", hag.edge_index, hag.num_dst)


def _npz_edges(
    source: Source, arrays: dict[str, np.ndarray]
) -> tuple[Edges, dict[str, np.ndarray]]:
    """The edges, and the arrays under the names of `load_npz`."""
    name = source.name
    nodes = _num_nodes(name, arrays) if "num_nodes" in arrays else None
    if nodes is not None and not 0 <= nodes <= MAX_ID + 1:
        raise DatasetError(f"{name}: num_nodes is {nodes}; expected 0 to {MAX_ID + 1}")
    if "compact_upper_deg" in arrays:
        arrays["edge_index"] = _expand_upper(name, arrays)
    if "edge_index" in arrays:
        return _edge_array(source, "edge_index", arrays["edge_index"], nodes), arrays
    if "adj_shape" in arrays:
        other = {"attr_": "x_", "labels": "y"}
        renamed: dict[str, np.ndarray] = {}
        for key, array in arrays.items():
            old = next((old for old in other if key.startswith(old)), "")
            renamed[other[old] + key[len(old) :] if old else key] = array
        matrix = {key[4:]: a for key, a in arrays.items() if key.startswith("adj_")}
        return _sparse(source, matrix), renamed
    if "shape" in arrays and "data" in arrays:
        return _sparse(source, arrays), {}
    if "edges" in arrays:
        return _edge_array(source, "edges", arrays["edges"], nodes), arrays
    for row, column in PAIRS:
        if row in arrays and column in arrays and arrays[row].shape == arrays[column].shape:
            both = np.stack([arrays[row].reshape(-1), arrays[column].reshape(-1)])
            return _edge_array(source, f"{row} and {column}", both, nodes), arrays
    raise DatasetError(f"{name} holds {sorted(arrays)}; expected at least edge_index [2, E]")


def _sparse(source: Source, arrays: dict[str, np.ndarray]) -> Edges:
    """The entries of a sparse matrix, as `scipy.sparse.save_npz` keeps it."""
    with needed_by(f"{source.name} is a SciPy matrix, which"):
        import scipy.sparse as sparse
    if {"indptr", "indices"} <= arrays.keys():  # SciPy follows them, wherever they lead
        starts = _integers(source.name, "indptr", arrays)
        if not len(starts) or starts[0] != 0 or (np.diff(starts) < 0).any() or (
            starts[-1] > len(arrays["indices"])
        ):  # fmt: skip
            raise DatasetError(f"{source.name} is not a valid SciPy matrix: indptr does not "
                               f"increase from 0 to {len(arrays['indices'])}, the length of "
                               "indices, at most")  # fmt: skip
    content = io.BytesIO()
    np.savez(content, **{"format": np.array(b"csr"), **arrays})  # type: ignore[arg-type]
    content.seek(0)
    try:
        matrix = sparse.load_npz(content)
        if matrix.format in ("csr", "csc", "bsr"):
            matrix.check_format(full_check=True)
        form, (rows, columns) = matrix.format, matrix.shape
        matrix = matrix.tocoo()
    except Exception as e:  # SciPy has an error for each way that the arrays don't fit
        raise DatasetError(f"{source.name} is not a valid SciPy matrix: {e}") from e
    if rows != columns:
        raise _not_square(source, rows, columns)
    words = (
        f"{source.name} read as: a SciPy matrix ({form}), {counted(matrix.nnz, 'stored value')}, "
        "values ignored"
    )
    return _edges(np.stack([matrix.row, matrix.col]), words, num_nodes=rows)


def _expand_upper(name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    missing = {"graph_ptr", "num_nodes", "compact_upper_col_local"} - arrays.keys()
    if missing:
        raise DatasetError(f"{name} has compact_upper_deg but not {sorted(missing)}")
    num_nodes = _num_nodes(name, arrays)
    keys = ("graph_ptr", "compact_upper_deg", "compact_upper_col_local")
    graph_ptr, degree, column = (_integers(name, key, arrays) for key in keys)
    if len(degree) != num_nodes or degree.sum() != len(column) or (
        graph_ptr.size < 2 or graph_ptr[0] != 0 or graph_ptr[-1] != num_nodes
        or (np.diff(graph_ptr) < 0).any() or (degree < 0).any()
        or not ((column >= 0) & (column < num_nodes)).all()
    ):  # fmt: skip
        raise DatasetError(f"{name}: the compact arrays do not fit {num_nodes} nodes")
    first = np.repeat(graph_ptr[:-1], np.diff(graph_ptr))
    source = np.repeat(np.arange(num_nodes, dtype=np.int64), degree)
    return generators.undirected(np.stack([source, first[source] + column]), num_nodes)


def _num_nodes(name: str, arrays: dict[str, np.ndarray]) -> int:
    array = arrays["num_nodes"]
    if array.dtype.kind not in "iu" or array.size != 1:
        raise DatasetError(f"{name}: num_nodes is {array.dtype} {list(array.shape)}; expected one "
                           "whole number")  # fmt: skip
    return int(array.item())


def _integers(name: str, key: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """An array of integers of one dimension, as int64."""
    array = arrays[key]
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise DatasetError(f"{name}: {key} is {array.dtype} {list(array.shape)}; expected integers "
                           "of one dimension")  # fmt: skip
    return array.astype(np.int64)


def _numbers(name: str, key: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """An array of real numbers, as float32."""
    array = arrays[key]
    if array.dtype.kind not in "biuf":
        raise DatasetError(f"{name}: {key} is {array.dtype}; expected real numbers")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _features(name: str, arrays: dict[str, np.ndarray], num_nodes: int) -> Tensor | None:
    if "x_indptr" in arrays:
        missing = {"x_indices", "x_data", "x_shape"} - arrays.keys()
        if missing:
            raise DatasetError(f"{name} has x_indptr but not {sorted(missing)}")
        rows, columns = (int(size) for size in arrays["x_shape"])
        if not (rows >= 0 <= columns and rows * columns <= MAX_DENSE_FEATURES):
            raise DatasetError(f"{name}: x is {rows} x {columns}; expected a matrix of at most "
                               f"{MAX_DENSE_FEATURES:,} values")  # fmt: skip
        starts, indices = (_integers(name, key, arrays) for key in ("x_indptr", "x_indices"))
        if len(starts) != rows + 1 or starts[0] != 0 or starts[-1] != len(indices) or (
            (np.diff(starts) < 0).any()
        ):  # fmt: skip
            raise DatasetError(f"{name}: x_indptr does not increase from 0 to {len(indices)}, the "
                               f"length of x_indices, in {rows} rows")  # fmt: skip
        if indices.size and not 0 <= indices.min() <= indices.max() < columns:
            raise DatasetError(f"{name}: x_indices runs from {indices.min()} to {indices.max()}; "
                               f"expected columns from 0 to {columns - 1}")  # fmt: skip
        data = _numbers(name, "x_data", arrays)
        if data.shape != indices.shape:
            raise DatasetError(f"{name}: x_data has shape {list(data.shape)}; expected "
                               f"{list(indices.shape)}, as x_indices has")  # fmt: skip
        x = np.zeros((rows, columns), np.float32)
        x[np.repeat(np.arange(rows), np.diff(starts)), indices] = data
        return torch.from_numpy(x)
    if "x" in arrays:
        return torch.from_numpy(_numbers(name, "x", arrays))
    if "node_label" in arrays and len(arrays["node_label"]) == num_nodes:
        _, label = np.unique(arrays["node_label"], return_inverse=True)
        return torch.nn.functional.one_hot(torch.from_numpy(label)).float()
    return None
