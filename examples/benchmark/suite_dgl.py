"""Suite `dgl-layers`: one call of every DGL layer over a HAG, forward and backward.

Layers of attention are those of suite `attention`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hag_plugin.layers.dgl import RECORDS, always

from . import peers, tables
from .crashes import entering
from .graphs import Graph
from .plain_layers import plain
from .plan import Cell, Plan
from .results import Record
from .sides import AGAIN, AUTO, NONE
from .timing import interleave

NAME = "dgl-layers"
SECONDS = 6.0
STOCK = "DGL"
TOLERANCE = 1e-3  # of the largest value of the output and of the features' gradient, in float32
TYPES = 4
LEAST_SECONDS = 1e-3
SLOWER = 1.05
Make = Callable[[Any, int], nn.Module]  # from dgl.nn.pytorch and the width
FREE: dict[str, Any] = {"allow_zero_in_degree": True}

# Layers whose stock code holds so many rows of features an edge, gradients included.
ROWS_PER_EDGE = {"DGNConv": 12, "GatedGraphConv types": 4, "PNAConv": 12, "RelGraphConv": 4}


def _plain(name: str) -> Make:
    """A layer of the table, as it is made where nothing is asked of it."""

    def make(made: Any, f: int) -> nn.Module:
        values = {"k": 2, "alpha": 0.1, "layer": 1, "n_steps": 2, "n_etypes": 1, "num_rels": TYPES}
        return plain(getattr(made, name), f, values, **FREE)

    return make


OWN: dict[str, Make] = {
    # Without its ReLU: some of millions of outputs are so near 0 that rounding flips gradients.
    "ChebConv": lambda made, f: made.ChebConv(f, f, 3, activation=None),
    "DGNConv": lambda made, f: made.DGNConv(f, f, ["mean", "dir1-av"], ["identity"], 2.5),
    "GINConv": lambda made, f: made.GINConv(nn.Linear(f, f)),
    "GINConv max": lambda made, f: made.GINConv(nn.Linear(f, f), "max"),
    "GatedGraphConv types": lambda made, f: made.GatedGraphConv(f, f, 1, TYPES),
    "GraphConv none": lambda made, f: made.GraphConv(f, f, norm="none", **FREE),
    "PNAConv": lambda made, f: made.PNAConv(
        f, f, ["mean", "max", "sum", "std"], ["identity", "amplification"], 2.5
    ),
    "SAGEConv gcn": lambda made, f: made.SAGEConv(f, f, "gcn"),
    "SAGEConv mean": lambda made, f: made.SAGEConv(f, f, "mean"),
    "SAGEConv pool": lambda made, f: made.SAGEConv(f, f, "pool"),
    "SGConv": lambda made, f: made.SGConv(f, f, 2, **FREE),
}
ELSEWHERE = ("SAGEConv", "HeteroGraphConv")  # by its aggregators; of layers that are all here
LAYERS: dict[str, Make] = {
    record.layer: _plain(record.layer)
    for record in RECORDS
    if record.layer not in ELSEWHERE and record.attends is not always
} | OWN


def cells(plan: Plan) -> Iterator[Cell]:
    """Graphs x widths x layers."""
    for graph in plan.graphs:
        for width in plan.widths:
            for layer in LAYERS:
                yield {"graph": graph, "layer": layer, "width": width}


def measure(graph: Graph, cell: Cell, plan: Plan) -> dict[str, Any]:
    """Times one layer on plain graphs and on graphs from `ToHAG`."""
    dgl = peers.load("dgl")
    if dgl is None:
        absent = dict.fromkeys((AUTO, NONE, STOCK), "dgl is not installed")
        return {"wrong": {}, "absent": absent, "forms": {}}
    if plan.crashed:
        return {"wrong": {}, "absent": dict(plan.crashed), "forms": {}}
    width = cell["width"]
    size = ROWS_PER_EDGE.get(cell["layer"], 0) * graph.data.num_edges * width * 4
    if size > plan.memory_limit:
        limit = f"{plan.memory_limit / 1e9:.1f} GB"
        words = f"DGL's messages would take {size / 1e9:.1f} GB, above the limit of {limit}"
        return {"wrong": {}, "absent": {STOCK: words}, "forms": {}}
    from hag_plugin.dgl import ToHAG

    torch.manual_seed(plan.seed)
    layer = LAYERS[cell["layer"]](dgl.nn.pytorch, width)
    structure = graph.kept("dgl layers", lambda: _structure(dgl, graph))
    graphs = {
        AUTO: graph.kept(f"dgl auto {width}", lambda: ToHAG(width=width)(structure)),
        NONE: graph.kept("dgl none", lambda: ToHAG("none")(structure)),
        STOCK: structure,
    }
    x = graph.features(width).requires_grad_()
    more = _arguments(cell["layer"], structure, x, graph)
    calls = {side: _call(copy.deepcopy(layer), g, x, more) for side, g in graphs.items()}
    wrong = _unequal(calls, x)
    if AUTO in wrong:
        return {"wrong": wrong, "absent": {}, "forms": {}}
    calls = {side: call for side, call in calls.items() if side not in wrong}
    calls[AGAIN] = calls[AUTO]
    rounds = interleave(calls, plan.budget(SECONDS), together=(AUTO, AGAIN))
    timed = {"sides": rounds.summary(), "control": rounds.control(AUTO, AGAIN)}
    return {"wrong": wrong, "absent": {}, "forms": {"fresh": timed}}


def _structure(dgl: Any, graph: Graph) -> Any:
    # With edges in a list beside: DGL cannot run all backwards on a graph made from a CSC.
    made = dgl.graph(tuple(graph.edge_index.int()), num_nodes=graph.num_nodes)
    made.create_formats_()
    return made


def _arguments(layer: str, structure: Any, x: Tensor, graph: Graph) -> tuple[Any, ...]:
    if layer == "GCN2Conv":
        return (x.detach(),)
    if layer == "ChebConv":
        return ([2.0],)
    if layer == "DGNConv":
        return (None, graph.features(3))
    if layer in (
        "RelGraphConv",
        "GatedGraphConv types",
    ):  # kept: types that come back are what a HAG is built for
        types = graph.kept("types", lambda: torch.randint(TYPES, (structure.num_edges(),)))
        return (types,)
    return ()


def _call(
    layer: nn.Module, structure: Any, x: Tensor, more: tuple[Any, ...]
) -> Callable[[], Tensor]:
    """One forward and backward; gives the output."""

    def call() -> Tensor:
        x.grad = None
        layer.zero_grad()
        y: Tensor = layer(structure, x, *more)
        torch.autograd.backward(y.sum())
        return y.detach()

    return call


def _unequal(calls: dict[str, Callable[[], Tensor]], x: Tensor) -> dict[str, str]:
    """Compares output and gradient of each side with stock's."""

    def found(side: str) -> tuple[Tensor, Tensor]:
        entering(side)
        y = [calls[side]() for _ in range(3)][-1]  # what comes back is met
        assert x.grad is not None
        return y, x.grad

    expected = found(STOCK)
    wrong = {}
    for side in (AUTO, NONE):
        for what, ours, stock in zip(("output", "gradient"), found(side), expected, strict=True):
            off = float((ours - stock).abs().max() / stock.abs().max().clamp(min=1e-30))
            if not off <= TOLERANCE:
                wrong[side] = f"{what} differs by {off:.3g} of the largest"
    return wrong


