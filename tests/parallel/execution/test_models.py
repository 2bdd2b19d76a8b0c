"""Whole models of PyG's layers, in plans that treat convolutions in every way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch_geometric import nn as pyg
from torch_geometric.data import Data

import hag_plugin as hp
from hag_plugin.parallel.model.opgraph import Op
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.search.plan import Plan
from hag_plugin.parallel.search.planner import planned
from hag_plugin.parallel.strategies.registry import Config

from ..equality import (
    Allow,
    bytes_of,
    check,
    compare,
    sgd,
    space_with,
    train_alone,
    train_together,
    whole,
)
from ..models import CLASSES, FEATURES, MODELS, graph
from ..run_ranks import run_processes, run_threads

NODES = 45


def data() -> Data:
    """A graph with labels, of double precision; node 3 has no edges."""
    found = graph(nodes=NODES, edges=220)
    kept = (found.edge_index != 3).all(dim=0)
    found.edge_index, found.edge_type = found.edge_index[:, kept], found.edge_type[kept]
    generator = torch.Generator().manual_seed(1)
    found.x = torch.randn(NODES, FEATURES, generator=generator, dtype=torch.float64)
    found.y = torch.randint(CLASSES, (NODES,), generator=generator)
    found.train_mask = torch.rand(NODES, generator=generator) < 0.7
    return found


def by_strategy(name: str, order: str = "") -> Allow:
    """Convolutions that can be split so are; others are as is cheapest."""

    def allow(op: Op, config: Config) -> bool:
        if op.kind not in ("convolution", "attention"):
            return True
        return config.strategy == name and (not order or config.order in ("", order))

    return allow


ORDERS = ("aggregate-first", "transform-first")
PLANS = [
    ("replicate", ORDERS),
    ("rows, all-gather", ORDERS),
    ("rows, halo", ORDERS),
    ("rows, vertex-cover halo", ORDERS),
    ("all-to-all around aggregation", ORDERS),
    ("columns, row-split weights", ORDERS[:1]),
    ("column-split weights", ORDERS[1:]),
]


@pytest.mark.mostly_slow("rows, halo-transform-first")
@pytest.mark.parametrize(("strategy", "order"), [(s, o) for s, orders in PLANS for o in orders])
def test_models_of_convolutions(strategy: str, order: str) -> None:
    for name, model in {
        "GCN": pyg.GCN(FEATURES, 8, 2, CLASSES, norm="batch"),
        "SAGE": pyg.GraphSAGE(FEATURES, 8, 2, CLASSES, jk="max"),
    }.items():
        if (name, order) == ("SAGE", "transform-first") and strategy.startswith("columns,"):
            continue
        for size in (2, 4):
            check(model.double(), data(), size, by_strategy(strategy, order))


OTHERS = [
    ("GIN", "rows, vertex-cover halo"),
    ("jumping knowledge", "all-to-all around aggregation"),
    ("GAT", "rows, halo"),
    ("GAT", "heads"),
    ("PNA with skips", "rows, halo"),
    ("RGCN", "relations"),
]


@pytest.mark.mostly_slow("GAT-heads", "RGCN-relations")
@pytest.mark.parametrize(("name", "strategy"), OTHERS)
def test_other_models(name: str, strategy: str) -> None:
    torch.manual_seed(0)
    for size in (2, 4):
        check(MODELS[name]().double(), data(), size, by_strategy(strategy))


@pytest.mark.slow
@pytest.mark.parametrize("columns", [2, 4])
def test_eight_ranks_in_a_grid(columns: int) -> None:
    def allow(op: Op, config: Config) -> bool:
        if op.kind == "convolution":
            return config.strategy == "2-D grid" and config.target.columns == columns
        return True

    torch.manual_seed(0)
    check(pyg.GCN(FEATURES, 8, 2, CLASSES, norm="layer").double(), data(), 8, allow)


@pytest.mark.parametrize("strategy", ["rows, halo", "all-to-all around aggregation", "2-D grid"])
def test_nodes_assigned_to_ranks(strategy: str) -> None:
    """Parts of any size, one of them empty; outputs in the old order."""
    given, random = data(), np.random.default_rng(0)
    rows = np.array([7, 20, 0, 18])
    found = hp.parallel.Partition(random.permutation(NODES), rows, "by hand")
    arranged = found.apply(given)
    model = pyg.GCN(FEATURES, 8, 2, CLASSES, norm="batch").double()
    plan = check(model, arranged, 4, by_strategy(strategy), part=found)
    expected = model(given.x, given.edge_index)

    def case(rank: int) -> tuple[int, torch.Tensor]:
        ours = hp.parallel.parallelize(model, arranged, plan, part=found)
        return len(ours.parallel.data.y), found.undo(ours.parallel.gather(ours()))

    ranks = run_threads(4, case)
    for _, out in ranks:
        torch.testing.assert_close(out, expected.detach(), rtol=1e-10, atol=1e-10)
    if plan.layer("loss").config.source.kind == "rows":
        assert [have for have, _ in ranks] == rows.tolist()


def seeded(name: str) -> Any:
    """A model, with the same weights in every process."""
    torch.manual_seed(0)
    return MODELS[name]().double()


def train_each(rank: int, jobs: list[tuple[str, Plan]]) -> list[Any]:
    """In one process of several."""
    return [train_together(seeded(name), data(), plan, sgd) for name, plan in jobs]


@pytest.mark.parametrize("size", [2, 4])
def test_processes(size: int) -> None:
    """With gloo; warnings are errors there, too."""
    chosen = [("GCN", s) for s, _ in PLANS] + OTHERS + [("SAGE", "cheapest")]
    if size == 4:
        chosen = [("GCN", "2-D grid"), *chosen[4::2]]
    jobs, wanted = [], []
    for name, strategy in chosen:
        model = seeded(name)
        allow = by_strategy(strategy) if strategy != "cheapest" else lambda op, config: True
        space = space_with(trace(model, data(), hag=False), size, allow)
        configs = list(space.cheapest().configs)
        jobs.append((name, planned(space, configs)))
        wanted.append((train_alone(model, data(), sgd), bytes_of(space, configs)))
    ranks = run_processes(size, train_each, jobs)
    for found, (expected, counted) in zip(zip(*ranks, strict=True), wanted, strict=True):
        compare(list(found), expected, counted, 1e-10)


@pytest.mark.parametrize("strategy", ["rows, halo", "all-to-all around aggregation"])
def test_models_of_dgl(strategy: str) -> None:
    dgl = pytest.importorskip("dgl", reason="DGL is not installed")
    from dgl.nn.pytorch import GraphConv, SAGEConv

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = GraphConv(FEATURES, 8, activation=torch.relu, allow_zero_in_degree=True)
            self.second = SAGEConv(8, CLASSES, "mean")

        def forward(self, g: Any, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.second(g, self.first(g, x))
            return out

    torch.manual_seed(0)
    model, found = Net().double(), data()
    given = dgl.graph(tuple(found.edge_index), num_nodes=NODES)
    given.ndata["y"] = found.y
    expected = model(given, found.x)
    F.cross_entropy(expected, found.y).backward()
    space = space_with(trace(model, (given, found.x), hag=False), 2, by_strategy(strategy))
    plan = planned(space, list(space.cheapest().configs))

    def case(rank: int) -> Any:
        ours = hp.parallel.parallelize(model, (given, found.x), plan)
        out = ours()
        losses = F.cross_entropy(out, ours.parallel.data.y, reduction="none")
        ours.parallel.mean(losses).backward()
        gradients = [whole(p.grad) for p in ours.parameters()]
        return ours.parallel.gather(out), gradients

    for out, gradients in run_threads(2, case):
        torch.testing.assert_close(out, expected.detach(), rtol=1e-10, atol=1e-10)
        wanted = [p.grad for p in model.parameters()]
        torch.testing.assert_close(gradients, wanted, rtol=1e-10, atol=1e-10)
