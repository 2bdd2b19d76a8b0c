"""The calls of layers that run now, thread by thread, and what their steps ran on.

A layer says when a call of it begins and ends; each step of message passing in between is
noted for the innermost call, and goes up to those around it when that ends.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from dgl import DGLGraph
from dgl.heterograph import DGLBlock

from hag_plugin.dgl.aggregation.choice import OF_STRANGERS, STRENGTH
from hag_plugin.explanation import Calls, Kind
from hag_plugin.recall import is_run_again
from hag_plugin.strangers import Strangers

Given = tuple[Sequence[Any], Mapping[str, Any]]  # what a layer is called with

_LOCK = threading.Lock()


class _Call:
    """A call that runs.

    Attributes:
        calls: the tally of the layer.
        counts: whether it is to be counted: not where a checkpoint runs it again.
        error: what was being handled when it began.
        given: its arguments.
        kind: what it ran on so far.
        reason: why.
    """

    __slots__ = ("calls", "counts", "error", "given", "kind", "reason")

    def __init__(self, calls: Calls, given: Given) -> None:
        self.calls = calls
        self.given = given
        self.counts = not is_run_again()
        self.error = sys.exc_info()[1]
        self.kind: Kind = "stock"
        self.reason = ""

    def note(self, kind: Kind, reason: str) -> None:
        if STRENGTH[kind] >= STRENGTH[self.kind]:
            self.kind, self.reason = kind, reason


class _Running(threading.local):
    def __init__(self) -> None:
        self.stack: list[_Call] = []


_running = _Running()


def is_left(calls: Calls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of a layer is left to DGL without a look at its graph, after many that did not
    come back. It is counted then."""
    strangers: Strangers | None = calls.strangers
    if strangers is None or torch.compiler.is_compiling() or not strangers.follows(args, kwargs):
        return False
    note("stock", calls.reasons["stock"])
    return True


def begin(calls: Calls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """A call of a layer begins.

    Args:
        calls: the layer's.
        args: that it is given.
        kwargs: likewise.
    """
    _running.stack.append(_Call(calls, (args, kwargs)))


def because(reason: str) -> None:
    """Why DGL's own code does all of the innermost call, if no step says otherwise."""
    _running.stack[-1].reason = reason


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
    if depth < 0:  # forgotten
        return
    call = stack[depth]
    del stack[depth:]
    if stack:
        stack[-1].note(call.kind, call.reason)
    if call.counts and sys.exc_info()[1] is call.error:
        with _LOCK:
            calls.note(call.kind, call.reason)
            calls.strangers = _strangers(call) if call.reason in OF_STRANGERS else None


def _strangers(call: _Call) -> Strangers | None:
    """What a layer left to DGL, with the graph of this call; None where it looks at the next."""
    args, kwargs = call.given
    places = [place for place, value in enumerate(args) if isinstance(value, DGLGraph)]
    names = [name for name, value in kwargs.items() if isinstance(value, DGLGraph)]
    if len(places) + len(names) != 1:
        return None
    graph = args[places[0]] if places else kwargs[names[0]]
    strangers: Strangers | None = call.calls.strangers
    if strangers is None:
        at, name = (places[0], "") if places else (sys.maxsize, names[0])
        strangers = Strangers(call.calls, name, at, _size)
    return strangers if strangers.met(graph, OF_STRANGERS[call.reason]) else None


def _size(graph: Any) -> int:
    cls: object = type(graph)  # which those with HAGs equal
    if (cls is not DGLGraph and cls is not DGLBlock) or len(graph._etypes) != 1:
        return -1
    num_edges: int = graph._graph.num_edges(0)
    return num_edges
