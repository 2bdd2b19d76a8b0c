"""Networks without a graph, split in every way: all of it as in one process."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

import hag_plugin as hp
from hag_plugin.parallel.machine.topology import preset
from hag_plugin.parallel.model.network import Network
from hag_plugin.parallel.model.trace import copied
from hag_plugin.parallel.search.network import NetworkPlan, NetworkSpace, followed
from hag_plugin.parallel.strategies.axes import Rule, Split, possible, rule_of

from ..networks import NETWORKS, network
from ..run_ranks import run_processes, run_threads

PHASES = ("forward", "backward", "update")


def train(model: nn.Module, inputs: Any, steps: int = 3) -> Any:
    """What one process, or one of many ranks, has after some steps of training."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses, outs, gradients = [], [], {}
    for step in range(steps):
        optimizer.zero_grad()
        loss, out = model(*inputs)
        (loss + 0.1 * out.square().mean()).backward()  # of both outputs
        if not step:
            gradients = {n: whole(p.grad).clone() for n, p in model.named_parameters()}
        optimizer.step()
        losses.append(loss.detach().clone())
        outs.append(out.detach().clone())
    model.eval()
    with torch.no_grad():
        outs += [t.clone() for t in model(*inputs)]
    return losses, outs, gradients, {n: whole(t).clone() for n, t in model.state_dict().items()}


def whole(tensor: Any) -> torch.Tensor:
    """A DTensor's value, gathered."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def together(rank: int, model: nn.Module, inputs: Any, plans: list[NetworkPlan]) -> list[Any]:
    """What a rank has with each plan, and the bytes of a step."""
    found = []
    for plan in plans:
        mine = hp.parallel.parallelize(model, inputs, plan)
        mine.parallel.sent.reset()
        loss, out = mine(*inputs)
        (loss + out.sum()).backward()
        sent = {phase: mine.parallel.sent[phase] for phase in PHASES}
        mine.zero_grad()
        with torch.no_grad():  # statistics that are kept start anew
            for name, buffer in model.named_buffers():
                mine.get_buffer(name).copy_(buffer)
        found.append((train(mine, inputs), sent))
    return found


def any_split(rule: Rule, size: int, draw: random.Random) -> Split:
    """Of any axes, into any number of parts, on any ranks in any order."""
    left, chosen = size, {}
    for axis in draw.sample(rule.axes, len(rule.axes)):
        parts = draw.choice([1, *(p for p in possible(axis.size, size) if p <= left)])
        left //= parts
        chosen[axis.name] = parts
    named = tuple((a.name, chosen[a.name]) for a in rule.axes if chosen[a.name] > 1)
    ranks = draw.sample(range(size), math.prod(parts for _, parts in named))
    return Split(named, tuple(ranks))


def plan_of(found: Network, size: int, splits: Mapping[str, Split]) -> NetworkPlan:
    """The plan with these splits."""
    space = NetworkSpace(found, preset("a100x8").resized(size), splits)
    return space.planned([0] * len(space.choices), {})


def any_plan(found: Network, size: int, seed: int) -> NetworkPlan:
    draw = random.Random(seed)
    splits = {op.name: any_split(rule_of(op), size, draw) for op in found.operations}
    return plan_of(found, size, splits)


def check(name: str, size: int, plans: list[NetworkPlan]) -> None:
    """All ranks against one process, and their bytes against the plans'."""
    model, inputs = network(name)
    expected = train(copied(model), inputs)
    found = run_threads(size, lambda rank: together(rank, model, inputs, plans))
    compare(found, expected, plans)


def compare(found: list[list[Any]], expected: Any, plans: list[NetworkPlan]) -> None:
    """What all ranks have against what one process has."""
    for rank, results in enumerate(found):
        for plan, (trained, sent) in zip(plans, results, strict=True):
            assert sent == {phase: plan.sent[phase][rank] for phase in PHASES}, plan
            torch.testing.assert_close(trained, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_training_with_any_plan_is_that_of_one_process(name: str, size: int) -> None:
    found = followed(*network(name))
    check(name, size, [any_plan(found, size, seed) for seed in range(2)])


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [3, 4])
def test_training_with_many_plans(name: str, size: int) -> None:
    found = followed(*network(name))
    check(name, size, [any_plan(found, size, seed) for seed in range(2, 10)])


def along(found: Network, size: int, axis: str) -> NetworkPlan:
    """All operations that have an axis split along it, with parts on all ranks."""
    splits = {}
    for op in found.operations:
        sizes = {a.name: a.size for a in rule_of(op).axes}
        parts = max([p for p in possible(sizes.get(axis, 0), size)], default=0)
        if parts:
            splits[op.name] = Split(((axis, parts),), tuple(range(parts)))
    return plan_of(found, size, splits)


@pytest.mark.parametrize("size", [2, 4])
def test_processes_train_with_the_plan_that_the_planner_finds(size: int) -> None:
    """By samples, by channels, and as is cheapest; processes and gloo."""
    jobs = {}
    for name in NETWORKS:
        model, inputs = network(name)
        found = followed(model, inputs)
        mine = hp.parallel.plan(model, inputs, "a100x8", world_size=size)
        jobs[name] = [mine, *(along(found, size, axis) for axis in ("sample", "channel"))]
    check_many(size, jobs)


def check_many(size: int, jobs: dict[str, list[NetworkPlan]]) -> None:
    """As `check` of several networks, in one start of the processes."""
    networks = {name: network(name) for name in jobs}
    work = {name: (*networks[name], plans) for name, plans in jobs.items()}
    found = run_processes(size, all_together, work)
    for name, plans in jobs.items():
        model, inputs = networks[name]
        compare([each[name] for each in found], train(copied(model), inputs), plans)


def all_together(rank: int, work: dict[str, Any]) -> dict[str, Any]:
    return {name: together(rank, *each) for name, each in work.items()}
