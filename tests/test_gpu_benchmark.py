"""The benchmark on a GPU, as far as it goes without one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmark" / "gpu.py"

pytestmark = pytest.mark.skipif(
    not SCRIPT.is_file(), reason="the benchmark is part of the repository, not of the wheel"
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=120
    )


def test_help() -> None:
    done = run("--help")
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch finds a GPU")
def test_refuses_without_a_card(tmp_path: Path) -> None:
    done = run("--quick", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "torch finds no GPU; expected a machine with a CUDA card" in done.stderr
    assert not list(tmp_path.iterdir())
