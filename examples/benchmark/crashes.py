"""Cells are measured in a child process; where it dies, a side loses its cell and the rest goes on.

The child notes which side it runs in a file that outlives it; the parent reads it, writes down that
the side crashed in this cell, and starts another child for the cells that are left.
"""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

LONGEST = 200  # bytes of a side's name
_note: mmap.mmap | None = None


def watch(path: Path) -> None:
    """From now on `entering` writes into this file."""
    global _note
    path.write_bytes(bytes(LONGEST))
    with open(path, "r+b") as file:
        _note = mmap.mmap(file.fileno(), LONGEST)


def entering(side: str) -> None:
    """Notes which side runs next; "" for none. Memory that the system keeps: no file is written."""
    if _note is not None:
        _note[:] = side.encode()[:LONGEST].ljust(LONGEST, b"\0")


def last_entered(path: Path) -> str:
    """The side that ran when the process that watched this file ended; "" where none did."""
    return path.read_bytes().rstrip(b"\0").decode(errors="replace") if path.exists() else ""


class ChildFailed(RuntimeError):
    """A child ended with an exit code of its own: it said why, and another would end alike."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


def died(command: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """Runs a command to its end; how it died, or None where it ended well.

    Raises:
        ChildFailed: it ended with an exit code other than 0.
    """
    code = subprocess.run(command, env={**os.environ, **environment}, check=False).returncode
    if code > 0:
        raise ChildFailed(code)
    if code == 0:
        return None
    try:
        name = f" ({signal.Signals(-code).name})"
    except ValueError:
        name = ""
    return f"crashed: signal {-code}{name}"
