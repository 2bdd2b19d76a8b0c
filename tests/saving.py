"""What a pickle names of the package, and what it holds in a process that has never seen it."""

from __future__ import annotations

import io
import pickle
import pickletools
import subprocess
import sys
from pathlib import Path
from typing import Any
from zipfile import ZipFile

PUBLIC = ("hag_plugin", *(f"hag_plugin.{name}" for name in ("dgl", "parallel", "pyg", "sequence")))


def modules_named(content: bytes) -> set[str]:
    """The modules of the package that a pickle, or a file of `torch.save`, names."""
    if content[:2] == b"PK":
        with ZipFile(io.BytesIO(content)) as archive:
            (name,) = [n for n in archive.namelist() if n.endswith("/data.pkl")]
            content = archive.read(name)
    found, strings = set(), [""]
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "GLOBAL":
            found.add(argument.split(" ")[0])
        elif opcode.name == "STACK_GLOBAL":
            found |= {s for s in strings if s.startswith("hag_plugin")}  # or a memo of one of them
        elif isinstance(argument, str):
            strings.append(argument)
    return {name for name in found if name.partition(".")[0] == "hag_plugin"}


def assert_names_stay(value: Any) -> None:
    """A pickle names places that stay."""
    assert modules_named(pickle.dumps(value)) <= {*PUBLIC}


def run_fresh(code: str, folder: Path) -> str:
    """What Python code prints in a process of its own, in a folder."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
