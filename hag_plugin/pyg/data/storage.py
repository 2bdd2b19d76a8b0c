"""Many HAGs in a few tensors: a saved data set would hold a dozen tensors a graph otherwise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hag_plugin.hag.graph_set import Places
from hag_plugin.hag.hag import HAG, rebuild_graphs, rebuild_hag
from hag_plugin.hag.hag import pack as pack_set
from hag_plugin.saved import set_module


class HagList(list[HAG]):
    """A list of HAGs that pickles as one tensor for each dtype."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        plain = [hag for hag in self if hag.copies is None]
        places = [hag._places for hag in plain if hag._places is not None]
        if len(places) == len(self) > 0 and all(len(each.graphs) == 1 for each in places):
            return unpack_set, pack_set(Places.of(places), protocol)
        return unpack, pack(self)


def pack(hags: list[HAG]) -> tuple[list[Any], dict[str, Tensor]]:
    """The states of HAGs, with positions where tensors stood, and the tensors' values by dtype.

    A position is `("int64", first, length)`.
    """
    parts: dict[str, list[Tensor]] = {}
    filled: dict[str, int] = {}

    def without_tensors(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = str(value.dtype).removeprefix("torch.")
            first = filled.get(name, 0)
            parts.setdefault(name, []).append(value.cpu())
            filled[name] = first + value.numel()
            return (name, first, value.numel())
        if isinstance(value, dict):
            return {k: without_tensors(v) for k, v in value.items()}
        return [without_tensors(v) for v in value] if isinstance(value, list) else value

    states = [without_tensors(hag._state()) for hag in hags]
    return states, {name: torch.cat(tensors) for name, tensors in parts.items()}


@set_module("hag_plugin.pyg")
def unpack_set(header: dict[str, Any], wide: Any, narrow: Any) -> HagList:
    """The HAGs of small graphs, which share memory and are batched in one call."""
    return HagList(rebuild_graphs(header, wide, narrow))


@set_module("hag_plugin.pyg")
def unpack(states: list[Any], values: dict[str, Tensor]) -> HagList:
    """The HAGs that `pack` took, each with memory of its own."""

    def with_tensors(value: Any) -> Any:
        if isinstance(value, tuple):
            name, first, length = value
            return values[name][first : first + length].clone()
        if isinstance(value, dict):
            return {k: with_tensors(v) for k, v in value.items()}
        return [with_tensors(v) for v in value] if isinstance(value, list) else value

    return HagList(rebuild_hag(with_tensors(state)) for state in states)
