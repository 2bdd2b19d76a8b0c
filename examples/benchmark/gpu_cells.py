"""The cells of the benchmark on a GPU: what each side calls, checked, then timed in turns."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import hag_plugin as hp

from . import models
from .graphs import LOOPS, Graph
from .models import CLASSES, FEATURES, Side
from .sides import AGAIN, AUTO, COPY, NONE, torch_csr

CUSPARSE, PYG, SCATTER = "torch CSR (cuSPARSE)", "PyG edge_index", "torch_scatter"
AUTO_GRAPH, NONE_GRAPH = "hag auto, CUDA graph", "hag none, CUDA graph"
PYG_CSR = "PyG torch CSR"
Call = Callable[[], Any]


@dataclass
class Cell:
    """One row of a table: medians in milliseconds by side, and who took no part and why."""

    what: str
    graph: str
    width: int
    milliseconds: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    bandwidth: dict[str, float] = field(default_factory=dict)


def interleave(sides: dict[str, Call], seconds: float, seed: int = 0) -> dict[str, float]:
    """Median milliseconds a call of each side, by CUDA events, in turns."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def measure(call: Call, calls: int) -> float:
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / calls

    calls = {}
    for name, call in sides.items():
        measure(call, 3)
        calls[name] = max(1, min(100, int(5.0 / measure(call, 3))))
    once = sum(calls[name] * measure(call, 1) for name, call in sides.items())
    rounds = max(5, min(101, int(seconds * 1e3 * len(sides) / max(once, 1e-3))))
    order = random.Random(seed)
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name in order.sample(list(sides), len(sides)):
            taken[name].append(measure(sides[name], calls[name]))
    return {name: statistics.median(times) for name, times in taken.items()}


def on_card(graph: Graph, method: str, loops: str, width: int) -> hp.HAG:
    """A HAG that is priced for the card, with its program for A or A + I, on the card."""

    def make() -> hp.HAG:
        return hp.build_hag(
            graph.edge_index,
            num_nodes=graph.num_nodes,
            method=method,
            self_loops=LOOPS[loops],
            width=width,
            device="cuda",
        )

    hag: hp.HAG = graph.kept(("hag", method, loops, width), make)
    return hag


# Aggregation ------------------------------------------------------------------------------------


def aggregation(graph: Graph, width: int, seconds: float, copy_rate: float) -> Cell:
    """Sum over A + I, outputs allocated by every side; CUDA graphs write where they were told."""
    cell = Cell("sum over A + I", graph.name, width)
    x = graph.features(width).cuda()
    hags = {name: on_card(graph, name, "A+I", width) for name in ("auto", "none")}
    plain = hp.aggregate(x, hags["none"], self_loops="add")
    bound = 2e-5 * hp.aggregate(x.abs(), hags["none"], self_loops="add") + 1e-30
    makers: dict[str, Callable[[], Call]] = {
        COPY: lambda: x.clone,
        AUTO: lambda: lambda: hp.aggregate(x, hags["auto"], self_loops="add"),
        NONE: lambda: lambda: hp.aggregate(x, hags["none"], self_loops="add"),
        AUTO_GRAPH: lambda: _captured(x, hags["auto"]),
        NONE_GRAPH: lambda: _captured(x, hags["none"]),
        CUSPARSE: lambda: _cusparse(graph, x),
        PYG: lambda: _pyg(graph, x),
        SCATTER: lambda: _scatter(graph, x),
    }
    sides: dict[str, Call] = {}
    for name, make in makers.items():
        try:
            call = make()
            if name != COPY and not bool(((call() - plain).abs() <= bound).all()):
                raise ValueError("differs from the plain program")
            sides[name] = call
        except (ImportError, RuntimeError, ValueError) as e:
            cell.absent[name] = str(e).splitlines()[0]
    if AUTO in sides:
        sides[AGAIN] = sides[AUTO]
    cell.milliseconds = interleave(sides, seconds)
    for name, hag in ((AUTO, hags["auto"]), (NONE, hags["none"])):
        for side in (name, f"{name}, CUDA graph"):
            if side in sides:
                stats = hag.stats("add")
                moved = (stats.rows_read + stats.rows_written) * width * 4
                rate = moved / (cell.milliseconds[side] / 1e3)
                cell.bandwidth[side] = rate / copy_rate
    return cell


