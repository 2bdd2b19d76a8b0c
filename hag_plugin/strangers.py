"""Graphs that do not come back: after many, most of those that follow are not looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hag_plugin.explanation import Calls
from hag_plugin.limits import limits
from hag_plugin.modes import top_hooks

# Outside of it, and without hooks, nothing is run again.
_in_backward: Any = torch._C._current_graph_task_id


class Strangers:
    """Graphs that a layer left to stock, one after the other: sampled batches, mostly.

    Args:
        calls: of the layer.
        name: of the graph among the arguments of its `forward`.
        at: its position among them.
        size: of a graph, in numbers that grow with its edges; -1 where it must be looked at.
    """

    __slots__ = ("_at", "_calls", "_count", "_derived", "_most", "_name", "_reason", "_size")

    def __init__(self, calls: Calls, name: str, at: int, size: Callable[[Any], int]) -> None:
        self._calls = calls
        self._name, self._at, self._size = name, at, size
        self._count, self._most, self._reason = 0, 0, ""
        self._derived = False

    def met(self, graph: Any, reason: str) -> bool:
        """One more was looked at, and is left to stock. Those before are forgotten where they were
        met with gradients and it is not, or the reverse. False: its size cannot be told.

        Args:
            graph: that was met.
            reason: why those that follow are left to stock.
        """
        size = self._size(graph)
        if size < 0:
            return False
        derived = torch.is_grad_enabled()
        if derived is not self._derived:
            self._count, self._most, self._derived = 0, 0, derived
        self._count += 1
        self._most = max(self._most, size)
        self._reason = reason
        return True

    def follows(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether a graph is left to stock without another look, after many of its kind. Counts it.

        Little is asked, and all in one place: what stands before stock's code is mostly not in the
        caches.
        """
        count, many = self._count, limits.strangers
        if count < many or (count + 1) % many == 0:
            return False
        graph = args[self._at] if len(args) > self._at else kwargs.get(self._name)
        if not 0 <= self._size(graph) <= self._most:
            return False
        if torch.is_grad_enabled() is not self._derived:
            return False
        if top_hooks(True) is not None or _in_backward() >= 0:
            return False  # a checkpoint must decide alike when it runs again
        self._count = count + 1
        calls = self._calls
        calls.counts["stock"] += 1  # those before are there
        calls.reasons["stock"] = self._reason
        return True
