"""A picture of a schedule: a row for each device and link, a bar for each task."""

from __future__ import annotations

import io
import os
from pathlib import Path

from hag_plugin.extras import needed_by
from hag_plugin.files import check_output, write_whole
from hag_plugin.parallel.simulation.simulator import Schedule
from hag_plugin.parallel.simulation.tasks import KINDS

SUFFIXES = (".png", ".svg", ".pdf")
COLOURS = dict(zip(KINDS, ("#4477aa", "#66ccee", "#ee6677", "#ccbb44", "#228833"), strict=True))
MAX_ROWS = 64


def check_timeline_path(path: str | os.PathLike[str]) -> None:
    """Raises ValueError, OSError or ImportError, before any work, where it can't be drawn to."""
    check_output(path, SUFFIXES, "plot")
    with needed_by("a timeline"):
        import matplotlib.figure  # noqa: F401


def plot_timeline(schedule: Schedule, path: str | os.PathLike[str], title: str) -> None:
    """Draws a schedule; idle rows are left out, and rows past the busiest `MAX_ROWS`.

    Raises:
        ValueError: the name has no known ending.
        ImportError: matplotlib is missing.
    """
    check_timeline_path(path)
    from matplotlib.figure import Figure  # no pyplot: no display, no global state
    from matplotlib.patches import Patch

    graph = schedule.graph
    busy = list(schedule.busy().values())
    working = [row for row, seconds in enumerate(busy) if seconds]
    shown = sorted(sorted(working, key=lambda row: -busy[row])[:MAX_ROWS])
    place = {row: i for i, row in enumerate(shown)}
    bars: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for task in graph.tasks():
        for row in graph.occupied(task):
            if row in place:
                span = (schedule.start[task] * 1e3, graph.duration[task] * 1e3)
                bars.setdefault((place[row], KINDS[graph.kind[task]]), []).append(span)
    figure = Figure(figsize=(11, 1.2 + 0.24 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for (row, kind), spans in sorted(bars.items()):
        axes.broken_barh(sorted(spans), (row - 0.42, 0.84), color=COLOURS[kind], linewidth=0)
    kinds = [kind for kind in KINDS if any(k == kind for _, k in bars)]
    axes.set_yticks(range(len(shown)), [graph.resources[row] for row in shown], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, max(schedule.makespan * 1e3, 1e-9))
    axes.set_xlabel("milliseconds, simulated")
    left_out = len(working) - len(shown)
    axes.set_title(title + (f" ({left_out} less busy rows left out)" if left_out else ""))
    if kinds:
        handles = [Patch(color=COLOURS[kind], label=kind) for kind in kinds]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(kinds), fontsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, format=Path(path).suffix[1:].lower(), dpi=120)
    write_whole(path, picture.getvalue())
