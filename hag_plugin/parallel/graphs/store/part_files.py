"""The files of a part: `.npy`, written as a stream, each with its size and its SHA-256.

They are written with `write`, never through a memory map: where the disk is full a map kills the
process, and `write` says so.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from hag_plugin.files import DatasetError
from hag_plugin.saved import set_module

PIECE = 1 << 22  # bytes that are hashed at a time
SUFFIX = ".npy"
# Names of arrays that are no names of files, or are the part's own.
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
OWN = ("indptr", "sources", "nodes", "halo")

# NumPy reads headers with `ast`, whose depth some versions of CPython count over all threads
# (gh-106905): parts that are opened at once would be refused now and then.
_ONE_AT_A_TIME = threading.Lock()


@set_module("hag_plugin.parallel")
@dataclass(frozen=True)
class FileRecord:
    """What the manifest knows of a file.

    Attributes:
        bytes: its size.
        dtype: of the array in it, as NumPy writes it.
        shape: likewise.
        sha256: of all its bytes.
    """

    bytes: int
    dtype: str
    shape: tuple[int, ...]
    sha256: str


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of the system that names no file names this one."""
    try:
        yield
    except OSError as e:
        if e.filename is None and e.errno is not None:
            raise type(e)(e.errno, e.strerror, str(path)) from e
        raise


class ArrayFile:
    """A `.npy` that grows by rows; nothing of it stays open between two of them.

    Args:
        path: of the file.
        dtype: of the array.
        shape: of one row.
    """

    def __init__(self, path: Path, dtype: Any, shape: tuple[int, ...] = ()) -> None:
        self._path, self._shape, self._rows = path, shape, 0
        self._dtype = np.dtype(dtype).newbyteorder("=")
        self._head = len(self._header(0))
        with naming(path), open(path, "wb") as file:
            file.write(bytes(self._head))

    def append(self, rows: np.ndarray) -> None:
        """Adds rows `[k, *shape]`."""
        rows = np.ascontiguousarray(rows, self._dtype)
        self._rows += len(rows)
        if rows.size:
            with naming(self._path), open(self._path, "ab", buffering=0) as file:
                write_all(file, rows)

    def finish(self) -> FileRecord:
        """Writes the header, and sees to it that all is on the disk."""
        header = self._header(self._rows)
        assert len(header) == self._head  # NumPy leaves room for the rows to become more
        with naming(self._path), open(self._path, "r+b") as file:
            file.write(header)
            file.flush()
            os.fsync(file.fileno())
        return FileRecord(
            self._path.stat().st_size,
            self._dtype.str,
            (self._rows, *self._shape),
            sha256_of(self._path),
        )

    def _header(self, rows: int) -> bytes:
        out = io.BytesIO()
        shape = (rows, *self._shape)
        form = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, form)
        return out.getvalue()


def write_all(file: IO[bytes], array: np.ndarray) -> None:
    """Writes a contiguous array to a file without a buffer, which may take it bit by bit."""
    view = array.reshape(-1).view(np.uint8).data
    while len(view):
        view = view[file.write(view) :]


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def open_array(path: Path, record: FileRecord, verify: bool) -> np.ndarray:
    """The array of a file, mapped: writing to it changes no file.

    Args:
        path: the file.
        record: what the manifest says of it.
        verify: compare all its bytes, too.

    Raises:
        DatasetError: it is missing, cut off, changed or another store's. It names the file.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise DatasetError(f"{path} is no file; expected an array")
        if size != record.bytes:
            raise DatasetError(
                f"{path} has {size:,} bytes; expected {record.bytes:,}, as the manifest says"
            )
        if verify and sha256_of(path) != record.sha256:
            raise DatasetError(
                f"{path} is not the file that the manifest tells of: its SHA-256 differs; it was "
                "changed, or is another store's"
            )
        with _ONE_AT_A_TIME:
            array: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError as e:
        raise DatasetError(f"{path} is missing; the manifest tells of it") from e
    except DatasetError:
        raise
    except Exception as e:  # NumPy raises whatever a wrong header leads to
        raise DatasetError(f"{path} can't be read: {e}") from e
    if array.dtype.str != record.dtype or array.shape != record.shape:
        raise DatasetError(
            f"{path} holds {array.dtype.str} {list(array.shape)}; expected {record.dtype} "
            f"{list(record.shape)}, as the manifest says"
        )
    return array
