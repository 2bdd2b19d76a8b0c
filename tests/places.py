"""Where a file can't be written: a place in a folder, and what is wrong with it."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def missing(folder: Path, suffix: str) -> tuple[Path, str]:
    return folder / "no" / f"out{suffix}", "there is no folder"


def a_folder(folder: Path, suffix: str) -> tuple[Path, str]:
    (folder / f"out{suffix}").mkdir()
    return folder / f"out{suffix}", "it is a folder"


def below_a_file(folder: Path, suffix: str) -> tuple[Path, str]:
    (folder / "file").write_text("")
    return folder / "file" / f"out{suffix}", "there is no folder"


def too_long(folder: Path, suffix: str) -> tuple[Path, str]:
    return folder / f"{'x' * 300}{suffix}", os.strerror(errno.ENAMETOOLONG)


def unwritable(folder: Path, suffix: str) -> tuple[Path, str]:
    return Path("/proc") / f"out{suffix}", "can't write to the folder /proc"


PLACES = [missing, a_folder, below_a_file, too_long, unwritable]
