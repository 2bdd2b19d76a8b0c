"""The HAGs of a batch, as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hag_plugin.hag.graph_set import Places
from hag_plugin.hag.hag import HAG, batch, hag_of
from hag_plugin.modes import outside_inference
from hag_plugin.saved import set_module


@set_module("hag_plugin.pyg")
class HagBatch:
    """The HAGs of a batch, merged into one. Stands in a `Batch`'s store in place of their list.

    Attributes:
        merged: the HAG of all graphs side by side.
    """

    def __init__(
        self,
        merged: HAG,
        sizes: Sequence[tuple[int, int]] | None,
        parts: Sequence[HAG] | None,
    ) -> None:
        self.merged = merged
        self._known_sizes = None if sizes is None else list(sizes)
        self._parts = None if parts is None else list(parts)

    @property
    def _sizes(self) -> list[tuple[int, int]]:
        if self._known_sizes is None:
            self._known_sizes = [(h.num_src, h.num_dst) for h in self._parts or ()]
        return self._known_sizes

    @classmethod
    def of(cls, parts: Sequence[Any]) -> HagBatch:
        """Merges HAGs, and batches of HAGs."""
        hags = list(parts)
        if {*map(type, hags)} != {HAG}:
            hags = [part.merged if isinstance(part, HagBatch) else part for part in parts]
            hags = [HagBatch.of(h).merged if isinstance(h, list) else h for h in hags]
        with outside_inference():
            return cls(batch(hags), None, hags)

    def __getitem__(self, index: int) -> HAG:
        """The HAG of one graph. After a move or a pickle it is searched anew when it is used."""
        index = range(len(self._sizes))[int(index)]
        if self._parts is not None:
            return self._parts[index]
        places = self.merged._places
        if places is not None and len(places.graphs) == len(self._sizes):
            sets = places.sets if len(places.sets) == 1 else [places.sets[index]]
            return hag_of(Places(sets, [places.graphs[index]]), self.merged.options)
        num_src, num_dst = self._sizes[index]
        first_src = sum(sources for sources, _ in self._sizes[:index])
        first_dst = sum(targets for _, targets in self._sizes[:index])
        row_ptr = self.merged.arrays.row_ptr[first_dst : first_dst + num_dst + 1]
        col = self.merged.arrays.col[int(row_ptr[0]) : int(row_ptr[-1])] - first_src
        part = HAG.from_csr(row_ptr - row_ptr[0], col, num_src)
        part.options = self.merged.options
        return part

    def _moved(self, merged: HAG) -> HagBatch:
        same = merged is self.merged
        return HagBatch(merged, self._sizes, self._parts if same else None)

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
        return HagBatch, (self.merged, self._sizes, None)

    def __repr__(self) -> str:
        return f"HagBatch({len(self._sizes)} graphs, {self.merged!r})"


torch.serialization.add_safe_globals([HagBatch])
