"""`hag-plugin calibrate` writes what searches read."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import hag_plugin as hp
from hag_plugin.cli import main
from hag_plugin.hag import calibration, constants
from hag_plugin.hag.rates import DEFAULT, Constants
from hag_plugin.testing import limits


def test_calibrate_writes_what_searches_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "folder" / "costs.json"
    monkeypatch.setenv("HAG_PLUGIN_COSTS", str(path))
    with pytest.raises(FileNotFoundError):
        constants.in_force()
    with limits(calibration_step=len(calibration.SHAPES) - 1):  # the first and the last of them
        assert main(["calibrate", "--rounds", "1", "--json", "--quiet"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["output"] == str(path)
    found = constants.in_force()
    assert found.digest == document["digest"]
    assert found == Constants.of(document["constants"])
    assert found.error == document["largest_error"]
    about = json.loads(path.read_bytes())["about"]
    assert {**about, **constants.here()} == about
    assert list(path.parent.iterdir()) == [path]  # nothing half-written is left
    hag = hp.build_hag(torch.tensor([[0, 1], [1, 0]]), num_nodes=2)
    assert hag.options.constants == found.digest
    hag.save(tmp_path / "a.hag.npz")
    assert hp.HAG.load(tmp_path / "a.hag.npz").options == hag.options


def test_calibrate_writes_to_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(constants.PATH_VARIABLE, str(tmp_path / "new" / "costs.json"))
    with limits(calibration_step=len(calibration.SHAPES) - 1):
        assert main(["calibrate", "--rounds", "1", "--quiet"]) == 0
    assert (tmp_path / "new" / "costs.json").is_file()


def test_show_says_where_they_are_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """First as a user who set nothing sees it, then with ever more set."""

    def shown() -> tuple[str, dict[str, Any]]:
        assert main(["calibrate", "--show"]) == 0
        text = capsys.readouterr().out
        assert main(["calibrate", "--show", "--json"]) == 0
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        found = constants.found()
        assert (document["source"], document["digest"]) == (found.source, found.constants.digest)
        assert document["path"] == (None if found.path is None else str(found.path))
        assert Constants.of(document["constants"]) == found.constants
        assert re.search(rf"^error +{found.constants.error:.4g} +1$", text, re.MULTILINE)
        return text.splitlines()[-1], document

    monkeypatch.delenv(constants.PATH_VARIABLE)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HAG_PLUGIN_CACHE", "/proc/nowhere")
    with limits(calibration_step=len(calibration.QUICK_SHAPES), calibration_seconds=0.0):
        assert shown()[0] == "In force: measured just now, kept in memory alone."
        monkeypatch.setenv("HAG_PLUGIN_CACHE", str(tmp_path / "cache"))
        path = constants.cache_path()
        assert shown()[0] == f"In force: measured just now, kept in {path}."
        monkeypatch.setenv("HOME", str(tmp_path))  # as a new process
        assert shown()[0] == f"In force: measured when they were first needed, from {path}."
    own = constants.path_in_force()
    assert own is not None
    constants.write_constants(own, replace(DEFAULT, error=0.125), {})
    text, document = shown()
    assert text == f"In force: measured by `hag-plugin calibrate`, from {own}."
    assert document["constants"]["error"] == 0.125
    monkeypatch.setenv(constants.PATH_VARIABLE, str(own))
    assert shown()[0] == f"In force: from {own}, which HAG_PLUGIN_COSTS names."
    monkeypatch.setenv(constants.PATH_VARIABLE, "")
    assert shown()[0] == "In force: the defaults, since HAG_PLUGIN_COSTS is empty."
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "hag_plugin"]
