"""docs/extending.md: its files exist, its lists are short and its command runs."""

from __future__ import annotations

import re
import types
from pathlib import Path

import pytest

from hag_plugin.cli import main as run
from hag_plugin.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
SECTIONS = dict(
    re.findall(
        r"^## (.+?)\n(.*?)(?=^## |\Z)", (ROOT / "docs/extending.md").read_text(), re.M | re.S
    )
)
MOST_FILES = {"A command": 3, "A device": 1}


def test_every_section_is_there() -> None:
    assert list(SECTIONS) == list(MOST_FILES)


@pytest.mark.parametrize("name", MOST_FILES)
def test_its_files_exist_and_are_few(name: str) -> None:
    files = re.findall(r"^\d+\. `([^`]+)`( \(new\))?", SECTIONS[name], re.M)
    assert 1 <= len(files) <= MOST_FILES[name]
    for path, new in files:
        assert (ROOT / path).is_file() != bool(new), path


def test_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", SECTIONS["A command"], re.M | re.S)
    command = types.ModuleType("hash")
    exec(code, command.__dict__)
    monkeypatch.setitem(run.__globals__, "COMMANDS", (*COMMANDS, command))
    edges = tmp_path / "edges.txt"
    edges.write_text("0 1\n1 2\n")
    assert run(["hash", str(edges), "--quiet"]) == 0
    assert len(capsys.readouterr().out.split()) == 2
