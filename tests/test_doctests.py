"""The examples in the docstrings run."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import hag_plugin

HERE = Path(hag_plugin.__file__).parent
MODULES = [
    ".".join(["hag_plugin", *path.relative_to(HERE).with_suffix("").parts])
    for path in sorted(HERE.rglob("*.py"))
    if not path.name.startswith("__") and "kernels" not in path.parts
]
# Classes say that they belong to these.
MODULES += ["hag_plugin", *(f"hag_plugin.{n}" for n in ("dgl", "parallel", "pyg", "sequence"))]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str) -> None:
    if "dgl" in name:
        pytest.importorskip("dgl", reason="DGL is not installed")
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", ()):
        getattr(module, public)  # where names are imported when they are first used
    result = doctest.testmod(module)
    assert result.failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = [name for name in MODULES if "dgl" not in name]
    tests = [t for name in names for t in finder.find(importlib.import_module(name))]
    assert sum(bool(t.examples) for t in tests) >= 5
