"""The soak says what grows, and runs: `python tests/soak/run.py` is the soak itself."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch_geometric", reason="PyG is not installed")
from .run import Held, Kept, compared, verdict


def rows(count: int, rss: float = 0.0, threads: float = 0.0, files: float = 0.0) -> list[Held]:
    """What is held where each round adds so much."""
    return [
        Held(i, i, int(2e8 + rss * i), int(4 + threads * i), int(9 + files * i))
        for i in range(count)
    ]


@pytest.mark.parametrize("grows", [{"rss": 2e5}, {"threads": 0.1}, {"files": 0.1}])
def test_what_grows_is_said(grows: dict[str, float]) -> None:
    flat, words = verdict(rows(100, **grows))
    assert not flat
    assert words.startswith("GREW")


def test_what_settles_is_flat() -> None:
    warm = [Held(i, i, int(1e8 + 1e7 * i), 4 + i, 9) for i in range(10)]
    assert verdict([*warm, *rows(90, rss=2e3)])[0]
    assert not verdict(rows(11))[0]  # too few to tell


def kept(rss: float, ours: int = 0, tensors: int = 0) -> list[Kept]:
    """What is kept where each compilation adds so much, beside what the first one adds."""
    return [Kept(int(5e8 + 9e7 * (i > 0) + rss * i), 9 + ours * i, tensors * i) for i in range(5)]


@pytest.mark.parametrize(
    "ours", [kept(9e6 * 1.7), kept(9e6, ours=1), kept(9e6, tensors=2), kept(0, ours=1)]
)
def test_what_compilations_leave_is_said(ours: list[Kept]) -> None:
    flat, words = compared(ours, kept(9e6, tensors=1))
    assert not flat
    assert words.startswith("MORE THAN STOCK")


def test_what_stock_leaves_may_be_left() -> None:
    assert compared(kept(9e6 * 1.3, tensors=1), kept(9e6, tensors=1))[0]
    assert compared(kept(0), kept(0))[0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_round_runs(tmp_path: Path) -> None:
    script, path = Path(__file__).parent / "run.py", tmp_path / "soak.csv"
    words = [sys.executable, str(script), "--seconds", "0", "--compilations", "0"]
    words += ["--csv", str(path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert "too few to tell" in done.stdout, done.stderr
    with path.open() as file:
        (row, *_) = csv.DictReader(file)
    assert int(row["rss"]) > 1e7
