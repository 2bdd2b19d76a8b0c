"""The bytes and the text of a file, however it is packed."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hag_plugin.extras import needed_by
from hag_plugin.files import DatasetError

HEAD = 1 << 16  # bytes or characters that tell what a file is
PIECE = 1 << 26  # bytes that are read at a time
STDIN = "-"
# What `graph_files` reads.
KINDS = (
    "an edge list (text, CSV, TSV), MatrixMarket, .npz, .npy, Parquet, Feather or a HAG file; also "
    "packed as .gz, .bz2, .xz or .zst"
)
PACKED: dict[bytes, tuple[str, Callable[..., Any]]] = {
    b"\x1f\x8b": ("gzip", gzip.open),
    b"BZh": ("bzip2", bz2.open),
    b"\xfd7zXZ\x00": ("xz", lzma.open),
    b"\x28\xb5\x2f\xfd": ("zstd", lambda file: _zstd(file)),
}
PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zstd")
UNREADABLE = {  # what a file begins with, and what it then is
    b"\x89HDF\r\n": "HDF5",
    b"SQLite format 3": "SQLite",
    b"%PDF": "PDF",
    b"\x89PNG": "PNG",
    b"ORC": "ORC",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "RAR",
}
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")


class Source:
    """A file, or the standard input as `-`; can be read again and again.

    Attributes:
        name: as the user gave it.
        stem: the name of the graph in it.
        suffix: of what is packed in it, in lower case.
        packing: how it is packed, in words, or "".
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        self._path = Path(path)
        self._content: bytes | None = None
        if self.name == STDIN:
            self.name, self._path = "standard input", Path("stdin")
            self._content = sys.stdin.buffer.read()
        elif self._path.is_dir():
            raise DatasetError(f"{self.name} is a folder; expected a file")
        elif not self._path.exists():
            raise DatasetError(f"{self.name}: no such file")
        elif not self._path.is_file():  # a pipe, which can be read once only
            self._content = self._path.read_bytes()
        self.packing = ""
        inner = Path(self._path.name)
        if inner.suffix.lower() in PACKED_SUFFIXES:
            inner = inner.with_suffix("")
        self.suffix, self.stem = inner.suffix.lower(), inner.stem
        with self._raw() as file:
            begin = file.read(8)
        for magic, (words, opener) in PACKED.items():
            if begin.startswith(magic):
                self.packing, self._unpack = words, opener
        self.head = self._read_head()

    def _raw(self) -> IO[bytes]:
        return open(self._path, "rb") if self._content is None else io.BytesIO(self._content)

    def _read_head(self) -> bytes:
        with self.open() as file:
            return file.read(HEAD)

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """What is in the file, unpacked."""
        with self._raw() as raw:
            if not self.packing:
                yield raw
                return
            try:
                with self._unpack(raw) as file:
                    yield file
            except (EOFError, OSError, zlib.error, lzma.LZMAError) as e:
                words = str(e) or "it ends early"
                raise DatasetError(
                    f"{self.name} is damaged or cut off ({self.packing}: {words})"
                ) from e

    def read(self) -> bytes:
        """All that is in the file, unpacked."""
        pieces, length = [], 0
        with self.open() as file:
            while piece := file.read(PIECE):
                pieces.append(piece)
                length += len(piece)
                self.check_size(length)
        return b"".join(pieces)

    def check_size(self, unpacked: int) -> None:
        """Raises where what is packed in a file cannot be held.

        Raises:
            DatasetError: it has more bytes than the machine has memory.
        """
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if unpacked > memory:
            raise DatasetError(f"{self.name} holds {unpacked:,} bytes or more, unpacked; this "
                               f"machine has {memory:,} bytes of memory")  # fmt: skip

    @property
    def encoding(self) -> str:
        """Of the text: by its byte-order mark, or UTF-8."""
        if self.head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        return "utf-8-sig"

    @contextmanager
    def text(self) -> Iterator[IO[str]]:
        """The file as text; every kind of line end is a newline.

        Bytes that are no UTF-8 are kept as lone surrogates: comments may hold any.
        """
        with self.open() as file:
            errors = "surrogateescape" if self.encoding == "utf-8-sig" else "replace"
            yield io.TextIOWrapper(file, encoding=self.encoding, errors=errors)

    def text_head(self) -> str:
        """How the text begins, whole lines only.

        Raises:
            DatasetError: it is not text, or its lines have no end.
        """
        for begin, words in UNREADABLE.items():
            if self.head.startswith(begin):
                raise DatasetError(f"{self.name} is a {words} file; expected {KINDS}")
        if self.head[257:262] == b"ustar":
            raise DatasetError(f"{self.name} is a tar archive; unpack it, and give the file in it")
        with self.text() as file:
            head = file.read(HEAD)
        found = CONTROL.search(head)
        if found:
            raise DatasetError(
                f"{self.name} is not a text file (character {ord(found[0])} at {found.start()}); "
                f"expected {KINDS}"
            )
        if head and not any(map(str.isascii, head)):
            raise DatasetError(
                f"{self.name} is not a text file: {head[:20]!r} ({self.encoding}); expected {KINDS}"
            )
        if len(head) < HEAD:
            return head
        if "\n" not in head:
            raise DatasetError(
                f"{self.name}: no end of a line in {HEAD} characters; expected an edge a line"
            )
        return head[: head.rindex("\n") + 1]


def _zstd(file: IO[bytes]) -> Any:
    with needed_by("a zstd file"):
        import pyarrow as pa
    return pa.CompressedInputStream(file, "zstd")
