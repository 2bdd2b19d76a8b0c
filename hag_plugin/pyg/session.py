"""Plain edge indices in an accelerated model: a graph that comes back gets its HAG."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hag_plugin.build import build_hag
from hag_plugin.hag import HAG, outside_inference
from hag_plugin.operators import has_memory
from hag_plugin.pyg.relations import relation_hags

MAX_SEARCHED_EDGES = 20_000_000  # larger graphs are searched only where build_hag is called
MAX_GRAPHS = 64  # graphs remembered by one accelerated model; as many as a model has edge types


@dataclass
class Seen:
    """Tensors that were met together, and what was built of them once they came back."""

    tensors: tuple[weakref.ref[Tensor], ...]
    versions: tuple[int, ...]
    forward: int
    built: Any = None
    refused: bool = False

    def holds(self, tensors: tuple[Tensor, ...]) -> bool:
        """Whether these are the tensors, unchanged."""
        pairs = zip(self.tensors, self.versions, tensors, strict=True)
        return all(known() is t and version == t._version for known, version, t in pairs)


class Session:
    """What the root of an accelerated model knows about the edge indices it was called with.

    The root's forward pre-hook (the session itself) counts forwards. A tensor is known by its
    weak identity, version, shape and device. Met in a first forward it runs the stock layers;
    only when the same tensor comes back in a later forward its HAG is built, so that sampled
    batches are never searched. Decisions go by counts, never by time: ranks of a distributed job
    decide alike. Copies and pickles start anew.
    """

    def __init__(self) -> None:
        self.forwards = 0
        self._seen: OrderedDict[tuple[Any, ...], Seen] = OrderedDict()
        self._caches: weakref.WeakKeyDictionary[Any, tuple[Any, ...]] = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()

    def __call__(self, module: Any, inputs: Any) -> None:
        """The forward pre-hook of the root module."""
        if torch.compiler.is_compiling():
            return
        if torch._C._current_graph_task_id() < 0:  # not a checkpoint run again, inside a backward
            self.forwards += 1

    def __reduce__(self) -> tuple[type[Session], tuple[()]]:
        return Session, ()

    def hag_of(self, edge_index: Tensor, num_src: int, num_dst: int) -> HAG | None:
        """The HAG of a tensor that came back; None where the stock layer is to run."""
        size = (num_src, num_dst)
        built: HAG | None = self.built_of(
            (edge_index,), size, lambda: build_hag(edge_index, size=size)
        )
        return built

    def relations_of(
        self, edge_index: Tensor, edge_type: Tensor, num_relations: int, size: tuple[int, int]
    ) -> list[HAG] | None:
        """The HAGs of each relation of two tensors that came back."""
        built: list[HAG] | None = self.built_of(
            (edge_index, edge_type),
            (num_relations, *size),
            lambda: relation_hags(edge_index, edge_type, num_relations, size),
        )
        return built

    def built_of(
        self, tensors: tuple[Tensor, ...], key: tuple[Any, ...], build: Callable[[], Any]
    ) -> Any:
        """What `build` makes of tensors, of which the first is an edge index, once they came back.

        None where they did not yet, cannot be known again, or where nothing is to be built.
        """
        edge_index = tensors[0]
        if not (_is_edge_index(edge_index) and all(map(_is_trackable, tensors))):
            return None
        key = (*map(id, tensors), edge_index.shape, edge_index.device, *key)
        with self._lock:
            seen = self._seen.get(key)
            if seen is None or not seen.holds(tensors):
                self._forget()
                versions = tuple(t._version for t in tensors)
                seen = Seen(tuple(map(weakref.ref, tensors)), versions, self.forwards)
                self._seen[key] = seen
            self._seen.move_to_end(key)
            if seen.built is None and not seen.refused and self.forwards > seen.forward:
                seen.built = _build(edge_index.shape[1], build)
                seen.refused = seen.built is None
            return seen.built

    def _forget(self) -> None:
        for key in [k for k, seen in self._seen.items() if any(t() is None for t in seen.tensors)]:
            del self._seen[key]
        while len(self._seen) >= MAX_GRAPHS:
            self._seen.popitem(last=False)

    @property
    def num_hags(self) -> int:
        """Number of graphs that run on a HAG now."""
        return sum(seen.built is not None for seen in self._seen.values())

    # Layers with cached=True run the graph of their first call for ever -------------------------

    def fills_cache(self, conv: Any, edge_index: Tensor, size: tuple[int, int]) -> None:
        """Notes that a layer with `cached=True` is about to keep this tensor's graph."""
        if _is_edge_index(edge_index) and _is_trackable(edge_index):
            self._caches[conv] = (weakref.ref(edge_index), edge_index._version, size)

    def is_cached(self, conv: Any, edge_index: Tensor, size: tuple[int, int]) -> bool:
        """Whether the graph that a layer with `cached=True` keeps is this tensor's."""
        kept = self._caches.get(conv)
        if kept is None or not (_is_edge_index(edge_index) and _is_trackable(edge_index)):
            return False
        return kept[0]() is edge_index and kept[1:] == (edge_index._version, size)


def _is_trackable(tensor: Tensor) -> bool:
    return (
        type(tensor) is Tensor
        and not tensor.is_inference()
        and tensor.layout == torch.strided
        and has_memory(tensor)  # a wrapper of torch.func is another one in the next call
    )


def _is_edge_index(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.int32, torch.int64) and tensor.dim() == 2 and tensor.shape[0] == 2


def _build(num_edges: int, build: Callable[[], Any]) -> Any:
    if num_edges > MAX_SEARCHED_EDGES:
        warnings.warn(
            f"an edge_index with {num_edges:,} edges came back; from {MAX_SEARCHED_EDGES:,} edges "
            "on, its HAG is not built during training: call hag_plugin.build_hag once and pass "
            "the HAG where edge_index stands",
            stacklevel=2,
        )
        return None
    try:
        with outside_inference(), torch.no_grad():
            return build()
    except ValueError:  # ids out of range: the stock layer says so in its own words
        return None
