"""Data objects that carry HAGs through batching, pickling and moving, and know if one is stale."""

from __future__ import annotations

import copy
import copyreg
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.data.storage import EdgeStorage

from hag_plugin.hag.build import build_hag
from hag_plugin.hag.hag import HAG, rebuild_hag
from hag_plugin.modes import outside_inference
from hag_plugin.pyg.data.batching import HagBatch
from hag_plugin.pyg.data.messages import with_tensors_inside
from hag_plugin.pyg.data.stale import current_hag, known_verdict, note_verdict
from hag_plugin.pyg.data.storage import HagList, unpack, unpack_set
from hag_plugin.saved import set_module

KEY = "hag"
NODE_KEYS = {"num_nodes", "x", "pos", "batch"}
LOST = "_hag_lost"  # in a store whose edges had HAGs in another form


class HagStores:
    """Data whose edge stores may hold a HAG, under "hag".

    So PyG collates, separates, copies and moves it. PyG leaves a list of HAGs in a batch; it is
    merged at the first use, or when the batch is pickled, which is how a loader's worker hands it
    over.
    """

    def _current_hag(self, store: Any) -> HAG | Any:
        """The HAG of a store's edges as they are now; None where it holds none."""
        held = self._merge_hags(store)
        held = held.merged if isinstance(held, HagBatch) else held
        if not isinstance(held, HAG):
            return held
        size = size_of(self, store, (held.num_src, held.num_dst))
        return current_hag(store._mapping.get("edge_index"), held, size)

    def _merge_hags(self, store: Any) -> Any:
        held = store._mapping.get(KEY)
        if isinstance(self, Batch) and isinstance(held, list) and held:
            held = store._mapping[KEY] = HagBatch.of(held)
        return held

    def _moved(self, method: str, args: Any, kwargs: Any) -> Any:
        """Moves all tensors; edges that were known to be the HAG's still are afterwards."""
        for store in _edge_stores(self):
            self._merge_hags(store)
        known = _verdicts(self)
        moved = getattr(super(), method)(*args, **kwargs)
        _note_verdicts(self, known)
        return moved

    def to_dict(self) -> dict[str, Any]:
        """As PyG's; the HAGs of a collated data set are saved in a few tensors."""
        out: dict[str, Any] = super().to_dict()  # type: ignore[misc]
        for store in [out, *(value for value in out.values() if isinstance(value, dict))]:
            held = store.get(KEY)
            if isinstance(held, list) and held and all(isinstance(h, HAG) for h in held):
                store[KEY] = HagList(held)
        return out

    def concat(self, data: Any) -> Any:
        """As PyG's; the edges of the result have no HAG, and run on their plain graph."""
        parts = [with_edges(part) for part in (self, data)]
        for part in parts:
            for store in part.edge_stores:
                store._mapping.pop(KEY, None)
        out = super(HagStores, parts[0]).concat(parts[1])  # type: ignore[misc]
        for store in out.edge_stores:
            store.__dict__[LOST] = True
        return out

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As PyG's."""
        return self._moved("to", args, kwargs)

    def cpu(self, *args: Any) -> Any:
        """As PyG's."""
        return self._moved("cpu", args, {})

    def cuda(self, *args: Any, **kwargs: Any) -> Any:
        """As PyG's."""
        return self._moved("cuda", args, kwargs)

    def pin_memory(self, *args: Any) -> Any:
        """As PyG's."""
        return self._moved("pin_memory", args, {})

    def __reduce_ex__(self, protocol: Any) -> Any:
        if isinstance(self, Batch):
            for store in _edge_stores(self):
                self._current_hag(store)  # merges, and compares, in the worker
        reduced: Any = super().__reduce_ex__(protocol)
        if not isinstance(reduced[2], dict):  # a user's class with a state of its own
            return reduced
        state = {**reduced[2], "_hag_verified": _verdicts(self)}
        make = reduced[:2]
        if isinstance(self, Batch) and get_worker_info() is not None:
            state = with_tensors_inside(state)
            if type(self) is batch_class():
                make = new_batch, ()
        return (*make, state, *reduced[3:])

    def __setstate__(self, state: Any) -> None:
        verified = state.pop("_hag_verified", []) if isinstance(state, dict) else []
        set_state = getattr(super(), "__setstate__", self.__dict__.update)
        set_state(state)
        _note_verdicts(self, verified)


