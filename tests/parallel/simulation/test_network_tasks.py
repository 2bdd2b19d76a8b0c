"""Plans of models without a graph in the simulator: what runs is simulated, and priced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hag_plugin as hp
from hag_plugin.parallel import simulate_plan
from hag_plugin.parallel.machine.topology import preset
from hag_plugin.parallel.model.network import Network, followed
from hag_plugin.parallel.search.network import FREE, PASSES, NetworkSpace
from hag_plugin.parallel.simulation.network_tasks import Step, steps_of
from hag_plugin.parallel.simulation.simulator import Schedule, critical_path
from hag_plugin.parallel.simulation.tasks import BACKWARD, FORWARD, SYNCHRONISE, TRANSFER
from hag_plugin.parallel.strategies.axes import Split
from hag_plugin.parallel.strategies.placement import Placement, place

from ..networks import any_plan, any_splits, only_plan, space_with
from ..run_ranks import run_threads

if not (Path(__file__).parents[3] / "examples" / "reproduce" / "small_networks.py").is_file():
    pytest.skip("the examples are not here", allow_module_level=True)

from examples.reproduce.small_networks import NETWORKS, network

MACHINES = {
    "a switch": preset("a100x8").resized(4),
    "a tree": preset("p100x16").resized(8),
    "a bus": preset("pcie4x4"),
    "three": preset("a100x8").resized(3),
    "gloo": replace(preset("cpu2"), levels=(replace(preset("cpu2").levels[0], size=4),)),
}


@cache
def of(name: str) -> Network:
    return followed(*network(name))


def placed(space: NetworkSpace) -> Placement:
    splits = [mine[0] for mine in space.choices]
    named = zip(space.network.operations, splits, strict=True)
    return place(space.network, {op.name: split for op, split in named}, space.world_size)


def clocks(space: NetworkSpace, steps: Sequence[Step]) -> list[float]:
    """The slow twin: when each rank is done, were no link ever busy. A rank's clock goes on by what
    it computes; an exchange begins when the last that takes part has come to it.
    """
    ranks = range(space.world_size)
    clock = [0.0 for _ in ranks]
    for step in steps:
        for rank in ranks:
            clock[rank] += float(step.seconds[rank])
        sent = step.sent
        if sent.any():
            part = [r for r in ranks if sent[r].any() or sent[:, r].any()]
            part = [*ranks] if space.topology.backend == "gloo" else part
            end = max(clock[rank] for rank in part)
            end += space.topology.seconds("all_to_all", int(sent.sum(axis=1).max()))
            for rank in part:
                clock[rank] = end
    return clock


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=4)
@given(st.randoms(use_true_random=False))
def test_any_plan_is_simulated_as_it_runs_and_within_its_price(
    name: str, machine: str, draw: Any
) -> None:
    topology = MACHINES[machine]
    space = space_with(of(name), topology, any_splits(of(name), topology.num_devices, draw))
    plan = only_plan(space)
    schedule = simulate_plan(plan, space)
    schedule.check()
    steps = steps_of(space, placed(space))
    longest = critical_path(schedule.graph)
    assert longest == pytest.approx(max(clocks(space, steps)), abs=1e-6)
    devices = [*schedule.busy().values()][: topology.num_devices]
    assert max(longest, *devices) <= schedule.makespan * (1 + 1e-12)
    assert schedule.makespan <= plan.seconds + 1e-6
    if topology.backend == "gloo":  # whose ranks wait for each other in every exchange
        assert schedule.makespan == pytest.approx(longest, abs=1e-12)
    for phase, each in plan.sent.items():
        mine = [step.sent.sum(axis=1) for step in steps if step.phase == phase]
        assert sum(mine, np.zeros(topology.num_devices)).tolist() == [*each]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_rank_computes_its_own_part_and_no_more_than_is_priced(name: str) -> None:
    space = space_with(of(name), MACHINES["a switch"], any_plan(of(name), 4, 0).splits)
    schedule = simulate_plan(only_plan(space), space)
    graph, expected = schedule.graph, {}
    for i, task in enumerate(placed(space).tasks):
        own = [space.own(task, rank) for rank in range(4)]
        working = {*task.split.ranks} if task.operation.kind not in FREE else set()
        assert {rank for rank, seconds in enumerate(own) if seconds} == working
        assert PASSES * max(own) <= space.compute(i, 0)
        expected |= {(i, rank): seconds for rank, seconds in enumerate(own) if seconds}
    for kind, passes in ((FORWARD, 1), (BACKWARD, PASSES - 1)):
        found: dict[tuple[int, int], float] = {}
        for task in graph.tasks():
            if graph.kind[task] == kind:
                [rank] = graph.occupied(task)
                key = graph.group[task], rank
                found[key] = found.get(key, 0.0) + graph.duration[task]
        assert found == pytest.approx({key: passes * own for key, own in expected.items()})


def test_an_own_part_takes_what_its_size_does_on_its_device() -> None:
    machine = preset("a100x8").resized(3)
    fast = replace(machine.device, overhead=0.0)
    slow = replace(fast, flops=fast.flops / 4, bandwidth=fast.bandwidth / 2)
    machine = replace(machine, devices=(fast, slow, fast))
    inputs = (torch.ones(7, 8),)
    splits = {"linear": Split((("sample", 3),), (1, 0, 2))}
    space = space_with(followed(nn.Linear(8, 5), inputs), machine, splits)
    [task] = placed(space).tasks
    for rank, rows in ((1, 3), (0, 3), (2, 1)):
        device = machine.device_at(rank)
        moved = 4 * (rows * 8 + 5 * 8 + 5 + rows * 5)
        seconds = max(2 * rows * 5 * 8 / device.flops / device.flops_efficiency,
                      moved / device.bandwidth / device.bandwidth_efficiency)  # fmt: skip
        assert space.own(task, rank) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_one_device_takes_the_sum_of_what_it_computes(name: str) -> None:
    machine = preset("a100x8").resized(1)
    plan = hp.parallel.plan(of(name), topology=machine)
    schedule = simulate_plan(plan, hp.parallel.space_of(of(name), machine))
    assert schedule.makespan == pytest.approx(sum(op.seconds.compute for op in plan.operations))
    assert schedule.makespan == pytest.approx(plan.seconds)
    assert {schedule.graph.kind[task] for task in schedule.graph.tasks()} == {FORWARD, BACKWARD}


@pytest.mark.mostly_slow("*-0")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETWORKS)
def test_ranks_send_what_is_simulated_in_the_same_order(
    name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 4
    model, inputs = network(name)
    plan = any_plan(of(name), size, seed)
    sent: list[list[list[int]]] = [[] for _ in range(size)]
    listens = [False] * size
    call = dist.all_to_all_single

    def recorded(out: Tensor, x: Tensor, receive: Any, send: Any, **options: Any) -> Any:
        rank = dist.get_rank()
        if listens[rank]:
            others = [0 if to == rank else n for to, n in enumerate(send)]
            sent[rank].append([n * x.element_size() for n in others])
        return call(out, x, receive, send, **options)

    monkeypatch.setattr(dist, "all_to_all_single", recorded)

    def case(rank: int) -> None:
        mine = hp.parallel.parallelize(model, inputs, plan)
        listens[rank] = True
        loss, out = mine(*inputs)
        (loss + out.sum()).backward()
        listens[rank] = False

    run_threads(size, case)
    space = space_with(of(name), MACHINES["a switch"], plan.splits)
    exchanges = [step.sent for step in steps_of(space, placed(space)) if step.sent.any()]
    assert exchanges
    for rank, mine in enumerate(sent):
        assert mine == [each[rank].tolist() for each in exchanges]


class Branches(nn.Module):
    """What one operation makes is read by two, of which neither reads the other's."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(8, 1 << 14)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.dense(x)
        return h.exp(), h.tanh()


