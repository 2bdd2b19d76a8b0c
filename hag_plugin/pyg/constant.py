"""Aggregates of features that do not change, computed once.

The features of a graph that is trained on as a whole are the same tensor in every epoch. So is
what the first layer aggregates from them, and with it that layer needs no graph at all, neither
forward nor backward.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hag_plugin.hag import HAG
from hag_plugin.operators import is_ordinary

# What all layers keep together, in bytes. Above it they compute as if nothing was constant.
LIMIT = 1 << 30


@dataclass
class _Seen:
    """Features that a layer has met, and what it aggregated from them.

    Attributes:
        features: themselves.
        version: of the features, which counts writes to them.
        hag: that they were aggregated over.
        how: everything else that the aggregate depends on.
        result: the aggregate, once the features came back.
        result_version: its own count of writes.
    """

    features: weakref.ref[Tensor]
    version: int
    hag: weakref.ref[HAG]
    how: Hashable
    result: Tensor | None = None
    result_version: int = 0


# By layer, then by the features' identity; both go when these are deleted.
_SEEN: weakref.WeakKeyDictionary[Any, dict[int, _Seen]] = weakref.WeakKeyDictionary()


def is_constant(x: Tensor) -> bool:
    """Whether `x` could be the same tensor, with the same numbers, in the next call."""
    return type(x) is Tensor and not x.requires_grad and is_ordinary(x) and not x.is_inference()


def comes_back(layer: Any, hag: HAG, x: Tensor, how: Hashable) -> bool:
    """Whether the layer has met these very features before, unchanged, over the same graph.

    A tensor counts as changed once anything wrote to it, also to a view of it. What writes past
    torch's counter (through `.data`, or through a NumPy array that shares the memory) goes unseen.
    """
    seen_by_layer = _SEEN.get(layer)
    if seen_by_layer is None:
        seen_by_layer = _SEEN[layer] = {}
    key = id(x)
    seen = seen_by_layer.get(key)
    if seen is not None and seen.features() is x:
        if seen.version == x._version and seen.hag() is hag and seen.how == how:
            return True
        features = seen.features
    else:
        known = seen_by_layer
        features = weakref.ref(x, lambda _: known.pop(key, None))
    seen_by_layer[key] = _Seen(features, x._version, weakref.ref(hag), how)
    return False


def kept(layer: Any, x: Tensor, compute: Callable[[], Tensor]) -> Tensor:
    """The aggregate of features that came back: computed at the first time, kept afterwards.

    Must not be written to; if somebody does, it is computed anew.
    """
    seen: _Seen = _SEEN[layer][id(x)]
    if seen.result is not None and seen.result._version == seen.result_version:
        return seen.result
    with torch.no_grad():
        result = compute()
    if bytes_kept() + result.nbytes <= LIMIT and not result.is_inference():
        seen.result, seen.result_version = result, result._version
    return result


def bytes_kept() -> int:
    """The size of all that is kept."""
    kept = (seen.result for seen_by_one in _SEEN.values() for seen in seen_by_one.values())
    return sum(result.nbytes for result in kept if result is not None)
