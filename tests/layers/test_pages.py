"""The lists of layers in docs/ are what the tables say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dgl", reason="DGL is not installed")

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "benchmark" / "layers_page.py"
STALE = "is stale: run python -m examples.benchmark.layers_page"

pytestmark = pytest.mark.skipif(
    not SCRIPT.is_file(), reason="the pages are part of the repository, not of the wheel"
)


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("layers_page", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(script: Any) -> None:
    assert script.PAGE.read_text() == script.page(), f"docs/layers.md {STALE}"


def test_the_lists_are_up_to_date(script: Any) -> None:
    texts = [path.read_text() for path in script.LISTS]
    marks = [mark[1] for text in texts for mark in script.MARKED.findall(text)]
    assert marks == list(script.RECORDS)
    assert texts == [script.with_lists(text) for text in texts], f"docs/ {STALE}"


def test_a_list_that_is_changed_by_hand_is_found(script: Any) -> None:
    text = script.LISTS[0].read_text()
    changed = text.replace("-->SAGEConv, ", "-->")
    assert changed != text
    assert script.with_lists(changed) == text
