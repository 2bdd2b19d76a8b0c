"""A schedule as a Chrome trace: open it in Perfetto (ui.perfetto.dev) or chrome://tracing."""

from __future__ import annotations

import json
import os
from typing import Any

from hag_plugin.files import write_whole
from hag_plugin.parallel.simulation.simulator import Schedule
from hag_plugin.parallel.simulation.tasks import KINDS

MICROSECONDS = 1e6


def chrome_trace(schedule: Schedule, title: str = "simulated") -> dict[str, Any]:
    """The trace as an object for JSON: one row for each device and link, in trace event format.

    A task that takes several resources is shown on each.

    Example:
        >>> from hag_plugin.parallel.simulation.simulator import simulate
        >>> from hag_plugin.parallel.simulation.tasks import Task, TaskGraph
        >>> trace = chrome_trace(simulate(TaskGraph.of([Task("gpu", 0.5)])))
        >>> [(e["ts"], e["dur"]) for e in trace["traceEvents"] if e["ph"] == "X"]
        [(0.0, 500000.0)]
    """
    graph = schedule.graph
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 0, "name": "process_name", "args": {"name": title}}
    ]
    for row, name in enumerate(graph.resources):
        events.append(
            {"ph": "M", "pid": 0, "tid": row, "name": "thread_name", "args": {"name": name}}
        )
        events.append({
            "ph": "M", "pid": 0, "tid": row, "name": "thread_sort_index",
            "args": {"sort_index": row},
        })  # fmt: skip
    for task in sorted(graph.tasks(), key=lambda t: (schedule.start[t], graph.key[t])):
        label = graph.label(task)
        for row in graph.occupied(task):
            events.append({
                "ph": "X", "pid": 0, "tid": row, "name": label, "cat": KINDS[graph.kind[task]],
                "ts": schedule.start[task] * MICROSECONDS,
                "dur": graph.duration[task] * MICROSECONDS,
                "args": {"ready_us": schedule.ready[task] * MICROSECONDS},
            })  # fmt: skip
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"title": title, "makespan_us": schedule.makespan * MICROSECONDS},
    }


def write_chrome_trace(
    schedule: Schedule, path: str | os.PathLike[str], title: str = "simulated"
) -> None:
    """Writes the trace to a JSON file. The file appears whole or not at all."""
    write_whole(path, json.dumps(chrome_trace(schedule, title), allow_nan=False).encode())
