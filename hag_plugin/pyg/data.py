"""Data objects that carry a HAG through batching, pickling and moving, and know if it is stale."""

from __future__ import annotations

import copyreg
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from hag_plugin.hag import HAG, batch, outside_inference, rebuild_hag
from hag_plugin.pyg.identity import current_hag, known_verdict, note_verdict
from hag_plugin.pyg.packing import HagList, unpack

KEY = "hag"


class HagBatch:
    """The HAGs of a batch, merged into one. Stands in a `Batch`'s store in place of their list.

    Attributes:
        merged: the HAG of all graphs side by side.
    """

    def __init__(self, merged: HAG, num_nodes: Sequence[int], parts: Sequence[HAG] | None) -> None:
        self.merged = merged
        self._num_nodes = list(num_nodes)
        self._parts = None if parts is None else list(parts)

    @classmethod
    def of(cls, parts: Sequence[Any]) -> HagBatch:
        """Merges HAGs, and batches of HAGs."""
        hags = [part.merged if isinstance(part, HagBatch) else part for part in parts]
        hags = [HagBatch.of(h).merged if isinstance(h, list) else h for h in hags]
        with outside_inference():
            return cls(batch(hags), [h.num_dst for h in hags], hags)

    def __getitem__(self, index: int) -> HAG:
        """The HAG of one graph. After a move or a pickle it is searched anew when it is used."""
        index = range(len(self._num_nodes))[int(index)]
        if self._parts is not None:
            return self._parts[index]
        first = [0, *accumulate(self._num_nodes)]
        low, high = first[index], first[index + 1]
        row_ptr = self.merged.row_ptr[low : high + 1]
        edges = slice(int(row_ptr[0]), int(row_ptr[-1]))
        col = self.merged.col[edges] - low
        part = HAG.from_csr(row_ptr - row_ptr[0], col, high - low)
        part.options = self.merged.options
        return part

    def _moved(self, merged: HAG) -> HagBatch:
        same = merged is self.merged
        return HagBatch(merged, self._num_nodes, self._parts if same else None)

    def to(self, *args: Any, **kwargs: Any) -> HagBatch:
        """Moves the merged HAG."""
        return self._moved(self.merged.to(*args, **kwargs))

    def cpu(self) -> HagBatch:
        """Moves the merged HAG into main memory."""
        return self._moved(self.merged.cpu())

    def cuda(self, *args: Any, **kwargs: Any) -> HagBatch:
        """Moves the merged HAG onto a GPU."""
        return self._moved(self.merged.cuda(*args, **kwargs))

    def pin_memory(self) -> HagBatch:
        """Moves the merged HAG into page-locked memory."""
        return self._moved(self.merged.pin_memory())

    def __deepcopy__(self, memo: Any) -> HagBatch:
        return self

    def __reduce__(self) -> Any:
        return HagBatch, (self.merged, self._num_nodes, None)

    def __repr__(self) -> str:
        return f"HagBatch({len(self._num_nodes)} graphs, {self.merged!r})"


