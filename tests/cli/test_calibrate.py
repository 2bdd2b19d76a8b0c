"""`hag-plugin calibrate` writes what searches read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import hag_plugin as hp
from hag_plugin.cli import main
from hag_plugin.hag import calibration, constants
from hag_plugin.hag.rates import Constants
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
