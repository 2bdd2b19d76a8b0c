"""`hag-plugin build`."""

from __future__ import annotations

from pathlib import Path

import pytest

import hag_plugin as hp
from hag_plugin.data import datasets

from .runs import run_json


def test_build_writes_what_stats_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    built, _ = run_json(capsys, "build", "cliques", str(path), "--self-loops", "fill", "--check")
    assert built["file_bytes"] == path.stat().st_size
    hag = hp.HAG.load(path)
    hag.check(datasets.load("cliques").edge_index)
    found, _ = run_json(capsys, "stats", str(path), "--self-loops", "fill", "--check")
    assert found["stats"] == built["stats"], "the file's program, not a new search"
