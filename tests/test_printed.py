"""What pages say that their code and commands print is what these print."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from hag_plugin.cli import main

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(python|console|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
NUMBER = re.compile(r"\d[\d,]*\.?\d*")
LEFT_OUT = "..."  # any lines
ROUNDING = 0.02  # of what several processes train


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints; ours runs in this process."""
    if words[0] == "hag-plugin":
        capsys.readouterr()
        code = main([*words[1:], "--quiet"] if words[1] == "partition" else words[1:])
        said = capsys.readouterr()
        assert code == 0, said.err
        return said.out
    assert words[0] == "torchrun"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words[1:]]
    done = subprocess.run(launch, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in NUMBER.findall(text)]


def check(told: str, found: str, rounding: float = 0.0) -> None:
    """Raises AssertionError where a page says something else than what was printed."""
    parts = [re.escape(NUMBER.sub("0", part.strip())) for part in told.split(LEFT_OUT)]
    pattern = "(?s:.*)".join(parts)
    same = re.fullmatch(pattern, NUMBER.sub("0", found).strip())
    assert same, f"a page says\n{told}\nand printed is\n{found}"
    if LEFT_OUT not in told:
        assert numbers(found) == pytest.approx(numbers(told), rel=rounding, abs=0.0)
    else:  # whole lines
        lines = [line for line in told.splitlines() if line.strip() not in ("", LEFT_OUT)]
        assert [line for line in lines if line not in found.splitlines()] == []


def blocks(path: Path) -> Iterator[tuple[str, str, str]]:
    """Each block of a page, and what the next one says is printed."""
    if not path.is_file():
        pytest.skip("no documents beside these tests")
    found = [*BLOCK.findall(path.read_text()), ("", "")]
    for (kind, code), (after, told) in itertools.pairwise(found):
        yield kind, code, told if after == "text" else ""


# What a reader of docs/large_graphs.md has beside what stands there.
MODELS = """
from torch_geometric.nn import GCN

model = GCN(64, 128, 2, 8)
"""


@pytest.mark.filterwarnings("ignore:Dataloader CPU affinity")
def test_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the arrays of a graph to ranks that train on its parts."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(MODELS, names)
    ran = 0
    for kind, code, told in blocks(ROOT / "docs/large_graphs.md"):
        if kind == "console":
            for line, expected in COMMAND.findall(code):
                words = shlex.split(line)
                rounding = ROUNDING if words[0] == "torchrun" else 0.0
                check(expected, printed(words, capsys), rounding)
                ran += 1
        elif code.startswith("# train.py"):
            Path("train.py").write_text(code)
        elif kind == "python" and "parallelize(" not in code:
            with redirect_stdout(StringIO()) as said:
                exec(code, names)
            check(told, said.getvalue())
            ran += 1
    assert ran > 7


def test_the_gallery(
    shared_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [
        found
        for _, code, _ in blocks(ROOT / "examples/gallery/README.md")
        for found in COMMAND.findall(code)
    ]
    assert len(commands) == 3
    for line, expected in commands:
        words = shlex.split(line.replace("DIR", str(shared_data / "npz")))
        found = printed(words, capsys)
        if expected:
            check(expected, found)


@pytest.mark.parametrize("wrong", ["2 nodes", "1 nodes and", "1 node", "...\n2 nodes", ""])
def test_other_words_and_numbers_are_found(wrong: str) -> None:
    check("1 nodes", "1 nodes\n")
    check("...\n1 nodes\n...", "0 edges\n1 nodes\n2 lines\n")
    with pytest.raises(AssertionError):
        check(wrong, "1 nodes\n")
