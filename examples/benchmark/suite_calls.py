"""Suite `calls`: what one call of a PyG layer costs beyond stock's, on a graph of ten nodes."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import hag_plugin as hp

from . import peers, suite_layers, tables
from .graphs import TEN_NODES, Graph
from .plan import Cell, Plan
from .results import Record
from .sides import AGAIN
from .suite_layers import STOCK, Make
from .timing import Rounds, interleave

NAME = "calls"
SECONDS = 0.6
WIDTH = 8
MOST = 60.0  # microseconds over stock
HAG, PLAIN = "a HAG", "edge_index"
MODES = ("forward", "training")

# Beside those of the suite `layers`.
MORE: dict[str, Make] = {
    "EGConv sum, var": lambda pyg, f, graph: pyg.EGConv(f, f, ["sum", "var"]),
    "GCNConv cached": lambda pyg, f, graph: pyg.GCNConv(f, f, cached=True),
    "GCNConv unnormalised": lambda pyg, f, graph: pyg.GCNConv(f, f, normalize=False),
    "GENConv power": lambda pyg, f, graph: pyg.GENConv(f, f, "power", p=2.0, norm="layer"),
    "GENConv softmax learned": lambda pyg, f, graph: pyg.GENConv(f, f, learn_t=True, norm="layer"),
    "GeneralConv both ends": lambda pyg, f, graph: pyg.GeneralConv(f, f, directed_msg=False),
    "PNAConv all": lambda pyg, f, graph: pyg.PNAConv(
        f, f, ["mean", "max", "sum", "std", "var", "min"],
        ["identity", "amplification", "attenuation"], torch.tensor([1, 2, 3, 3, 1]), towers=2
    ),
    "PNAConv sum": lambda pyg, f, graph: pyg.PNAConv(
        f, f, ["sum"], ["identity"], torch.tensor([1, 2, 3, 3, 1])
    ),
    "RGCNConv bases": lambda pyg, f, graph: pyg.RGCNConv(
        f, f, suite_layers.RELATIONS, num_bases=2
    ),
    "SAGEConv max": lambda pyg, f, graph: pyg.SAGEConv(f, f, "max"),
    "SAGEConv std": lambda pyg, f, graph: pyg.SAGEConv(f, f, "std"),
}  # fmt: skip
LAYERS: dict[str, Make] = dict(sorted((suite_layers.LAYERS | MORE).items()))


def cells(plan: Plan) -> Iterator[Cell]:
    """Layers, inference and training. The graph and the width are always the same."""
    for layer in LAYERS:
        for mode in MODES:
            yield {"graph": TEN_NODES, "layer": layer, "mode": mode}


def measure(graph: Graph, cell: Cell, plan: Plan) -> dict[str, Any]:
    """Microseconds over stock, by what the accelerated layer is handed: medians over rounds."""
    pyg = peers.load("torch_geometric")
    if pyg is None:
        absent = dict.fromkeys((HAG, PLAIN, STOCK), "torch_geometric is not installed")
        return {"wrong": {}, "absent": absent, "forms": {}, "extra": {}}
    torch.manual_seed(plan.seed)
    stock = LAYERS[cell["layer"]](pyg.nn, WIDTH, graph)
    x = graph.features(WIDTH)
    hag = graph.kept(("calls hag",), lambda: hp.build_hag(graph.edge_index, num_nodes=len(x)))
    edges = {STOCK: graph.edge_index, AGAIN: graph.edge_index, HAG: hag, PLAIN: graph.edge_index}
    calls: dict[str, Callable[[], Tensor]] = {}
    for side, given in edges.items():
        layer = copy.deepcopy(stock)
        if side in (HAG, PLAIN):
            layer = hp.accelerate(layer)
        rest = suite_layers.arguments(cell["layer"].split()[0], x, given, graph)[1:]
        calls[side] = _call(layer, x, rest, cell["mode"] == "training")
    expected = calls[STOCK]()
    wrong = {}
    for side in (HAG, PLAIN):
        found = [calls[side]() for _ in range(3)][-1]  # what comes back is met
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
            wrong[f"hag auto, {side}"] = "its output differs"
    rounds = interleave(calls, plan.budget(SECONDS), together=tuple(calls))
    extra = {side: 1e6 * _over(rounds, side, STOCK) for side in (HAG, PLAIN, AGAIN)}
    forms = {"fresh": {"sides": rounds.summary(), "control": rounds.control(STOCK, AGAIN)}}
    return {"wrong": wrong, "absent": {}, "forms": forms, "extra": extra}


def _call(layer: nn.Module, x: Tensor, rest: list[Any], training: bool) -> Callable[[], Tensor]:
    """One call with features of its own, as a batch has them: nothing is known from before."""

    def infer() -> Tensor:
        with torch.no_grad():
            y: Tensor = layer(x.detach(), *rest)
        return y

    def train() -> Tensor:
        layer.zero_grad()
        y: Tensor = layer(x.detach().requires_grad_(), *rest)
        y.backward(torch.ones_like(y))
        return y.detach()

    return train if training else infer


def _over(rounds: Rounds, side: str, other: str) -> float:
    """Seconds of one side over another's: the median over rounds."""
    pairs = zip(rounds.seconds[side], rounds.seconds[other], strict=True)
    return statistics.median(a - b for a, b in pairs if a is not None and b is not None)


def most(records: Sequence[Record]) -> tuple[float, Record] | None:
    """The largest cost over stock, and the cell that has it."""
    found = [(max(r["extra"][HAG], r["extra"][PLAIN]), r) for r in records if r["extra"]]
    return max(found, key=lambda pair: pair[0], default=None)


def table(records: Sequence[Record]) -> str:
    """A row for each layer: stock's time and what is added to it, in microseconds."""
    by_layer: dict[str, dict[str, Record]] = {}
    for record in records:
        if record["extra"]:
            cell = record["cell"]
            by_layer.setdefault(cell["layer"], {})[cell["mode"]] = record
    header = ["layer"]
    for mode in MODES:
        header += [f"{mode}: stock", f"+ {HAG}", f"+ {PLAIN}", "A/A"]
    rows = []
    for layer, modes in by_layer.items():
        row = [layer]
        for mode in MODES:
            record = modes.get(mode)
            if record is None:
                row += ["-"] * 4
                continue
            stock = tables.median(record, "fresh", STOCK) or 0.0
            row += [f"{1e6 * stock:.0f}"]
            row += [f"{record['extra'][side]:+.0f}" for side in (HAG, PLAIN, AGAIN)]
        rows.append(row)
    words = (
        f"Microseconds of one call on a graph of ten nodes, width {WIDTH}, new features at each "
        "call: stock with edge_index, and what an accelerated layer takes beyond that, handed a "
        "HAG or an edge_index that came back; A/A: stock again. Medians over rounds.\n\n"
    )
    return words + tables.markdown(header, rows) + "\n" if rows else "PyG was not installed.\n"
