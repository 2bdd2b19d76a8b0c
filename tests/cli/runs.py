"""Commands run in the test's own process: the document that one prints, or what it refuses with."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from hag_plugin.cli import main


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], str]:
    """The document a command prints with --json, and what it says on stderr."""
    code = main([*arguments, "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    document = json.loads(captured.out)  # nothing else is on stdout
    assert {"machine", "versions", "date"} <= document.keys()
    assert document["versions"]["torch"] == torch.__version__
    return document, captured.err


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """What a command says on stderr when it refuses, in one paragraph without a traceback."""
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err
