"""A parallel model against the same model in one process: values, gradients, training, bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import hag_plugin as hp
from hag_plugin.parallel.machine.topology import preset
from hag_plugin.parallel.model.opgraph import Op, OpGraph
from hag_plugin.parallel.model.trace import copied, trace
from hag_plugin.parallel.search.cost import Analytic
from hag_plugin.parallel.search.plan import Plan
from hag_plugin.parallel.search.planner import planned
from hag_plugin.parallel.search.space import Space
from hag_plugin.parallel.strategies.registry import Config

from .run_ranks import run_threads

Allow = Callable[[Op, Config], bool]
PHASES = ("forward", "backward", "update", "layout")


def space_with(graph: OpGraph, size: int, allow: Allow) -> Space:
    """The plans in which every operation has a configuration that is allowed."""
    machine = preset("a100x8").resized(size)

    def allowed(i: int, config: Config) -> bool:
        op = graph.ops[i]
        return (op.rows is not None and op.kind != "pooling") or allow(op, config)

    return Space(graph, machine, Analytic(machine), allowed)


def bytes_of(space: Space, chosen: list[int]) -> dict[str, np.ndarray]:
    """What every message of a plan sends, by phase: int64 `[P]` each."""
    graph = space.graph
    terms = [row[k] for row, k in zip(space.terms, chosen, strict=True)]
    messages = [m for each in terms for m in each.messages]
    messages += [replace(m, phase="layout") for each in terms for m in each.laid_out]
    for u, v in graph.edges:
        if graph.ops[u].kind != "input":
            ends = space.configs[u][chosen[u]].target, space.configs[v][chosen[v]].source
            messages += space.reshard_messages(u, v, *ends)
    size = space.topology.num_devices
    return {
        phase: sum((m.sent for m in messages if m.phase == phase), np.zeros(size, np.int64))
        for phase in PHASES
    }


def whole(tensor: Tensor | None) -> Tensor | None:
    """A DTensor's value, gathered."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def train_alone(model: nn.Module, data: Any, make: Any, steps: int = 3, **kwargs: Any) -> Any:
    """Losses, outputs, first gradients, last weights of one process."""
    model, args = copied(model), _arguments(model, data)
    optimizer = make(model.parameters())
    losses, outs, gradients = [], [], {}
    for step in range(steps):
        optimizer.zero_grad()
        with _autocast(kwargs):
            out = model(*args)
        chosen = out[data.train_mask] if out.shape[0] == data.num_nodes else out
        loss = F.cross_entropy(chosen, data.y[data.train_mask] if chosen is not out else data.y)
        loss.backward()
        if not step:
            gradients = {n: p.grad.clone() for n, p in model.named_parameters()
                         if p.grad is not None}  # fmt: skip
        if kwargs.get("clip"):
            torch.nn.utils.clip_grad_norm_(model.parameters(), kwargs["clip"])
        optimizer.step()
        losses.append(loss.detach())
        outs.append(out.detach())
    model.eval()
    with torch.no_grad():
        outs.append(model(*args))
    return losses, outs, gradients, model.state_dict()


def _autocast(kwargs: Any) -> Any:
    wanted = kwargs.get("autocast")
    return torch.autocast("cpu", wanted, enabled=wanted is not None)


def _arguments(model: nn.Module, data: Any) -> list[Any]:
    import inspect

    names = inspect.signature(model.forward).parameters
    if list(names) == ["data"]:
        return [data]
    if isinstance(data, tuple):
        return list(data)
    return [data[n] for n in names if n in data]