def spans(schedule: Schedule, name: str, kind: int) -> list[tuple[float, float]]:
    """When tasks of an operation start and end, in order."""
    graph = schedule.graph
    return sorted(
        (schedule.start[task], schedule.end(task))
        for task in graph.tasks()
        if graph.kind[task] == kind and graph.names[graph.group[task]] == name
    )


@pytest.mark.parametrize("waits", [False, True])
def test_ranks_that_take_no_part_go_on_but_with_gloo(waits: bool) -> None:
    """The third rank sends to the second while the first works; with gloo, once it is done."""
    machine = replace(preset("a100x8").resized(3), backend="gloo" if waits else "nccl")
    splits = {"dense.linear": Split((), (2,)), "exp": Split((), (0,)), "tanh": Split((), (1,))}
    space = space_with(followed(Branches(), (torch.ones(64, 8),)), machine, splits)
    schedule = simulate_plan(only_plan(space), space)
    [dense], [exp], [tanh] = (spans(schedule, name, FORWARD) for name in
                              ("dense.linear", "exp", "tanh"))  # fmt: skip
    sent_exp, sent_tanh = (spans(schedule, name, TRANSFER)[0] for name in ("exp", "tanh"))
    [fetched, _] = spans(schedule, "dense.linear", SYNCHRONISE)
    assert fetched[0] == 0.0
    assert dense[0] == fetched[1]
    assert sent_exp[0] == dense[1]
    assert exp[0] == sent_exp[1]
    assert sent_tanh[0] == (exp[1] if waits else sent_exp[1])
    assert tanh[0] == sent_tanh[1]
    assert (sent_tanh[0] < exp[1]) != waits


class Pairs(nn.Module):
    """Two chains of operations that have nothing to do with each other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = (nn.Parameter(torch.ones(4, 1 << 20)) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one, other = x * self.one, x * self.other
        return one.exp(), other.exp()


@pytest.mark.parametrize("shape", ["ports", "bus"])
def test_pairs_of_ranks_exchange_at_once_where_they_share_no_link(shape: str) -> None:
    machine = preset("a100x8").resized(4)
    machine = replace(machine, levels=(replace(machine.levels[0], shape=shape),))
    ranks = {"mul": 0, "mul_2": 2, "exp": 1, "exp_2": 3}
    splits = {name: Split((), (rank,)) for name, rank in ranks.items()}
    space = space_with(followed(Pairs(), (torch.ones(4, 1 << 20),)), machine, splits)
    schedule = simulate_plan(only_plan(space), space)
    schedule.check()
    first, second = (spans(schedule, name, TRANSFER)[0] for name in ("exp", "exp_2"))
    at_once = first[0] < second[1] and second[0] < first[1]
    assert at_once == (shape == "ports")


def test_what_is_of_other_plans_is_refused() -> None:
    machine = preset("a100x8")
    plan = any_plan(of("VGG"), 4, 0)
    with pytest.raises(ValueError, match="the plan is for 4 devices; a100x8, 2 devices has 2"):
        simulate_plan(plan, hp.parallel.space_of(of("VGG"), machine, 2))
    with pytest.raises(ValueError, match="the plan is for another model"):
        simulate_plan(plan, hp.parallel.space_of(of("ResNet"), machine, 4))
    bad = replace(plan.operations[0], split=Split((("depth", 2),), (0, 1)))
    edited = replace(plan, operations=(bad, *plan.operations[1:]))
    with pytest.raises(ValueError, match="has no axis 'depth'"):
        simulate_plan(edited, hp.parallel.space_of(of("VGG"), machine, 4))
