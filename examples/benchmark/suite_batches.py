"""Suite `batches`: whole epochs in mini-batches, loading included, against stock PyG.

Kinds of batches, each with cells of its own (`KINDS`): "graphs", batches of small graphs.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hag_plugin as hp
from hag_plugin.data.graph_data import GraphData
from hag_plugin.demo.side import from_arrays, split_edges, to_arrays
from hag_plugin.hag import constants

from . import peers, tables
from .epoch_memory import Call, growth
from .graphs import Graph
from .plan import Cell, Plan
from .results import Record
from .sides import AGAIN, AUTO
from .timing import interleave

NAME = "batches"
SECONDS = 12.0
STOCK = "PyG"
KEYS = {STOCK: "edge_index", AUTO: "hag"}  # of a batch, which each side's layers take
FEATURES, HIDDEN, CLASSES = 16, 64, 3
MODELS = ("GCN", "SAGE", "GIN")
SIZES, WORKERS = (32, 128), (0, 1, 2)
MOST_GRAPHS = 1500
TOLERANCE = 1e-3  # of the largest score, in float32
CUT = 20  # nodes of the small graphs that are cut out of a single one
WARM = 64  # graphs that all code is loaded with before memory is measured


def cells(plan: Plan) -> Iterator[Cell]:
    """Data sets of small graphs x models x sizes of batches x workers."""
    sizes, workers_of = (SIZES[:1], WORKERS[:1]) if plan.quick else (SIZES, WORKERS)
    for graph in plan.graphs:
        for model, size, workers in itertools.product(MODELS, sizes, workers_of):
            yield {"graph": graph, "kind": "graphs", "model": model, "size": size,
                   "workers": workers}  # fmt: skip


def measure(graph: Graph, cell: Cell, plan: Plan) -> dict[str, Any]:
    """Times an epoch of each side: ours builds its data set's HAGs once, which is timed apart."""
    return KINDS[cell["kind"]](graph, cell, plan)


# Batches of small graphs ------------------------------------------------------------------------


