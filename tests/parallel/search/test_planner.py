"""Plans: optimal, within memory, the same in every run."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hag_plugin.parallel.graphs.stats import GraphStats
from hag_plugin.parallel.machine.topology import Topology, preset
from hag_plugin.parallel.model.opgraph import Op, OpGraph, convolution
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.search.baselines import uniform
from hag_plugin.parallel.search.cost import Analytic
from hag_plugin.parallel.search.elimination import InfeasibleError
from hag_plugin.parallel.search.exact import brute_force
from hag_plugin.parallel.search.planner import alternatives, plan, planned, recost
from hag_plugin.parallel.search.space import Space
from hag_plugin.parallel.strategies.registry import REGISTRY, Config

from ..models import MODELS, deep, graph

MAX_CHOICES = 6000  # that brute force goes through


@pytest.fixture(scope="module")
def traced() -> dict[str, OpGraph]:
    """The models on a graph as large as makes splitting pay."""
    stats = GraphStats.assumed(
        400_000, 8_000_000, halo_ratio=1.5, imbalance=1.2, hag=0.6, hag_parts=0.8, relations=4
    )
    return {name: trace(make(), stats, features=16) for name, make in MODELS.items()}


def some_configs(full: Space, seed: int) -> Callable[[int, Config], bool]:
    """A random few configurations of each operation, so that brute force can try them all."""
    rng = np.random.default_rng(seed)
    kept: list[list[Config]] = [[] for _ in full.configs]
    pairs = [(i, c) for i, configs in enumerate(full.configs) for c in configs]
    for k in rng.permutation(len(pairs)):
        i, config = pairs[k]
        others = [max(len(few), 1) for j, few in enumerate(kept) if j != i]
        if not kept[i] or np.prod(others) * (len(kept[i]) + 1) <= MAX_CHOICES:
            kept[i].append(config)
    return lambda op, config: config in kept[op]


# Optimality -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("machine", ["a100x8", "pcie4x4", "cpu2"])
def test_exact_equals_brute_force_on_models(
    traced: dict[str, OpGraph], name: str, machine: str
) -> None:
    topology = preset(machine)
    full = Space(traced[name], topology, Analytic(topology))
    for seed in range(2):
        space = Space(traced[name], topology, Analytic(topology), some_configs(full, seed))
        fast, slow = space.cheapest(), brute_force(space.cost_graph)
        assert fast.cost == pytest.approx(slow.cost, rel=1e-12)
        assert full.cheapest().cost <= fast.cost * (1 + 1e-12)


@pytest.mark.slow
def test_exact_equals_brute_force_within_memory(traced: dict[str, OpGraph]) -> None:
    topology = preset("pcie4x4")
    bound = 0
    for name, seed in itertools.product(["GCN", "PNA with skips", "jumping knowledge"], range(2)):
        full = Space(traced[name], topology, Analytic(topology))
        space = Space(traced[name], topology, Analytic(topology), some_configs(full, seed))
        choices = [
            (space.cost_graph.cost(c), space.bound(c), space.memory(c).total)
            for c in itertools.product(*(range(len(k)) for k in space.configs))
        ]
        sizes = [size for _, size, _ in choices]
        assert all(exact <= size for _, size, exact in choices)
        free = min(choices, key=lambda c: c[0])
        for limit in np.quantile(sizes, [0.0, 0.1, 0.5]):
            fast = space.cheapest(limit)
            slow = min(c for c, size, _ in choices if size <= limit)
            slow = free[0] if free[2] <= limit else slow
            assert fast.cost == pytest.approx(slow, rel=1e-12)
            assert space.memory(fast.configs).total <= limit
            bound += fast.cost > space.cheapest().cost
        with pytest.raises(InfeasibleError) as caught:
            space.cheapest(min(exact for *_, exact in choices) - 1)
        assert caught.value.nearest is not None
        assert space.bound(caught.value.nearest.configs) == min(sizes)
    assert bound > 0  # the limit mattered


@pytest.mark.mostly_slow("cpu2-*")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("machine", ["a100x8", "4x8hdr", "cpu2"])
def test_no_uniform_strategy_is_better(traced: dict[str, OpGraph], name: str, machine: str) -> None:
    topology = preset(machine)
    found = plan(traced[name], topology=topology, memory=1e15)
    compute = Analytic(topology)
    compared = 0
    for strategy in sorted(
        {name for kind, name in REGISTRY if kind in ("convolution", "attention")}
    ):
        for everywhere in (False, True):
            other = uniform(traced[name], topology, compute, strategy, everywhere=everywhere)
            if other is not None:
                compared += 1
                assert found.seconds <= other.cost * (1 + 1e-12)
    assert compared >= 2
    assert all(found.seconds <= s * (1 + 1e-12) for s in found.baselines.values())


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_costs_what_it_claims(traced: dict[str, OpGraph], name: str) -> None:
    found = plan(traced[name], topology="4x8hdr")
    again = recost(found, traced[name], "4x8hdr")
    assert again == found
    topology = preset("4x8hdr")
    space = Space(traced[name], topology, Analytic(topology))
    chosen = [
        configs.index(layer.config)
        for layer, configs in zip(found.layers, space.configs, strict=True)
    ]
    assert space.cost_graph.cost(chosen) == pytest.approx(found.seconds, rel=1e-12)
    assert space.memory(chosen) == found.memory
    assert planned(space, chosen).layers == found.layers


def test_the_pair_is_found() -> None:
    """Fixed, replicated, wide features, a hidden layer, few classes: hidden is never sent."""
    stats = GraphStats.assumed(100_000, 1_000_000, halo_ratio=6.0)
    ops = [
        Op("x", "input", width=1024),
        convolution("conv1", 0, 1024, 256, input_grad=False),
        Op("relu", "elementwise", (1,), 256),
        convolution("conv2", 2, 256, 8),
        Op("loss", "loss", (3,), 8),
    ]
    found = plan(OpGraph.of(ops, {"A": stats}), topology="pcie4x4", memory=1e12)
    assert found.layer("conv1").config.strategy == "column-split weights"
    assert found.layer("conv1").sent == found.layer("relu").sent == 0
    assert found.layer("conv2").config.strategy == "columns, row-split weights"
    assert found.layer("conv2").sent == 2 * 3 * 25_000 * 8 * 4


def test_layers_get_strategies_of_their_own() -> None:
    stats = GraphStats.assumed(2_400_000, 120_000_000, halo_ratio=2.0)
    model = deep(3, 256, stats, first=100)
    found = plan(model, topology="a100x8")
    assert len({layer.config for layer in found.layers if layer.kind == "convolution"}) > 1
    assert found.seconds < min(found.baselines.values())


def test_hags_are_used_where_they_pay_and_nowhere_if_unwanted() -> None:
    stats = GraphStats.assumed(100_000, 5_000_000, hag=0.3, hag_parts=0.5)
    model = deep(2, 64, stats)
    hags = {k.config.hag for k in plan(model).layers if k.kind == "convolution"}
    assert "off" not in hags
    assert {k.config.hag for k in plan(model, hag="off").layers} == {"off"}
    assert plan(model).seconds < plan(model, hag="off").seconds
    useless = deep(2, 64, GraphStats.assumed(100_000, 5_000_000, hag=1.0, hag_parts=1.0))
    assert {k.config.hag for k in plan(useless).layers} == {"off"}


@pytest.mark.parametrize("devices", [8, 64])
def test_graphs_of_100_million_edges_are_planned(devices: int) -> None:
    stats = GraphStats.assumed(111_000_000 // 10, 100_000_000, halo_ratio=2.0, hag=0.8)
    machine = preset("4x8hdr").resized(devices)
    found = plan(deep(3, 256, stats), topology=machine)
    assert found.world_size == devices
    assert found.memory.total <= machine.device.memory


def test_one_device_needs_no_communication() -> None:
    found = plan(deep(2, 64, GraphStats.assumed(1000, 10_000)), topology="cpu2", world_size=1)
    assert all(layer.sent == 0 for layer in found.layers)
    assert {layer.config.strategy for layer in found.layers} == {"laid out", "replicate"}


SCRIPT = """
import json, sys
from hag_plugin.parallel import plan, trace
from tests.parallel.models import MODELS, graph
print(json.dumps(plan(MODELS["jumping knowledge"](), graph(), sys.argv[1]).as_dict()))
"""


def test_plans_do_not_depend_on_the_run() -> None:
    documents = []
    for threads, seed in (("1", "0"), ("2", "1")):
        environment = os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, "pcie4x4"],
            cwd=Path(__file__).parents[3],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        documents.append(done.stdout)
    assert documents[0] == documents[1]


# Memory and refusals --------------------------------------------------------------------------


def test_memory_limits_are_kept_and_cost_time() -> None:
    stats = GraphStats.assumed(2_000_000, 50_000_000, halo_ratio=2.0, hag=0.5, hag_parts=0.6)
    model = deep(3, 256, stats)
    free = plan(model, topology="a100x8")
    with pytest.raises(InfeasibleError, match="the smallest that was found needs") as caught:
        plan(model, topology="a100x8", memory=free.memory.total / 100)
    nearest = caught.value.nearest
    assert nearest is not None
    least = nearest.memory
    assert least is not None
    last = free.seconds
    for limit in np.linspace(free.memory.total, least, 5):
        tight = plan(model, topology="a100x8", memory=float(limit))
        assert tight.memory.total <= limit
        assert tight.seconds >= last
        last = tight.seconds
    assert last > free.seconds


def test_requests_that_cannot_be_met_are_refused_with_what_can() -> None:
    model = deep(2, 64, GraphStats.assumed(1000, 10_000))
    with pytest.raises(InfeasibleError, match="a100x8 has 8 devices: expected 1 to 8"):
        plan(model, topology="a100x8", world_size=9)
    with pytest.raises(InfeasibleError, match="1000 nodes cannot be split over 4096"):
        plan(model, topology=preset("4x8hdr").resized(4096))
    with pytest.raises(
        InfeasibleError, match=r"'conv0'.*relations: it has 1 relations.*rows, halo"
    ):
        plan(model, require={"conv0": "relations"})
    with pytest.raises(ValueError, match="require names"):
        plan(model, require={"conv9": "rows, halo"})
    with pytest.raises(ValueError, match="costs is 'free'"):
        plan(model, costs="free")
    with pytest.raises(ValueError, match="hag is 'whole'"):
        plan(model, hag="whole")
    with pytest.raises(ValueError, match="cannot have 12"):
        plan(model, topology="4x8hdr", world_size=12)


def test_a_strategy_may_be_required() -> None:
    model = deep(2, 64, GraphStats.assumed(100_000, 1_000_000))
    found = plan(model, require={"conv0": "rows, all-gather"})
    assert found.layer("conv0").config.strategy == "rows, all-gather"
    assert found.seconds >= plan(model).seconds


def test_alternatives_are_priced_or_refused(traced: dict[str, OpGraph]) -> None:
    found = plan(traced["GAT"], topology="pcie4x4")
    listed = alternatives(found, traced["GAT"], "pcie4x4")
    assert set(listed) == {"convs.0", "convs.1"}
    for name, entries in listed.items():
        priced = [v for v in entries.values() if not isinstance(v, str)]
        assert min(priced) == pytest.approx(found.seconds)
        assert entries[found.layer(name).config.strategy] == min(priced)


@pytest.mark.slow
def test_models_and_data_are_planned_in_one_call(shared_data: Path) -> None:
    from torch_geometric.nn import GCN

    import hag_plugin as hp
    from hag_plugin.data import datasets

    data = datasets.load("AmazonPhoto", shared_data / "npz")
    model = GCN(data.x.shape[1], 64, 2, data.num_classes)  # type: ignore[union-attr]
    found = hp.parallel.plan(model, data, "pcie4x4")
    assert found.seconds <= min(found.baselines.values())
    assert {layer.config.hag for layer in found.layers} != {"off"}  # AmazonPhoto shares
    found.check(trace(model, data), 4)
    small = hp.parallel.plan(MODELS["GCN"](), graph(), Topology.from_dict(preset("cpu2").as_dict()))
    assert small.world_size == 2