class HagMixin:
    """What `HagData` adds to `Data`: the property `hag`.

    The HAG lies in the store, under "hag", so PyG collates, separates, copies and moves it. PyG
    leaves a list of HAGs in a batch; it is merged at the first use, or when the batch is pickled,
    which is how a loader's worker hands it over.
    """

    @property
    def hag(self) -> HAG | Any:
        """The HAG of the edges at hand, to pass where a model takes `edge_index`.

        It is compared with `edge_index` by content hash, once for each tensor. Where the edges
        have changed (a subgraph, a sampled or edited graph), the plain graph of the edges at hand
        is given instead, with a warning. None where there is no HAG.
        """
        held = self._merge_hags()
        if isinstance(held, HagBatch):
            held = held.merged
        return current_hag(self, held) if isinstance(held, HAG) else held

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

    def _merge_hags(self) -> Any:
        store = self._store  # type: ignore[attr-defined]
        held = store._mapping.get(KEY)
        if isinstance(self, Batch) and isinstance(held, list) and held:
            held = store._mapping[KEY] = HagBatch.of(held)
        return held

    def _moved(self, method: str, args: Any, kwargs: Any) -> Any:
        """Moves all tensors; edges that were known to be the HAG's still are afterwards."""
        self._merge_hags()
        known = _verdict(self)
        moved = getattr(super(), method)(*args, **kwargs)
        if known:
            _note_verdict(self)
        return moved

    def to_dict(self) -> dict[str, Any]:
        """As `Data.to_dict`; the HAGs of a collated data set are saved in a few tensors."""
        out: dict[str, Any] = super().to_dict()  # type: ignore[misc]
        held = out.get(KEY)
        if isinstance(held, list) and held and all(isinstance(h, HAG) for h in held):
            out[KEY] = HagList(held)
        return out

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As `Data.to`."""
        return self._moved("to", args, kwargs)

    def cpu(self, *args: Any) -> Any:
        """As `Data.cpu`."""
        return self._moved("cpu", args, {})

    def cuda(self, *args: Any, **kwargs: Any) -> Any:
        """As `Data.cuda`."""
        return self._moved("cuda", args, kwargs)

    def pin_memory(self, *args: Any) -> Any:
        """As `Data.pin_memory`."""
        return self._moved("pin_memory", args, {})

    def __reduce_ex__(self, protocol: Any) -> Any:
        if isinstance(self, Batch):
            _ = self.hag  # merges, and compares, in the worker
        reduced: Any = super().__reduce_ex__(protocol)
        if not isinstance(reduced[2], dict):  # a user's class with a state of its own
            return reduced
        state = {**reduced[2], "_hag_verified": _verdict(self)}
        return (*reduced[:2], state, *reduced[3:])

    def __setstate__(self, state: Any) -> None:
        verified = isinstance(state, dict) and state.pop("_hag_verified", False)
        set_state = getattr(super(), "__setstate__", self.__dict__.update)
        set_state(state)
        if verified:
            _note_verdict(self)


class HagData(HagMixin, Data):  # type: ignore[misc]
    """A `Data` with a HAG, made by `ToHAG`."""


def _held(data: Any) -> tuple[HAG | None, Tensor | None]:
    held = data._store._mapping.get(KEY)
    held = held.merged if isinstance(held, HagBatch) else held
    edge_index = data._store._mapping.get("edge_index")
    known = isinstance(held, HAG) and isinstance(edge_index, Tensor)
    return (held, edge_index) if known else (None, None)


def _verdict(data: Any) -> bool:
    """Whether the data's edges were compared with its HAG and are the same."""
    held, edge_index = _held(data)
    if held is None or edge_index is None or edge_index.is_inference():
        return False
    known = known_verdict(held, edge_index)
    return known is not None and known.plain is None


def _note_verdict(data: Any) -> None:
    held, edge_index = _held(data)
    if held is not None and edge_index is not None:
        note_verdict(held, edge_index, held.num_dst, None)


# Subclasses of users' own data classes ----------------------------------------------------------


class HagDataMeta(type):
    """The class of `hag_data_class`'s classes, so that these can be pickled by their base."""


_CLASSES: dict[type, type] = {Data: HagData}


def hag_data_class(base: type) -> type:
    """The subclass of a data class that knows `hag`. One for each class.

    Raises:
        TypeError: `base` is no subclass of `Data`.
    """
    if issubclass(base, HagMixin):
        return base
    if not issubclass(base, Data):
        raise TypeError(f"hag_data_class takes a subclass of Data, got {base.__name__}")
    if base not in _CLASSES:
        meta: Any = HagDataMeta
        if type(base) is not type:  # a base with a metaclass of its own
            meta = type("HagDataMeta", (HagDataMeta, type(base)), {})
            copyreg.pickle(meta, _reduce_class)
        body = {"__module__": __name__, "_hag_base": base, "__doc__": base.__doc__}
        _CLASSES[base] = meta(f"Hag{base.__name__}", (HagMixin, base), body)
    return _CLASSES[base]


def _reduce_class(cls: Any) -> Any:
    return hag_data_class, (cls._hag_base,)


copyreg.pickle(HagDataMeta, _reduce_class)
torch.serialization.add_safe_globals([rebuild_hag, unpack, HagData, HagBatch, hag_data_class])
