"""The cells of the benchmark on a GPU: what each side calls, checked, then timed in turns."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

import hag_plugin as hp
from hag_plugin.testing import limits

from . import models
from .gpu_place import Card, first_line
from .graphs import LOOPS, Graph
from .models import CLASSES, FEATURES, Side
from .sides import AGAIN, AUTO, COPY, NONE, torch_csr

CUSPARSE, PYG, SCATTER = "torch CSR (cuSPARSE)", "PyG edge_index", "torch_scatter"
PYG_COMPILED, PYG_EDGE_INDEX = "PyG, compiled", "PyG EdgeIndex"
INDEX_ADD = "index_add_"
AUTO_GRAPH, NONE_GRAPH = "hag auto, CUDA graph", "hag none, CUDA graph"
PYG_CSR = "PyG torch CSR"
CAPTURED, REDUCED, AMP = "CUDA graph", "compiled, reduce-overhead", "bfloat16"
ALWAYS = "hag auto, whatever is predicted"
DDP = "DDP"
KINDS = (*models.KINDS, models.ATTENTION)
SEEDS = 1024  # nodes that a batch classifies
Call = Callable[[], Any]
Makers = dict[str, Callable[[], Call]]


@dataclass
class Cell:
    """One row of a table.

    Attributes:
        what: the table.
        graph: its name.
        width: of the features.
        milliseconds: medians, by side.
        absent: who took no part, and why.
        bandwidth: bytes that a side must move, over the rate of a copy.
        checks: what else was asked, and what came of it.
    """

    what: str
    graph: str
    width: int
    milliseconds: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    bandwidth: dict[str, float] = field(default_factory=dict)
    checks: dict[str, str] = field(default_factory=dict)


def is_ours(side: str) -> bool:
    """Whether a side is ours."""
    return side.startswith("hag ")


def interleave(
    place: Card, sides: dict[str, Call], seconds: float, seed: int = 0
) -> dict[str, float]:
    """Median milliseconds a call of each side, in turns."""
    measure, calls = place.milliseconds, {}
    for name, call in sides.items():
        measure(call, place.warm)
        calls[name] = max(1, min(100, int(5.0 / measure(call, place.warm))))
    once = sum(calls[name] * measure(call, 1) for name, call in sides.items())
    least, most = place.rounds
    rounds = max(least, min(most, int(seconds * 1e3 * len(sides) / max(once, 1e-3))))
    order = random.Random(seed)
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name in order.sample(list(sides), len(sides)):
            taken[name].append(measure(sides[name], calls[name]))
    return {name: statistics.median(times) for name, times in taken.items()}


def timed(
    place: Card, cell: Cell, makers: Makers, check: Callable[[str, Call], None], seconds: float
) -> Cell:
    """Makes, checks and times the sides; those that fail say why, and take no part.

    Args:
        place: where.
        cell: to be filled.
        makers: of each side.
        check: raises ValueError where a side's result is wrong.
        seconds: for each side.
    """
    sides: dict[str, Call] = {}
    for name, make in makers.items():
        try:
            call = make()
            check(name, call)
            sides[name] = call
        except (ImportError, NotImplementedError, RuntimeError, TypeError, ValueError) as e:
            cell.absent[name] = first_line(e)
    if AUTO in sides:
        sides[AGAIN] = sides[AUTO]
    cell.milliseconds = interleave(place, sides, seconds)
    return cell


def on_card(place: Card, graph: Graph, method: str, loops: str, width: int) -> hp.HAG:
    """A HAG that is priced for the card, with its program for A or A + I, on the card."""

    def make() -> hp.HAG:
        return hp.build_hag(
            graph.edge_index,
            num_nodes=graph.num_nodes,
            method=method,
            self_loops=LOOPS[loops],
            width=width,
            device=place.device,
        )

    hag: hp.HAG = graph.kept(("hag", method, loops, width), make)
    return hag


# Aggregation ------------------------------------------------------------------------------------


def aggregation(
    place: Card,
    graph: Graph,
    width: int,
    seconds: float,
    copy_rate: float,
    reduce: Literal["sum", "max"] = "sum",
    compiles: bool = False,
) -> Cell:
    """Sum over A + I or maximum over A; outputs are allocated by every side, but for CUDA graphs,
    which write where they were told. `compiles`: PyG's layer, too, which takes a while."""
    loops = "A+I" if reduce == "sum" else "A"
    mode = LOOPS[loops]
    cell = Cell(f"{reduce} over {loops.replace('+', ' + ')}", graph.name, width)
    x = graph.features(width).to(place.device)
    hags = {name: on_card(place, graph, name, loops, width) for name in ("auto", "none")}

    def ours(name: str) -> Call:
        return lambda: hp.aggregate(x, hags[name], reduce, self_loops=mode)

    def captured(name: str) -> Call:
        out = torch.empty_like(x)
        return place.captured(lambda: hp.aggregate(x, hags[name], reduce, self_loops=mode, out=out))

    plain = ours("none")()
    bound = torch.zeros_like(plain)
    if reduce == "sum":
        bound = 2e-5 * hp.aggregate(x.abs(), hags["none"], self_loops=mode) + 1e-30

    def check(name: str, call: Call) -> None:
        if name != COPY and not bool(((call() - plain).abs() <= bound).all()):
            raise ValueError("differs from the plain program")

    makers: Makers = {
        COPY: lambda: x.clone,
        AUTO: lambda: ours("auto"),
        NONE: lambda: ours("none"),
        AUTO_GRAPH: lambda: captured("auto"),
        NONE_GRAPH: lambda: captured("none"),
        PYG: lambda: _pyg(place, graph, x, loops, reduce),
        SCATTER: lambda: _scatter(place, graph, x, loops, reduce),
    }
    if compiles:
        makers[PYG_COMPILED] = lambda: place.compiled(_pyg(place, graph, x, loops, reduce))
    if reduce == "sum":
        makers |= {
            CUSPARSE: lambda: _cusparse(place, graph, x),
            PYG_EDGE_INDEX: lambda: _edge_index(place, graph, x),
            INDEX_ADD: lambda: _index_add(place, graph, x),
        }
    timed(place, cell, makers, check, seconds)
    for name in hags:
        stats = hags[name].stats(mode, idempotent=reduce == "max")
        moved = (stats.rows_read + stats.rows_written) * width * 4
        for side in (f"hag {name}", f"hag {name}, CUDA graph"):
            if side in cell.milliseconds:
                cell.bandwidth[side] = moved / (cell.milliseconds[side] / 1e3) / copy_rate
    return cell


