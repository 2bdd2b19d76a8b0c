"""Plain edge indices in code that `torch.compile` traces: an operator finds the HAG when it runs.

What is traced is the same whatever the graph. The operator gives the token of a HAG: of that of the
graph, once it came back to the model, as `occasions` says; of the plain graph until then. Where its
edges are scored, see `compiled_scores`.
"""

from __future__ import annotations

import weakref
from collections import deque
from itertools import count
from typing import Any

import torch
from torch import Tensor

from hag_plugin.hag.build import build_hag
from hag_plugin.hag.graph import Arrays
from hag_plugin.hag.hag import HAG, EdgeHAG, of_arrays
from hag_plugin.modes import outside_inference
from hag_plugin.ops.weights import edge_slots
from hag_plugin.pyg.recipes.recipe import Recipe
from hag_plugin.pyg.recipes.weighted import WeightedGraph, without_masks
from hag_plugin.recall import Known, Recall, value_of

NAME = "_hag_name"  # in a layer: a number of its own, int64 `[]`: layers share compiled code

_names = count()
_LAYERS: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_PLAIN = Recall(64)  # plain graphs of edge indices, until they come back
_SLOTS = Recall(64)  # where the edges of edge indices lie in the order of their HAGs
_LATEST: deque[HAG] = deque(maxlen=2)  # those of edge indices that are not known again

# Whether what is traced may have to run without hag_plugin. Torch 2.8 says so of all of it.
is_exporting = torch.compiler.is_exporting


def may_meet(conv: Any) -> bool:
    """Whether the operators below may stand in the code of a layer that is traced."""
    return conv.__dict__.get(NAME) is not None and not is_exporting()


def name_layer(conv: Any) -> None:
    """Gives a layer a name of its own, by which compiled code finds it."""
    name = next(_names)
    with outside_inference():
        conv.__dict__[NAME] = torch.tensor(name, device="cpu")
    _LAYERS[name] = conv


def hag_in_traced_code(conv: Any, edge_index: Tensor, size: tuple[int, int]) -> HAG:
    """What stands for the HAG of an edge index while a layer's call is traced."""
    row_ptr, token = torch.ops.hag_plugin_pyg.meet.default(edge_index, *size, conv.__dict__[NAME])
    return EdgeHAG(edge_index, row_ptr, token, size[0])


def weights_in_traced_code(conv: Any, recipe: Recipe, hag: HAG, weight: Tensor) -> WeightedGraph:
    """The same for an edge index with weights `[E]`, which may be learned."""
    slots = torch.ops.hag_plugin_pyg.slots.default(*hag.arrays, hag.num_src)
    return without_masks(conv, recipe.record, hag, slots, hag.arrays.col, weight)


def _slots(row_ptr: Tensor, edge_index: Tensor, token: Tensor, num_src: int) -> Tensor:
    size = num_src, len(row_ptr) - 1
    slots: Tensor | None = _SLOTS.get((edge_index,), size)
    if slots is None:
        slots = edge_slots(edge_index, of_arrays(Arrays(row_ptr, edge_index, token), num_src))
        _SLOTS.put((edge_index,), size, slots)
    return slots.clone()


def _meet(edge_index: Tensor, num_src: int, num_dst: int, layer: Tensor) -> tuple[Tensor, Tensor]:
    size, conv, hag = (num_src, num_dst), _LAYERS.get(int(layer)), None
    session = None if conv is None else conv.__dict__.get("_hag_session")
    if session is not None:
        hag = value_of(session.hag_of(edge_index, size, conv, None))
    if hag is None:
        hag = _plain(edge_index, size)
    elif len(_PLAIN):
        _PLAIN.drop((edge_index,), size)
    assert hag.arrays.token is not None
    return edge_index.new_empty(num_dst + 1, dtype=torch.int64), hag.arrays.token.clone()


def _plain(edge_index: Tensor, size: tuple[int, int]) -> HAG:
    hag: HAG | None = _PLAIN.get((edge_index,), size)
    if hag is None:
        with outside_inference():
            hag = build_hag(edge_index, size=size, method="none")
        _PLAIN.put((edge_index,), size, hag)
        if Known.of((edge_index,), contents=False) is None:
            _LATEST.append(hag)
    return hag


def _shape(edge_index: Tensor, num_src: int, num_dst: int, *_: Any) -> tuple[Tensor, Tensor]:
    row_ptr = edge_index.new_empty(num_dst + 1, dtype=torch.int64)
    return row_ptr, torch.empty((), dtype=torch.int64, device="cpu")


_library: Any = torch.library.Library("hag_plugin_pyg", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "meet(Tensor edge_index, SymInt num_src, SymInt num_dst, Tensor layer) -> (Tensor, Tensor)"
)
_library.impl("meet", _meet, "CompositeExplicitAutograd")
torch.library.register_fake("hag_plugin_pyg::meet", _shape, lib=_library)
_library.define("slots(Tensor row_ptr, Tensor edge_index, Tensor token, SymInt num_src) -> Tensor")
_library.impl("slots", _slots, "CompositeExplicitAutograd")
torch.library.register_fake(
    "hag_plugin_pyg::slots",
    lambda row_ptr, edge_index, token, num_src: edge_index.new_empty(
        edge_index.shape[1], dtype=torch.int64
    ),
    lib=_library,
)
