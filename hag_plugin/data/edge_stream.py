"""Files of edges, and of rows of nodes, read block by block: never whole in memory.

For graphs larger than memory. What is small, and what `graph_files` alone understands (sparse
features, say), is read by that.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from hag_plugin.data.edge_lists import (
    SAMPLE,
    Form,
    blocks_of,
    data_lines,
    form_of,
    place_of,
    wrong_line,
)
from hag_plugin.data.edges import ends, from_floats
from hag_plugin.data.graph_data import MAX_ID
from hag_plugin.data.graph_files import BANNER, PAIRS, load_npz
from hag_plugin.data.source import STDIN, Source
from hag_plugin.extras import needed_by
from hag_plugin.files import DatasetError
from hag_plugin.parallel.graphs.store.streams import EdgeStream, RowStream

ROWS = ("x", "y", "train_mask", "val_mask", "test_mask")  # of an .npz, what nodes have
VALUES = ("edge_weight", "edge_attr")  # and what edges have
WHOLE = 1 << 28  # bytes of an .npz that is read whole, where it holds more than plain arrays
Opened = Callable[[], AbstractContextManager[IO[bytes]]]


def open_edges(
    path: str | os.PathLike[str], columns: Mapping[str, str] | None = None
) -> EdgeStream:
    """The edges of a file, and of an `.npz` what nodes and edges have: an edge list as text,
    MatrixMarket (coordinate), `.npy`, `.npz`, Parquet or Feather. What it holds is told by its
    content.

    Ids are node numbers, 0 to 2^31 - 2.

    Args:
        path: of the file.
        columns: what edges have: by name the column that it is in, of a text (or its number, from
            1), Parquet or Feather; the array of an `.npz`; of MatrixMarket "value". Numbers of
            texts are float64. They are read apart from the edges.

    Raises:
        DatasetError: it can't be read, or holds no edges. What is wrong further on is told while
            blocks are read.
        OSError: it can't be opened.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/edges.npy", np.array([[0, 1, 2], [1, 2, 0]]))
        ...     stream = open_edges(f"{folder}/edges.npy")
        ...     [block.tolist() for block in stream.blocks(2)]
        [[[0, 1], [1, 2]], [[2], [0]]]
    """
    if os.fspath(path) == STDIN:
        raise DatasetError("the standard input is not read block by block; expected a file")
    source, columns = Source(path), columns or {}
    if source.head[:2] == b"PK" or source.suffix == ".npz":
        return _npz(source, Path(path), columns)
    for magic, suffix, reader in (
        (b"PAR1", ".parquet", _parquet),
        (b"ARROW1", ".feather", _parquet),
        (b"\x93NUMPY", ".npy", _npy),
    ):
        if source.head.startswith(magic):
            return reader(source, Path(path), columns)
        if source.suffix == suffix:
            raise DatasetError(f"{source.name} is not a readable {suffix} file")
    head = source.text_head()
    if head.lstrip().lower().startswith(BANNER):
        return _matrix_market(source, columns)
    return _text(source, head, columns)


def open_rows(path: str | os.PathLike[str]) -> RowStream:
    """The rows of an array in an `.npy` file: of nodes, or of edges.

    Raises:
        DatasetError: it is none that can be read.
        OSError: it can't be opened.
    """
    source = Source(path)
    return _rows(source.name, source.open)


def _no_column(source: Source, column: str, known: Sequence[str]) -> DatasetError:
    return DatasetError(
        f"{source.name} has no column {column!r} of numbers; expected one of {[*known]}"
        if known
        else f"{source.name} has no columns to take {column!r} from; expected NAME=FILE.npy"
    )


def _ids(pairs: np.ndarray, where: str) -> np.ndarray:
    """The edges of a block as whole numbers."""
    whole = from_floats(pairs) if pairs.dtype.kind == "f" else pairs
    if whole is None:
        raise DatasetError(f"{where}: values that are no whole numbers; expected node ids")
    return whole


# NumPy ------------------------------------------------------------------------------------------


class _Array:
    """An array in a file, as its header describes it; its values are read as they are asked for."""

    def __init__(self, name: str, opened: Opened) -> None:
        self.name, self._opened = name, opened
        try:
            with opened() as file:
                version = np.lib.format.read_magic(file)
                read = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                shape, self.fortran, self.dtype = read(file)
                self.shape: tuple[int, ...] = shape
                self._begin = file.tell()
        except (DatasetError, MemoryError):
            raise
        except Exception as e:  # NumPy raises whatever a wrong header leads to
            raise DatasetError(f"{name} is not a readable array of NumPy's: {e}") from e

    @contextmanager
    def at(self, value: int) -> Iterator[Callable[[int], np.ndarray]]:
        """Reads so many values from the given one on."""
        with self._opened() as file:
            file.seek(self._begin + value * self.dtype.itemsize)

            def read(count: int) -> np.ndarray:
                content = file.read(count * self.dtype.itemsize)
                if len(content) != count * self.dtype.itemsize:
                    raise DatasetError(
                        f"{self.name} is cut off; expected {list(self.shape)} values"
                    )
                return np.frombuffer(content, self.dtype)

            yield read


def _npy(source: Source, path: Path, columns: Mapping[str, str]) -> EdgeStream:
    for column in columns.values():
        raise _no_column(source, column, ())
    array = _Array(source.name, source.open)
    return _edge_arrays(source, "the array", [array], None)


def _edge_arrays(
    source: Source, key: str, arrays: list[_Array], num_nodes: int | None
) -> EdgeStream:
    """The edges of one array `[2, E]` or `[E, 2]`, or of two `[E]`."""
    first = arrays[0]
    shape = first.shape if len(arrays) == 1 else (2, *first.shape)
    turned = len(shape) == 2 and shape[1] == 2 and shape[0] != 2
    kinds = "iuf" if key != "edge_index" else "iu"
    if len(shape) != 2 or not (turned or shape[0] == 2) or (
        any(array.dtype.kind not in kinds or array.shape != first.shape for array in arrays)
    ):  # fmt: skip
        raise DatasetError(
            f"{source.name}: {key} is {first.dtype} {list(first.shape)}; expected integers [2, E]"
        )
    edges = shape[0] if turned else shape[1]

    def paired(most: int) -> Iterator[np.ndarray]:  # source and target side by side
        with first.at(0) as read:
            for at in range(0, edges, most):
                yield read(2 * min(most, edges - at)).reshape(-1, 2).T

    def apart(most: int) -> Iterator[np.ndarray]:
        begins = [(arrays[0], 0), (arrays[-1], edges if len(arrays) == 1 else 0)]
        with begins[0][0].at(begins[0][1]) as sources, begins[1][0].at(begins[1][1]) as targets:
            for at in range(0, edges, most):
                count = min(most, edges - at)
                yield np.stack([sources(count), targets(count)])

    together = len(arrays) == 1 and turned != first.fortran

    def blocks(most: int) -> Iterator[np.ndarray]:
        at = 0
        for pairs in (paired if together else apart)(most):
            yield _ids(pairs, f"{source.name}: {key}, edges {at:,} on")
            at += pairs.shape[1]

    def where(edge: int) -> str:
        pair = []
        for number in range(2):
            array, whole = arrays[-number], len(arrays) == 1
            begin = 2 * edge + number if together else edge + number * whole * edges
            with array.at(begin) as read:
                pair.append(read(1)[0].item())
        return f"{source.name}: edge {edge:,} is {pair}"

    form = "[E, 2]" if turned else "[2, E]"
    return EdgeStream(blocks, f"{source.name} read as: {key} {form}", num_nodes, where)


def _rows(name: str, opened: Opened) -> RowStream:
    array = _Array(name, opened)
    if array.dtype.kind not in "biufc" or not array.shape:
        raise DatasetError(
            f"{name} is {array.dtype} {list(array.shape)}; expected numbers, a row for each node"
        )
    if array.fortran and len(array.shape) > 1:
        raise DatasetError(f"{name} keeps columns together; expected rows (C order)")
    rows, shape = array.shape[0], array.shape[1:]
    values = int(np.prod(shape))

    def blocks(most: int) -> Iterator[np.ndarray]:
        with array.at(0) as read:
            for at in range(0, rows, most):
                count = min(most, rows - at)
                yield read(count * values).reshape(count, *shape)

    return RowStream(rows, array.dtype, shape, blocks)


class Archive:
    """The arrays of an `.npz`, none of which is read whole.

    Args:
        source: the file.

    Attributes:
        sizes: bytes of each, unpacked.

    Raises:
        DatasetError: it is not one.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        try:
            with source.open() as raw:
                entries = zipfile.ZipFile(raw).infolist()
        except DatasetError:
            raise
        except Exception as e:  # zipfile and zlib each have their own
            raise DatasetError(f"{source.name} is not a readable .npz file: {e}") from e
        self._entries = {e.filename.removesuffix(".npy"): e for e in entries}
        self.sizes = {key: e.file_size for key, e in self._entries.items()}

    @contextmanager
    def _opened(self, key: str) -> Iterator[IO[bytes]]:
        try:
            with (
                self._source.open() as raw,
                zipfile.ZipFile(raw) as archive,
                archive.open(self._entries[key]) as file,
            ):
                yield file
        except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError) as e:
            raise DatasetError(f"{self._source.name}: {key} is damaged: {e}") from e

    def number(self, key: str) -> int:
        """The first value of an array."""
        with self._array(key).at(0) as read:
            return int(read(1)[0])

    def rows(self, key: str) -> RowStream:
        """The rows of an array."""
        return _rows(f"{self._source.name}: {key}", partial(self._opened, key))

    def edges(self, keys: Sequence[str], num_nodes: int | None) -> EdgeStream:
        """The edges of one array `[2, E]` or `[E, 2]`, or of two `[E]`."""
        arrays = [self._array(key) for key in keys]
        return _edge_arrays(self._source, " and ".join(keys), arrays, num_nodes)

    def _array(self, key: str) -> _Array:
        return _Array(f"{self._source.name}: {key}", partial(self._opened, key))