def _cusparse(place: Card, graph: Graph, x: Tensor) -> Call:
    """The matrix with indices of 32 bits is made once, and kept."""
    matrix = torch_csr(graph, "A+I").to(place.device)
    return lambda: matrix @ x


def _fits(place: Card, graph: Graph, width: int) -> None:
    size = 3 * (graph.edge_index.shape[1] + graph.num_nodes) * width * 4
    free = place.free_bytes()
    if size > 0.8 * free:
        raise ValueError(f"its messages take {size / 1e9:.1f} GB of {free / 1e9:.1f} GB free")


def _pyg(place: Card, graph: Graph, x: Tensor, loops: str, reduce: str) -> Call:
    from torch_geometric.nn import SimpleConv

    _fits(place, graph, x.shape[1])
    conv, edges = SimpleConv(reduce), graph.edges(loops).to(place.device)
    return lambda: conv(x, edges)


def _edge_index(place: Card, graph: Graph, x: Tensor) -> Call:
    """PyG's own product: targets as rows, sorted, indices of 32 bits, its caches filled."""
    from torch_geometric import EdgeIndex

    row_ptr, col = graph.csr("A+I")
    n = graph.num_nodes
    row = torch.arange(n, dtype=torch.int32).repeat_interleave(row_ptr.diff())
    edges = EdgeIndex(torch.stack([row, col]).to(place.device), sparse_size=(n, n),
                      sort_order="row", is_undirected=False).validate().fill_cache_()  # fmt: skip
    return lambda: edges.matmul(x, reduce="sum")


def _index_add(place: Card, graph: Graph, x: Tensor) -> Call:
    _fits(place, graph, x.shape[1])
    source, target = graph.edges("A+I").to(place.device)
    return lambda: torch.zeros_like(x).index_add_(0, target, x.index_select(0, source))


def _scatter(place: Card, graph: Graph, x: Tensor, loops: str, reduce: str) -> Call:
    from torch_scatter import segment_csr

    _fits(place, graph, x.shape[1])
    row_ptr, col = (a.to(place.device) for a in graph.csr(loops))
    return lambda: segment_csr(x.index_select(0, col), row_ptr, None, reduce)


# Epochs -----------------------------------------------------------------------------------------


