"""HAG files: arrays and a header in a zip (NumPy's npz), never a pickle."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

FILE_FORMAT = "hag_plugin.HAG"
FILE_VERSION = 1


class DatasetError(ValueError):
    """A graph could not be found, read or understood, or a file can't be of the name it was given.

    The message says what was expected.
    """


def write(
    path: str | os.PathLike[str], state: dict[str, Any], content_hash: tuple[int, int]
) -> None:
    """Writes the state of a HAG. The file appears whole or not at all."""
    arrays: dict[str, np.ndarray] = {}
    header: dict[str, Any] = {"format": FILE_FORMAT, "version": FILE_VERSION}
    header["hag"] = _split_arrays(state, arrays, "hag")
    header["content_hash"] = list(content_hash)
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    with whole_file(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def check_output(
    path: str | os.PathLike[str], suffixes: Sequence[str] = (), option: str = "output"
) -> None:
    """Checks, before the work, that a file can be written; leaves nothing behind.

    Args:
        path: the file.
        suffixes: what its name may end in, or () for anything.
        option: what to call it in errors.

    Raises:
        DatasetError: the name ends otherwise.
        OSError: the folder is missing or can't be written to, or `path` is a folder. It names
            `path`.
    """
    if suffixes and Path(path).suffix.lower() not in suffixes:
        raise DatasetError(
            f"{option} is {os.fspath(path)!r}; expected a name that ends in {' or '.join(suffixes)}"
        )
    temporary = _temporary(path)
    try:
        _create(temporary, path).close()
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: str | os.PathLike[str]) -> Path:
    """The name of a file beside `path` that is not there.

    Raises:
        OSError: `path` can't be written; it is the error's file name.
    """
    name = os.fspath(path)
    target = Path(os.path.realpath(path))  # a link stays, and what it points to is replaced
    if not target.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT,
            f"there is no folder {Path(path).parent}; expected a folder that exists",
            name,
        )
    if target.is_dir() or name.endswith(os.sep):
        raise IsADirectoryError(errno.EISDIR, "it is a folder; expected the name of a file", name)
    if target.exists() and not (target.is_file() and os.access(target, os.W_OK)):
        raise PermissionError(errno.EACCES, "it is there and can't be written", name)
    try:
        target.exists() or os.lstat(target)  # a name that is too long
    except FileNotFoundError:
        pass
    except OSError as e:
        raise type(e)(e.errno, e.strerror, name) from e
    return target.with_name(f".{target.name[:50]}.{secrets.token_hex(4)}.part")


def _create(temporary: Path, path: str | os.PathLike[str]) -> IO[bytes]:
    try:
        return open(temporary, "xb")
    except OSError as e:
        words = f"can't write to the folder {Path(path).parent}: {e.strerror}"
        raise type(e)(e.errno, words, os.fspath(path)) from e


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file that appears whole or not at all."""
    with whole_file(path) as file:
        file.write(content)


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` when it is finished, or not at all.

    Raises:
        OSError: it can't be written; the error names `path`.
    """
    # Named before it is there: an interrupt at any moment leaves nothing behind.
    temporary = _temporary(path)
    try:
        try:
            with _create(temporary, path) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, os.path.realpath(path))
        except OSError as e:
            if e.filename in (None, str(temporary)) and e.errno is not None:
                raise type(e)(e.errno, e.strerror, os.fspath(path)) from e
            raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], tuple[int, int]]:
    """The state and the content hash in a file. What the arrays hold is not checked here.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is no HAG file or is of another version.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(arrays.pop("header").tobytes())
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as e:  # whatever a zip or an array header of wrong bytes leads to
        raise ValueError(f"{name} is damaged, truncated or not a HAG file: {e}") from e
    if not isinstance(header, dict):
        raise ValueError(f"{name} is not a HAG file: its header is no object")
    if header.get("format") != FILE_FORMAT or header.get("version") != FILE_VERSION:
        raise ValueError(
            f"{name} is of format {header.get('format')!r}, version {header.get('version')!r}; "
            f"expected {FILE_FORMAT!r}, version {FILE_VERSION}"
        )
    try:
        state = _join_arrays(header["hag"], arrays)
        low, high = header["content_hash"]
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise ValueError(f"{name} does not hold a valid HAG: {e}") from e
    return state, (low, high)


def _split_arrays(value: Any, arrays: dict[str, np.ndarray], name: str) -> Any:
    """`value` for JSON: every tensor goes to `arrays`, its name stays."""
    if isinstance(value, Tensor):
        arrays[name] = value.cpu().numpy()
        return {"array": name}
    if isinstance(value, dict):
        return {k: _split_arrays(v, arrays, f"{name}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [_split_arrays(v, arrays, f"{name}.{i}") for i, v in enumerate(value)]
    return value


def _join_arrays(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"array"}:
            return torch.from_numpy(np.ascontiguousarray(arrays[value["array"]]))
        return {k: _join_arrays(v, arrays) for k, v in value.items()}
    return [_join_arrays(v, arrays) for v in value] if isinstance(value, list) else value
