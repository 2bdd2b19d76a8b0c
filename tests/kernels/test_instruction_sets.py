"""The CPU kernels under each instruction set of this machine, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hag_plugin.kernels import _cpu

EVERY_ISA = "kernels"  # tests with this in their name run under each instruction set
FILES = {
    "aggregate": (
        "ops/test_aggregate_gradients.py",
        "hag/test_programs.py",
        f"kernels/{Path(__file__).name}",
    ),
    "weighted sum": ("ops/test_weighted_sum.py",),
}


@pytest.mark.skipif("HAG_PLUGIN_ISA" in os.environ, reason="runs under each instruction set")
@pytest.mark.parametrize("isa", _cpu.instruction_sets())
@pytest.mark.parametrize("operator", FILES)
def test_every_instruction_set(operator: str, isa: str) -> None:
    if isa == _cpu.instruction_set():
        pytest.skip("the tests themselves ran on it")
    files = [str(Path(__file__).parents[1] / name) for name in FILES[operator]]
    arguments = ["-q", "-x", "-k", EVERY_ISA, "-p", "no:cacheprovider", *files]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "--import-mode=importlib", *arguments],
        capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "HAG_PLUGIN_ISA": isa},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


def test_kernels_are_those_asked_for() -> None:
    forced = os.environ.get("HAG_PLUGIN_ISA")
    assert _cpu.instruction_set() == (forced or _cpu.instruction_sets()[-1])


def test_unknown_instruction_set() -> None:
    code = """
from hag_plugin.kernels import _cpu
try:
    _cpu.instruction_set()
except ValueError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "HAG_PLUGIN_ISA": "mmx"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'HAG_PLUGIN_ISA is "mmx"' in done.stdout
