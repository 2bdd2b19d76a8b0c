"""Suite `attention`: a training step of one layer of attention, and the memory that it takes.

PyG's layer and DGL's of the same name, each as it is and accelerated, on graphs that come back and
on batches that are met once, as `NeighborLoader` samples them: those get a new tensor of edges, or
a new graph, at each call.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hag_plugin as hp

from . import peers, tables
from .crashes import entering
from .graphs import Graph
from .memory import peak_bytes
from .plan import Cell, Plan
from .results import Record
from .sample_batches import Sampler
from .sides import AGAIN, AUTO
from .timing import interleave
from .verdict import Rule, judge

NAME = "attention"
SECONDS = 1.0
STOCK, DGL, DGL_AUTO = "PyG edge_index", "DGL", "hag auto, DGL"
# Which side may not be slower than which: as it is, and accelerated.
PAIRS = ((STOCK, AUTO), (DGL, AUTO), (DGL, DGL_AUTO))
RULE = Rule(least=0.97, far_ahead=True)
INPUT = 64  # features of the layer's input
LAYERS = ("GATConv", "GATv2Conv", "TransformerConv", "DotGatConv")
MISSING = {
    ("torch_geometric", "DotGatConv"): "PyG has no such layer",
    ("dgl", "TransformerConv"): (
        "DGL has no such layer: DotGatConv has one product for query, key and value"
    ),
}
HEADS = (1, 4, 8)
MET = ("back", "once")
SEEDS, FAN_OUT = 256, (15, 10)  # of a batch that is met once
TOLERANCE = 1e-3  # of the root of the mean square, in float32

Calls = dict[str, Callable[[], Tensor]]


def cells(plan: Plan) -> Iterator[Cell]:
    """Graphs x layers x heads x widths of a head x {came back, met once}."""
    heads = HEADS[-1:] if plan.quick else HEADS
    every = itertools.product(plan.graphs, LAYERS, heads, plan.widths, MET)
    for graph, layer, count, width, met in every:
        yield {"graph": graph, "layer": layer, "heads": count, "width": width, "met": met}


def measure(graph: Graph, cell: Cell, plan: Plan) -> dict[str, Any]:
    """Times each framework's layer as it is and accelerated.

    `memory`: bytes at a call's peak; `ratio`: the least of those of `PAIRS`.
    """
    torch.manual_seed(plan.seed)
    absent = dict(plan.crashed)
    edges, num_nodes = graph.edge_index.long(), graph.num_nodes
    if cell["met"] == "once":
        seeds = np.random.default_rng(plan.seed).permutation(num_nodes)[:SEEDS]
        batch = Sampler(edges, num_nodes, FAN_OUT, plan.seed).batch(seeds)
        edges, num_nodes = batch.edge_index, len(batch.n_id)
    x = torch.randn(num_nodes, INPUT).requires_grad_()
    numbers = edges.shape[1] * cell["heads"] * cell["width"]
    fits = 4 * numbers <= plan.memory_limit
    calls: Calls = {}
    for package, make, sides in (
        ("torch_geometric", _of_pyg, (STOCK, AUTO)),
        ("dgl", _of_dgl, (DGL, DGL_AUTO)),
    ):
        module = peers.load(package)
        why = MISSING.get((package, cell["layer"]), "")
        if module is None:
            why = peers.why_missing(package)
        if why:
            absent |= dict.fromkeys(sides, why)
            continue
        made = dict(zip(sides, make(module, cell, edges, x), strict=True))
        if not fits and package == "torch_geometric":
            absent[STOCK] = f"its messages take {4 * numbers / 1e9:.1f} GB, above the limit"
        calls |= {side: call for side, call in made.items() if side not in absent}
    wrong = {}
    for stock, ours in ((STOCK, AUTO), (DGL, DGL_AUTO)):
        if {stock, ours} <= calls.keys() and (why := _differs(calls, stock, ours, x)):
            wrong[ours] = why
    memory = {}
    for side, call in calls.items():
        x.grad = None  # what is freed in a call must not count against what is held
        memory[side] = peak_bytes(call)
    twice = AUTO if AUTO in calls else DGL_AUTO
    if twice not in calls:
        return {"wrong": wrong, "absent": absent, "forms": {}, "memory": memory}
    calls[AGAIN] = calls[twice]
    pairs = [pair for pair in PAIRS if set(pair) <= calls.keys()]

    def attempt(number: int) -> dict[str, Any]:
        budget = plan.budget(SECONDS, longer=number + 1)
        rounds = interleave(calls, budget, together=tuple(calls), seed=number)
        control = rounds.control(twice, AGAIN)
        forms = {"fresh": {"sides": rounds.summary(), "control": control}}
        ratio = min((rounds.ratio(*pair) for pair in pairs), default=1.0)
        return {"forms": forms, "ratio": ratio, "spread": control["spread"]}

    size = {"nodes": num_nodes, "edges": edges.shape[1]}
    found = judge(RULE, attempt)
    return {"batch": size, "wrong": wrong, "absent": absent, "memory": memory, **found}


def _of_pyg(pyg: Any, cell: Cell, edges: Tensor, x: Tensor) -> Iterator[Callable[[], Tensor]]:
    """The calls of PyG's layer: as it is, and accelerated."""
    stock = getattr(pyg.nn, cell["layer"])(INPUT, cell["width"], heads=cell["heads"])
    is_back = cell["met"] == "back"
    for layer in (stock, hp.pyg.accelerate(copy.deepcopy(stock))):
        yield _call(layer, x, lambda: (x, edges if is_back else edges.clone()))