def _npz(source: Source, path: Path, columns: Mapping[str, str]) -> EdgeStream:
    archive = Archive(source)
    keys: tuple[str, ...]
    keys = next(((*pair,) for pair in PAIRS if {*pair} <= archive.sizes.keys()), ())
    if "edge_index" in archive.sizes:
        keys = ("edge_index",)
    plain = not {"x_indptr", "node_label", "header", "compact_upper_deg"} & archive.sizes.keys()
    is_plain = bool(keys) and plain
    for column in columns.values():
        if not is_plain or column not in archive.sizes:
            raise _no_column(source, column, sorted(archive.sizes) if is_plain else ())
    if not is_plain:
        return _whole(source, path, sum(archive.sizes.values()))
    num_nodes = archive.number("num_nodes") if "num_nodes" in archive.sizes else None
    rows, values = (
        {key: archive.rows(key) for key in names if key in archive.sizes}
        for names in (ROWS, VALUES)
    )
    values |= {name: archive.rows(column) for name, column in columns.items()}
    return replace(archive.edges(keys, num_nodes), rows=rows, values=values)


def _whole(source: Source, path: Path, size: int) -> EdgeStream:
    if size > WHOLE:
        raise DatasetError(
            f"{source.name} has {size:,} bytes, unpacked, and holds other than plain arrays; "
            f"expected {WHOLE:,} at most, or edge_index, num_nodes, {', '.join(ROWS)}"
        )
    data = load_npz(path)
    tensors = {key: getattr(data, key) for key in ROWS}
    rows = {
        key: tensor.numpy()
        for key, tensor in tensors.items()
        if tensor is not None and len(tensor) == data.num_nodes
    }
    return EdgeStream.of(data.edge_index.numpy(), data.num_nodes, rows, data.source)


