"""What goes wrong ends on every rank, with a clear error, within a time limit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric import nn as pyg
from torch_geometric.data import Data

import hag_plugin as hp
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.search.plan import Plan
from hag_plugin.parallel.search.planner import planned

from ..equality import check, space_with
from ..run_ranks import launch, run_threads
from .test_parallelize import CLASSES, FEATURES, data


def network(hidden: int = 16, layers: int = 2) -> nn.Module:
    return pyg.GCN(FEATURES, hidden, layers, CLASSES).double()


def with_more(model: nn.Module, size: int) -> nn.Module:
    """With weights that no layer uses."""
    model.register_parameter("more", nn.Parameter(torch.zeros(size).double()))
    return model


def plan_of(model: nn.Module, graph: Data, size: int, strategy: str = "rows, halo") -> Plan:
    space = space_with(
        trace(model, graph, hag=False),
        size,
        lambda op, c: op.kind != "convolution" or c.strategy == strategy,
    )
    return planned(space, list(space.cheapest().configs))


def blocks(graph: Data, parts: int) -> hp.parallel.Partition:
    """The nodes in so many blocks."""
    return hp.parallel.partition(graph.edge_index, graph.num_nodes, parts, "contiguous")


def step(model: Any) -> None:
    local = model.parallel.data
    out = model()[local.train_mask]
    loss = F.cross_entropy(out, local.y[local.train_mask], reduction="none")
    model.parallel.mean(loss).backward()


# Setup: errors in the arguments -----------------------------------------------------------------


def setups(rank: int) -> dict[str, str]:
    """What `parallelize` says on this rank, case by case."""
    model, graph = network(), data()
    plan = plan_of(model, graph, 2)
    relabelled = data()
    relabelled.edge_index = relabelled.edge_index.flip(0)
    mine = plan if rank == 0 else plan_of(model, graph, 2, "rows, all-gather")
    cases: dict[str, tuple[Any, ...]] = {
        "another graph": (model, relabelled, plan),
        "other nodes": (model, data(nodes=40), plan),
        "another model": (network(layers=3), graph, plan),
        "another width": (network(hidden=24), graph, plan),
        "another world size": (model, graph, plan_of(model, graph, 4)),
        "a grid for more ranks": (model, graph, plan_of(model, graph, 4, "2-D grid")),
        "no plan": (model, graph, "nowhere/plan.json"),
        "no topology": (model, graph, "auto"),
        "another plan on a rank": (model, graph, mine),
        "another model on a rank": (network(16 + 8 * rank), graph, plan),
        "other weights on a rank": (with_more(network(), 1 + rank), graph, plan),
        "a partition of more parts": (model, graph, plan, blocks(graph, 3)),
        "parts that are mixed": (model, graph, plan, lambda parts: np.arange(37) % parts),
        "parts of other nodes": (model, graph, plan, lambda parts: np.zeros(40, np.int64)),
        "no file on a rank": (model, graph, plan if rank == 0 else "nowhere/plan.json"),
        "another graph on a rank": (model, data() if rank == 0 else relabelled, plan),
        "no features on a rank": (model, data() if rank == 0 else Data(num_nodes=37), plan),
    }
    said = {}
    for name, (*arguments, given) in ((k, (*v, None)[:4]) for k, v in cases.items()):
        try:
            hp.parallel.parallelize(*arguments, part=given)
        except Exception as e:
            said[name] = f"{type(e).__name__}: {e}"
        else:
            said[name] = "nothing"
    step(hp.parallel.parallelize(model, graph, plan))  # the ranks are still together
    return said


EXPECTED = {
    "another graph": "ValueError: the plan is for graph .*: plan again for this graph",
    "other nodes": "ValueError: the plan is for 37 nodes; the graph has 40",
    "another model": "ValueError: the plan is for another model: they differ in .*convs.2",
    "another width": "ValueError: the plan is for model GCN with fingerprint",
    "another world size": "ValueError: the plan is for 4 devices; there are 2",
    "a grid for more ranks": "ValueError: the plan is for 4 devices; there are 2",
    "no plan": "FileNotFoundError: .*nowhere/plan.json",
    "no topology": "ValueError: plan='auto' needs topology=",
    "another plan on a rank": "ValueError: rank [01] has another plan than rank [01]",
    "a partition of more parts": "ValueError: the partition has 3 parts; 2 are wanted",
    "parts that are mixed": "ValueError: part gave an array .*expected .37., increasing, of 0..1",
    "parts of other nodes": r"ValueError: part gave an array of shape \(40,\); expected .37.",
}
EXPECTED_BY_RANK = {
    "another model on a rank": (
        "RuntimeError: checking the plan failed on rank 1: ValueError: the plan is for model",
        "ValueError: the plan is for model GCN with fingerprint",
    ),
    "other weights on a rank": (
        "RuntimeError: taking the first rank's weights failed on rank 1: ValueError",
        "ValueError: the model's weights have shapes",
    ),
    "no file on a rank": (
        "RuntimeError: planning failed on rank 1: FileNotFoundError",
        "FileNotFoundError: .*nowhere/plan.json",
    ),
    "another graph on a rank": (
        "RuntimeError: checking the plan failed on rank 1: ValueError: the plan is for graph",
        "ValueError: the plan is for graph",
    ),
    "no features on a rank": (
        "RuntimeError: checking the plan failed on rank 1: ",
        r"\w+Error: ",
    ),
}


def test_setup_is_refused_on_all_ranks() -> None:
    import re

    for rank, said in enumerate(run_threads(2, setups, limit=60)):
        assert set(said) == set(EXPECTED) | set(EXPECTED_BY_RANK)
        for name, words in said.items():
            expected = EXPECTED.get(name) or EXPECTED_BY_RANK[name][rank]
            assert re.match(expected, words, re.DOTALL), f"{name} on rank {rank}: {words}"


# Parts that are uneven or empty ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["rows, halo", "rows, all-gather", "2-D grid"])
@pytest.mark.parametrize("nodes", [5, 6, 9])
def test_parts_without_nodes(strategy: str, nodes: int) -> None:
    """5 nodes on 4 ranks are 2, 2, 1, 0; the mask leaves some without a row in the loss."""
    torch.manual_seed(0)
    check(network(), data(nodes, 3 * nodes), 4,
          lambda op, c: op.kind != "convolution" or c.strategy == strategy)  # fmt: skip


# Ranks that end ----------------------------------------------------------------------------------


def dies_in_training(rank: int) -> None:
    model, graph = network(), data()
    model = hp.parallel.parallelize(model, graph, plan_of(model, graph, 2))
    step(model)
    if rank == 1:
        os._exit(7)
    for _ in range(100):
        step(model)


def fails_in_training(rank: int) -> None:
    model, graph = network(), data()
    model = hp.parallel.parallelize(model, graph, plan_of(model, graph, 2))
    step(model)
    if rank == 1:
        raise torch.OutOfMemoryError("no memory for the activations")
    for _ in range(100):
        step(model)


def dies_in_setup(rank: int) -> None:
    model, graph = network(), data()
    plan = plan_of(model, graph, 2)
    if rank == 1:
        os._exit(7)
    hp.parallel.parallelize(model, graph, plan)


@pytest.mark.parametrize("case", [dies_in_training, fails_in_training, dies_in_setup])
def test_a_rank_that_ends(case: Any) -> None:
    (how, said), (other, _) = launch(2, case, limit=60, timeout=20)
    assert how == "raised"
    assert "among ranks [0, 1] failed; another rank has ended" in said
    assert other == ("raised" if case is fails_in_training else "died")


def out_of_memory(rank: int) -> None:
    """One rank may not have as much memory as its features need."""
    import resource

    wide = 1 << 16
    model = nn.Sequential(nn.Linear(wide, 4))
    x = torch.zeros(1, wide).expand(4096, wide)  # 1 GiB, once it is laid out
    graph = Data(x=x, edge_index=torch.zeros(2, 0, dtype=torch.long))

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = model

        def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.layers(x)
            return out

    space = space_with(trace(Wide(), graph, hag=False), 2, lambda op, c: True)
    plan = planned(space, list(space.cheapest().configs))
    if rank == 1:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), -1))
    hp.parallel.parallelize(Wide(), graph, plan)


def test_out_of_memory_at_setup() -> None:
    (how0, said0), (how1, said1) = launch(2, out_of_memory, limit=60, timeout=20)
    assert how0 == how1 == "raised"
    assert "failed on rank 1: RuntimeError:" in said0
    for said in (said0, said1):
        assert "memory" in said.splitlines()[-1]
