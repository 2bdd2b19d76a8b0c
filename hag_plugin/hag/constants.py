"""Which constants of the cost model are in force: measured on this machine once, kept in files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hag_plugin import devices, files
from hag_plugin.hag.calibration import quick_calibration
from hag_plugin.hag.rates import DEFAULT, Constants
from hag_plugin.kernels import _cpu
from hag_plugin.limits import limits
from hag_plugin.modes import outside_inference
from hag_plugin.version import __version__

FILE_FORMAT = "hag_plugin.costs"
FILE_VERSION = 5  # of the model, too: constants that were fitted to another one mislead
PATH_VARIABLE = "HAG_PLUGIN_COSTS"
MACHINE = ("processor", "instruction_set")  # that constants are of
DEPENDS_ON = (PATH_VARIABLE, "HAG_PLUGIN_CACHE", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "HOME")


class CostsError(ValueError):
    """A file does not hold cost constants."""


class _OtherVersionError(CostsError):
    pass


@dataclass(frozen=True)
class Found:
    """Constants and where they are from.

    Attributes:
        constants: those in force.
        source: "environment" (`HAG_PLUGIN_COSTS`), "own file" (of `hag-plugin calibrate`), "cache"
            (measured by an earlier process), "measured" (by this one) or "default".
        path: the file that holds them; None where none does.
    """

    constants: Constants
    source: str
    path: Path | None


# The constants in force -------------------------------------------------------------------------


def in_force() -> Constants:
    """The constants in force; see `found`."""
    return found().constants


def found() -> Found:
    """The constants in force and where they are from. Read, or measured, once a process.

    `HAG_PLUGIN_COSTS` names their file, or is empty for the defaults. Else they are those that
    `hag-plugin calibrate` measured on this processor, or those that the first process that needed
    them measured in about a second and left in the user's cache folder. A process that can't leave
    them there keeps them for itself.

    Raises:
        CostsError: the file does not hold constants.
        FileNotFoundError: `HAG_PLUGIN_COSTS` names a file that is not there.
    """
    key = tuple(map(os.environ.get, DEPENDS_ON))
    kept = _found.get(key)
    if kept is None:
        with _one_at_a_time:
            kept = _found.get(key) or _find()
            if len(_found) > 8:
                _found.clear()
            _found[key] = kept
    return kept


_found: dict[tuple[str | None, ...], Found] = {}
_one_at_a_time = threading.RLock()
_threads: int | None = None  # to measure with; None: as many as torch uses


def _after_fork() -> None:
    # Another thread may have held the lock, and the kernels use one thread from now on.
    global _one_at_a_time, _threads
    _one_at_a_time, _threads = threading.RLock(), 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _find() -> Found:
    named = os.environ.get(PATH_VARIABLE)
    if named is not None:
        if not named:
            return _DEFAULT
        path = Path(named)
        try:
            return Found(read_constants(path), "environment", path)
        except FileNotFoundError as e:
            words = f"{PATH_VARIABLE} names a file that is not there; expected one that "
            words += "`hag-plugin calibrate` wrote, or nothing, for the defaults"
            raise FileNotFoundError(errno.ENOENT, words, named) from e
    try:
        own = path_in_force()
        assert own is not None
        constants, about = _read(own)
    except (OSError, RuntimeError, _OtherVersionError):  # RuntimeError: there is no home
        return _of_this_machine()
    return _of_this_machine() if _is_foreign(about) else Found(constants, "own file", own)


_DEFAULT = Found(DEFAULT, "default", None)


def path_in_force() -> Path | None:
    """Where `hag-plugin calibrate` keeps constants: `HAG_PLUGIN_COSTS`, or the user's folder.

    None where `HAG_PLUGIN_COSTS` is set and empty: the defaults, whatever the user's folder holds.

    Raises:
        RuntimeError: the user has no home.
    """
    named = os.environ.get(PATH_VARIABLE)
    if named is not None:
        return Path(named) if named else None
    folder = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(folder) / "hag_plugin" / "costs.json"


# Of this machine --------------------------------------------------------------------------------


def here() -> dict[str, str]:
    """What constants depend on. It stands in their files."""
    return {
        "processor": devices.processor(),
        "instruction_set": _cpu.instruction_set(),
        "library": __version__,
    }


def cache_path() -> Path:
    """Where the constants of this machine are kept: a file for each kind, in the cache folder.

    Raises:
        RuntimeError: the user has no home.
    """
    key = json.dumps([FILE_VERSION, here()], sort_keys=True)
    name = f"costs-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"
    return files.cache_folder() / name


def _of_this_machine() -> Found:
    try:
        path = cache_path()
    except RuntimeError:
        return Found(_measure(), "measured", None)
    kept = _kept(path)
    if kept is None:
        with _alone(path):
            kept = _kept(path)  # somebody else was first
            if kept is None:
                return _measure_and_keep(path)
    return Found(kept, "cache", path)


def _measure() -> Constants:
    with outside_inference():
        return quick_calibration(_threads).constants


def _measure_and_keep(path: Path) -> Found:
    """Whoever is first to leave a file there decides for all."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)  # it is no good
    constants = _measure()
    with contextlib.suppress(OSError):
        _write(path, constants, here(), first=True)
    kept = _kept(path)
    source = "measured" if kept in (None, constants) else "cache"
    return Found(kept or constants, source, path if kept else None)


