"""Folders that appear whole or not at all."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hag_plugin.files import is_named, is_ours, lock_file

LOCK = "lock"


def check_new_folder(path: str | os.PathLike[str]) -> None:
    """Checks, before the work, that a folder can be made; leaves nothing behind.

    Raises:
        OSError: it is there and not empty, or can't be made. It names `path`.
    """
    with _part(_target(path)):
        pass


@contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to fill that becomes `path` when it is finished, or is gone.

    What a process that was killed has left beside it goes, too.

    Raises:
        OSError: `path` is there and not empty, or can't be made; the error names it.
    """
    target = _target(path)
    with _part(target) as folder:
        yield folder
        _sync(folder)
        (folder / LOCK).unlink()
        try:
            os.rename(folder, target)  # takes the place of an empty folder
        except OSError as e:
            raise type(e)(e.errno, e.strerror, os.fspath(path)) from e
        _sync(target.parent)


def _target(path: str | os.PathLike[str]) -> Path:
    name, target = os.fspath(path), Path(os.path.abspath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, f"there is no folder {target.parent}; expected one that exists", name
        )
    try:
        there = target.exists()
    except OSError as e:  # a name that is too long
        raise type(e)(e.errno, e.strerror, name) from e
    if there and not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is a file; expected a new folder", name)
    if there and any(target.iterdir()):
        raise FileExistsError(errno.EEXIST, "it is there; expected a new folder", name)
    return target


@contextmanager
def _part(target: Path) -> Iterator[Path]:
    """An empty folder beside the target, locked; gone at the end, unless it was renamed."""
    for number in itertools.count():
        folder, lock = target.with_name(f".{target.name[:50]}.{number}.part"), None
        try:
            lock = _create(folder, target)
            if lock is None:
                continue
            with lock:
                if not is_ours(lock, folder / LOCK):
                    continue
                try:
                    yield folder
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
            return
        except BaseException:  # an interrupt at any moment leaves nothing behind
            if lock is not None:
                lock.close()  # what is locked is not cleaned
            _clean(folder)
            raise


def _create(folder: Path, target: Path) -> IO[bytes] | None:
    """Makes the folder; the file that is to be its lock, or None where another process writes to
    it. It is locked where an interrupt closes it."""
    while True:
        try:
            folder.mkdir()
        except FileExistsError:
            if not _clean(folder):
                return None
            continue
        except OSError as e:
            words = f"can't write to the folder {target.parent}: {e.strerror}"
            raise type(e)(e.errno, words, str(target)) from e
        try:
            return open(folder / LOCK, "xb")
        except (FileNotFoundError, FileExistsError):  # it was taken for one that was left
            continue


def _clean(folder: Path) -> bool:
    """Deletes what a process that was killed has left; False if one may be writing to it."""
    lock = folder / LOCK
    try:
        with open(lock, "r+b") as file:
            if not lock_file(file, lock) or not is_named(file, lock):
                return False
            shutil.rmtree(folder, ignore_errors=True)
    except FileNotFoundError:
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # somebody else's, or this file system has no locks
        return False
    return not folder.exists()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