class HagMixin(HagStores):
    """What `HagData` adds to `Data`: the property `hag`."""

    @property
    def hag(self) -> HAG | Any:
        """The HAG of the edges at hand, to pass where a model takes `edge_index`.

        It is compared with `edge_index` by content hash, once for each tensor. Where the edges
        have changed (a subgraph, a sampled or edited graph), the plain graph of the edges at hand
        is given instead, with a warning. None where there is no HAG.
        """
        store = self._store  # type: ignore[attr-defined]
        if KEY not in store._mapping and LOST in store.__dict__:
            warn_of_no_hag("this graph, made of others, has")
            store[KEY] = plain_graph(self, store)
        return self._current_hag(self._store)  # type: ignore[attr-defined]

    @hag.setter
    def hag(self, value: Any) -> None:
        store = self._store  # type: ignore[attr-defined]
        edge_index = store._mapping.get("edge_index")
        comparable = isinstance(value, HAG) and isinstance(edge_index, Tensor)
        if comparable and not value.matches(edge_index):
            raise ValueError(
                f"this HAG, of {value.num_edges} edges between {value.num_dst} nodes, is not "
                f"that of edge_index, which has {edge_index.shape[1]} edges; expected "
                "build_hag(data.edge_index, num_nodes=data.num_nodes)"
            )
        store[KEY] = value

    def to_heterogeneous(self, *args: Any, **kwargs: Any) -> Any:
        """As PyG's; its edges have no HAG."""
        data = with_edges(self)
        del data._store[KEY]
        data = super(HagMixin, data).to_heterogeneous(*args, **kwargs)  # type: ignore[misc]
        adopt(data)
        return data


@set_module("hag_plugin.pyg")
class HagData(HagMixin, Data):  # type: ignore[misc]
    """A `Data` with a HAG, made by `ToHAG`."""


@cache
def batch_class() -> Any:
    """The class of batches of `HagData`."""
    return type(Batch(_base_cls=HagData))


@set_module("hag_plugin.pyg")
def new_batch() -> Any:
    """A batch of `HagData` that has no state yet: PyG looks up the signatures of its classes."""
    return object.__new__(batch_class())


class HagHeteroMixin(HagStores):
    """What `HagHeteroData` adds to `HeteroData`: the property `hag_dict`."""

    @property
    def hag_dict(self) -> dict[Any, HAG]:
        """The HAGs by edge type, to pass where a model takes `edge_index_dict`.

        As for `HagData.hag`, a HAG whose edges have changed gives way to their plain graph; so it
        is with the edges of a type that has no HAG, with a warning. `data[edge_type].hag` and
        `data.collect("hag")` say the same.
        """
        stores = self.edge_stores  # type: ignore[attr-defined]
        return {store._key: store.hag for store in stores if store._has_edges()}

    def to_homogeneous(self, *args: Any, **kwargs: Any) -> Any:
        """As PyG's; its edges have no HAG."""
        data = with_edges(self)
        data = super(HagHeteroMixin, data).to_homogeneous(*args, **kwargs)  # type: ignore[misc]
        adopt(data)
        data._store.__dict__[LOST] = True
        return data

    def get_edge_store(self, src: str, rel: str, dst: str) -> HagEdgeStorage:
        """As PyG's."""
        return _knowing_hags(super().get_edge_store(src, rel, dst))  # type: ignore[misc]

    @classmethod
    def from_dict(cls, mapping: dict[str, Any]) -> Any:
        """As PyG's."""
        out = super().from_dict(mapping)  # type: ignore[misc]
        adopt(out)
        return out


@set_module("hag_plugin.pyg")
class HagHeteroData(HagHeteroMixin, HeteroData):  # type: ignore[misc]
    """A `HeteroData` with a HAG for each edge type, made by `ToHAG`."""


@set_module("hag_plugin.pyg")
class HagEdgeStorage(EdgeStorage):  # type: ignore[misc]
    """The edges of one type in a `HagHeteroData`, which know their HAG."""

    @property
    def hag(self) -> HAG | Any:
        """The HAG of the edges at hand, or their plain graph; see `HagHeteroData.hag_dict`.

        Raises:
            AttributeError: there is no HAG, and no `edge_index` to make a plain graph of.
        """
        data = self._parent()
        if not self._has_edges():
            raise AttributeError(f"edge type {self._key} has neither a HAG nor an edge_index")
        if KEY not in self._mapping:
            warn_of_no_hag(f"edge type {self._key} has")
            self[KEY] = plain_graph(data, self)
        return data._current_hag(self)

    def _has_edges(self) -> bool:
        return KEY in self._mapping or isinstance(self._mapping.get("edge_index"), Tensor)


def _knowing_hags(store: Any) -> HagEdgeStorage:
    object.__setattr__(store, "__class__", HagEdgeStorage)  # its own would put it into the mapping
    found: HagEdgeStorage = store
    return found


def adopt(data: Any) -> None:
    """Makes data, in place, of the class that knows its HAGs."""
    cls = type(data)
    if not issubclass(cls, HagStores):
        if isinstance(data, Batch):
            cls = type(Batch(_base_cls=hag_data_class(cls.__bases__[-1])))
        else:
            cls = hag_data_class(cls)
        object.__setattr__(data, "__class__", cls)
    if isinstance(data, HeteroData):
        for store in data.edge_stores:
            _knowing_hags(store)


# What is known of the stores --------------------------------------------------------------------


def _edge_stores(data: Any) -> Iterator[Any]:
    return (store for store in data.edge_stores if KEY in store._mapping)


