"""All figures and tables: `python -m examples.reproduce --root DIR`, from the repository's root."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a folder: the repository's root goes where its folder stood
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    __package__ = "examples.reproduce"

from .hag_steps import run

if __name__ == "__main__":
    sys.exit(run())
