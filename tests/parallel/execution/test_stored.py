"""Models run from a store, of which each rank has its part alone, and compute what one process
computes on the whole graph.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch_geometric import nn as pyg
from torch_geometric.data import Data

import hag_plugin as hp
from hag_plugin.parallel.model.opgraph import Op
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.search.planner import planned
from hag_plugin.parallel.strategies.registry import Config

from ..equality import bytes_of, compare, sgd, space_with, train_alone, train_together
from ..run_ranks import run_threads

hpp = hp.parallel
FEATURES, CLASSES = 6, 4
MODELS = {
    "GCN": lambda: pyg.GCN(FEATURES, 8, 2, CLASSES),
    "SAGE": lambda: pyg.GraphSAGE(FEATURES, 8, 2, CLASSES),
    "GIN": lambda: pyg.GIN(FEATURES, 8, 2, CLASSES),
    "GAT": lambda: pyg.GAT(FEATURES, 8, 2, CLASSES, heads=2),
}
FETCHES = ("rows, all-gather", "rows, halo")


def model_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[kind]().double()


def fetched_by(strategy: str, ranks: int) -> Any:
    """All plans in which layers with edges fetch rows so."""

    def allow(op: Op, config: Config) -> bool:
        if ranks == 1:
            return True
        if op.kind in ("convolution", "attention"):
            return config.strategy == strategy
        return op.kind == "input" or config.source.kind == "rows"

    return allow


def stored(data: Data, owner: np.ndarray, ranks: int, folder: Path) -> Data:
    """Writes a store; the same graph in its numbering."""
    hpp.write_partitions(data, ranks, folder, assignment=owner)
    order = torch.cat([hpp.PartitionedData(folder, rank).nodes for rank in range(ranks)])
    found = data.clone()
    for name in ("x", "y", "train_mask"):
        found[name] = data[name][order]
    found.edge_index = order.argsort()[data.edge_index]
    return found


def check_stored(
    model: nn.Module, folder: Path, data: Data, ranks: int, strategy: str, hag: str = "off"
) -> None:
    """Trains from a store and alone; all must be equal, and the bytes those of the plan."""
    part = hpp.PartitionedData(folder, 0)
    graph = trace(model, part)
    space = space_with(graph, ranks, fetched_by(strategy, ranks))
    chosen = list(space.cheapest().configs)
    plan = planned(space, chosen)

    def case(rank: int) -> Any:
        with torch.autograd.set_multithreading_enabled(False):
            return train_together(model, hpp.PartitionedData(folder), plan, sgd)

    found = run_threads(ranks, case)
    compare(found, train_alone(model, data, sgd), bytes_of(space, chosen), 1e-10)


@st.composite
def hostile(draw: Any) -> tuple[Data, np.ndarray, int]:
    """A graph with duplicates, loops, isolated nodes, or no edges; parts may be empty."""
    nodes, ranks = draw(st.integers(4, 20)), draw(st.integers(1, 4))
    ids = st.integers(0, nodes - 1)
    pairs = draw(st.lists(st.tuples(ids, ids), max_size=50))
    edges = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t()
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    owner = random.choice(draw(st.lists(st.integers(0, ranks - 1), min_size=1)), nodes)
    mask = torch.from_numpy(random.random(nodes) < 0.7)
    mask[0] = True
    data = Data(
        torch.from_numpy(random.standard_normal((nodes, FEATURES))),
        edges,
        y=torch.from_numpy(random.integers(0, CLASSES, nodes)),
        train_mask=mask,
    )
    return data, owner, ranks


@pytest.mark.parametrize("strategy", FETCHES)
@pytest.mark.parametrize("kind", MODELS)
def test_equal_to_one_process(kind: str, strategy: str) -> None:
    model = model_of(kind)

    @settings(max_examples=8)
    @given(hostile())
    def check(drawn: tuple[Data, np.ndarray, int]) -> None:
        data, owner, ranks = drawn
        with TemporaryDirectory() as folder:
            path = Path(folder) / "parts"
            whole = stored(data, owner, ranks, path)
            check_stored(model, path, whole, ranks, strategy)

    check()