def _of_dgl(dgl: Any, cell: Cell, edges: Tensor, x: Tensor) -> Iterator[Callable[[], Tensor]]:
    """The calls of DGL's, over the loops that PyG's adds."""
    given = dgl.graph((edges[0], edges[1]), num_nodes=len(x))
    given = dgl.add_self_loop(dgl.remove_self_loop(given))
    source, target = given.edges()
    how = {"allow_zero_in_degree": True}
    stock = getattr(dgl.nn.pytorch, cell["layer"])(INPUT, cell["width"], cell["heads"], **how)
    is_back = cell["met"] == "back"

    def graph() -> Any:
        return given if is_back else dgl.graph((source, target), num_nodes=len(x))

    for layer in (stock, hp.dgl.accelerate(copy.deepcopy(stock))):
        yield _call(layer, x, lambda: (graph(), x))


def _call(
    layer: nn.Module, x: Tensor, given: Callable[[], tuple[Any, ...]]
) -> Callable[[], Tensor]:
    """One forward and backward; gives the output."""

    def call() -> Tensor:
        x.grad = None
        layer.zero_grad()
        y: Tensor = layer(*given())
        y.backward(torch.ones_like(y))
        return y.detach()

    return call


def _differs(calls: Calls, stock: str, ours: str, x: Tensor) -> str:
    """What of ours differs from stock's; "" where nothing does."""
    results = []
    for side in (stock, ours):
        entering(side)
        y = calls[side]()
        assert x.grad is not None
        results.append((y, x.grad.clone()))
    # By the root of the mean square: where a score is 0 but for rounding, the derivative of its
    # leaky ReLU is one or the other, and a row or two of the gradient differ by a thousandth.
    for name, theirs, own in zip(("output", "gradient"), *results, strict=True):
        if not (own - theirs).norm() <= TOLERANCE * theirs.norm():
            return f"its {name} differs"
    return ""


def ratios(records: Sequence[Record], slower: str, faster: str = AUTO, **cell: Any) -> list[float]:
    """How many times as fast one side is as another, in each of the cells that have both."""
    picked = [r for r in records if all(r["cell"][k] == v for k, v in cell.items())]
    found = [tables.over(record, "fresh", slower, faster) for record in picked]
    return [ratio for ratio in found if ratio is not None]


def shares(records: Sequence[Record], stock: str = STOCK, ours: str = AUTO) -> list[float]:
    """Our peak memory as a share of stock's."""
    both = [r["memory"] for r in records if {stock, ours} <= r["memory"].keys()]
    return [memory[ours] / memory[stock] for memory in both]


def table(records: Sequence[Record]) -> str:
    """All cells together; then a row for each graph, layer and way to meet it, over all heads and
    widths."""
    return f"{tables.markdown(tables.SPREAD, whole(records))}\n\n{_by_graph(records)}"


def whole(records: Sequence[Record]) -> list[list[str]]:
    """The least, the median and the most of what was compared, over all cells."""
    words = {"back": "graphs that come back", "once": "batches met once"}
    compared: dict[str, list[float]] = {}
    for met in MET:
        compared |= {
            f"PyG's layers, accelerated over stock: {words[met]}": ratios(records, STOCK, met=met),
            f"DGL's layers, accelerated over stock: {words[met]}": ratios(
                records, DGL, DGL_AUTO, met=met
            ),
            f"PyG's layers, accelerated over DGL's as they are: {words[met]}": ratios(
                records, DGL, met=met
            ),
        }
    of_memory = {
        "peak memory, as a share of PyG's": shares(records),
        **{
            f"peak memory, as a share of PyG's: {words[met]}": shares(
                [r for r in records if r["cell"]["met"] == met]
            )
            for met in MET
        },
        "peak memory, as a share of DGL's": shares(records, DGL, DGL_AUTO),
    }
    rows = [tables.spread(name, found, tables.times) for name, found in compared.items()]
    rows += [tables.spread(name, found, "{:.2f}".format) for name, found in of_memory.items()]
    return rows


def _by_graph(records: Sequence[Record]) -> str:
    rows, keys = [], ("graph", "layer", "met")
    groups = dict.fromkeys(tuple(r["cell"][k] for k in keys) for r in records)
    for key in groups:
        group = [r for r in records if tuple(r["cell"][k] for k in keys) == key]
        row = list(key)
        for stock, ours in ((STOCK, AUTO), (DGL, AUTO), (DGL, DGL_AUTO)):
            found = ratios(group, stock, ours)
            mean = tables.times(tables.geometric_mean(found))
            row += [tables.times(min(found, default=None)), mean]
        share = shares(group)
        rows.append([*row, f"{median(share):.2f}" if share else "-"])
    pairs = ("PyG over stock", "PyG over DGL", "DGL over stock")
    head = [words for pair in pairs for words in (f"{pair}, least", "mean")]
    return tables.markdown(["graph", "layer", "met", *head, "memory, of PyG's"], rows)
