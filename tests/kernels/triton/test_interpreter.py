"""Runs the tests in kernels/ in a process of its own, whose Triton interprets on the CPU.

The variable must be set before Triton is first imported, and torch imports it in passing.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def test_kernels_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(Path(__file__).parent / "kernels")],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"^(\d+) passed in", done.stdout, re.MULTILINE)  # and nothing skipped
    assert passed, done.stdout
    assert int(passed[1]) > 50
