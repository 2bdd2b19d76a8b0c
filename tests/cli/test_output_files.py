"""Commands refuse, before the work, to write where they can't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hag_plugin.cli import build, calibration, main, plan, plot, simulate
from hag_plugin.demo import compare

from ..places import PLACES

# Commands that write one, each with what must not have run yet when it is refused.
COMMANDS: dict[str, tuple[str, list[str], list[tuple[Any, str]]]] = {
    "build": (".npz", ["build", "karate"], [(build, "search")]),
    "plot": (".svg", ["plot", "karate", "-o"], [(plot, "search")]),
    "demo": (".png", ["demo", "--dataset", "karate", "--plot"], [(compare, "compare")]),
    "calibrate": (".json", ["calibrate", "--output"], [(calibration, "calibrate")]),
    "plan": (".json", ["plan", "gcn", "karate", "-o"], [(plan, "graph_of")]),
    "probe": (".json", ["probe", "-o"], []),
    "simulate": (".json", ["simulate", "gcn", "karate", "-o"], [(simulate, "graph_of")]),
    "trace": (".json", ["simulate", "gcn", "karate", "--trace"], [(simulate, "graph_of")]),
    "timeline": (".svg", ["simulate", "gcn", "karate", "--plot"], [(simulate, "graph_of")]),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", COMMANDS)
def test_commands_refuse_before_the_work(
    tmp_path: Path, name: str, place: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("torch_geometric")

    def works(*_: Any, **__: Any) -> None:
        raise AssertionError("the work began")

    suffix, arguments, work = COMMANDS[name]
    for owner, function in work:
        monkeypatch.setattr(owner, function, works)
    path, words = place(tmp_path, suffix)
    before = sorted(tmp_path.rglob("*"))
    assert main([*arguments, str(path), "--quiet"]) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert str(path) in said.err
    assert ".part" not in said.err
    assert sorted(tmp_path.rglob("*")) == before
