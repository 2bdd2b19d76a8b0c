"""Whole models on 8 and 16 ranks: what each sends, in each phase, is what the planner says.

Values, gradients and the weights after a step are those of one process, too.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch_geometric import nn as pyg
from torch_geometric.data import Data

from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.search.plan import Plan
from hag_plugin.parallel.search.planner import planned
from hag_plugin.parallel.strategies.registry import Problem, configs_of

from ..equality import bytes_of, compare, sgd, space_with, train_alone, train_together
from ..run_ranks import run_threads

WIDTH, HIDDEN, NODES = 16, 32, 70  # 16 ranks have 5 nodes each, the last two none
MODELS: dict[str, Any] = {
    "GCN": lambda: pyg.GCN(WIDTH, HIDDEN, 2, WIDTH, norm="batch"),
    "SAGE": lambda: pyg.GraphSAGE(WIDTH, HIDDEN, 2, WIDTH, jk="cat", norm="layer"),
    "GIN": lambda: pyg.GIN(WIDTH, HIDDEN, 2, WIDTH, train_eps=True),
}
MIXES = 3  # plans in which each operation has any of its configurations


def data() -> Data:
    """Few enough edges that some pairs of parts have none between them."""
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(NODES - 4, (2, 300), generator=generator)
    x = torch.randn(NODES, WIDTH, generator=generator, dtype=torch.float64)
    y = torch.randint(WIDTH, (NODES,), generator=generator)
    mask = torch.rand(NODES, generator=generator) < 0.5
    return Data(x=x, edge_index=edges, y=y, train_mask=mask)


def plans(model: Any, size: int) -> list[tuple[Plan, dict[str, Any]]]:
    """Mixes, and their bytes; before them, on 8 ranks, each strategy of the layers with edges."""
    graph = trace(model, data(), hag=False)
    convolutions = [op for op in graph.ops if op.kind == "convolution"]
    legal = {op.name: configs_of(Problem(graph, op, size))[0] for op in convolutions}
    chosen = []
    names = list(dict.fromkeys(c.strategy for configs in legal.values() for c in configs))
    for name in names if size == 8 else []:

        def allow(op: Any, config: Any, name: str = name) -> bool:
            known = {c.strategy for c in legal.get(op.name, ())}
            return name not in known or config.strategy == name

        space = space_with(graph, size, allow)
        chosen.append((space, list(space.cheapest().configs)))
    space, draw = space_with(graph, size, lambda op, config: True), random.Random(size)
    chosen += [(space, [draw.randrange(len(c)) for c in space.configs]) for _ in range(MIXES)]
    return [(planned(space, configs), bytes_of(space, configs)) for space, configs in chosen]


@pytest.mark.slow
@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("name", MODELS)
def test_bytes_are_those_of_the_plan(name: str, size: int) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().double()
    expected = train_alone(model, data(), sgd, steps=1)
    tried = plans(model, size)

    def case(rank: int) -> list[Any]:
        return [train_together(model, data(), plan, sgd, steps=1) for plan, _ in tried]

    ranks = run_threads(size, case)
    for found, (_, counted) in zip(zip(*ranks, strict=True), tried, strict=True):
        compare(list(found), expected, counted, 1e-10)
    mixed = [{c.strategy for c in plan.configs.values()} for plan, _ in tried[-MIXES:]]
    assert all(len(strategies) > 3 for strategies in mixed)
    assert all(sent[phase].all() for _, sent in tried[-MIXES:] for phase in ("forward", "backward"))
