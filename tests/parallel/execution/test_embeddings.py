"""Features that are learned: a table with a row for each node, split as what reads it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric import nn as pyg
from torch_geometric.data import Data

import hag_plugin as hp
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.search.planner import planned

from ..equality import space_with, whole
from ..models import CLASSES
from ..run_ranks import run_threads

NODES, WIDTH = 23, 8


def data() -> Data:
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(NODES - 2, (2, 120), generator=generator)
    return Data(edge_index=edges, n_id=torch.arange(NODES), order=torch.arange(NODES).flip(0),
                num_nodes=NODES)  # fmt: skip


class Looked(nn.Module):
    """A table that is looked up, read as it is, or in another order."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.table, self.conv, self.how = nn.Embedding(NODES, WIDTH), pyg.SAGEConv(WIDTH, 6), how
        self.last = nn.Linear(6, CLASSES)

    def forward(self, d: Data) -> Tensor:
        if self.how == "as it is":
            h = self.table.weight
        else:
            h = self.table(d.n_id if self.how == "looked up" else d.order)
        return self.last(self.conv(h, d.edge_index).relu())


def light_gcn(m: Any, d: Data) -> Any:
    return m.get_embedding(d.edge_index)


Make = Callable[[], nn.Module]
MODELS: dict[str, tuple[Make, Any]] = {
    "LightGCN": (lambda: pyg.LightGCN(NODES, WIDTH, 2), light_gcn),
    "looked up": (lambda: Looked("looked up"), None),
    "as it is": (lambda: Looked("as it is"), None),
    "in another order": (lambda: Looked("in another order"), None),
}


@pytest.mark.parametrize("strategy", ["replicate", "rows", "columns"])
@pytest.mark.parametrize("name", MODELS)
def test_it_trains_as_one_process(name: str, strategy: str) -> None:
    make, call = MODELS[name]
    torch.manual_seed(0)
    model, given = make().double(), data()
    expected = (call or (lambda m, d: m(d)))(model, given)
    expected.square().mean().backward()
    traced = trace(model, given, hag=False, call=call)
    kinds = [op.kind for op in traced.ops]
    assert kinds.count("embedding") == 1
    assert ("opaque" in kinds) == (name == "in another order")
    space = space_with(traced, 2, lambda op, c: op.kind != "embedding" or c.strategy == strategy)
    plan = planned(space, space.cheapest().configs)

    def case(rank: int) -> Any:
        ours = hp.parallel.parallelize(model, given, plan, call=call)
        table = next(m for m in ours.modules() if isinstance(m, nn.Embedding)).weight
        out = ours()
        ours.parallel.mean(out.square()).backward()
        grads = [whole(p.grad) for p in ours.parameters()]
        return ours.parallel.gather(out), grads, tuple(table.to_local().shape)

    shapes = {"replicate": [(NODES, WIDTH)] * 2, "columns": [(NODES, WIDTH // 2)] * 2}
    found = run_threads(2, case)
    assert [rank[2] for rank in found] == shapes.get(strategy, [(12, WIDTH), (11, WIDTH)])
    for out, grads, _ in found:
        torch.testing.assert_close(out, expected.detach(), rtol=1e-10, atol=1e-10)
        wanted = [p.grad for p in model.parameters()]
        torch.testing.assert_close(grads, wanted, rtol=1e-10, atol=1e-10)


def test_the_cheapest_plan_splits_the_table() -> None:
    nodes = 1_000_000
    with torch.device("meta"):
        model = pyg.LightGCN(nodes, WIDTH, 2)
    stats = hp.parallel.GraphStats.assumed(nodes, 20 * nodes)
    graph = trace(model, stats, features=1, hag=False, call=light_gcn)
    plan = hp.parallel.plan(graph, topology="a100x8")
    assert plan.layer("embedding").config.strategy in ("rows", "columns")


def test_rows_are_split_where_the_nodes_are_split_alike() -> None:
    import numpy as np

    def part(parts: int) -> np.ndarray:
        return (np.arange(NODES) >= 5).astype(np.int64)

    model = pyg.LightGCN(NODES, WIDTH, 2)
    with pytest.raises(hp.parallel.InfeasibleError, match=r"split as \[12, 11\], the nodes as \[5"):
        hp.parallel.plan(model, data(), "cpu2", hag="off", call=light_gcn, part=part,
                         require={"embedding": "rows"})  # fmt: skip


def test_a_table_of_other_rows_is_a_weight() -> None:
    model = Looked("looked up")
    model.table = nn.Embedding(NODES + 1, WIDTH)
    given = data()
    given.x = torch.rand(NODES, 3)
    with pytest.raises(TypeError, match="does not come from the features"):
        trace(model, given, hag=False)
