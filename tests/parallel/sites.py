"""Executors on their own: shards in, shards out, gradients and bytes, against the stock layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hag_plugin.parallel.execution.executors.registry import executor_of
from hag_plugin.parallel.execution.site import Site, World
from hag_plugin.parallel.layouts import Layout, Split, shares
from hag_plugin.parallel.model.calls import Call, Edges
from hag_plugin.parallel.ranks.comm import Group
from hag_plugin.parallel.ranks.transfer import sum_gradients
from hag_plugin.parallel.strategies.registry import Config, Problem, configs_of, terms_of

from .run_ranks import run_threads

PHASES = ("forward", "backward", "update")
RunLayer = Callable[[nn.Module, Tensor], Tensor]


class Blocks:
    """The parameters of one layer, of which this rank has blocks."""

    def __init__(self, layer: nn.Module, split: dict[str, Split], group: Group) -> None:
        self.group, self.split, self.blocks = group, split, {}
        for name, value in layer.named_parameters():
            block = value.detach()
            if name in split:
                block = block[self.slices(name, block)]
            self.blocks[name] = block.clone().requires_grad_()

    def slices(self, name: str, whole: Tensor) -> tuple[slice, ...]:
        """This rank's block of a parameter."""
        dim, columns = self.split[name].dim, self.split[name].columns or self.group.size
        width = whole.shape[dim]
        size = -(-width // columns)
        first = min(self.group.rank % columns * size, width)
        return (*[slice(None)] * dim, slice(first, min(first + size, width)))

    def locals(self, names: Sequence[str], copies: bool | Group = False) -> list[Tensor]:
        """As `parameters.Parameters` has it."""
        tensors = [self.blocks[name] for name in names]  # of copies, gradients are summed at once
        if copies is False:
            return tensors
        return sum_gradients(tensors, self.group if copies is True else copies)


@dataclass(eq=False)
class Outcome:
    """What one rank has after a forward and a backward pass."""

    out: Tensor
    grad: Tensor | None
    weights: dict[str, tuple[tuple[slice, ...], Tensor]]
    sent: dict[str, int] = field(default_factory=dict)


def run_config(
    problem: Problem,
    config: Config,
    layer: nn.Module,
    call: Call,
    edges: Edges,
    x: Tensor,
    grad: Tensor,
    group: Group,
) -> Outcome:
    """One configuration on this rank."""
    op, rows = problem.op, problem.rows
    names = {name: name for name, _ in layer.named_parameters()}
    world = World(group, {"": rows}, {op.graph: edges}, None, x.device, x.dtype)  # type: ignore[arg-type]
    site = Site(op, 1, config, world, layer, names, call, problem.fixed)
    executor = executor_of(site)
    world.parameters = Blocks(layer, executor.placements(), group)  # type: ignore[assignment]
    mine = x[shares(config.source, rows, x.shape[1], group.rank)].clone()
    mine.requires_grad_(op.input_grad)
    group.sent.reset()
    out = executor.run(call, mine)
    if out.requires_grad:
        (out * grad[shares(config.target, rows, grad.shape[1], group.rank)]).sum().backward()
    blocks: Any = world.parameters
    weights = {}
    for name, value in blocks.blocks.items():
        whole = dict(layer.named_parameters())[name]
        where = blocks.slices(name, whole) if name in blocks.split else (slice(None),)
        weights[name] = where, value.grad
    sent = {phase: group.sent[phase] for phase in (*PHASES, "layout")}
    assert group.sent.total == sum(sent.values())
    return Outcome(out.detach(), mine.grad, weights, sent)


def assembled(shards: Sequence[Tensor], layout: Layout, rows: np.ndarray, width: int) -> Tensor:
    """The whole of all ranks' shards; where they overlap they are alike."""
    whole = torch.full((int(rows.sum()), width), float("nan"), dtype=shards[0].dtype)
    for rank, shard in enumerate(shards):
        where = shares(layout, rows, width, rank)
        if layout.kind == "replicated" and rank:
            assert torch.allclose(whole, shard, rtol=1e-12, atol=1e-12)
        whole[where] = shard
    return whole


def check_all(
    problem: Problem,
    layer: nn.Module,
    stock: RunLayer,
    call: Call,
    edges: Edges,
    x: Tensor,
    wanted: Callable[[Config], bool] = lambda config: True,
) -> list[Config]:
    """Every configuration of an operation gives the stock layer's output and gradients, and sends
    what its strategy says. Returns the configurations.
    """
    rows, op = problem.rows, problem.op
    layer.zero_grad()
    given = x.clone().requires_grad_(op.input_grad)
    expected = stock(layer, given)
    grad = torch.randn_like(expected)
    if expected.requires_grad:
        (expected * grad).sum().backward()
    configs = [c for c in configs_of(problem)[0] if wanted(c)]

    def case(rank: int) -> list[Outcome]:
        group, mine = Group.world(), copy.deepcopy(layer)
        with torch.autograd.set_multithreading_enabled(False):
            return [run_config(problem, c, mine, call, edges, x, grad, group) for c in configs]

    ranks = run_threads(problem.devices, case)
    for k, config in enumerate(configs):
        outcomes, what = [rank[k] for rank in ranks], f"{config}, hag {config.hag}"
        out = assembled([o.out for o in outcomes], config.target, rows, expected.shape[1])
        assert torch.allclose(out, expected, rtol=1e-10, atol=1e-10), what
        if op.input_grad:
            shards = [o.grad for o in outcomes if o.grad is not None]
            whole = assembled(shards, config.source, rows, x.shape[1])
            assert torch.allclose(whole, given.grad, rtol=1e-10, atol=1e-10), what
        for name, value in layer.named_parameters():
            assert value.grad is not None
            found = torch.full_like(value, float("nan"))
            for outcome in outcomes:
                where, part = outcome.weights[name]
                old = found[where]
                assert old.isnan().all() or torch.allclose(old, part, atol=1e-10), (what, name)
                found[where] = part
            assert torch.allclose(found, value.grad, rtol=1e-10, atol=1e-10), (what, name)
        terms = terms_of(problem, config)
        laid_out = sum((m.sent for m in terms.laid_out), np.zeros(problem.devices, np.int64))
        assert [o.sent["layout"] for o in outcomes] == laid_out.tolist(), what
        for phase in PHASES:
            want = np.zeros(problem.devices, np.int64) + terms.sent(phase)
            assert [o.sent[phase] for o in outcomes] == want.tolist(), (what, phase)
    return configs