def train_together(
    model: nn.Module, data: Any, plan: Plan, make: Any, part: Any = None, steps: int = 3,
    **kwargs: Any,
) -> Any:  # fmt: skip
    """The same on one rank of many, and the bytes it sent in the first step."""
    model = hp.parallel.parallelize(model, data, plan, part=part)
    parallel, local = model.parallel, model.parallel.data
    optimizer = make(model.parameters())
    losses, outs, gradients, sent = [], [], {}, {}
    for step in range(steps):
        optimizer.zero_grad()
        parallel.sent.reset()
        with _autocast(kwargs):
            out = model()
        if "train_mask" in vars(local) and out.shape[0] == len(local.train_mask):
            values = F.cross_entropy(out[local.train_mask], local.y[local.train_mask],
                                     reduction="none")  # fmt: skip
        else:
            values = F.cross_entropy(out, local.y, reduction="none")
        loss = parallel.mean(values)
        loss.backward()
        if not step:
            sent = {phase: parallel.sent[phase] for phase in PHASES}
            gradients = {n: whole(p.grad) for n, p in model.named_parameters()
                         if p.grad is not None}  # fmt: skip
            gradients = {n: g.clone() for n, g in gradients.items()}
        if kwargs.get("clip"):
            torch.nn.utils.clip_grad_norm_(model.parameters(), kwargs["clip"])
        optimizer.step()
        losses.append(loss.detach())
        outs.append(parallel.gather(out))
    model.eval()
    with torch.no_grad():
        outs.append(parallel.gather(model()))
    state = {n: whole(t) for n, t in model.state_dict().items()}
    return losses, outs, gradients, state, sent


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """With momentum, so that steps depend on each other."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def check(
    model: nn.Module,
    data: Any,
    size: int,
    allow: Allow = lambda op, config: True,
    *,
    make: Any = sgd,
    tolerance: float = 1e-10,
    hag: bool = False,
    run: Any = run_threads,
    part: Any = None,
    count_bytes: bool = True,
    **kwargs: Any,
) -> Plan:
    """Trains with a plan and alone; everything must be equal, and the bytes those of the plan.

    Args:
        model: is copied.
        data: PyG's, with `y` and `train_mask`.
        size: ranks.
        allow: configurations that the plan may have.
        make: the optimiser, from parameters.
        tolerance: relative and absolute.
        hag: search HAGs for the plan.
        run: `run_threads` or the like.
        part: as for `plan`.
        count_bytes: compare them, too.
        kwargs: `clip`, the norm that gradients are clipped to; `autocast`, a type.

    Returns:
        The plan.
    """
    graph = trace(model, data, hag=hag, part=part)
    space = space_with(graph, size, allow)
    chosen = list(space.cheapest().configs)
    plan = planned(space, chosen)
    expected = train_alone(model, data, make, **kwargs)
    found = run(size, lambda rank: train_together(model, data, plan, make, part, **kwargs))
    compare(found, expected, bytes_of(space, chosen) if count_bytes else None, tolerance)
    return plan


def compare(
    found: list[Any],
    expected: Any,
    counted: dict[str, np.ndarray] | None,
    tolerance: float,
) -> None:
    """What each rank has against what one process has, and its bytes against the plan's.

    Values may be of lower precision in one process, where layers cast them under autocast.
    """
    close = {"rtol": tolerance, "atol": tolerance, "check_dtype": tolerance < 0.01}
    for rank, (losses, outs, gradients, state, sent) in enumerate(found):
        torch.testing.assert_close(losses, expected[0], **close)
        torch.testing.assert_close(outs, expected[1], **close)
        torch.testing.assert_close(gradients, expected[2], **close)
        torch.testing.assert_close(state, dict(expected[3]), **close)
        if counted is not None:
            assert sent == {p: int(counted[p][rank]) for p in PHASES}, f"rank {rank}"


# Models whose results are by type of nodes -------------------------------------------------------


def train_by_type(
    model: nn.Module,
    run: Callable[[], dict[str, Tensor]],
    loss_of: Callable[[dict[str, Tensor]], Tensor],
    gather: Callable[[Tensor, str], Tensor] = lambda x, of: x.detach(),
    steps: int = 3,
) -> Any:
    """Losses and outputs of some steps, the first gradients, and the last weights."""
    optimizer, losses, outs = sgd(model.parameters()), [], []
    gradients: dict[str, Tensor] = {}
    for step in range(steps):
        optimizer.zero_grad()
        out = run()
        loss = loss_of(out)
        loss.backward()
        if not step:
            found = {n: whole(p.grad) for n, p in model.named_parameters() if p.grad is not None}
            gradients = {n: g.clone() for n, g in found.items() if g is not None}
        optimizer.step()
        losses.append(loss.detach())
        outs.append({of: gather(x, of) for of, x in out.items()})
    return losses, outs, gradients, {n: whole(t) for n, t in model.state_dict().items()}


def train_by_type_together(ours: Any, loss_of: Callable[[dict[str, Tensor]], Tensor]) -> Any:
    """The same of a parallel model, and the bytes that a forward has sent."""
    parallel, sent = ours.parallel, []

    def run() -> Any:
        parallel.sent.reset()
        return ours()

    def gather(x: Tensor, of: str) -> Tensor:
        sent.append({phase: parallel.sent[phase] for phase in PHASES})
        gathered: Tensor = parallel.gather(x, of)
        return gathered

    return *train_by_type(ours, run, loss_of, gather), sent[0]


def check_by_type(space: Space, expected: Any, run: Callable[[Plan], list[Any]]) -> Plan:
    """Runs the cheapest plan; everything must be as expected, and the bytes those of the plan."""
    chosen = list(space.cheapest().configs)
    plan, counted = planned(space, chosen), bytes_of(space, chosen)
    for rank, (*found, sent) in enumerate(run(plan)):
        torch.testing.assert_close(found, list(expected), rtol=1e-9, atol=1e-9)
        assert sent == {phase: int(counted[phase][rank]) for phase in PHASES}
    return plan
