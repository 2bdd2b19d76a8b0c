"""Plans of graph networks in the simulator: what they take, priced and simulated."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hag_plugin.parallel import OpGraph, measure, plan, simulate_plan, space_of
from hag_plugin.parallel.machine.topology import load
from hag_plugin.parallel.search.cost import Analytic
from hag_plugin.parallel.search.space import Space
from hag_plugin.parallel.simulation.plan_tasks import PlanModel
from hag_plugin.parallel.simulation.simulator import critical_path
from hag_plugin.parallel.simulation.strategy_model import SimulatedStrategy, simulate_strategy

from ..models import deep, skipping

MACHINES = ("a100x8", "pcie4x4", "4x8hdr", "k80x4")


@pytest.fixture(scope="module", params=MACHINES)
def space(request: pytest.FixtureRequest) -> Space:
    return space_of(skipping(), request.param)


def test_overlap_only_saves(space: Space) -> None:
    """A simulated plan is never slower than priced, nor faster than its longest chain."""
    found = plan(space.graph, topology=space.topology)
    schedule = simulate_plan(found, space)
    schedule.check()
    assert critical_path(schedule.graph) <= schedule.makespan <= found.seconds + 1e-6
    assert schedule.makespan < found.seconds  # weights are summed beside the backward pass
    busy = sum(schedule.seconds_by_kind().values())
    assert busy == pytest.approx(found.seconds, abs=1e-6)  # all that is priced is simulated


@settings(max_examples=25)
@given(st.data())
def test_any_plan_is_simulated_as_it_is_priced(data: st.DataObject) -> None:
    space = space_of(skipping(), data.draw(st.sampled_from(MACHINES)))
    model = PlanModel(space)
    strategy = [data.draw(st.integers(0, size - 1)) for size in model.sizes]
    schedule = simulate_strategy(model, strategy)
    schedule.check()
    priced = space.cost_graph.cost(strategy)
    assert schedule.makespan <= priced + 1e-6
    assert sum(schedule.seconds_by_kind().values()) == pytest.approx(priced, abs=1e-6)


def test_delta_equals_full_on_plans(space: Space) -> None:
    model, choose = PlanModel(space), random.Random(0)
    chain = SimulatedStrategy(model, [0] * len(model.names))
    for _ in range(200):
        node = choose.randrange(len(model.names))
        config = choose.randrange(model.num_configs(node))
        changed = [*chain.strategy[:node], config, *chain.strategy[node + 1 :]]
        assert chain.propose(node, config) == simulate_strategy(model, changed).makespan
        if choose.random() < 0.4:
            chain.accept()
        else:
            chain.reject()


def halos(inner: bool = True, attends: bool = False) -> Space:
    """Of a graph whose edges are known, and the halo strategy for its layers."""
    generator = torch.Generator().manual_seed(0)
    near = torch.randint(4000, (2, 60_000), generator=generator)
    near[1] = (near[0] + torch.randint(1, 200, (60_000,), generator=generator)) % 4000
    stats = measure(near, 4000, hag=False)
    if not inner:
        stats = replace(stats, _cut=lambda p, m, cut=stats._cut: replace(cut(p, m), inner=None),
                        _partitions={})  # fmt: skip
    machine, graph = load("pcie4x4"), deep(3, 64, stats)
    if attends:
        layers = (replace(op, kind="attention", heads=4, transform=False)
                  if op.kind == "convolution" else op for op in graph.ops)  # fmt: skip
        graph = OpGraph.of(list(layers), graph.graphs, 4, "GAT")
    return Space(
        graph, machine, Analytic(machine),
        lambda i, c: not 0 < i < 6 or c.strategy in ("rows, halo", "local"),
    )  # fmt: skip


@pytest.mark.parametrize("attends", [False, True])
def test_own_rows_go_first_while_others_come(attends: bool) -> None:
    """The same work as where it is not known which edges do not wait, in less time."""
    schedules = {}
    for inner in (True, False):
        space = halos(inner, attends)
        chosen = list(space.cheapest().configs)
        schedule = simulate_strategy(PlanModel(space), chosen)
        schedule.check()
        busy = sum(schedule.seconds_by_kind().values())
        assert busy == pytest.approx(space.cost_graph.cost(chosen), abs=1e-6)
        schedules[inner] = schedule.makespan
    assert schedules[True] < schedules[False]


@pytest.mark.parametrize("attends", [False, True])
def test_delta_equals_full_where_own_rows_go_first(attends: bool) -> None:
    test_delta_equals_full_on_plans(halos(attends=attends))


def test_other_models_are_refused() -> None:
    space = space_of(skipping(), "pcie4x4")
    other = plan(skipping(nodes=999_999), topology="pcie4x4")
    with pytest.raises(ValueError, match="999999 nodes"):
        simulate_plan(other, space)
