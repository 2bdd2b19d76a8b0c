"""Batches on their way from a loader's worker: small tensors inside the message.

PyTorch hands over each tensor as a file of shared memory, which takes longer than to make a batch
of small graphs. Edges in an order that their HAG knows are not handed over: it has them.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from hag_plugin.hag.graph import Order
from hag_plugin.hag.hag import HAG
from hag_plugin.pyg.data.batching import HagBatch
from hag_plugin.saved import set_module

MOST_BYTES = 1 << 18  # of a tensor in a message; a larger one is handed over as PyTorch does it

_OF_NUMPY = {torch.int64, torch.int32, torch.uint8, torch.bool, torch.float32, torch.float64}


def are_few(num_bytes: int) -> bool:
    """Whether a tensor goes into a worker's message."""
    return num_bytes <= MOST_BYTES


def with_tensors_inside(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a PyG batch with its small tensors inside the message."""
    store = state.get("_store")
    if store is None:
        return state
    names = ("_mapping", "_slice_dict", "_inc_dict")
    parts = {name: vars(store)[name] for name in names if isinstance(vars(store).get(name), dict)}
    store = copy.copy(store)
    for name, part in parts.items():
        vars(store)[name] = {k: _Inside(v) if _goes_inside(v) else v for k, v in part.items()}
    edges = _Edges.of(parts.get("_mapping", {}))
    if edges is not None:
        vars(store)["_mapping"]["edge_index"] = edges
    return {**state, "_store": store}


def _goes_inside(value: Any) -> bool:
    return _is_plain(value) and are_few(value.nbytes)


def _is_plain(value: Any) -> bool:
    return bool(
        type(value) is Tensor
        and value.is_cpu
        and value.layout == torch.strided
        and not value.requires_grad
        and not value.is_quantized
        and not value.is_nested
    )


class _Inside:
    """A tensor that is pickled with what it holds."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __reduce__(self) -> Any:
        values, dtype, shape = self.tensor, self.tensor.dtype, tuple(self.tensor.shape)
        if dtype not in _OF_NUMPY:  # it may have none like it
            values = values.resolve_conj().contiguous().view(-1).view(torch.uint8)
        return tensor_of, (values.resolve_neg().numpy().tobytes(), dtype, shape)


def order_known(hag: Any, edges: Any) -> Order | None:
    """The order of a HAG's edges in which they are handed over; None: as a tensor."""
    if not isinstance(hag, HAG) or not _is_plain(edges) or edges.dtype != torch.int64:
        return None
    return hag.order_of(edges)


class _Edges:
    """An edge index that is pickled as the order of a HAG's edges."""

    def __init__(self, held: HagBatch, order: Order) -> None:
        self.held = held
        self.order = order

    @classmethod
    def of(cls, mapping: dict[str, Any]) -> _Edges | None:
        """Of a batch; None where its edges lie in no such order."""
        held = mapping.get("hag")
        if not isinstance(held, HagBatch):
            return None
        order = order_known(held.merged, mapping.get("edge_index"))
        return None if order is None else cls(held, order)

    def __reduce__(self) -> Any:
        return edges_in_order, (self.held, self.order)


@set_module("hag_plugin.pyg")
def edges_in_order(held: HagBatch, order: Order) -> Tensor:
    """The edges of a batch in an order that `Graph.order_of` tells."""
    return held.merged.edges_in_order(order)


@set_module("hag_plugin.pyg")
def tensor_of(content: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A tensor, in memory of its own, that holds these bytes.

    Raises:
        ValueError: they are not those of such a tensor.
    """
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(content)} bytes for {list(shape)} of {dtype}")
    if not content:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(content), dtype=dtype).view(shape)
