"""DGL graphs of several types of nodes: rows of each type are shared out, against one process."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hag_plugin as hp
from hag_plugin.dgl import graphbolt_stand_in
from hag_plugin.parallel.model.opgraph import Op
from hag_plugin.parallel.model.trace import copied, trace
from hag_plugin.parallel.search.plan import Plan
from hag_plugin.parallel.search.planner import planned

from ..equality import (
    Allow,
    check_by_type,
    space_with,
    train_by_type,
    train_by_type_together,
)
from ..run_ranks import run_processes, run_threads

if importlib.util.find_spec("dgl") is None:
    pytest.skip("DGL is not installed", allow_module_level=True)
if not importlib.metadata.version("dgl").startswith("1."):
    graphbolt_stand_in()
import dgl
from dgl.nn import pytorch as layers

WIDTH, CLASSES = 8, 3
TYPES = {"paper": (13, 7), "author": (9, 4), "site": (2, 3)}  # "site": fewer than there are ranks
RELATIONS = (
    ("author", "writes", "paper"),
    ("paper", "by", "author"),
    ("paper", "cites", "paper"),
    ("site", "shows", "paper"),
    ("paper", "at", "site"),
)
Given = tuple[Any, dict[str, Tensor]]
Values = Callable[[str], tuple[Tensor, Tensor]]


def data() -> Given:
    """Half of the papers have no edges into them; edges may occur twice."""
    draw, edges = torch.Generator().manual_seed(3), {}
    for kind in RELATIONS:
        source, target = TYPES[kind[0]][0], -(-TYPES[kind[-1]][0] // 2)
        edges[kind] = tuple(torch.randint(n, (17,), generator=draw) for n in (source, target))
    graph = dgl.heterograph(edges, {of: nodes for of, (nodes, _) in TYPES.items()})
    for of, (nodes, _) in TYPES.items():
        graph.nodes[of].data["y"] = torch.randint(CLASSES, (nodes,), generator=draw)
        graph.nodes[of].data["chosen"] = torch.arange(nodes) % 5 < 4
    x = {of: torch.randn(*size, generator=draw).double() for of, size in TYPES.items()}
    return graph, x


Layer = Callable[[int, int], nn.Module]


class Net(nn.Module):
    """HeteroGraphConvs with a linear layer for each type."""

    def __init__(self, layer: Layer, aggregate: Any, depth: int = 2) -> None:
        super().__init__()
        wide, self.convs = {of: features for of, (_, features) in TYPES.items()}, nn.ModuleList()
        for _ in range(depth):
            mods = {name: layer(wide[source], wide[target]) for source, name, target in RELATIONS}
            self.convs.append(layers.HeteroGraphConv(mods, aggregate))
            wide = dict.fromkeys(TYPES, WIDTH)
        self.last = nn.ModuleDict({of: nn.LazyLinear(CLASSES) for of in TYPES})
        self.double()
        with torch.no_grad():
            self(*data())  # which sets widths

    def forward(self, graph: Any, x: dict[str, Tensor]) -> dict[str, Tensor]:
        for conv in self.convs:
            x = {of: h.flatten(1).relu() for of, h in conv(graph, x).items()}
        return {of: self.last[of](h) for of, h in x.items()}


def sage(source: int, target: int) -> nn.Module:
    return layers.SAGEConv((source, target), WIDTH, "mean")


LAYERS: dict[str, Layer] = {
    "SAGEConv": sage,
    "GINConv": lambda s, t: (
        layers.GINConv(nn.Linear(s, WIDTH), "sum", learn_eps=True) if s == t else sage(s, t)
    ),
    **{
        f"GraphConv, {norm}": lambda s, t, norm=norm: layers.GraphConv(s, WIDTH, norm=norm)
        for norm in ("both", "right", "left", "none")
    },
    "GATConv": lambda s, t: layers.GATConv((s, t), WIDTH // 2, 2),
}
SPLIT = [name for name in LAYERS if name != "GATConv"]


def loss_of(out: dict[str, Tensor], values: Values, mean: Any) -> Tensor:
    loss = torch.zeros((), dtype=torch.float64)
    for of in sorted(out):
        y, chosen = values(of)
        each = F.cross_entropy(out[of][chosen], y[chosen], reduction="none")
        loss = loss + mean(each)
    return loss


def train_alone(model: nn.Module, given: Given) -> Any:
    model, (graph, x) = copied(model), given

    def values(of: str) -> tuple[Tensor, Tensor]:
        return graph.nodes[of].data["y"], graph.nodes[of].data["chosen"]

    return train_by_type(
        model, lambda: model(graph, x), lambda out: loss_of(out, values, torch.Tensor.mean)
    )


def train_together(rank: int, model: nn.Module, plan: Plan) -> Any:
    ours = hp.parallel.parallelize(model, data(), plan)
    parallel = ours.parallel

    def values(of: str) -> tuple[Tensor, Tensor]:
        return parallel.data[of].y, parallel.data[of].chosen

    return train_by_type_together(ours, lambda out: loss_of(out, values, parallel.mean))


def check(model: nn.Module, size: int, allow: Allow, run: Any = None) -> Plan:
    """Trains with a plan and alone; everything must be equal, and the bytes those of the plan."""
    space = space_with(trace(model, data(), hag=False), size, allow)

    def on_threads(plan: Plan) -> list[Any]:
        return run_threads(size, lambda rank: train_together(rank, model, plan))

    return check_by_type(space, train_alone(model, data()), run or on_threads)


def by_rows(op: Op, config: Any) -> bool:
    return "replicate" not in config.strategy or op.layer == "GATConv"


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", LAYERS)
def test_rows_of_each_type_are_shared_out(name: str, size: int) -> None:
    torch.manual_seed(0)
    plan = check(Net(LAYERS[name], "sum"), size, by_rows)
    found = {k.config.strategy for k in plan.layers if k.kind == "convolution"}
    assert bool(found) == (name in SPLIT)
    assert "replicate" not in found


STRATEGIES = ("rows, all-gather", "rows, vertex-cover halo", "all-to-all around aggregation",
              "columns, row-split weights", "column-split weights", "2-D grid")  # fmt: skip


@pytest.mark.parametrize("name", ["SAGEConv", "GraphConv, both"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_of_convolutions(strategy: str, name: str) -> None:
    torch.manual_seed(0)

    def allow(op: Op, config: Any) -> bool:
        if op.kind != "convolution":
            return True
        is_narrow = op.input_width < 4  # of sites, in the first layer
        return config.strategy == ("rows, halo" if is_narrow else strategy)

    check(Net(LAYERS[name], "mean"), 4, allow)


def greatest(xs: list[Tensor], of: str) -> Tensor:
    """An aggregator of the user's."""
    total = xs[0]
    for x in xs[1:]:
        total = torch.maximum(total, x)
    return total


