"""Suite `epochs`: whole training and inference epochs, full batch, against each framework."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import hag_plugin as hp

from . import models, sides
from .crashes import entering
from .graphs import Graph
from .models import CLASSES, FEATURES, KINDS, Net, Side
from .plan import Cell, Plan
from .sides import AGAIN, AUTO, NONE, Absent
from .timing import interleave
from .verdict import Rule, judge

NAME = "epochs"
SECONDS = 8.0
OWN_SECONDS = 4.0  # for ours alone, where these are measured again
STOCK = "PyG edge_index"
FORCED = "hag forced"
RULE = Rule(least=0.98)  # of the better of "hag forced" and "hag none"
TOLERANCE = 1e-3  # of the largest score, and of the gradient's norm, in float32


def cells(plan: Plan) -> Iterator[Cell]:
    """Graphs x models x hidden widths x {training, inference}."""
    for graph in plan.graphs:
        for model, hidden, mode in itertools.product(KINDS, plan.widths, ("training", "inference")):
            yield {"graph": graph, "model": model, "hidden": hidden, "mode": mode}


def measure(graph: Graph, cell: Cell, plan: Plan) -> dict[str, Any]:
    """Times one epoch on every side whose scores and gradients agree with the plain program's.

    `choice`: the speed of "auto" over the better of its HAG, forced, and the plain program. Where
    that is too low or noisy, ours are measured again, without the others.
    """
    taking_part, absent = _prepare(graph, cell, plan)
    if NONE not in taking_part or AUTO not in taking_part:
        return {"wrong": {}, "absent": absent, "forms": {}}
    wrong = _unequal(taking_part, cell["mode"] == "training")
    for side in wrong:
        del taking_part[side]
    if AUTO not in taking_part:
        return {"wrong": wrong, "absent": absent, "forms": {}}
    training = cell["mode"] == "training"
    calls = {name: side.train if training else side.infer for name, side in taking_part.items()}
    calls[AGAIN] = calls[AUTO]
    ours = [side for side in (AUTO, AGAIN, FORCED, NONE) if side in calls]
    timed: dict[str, Any] = {}

    def attempt(number: int) -> dict[str, Any]:
        if number == 0:
            rounds = interleave(calls, plan.budget(SECONDS), together=ours)
            timed.update(sides=rounds.summary(), control=rounds.control(AUTO, AGAIN))
        else:
            budget = plan.budget(OWN_SECONDS, longer=number)
            rounds = interleave({s: calls[s] for s in ours}, budget, together=ours, seed=number)
        over = {side: rounds.ratio(side, AUTO) for side in ours if side in (FORCED, NONE)}
        better = min(over, key=over.__getitem__)
        spread = rounds.control(AUTO, AGAIN)["spread"]
        return {"better": better, "ratio": over[better], "spread": spread}

    choice = judge(RULE, attempt)
    return {"wrong": wrong, "absent": absent, "forms": {"fresh": timed}, "choice": choice}


def _prepare(graph: Graph, cell: Cell, plan: Plan) -> tuple[dict[str, Side], dict[str, str]]:
    kind, hidden, seed = cell["model"], cell["hidden"], plan.seed
    x = graph.features(FEATURES)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (graph.num_nodes,), generator=generator)
    taking_part, absent = {}, {}
    for name, make in SIDES.items():
        if name in plan.crashed:
            absent[name] = plan.crashed[name]
            continue
        entering(name)
        try:
            net, structure = make(graph, kind, hidden, plan)
        except Absent as e:
            absent[name] = str(e)
            continue
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        taking_part[name] = Side(net, structure, x, labels, optimizer)
    return taking_part, absent


Maker = Callable[[Graph, str, int, Plan], tuple[Net, Any]]


def _edge_index(graph: Graph, kind: str, hidden: int, plan: Plan) -> tuple[Net, Tensor]:
    # GCN's layers transform first; the others aggregate what they are given.
    width = max(hidden, CLASSES) if kind == "GCN" else max(FEATURES, hidden)
    size = (graph.edge_index.shape[1] + graph.num_nodes) * width * 4
    if size > plan.memory_limit:
        raise Absent(
            f"its messages take {size / 1e9:.1f} GB, above the limit of "
            f"{plan.memory_limit / 1e9:.1f} GB"
        )
    return models.pyg_net(kind, hidden, plan.seed), graph.edge_index


def _torch_csr(graph: Graph, kind: str, hidden: int, plan: Plan) -> tuple[Net, Tensor]:
    if kind == "GCN":
        return models.pyg_net(kind, hidden, plan.seed, True), models.normalised_csr(graph)
    # The gradient of torch.sparse.mm(A, x, "mean") is wrong with 32-bit indices (torch 2.13).
    dtype = torch.int64 if kind == "SAGE-mean" else torch.int32
    return models.pyg_net(kind, hidden, plan.seed), sides.torch_csr(graph, "A", dtype)


def _dgl(graph: Graph, kind: str, hidden: int, plan: Plan) -> tuple[Net, Any]:
    structure = sides.dgl_graph(graph, "A+I" if kind == "GCN" else "A", ("csc", "csr"))
    return models.dgl_net(kind, hidden, plan.seed), structure


def _hag(method: str, choose: str | None = None) -> Maker:
    def make(graph: Graph, kind: str, hidden: int, plan: Plan) -> tuple[Net, hp.HAG]:
        hag = graph.hag(method, "A+I" if kind == "GCN" else "A", hidden, choose)
        hag.transpose()
        return hp.accelerate(models.pyg_net(kind, hidden, plan.seed)), hag

    return make


SIDES: dict[str, Maker] = {
    AUTO: _hag("auto"),
    NONE: _hag("none"),
    FORCED: _hag("auto", "hag"),
    STOCK: _edge_index,
    "PyG torch CSR": _torch_csr,
    "DGL": _dgl,
}
PEER_SIDES = (STOCK, "PyG torch CSR", "DGL")


def _unequal(taking_part: dict[str, Side], training: bool) -> dict[str, str]:
    """Compares scores, and for training the gradient, with those of the plain program."""
    plain = taking_part[NONE]
    expected = plain.infer()
    gradient = plain.gradient_norm() if training else 0.0
    wrong = {}
    for name, side in taking_part.items():
        entering(name)
        off = float((side.infer() - expected).abs().max() / expected.abs().max())
        if not off <= TOLERANCE:
            wrong[name] = f"scores differ by {off:.3g} of the largest"
        elif training:
            off = abs(side.gradient_norm() / gradient - 1.0)
            if not off <= TOLERANCE:
                wrong[name] = f"the norm of its gradient differs by {off:.3g} of itself"
    return wrong
