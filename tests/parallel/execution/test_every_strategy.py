"""Training with every strategy, order and choice of HAG: all of it as in one process.

Losses, outputs, every gradient, the weights after three steps, and the bytes of the plan.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric import nn as pyg
from torch_geometric.data import Data

from hag_plugin.parallel.model.opgraph import Op, OpGraph
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.strategies.registry import Config, Problem, configs_of

from ..equality import check
from ..models import CLASSES, FEATURES, RGCN, SkipPNA

NODES = 45
MODELS: dict[str, Any] = {
    "GCN": lambda: pyg.GCN(FEATURES, 12, 2, CLASSES),
    "SAGE": lambda: pyg.GraphSAGE(FEATURES, 12, 2, CLASSES, jk="cat"),
    "GIN": lambda: pyg.GIN(FEATURES, 12, 2, CLASSES, train_eps=True),
    "GAT": lambda: pyg.GAT(FEATURES, 16, 2, CLASSES, heads=4),
    "RGCN": RGCN,
    "RGCN of bases": lambda: RGCN(num_bases=3),
    "RGCN of blocks": lambda: RGCN(num_blocks=4),
    "PNA": SkipPNA,
}


def cliques(dtype: torch.dtype = torch.float64) -> Data:
    """Cliques, so that HAGs share, and edges between them; the last nodes have none."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.arange(40).view(5, 8)
    pairs = [torch.cartesian_prod(b, b) for b in blocks]
    between = torch.randint(40, (60, 2), generator=generator)
    edges = torch.cat([*pairs, between]).T.contiguous()
    edges = edges[:, edges[0] != edges[1]]
    kinds = torch.randint(4, (edges.shape[1],), generator=generator)
    x = torch.randn(NODES, FEATURES, generator=generator, dtype=dtype)
    y = torch.randint(CLASSES, (NODES,), generator=generator)
    mask = torch.rand(NODES, generator=generator) < 0.7
    return Data(x=x, edge_index=edges, edge_type=kinds, y=y, train_mask=mask)


Choice = tuple[str, str, str]  # strategy, order and HAG


def chosen(config: Config) -> Choice:
    return config.strategy, config.order, config.hag


def choices(graph: OpGraph, size: int) -> dict[str, dict[Choice, None]]:
    """What each layer with edges can be given."""
    return {
        op.name: {chosen(c): None for c in configs_of(Problem(graph, op, size))[0]}
        for op in graph.ops
        if op.kind in ("convolution", "attention")
    }


def train(model: nn.Module, data: Data, size: int, **options: Any) -> set[Choice]:
    """Trains with every choice; layers that cannot have it get what is cheapest."""
    model = model.to(data.x.dtype)
    legal = choices(trace(model, data), size)
    tried = dict.fromkeys(choice for of_layer in legal.values() for choice in of_layer)
    for choice in tried:

        def allow(op: Op, config: Config, choice: Choice = choice) -> bool:
            return choice not in legal.get(op.name, ()) or choice == chosen(config)

        plan = check(model, data, size, allow, hag=True, **options)
        assert choice in {chosen(layer.config) for layer in plan.layers}
    return set(tried)


SEARCHED = {"GCN": 30, "SAGE": 26, "GIN": 12}


@pytest.mark.mostly_slow("GAT-2", "RGCN-2")
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_training_is_that_of_one_process(name: str, size: int) -> None:
    tried = train(MODELS[name](), cliques(), size)
    if size == 4 and name in SEARCHED:
        assert len(tried) == SEARCHED[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GCN", "SAGE", "GIN"])
def test_training_in_single_precision(name: str) -> None:
    data = cliques(torch.float32)
    model = MODELS[name]()
    for strategy in ("rows, halo", "rows, vertex-cover halo", "all-to-all around aggregation"):
        check(
            model, data, 4, lambda op, c, s=strategy: op.kind != "convolution" or c.strategy == s,
            hag=True, tolerance=1e-5,
        )  # fmt: skip
