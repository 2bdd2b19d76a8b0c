"""The figures that pages state are those of the results that are kept."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch_geometric", reason="PyG is not installed")
pytest.importorskip("dgl", reason="DGL is not installed")

ROOT = Path(__file__).parents[2]
STALE = "is stale: run python -m examples.benchmark.measured_page"
# A ratio, a share or a time: of what is measured, such stand between marks alone.
FIGURE = re.compile(r"\d(?:x|\.\d+x| ?%| [mu]s| seconds)(?!\w)")

pytestmark = pytest.mark.skipif(
    not (ROOT / "examples/benchmark").is_dir(), reason="not in the project's folder"
)


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT))
    yield importlib.import_module("examples.benchmark.measured_page")
    sys.path.remove(str(ROOT))


def test_figures_are_those_of_the_results(script: Any) -> None:
    marks = []
    for path in script.PAGES:
        text = path.read_text()
        marks += [mark for _, mark, _ in script.MARKED.findall(text)]
        assert script.with_figures(text) == text, f"{path.name} {STALE}"
    assert {*marks} == {*script.MARKS}


def test_a_figure_that_is_changed_by_hand_is_found(script: Any) -> None:
    page = (ROOT / "docs/papers.md").read_text()
    changed = page.replace("(geometric mean ", "(geometric mean 1")
    assert changed != page
    assert script.with_figures(changed) == page


def test_the_page_of_what_was_measured_has_no_other_figures(script: Any) -> None:
    page = (ROOT / "docs/measured.md").read_text()
    by_hand = script.MARKED.sub("", page)
    assert FIGURE.search(page)
    assert FIGURE.findall(by_hand.replace("2x is half the time", "")) == []
