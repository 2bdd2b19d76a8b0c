"""Files that appear whole or not at all, and documents that are read from files."""

from __future__ import annotations

import errno
import itertools
import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


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
    with _part(path):
        pass


def _target(path: str | os.PathLike[str]) -> Path:
    """The file that writing `path` replaces: a link stays, and what it points to is replaced.

    Raises:
        OSError: `path` can't be written; it is the error's file name.
    """
    name = os.fspath(path)
    target = Path(os.path.realpath(path))
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
    return target


@contextmanager
def _part(path: str | os.PathLike[str]) -> Iterator[tuple[IO[bytes], Path]]:
    """An empty file beside the target of `path`, open and locked, and its name.

    It is gone at the end, unless it was given another name. What a process that was killed
    left there goes, too: its lock went with it.

    Raises:
        OSError: `path` can't be written; it is the error's file name.
    """
    target = _target(path)
    for number in itertools.count():
        temporary, file = target.with_name(f".{target.name[:50]}.{number}.part"), None
        try:
            file = _create(temporary, path)
            if file is None:
                continue
            with file:
                if not is_ours(file, temporary):
                    continue
                try:
                    yield file, temporary
                finally:
                    if is_named(file, temporary):
                        temporary.unlink()
            return
        except BaseException:  # an interrupt at any moment leaves nothing behind
            if file is not None:
                file.close()  # what is locked is not cleaned
            _clean(temporary)
            raise


def _create(temporary: Path, path: str | os.PathLike[str]) -> IO[bytes] | None:
    """A new file under this name; None if another process is writing to one.

    It is not locked yet: the lock is taken where an interrupt closes the file.
    """
    while True:
        try:
            return open(temporary, "xb")
        except FileExistsError:
            if not _clean(temporary):
                return None
        except OSError as e:
            words = f"can't write to the folder {Path(path).parent}: {e.strerror}"
            raise type(e)(e.errno, words, os.fspath(path)) from e


def is_ours(file: IO[bytes], temporary: Path) -> bool:
    """Locks a new file. False: another process takes it for one that was left, and cleans it."""
    try:
        return lock_file(file, temporary)
    except OSError:  # this file system has no locks
        return True


def _clean(temporary: Path) -> bool:
    """Deletes what a process that was killed has left; False if one may be writing to it."""
    try:
        with open(temporary, "r+b") as file:
            if not lock_file(file, temporary):
                return False
            temporary.unlink()
    except FileNotFoundError:
        pass
    except OSError:  # somebody else's, or this file system has no locks
        return False
    return True


def lock_file(file: IO[bytes], name: Path) -> bool:
    """Locks a file until it is closed. False: somebody else has, or it has lost its name.

    Raises:
        OSError: there are no locks.
    """
    try:
        import fcntl
    except ImportError as e:
        raise OSError(errno.ENOTSUP, "there are no locks") from e
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return is_named(file, name)


def is_named(file: IO[bytes], name: Path) -> bool:
    """Whether the file is, still, that of this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(name))
    except FileNotFoundError:
        return False


def read_json(path: str | os.PathLike[str]) -> Any:
    """What is in a JSON file.

    Raises:
        OSError: it can't be opened or read.
        ValueError: it is no JSON in UTF-8, is nested too deeply, or holds a whole number beyond
            64 bits. It names `path`.
    """
    content = Path(path).read_bytes()
    try:
        return json.loads(content, parse_int=_whole)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{os.fspath(path)} is not a JSON file that can be read: {e}") from e


def _whole(digits: str) -> int:
    number = int(digits) if len(digits) < 21 else 2**63
    if abs(number) >= 2**63:
        raise ValueError(f"it holds {digits[:20]}, a number of {len(digits)} characters; expected "
                         "64 bits at most")  # fmt: skip
    return number


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

    A file whose place it takes hands on its mode.

    Raises:
        FileExistsError: with `first`, `path` is there.
        OSError: it can't be written; the error names `path`.
    """
    with _part(path) as (file, temporary):
        try:
            yield file
            file.flush()
            target = Path(os.path.realpath(path))
            if target.exists():
                os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
            os.fsync(file.fileno())
            # Before it is closed: a file that nobody has locked is one that was left.
            if first:
                _take_free_place(temporary, target)
            else:
                os.replace(temporary, target)
        except OSError as e:
            if e.filename in (None, str(temporary)) and e.errno is not None:
                raise type(e)(e.errno, e.strerror, os.fspath(path)) from e
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