class Net(nn.Module):
    """Two layers, a mean over each graph, and a linear layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        pyg = peers.load("torch_geometric").nn
        make: dict[str, Callable[[int], nn.Module]] = {
            "GCN": lambda width: pyg.GCNConv(width, HIDDEN),
            "SAGE": lambda width: pyg.SAGEConv(width, HIDDEN),
            "GIN": lambda width: pyg.GINConv(
                nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN))
            ),
        }
        self.layers = nn.ModuleList([make[kind](FEATURES), make[kind](HIDDEN)])
        self.out = nn.Linear(HIDDEN, CLASSES)
        self.pool = pyg.global_mean_pool

    def forward(self, batch: Any, graph: Any) -> Tensor:
        """Scores, `[G, C]`."""
        x = batch.x
        for layer in self.layers:
            x = layer(x, graph).relu()
        scores: Tensor = self.out(self.pool(x, batch.batch, batch.num_graphs))
        return scores


class Epochs:
    """A side: a model that is trained over a loader."""

    def __init__(self, items: list[Any], key: str, cell: Cell, plan: Plan) -> None:
        from torch_geometric.loader import DataLoader

        torch.manual_seed(plan.seed)
        self.key = key
        self.net = Net(cell["model"])
        if key == "hag":
            self.net = hp.accelerate(self.net)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3)
        workers = cell["workers"]
        self.loader = DataLoader(items, cell["size"], shuffle=True, num_workers=workers,
                                 persistent_workers=workers > 0)  # fmt: skip

    def scores(self, batch: Any) -> Tensor:
        found: Tensor = self.net(batch, getattr(batch, self.key))
        return found

    def __call__(self) -> None:
        for batch in self.loader:
            loss = cross_entropy(self.scores(batch), batch.y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


def _graphs(graph: Graph, cell: Cell, plan: Plan) -> dict[str, Any]:
    if peers.load("torch_geometric") is None:
        absent = dict.fromkeys((AUTO, STOCK), "torch_geometric is not installed")
        return {"wrong": {}, "absent": absent, "forms": {}}
    items = graph.kept(("batches",), lambda: _items(graph.data, plan))
    constants.in_force()  # once a machine: no part of a build
    start = time.perf_counter()
    built = hp.pyg.ToHAG().dataset(items)
    seconds = time.perf_counter() - start
    stock, ours = Epochs(items, "edge_index", cell, plan), Epochs(built, "hag", cell, plan)
    wrong = _unequal(items, built, stock, ours)
    if wrong:
        return {"wrong": wrong, "absent": {}, "forms": {}}
    again = Epochs(built, "hag", cell, plan)
    calls = {AUTO: ours, STOCK: stock, AGAIN: again}
    rounds = interleave(calls, plan.budget(SECONDS), together=tuple(calls))
    timed = {"sides": rounds.summary(), "control": rounds.control(AUTO, AGAIN)}
    memory = {}
    # What is loaded in workers is not in the process.
    if cell["workers"] == 0 and (not plan.quick or cell["model"] == MODELS[0]):
        arrays = to_arrays(graph.data)
        for side, key in KEYS.items():
            memory[side] = growth(_trained, arrays, key, cell, plan)
    return {
        "wrong": {},
        "absent": {},
        "forms": {"fresh": timed},
        "memory": memory,
        "extra": {
            "ratio": rounds.ratio(STOCK, AUTO),
            "graphs": len(items),
            "build_seconds": seconds,
        },
    }


def _trained(arrays: dict[str, Any], key: str, cell: Cell, plan: Plan) -> tuple[Call, Call]:
    """A few graphs trained on; and the graphs made, their HAGs, and two epochs."""
    data = from_arrays(arrays)

    def call(most: int | None) -> None:
        items = _items(data, plan)[:most]
        if key == "hag":
            items = hp.pyg.ToHAG().dataset(items)
        side = Epochs(items, key, cell, plan)
        for _ in range(2):
            side()

    constants.in_force()
    return lambda: call(WARM), lambda: call(None)


def _items(data: GraphData, plan: Plan) -> list[Any]:
    from torch_geometric.data import Data

    data = data if data.num_graphs > 1 else _cut(data)
    ptr = data.graph_ptr
    assert ptr is not None
    generator = torch.Generator().manual_seed(plan.seed)
    rows = torch.randn(data.num_nodes, FEATURES, generator=generator)
    x = torch.split(rows, ptr.diff().tolist())
    labels = torch.randint(CLASSES, (data.num_graphs,), generator=generator)
    every = zip(x, split_edges(data), labels, strict=True)
    return [
        Data(x=rows.clone(), edge_index=edges, y=label.view(1))
        for rows, edges, label in itertools.islice(every, MOST_GRAPHS)
    ]


def _cut(data: GraphData) -> GraphData:
    """Stretches of the nodes of one graph, each with the edges inside."""
    source, target = data.edge_index
    inside = source // CUT == target // CUT
    ptr = torch.arange(0, data.num_nodes + CUT, CUT).clamp(max=data.num_nodes)
    return replace(data, edge_index=data.edge_index[:, inside], graph_ptr=ptr)


def _unequal(items: list[Any], built: list[Any], stock: Epochs, ours: Epochs) -> dict[str, str]:
    """Compares the scores of a batch, and the gradient."""
    from torch_geometric.data import Batch

    found = []
    for side, graphs in ((stock, items), (ours, built)):
        side.net.zero_grad()
        scores = side.scores(Batch.from_data_list(graphs[: 2 * SIZES[0]]))
        scores.square().sum().backward()
        norm = sum(
            float(p.grad.square().sum()) for p in side.net.parameters() if p.grad is not None
        )
        found.append((scores.detach(), norm))
    (expected, of_stock), (scores, of_ours) = found
    off = float((scores - expected).abs().max() / expected.abs().max())
    if not off <= TOLERANCE:
        return {AUTO: f"scores differ by {off:.3g} of the largest"}
    off = abs(of_ours / of_stock - 1.0)
    return {} if off <= TOLERANCE else {AUTO: f"its gradient differs by {off:.3g}"}


KINDS: dict[str, Callable[[Graph, Cell, Plan], dict[str, Any]]] = {"graphs": _graphs}


# The page ---------------------------------------------------------------------------------------


def table(records: Sequence[Record]) -> str:
    """A row for each data set, model, size and number of workers."""
    header = ["data set", "model", "batch", "workers", "stock, ms a batch", "ours", "stock / ours",
              "us a graph to build", "epochs to earn it back", "memory, MiB: stock", "ours",
              "A/A"]  # fmt: skip
    rows = []
    for record in records:
        cell, extra = record["cell"], record.get("extra")
        stock, ours = (tables.median(record, "fresh", side) for side in (STOCK, AUTO))
        if not extra or stock is None or ours is None:
            continue
        batches = -(-extra["graphs"] // cell["size"])
        saved = stock - ours
        control = record["forms"]["fresh"]["control"]
        rows.append([
            cell["graph"], cell["model"], str(cell["size"]), str(cell["workers"]),
            tables.duration(stock / batches), tables.duration(ours / batches),
            tables.times(extra["ratio"]), f"{1e6 * extra['build_seconds'] / extra['graphs']:.0f}",
            f"{extra['build_seconds'] / saved:.1f}" if saved > 0 else "never",
            *_memory(record),
            f"{control['ratio']:.2f} ± {control['spread']:.2f}",
        ])  # fmt: skip
    words = (
        f"Whole training epochs over batches of small graphs, loading included: 2 layers, hidden "
        f"{HIDDEN}, and a mean over each graph; at most {MOST_GRAPHS:,} graphs a data set. Ours is "
        "handed a data set that `ToHAG().dataset` built. Memory: by how much a process grows that "
        "makes the data set, for us with its HAGs, and trains two epochs.\n\n"
    )
    return words + tables.markdown(header, rows) + "\n" if rows else "Nothing was measured.\n"


def _memory(record: Record) -> list[str]:
    found = [record.get("memory", {}).get(side) for side in (STOCK, AUTO)]
    return ["-" if each is None else f"{each / 2**20:.1f}" for each in found]


def ratios(records: Sequence[Record], graph: str | None = None) -> list[float]:
    """Stock's seconds over ours, cell by cell."""
    return [
        float(r["extra"]["ratio"])
        for r in records
        if r.get("extra") and graph in (None, r["cell"]["graph"])
    ]


def shares(records: Sequence[Record]) -> list[float]:
    """Our memory over stock's, cell by cell."""
    both = [r.get("memory", {}) for r in records]
    return [m[AUTO] / m[STOCK] for m in both if m.get(AUTO) and m.get(STOCK)]
