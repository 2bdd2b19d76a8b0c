"""What the layers of a model take on this device: as they were, accelerated, and predicted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from hag_plugin import devices
from hag_plugin.adapters import accelerate, explain, restore
from hag_plugin.explanation import Explanation, Row
from hag_plugin.parallel.machine.probe import probe_alone
from hag_plugin.parallel.model.functions import replaced, tensors
from hag_plugin.parallel.model.inputs import ModelCall
from hag_plugin.parallel.model.trace import copied
from hag_plugin.parallel.search.plan import Plan
from hag_plugin.parallel.search.planner import plan

WARM_UPS = 3  # a graph has come back by then, and its HAG is there
LEAST, MOST = 5, 50  # calls that are timed
SECONDS = 0.5  # for which a call is timed again, up to `MOST` times

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class LayerSeconds:
    """What one layer takes in a training step, forward and backward.

    Attributes:
        row: of `explain`, after the steps.
        stock: measured, as it was; None: the model did not call it.
        accelerated: measured, likewise.
        predicted: by the cost model of plans; None: it has no such operation.
    """

    row: Row
    stock: float | None
    accelerated: float | None
    predicted: float | None


@dataclass(frozen=True)
class ModelSeconds:
    """What a model takes in a training step, forward and backward.

    Attributes:
        explanation: of the accelerated model, after the steps.
        layers: one by one.
        stock: measured, of the whole model as it was.
        accelerated: measured, likewise.
        predicted: of the whole model; None: it could not be.
        unpredicted: why not.
    """

    explanation: Explanation
    layers: tuple[LayerSeconds, ...]
    stock: float
    accelerated: float
    predicted: float | None
    unpredicted: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "stock_seconds": self.stock,
            "accelerated_seconds": self.accelerated,
            "predicted_seconds": self.predicted,
            "unpredicted": self.unpredicted,
            "layers": [
                {
                    "name": each.row.name,
                    "layer": each.row.layer,
                    "calls": dict(each.row.calls.counts),
                    "stock_seconds": each.stock,
                    "accelerated_seconds": each.accelerated,
                    "predicted_seconds": each.predicted,
                }
                for each in self.layers
            ],
        }


def measure_layers(model: Module, data: Any, call: ModelCall) -> ModelSeconds:
    """Takes training steps with copies of a model, and times them and their layers.

    Args:
        model: of PyG or DGL layers.
        data: that it is called with.
        call: how.

    Raises:
        TypeError: the model has no layer of PyG or DGL.
    """
    names = [row.name for row in explain(model)]
    if not names:
        raise TypeError(f"model is a {type(model).__name__} without layers of PyG or DGL")
    stock, fast = restore(copied(model)), accelerate(copied(model))
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with devices.forked_random_state(device):
        steps = [partial(_step, copy, partial(call, copy, data)) for copy in (stock, fast)]
        before, after = in_turns(steps, device)
        explanation = explain(fast)  # before layers are called alone
        kept = Explanation(tuple(map(_kept, explanation)), explanation.notes)
        calls = _calls(stock, names, partial(call, stock, data))
        pairs = {name: [_alone(copy, name, calls[name]) for copy in (stock, fast)]
                 for name in names if calls[name]}  # fmt: skip
        each = {name: in_turns(pair, device) for name, pair in pairs.items()}
        predicted, why = _predicted(stock, data, call, device)
    layers = []
    for row in kept:
        alone: Sequence[float | None] = each.get(row.name, (None, None))
        layers.append(LayerSeconds(row, alone[0], alone[1], _of_layer(predicted, row.name)))
    seconds = None if predicted is None else predicted.seconds
    return ModelSeconds(kept, tuple(layers), before, after, seconds, why)


def in_turns(runs: Sequence[Callable[[], Any]], device: torch.device) -> list[float]:
    """The median seconds of each of several calls. They take turns: what else the machine does
    meanwhile meets all of them alike.
    """
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(WARM_UPS):
        for run in runs:
            run()
    end = time.perf_counter() + SECONDS * len(runs)
    while len(taken[0]) < LEAST or (time.perf_counter() < end and len(taken[0]) < MOST):
        for run, seconds in zip(runs, taken, strict=True):
            devices.synchronize(device)
            start = time.perf_counter()
            run()
            devices.synchronize(device)
            seconds.append(time.perf_counter() - start)
    return [median(seconds) for seconds in taken]


def _step(module: Module, run: Callable[[], Any], inputs: Sequence[Tensor] = ()) -> None:
    """Forward, and backward to the weights and inputs, whose own gradients stay as they are."""
    outputs = [each for each in tensors(run()) if each.requires_grad]
    wanted = [p for p in (*module.parameters(), *inputs) if p.requires_grad]
    if outputs and wanted:
        ones = [torch.ones_like(each) for each in outputs]
        torch.autograd.grad(outputs, wanted, ones, allow_unused=True)


def _kept(row: Row) -> Row:
    """A row whose counts go on no further."""
    calls = type(row.calls)()
    calls.counts, calls.reasons = dict(row.calls.counts), dict(row.calls.reasons)
    return replace(row, calls=calls)


def _calls(
    model: Module, names: Sequence[str], run: Callable[[], Any]
) -> dict[str, list[Arguments]]:
    """What each module of a name is called with, in one forward."""
    found: dict[str, list[Arguments]] = {name: [] for name in names}

    def note(name: str, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        by = {id(t): _leaf(t) for t in tensors([args, kwargs]) if t.requires_grad}
        found[name].append((replaced(args, by), replaced(kwargs, by)))

    modules = dict(model.named_modules())
    with _hooks([(modules[name], partial(note, name)) for name in names]):
        run()
    return found


@contextmanager
def _hooks(pairs: Sequence[tuple[Module, Callable[..., None]]]) -> Iterator[None]:
    handles = [m.register_forward_pre_hook(hook, with_kwargs=True) for m, hook in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _leaf(tensor: Tensor) -> Tensor:
    """The same values, with a gradient of its own."""
    return tensor.detach().clone().requires_grad_()


def _alone(model: Module, name: str, calls: Sequence[Arguments]) -> Callable[[], None]:
    """All calls of one layer, each forward and backward."""
    layer: Module = dict(model.named_modules())[name]

    def run() -> None:
        for args, kwargs in calls:
            inputs = [*tensors([args, kwargs])]
            _step(layer, partial(layer, *args, **kwargs), inputs)

    return run


def _predicted(
    model: Module, data: Any, call: ModelCall, device: torch.device
) -> tuple[Plan | None, str]:
    """The plan of a model on this device alone, or why there is none."""
    try:
        return plan(model, data, probe_alone(device), call=call), ""
    except (TypeError, ValueError, RuntimeError) as e:
        return None, str(e)


def _of_layer(predicted: Plan | None, name: str) -> float | None:
    """The seconds of the operations that a layer is made of; of the model itself, of all."""
    if predicted is None:
        return None
    own = [k for k in predicted.layers if not name or f"{k.name}.".startswith(f"{name}.")]
    return sum(k.seconds.total for k in own) if own else None


def figures(found: ModelSeconds) -> Mapping[str, Sequence[float | None]]:
    """Seconds of each layer and of the whole model: as it was, accelerated, predicted."""
    rows: dict[str, Sequence[float | None]] = {
        each.row.name or "(itself)": (each.stock, each.accelerated, each.predicted)
        for each in found.layers
    }
    return rows | {"the whole model": (found.stock, found.accelerated, found.predicted)}
