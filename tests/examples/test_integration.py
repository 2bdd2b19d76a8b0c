"""The examples with other libraries run as a user runs them, and give what stock layers give."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "integration"
NEEDS = {
    "lightning": ("lightning",),
    "ignite": ("ignite",),
    "ogb": ("ogb", "pandas"),
    "graphgym": ("lightning", "yacs"),
}


def test_there_are_no_others() -> None:
    if not EXAMPLES.is_dir():
        pytest.skip("the examples are not beside these tests")
    assert {path.stem for path in EXAMPLES.glob("with_*.py")} == {f"with_{name}" for name in NEEDS}


@pytest.mark.parametrize("library", NEEDS)
def test_with(library: str, tmp_path: Path) -> None:
    for package in ("torch_geometric", *NEEDS[library]):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    words = [sys.executable, str(EXAMPLES / f"with_{library}.py")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    differences = re.findall(r"^\d\. .*; stock's differs by (\S+)$", done.stdout, re.MULTILINE)
    assert differences
    assert all(float(difference) < 1e-4 for difference in differences)
    assert re.search(r"\b\d+ HAG \(", done.stdout)
    assert not [*tmp_path.iterdir()]
