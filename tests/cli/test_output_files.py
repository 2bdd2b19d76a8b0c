"""Commands refuse, before the work, to write where they can't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hag_plugin.cli import main

from ..places import PLACES

# Commands that write one. There is no such graph, as would be said if the work began.
ABSENT = "absent.npz"
COMMANDS: dict[str, tuple[str, list[str]]] = {
    "build": (".npz", ["build", ABSENT]),
    "plot": (".svg", ["plot", ABSENT, "-o"]),
    "demo": (".png", ["demo", "--dataset", ABSENT, "--plot"]),
    "calibrate": (".json", ["calibrate", "--output"]),
    "plan": (".json", ["plan", "gcn", ABSENT, "-o"]),
    "probe": (".json", ["probe", "-o"]),
    "simulate": (".json", ["simulate", "gcn", ABSENT, "-o"]),
    "trace": (".json", ["simulate", "gcn", ABSENT, "--trace"]),
    "timeline": (".svg", ["simulate", "gcn", ABSENT, "--plot"]),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", COMMANDS)
def test_commands_refuse_before_the_work(
    tmp_path: Path, name: str, place: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("torch_geometric")
    suffix, arguments = COMMANDS[name]
    path, words = place(tmp_path, suffix)
    before = sorted(tmp_path.rglob("*"))
    assert main([*arguments, str(path)]) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert "% |" not in said.err  # a bar of progress
    assert str(path) in said.err
    assert ".part" not in said.err
    assert sorted(tmp_path.rglob("*")) == before