# Parquet ----------------------------------------------------------------------------------------


def _parquet(source: Source, path: Path, columns: Mapping[str, str]) -> EdgeStream:
    with needed_by(source.name):
        import pyarrow as pa
        import pyarrow.ipc as ipc
        import pyarrow.parquet as parquet
    if source.packing:
        raise DatasetError(f"{source.name} is packed ({source.packing}); expected it unpacked")
    is_parquet = source.head.startswith(b"PAR1")

    def opened() -> Any:
        if is_parquet:
            return parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
        return ipc.open_file(path)

    def damaged(e: Exception) -> DatasetError:
        return DatasetError(f"{source.name} is damaged or cut off: {e}")

    try:
        file = opened()
        schema = file.schema_arrow if is_parquet else file.schema
    except (pa.ArrowException, OSError) as e:
        raise damaged(e) from e
    if len(schema.names) < 2:
        raise DatasetError(f"{source.name} has columns {schema.names}; expected source and target")
    picks = [schema.names[pick] for pick in ends(schema.names) or (0, 1)]
    types = [schema.field(name).type for name in picks]
    if not all(pa.types.is_integer(each) or pa.types.is_floating(each) for each in types):
        raise DatasetError(
            f"{source.name} has {picks} of types {[*map(str, types)]}; expected node ids"
        )

    def batches(names: list[str], most: int) -> Iterator[Any]:
        file = opened()
        if is_parquet:
            yield from file.iter_batches(batch_size=most, columns=names)
            return
        for number in range(file.num_record_batches):
            batch = file.get_batch(number).select(names)
            yield from (batch.slice(at, most) for at in range(0, batch.num_rows, most))

    def read(names: list[str], most: int) -> Iterator[tuple[str, list[np.ndarray]]]:
        row = 0
        try:
            for batch in batches(names, most):
                where = f"{source.name}, rows {row + 1:,} on"
                if any(batch.column(name).null_count for name in names):
                    raise DatasetError(f"{where}: a null; expected numbers")
                yield where, [batch.column(n).to_numpy(zero_copy_only=False) for n in names]
                row += batch.num_rows
        except (pa.ArrowException, OSError) as e:
            raise damaged(e) from e

    def blocks(most: int) -> Iterator[np.ndarray]:
        for where, pair in read(picks, most):
            yield _ids(np.stack(pair), where)

    def values_of(column: str) -> RowStream:
        kind = schema.field(column).type if schema.names.count(column) == 1 else None
        if kind is None or not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise _no_column(source, column, schema.names)
        dtype = np.dtype(kind.to_pandas_dtype())
        return RowStream(
            None, dtype, (), lambda most: (array for _, [array] in read([column], most))
        )

    values = {name: values_of(column) for name, column in columns.items()}
    kind = "Parquet" if is_parquet else "Feather"
    words = f"{source.name} read as: {kind}, source {picks[0]!r}, target {picks[1]!r}"
    where = lambda edge: f"{source.name}, row {edge + 1:,}"  # noqa: E731
    return EdgeStream(blocks, words, where=where, values=values)


