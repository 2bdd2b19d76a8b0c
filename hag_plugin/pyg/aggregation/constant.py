"""Aggregates of features that do not change, computed once.

The features of a graph that is trained on as a whole are the same tensor in every epoch. So is
what the first layer aggregates from them, and with it that layer needs no graph at all, neither
forward nor backward.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hag_plugin.hag.hag import HAG
from hag_plugin.hag.passing import is_passing
from hag_plugin.limits import limits
from hag_plugin.modes import outside_inference
from hag_plugin.ops.registration import is_ordinary
from hag_plugin.recall import Recall


@dataclass(frozen=True, eq=False)
class Kept:
    """An aggregate, and its count of writes: who writes to it spoils it."""

    aggregate: Tensor
    version: int


# By layer. The features and the graph that an aggregate was made of take it along when they go.
_MEMORY: weakref.WeakKeyDictionary[Any, Recall] = weakref.WeakKeyDictionary()


def is_constant(x: Tensor) -> bool:
    """Whether `x` could be the same tensor, with the same numbers, in the next call."""
    return type(x) is Tensor and not x.requires_grad and is_ordinary(x)


def comes_back(layer: Any, hag: HAG, x: Tensor, how: Hashable) -> bool:
    """Whether `kept` will have the aggregate of these features; the first time, they are noted."""
    return is_constant(x) and not is_passing(hag) and _memory(layer).is_back((x, hag), how)


def kept(
    layer: Any, hag: HAG, x: Tensor, how: Hashable, compute: Callable[[], Tensor]
) -> Tensor | None:
    """The aggregate of features that the layer met before, unchanged, over the same graph.

    None where they are not constant, did not come back, or where it would be too large to keep.

    Args:
        layer: that aggregates.
        hag: over which.
        x: the features.
        how: everything else that the aggregate depends on.
        compute: computes it. Must not be written to; if somebody does, it is computed anew.
    """
    if type(x) is not Tensor or x.requires_grad or not is_ordinary(x):  # as `is_constant`
        return None
    if is_passing(hag):
        return None
    memory = _MEMORY.get(layer)
    if memory is None:
        memory = _memory(layer)

    def make() -> Kept | None:
        rows = max(hag.num_src, 1)
        if bytes_kept() + x.nbytes // rows * hag.num_dst > limits.constant_bytes:
            return None
        with outside_inference(), torch.no_grad():
            aggregate = compute()
        return Kept(aggregate, aggregate._version)

    found: Kept | None = memory.value((x, hag), how, make)
    if found is not None and found.aggregate._version != found.version:
        found = make()
        memory.put((x, hag), how, found)
    return None if found is None else found.aggregate


def forget(layer: Any) -> None:
    """Forgets what a layer keeps."""
    _MEMORY.pop(layer, None)


def bytes_kept() -> int:
    """The size of all that is kept."""
    found = [each for memory in list(_MEMORY.values()) for each in memory.values()]
    return sum(each.aggregate.nbytes for each in found if each is not None)


def _memory(layer: Any) -> Recall:
    memory = _MEMORY.get(layer)
    return _MEMORY.setdefault(layer, Recall(features=True)) if memory is None else memory


class _Module(ModuleType):
    """Lets `hp.pyg.constant.LIMIT` be `limits.constant_bytes`, to read and to set."""

    @property
    def LIMIT(self) -> int:
        return limits.constant_bytes

    @LIMIT.setter
    def LIMIT(self, size: int) -> None:
        limits.constant_bytes = size


sys.modules[__name__].__class__ = _Module
