"""Pictures of a simulated step."""

from __future__ import annotations

from pathlib import Path

import pytest

from hag_plugin.parallel import plan, simulate_plan, space_of
from hag_plugin.parallel.report.timeline_plot import plot_timeline

from ..models import skipping


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_pictures(tmp_path: Path, suffix: str) -> None:
    space = space_of(skipping(), "k80x4")
    schedule = simulate_plan(plan(space.graph, topology="k80x4"), space)
    plot_timeline(schedule, tmp_path / f"timeline.{suffix}", "a title")
    magic = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert (tmp_path / f"timeline.{suffix}").read_bytes().startswith(magic)
    with pytest.raises(ValueError, match="gif"):
        plot_timeline(schedule, tmp_path / "timeline.gif", "a title")
