"""Classification of graphs: batches are cut between graphs, each step runs on its own batch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import nn as pyg
from torch_geometric.data import Batch, Data

import hag_plugin as hp
from hag_plugin.parallel.model.opgraph import Op
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.search.planner import planned
from hag_plugin.parallel.strategies.registry import Config

from ..equality import PHASES, bytes_of, sgd, space_with, whole
from ..run_ranks import run_threads

FEATURES, CLASSES = 6, 3


def batches(count: int = 3) -> list[Batch]:
    """Of graphs of 3 to 12 nodes, some without edges."""
    generator = torch.Generator().manual_seed(0)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    found = []
    for k in range(count):
        graphs = []
        for _ in range(7 + k):
            nodes = number(3, 13)
            edges = torch.randint(nodes, (2, number(0, 30)), generator=generator)
            x = torch.randn(nodes, FEATURES, generator=generator, dtype=torch.float64)
            graphs.append(Data(x=x, edge_index=edges, y=torch.tensor([number(0, CLASSES)])))
        found.append(Batch.from_data_list(graphs))
    return found


class Classifier(nn.Module):
    """GIN, pooled by sum, mean or maximum."""

    def __init__(self, pool: Any) -> None:
        super().__init__()
        self.convs = pyg.GIN(FEATURES, 8, 2, norm="batch_norm", train_eps=True)
        self.last = nn.Linear(8, CLASSES)
        self.pool = pool

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        return self.last(self.pool(self.convs(x, edge_index), batch).relu())


def rows(op: Op, config: Config) -> bool:
    """Everything by rows, as far as it can be."""
    if op.kind == "pooling":
        return config.strategy == "rows, summed" or op.reduce == ("max",)
    return op.kind in ("input", "opaque") or config.source.kind == "rows"


POOLS = {
    "sum": pyg.global_add_pool,
    "mean": pyg.global_mean_pool,
    "max": pyg.global_max_pool,
}


@pytest.mark.mostly_slow("2-mean")
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("size", [2, 4])
def test_graph_classification(pool: str, size: int) -> None:
    torch.manual_seed(0)
    model, steps = Classifier(POOLS[pool]).double(), batches()
    part = hp.parallel.by_graph(steps[0])
    graph = trace(model, steps[0], hag=False, part=part)
    assert [op.reduce for op in graph.ops if op.kind == "pooling"] == [
        ("sum",) if pool == "mean" else (pool,)
    ]
    space = space_with(graph, size, rows)
    chosen = list(space.cheapest().configs)
    plan = planned(space, chosen)
    counted = bytes_of(space, chosen)

    alone = copy.deepcopy(model)
    optimizer = sgd(alone.parameters())
    expected = []
    for batch in steps:
        optimizer.zero_grad()
        out = alone(batch.x, batch.edge_index, batch.batch)
        loss = F.cross_entropy(out, batch.y)
        loss.backward()
        optimizer.step()
        expected += [out.detach(), loss.detach()]

    def case(rank: int) -> Any:
        ours = hp.parallel.parallelize(model, steps[0], plan, part=part)
        optimizer = sgd(ours.parameters())
        found, sent = [], {}
        for k, batch in enumerate(steps):
            local = ours.parallel.share(batch) if k else ours.parallel.data
            optimizer.zero_grad()
            ours.parallel.sent.reset()
            out = ours(local)
            loss = ours.parallel.mean(F.cross_entropy(out, local.y, reduction="none"))
            loss.backward()
            sent = sent or {phase: ours.parallel.sent[phase] for phase in PHASES}
            optimizer.step()
            found += [out.detach(), loss.detach()]
        return found, {n: whole(p) for n, p in ours.state_dict().items()}, sent

    for rank, (found, state, sent) in enumerate(run_threads(size, case)):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(state, dict(alone.state_dict()), rtol=1e-10, atol=1e-10)
        assert sent == {p: int(counted[p][rank]) for p in PHASES}


def test_batches_are_cut_between_graphs() -> None:
    [batch] = batches(1)
    for parts in (1, 2, 4, 16):
        owner = hp.parallel.by_graph(batch)(parts)
        assert (owner[1:] >= owner[:-1]).all()
        assert owner.max() < parts
        source, target = owner[batch.edge_index.numpy()]
        assert (source == target).all()
        ends = batch.ptr[1:-1].numpy()
        assert set((owner[1:] != owner[:-1]).nonzero()[0] + 1) <= set(ends.tolist())


def test_one_row_of_all_nodes() -> None:
    class Readout(nn.Module):
        def __init__(self, reduce: str) -> None:
            super().__init__()
            self.conv, self.reduce = pyg.GCNConv(FEATURES, 4).double(), reduce

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return getattr(self.conv(x, edge_index), self.reduce)(dim=0, keepdim=True)

    [batch] = batches(1)
    for reduce in ("sum", "mean"):
        model = Readout(reduce)
        space = space_with(trace(model, batch, hag=False), 2, rows)
        plan = planned(space, list(space.cheapest().configs))
        expected = model(batch.x, batch.edge_index)
        assert plan.layer(reduce).config.strategy == "rows, summed"

        def case(rank: int, model: nn.Module = model, plan: Any = plan) -> Tensor:
            return hp.parallel.parallelize(model, batch, plan)()

        for out in run_threads(2, case):
            torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