class _Training:
    """What the sides of a model's cell share: the data, and the results of the plain program."""

    def __init__(self, place: Card, graph: Graph, kind: str, hidden: int) -> None:
        self.place, self.graph, self.kind, self.hidden = place, graph, kind, hidden
        self.x = graph.features(FEATURES).to(place.device)
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(CLASSES, (graph.num_nodes,), generator=generator)
        self.labels = labels.to(place.device)
        self.expected: tuple[Tensor, float] | None = None

    def net(self, normalised: bool = False) -> models.Net:
        """The model, on the card, with the same weights each time."""
        made = models.pyg_net(self.kind, self.hidden, 0, normalised)
        return made.to(self.place.device)

    def ours(self, method: str = "auto") -> tuple[Any, Any]:
        """The accelerated model and a HAG."""
        loops = "A+I" if self.kind == "GCN" else "A"
        hag = on_card(self.place, self.graph, method, loops, self.hidden)
        return hp.accelerate(self.net()), hag

    def stock(self) -> tuple[Any, Any]:
        """PyG's model and an edge index."""
        _fits(self.place, self.graph, max(self.hidden, FEATURES))
        return self.net(), self.graph.edge_index.to(self.place.device)

    def csr(self) -> tuple[Any, Any]:
        """PyG's model and a sparse matrix."""
        if self.kind == models.ATTENTION:
            raise ValueError("attention makes messages of a matrix, too")
        if self.kind == "GCN":
            return self.net(True), models.normalised_csr(self.graph).to(self.place.device)
        return self.net(), torch_csr(self.graph, "A", torch.int64).to(self.place.device)

    def side(self, net: nn.Module, structure: Any) -> Side:
        """What trains a model."""
        optimizer = self.place.adam(net.parameters())
        return Side(net, structure, self.x, self.labels, optimizer)

    def checked(self, net: nn.Module, structure: Any) -> Side:
        """The same, once its scores and gradients are those of the first that was asked.

        Raises:
            ValueError: they are not.
        """
        side = self.side(net, structure)
        scores, norm = side.infer(), side.gradient_norm()
        self.expected = expected = self.expected or (scores, norm)
        off = float((scores - expected[0]).abs().max() / expected[0].abs().max())
        if not max(off, abs(norm / expected[1] - 1)) <= 1e-3:
            raise ValueError("scores or gradients differ from the plain program's")
        return side


def epochs(place: Card, graph: Graph, kind: str, hidden: int, seconds: float) -> Cell:
    """One full-batch training epoch of a 2-layer model."""
    cell = Cell(f"{kind} training epoch", graph.name, hidden)
    of = _Training(place, graph, kind, hidden)

    makers = {
        NONE: lambda: of.ours("none"),
        AUTO: lambda: of.ours("auto"),
        PYG: of.stock,
        PYG_CSR: of.csr,
    }
    sides: Makers = {
        name: (lambda make=make: of.checked(*make()).train) for name, make in makers.items()
    }
    return timed(place, cell, sides, lambda name, call: None, seconds)


def steps(place: Card, graph: Graph, kind: str, hidden: int, seconds: float) -> Cell:
    """A training step in the ways in which users of a card run one; and whether it waits for it."""
    cell = Cell(f"{kind} training step", graph.name, hidden)
    of = _Training(place, graph, kind, hidden)

    def eager(make: Callable[[], tuple[Any, Any]]) -> Call:
        return of.checked(*make()).train

    def captured(make: Callable[[], tuple[Any, Any]]) -> Call:
        return place.captured(of.checked(*make()).train)

    def reduced(make: Callable[[], tuple[Any, Any]]) -> Call:
        net, structure = make()
        return of.checked(place.compiled(net, mode="reduce-overhead"), structure).train

    def half(make: Callable[[], tuple[Any, Any]]) -> Call:
        side = of.side(*make())

        def step() -> None:
            side.optimizer.zero_grad()
            with place.autocast():
                loss = side.loss()
            torch.autograd.backward(loss)
            side.optimizer.step()

        return step

    ways = {"": eager, f", {CAPTURED}": captured, f", {REDUCED}": reduced, f", {AMP}": half}
    makers: Makers = {
        name + words: (lambda way=way, make=make: way(make))
        for name, make in ((AUTO, of.ours), (PYG, of.stock))
        for words, way in ways.items()
    }

    def check(name: str, call: Call) -> None:
        if name in (AUTO, PYG):
            cell.checks[f"{name} waits for the card"] = place.why_waits(call) or "no"

    return timed(place, cell, makers, check, seconds)


