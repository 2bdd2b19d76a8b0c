"""Bars: text where there is a terminal, or none; a widget in a notebook that has widgets."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hag_plugin.progress import bar, shares


@pytest.mark.parametrize("progress", [True, None, False])
def test_bars_are_shown_when_asked_for(
    progress: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a word, those of work that takes longer than this does not."""
    with shares("counting", progress) as report:
        report(0.5)
        report(1.0, "done")
    assert list(bar(progress, iterable=[1, 2], desc="items")) == [1, 2]
    said = capsys.readouterr()
    assert said.out == ""
    assert ("counting" in said.err, "items" in said.err) == (progress is True,) * 2


# IPython says in which kind of shell it runs.
NOTEBOOK = """
import sys, types, warnings
shell = types.SimpleNamespace(config={"IPKernelApp": {}}, kernel=None)
sys.modules["IPython"] = types.ModuleType("IPython")
sys.modules["IPython"].get_ipython = lambda: shell
sys.modules["ipywidgets"] = None
warnings.simplefilter("error")
from hag_plugin.progress import shares
with shares("counting", True) as report:
    report(1.0)
"""


def test_a_notebook_without_widgets_shows_text() -> None:
    done = subprocess.run([sys.executable, "-c", NOTEBOOK], capture_output=True, text=True,
                          check=True, timeout=100)  # fmt: skip
    assert "counting" in done.stderr
    assert "Warning" not in done.stderr
