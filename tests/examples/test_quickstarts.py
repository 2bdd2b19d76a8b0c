"""The quickstart of each framework runs as a user runs it, and its comparisons come out."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PACKAGES = {"pyg": "torch_geometric", "dgl": "dgl"}


@pytest.mark.parametrize("framework", PACKAGES)
def test_quickstart(framework: str, tmp_path: Path) -> None:
    pytest.importorskip(PACKAGES[framework], reason=f"{framework} is not installed")
    command = [sys.executable, str(EXAMPLES / f"quickstart_{framework}.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {line[:2] for line in done.stdout.splitlines()} >= {"1.", "2.", "3."}
    differences = re.findall(r"differs? by (\S+)", done.stdout)
    assert len(differences) == 2
    assert all(float(difference) < 1e-5 for difference in differences)
