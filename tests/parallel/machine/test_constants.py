"""Constants of machines: presets state each of them, and predictions follow each of them."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from importlib import resources

import pytest

from hag_plugin.parallel.graphs.stats import GraphStats
from hag_plugin.parallel.machine.levels import Level
from hag_plugin.parallel.machine.topology import Device, Topology, presets
from hag_plugin.parallel.model.opgraph import Op, OpGraph, convolution
from hag_plugin.parallel.search.cost import Analytic
from hag_plugin.parallel.search.elimination import InfeasibleError
from hag_plugin.parallel.search.planner import plan
from hag_plugin.parallel.strategies.registry import Aggregation, Product, Terms

DEVICE = Device("round", flops=1e12, bandwidth=1e11, memory=1e10, overhead=1e-5,
                flops_efficiency=0.5, bandwidth_efficiency=0.25)  # fmt: skip
LEVEL = Level("wire", 4, bandwidth=1e9, latency=1e-5, efficiency=0.5)
MACHINE = Topology("round", DEVICE, (LEVEL,))
SUMS = Terms(aggregations=[Aggregation("forward", 10**6, 10**5, 64)])
MOVED = 4 * 10**6 + (10**6 + 10**5) * 64 * 4  # bytes
PRODUCT = Terms(products=[Product("forward", 4096, 4096, 4096)])
STREAM = Terms(streams=[("forward", 10**7)])
SMALL = Terms(products=[Product("forward", 1, 1, 1, 3)])


@pytest.mark.parametrize("name", presets())
def test_presets_state_every_constant(name: str) -> None:
    """Efficiencies and launch floors stand in the file, not in a default."""
    folder = resources.files("hag_plugin.parallel.machine") / "presets"
    document = json.loads((folder / f"{name}.json").read_text())
    assert document["device"].keys() == {field.name for field in fields(Device)}
    needed = {"name", "size", "bandwidth", "latency", "efficiency"}
    assert all(level.keys() >= needed for level in document["levels"])
    words = " ".join(document["source"])
    assert ("datasheet" in words and "assumptions" in words) or "no machine's" in words


@pytest.mark.parametrize(
    ("name", "terms", "seconds"),
    [
        ("flops", PRODUCT, 2 * 4096**3 / 1e12 / 0.5),
        ("flops_efficiency", PRODUCT, 2 * 4096**3 / 1e12 / 0.5),
        ("bandwidth", SUMS, MOVED / 1e11 / 0.25),
        ("bandwidth_efficiency", SUMS, MOVED / 1e11 / 0.25),
        ("bandwidth", STREAM, 4e7 / 1e11 / 0.25),
    ],
)
def test_rates_of_a_device(name: str, terms: Terms, seconds: float) -> None:
    """Above the launch floor, time is work over rate, in each constant."""
    assert Analytic(MACHINE)(terms, 4) - DEVICE.overhead == pytest.approx(seconds)
    half = replace(MACHINE, device=replace(DEVICE, **{name: getattr(DEVICE, name) / 2}))
    assert Analytic(half)(terms, 4) - DEVICE.overhead == pytest.approx(2 * seconds)


@pytest.mark.parametrize("overhead", [1e-5, 1e-3])
def test_each_launch_pays_the_floor(overhead: float) -> None:
    machine = replace(MACHINE, device=replace(DEVICE, overhead=overhead))
    assert Analytic(machine)(SMALL, 4) == pytest.approx(3 * overhead, rel=1e-3)
    both = Terms(aggregations=SUMS.aggregations, streams=STREAM.streams)
    free = replace(MACHINE, device=replace(DEVICE, overhead=0.0))
    assert Analytic(machine)(both, 4) - Analytic(free)(both, 4) == pytest.approx(2 * overhead)


def test_memory_of_a_device_is_the_limit_of_plans() -> None:
    ops = [Op("x", "input", width=64), convolution("conv", 0, 64, 8), Op("loss", "loss", (1,), 8)]
    graph = OpGraph.of(ops, {"A": GraphStats.assumed(10_000, 50_000)})
    assert plan(graph, topology=MACHINE)
    with pytest.raises(InfeasibleError):
        plan(graph, topology=replace(MACHINE, device=replace(DEVICE, memory=1e5)))


@pytest.mark.parametrize("name", ["bandwidth", "efficiency", "latency"])
@pytest.mark.parametrize("shape", ["ports", "pairs", "bus"])
def test_constants_of_a_level(name: str, shape: str) -> None:
    machine = replace(MACHINE, levels=(replace(LEVEL, shape=shape),))
    moving, waiting = 1e6 / 1e9 / 0.5, 1e-5
    assert machine.message_seconds(0, 3, 1e6) == pytest.approx(moving + waiting)
    changed = replace(machine.levels[0], **{name: getattr(LEVEL, name) / 2})
    moving, waiting = (moving, waiting / 2) if name == "latency" else (2 * moving, waiting)
    other = replace(machine, levels=(changed,))
    assert other.message_seconds(0, 3, 1e6) == pytest.approx(moving + waiting)
    # A ring over four sends its bytes over each port once, over a bus one after the other, and over
    # three links of a member at once.
    lanes = {"ports": 1.0, "pairs": 1 / 3, "bus": 4.0}[shape]
    assert other.seconds("all_gather", 1e6) == pytest.approx(lanes * moving + 3 * waiting)