def slower(records: Sequence[Record]) -> tuple[int, list[str]]:
    """How many cells take DGL over 1 ms; those in which `auto` is slower by more than 5 %.

    More than 5 % and the spread of the same thing measured twice.
    """
    count, found = 0, []
    for record in records:
        stock = tables.median(record, "fresh", STOCK)
        ratio = tables.over(record, "fresh", AUTO, STOCK)
        if stock is None or ratio is None or stock <= LEAST_SECONDS:
            continue
        count += 1
        if ratio > SLOWER + record["forms"]["fresh"]["control"]["spread"]:
            cell = " ".join(str(value) for value in record["cell"].values())
            found.append(f"{cell} {ratio:.2f}x the time")
    return count, found


def table(records: Sequence[Record]) -> str:
    """A table for each graph and width."""
    header = ["layer", "DGL, ms", "plain, ms", "auto, ms", "auto / DGL", "A/A"]
    groups: dict[tuple[str, int], list[list[str]]] = {}
    for record in records:
        if not record["forms"]:
            continue
        cell, control = record["cell"], record["forms"]["fresh"]["control"]
        groups.setdefault((cell["graph"], cell["width"]), []).append([
            cell["layer"],
            *[tables.duration(tables.median(record, "fresh", s)) for s in (STOCK, NONE, AUTO)],
            tables.times(tables.over(record, "fresh", STOCK, AUTO)),
            f"{control['ratio']:.2f} ± {control['spread']:.2f}",
        ])  # fmt: skip
    parts = ["One call, forward and backward, on a graph from `ToHAG` and on DGL's own.\n"]
    parts += [
        f"### {graph}, width {width}\n\n{tables.markdown(header, rows)}\n"
        for (graph, width), rows in groups.items()
    ]
    lines = [
        f"- {r['cell']['layer']} on {r['cell']['graph']}, width {r['cell']['width']}: {why}."
        for r in records
        for why in sorted(set(r["absent"].values()))
    ]
    if lines:
        parts.append("Left out:\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)
