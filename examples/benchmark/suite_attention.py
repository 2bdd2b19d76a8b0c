"""Suite `attention`: a training step of one layer of attention, and the memory that it takes.

PyG's layer as it is and accelerated, and DGL's of the same name, on graphs that come back and on
graphs that are met once: those get a new tensor of edges at each call.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import hag_plugin as hp

from . import peers, tables
from .crashes import entering
from .graphs import Graph
from .plan import Cell, Plan
from .results import Record
from .sides import AGAIN, AUTO
from .suite_layers import peak_bytes
from .timing import interleave

NAME = "attention"
SECONDS = 1.0
STOCK, DGL = "PyG edge_index", "DGL"
INPUT = 64  # features of the layer's input
LAYERS = ("GATConv", "GATv2Conv", "TransformerConv")
NO_DGL = "DGL has no such layer: DotGatConv has one product for query, key and value"
HEADS = (1, 4, 8)
MET = ("back", "once")
SAMPLED = 20_000  # edges of a graph that is met once
TOLERANCE = 1e-3  # of the largest value, in float32

Calls = dict[str, Callable[[], Tensor]]


def cells(plan: Plan) -> Iterator[Cell]:
    """Graphs x layers x heads x widths of a head x {came back, met once}."""
    heads = HEADS[-1:] if plan.quick else HEADS
    every = itertools.product(plan.graphs, LAYERS, heads, plan.widths, MET)
    for graph, layer, count, width, met in every:
        yield {"graph": graph, "layer": layer, "heads": count, "width": width, "met": met}


def measure(graph: Graph, cell: Cell, plan: Plan) -> dict[str, Any]:
    """Times stock, accelerated and DGL's layer; `memory`: bytes at a call's peak."""
    pyg = peers.load("torch_geometric")
    if pyg is None:
        absent = {STOCK: "torch_geometric is not installed"}
        return {"wrong": {}, "absent": absent, "forms": {}, "memory": {}}
    torch.manual_seed(plan.seed)
    is_back, absent = cell["met"] == "back", dict(plan.crashed)
    edges = graph.edge_index.long()
    if not is_back:
        edges = edges[:, torch.randperm(edges.shape[1])[:SAMPLED]].contiguous()
    stock = getattr(pyg.nn, cell["layer"])(INPUT, cell["width"], heads=cell["heads"])
    x = torch.randn(graph.num_nodes, INPUT).requires_grad_()
    numbers = edges.shape[1] * cell["heads"] * cell["width"]
    calls: Calls = {AUTO: _call(hp.accelerate(copy.deepcopy(stock)), x, edges, is_back)}
    if 4 * numbers > plan.memory_limit:
        absent[STOCK] = f"its messages take {4 * numbers / 1e9:.1f} GB, above the limit"
    elif STOCK not in absent:
        calls[STOCK] = _call(stock, x, edges, is_back)
    wrong = {}
    if STOCK in calls and (why := _differs(calls, x)):
        wrong[AUTO] = why
    if is_back and DGL not in absent:
        found = _of_dgl(graph, cell, edges, x)
        if isinstance(found, str):
            absent[DGL] = found
        else:
            calls[DGL] = found
    memory = {side: peak_bytes(call) for side, call in calls.items()}
    calls[AGAIN] = calls[AUTO]
    rounds = interleave(calls, plan.budget(SECONDS), together=(AUTO, AGAIN))
    forms = {"fresh": {"sides": rounds.summary(), "control": rounds.control(AUTO, AGAIN)}}
    return {"wrong": wrong, "absent": absent, "forms": forms, "memory": memory}


def _call(layer: nn.Module, x: Tensor, edges: Tensor, is_back: bool) -> Callable[[], Tensor]:
    """One forward and backward; gives the output."""

    def call() -> Tensor:
        x.grad = None
        layer.zero_grad()
        y: Tensor = layer(x, edges if is_back else edges.clone())
        y.backward(torch.ones_like(y))
        return y.detach()

    return call


def _differs(calls: Calls, x: Tensor) -> str:
    """What of ours differs from stock's; "" where nothing does."""
    results = []
    for side in (STOCK, AUTO):
        y = calls[side]()
        assert x.grad is not None
        results.append((y, x.grad.clone()))
    for name, theirs, ours in zip(("output", "gradient"), *results, strict=True):
        if not (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max():
            return f"its {name} differs"
    return ""


def _of_dgl(graph: Graph, cell: Cell, edges: Tensor, x: Tensor) -> Callable[[], Tensor] | str:
    """DGL's layer of that name, with the loops that PyG's adds; or why there is none."""
    if cell["layer"] == "TransformerConv":
        return NO_DGL
    dgl = peers.load("dgl")
    if dgl is None:
        return peers.why_missing("dgl")
    given = dgl.graph((edges[0], edges[1]), num_nodes=graph.num_nodes)
    given = dgl.add_self_loop(dgl.remove_self_loop(given))
    layer = getattr(dgl.nn.pytorch, cell["layer"])(
        INPUT, cell["width"], cell["heads"], allow_zero_in_degree=True
    )

    def call() -> Tensor:
        x.grad = None
        layer.zero_grad()
        y: Tensor = layer(given, x)
        y.backward(torch.ones_like(y))
        return y.detach()

    entering(DGL)
    call()
    return call


def ratios(records: Sequence[Record], slower: str, **cell: Any) -> list[float]:
    """How many times as fast ours is, in each of the cells."""
    picked = [r for r in records if all(r["cell"][k] == v for k, v in cell.items())]
    found = [tables.over(record, "fresh", slower, AUTO) for record in picked]
    return [ratio for ratio in found if ratio is not None]


def shares(records: Sequence[Record]) -> list[float]:
    """Our peak memory as a share of stock's."""
    both = [r["memory"] for r in records if {STOCK, AUTO} <= r["memory"].keys()]
    return [memory[AUTO] / memory[STOCK] for memory in both]


def table(records: Sequence[Record]) -> str:
    """A row for each graph, layer and way to meet it, over all heads and widths."""
    rows, keys = [], ("graph", "layer", "met")
    groups = dict.fromkeys(tuple(r["cell"][k] for k in keys) for r in records)
    for key in groups:
        group = [r for r in records if tuple(r["cell"][k] for k in keys) == key]
        row = list(key)
        for peer in (STOCK, DGL):
            found = ratios(group, peer)
            mean = tables.times(tables.geometric_mean(found))
            row += [tables.times(min(found, default=None)), mean]
        share = shares(group)
        rows.append([*row, f"{median(share):.2f}" if share else "-"])
    of_stock, of_dgl = ("over PyG, least", "mean"), ("over DGL, least", "mean")
    head = ["graph", "layer", "met", *of_stock, *of_dgl, "memory, of PyG's"]
    return tables.markdown(head, rows)
