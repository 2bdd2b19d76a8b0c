"""The command line: help, exit codes, and plain words for what is wrong."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

import hag_plugin as hp
from hag_plugin.cli import main
from hag_plugin.cli.main import COMMANDS, _parser

from .runs import refuse

NAMES = [command.__name__.rpartition(".")[2].replace("_", "-") for command in COMMANDS]


@pytest.mark.parametrize("name", NAMES)
def test_help_has_examples_that_parse(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main([name, "--help"]) == 0
    examples = capsys.readouterr().out.partition("examples:\n")[2].split("\n")
    lines = [line.partition(">")[0].split() for line in examples if line]
    assert lines
    for program, *words in lines:
        assert program == "hag-plugin"
        assert _parser().parse_args(words).command == name


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert hp.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stats", "nope"], "built-in graph (collaboration, digits"),
        (["stats", "nope.npz"], "nope.npz: no such file"),
        (["stats", "karate", "--method", "best"], "invalid choice: 'best'"),
        (["stats", "karate", "--width", "0"], "'0'; expected an integer, 1 or more"),
        (["stats", "karate", "--seed", "-1"], "expected an integer, 0 or more"),
        (["stats", "karate", "--threads", "x"], "'x'; expected an integer"),
        (["build", "karate", "out.bin"], "expected a name that ends in .npz"),
        (["build", "karate", "nowhere/out.npz"], "there is no folder nowhere"),
        (["demo", "--dataset", "karate", "--plot", "a.doc"], "expected a name that ends in .png"),
        (["demo", "--graphs", "3", "--quiet"], "3 graphs; the demo needs 5 or more"),
        (["stats", "karate", "--graphs", "3"], '(--graphs) is for "collaboration" only'),
        (["stats", "karate", "--undirected"], "for edge lists only"),
        (["demo", "--epochs", "0"], "'0'; expected an integer, 1 or more"),
        (["nothing"], "invalid choice: 'nothing'"),
        ([], "COMMAND"),
    ],
)
def test_wrong_input_is_named(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert words in refuse(capsys, *arguments)


def test_interrupt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(io.RawIOBase):
        def readall(self) -> bytes:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Interrupted()))
    assert "interrupted" in refuse(capsys, "stats", "-", code=130)
