"""`hag-plugin probe`: what it measures is what `plan` and `simulate` take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hag_plugin.cli import main
from hag_plugin.parallel.machine.collectives import COLLECTIVES
from hag_plugin.parallel.machine.topology import load

SIZES = ["--nodes", "240000", "--edges", "12000000", "--features", "100", "--halo-ratio", "2"]


@pytest.mark.slow
def test_probe_measures_a_machine_that_plan_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "machine.json")
    assert main(["probe", "--largest", "64K", "-o", path, "--quiet"]) == 0
    assert "reduce_scatter" in capsys.readouterr().out
    machine = load(path)
    assert (machine.num_devices, machine.backend) == (2, "gloo")
    assert {(f.collective, f.world_size) for f in machine.fits} == {(c, 2) for c in COLLECTIVES}
    for line in machine.fits:
        assert line.alpha >= 0
        assert line.beta >= 0
        assert machine.seconds(line.collective, 1e5) == line.alpha + line.beta * 1e5
    assert machine.device.flops > 1e6
    assert main(["plan", "gcn", *SIZES, "--topology", path]) == 0


def test_probe_refuses_what_it_cannot_measure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--world-sizes", "1"]) == 2
    assert "expected numbers of 2 or more" in capsys.readouterr().err


def test_measured_blocks_feed_the_simulator(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAG_PLUGIN_CACHE", str(tmp_path))
    words = ["--topology", "cpu2", "--nodes", "500", "--edges", "3000", "--features", "8",
             "--hidden", "8", "--layers", "2", "--quiet", "--json"]  # fmt: skip
    assert main(["probe", "--model", "gcn", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["blocks"]
    assert all(block["measured"] > 0 and block["analytic"] > 0 for block in found["blocks"])
    kept = Path(found["cache"]).read_text()
    assert main(["probe", "--model", "gcn", *words]) == 0  # from the cache, to the last bit
    assert json.loads(capsys.readouterr().out)["blocks"] == found["blocks"]
    assert main(["simulate", "gcn", *words, "--costs", "measured"]) == 0
    simulated = json.loads(capsys.readouterr().out)
    assert simulated["plan"]["costs"] == "measured"
    known, before = json.loads(Path(found["cache"]).read_text()), json.loads(kept)
    assert {key: known[key] for key in before} == before
    assert main(["probe", "--model", "gcn", "-o", "machine.json", *words]) == 2
