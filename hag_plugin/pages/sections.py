"""The parts of pages: of a graph and its HAG, of a model, of a plan."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from hag_plugin.arguments import brief, check_kind
from hag_plugin.hag.build import build_hag
from hag_plugin.hag.candidates import PLAIN, REORDERED, SHARED
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import SelfLoops
from hag_plugin.notebook import html_table
from hag_plugin.pages.bars import bars
from hag_plugin.pages.layers import ModelSeconds, figures, measure_layers
from hag_plugin.parallel.graphs.stats import GraphStats
from hag_plugin.parallel.machine.topology import Topology
from hag_plugin.parallel.model.inputs import ModelCall, plain
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.report.timeline_plot import check_timeline_path, plot_timeline
from hag_plugin.parallel.search.plan import Plan
from hag_plugin.parallel.search.planner import machine_of, space_of
from hag_plugin.parallel.simulation.plan_tasks import simulate_plan
from hag_plugin.units import milliseconds

WIDTHS = (8, 16, 32, 64, 128, 256, 512)
BARS = ("as it was", "accelerated", "predicted")
MEASURED = (
    "Measured here: the median of several training steps of a copy of the model, forward and "
    "backward; of a layer, of several calls of it alone, on what it gets in the model.",
    "Predicted: by the cost model of plans, for this device alone, from its rates, measured just "
    "now; of a layer, the operations in it.",
)


@dataclass(frozen=True)
class OfModel:
    """The parts of a page about a model.

    Attributes:
        parts: HTML.
        seconds: what was measured.
    """

    parts: list[str]
    seconds: ModelSeconds


def shared_in(data: Any) -> list[str]:
    """The parts about the graph that a model is given; [] where there are several, or a matrix."""
    edges: Any = getattr(data, "edge_index", None)
    nodes: Any = getattr(data, "num_nodes", None)
    if isinstance(data, tuple) and getattr(data[0], "is_homogeneous", False):  # DGL's
        edges, nodes = torch.stack(data[0].edges()).long(), data[0].num_nodes()
    if not isinstance(edges, Tensor) or edges.layout != torch.strided:
        return []
    if hasattr(data, "node_types"):
        return []
    return of_graph(build_hag(edges, num_nodes=nodes), False, "A")


def of_graph(hag: HAG, self_loops: SelfLoops, matrix: str) -> list[str]:
    """What is shared in a graph, and what runs at which width.

    Args:
        hag: its HAG.
        self_loops: of which matrix.
        matrix: what to call that.
    """
    return [
        f"<h2>What is shared, in {escape(matrix)}</h2>",
        hag.stats(self_loops)._repr_html_(),
        "<h2>What runs, by width</h2>",
        html_table(_by_width(hag, self_loops), words=3),
    ]


def _by_width(hag: HAG, self_loops: SelfLoops) -> Iterator[tuple[str, ...]]:
    """For float32 features of each width: which program runs, why, and the milliseconds of each."""
    names = (SHARED, PLAIN, REORDERED)
    yield ("width", "runs", "by", *(f"{name}, ms" for name in names))
    for width in WIDTHS:
        choice = hag.choice(width, self_loops=self_loops)
        seconds = (choice.seconds.get(name) for name in names)
        times = ("-" if each is None else f"{1e3 * each:.3g}" for each in seconds)
        yield (f"{width}", choice.name, choice.by, *times)


def of_model(
    model: Module,
    data: Any,
    *,
    plan: Plan | str | os.PathLike[str] | None = None,
    topology: Topology | str | os.PathLike[str] | None = None,
    call: ModelCall | None = None,
) -> OfModel:
    """What runs on what, what each layer takes, and the timeline of a plan. See `pages.report`."""
    check_kind("model", model, Module)
    is_pair = isinstance(data, tuple) and len(data) == 2 and hasattr(data[0], "num_nodes")
    is_graph = is_pair or (not isinstance(data, tuple) and hasattr(data, "num_nodes"))
    if isinstance(data, GraphStats) or not is_graph:
        raise TypeError(f"data is {brief(data)}; expected a Data, a HeteroData or (DGLGraph, x)")
    check_kind("plan", plan, Plan, str, os.PathLike, type(None))
    call = call or plain
    of_plan = [] if plan is None else _of_plan(model, data, plan, topology, call)
    found = measure_layers(model, data, call)
    ratio = found.stock / found.accelerated
    parts = [
        f"<p>A training step takes {milliseconds(found.accelerated)} ms accelerated and "
        f"{milliseconds(found.stock)} ms as it was: {ratio:.2f} times as fast, measured here.</p>",
        "<h2>What runs on what</h2>",
        found.explanation._repr_html_(),
        "<h2>What each layer takes</h2>",
        bars(figures(found), BARS),
        html_table(_rows(found), words=2, below=_notes(found)),
        *of_plan,
    ]
    return OfModel(parts, found)


def _rows(found: ModelSeconds) -> Iterator[tuple[str, ...]]:
    yield ("layer", "class", *(f"{name}, ms" for name in BARS), "times as fast")
    classes = [each.row.layer for each in found.layers]
    for (name, row), cls in zip(figures(found).items(), [*classes, ""], strict=True):
        times = ("-" if value is None else milliseconds(value) for value in row)
        stock, fast, _ = row
        yield (name, cls, *times, f"{stock / fast:.2f}" if stock and fast else "-")


def _notes(found: ModelSeconds) -> list[str]:
    measured, predicted = MEASURED
    return [measured, f"Not predicted: {found.unpredicted}" if found.unpredicted else predicted]


def _of_plan(
    model: Module,
    data: Any,
    plan: Plan | str | os.PathLike[str],
    topology: Topology | str | os.PathLike[str] | None,
    call: ModelCall,
) -> list[str]:
    found = plan if isinstance(plan, Plan) else Plan.load(plan)
    machine = machine_of(found, topology)
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "timeline.svg"
        check_timeline_path(picture)
        graph = trace(model, data, call=call)
        schedule = simulate_plan(found, space_of(graph, machine, found.world_size, found.costs))
        plot_timeline(schedule, picture, f"{found.model[0]} on {found.topology} (predicted)")
        svg = picture.read_text()
    return [
        "<h2>The plan</h2>",
        found._repr_html_(),
        "<h2>Its timeline</h2>",
        svg[svg.index("<svg") :],
        schedule._repr_html_(),
    ]
