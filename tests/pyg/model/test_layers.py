"""The page of layers is what the table says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from hag_plugin.pyg import layers

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "examples" / "benchmark" / "layers_page.py"

pytestmark = pytest.mark.skipif(
    not SCRIPT.is_file(), reason="the page is part of the repository, not of the wheel"
)


@pytest.fixture(autouse=True)
def few_messages() -> None:
    """In place of the fixture that changes a number that the page gives."""


def test_the_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("layers_page", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), (
        "docs/layers.md is stale: run python -m examples.benchmark.layers_page"
    )


def test_the_readme_names_every_layer() -> None:
    text = (ROOT / "README.md").read_text()
    assert [row.name for row in layers() if row.name not in text] == []
