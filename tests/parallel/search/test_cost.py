"""Costs: analytic, measured and cached, calibrated."""

from __future__ import annotations

import json
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from hag_plugin.parallel.graphs.stats import GraphStats
from hag_plugin.parallel.layouts import Message
from hag_plugin.parallel.machine.topology import preset
from hag_plugin.parallel.model.opgraph import Op, OpGraph, convolution
from hag_plugin.parallel.search import cost
from hag_plugin.parallel.search.cost import (
    Analytic,
    Measured,
    calibrated,
    message_seconds,
    price,
)
from hag_plugin.parallel.search.planner import plan
from hag_plugin.parallel.strategies.registry import Aggregation, Product, Terms
from hag_plugin.testing import count_programs, limits

BLOCK = Terms(
    aggregations=[Aggregation("forward", 2000, 400, 16)],
    products=[Product("forward", 400, 16, 8), Product("backward", 16, 400, 8)],
    streams=[("forward", 6400)],
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HAG_PLUGIN_CACHE", str(tmp_path))
    return tmp_path


def test_analytic_sums_are_bound_by_memory_and_products_by_arithmetic() -> None:
    machine = preset("a100x8")
    device, analytic = machine.device, Analytic(machine)
    rate = device.bandwidth * device.bandwidth_efficiency
    moved = 4 * 10**7 + (10**7 + 10**5) * 64 * 4
    sums = Terms(aggregations=[Aggregation("forward", 10**7, 10**5, 64)])
    assert analytic(sums, 4) == pytest.approx(device.overhead + moved / rate)
    product = Terms(products=[Product("forward", 8192, 8192, 8192)])
    flops = device.flops * device.flops_efficiency
    assert analytic(product, 4) == pytest.approx(device.overhead + 2 * 8192**3 / flops)
    assert Analytic(machine, 2.0)(product, 4) == 2 * analytic(product, 4)


def test_narrow_columns_lose_to_their_indices() -> None:
    """8 times fewer columns are not 8 times faster: the edges are read all the same."""
    analytic = Analytic(preset("a100x8"))
    wide, narrow = (
        analytic(Terms(aggregations=[Aggregation("forward", 10**9, 10**6, w)]), 4) for w in (8, 1)
    )
    assert narrow > 1.5 * wide / 8


def test_messages_are_priced_by_phase_and_group() -> None:
    machine = preset("4x8hdr")
    sent = np.full(32, 10**8)
    inner, outer = (Message("all_gather", sent, "forward", k) for k in (8, -8))
    assert message_seconds(machine, inner) < message_seconds(machine, outer)
    terms = Terms(messages=[Message("all_reduce", sent, "update"), inner])
    seconds = price(machine, Analytic(machine), terms, 4)
    assert seconds.communication == message_seconds(machine, inner)
    assert seconds.synchronisation == machine.seconds("all_reduce", 1e8)
    assert seconds.total == seconds.communication + seconds.synchronisation
    assert message_seconds(machine, Message("all_gather", sent * 0, "forward")) == 0.0


def test_measured_blocks_are_kept(cache: Path) -> None:
    first = Measured()(BLOCK, 4)
    assert first > 0
    [path] = cache.iterdir()
    assert list(json.loads(path.read_text())) == [cost.block_key(BLOCK, 4)]

    path.write_text(json.dumps({cost.block_key(BLOCK, 4): 1e3}))
    assert Measured()(BLOCK, 4) == 1e3  # not measured again
    assert 0 < Measured()(BLOCK, 8) < 1e3


def test_a_damaged_cache_is_measured_anew(cache: Path) -> None:
    Measured()(BLOCK, 4)
    [path] = cache.iterdir()
    path.write_text("{")
    assert Measured()(BLOCK, 4) > 0
    assert json.loads(path.read_text())


def test_large_blocks_are_measured_small_and_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = count(0.0, 0.5)
    monkeypatch.setattr(time, "perf_counter", lambda: next(seconds))  # each run takes 0.5
    huge = Terms(aggregations=[Aggregation("forward", 10**9, 10**6, 16)])
    with limits(measured_edges=1000), count_programs() as ran:
        assert cost.measure_block(huge, 4) == pytest.approx(0.5e6)
    assert {len(run.program.arrays[2]) for run in ran.programs} == {1000}


def test_calibration_scales_the_analytic_cost(cache: Path) -> None:
    machine = preset("cpu2")

    class Twice(Measured):
        def __call__(self, terms: Terms, itemsize: int) -> float:
            return 2.0 * Analytic(machine)(terms, itemsize)

    assert calibrated(machine, Twice(), [BLOCK, Terms()], 4).scale == pytest.approx(2.0)
    assert calibrated(machine, Twice(), [Terms()], 4).scale == 1.0


@pytest.mark.parametrize("costs", ["measured", "calibrated"])
def test_plans_of_measured_costs(cache: Path, costs: str) -> None:
    stats = GraphStats.assumed(300, 2000)
    ops = [Op("x", "input", width=8), convolution("conv", 0, 8, 4), Op("loss", "loss", (1,), 4)]
    model = OpGraph.of(ops, {"A": stats})
    found = plan(model, topology="cpu2", costs=costs)
    assert found.costs == costs
    assert f"({costs} costs)" in str(found)
    assert plan(model, topology="cpu2", costs=costs) == found  # nothing is measured twice
