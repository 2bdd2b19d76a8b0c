"""The examples in the docstrings run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

import hag_plugin

from .saving import PUBLIC

HERE = Path(hag_plugin.__file__).parent
MODULES = [
    ".".join(["hag_plugin", *path.relative_to(HERE).with_suffix("").parts])
    for path in sorted(HERE.rglob("*.py"))
    if not path.name.startswith("__") and "kernels" not in path.parts
]


class Finder(doctest.DocTestFinder):
    """Finds what is written in a module, wherever `saved.set_module` says that it belongs."""

    def _from_module(self, module: Any, object: Any) -> bool:
        if getattr(object, "__module__", None) in PUBLIC:
            parts = vars(object).values() if inspect.isclass(object) else [object]
            functions = [part for part in parts if inspect.isfunction(part)]
            return any(f.__globals__ is vars(module) for f in functions)
        found: bool = super()._from_module(module, object)  # type: ignore[misc]
        return found


def examples(name: str) -> list[doctest.DocTest]:
    finder, module = Finder(), importlib.import_module(name)
    found = finder.find(module)
    for cls in filter(inspect.isclass, vars(module).values()):
        if finder._from_module(module, cls):
            properties = [v.func for v in vars(cls).values() if isinstance(v, cached_property)]
            found += [test for f in properties for test in finder.find(f, module=module)]
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str) -> None:
    if "dgl" in name:
        pytest.importorskip("dgl", reason="DGL is not installed")
    found = examples(name)
    if any("to_dgl" in line.source for test in found for line in test.examples):
        pytest.importorskip("dgl", reason="DGL is not installed")
    runner = doctest.DocTestRunner()
    for test in found:
        runner.run(test)
    assert runner.summarize().failed == 0


def test_all_examples_are_found() -> None:
    for name in [name for name in MODULES if "dgl" not in name]:
        text = inspect.getsource(importlib.import_module(name))
        written = len(re.findall(r"^ *>>> ", text, re.MULTILINE))
        assert sum(len(test.examples) for test in examples(name)) == written, name