@pytest.mark.parametrize("aggregate", ["sum", "mean", "max", "min", "stack", greatest])
def test_what_relations_give_is_combined(aggregate: Any) -> None:
    torch.manual_seed(0)
    check(Net(sage, aggregate, depth=1), 2, by_rows)


def on_process(rank: int, plan: Plan) -> Any:
    torch.manual_seed(0)
    return train_together(rank, Net(sage, "sum"), plan)


def test_on_processes() -> None:
    torch.manual_seed(0)
    model = Net(sage, "sum")
    check(model, 2, by_rows, run=lambda plan: run_processes(2, on_process, plan))


class Direct(nn.Module):
    """Takes relations of a graph itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = layers.SAGEConv((TYPES["author"][1], TYPES["paper"][1]), CLASSES, "mean")

    def forward(self, graph: Any, x: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"paper": self.conv(graph["writes"], (x["author"], x["paper"]))}


def test_relations_may_be_taken_by_the_model() -> None:
    torch.manual_seed(0)
    check(Direct().double(), 2, by_rows)


def test_what_tells_nothing_of_types_is_refused() -> None:
    graph, x = data()
    with pytest.raises(TypeError, match=r"types \['author', 'paper', 'site'\] and a Tensor;"):
        hp.parallel.plan(Net(sage, "sum"), (graph, x["paper"]), "a100x8")
    with pytest.raises(TypeError, match=r"'convs.0' \(HeteroGraphConv\) is given dictionaries"):
        hp.parallel.plan(
            Net(sage, "sum", depth=1), (graph, x), "a100x8",
            call=lambda m, d: m.convs[0](d[0], (d[1], d[1])),
        )  # fmt: skip


def test_layers_that_cannot_run_on_a_relation_are_refused_by_name() -> None:
    class Pair(nn.Module):
        def forward(self, graph: Any, feat: Any) -> Tensor:
            with graph.local_scope():
                graph.srcdata["h"] = feat[0]
                graph.update_all(dgl.function.copy_u("h", "m"), dgl.function.sum("m", "h"))
                return graph.dstdata["h"], feat[1]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair()

        def forward(self, graph: Any, x: dict[str, Tensor]) -> Tensor:
            return self.pair(graph["writes"], (x["author"], x["paper"]))[0]

    with pytest.raises(TypeError, match=r"'pair' \(Pair\) runs whole, .* returns a tuple; exp"):
        trace(Model(), data())


def test_rows_pairs_and_other_features() -> None:
    """A type is told; another share of the same graph runs, too."""
    torch.manual_seed(0)
    model, (graph, x) = Net(sage, "sum"), data()
    space = space_with(trace(model, (graph, x), hag=False), 2, by_rows)
    plan, asked = planned(space, space.cheapest().configs), torch.tensor([12, 0, 3, 3])
    other = {of: 2 * each for of, each in x.items()}
    expected, doubled = (model(graph, each) for each in (x, other))
    edges = torch.stack(graph.edges(etype="writes"))

    def case(rank: int) -> Any:
        parallel = (ours := hp.parallel.parallelize(model, (graph, x), plan)).parallel
        found = parallel.rows(ours()["paper"], asked, "paper").detach()
        pairs = parallel.negatives(edges, 30, ("author", "paper"))
        share = parallel.share((graph, other))
        again = ours(share)
        before, parallel.data = parallel.data, share
        gathered = {of: parallel.gather(each, of) for of, each in again.items()}
        parallel.data = before
        return found, pairs, gathered

    known = set(zip(*edges.tolist(), strict=True))
    for found, pairs, gathered in run_threads(2, case):
        torch.testing.assert_close(found, expected["paper"][asked].detach())
        torch.testing.assert_close(gathered, {of: h.detach() for of, h in doubled.items()})
        assert not known & set(zip(*pairs.tolist(), strict=True))