# Text -------------------------------------------------------------------------------------------


def _text(source: Source, head: str, columns: Mapping[str, str]) -> EdgeStream:
    sample = [text for _, text in islice(data_lines(iter(head.split("\n"))), SAMPLE)]
    if not sample:
        for column in columns.values():
            raise DatasetError(f"{source.name} has no edges, and no column {column!r} of them")
        return EdgeStream.of(np.zeros((2, 0), np.int64), None, None, f"{source.name}: no edges")
    form = form_of(sample, head)
    if form is None:
        raise wrong_line(source, None, False, "no separator was found")

    def some(most: int) -> Iterator[list[str]]:
        for lines in blocks_of(source, form):
            yield from (lines[at : at + most] for at in range(0, len(lines), most))

    def blocks(most: int) -> Iterator[np.ndarray]:
        return (_parsed(source, form, lines) for lines in some(most))

    def values_of(column: str) -> RowStream:
        names = form.header or []
        place = (
            names.index(column) if column in names else int(column) - 1 if column.isdigit() else -1
        )
        if not 0 <= place < form.columns:
            raise _no_column(source, column, names or [*map(str, range(1, form.columns + 1))])

        def values(most: int) -> Iterator[np.ndarray]:
            read = 0
            for lines in some(most):
                try:
                    [found] = _loaded(replace(form, picks=(place,)), lines, np.float64)
                except (ValueError, OverflowError) as e:
                    words = f"edges {read + 1:,} on, column {column!r}: {e}"
                    raise DatasetError(f"{source.name}, {words}") from e
                yield found
                read += len(found)

        return RowStream(None, np.dtype(np.float64), (), values)

    return EdgeStream(
        blocks,
        f"{source.name} read as: an edge list",
        where=partial(place_of, source, form),
        values={name: values_of(column) for name, column in columns.items()},
    )


def _parsed(source: Source, form: Form, lines: list[str]) -> np.ndarray:
    """The edges of some lines; of whole numbers, or of floats that are such."""
    for dtype in (np.int64, np.float64):
        try:
            pairs = _loaded(form, lines, dtype)
        except (ValueError, OverflowError):
            continue
        whole = pairs if dtype is np.int64 else from_floats(pairs)
        if whole is not None and whole.shape[1] == len(lines):
            return whole
    raise wrong_line(source, form, False, "ids are not all node ids")


