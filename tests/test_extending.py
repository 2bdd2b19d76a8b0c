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
MOST_FILES = {
    "A PyG layer": 3,
    "A DGL layer": 3,
    "A DGL layer of attention": 4,
    "The planner's part of a layer": 1,
    "A reducer": 8,
    "A strategy": 2,
    "A device": 1,
    "A command": 2,
}


def test_every_section_is_there() -> None:
    assert list(SECTIONS) == list(MOST_FILES)


@pytest.mark.parametrize("name", MOST_FILES)
def test_its_files_exist_and_are_few(name: str) -> None:
    files = re.findall(r"^\d+\. `([^`]+)`( \(new\))?", SECTIONS[name], re.M)
    assert 1 <= len(files) <= MOST_FILES[name]
    for path, new in files:
        assert (ROOT / path).is_file() != bool(new), path


def test_every_path_exists() -> None:
    """All that is named, wherever on the page, but for what is to be made."""
    text = (ROOT / "docs/extending.md").read_text()
    new = {"hag_plugin/cli/hash.py"}
    named = set(re.findall(r"(?:hag_plugin|kernels|tests|examples|docs)/[\w/.]+\w", text)) - new
    assert len(named) > 20
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_the_command_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", SECTIONS["A command"], re.M | re.S)
    command = types.ModuleType("hash")
    exec(code, command.__dict__)
    edges = tmp_path / "edges.txt"
    edges.write_text("0 1\n1 2\n")
    assert run(["hash", str(edges), "--quiet"], (*COMMANDS, command)) == 0
    assert len(capsys.readouterr().out.split()) == 2
