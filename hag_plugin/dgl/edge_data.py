"""What is worked out of a tensor with one value an edge, kept by the tensor's weak identity."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hag_plugin.operators import has_memory

MAX_TENSORS = 4  # remembered of each relation
UNKNOWN: Any = object()


@dataclass
class Known:
    """A tensor that was met, and what was worked out of it once it came back."""

    tensor: weakref.ref[Tensor]
    version: int
    readers: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)
    value: Any = UNKNOWN


def is_run_again() -> bool:
    """Whether a checkpoint runs a forward again, inside a backward.

    It must do what it did before, so that nothing counts as coming back.
    """
    return torch._C._current_graph_task_id() >= 0


class EdgeDataCache:
    """Works something out of edge tensors that come back; those met once are only noted.

    Attention coefficients and dropped-out weights are new tensors in each call, and cost nothing
    here but a look-up. A tensor is known by its identity and version.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], Known] = {}

    def value(
        self, purpose: str, tensor: Tensor, work_out: Callable[[], Any], reader: Any = None
    ) -> Any:
        """What `work_out` gives for a tensor that was met before; None at the first time.

        Args:
            purpose: what is worked out.
            tensor: what it is worked out of.
            work_out: works it out.
            reader: the layer that asks, where it takes long: it must be the one to come back, so
                that a batch that passes through two layers, once, never waits for it.
        """
        if tensor.is_inference() or not has_memory(tensor):  # it has no version, or is a wrapper
            return None
        key = (purpose, id(tensor))
        known = self._known.get(key)
        if known is None or known.tensor() is not tensor or known.version != tensor._version:
            self._note(key, tensor, reader)
            return None
        if known.value is UNKNOWN:
            if is_run_again():
                return None
            if reader is not None and reader not in known.readers:
                known.readers.add(reader)
                return None
            known.value = work_out()
        return known.value

    def _note(self, key: tuple[str, int], tensor: Tensor, reader: Any) -> None:
        for gone in [k for k, known in self._known.items() if known.tensor() is None]:
            del self._known[gone]
        self._known.pop(key, None)
        while len(self._known) >= MAX_TENSORS:
            del self._known[next(iter(self._known))]
        known = self._known[key] = Known(weakref.ref(tensor), tensor._version)
        if reader is not None:
            known.readers.add(reader)