def _loaded(form: Form, lines: list[str], dtype: Any) -> np.ndarray:
    options: dict[str, Any] = {"delimiter": form.separator, "quotechar": form.quote}
    options |= {"comments": None, "encoding": None}
    if not form.columns:
        pairs: np.ndarray = np.loadtxt(lines, dtype=dtype, usecols=form.picks, ndmin=2, **options)
        turned: np.ndarray = pairs.T
        return turned
    fields = [(str(i), dtype if i in form.picks else "U1") for i in range(form.columns)]
    table = np.loadtxt(lines, dtype=fields, ndmin=1, **options)
    return np.stack([table[str(pick)] for pick in form.picks])


def _matrix_market(source: Source, columns: Mapping[str, str]) -> EdgeStream:
    """The entries of a square matrix; what its banner says to be symmetric, in both directions."""
    with source.text() as file:
        banner = file.readline().lower().split()
        size, skipped = next(((line.split(), n) for n, line in enumerate(file, 2)
                              if line.strip() and not line.startswith("%")), ([], 0))  # fmt: skip
    if len(banner) != 5 or banner[2] != "coordinate":
        raise DatasetError(
            f"{source.name}, line 1: {' '.join(banner)[:60]!r}; expected "
            "%%MatrixMarket matrix coordinate pattern general, or the like"
        )
    if len(size) != 3 or not all(text.isdigit() and len(text) < 19 for text in size):
        raise DatasetError(f"{source.name}, line {skipped}: {' '.join(size)[:60]!r}; expected "
                           "numbers of rows, columns and entries")  # fmt: skip
    rows, count, entries = map(int, size)
    if rows != count or rows > MAX_ID + 1:
        raise DatasetError(f"{source.name} is a {rows} x {count} matrix; expected a square one, "
                           f"of at most {MAX_ID + 1} rows")  # fmt: skip
    fields = {"pattern": 2, "complex": 4}.get(banner[3], 3)
    dtype = {"integer": np.int64, "real": np.float64}.get(banner[3])
    for column in columns.values():
        if column != "value" or dtype is None:
            raise _no_column(source, column, [] if dtype is None else ["value"])
    form = Form(None, '"', None, False, fields, (0, 1), 0)

    def entries_of(most: int, value: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        read = 0
        with source.text() as file:
            next(islice(file, skipped - 1, None), None)
            while lines := [*islice(file, most)]:
                lines = [line for line in lines if not line.isspace()]
                if not lines:
                    continue
                try:
                    pairs = _loaded(form, lines, np.int64) - 1
                    held = pairs[0]
                    if value is not None:
                        [held] = _loaded(replace(form, picks=(2,)), lines, value)
                except (ValueError, OverflowError) as e:
                    raise DatasetError(
                        f"{source.name} is not valid MatrixMarket, entries {read + 1:,} on: {e}"
                    ) from e
                if pairs.min() < 0 or pairs.max() >= rows:
                    raise DatasetError(
                        f"{source.name} is not valid MatrixMarket, entries {read + 1:,} on: "
                        f"{pairs.min() + 1} to {pairs.max() + 1}; expected 1 to {rows}"
                    )
                read += pairs.shape[1]
                yield pairs, held
                if banner[4] != "general":
                    apart = pairs[0] != pairs[1]
                    sign = -1 if banner[4] == "skew-symmetric" else 1
                    yield pairs[::-1, apart], sign * held[apart]
        if read != entries:
            raise DatasetError(f"{source.name} has {read:,} entries; expected the {entries:,} "
                               "that its size line announces")  # fmt: skip

    def blocks(most: int) -> Iterator[np.ndarray]:
        return (pairs for pairs, _ in entries_of(most, None))

    def values(most: int) -> Iterator[np.ndarray]:  # in the order of `blocks(most)`
        return (held for _, held in entries_of(most, dtype))

    words = f"{source.name} read as: MatrixMarket, {' '.join(banner[2:])}"
    found = {name: RowStream(None, np.dtype(dtype), (), values) for name in columns}
    return EdgeStream(blocks, words, rows, values=found)
