"""Occasions: whether a graph that is met again came back, or a second layer of a pass met it.

Inside the forward of the model that was accelerated that forward is the occasion, however many
layers meet the graph, however often. Layers can be called in other ways: by another method of the
model, by a training step, one by one in a loop over layers, as parts of a model that was made of
the accelerated one. There each layer counts for itself, since two layers that meet a graph may be
two of one pass. The same layer that meets a graph again may be a loop with shared weights; so the
graph came back if, since that layer met it first on this occasion,

- parameters were written to: an optimizer made a step; or
- the layer is given the very features that it was given then: the pass begins anew; or
- the layer met it `limits.loop_calls` times; or
- what is to be made of it was made, for another model or another part of one.

All of these are counts or identities, never times: the ranks of a distributed job decide alike.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from hag_plugin.limits import limits
from hag_plugin.recall import Known
from hag_plugin.saved import set_module


class Visit:
    """The first time that a layer met a graph on an occasion outside the model's forward.

    Args:
        layer: that met it.
        features: that it was given.
        writes: to parameters of the model so far.
    """

    __slots__ = ("_features", "_writes", "calls")

    def __init__(self, features: Any, writes: int) -> None:
        self._features = Known.of((features,), contents=False) if _is_tensor(features) else None
        self._writes = writes
        self.calls = 1

    def is_over(self, features: Any, writes: int) -> bool:
        """Whether a call of the same layer with the same graph is another occasion."""
        if writes != self._writes or self.calls >= limits.loop_calls:
            return True
        return (
            self._features is not None
            and _is_tensor(features)
            and self._features.holds((features,))
        )


class Occasions:
    """Counts the occasions on which the layers of a model meet graphs.

    Attributes:
        forwards: of the model, so far.
    """

    def __init__(self, model: Module | None = None) -> None:
        self.forwards = 0
        self._model = (lambda: None) if model is None else weakref.ref(model)
        self._here = threading.local()  # the replicas of one model run in threads

    def begin(self, counts: bool) -> None:
        """A forward of the model begins; it is another one if it `counts`."""
        self.forwards += counts
        self._here.forward = self.forwards

    def turn(self) -> None:
        """Whatever this forward has met is taken for met before."""
        self.forwards += 1
        self._here.forward = self.forwards

    def end(self) -> None:
        """It ends."""
        self._here.forward = None

    def of(
        self, layer: Module, features: Any, is_there: Callable[[], bool] = lambda: False
    ) -> tuple[Any, Any]:
        """Reader and occasion, as `Recall.value` takes them, of a layer that is called now.

        Args:
            layer: that meets a graph.
            features: that it is given; those of the sources, where there are two.
            is_there: whether what is to be made of the graph is there already.
        """
        forward = getattr(self._here, "forward", None)
        if forward is not None:  # the one that this thread is in
            return None, forward
        return layer, lambda met: self._visit(layer, features, met, is_there)

    def _visit(
        self, layer: Module, features: Any, met: Visit | None, is_there: Callable[[], bool]
    ) -> Visit:
        if isinstance(features, (tuple, list)) and features:
            features = features[0]
        writes = _writes(self._model() or layer)
        if met is None or met.is_over(features, writes) or is_there():
            return Visit(features, writes)
        met.calls += 1
        return met


@set_module("hag_plugin")
class ForwardEnd:
    """The forward hook of an accelerated model, which is told of the end of all its calls.

    Attributes:
        session: of the model.
    """

    def __init__(self, session: Any) -> None:
        self.session = session

    def __call__(self, module: Any, inputs: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            self.session.occasions.end()


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _writes(module: Module) -> int:
    """How often the parameters of a module were written to, as torch counts it."""
    try:
        return sum(p._version for p in module.parameters())
    except RuntimeError:  # made in inference mode, they are not counted
        return 0