def _captured(x: Tensor, hag: hp.HAG) -> Call:
    out = torch.empty_like(x)
    hp.aggregate(x, hag, self_loops="add", out=out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        hp.aggregate(x, hag, self_loops="add", out=out)

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def _cusparse(graph: Graph, x: Tensor) -> Call:
    matrix = torch_csr(graph, "A+I").cuda()
    return lambda: matrix @ x


def _fits(graph: Graph, width: int) -> None:
    size = 3 * (graph.edge_index.shape[1] + graph.num_nodes) * width * 4
    free, _ = torch.cuda.mem_get_info()
    if size > 0.8 * free:
        raise ValueError(f"its messages take {size / 1e9:.1f} GB of {free / 1e9:.1f} GB free")


def _pyg(graph: Graph, x: Tensor) -> Call:
    from torch_geometric.nn import SimpleConv

    _fits(graph, x.shape[1])
    conv, edges = SimpleConv("sum"), graph.edges("A+I").cuda()
    return lambda: conv(x, edges)


def _scatter(graph: Graph, x: Tensor) -> Call:
    from torch_scatter import segment_csr

    _fits(graph, x.shape[1])
    row_ptr, col = (a.cuda() for a in graph.csr("A+I"))
    return lambda: segment_csr(x.index_select(0, col), row_ptr, None, "sum")


# Epochs -----------------------------------------------------------------------------------------


def epochs(graph: Graph, kind: str, hidden: int, seconds: float) -> Cell:
    """One full-batch training epoch of a 2-layer model."""
    cell = Cell(f"{kind} training epoch", graph.name, hidden)
    loops = "A+I" if kind == "GCN" else "A"
    x = graph.features(FEATURES).cuda()
    labels = torch.randint(CLASSES, (graph.num_nodes,)).cuda()

    def ours(method: str) -> tuple[Any, Any]:
        hag = on_card(graph, method, loops, hidden)
        return hp.accelerate(models.pyg_net(kind, hidden, 0)), hag

    def stock() -> tuple[Any, Any]:
        _fits(graph, max(hidden, FEATURES))
        return models.pyg_net(kind, hidden, 0), graph.edge_index.cuda()

    def csr() -> tuple[Any, Any]:
        if kind == "GCN":
            return models.pyg_net(kind, hidden, 0, True), models.normalised_csr(graph).cuda()
        return models.pyg_net(kind, hidden, 0), torch_csr(graph, "A", torch.int64).cuda()

    makers = {NONE: lambda: ours("none"), AUTO: lambda: ours("auto"), PYG: stock, PYG_CSR: csr}
    sides: dict[str, Call] = {}
    expected = None
    for name, make in makers.items():
        try:
            net, structure = make()
            net = net.cuda()
            side = Side(net, structure, x, labels, torch.optim.Adam(net.parameters(), lr=1e-3))
            scores, norm = side.infer(), side.gradient_norm()
            expected = expected or (scores, norm)
            off = float((scores - expected[0]).abs().max() / expected[0].abs().max())
            if not max(off, abs(norm / expected[1] - 1)) <= 1e-3:
                raise ValueError("scores or gradients differ from the plain program's")
            sides[name] = side.train
        except (ImportError, RuntimeError, ValueError) as e:
            cell.absent[name] = str(e).splitlines()[0]
    if AUTO in sides:
        sides[AGAIN] = sides[AUTO]
    cell.milliseconds = interleave(sides, seconds)
    return cell
