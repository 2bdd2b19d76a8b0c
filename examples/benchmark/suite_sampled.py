"""Suite `sampled`: layers over sampled batches, each met once, as `NeighborLoader` yields them.

Message passing alone, forward and backward, the CSR of the batch included; and whole steps of a
model. Every call gets a tensor of edges that was never met.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hag_plugin as hp

from . import peers, tables
from .graphs import Graph
from .met_once import compared
from .plan import Cell, Plan
from .results import Record
from .sample_batches import Sampler
from .sides import AGAIN, AUTO

NAME = "sampled"
SECONDS = 2.0
STOCK = "PyG edge_index"
FAN_OUTS = {"15, 10, 5": (15, 10, 5), "25, 10": (25, 10)}
SEEDS = (512, 1024)
LAYERS = ("SAGE", "GCN", "GIN", "GraphConv")
PARTS = ("messages", "step")


def cells(plan: Plan) -> Iterator[Cell]:
    """Graphs x layers x widths x fan-outs x seeds x {message passing, a step of the model}."""
    most = 1 if plan.quick else None
    batches = itertools.product(list(FAN_OUTS)[:most], SEEDS[:most])
    of_graph = (
        (layer, width, *batch, part)
        for layer, width, batch, part in itertools.product(LAYERS, plan.widths, batches, PARTS)
    )
    names = ("layer", "width", "fan_out", "seeds", "part")
    for graph, rest in itertools.product(plan.graphs, list(of_graph)):
        yield {"graph": graph, **dict(zip(names, rest, strict=True))}


class Net(nn.Module):
    """A layer for each hop."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, edge_index)
        return x


def measure(graph: Graph, cell: Cell, plan: Plan) -> dict[str, Any]:
    """Times stock and accelerated, each on fresh tensors of the same batch."""
    pyg = peers.load("torch_geometric")
    if pyg is None:
        return {"wrong": {}, "absent": {STOCK: "torch_geometric is not installed"}, "forms": {}}
    torch.manual_seed(plan.seed)
    fan_out = FAN_OUTS[cell["fan_out"]]
    nodes = np.random.default_rng(plan.seed).permutation(graph.num_nodes)[: cell["seeds"]]
    batch = Sampler(graph.edge_index.long(), graph.num_nodes, fan_out, plan.seed).batch(nodes)
    make = {"messages": _bare, "step": _whole}[cell["part"]]
    stock = Net([make(pyg.nn, cell["layer"], cell["width"]) for _ in fan_out])
    x = torch.randn(len(batch.n_id), cell["width"])
    calls = {
        side: _call(copy.deepcopy(net), x, batch.edge_index, cell)
        for side, net in {STOCK: stock, AGAIN: stock}.items()
    }
    calls[AUTO] = _call(hp.accelerate(copy.deepcopy(stock)), x, batch.edge_index, cell)
    size = {"nodes": len(batch.n_id), "edges": batch.edge_index.shape[1]}
    return {"batch": size, **compared(calls, STOCK, plan, SECONDS)}


def _whole(pyg: Any, name: str, width: int) -> nn.Module:
    if name == "GIN":
        layer: nn.Module = pyg.GINConv(nn.Linear(width, width))
    else:
        kind = {"SAGE": pyg.SAGEConv, "GCN": pyg.GCNConv, "GraphConv": pyg.GraphConv}[name]
        layer = kind(width, width)
    return layer


def _bare(pyg: Any, name: str, width: int) -> nn.Module:
    """The layer without its dense part."""
    if name == "GIN":
        return pyg.GINConv(nn.Identity())  # type: ignore[no-any-return]
    layer = _whole(pyg, name, width)
    for part in ("lin", "lin_l", "lin_r", "lin_rel", "lin_root"):
        if hasattr(layer, part):
            setattr(layer, part, nn.Identity())
    layer.bias = None
    return layer


def _call(net: nn.Module, x: Tensor, edge_index: Tensor, cell: Cell) -> Callable[[], Any]:
    """One training step without an optimizer, or without what is dense."""
    derived = cell["part"] == "messages"

    def call() -> tuple[Tensor, Tensor]:
        net.zero_grad()
        given = x.detach().requires_grad_(derived)
        y: Tensor = net(given, edge_index.clone())
        y[: cell["seeds"]].sum().backward()
        gradient = given.grad if derived else next(net.parameters()).grad
        assert gradient is not None
        return y.detach(), gradient

    return call


def ratios(records: Iterable[Record], part: str) -> list[float]:
    """How many times as fast as stock, of each cell of a part."""
    found = (tables.over(r, "fresh", STOCK, AUTO) for r in records if r["cell"]["part"] == part)
    return [ratio for ratio in found if ratio is not None]


def table(records: Sequence[Record]) -> str:
    """A row for each graph, part and layer: how many times as fast, over all its batches."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for record in records:
        ratio = tables.over(record, "fresh", STOCK, AUTO)
        if ratio is not None:
            cell = record["cell"]
            found.setdefault((cell["graph"], cell["part"], cell["layer"]), []).append(ratio)
    rows = [
        [*key, tables.times(min(each)), tables.times(float(np.exp(np.mean(np.log(each)))))]
        for key, each in found.items()
    ]
    return tables.markdown(["graph", "part", "layer", "least", "geometric mean"], rows)
