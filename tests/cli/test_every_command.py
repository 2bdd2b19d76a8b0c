"""What holds for every command: options, JSON, and words where a package is missing."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hag_plugin.cli.main import _parser
from hag_plugin.cli.options import EXIT_CODES
from hag_plugin.extras import EXTRAS

from .runs import run_json


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each, as the command line has it."""
    (found,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {str(name): parser for name, parser in found.choices.items()}


COMMANDS = commands()
SIZES = "--nodes 2000 --edges 40000 --layers 2 --hidden 8"
PYG, DGL = "torch_geometric", "dgl"
# What each command does in a folder that `folder` made, and the packages that it can't do without.
LINES: list[tuple[str, set[str]]] = [
    ("demo --dataset karate --epochs 1 --hidden 4", {PYG}),
    ("demo --dataset digits --epochs 1 --hidden 4", {PYG, "sklearn"}),
    ("demo --framework dgl --graphs 20 --epochs 1 --hidden 4", {DGL}),
    ("demo --dataset g.txt --epochs 1 --hidden 4 --plot a.png", {PYG, "matplotlib"}),
    ("stats cliques", set()),
    ("stats g.txt", set()),
    ("stats karate", set()),
    ("stats g.mtx", {"scipy"}),
    ("stats g.parquet", {"pyarrow"}),
    ("build cliques g.hag.npz --check", set()),
    ("plot g.txt -o a.svg", {"matplotlib"}),
    ("report g.txt -o a.html", {"matplotlib"}),
    ("report g.txt --model gcn --layers 2 --hidden 8 -o b.html", {"matplotlib", PYG}),
    (f"plan gcn {SIZES}", {PYG}),
    ("plan net.py:dense --inputs 6x4 --devices 2 -o net.json", set()),
    ("explain-plan plan.json", set()),
    (f"explain-plan plan.json gcn {SIZES}", {PYG}),
    (f"simulate gcn {SIZES}", {PYG}),
    (f"simulate gcn {SIZES} --plot t.svg", {"matplotlib", PYG}),
    ("simulate net.py:dense --inputs 6x4 --devices 2", set()),
    ("probe --largest 1K", set()),
    (f"probe --model gcn {SIZES} --devices 2", {PYG}),
    ("partition g.txt --ranks 2 -o parts", set()),
    ("partition g.parquet --ranks 2 -o parts1", {"pyarrow"}),
    ("partition g.txt --ranks 2 -o parts2 --method metis", {"pymetis"}),
    ("partition dgl --ranks 2 -o parts3", {DGL}),
    ("calibrate --show", set()),
    ("--print-completion bash", {"shtab"}),
]
# Packages that are missing together: all, and all that PyG does without.
MANY = [[*EXTRAS], [package for package in EXTRAS if package != PYG]]
# Not for its JSON: test_demo runs them, or there is none.
ONCE = ("demo --dataset digits", "demo --dataset g.txt", "demo --framework", "--print")
LONG = ("demo", "probe")  # start processes
DAMAGED = ("partition dgl",)  # nothing is read that is not there where the package is

PLAN = """
import hag_plugin as hp
from torch_geometric.nn import GCN
counts = hp.parallel.GraphStats.assumed(2000, 40000)
graph = hp.parallel.trace(GCN(128, 8, 2, 16), counts, features=128)
hp.parallel.plan(graph, topology="pcie4x4").save("plan.json")
"""
# Runs command lines where packages can't be imported: a list of [exit code, stdout, stderr].
RUN = """
import io, json, shlex, sys
from contextlib import redirect_stderr, redirect_stdout
blocked, lines = set(json.loads(sys.argv[1])), json.loads(sys.argv[2])

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        missing = name.partition(".")[0] in blocked
        return None if missing else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
from hag_plugin.cli import main

if __name__ == "__main__":
    found = []
    for line in lines:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main(shlex.split(line))
        found.append((code, out.getvalue(), err.getvalue()))
    print(json.dumps(found))
"""


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of one graph; parts of DGL's, a plan and a table where these can be made."""
    found = tmp_path_factory.mktemp("files")
    pairs = [(a, b) for a in range(12) for b in range(12) if a != b]
    text = "".join(f"{a} {b}\n" for a, b in pairs)
    (found / "g.txt").write_text(text)
    banner = "%%MatrixMarket matrix coordinate pattern general\n"
    ones = "".join(f"{a + 1} {b + 1}\n" for a, b in pairs)
    (found / "g.mtx").write_text(f"{banner}12 12 {len(pairs)}\n{ones}")
    net = "import torch\n\ndense = torch.nn.Linear(4, 3)\n"
    (found / "net.py").write_text(net)
    (found / "dgl").mkdir()
    parts: dict[str, Any] = {"num_parts": 1, "part-0": {}, "node_map": {"_N": [[0, 12]]}}
    (found / "dgl" / "g.json").write_text(json.dumps(parts))
    if is_installed("pyarrow"):
        import pyarrow as pa
        import pyarrow.parquet as parquet

        columns = dict(zip("ab", np.array(pairs).T, strict=True))
        parquet.write_table(pa.table(columns), found / "g.parquet")
    if is_installed(PYG):
        python(found, "-c", PLAN)
    return found


def python(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"HAG_PLUGIN_CACHE": str(folder / "cache")}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment,
                          capture_output=True, text=True, check=False, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_command_is_run_here() -> None:
    assert {line.split()[0] for line, _ in LINES} - {"--print-completion"} == {*COMMANDS}
    assert set().union(*(needs for _, needs in LINES)) == {*EXTRAS}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_these(name: str) -> None:
    options = {option for action in COMMANDS[name]._actions for option in action.option_strings}
    assert {"--json", "--quiet", "--threads", "--help"} <= options
    assert EXIT_CODES in COMMANDS[name].format_help()
    assert EXIT_CODES in _parser().format_help()


def test_exit_codes_are_documented() -> None:
    page = Path(__file__).parents[2] / "docs" / "command_line.md"
    if not page.is_file():
        pytest.skip("no documents beside these tests")
    words = " ".join(page.read_text().split())
    for each in " ".join(EXIT_CODES.removeprefix("exit codes: ").split()).split("; "):
        code, _, meaning = each.partition(" ")
        assert f"| {code} | {meaning} |" in words


@pytest.mark.mostly_slow("stats g.txt", "explain-plan plan.json", "calibrate*")
@pytest.mark.parametrize("line", [line for line, _ in LINES if not line.startswith(ONCE)])
def test_every_command_prints_json(
    line: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in dict(LINES)[line]:
        pytest.importorskip(package)
    if line.startswith(DAMAGED):
        pytest.skip("there is nothing to read")
    if "plan.json" in line and not (folder / "plan.json").is_file():
        pytest.skip("the plan is one of PyG's")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HAG_PLUGIN_CACHE", str(folder / "cache"))
    words = [word.replace("parts", "parts-json") for word in line.split()]
    document, _ = run_json(capsys, *words, "--quiet")
    assert document["command"] == words[0]


@pytest.mark.slow
@pytest.mark.parametrize("blocked", [*([package] for package in EXTRAS), *MANY], ids=",".join)
def test_what_is_missing_is_named_with_its_extra(blocked: list[str], folder: Path) -> None:
    """And nothing that is piped has colours."""
    run = folder / "run.py"
    run.write_text(RUN)
    there = {package for package in EXTRAS if is_installed(package)}
    chosen = {}
    for line, needs in LINES:
        if needs & {*blocked}:
            chosen[line] = needs & {*blocked}
        elif blocked not in MANY:  # what does without runs where many are missing
            continue
        elif needs <= there and not line.startswith((*LONG, *DAMAGED)) and "plan.json" not in line:
            name = "-".join(blocked)[:20]
            chosen[line.replace("parts", f"parts-{name}")] = set()
        elif line == "explain-plan plan.json" and PYG in there:
            chosen[line] = set()
    out = python(folder, str(run), json.dumps(blocked), json.dumps([*chosen]))
    found = json.loads(out.splitlines()[-1])
    assert any(chosen.values())
    for (line, missing), (code, said, err) in zip(chosen.items(), found, strict=True):
        assert code == (2 if missing else 0), (line, err)
        assert "\x1b" not in said + err
        assert "Traceback" not in err
        named = [f'pip install "hag-plugin[{EXTRAS[package][1]}]"' for package in missing]
        if missing:
            assert any(words in err for words in named), (line, err)
            assert said == ""