def size_of(data: Any, store: Any, otherwise: tuple[int, int]) -> tuple[int, int]:
    """The numbers of sources and targets of a store's edges, where the data has them."""
    if isinstance(data, HeteroData):
        source, _, target = store._key
        return _count(data[source], otherwise[0]), _count(data[target], otherwise[1])
    nodes = _count(store, otherwise[1])
    return nodes, nodes


def is_removed(store: Any) -> bool:
    """Whether the edges of a store are told by the HAG alone."""
    return KEY in store._mapping and {"edge_index", "adj", "adj_t"}.isdisjoint(store._mapping)


def edges_of(data: Any, store: Any) -> Tensor:
    """The edges that a HAG stands for, in a tensor of their own."""
    held = data._merge_hags(store)
    hag: HAG = held.merged if isinstance(held, HagBatch) else held
    return hag.edge_index.clone()


def with_edges(data: Any) -> Any:
    """A shallow copy in which no `edge_index` is left out."""
    data = copy.copy(data)
    for store in filter(is_removed, data.edge_stores):
        store["edge_index"] = edges_of(data, store)
    return data


def plain_graph(data: Any, store: Any) -> HAG:
    """The HAG without intermediates of a store's `edge_index`."""
    edge_index = store._mapping["edge_index"]
    largest = edge_index.max(dim=1).values.tolist() if edge_index.numel() else [-1, -1]
    if not isinstance(data, HeteroData):
        largest = [max(largest)] * 2
    size = size_of(data, store, (largest[0] + 1, largest[1] + 1))
    with outside_inference():
        return build_hag(edge_index, size=size, method="none")


def warn_of_no_hag(who: str) -> None:
    """Says that plain graphs stand in."""
    warnings.warn(
        f"{who} no HAG: the plain graph is used. Apply ToHAG to every graph, after the transforms "
        "that change edges",
        stacklevel=4,
    )


def _count(store: Any, otherwise: int) -> int:
    # From the edges alone PyG would guess the number of nodes, with a warning.
    counted = not NODE_KEYS.isdisjoint(store.keys())
    return int(store.num_nodes) if counted else otherwise


def _held(store: Any) -> tuple[HAG | None, Tensor | None]:
    held = store._mapping.get(KEY)
    held = held.merged if isinstance(held, HagBatch) else held
    edge_index = store._mapping.get("edge_index")
    known = isinstance(held, HAG) and isinstance(edge_index, Tensor)
    return (held, edge_index) if known else (None, None)


def _verdicts(data: Any) -> list[bool]:
    """Of each store with a HAG, whether its edges were compared with it and are the same."""
    return [_verdict(store) for store in _edge_stores(data)]


def _verdict(store: Any) -> bool:
    held, edge_index = _held(store)
    if held is None or edge_index is None:
        return False
    known = known_verdict(held, edge_index, (held.num_src, held.num_dst))
    return known is not None and known.plain is None


def _note_verdicts(data: Any, known: list[bool]) -> None:
    for store, same in zip(_edge_stores(data), known, strict=False):
        held, edge_index = _held(store)
        if same and held is not None and edge_index is not None:
            note_verdict(held, edge_index, (held.num_src, held.num_dst), None)


# Subclasses of users' own data classes ----------------------------------------------------------


class HagDataMeta(type):
    """The class of `hag_data_class`'s classes, so that these can be pickled by their base."""


_CLASSES: dict[type, type] = {Data: HagData, HeteroData: HagHeteroData}


@set_module("hag_plugin.pyg")
def hag_data_class(base: type) -> type:
    """The subclass of a data class that knows its HAGs. One for each class.

    Raises:
        TypeError: `base` is no subclass of `Data` or `HeteroData`.
    """
    if issubclass(base, HagStores):
        return base
    if not issubclass(base, (Data, HeteroData)):
        raise TypeError(
            f"hag_data_class takes a subclass of Data or HeteroData, got {base.__name__}"
        )
    if base not in _CLASSES:
        meta: Any = HagDataMeta
        if type(base) is not type:  # a base with a metaclass of its own
            meta = type("HagDataMeta", (HagDataMeta, type(base)), {})
            copyreg.pickle(meta, _reduce_class)
        mixin = HagMixin if issubclass(base, Data) else HagHeteroMixin
        body = {"__module__": __name__, "_hag_base": base, "__doc__": base.__doc__}
        _CLASSES[base] = meta(f"Hag{base.__name__}", (mixin, base), body)
    return _CLASSES[base]


def _reduce_class(cls: Any) -> Any:
    return hag_data_class, (cls._hag_base,)


copyreg.pickle(HagDataMeta, _reduce_class)
torch.serialization.add_safe_globals(
    [
        rebuild_hag,
        unpack,
        unpack_set,
        HagData,
        HagHeteroData,
        HagEdgeStorage,
        HagBatch,
        hag_data_class,
    ]
)
