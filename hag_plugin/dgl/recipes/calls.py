"""The calls of layers that run now, thread by thread, and what their steps ran on.

Hooks of a layer say when a call of it begins and ends; each step of message passing in between is
noted for the innermost call, and goes up to those around it when that ends.
"""

from __future__ import annotations

import sys
import threading

from hag_plugin.dgl.aggregation.choice import STRENGTH
from hag_plugin.explanation import Calls, Kind
from hag_plugin.recall import is_run_again

_LOCK = threading.Lock()


class _Call:
    """A call that runs.

    Attributes:
        calls: the tally of the layer.
        counts: whether it is to be counted: not where a checkpoint runs it again.
        error: what was being handled when it began.
        kind: what it ran on so far.
        reason: why.
    """

    __slots__ = ("calls", "counts", "error", "kind", "reason")

    def __init__(self, calls: Calls, reason: str) -> None:
        self.calls = calls
        self.counts = not is_run_again()
        self.error = sys.exc_info()[1]
        self.kind: Kind = "stock"
        self.reason = reason

    def note(self, kind: Kind, reason: str) -> None:
        if STRENGTH[kind] >= STRENGTH[self.kind]:
            self.kind, self.reason = kind, reason


class _Running(threading.local):
    def __init__(self) -> None:
        self.stack: list[_Call] = []


_running = _Running()


def begin(calls: Calls, reason: str) -> None:
    """A call of a layer begins.

    Args:
        calls: the layer's.
        reason: why DGL's own code does all of it, if no step says otherwise.
    """
    _running.stack.append(_Call(calls, reason))


def note(kind: Kind, reason: str) -> None:
    """A step ran, in the innermost call that runs on this thread, if one does."""
    stack = _running.stack
    if stack:
        stack[-1].note(kind, reason)


def end(calls: Calls) -> None:
    """A call of a layer ends. It is counted, unless it raised."""
    stack = _running.stack
    depth = len(stack) - 1
    while depth >= 0 and stack[depth].calls is not calls:  # that was interrupted, and never ended
        depth -= 1
    if depth < 0:  # it began before the layer got its hooks
        return
    call = stack[depth]
    del stack[depth:]
    if stack:
        stack[-1].note(call.kind, call.reason)
    if call.counts and sys.exc_info()[1] is call.error:
        with _LOCK:
            calls.note(call.kind, call.reason)
