"""Machines whose devices or links are not alike: the slowest one in use sets the pace."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hag_plugin.parallel.graphs.stats import GraphStats
from hag_plugin.parallel.machine.levels import SHAPES, Level
from hag_plugin.parallel.machine.topology import Topology, preset
from hag_plugin.parallel.model.opgraph import Op, OpGraph, convolution
from hag_plugin.parallel.search.cost import Analytic
from hag_plugin.parallel.search.planner import plan, space_of
from hag_plugin.parallel.simulation.plan_tasks import simulate_plan
from hag_plugin.parallel.strategies.registry import Aggregation, Product, Terms

FAST, SLOW = preset("h100x8").device, preset("v100x4-nvlink").device
MIXED = Topology("mixed", FAST, (Level("NVLink", 4, 2e11, 3e-6),), devices=(FAST, SLOW, FAST, SLOW))
RATES = st.floats(1e8, 1e12)


def nodes(shape: str, of_devices: bool, rates: tuple[float, ...], place: int = 1) -> Topology:
    """Three nodes of two devices; links of the level at `place` are as `rates` says."""
    levels = [Level("inner", 2, 1e12, 1e-6), Level("outer", 3, 1e10, 1e-5)]
    levels[place] = replace(levels[place], shape=shape, of_devices=of_devices)
    machine = Topology("nodes", FAST, tuple(levels))
    levels[place] = replace(levels[place], bandwidths=rates[: machine.num_links(place)])
    return replace(machine, levels=tuple(levels))


def used_links(machine: Topology, place: int, members: list[int]) -> set[int]:
    """The links of a level that messages among members take, found message by message."""
    level, found = machine.levels[place], set()
    for a, b in permutations(members, 2):
        if machine.level_between(a, b) != place:
            continue
        if level.shape == "bus":
            found.add(a // machine.spans[place + 1])
        else:
            span = 1 if level.of_devices else machine.spans[place]
            found |= {a // span, b // span}
    return found


@given(st.lists(st.integers(1, 10**6), min_size=3, max_size=3))
def test_work_takes_what_it_takes_on_the_slowest_device(sizes: list[int]) -> None:
    reads, writes, width = sizes
    terms = Terms(
        aggregations=[Aggregation("forward", reads, writes, 16)],
        products=[Product("forward", width % 1000 + 1, reads % 1000 + 1, 64)],
    )
    alone = [Analytic(replace(MIXED, device=d, devices=()))(terms, 4) for d in (FAST, SLOW)]
    assert Analytic(MIXED)(terms, 4) == max(alone)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("of_devices", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@given(rates=st.tuples(*[RATES] * 6), data=st.data())
def test_collectives_go_as_fast_as_the_slowest_link_they_use(
    shape: str, of_devices: bool, place: int, rates: tuple[float, ...], data: st.DataObject
) -> None:
    """The same time as on a machine whose links are all as the slowest one of those in use."""
    machine = nodes(shape, of_devices, rates, place)
    members = sorted(data.draw(st.sets(st.sampled_from(range(6)), min_size=2)))
    collective = data.draw(st.sampled_from(["all_gather", "reduce_scatter", "all_reduce"]))
    level = machine.levels[place]
    slowest = min((level.bandwidths[link] for link in used_links(machine, place, members)),
                  default=1.0)  # fmt: skip
    levels = list(machine.levels)
    levels[place] = replace(level, bandwidth=slowest, bandwidths=())
    alike = replace(machine, levels=tuple(levels))
    assert machine.seconds(collective, 1e7, members) == alike.seconds(collective, 1e7, members)


@pytest.mark.parametrize("of_devices", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@given(rates=st.tuples(*[RATES] * 6), ends=st.permutations(range(6)))
def test_messages_take_the_links_of_both_ends(
    shape: str, of_devices: bool, rates: tuple[float, ...], ends: list[int]
) -> None:
    machine = nodes(shape, of_devices, rates)
    a, b = ends[:2]
    if a // 2 == b // 2:
        return
    outer = machine.levels[1]
    places = (0,) if shape == "bus" else (a, b) if of_devices else (a // 2, b // 2)
    slowest = min(outer.bandwidths[place] for place in places) * outer.efficiency
    assert machine.message_seconds(a, b, 1e7) == pytest.approx(1e-5 + 1e7 / slowest)
    assert machine.message_seconds(a, b, 1e7) == pytest.approx(machine.message_seconds(b, a, 1e7))


def test_plans_of_unlike_devices() -> None:
    """Priced by the slowest device, within the smallest memory; simulated under their names."""
    ops = [Op("x", "input", width=64), convolution("conv", 0, 64, 8), Op("loss", "loss", (1,), 8)]
    graph = OpGraph.of(ops, {"A": GraphStats.assumed(100_000, 1_000_000)})
    found = plan(graph, topology=MIXED)
    assert found.seconds == plan(graph, topology=replace(MIXED, device=SLOW, devices=())).seconds
    assert MIXED.memory == SLOW.memory < FAST.memory
    schedule = simulate_plan(found, space_of(graph, MIXED))
    schedule.check()
    names = [f"{device.name} {i}" for i, device in enumerate(MIXED.devices)]
    assert schedule.graph.resources[:4] == names


def test_files_of_unlike_machines() -> None:
    for machine in (MIXED, nodes("ports", True, (1e9, 2e9, 3e9, 4e9, 5e9, 6e9))):
        assert Topology.from_dict(json.loads(json.dumps(machine.as_dict()))) == machine
        assert machine.resized(machine.num_devices) is machine
        with pytest.raises(ValueError, match="not alike"):
            machine.resized(2)


def test_wrong_counts_are_named() -> None:
    with pytest.raises(ValueError, match="devices has 3 entries; expected one for each of 4"):
        replace(MIXED, devices=MIXED.devices[:3])
    with pytest.raises(ValueError, match="2 bandwidths; expected one for each of 4 links"):
        replace(MIXED, levels=(replace(MIXED.levels[0], bandwidths=(1e9, 1e9)),))
    with pytest.raises(ValueError, match="bandwidths is -1"):
        replace(MIXED, levels=(replace(MIXED.levels[0], bandwidths=(1e9, 1e9, 1e9, -1.0)),))
    document = MIXED.as_dict()
    document["levels"][0]["bandwidths"] = [1e9, "fast", 1e9, 1e9]
    with pytest.raises(ValueError, match="expected a list of numbers"):
        Topology.from_dict(document)
