"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO


class DatasetError(ValueError):
    """A graph could not be found, read or understood, or a file can't be of the name it was given.

    The message says what was expected.
    """


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
def whole_file(path: str | os.PathLike[str], first: bool = False) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` when it is finished, or not at all.

    Args:
        path: its name.
        first: it takes no other file's place: of several that are written at once, the first one
            that is finished stays.

    Raises:
        FileExistsError: with `first`, `path` is there.
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
            if first:
                _take_free_place(temporary, Path(os.path.realpath(path)))
            else:
                os.replace(temporary, os.path.realpath(path))
        except OSError as e:
            if e.filename in (None, str(temporary)) and e.errno is not None:
                raise type(e)(e.errno, e.strerror, os.fspath(path)) from e
            raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def interruptible() -> Iterator[None]:
    """Around a zip that is read or written: an interrupt comes out as itself.

    Where one comes in the midst of `zipfile`, it raises errors of its own while it closes.
    """
    try:
        yield
    except Exception as e:
        if isinstance(e.__context__, KeyboardInterrupt):
            raise e.__context__ from None
        raise


def _take_free_place(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)
        temporary.unlink()
    except FileExistsError:
        raise
    except OSError:  # this file system has no links
        if target.exists():
            raise FileExistsError(errno.EEXIST, "it is there", str(target)) from None
        os.replace(temporary, target)


def cache_folder() -> Path:
    """HAG_PLUGIN_CACHE, or hag_plugin in the user's cache folder. It need not be there.

    Raises:
        RuntimeError: the user has no home.
    """
    named = os.environ.get("HAG_PLUGIN_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hag_plugin"