def _kept(path: Path) -> Constants | None:
    """The constants in a file of the cache folder; None if there are none of this machine."""
    try:
        constants, about = _read(path)
    except (OSError, CostsError):
        return None
    return constants if about == here() else None


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keeps other processes out, where that is possible. None waits too long for another one."""
    try:
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path.with_suffix(".lock"), "ab")  # noqa: SIM115
    except (ImportError, OSError):
        yield
        return
    # The system frees it when the process ends, however; forked children don't have it.
    with file:
        end = time.monotonic() + limits.calibration_wait
        while time.monotonic() < end:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as e:
                if e.errno not in (errno.EACCES, errno.EAGAIN):
                    break
            time.sleep(0.02)
        yield


# Files ------------------------------------------------------------------------------------------


def read_constants(path: str | os.PathLike[str]) -> Constants:
    """The constants in a file that `write_constants` wrote.

    Their `error` is at least 1 if the file says that they are of another processor.

    Raises:
        FileNotFoundError: there is no such file.
        CostsError: it does not hold constants of this version.
    """
    constants, about = _read(path)
    return replace(constants, error=max(1.0, constants.error)) if _is_foreign(about) else constants


def _is_foreign(about: Mapping[str, Any]) -> bool:
    """Whether it says that what it is about was measured on something else."""
    return any(about.get(name, here()[name]) != here()[name] for name in MACHINE)


def _read(path: str | os.PathLike[str]) -> tuple[Constants, dict[str, Any]]:
    advice = "; delete it, or run `hag-plugin calibrate`"
    name = os.fspath(path)
    try:
        document = files.read_json(path)
        kind = {key: document[key] for key in ("format", "version")}
        if kind != {"format": FILE_FORMAT, "version": FILE_VERSION}:
            words = f"it is {kind}; expected {FILE_FORMAT!r}, version {FILE_VERSION}"
            raise _OtherVersionError(f"{name} does not hold costs: {words}{advice}")
        return Constants.of(document["constants"]), {**document["about"]}
    except CostsError:
        raise
    except (ValueError, KeyError, TypeError) as e:
        words = f"there is no {e}" if isinstance(e, KeyError) else str(e)
        raise CostsError(f"{name} does not hold costs: {words}{advice}") from e


def write_constants(
    path: str | os.PathLike[str], constants: Constants, about: Mapping[str, Any]
) -> None:
    """Writes constants and what is to be known about them, `here()` at least.

    The file appears whole or not at all.
    """
    _write(path, constants, {**here(), **about})
    _found.clear()


def _write(
    path: str | os.PathLike[str],
    constants: Constants,
    about: Mapping[str, Any],
    first: bool = False,
) -> None:
    document = {
        "format": FILE_FORMAT,
        "version": FILE_VERSION,
        "constants": asdict(constants),
        "about": dict(about),
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with files.whole_file(path, first) as file:
        file.write(json.dumps(document, indent=2, allow_nan=False).encode() + b"\n")
