"""The trace of a simulated step, as viewers read it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from hag_plugin.parallel import plan, simulate_plan, space_of
from hag_plugin.parallel.report.chrome_trace import chrome_trace, write_chrome_trace

from ..models import skipping


def test_the_trace_says_what_the_schedule_says(tmp_path: Path) -> None:
    space = space_of(skipping(), "pcie4x4")
    schedule = simulate_plan(plan(space.graph, topology="pcie4x4"), space)
    write_chrome_trace(schedule, tmp_path / "trace.json", "a title")
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert trace == chrome_trace(schedule, "a title")
    bars = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    rows = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert list(rows.values()) == schedule.graph.resources
    for row in rows:
        spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in bars if e["tid"] == row)
        for (_, end), (start, _) in itertools.pairwise(spans):
            assert start >= end - 1e-6
    assert max(e["ts"] + e["dur"] for e in bars) == pytest.approx(schedule.makespan * 1e6)
    assert list(tmp_path.iterdir()) == [tmp_path / "trace.json"]
