"""Plans of graph networks in the simulator, and what is drawn of them."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hag_plugin.parallel import Budget, GraphStats, plan, simulate_plan, space_of
from hag_plugin.parallel.model.opgraph import Op, OpGraph, gcn
from hag_plugin.parallel.report.chrome_trace import chrome_trace, write_chrome_trace
from hag_plugin.parallel.report.timeline_plot import plot_timeline
from hag_plugin.parallel.search.space import Space
from hag_plugin.parallel.simulation import refine
from hag_plugin.parallel.simulation.plan_tasks import PlanModel
from hag_plugin.parallel.simulation.simulator import critical_path
from hag_plugin.parallel.simulation.strategy_model import SimulatedStrategy, simulate_strategy

MACHINES = ("a100x8", "pcie4x4", "4x8hdr", "k80x4")


def skipping(nodes: int = 1_000_000, edges: int = 50_000_000, halo: float = 4.0) -> OpGraph:
    """Four layers, one of them skipped: two branches may overlap."""
    ops = [
        Op("x", "input", width=602),
        gcn("conv1", 0, 602, 256, input_grad=False),
        gcn("conv2", 1, 256, 256),
        gcn("conv3", 2, 256, 256),
        Op("sum", "sum", (2, 3), 256),
        gcn("conv4", 4, 256, 41),
        Op("loss", "loss", (5,), 41),
    ]
    return OpGraph.of(ops, {"A": GraphStats.assumed(nodes, edges, halo_ratio=halo)})


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


@settings(max_examples=25, deadline=None)
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


def test_sampling_never_loses(space: Space) -> None:
    found = plan(space.graph, topology=space.topology)
    refined = refine(found, space, Budget(proposals=150), seed=1)
    assert refined.sampled <= refined.simulated <= refined.additive + 1e-6
    assert refined.simulated == simulate_plan(found, space).makespan
    assert refined.sampled == simulate_plan(refined.plan, space).makespan
    assert "predicted" in str(refined)
    assert refine(found, space, Budget(proposals=150), seed=1).sampled == refined.sampled


def test_sampling_gains_where_branches_overlap() -> None:
    space = space_of(skipping(), "pcie4x4")
    found = plan(space.graph, topology=space.topology)
    refined = refine(found, space, Budget(proposals=1200), seed=0)
    assert refined.sampled < 0.97 * refined.simulated
    assert refined.plan.seconds > found.seconds  # which the additive cost cannot see


def test_sampling_stays_within_memory() -> None:
    space = space_of(skipping(), "pcie4x4")
    free = plan(space.graph, topology=space.topology)
    limit = 0.8 * free.memory.total
    tight = plan(space.graph, topology=space.topology, memory=limit)
    refined = refine(tight, space, Budget(proposals=300), limit=limit)
    assert refined.plan.memory.total <= limit


def test_other_models_are_refused() -> None:
    space = space_of(skipping(), "pcie4x4")
    other = plan(skipping(nodes=999_999), topology="pcie4x4")
    with pytest.raises(ValueError, match="999999 nodes"):
        simulate_plan(other, space)


# Traces and pictures ----------------------------------------------------------------------------


def test_the_trace_says_what_the_schedule_says(tmp_path: Path) -> None:
    space = space_of(skipping(), "pcie4x4")
    schedule = simulate_plan(plan(space.graph, topology="pcie4x4"), space)
    write_chrome_trace(schedule, tmp_path / "trace.json", "a title")
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert trace == chrome_trace(schedule, "a title")
    bars = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    rows = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert list(rows.values()) == schedule.graph.resources
    for row in rows:
        spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in bars if e["tid"] == row)
        for (_, end), (start, _) in itertools.pairwise(spans):
            assert start >= end - 1e-6
    assert max(e["ts"] + e["dur"] for e in bars) == pytest.approx(schedule.makespan * 1e6)
    assert list(tmp_path.iterdir()) == [tmp_path / "trace.json"]


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_pictures(tmp_path: Path, suffix: str) -> None:
    space = space_of(skipping(), "k80x4")
    schedule = simulate_plan(plan(space.graph, topology="k80x4"), space)
    plot_timeline(schedule, tmp_path / f"timeline.{suffix}", "a title")
    magic = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert (tmp_path / f"timeline.{suffix}").read_bytes().startswith(magic)
    with pytest.raises(ValueError, match="gif"):
        plot_timeline(schedule, tmp_path / "timeline.gif", "a title")
