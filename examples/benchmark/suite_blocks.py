"""Suite `blocks`: models over DGL's blocks, each met once, as its `NeighborSampler` yields them.

Forward and backward. Every call gets blocks that were never met; the making of them is DGL's, and
is timed on both sides.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
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
from .sides import AGAIN, AUTO

NAME = "blocks"
SECONDS = 2.0
STOCK = "DGL"
FAN_OUTS = {"10": (10,), "25, 10": (25, 10), "15, 10, 5": (15, 10, 5)}
SEEDS = (512, 1024)
HEADS = 4
LAYERS: dict[str, Callable[[Any, int], nn.Module]] = {
    "GraphConv": lambda made, f: made.GraphConv(f, f, norm="right", allow_zero_in_degree=True),
    "SAGE": lambda made, f: made.SAGEConv(f, f, "mean"),
    "GIN": lambda made, f: made.GINConv(nn.Linear(f, f)),
    "GAT": lambda made, f: made.GATConv(f, f // HEADS, HEADS, allow_zero_in_degree=True),
}
Block = tuple[Tensor, Tensor, int, int]  # ends of its edges, numbers of its nodes


def cells(plan: Plan) -> Iterator[Cell]:
    """Graphs x layers x widths x fan-outs x seeds."""
    most = 1 if plan.quick else None
    of_graph = [
        *itertools.product(LAYERS, plan.widths, list(FAN_OUTS)[:most], SEEDS[:most]),
    ]
    names = ("layer", "width", "fan_out", "seeds")
    for graph, rest in itertools.product(plan.graphs, of_graph):
        yield {"graph": graph, **dict(zip(names, rest, strict=True))}


class Net(nn.Module):
    """A layer for each hop."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, blocks: Sequence[Any], x: Tensor) -> Tensor:
        for layer, block in zip(self.layers, blocks, strict=True):
            x = layer(block, (x, x[: block.num_dst_nodes()])).flatten(1)
        return x


def measure(graph: Graph, cell: Cell, plan: Plan) -> dict[str, Any]:
    """Times stock and accelerated, each on blocks of its own of the same batch."""
    dgl = peers.load("dgl")
    if dgl is None:
        return {"wrong": {}, "absent": {STOCK: "dgl is not installed"}, "forms": {}}
    torch.manual_seed(plan.seed)
    fan_out, width = FAN_OUTS[cell["fan_out"]], cell["width"]
    blocks = _sampled(dgl, graph, cell["seeds"], fan_out, plan.seed)
    make = LAYERS[cell["layer"]]
    stock = Net([make(dgl.nn.pytorch, width) for _ in fan_out])
    x = torch.randn(blocks[0][2], width)
    nets = {
        STOCK: copy.deepcopy(stock),
        AGAIN: copy.deepcopy(stock),
        AUTO: hp.accelerate(copy.deepcopy(stock)),
    }
    calls = {side: _call(dgl, net, x, blocks) for side, net in nets.items()}
    size = {"nodes": blocks[0][2], "edges": sum(len(block[0]) for block in blocks)}
    return {"batch": size, **compared(calls, STOCK, plan, SECONDS)}


def _sampled(
    dgl: Any, graph: Graph, seeds: int, fan_out: tuple[int, ...], seed: int
) -> list[Block]:
    """The blocks of a batch, that of the last layer last; sampled by DGL."""
    dgl.seed(seed)
    source, target = graph.edge_index.long()
    whole = dgl.graph((source, target), num_nodes=graph.num_nodes)
    order = np.random.default_rng(seed).permutation(graph.num_nodes)
    nodes, found = torch.from_numpy(order[:seeds]), []
    for neighbours in reversed(fan_out):
        block = dgl.to_block(dgl.sampling.sample_neighbors(whole, nodes, neighbours), nodes)
        nodes = block.srcdata[dgl.NID]
        found.append((*block.edges(), block.num_src_nodes(), block.num_dst_nodes()))
    return found[::-1]


def _call(dgl: Any, net: nn.Module, x: Tensor, blocks: list[Block]) -> Callable[[], Any]:
    """One training step without an optimizer."""

    def call() -> tuple[Tensor, Tensor]:
        net.zero_grad()
        made = [
            dgl.create_block((source, target), num_src_nodes=m, num_dst_nodes=n)
            for source, target, m, n in blocks
        ]
        given = x.detach().requires_grad_()
        y: Tensor = net(made, given)
        y.sum().backward()
        assert given.grad is not None
        return y.detach(), given.grad

    return call


def ratios(records: Sequence[Record]) -> list[float]:
    """How many times as fast as DGL, of each cell."""
    found = (tables.over(record, "fresh", STOCK, AUTO) for record in records)
    return [ratio for ratio in found if ratio is not None]


def table(records: Sequence[Record]) -> str:
    """A row for each graph and layer: how many times as fast, over all its batches."""
    found: dict[tuple[str, str], list[float]] = {}
    for record in records:
        ratio = tables.over(record, "fresh", STOCK, AUTO)
        if ratio is not None:
            key = record["cell"]["graph"], record["cell"]["layer"]
            found.setdefault(key, []).append(ratio)
    rows = [
        [*key, tables.times(min(each)), tables.times(float(np.median(each)))]
        for key, each in found.items()
    ]
    return tables.markdown(["graph", "layer", "least", "median"], rows)