def ranked(place: Card, graph: Graph, kind: str, hidden: int, seconds: float) -> Cell:
    """A training step as one rank takes it under DistributedDataParallel, over NCCL on a card."""
    cell = Cell(f"{kind} training step of one rank", graph.name, hidden)
    of = _Training(place, graph, kind, hidden)

    def in_ranks(make: Callable[[], tuple[Any, Any]]) -> Call:
        net, structure = make()
        return of.checked(nn.parallel.DistributedDataParallel(net), structure).train

    makers: Makers = {
        AUTO: lambda: of.checked(*of.ours()).train,
        f"{AUTO}, {DDP}": lambda: in_ranks(of.ours),
        f"{PYG}, {DDP}": lambda: in_ranks(of.stock),
    }

    def check(name: str, call: Call) -> None:
        cell.checks[f"{name} waits for the card"] = place.why_waits(call) or "no"

    with place.group():
        return timed(place, cell, makers, check, seconds)


# Batches that are met once ----------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """A sampled batch, on the card: its edges, its nodes, and the classes of the first of them."""

    edge_index: Tensor
    nodes: Tensor
    labels: Tensor


def sampled(graph: Graph, seeds: int, fanouts: tuple[int, ...], seed: int) -> Batch:
    """Random nodes, neighbours drawn of them with replacement, and theirs: as a loader has them.

    Only nodes with neighbours draw any.
    """
    generator = torch.Generator().manual_seed(seed)
    row_ptr, col = graph.csr("A")
    degree = row_ptr.diff()
    own = torch.randperm(graph.num_nodes, generator=generator)[:seeds]
    place = torch.full((graph.num_nodes,), -1)
    nodes, edges, front = own, [], own
    place[own] = torch.arange(len(own))
    for fanout in fanouts:
        front = front[degree[front] > 0]
        drawn = torch.rand(len(front), fanout, generator=generator)
        at = row_ptr[front, None] + (drawn * degree[front, None]).long()
        source, target = col[at].long().flatten(), front.repeat_interleave(fanout)
        front = source[place[source] < 0].unique()
        place[front] = torch.arange(len(front)) + len(nodes)
        nodes = torch.cat([nodes, front])
        edges.append(torch.stack([place[source], place[target]]))
    labels = torch.randint(CLASSES, (len(own),), generator=generator)
    return Batch(torch.cat(edges, 1), nodes, labels)


def batches(place: Card, graph: Graph, kind: str, hidden: int, seconds: float) -> Cell:
    """Training steps over sampled batches, none of which is met twice."""
    cell = Cell(f"{kind}, {place.batches} batches met once", graph.name, hidden)
    x = graph.features(FEATURES).to(place.device)
    seeds = min(SEEDS, graph.num_nodes // 2)
    found = [sampled(graph, seeds, place.fanouts, number) for number in range(place.batches)]
    on_place = [Batch(*(t.to(place.device) for t in vars(b).values())) for b in found]
    expected: list[float] = []

    def side(net: nn.Module) -> Call:
        net = net.to(place.device)
        optimizer = place.adam(net.parameters())

        def loss(batch: Batch) -> Tensor:
            edges = batch.edge_index.clone()  # another tensor each time, as from a loader
            scores = net(x[batch.nodes], edges)[: len(batch.labels)]
            return nn.functional.cross_entropy(scores, batch.labels)

        def train() -> None:
            for batch in on_place:
                optimizer.zero_grad()
                torch.autograd.backward(loss(batch))
                optimizer.step()

        with torch.no_grad():
            first = float(loss(on_place[0]))
        if abs(first / (expected or [first])[0] - 1) > 1e-3:
            raise ValueError("the loss differs from PyG's")
        expected.append(first)
        return train

    def ours() -> Call:
        return side(hp.accelerate(models.pyg_net(kind, hidden, 0)))

    def always() -> Call:
        train = ours()

        def forced() -> None:
            with limits(passing_gain=0.0):
                train()

        return forced

    makers: Makers = {
        PYG: lambda: side(models.pyg_net(kind, hidden, 0)),
        AUTO: ours,
        ALWAYS: always,
    }

    def check(name: str, call: Call) -> None:
        cell.checks[f"{name} waits for the card"] = place.why_waits(call) or "no"

    return timed(place, cell, makers, check, seconds)
