"""The benchmark on a GPU, as far as it goes without one."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "examples" / "benchmark" / "gpu.py"

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


@pytest.mark.parametrize(("codes", "passed"), [((0, 0), True), ((0, 1), False), ((1,), False)])
def test_tests_run_once_more_under_the_sanitizer(
    monkeypatch: pytest.MonkeyPatch, codes: tuple[int, ...], passed: bool
) -> None:
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.syspath_prepend(str(SCRIPT.parents[1]))
    gpu = importlib.import_module("benchmark.gpu")
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, codes[len(commands) - 1])

    monkeypatch.setattr(gpu.shutil, "which", lambda tool, path: f"/cuda/{tool}")
    monkeypatch.setattr(gpu.subprocess, "run", run)
    assert gpu.run_tests() is passed
    assert len(commands) == len(codes)
    for test in gpu.TESTS:
        assert test in commands[0]
        assert (gpu.ROOT / test).exists()
    assert [command[0] for command in commands[1:]] == ["/cuda/compute-sanitizer"] * (
        len(codes) - 1
    )
    sources = "".join(p.read_text() for p in (gpu.ROOT / gpu.TESTS[0]).glob("test_*.py"))
    for word in gpu.MEMCHECK:
        assert word in sources
