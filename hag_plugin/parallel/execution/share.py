"""What a rank has of the data: its features as layers want them, labels and masks of its rows."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hag_plugin.arguments import brief
from hag_plugin.limits import limits
from hag_plugin.parallel.execution.runner import Prepared
from hag_plugin.parallel.graphs.store.partitioned_data import PartitionedData
from hag_plugin.parallel.layouts import Layout, shares
from hag_plugin.parallel.model.inputs import values_of
from hag_plugin.parallel.ranks.comm import Group
from hag_plugin.recall import checksum
from hag_plugin.saved import set_module

Part = Callable[[int], np.ndarray]
SOME_ROWS = 4096


@set_module("hag_plugin.parallel")
class Share:
    """What a rank has of the data.

    Where nodes are of several types, `share["paper"]` is what it has of those of one.

    Attributes:
        rows: the nodes whose rows of the output this rank has, as a slice.
        prepared: what the executors hold of it.
    """

    def __init__(self, values: dict[str, Any], rows: slice, prepared: Prepared) -> None:
        self.__dict__.update(values)
        self.rows, self.prepared = rows, prepared
        self._types: dict[str, Share] = {}

    def __getitem__(self, of: str) -> Share:
        if of in self._types:
            return self._types[of]
        known = f"one of {list(self._types)}" if self._types else "none: there is one type of nodes"
        raise KeyError(f"{of!r} is no type of nodes; expected {known}")

    def __repr__(self) -> str:
        words = [f"{k}={list(v.shape)}" for k, v in self.__dict__.items() if isinstance(v, Tensor)]
        if self._types:
            return f"Share({', '.join(f'{of}: {each}' for of, each in self._types.items())})"
        return f"Share(rows={self.rows.start}:{self.rows.stop}, {', '.join(words)})"


@set_module("hag_plugin.parallel")
def by_graph(batch: Any) -> Part:
    """Cuts a PyG `Batch` between graphs: no edge then goes from one part to another.

    Args:
        batch: with `ptr`, where each graph's nodes begin.

    Returns:
        What `plan` and `parallelize` take as `part`.
    """
    ptr = getattr(batch, "ptr", None)
    if not isinstance(ptr, Tensor):
        raise TypeError(f"batch is {brief(batch)}; expected a PyG Batch, which has ptr")
    return _ByGraph(ptr.cpu().numpy())


@set_module("hag_plugin.parallel")
@dataclass(frozen=True, eq=False)
class _ByGraph:
    """What `by_graph` returns; `ends` are `ptr`, int64 `[graphs + 1]`."""

    ends: np.ndarray

    def __call__(self, parts: int) -> np.ndarray:
        ends = self.ends
        wanted = ends[-1] * np.arange(1, parts) / parts
        cuts = ends[np.abs(ends[:, None] - wanted).argmin(axis=0)]
        return np.searchsorted(cuts, np.arange(ends[-1]), side="right")


def told_apart(data: Any) -> dict[str, Any]:
    """What data holds, by name, in a few numbers each: the same on ranks that have the same.

    Of tensors larger than `limits.compared_bytes`, rows here and there; of features that lie on a
    disk nothing is read; of a store, whose parts differ, its manifest.
    """
    found: dict[str, Any] = {}
    if isinstance(data, PartitionedData):
        return {"the manifest of its store": hashlib.sha256(repr(data.manifest).encode()).digest()}
    for name, value in values_of(data).items():
        shape = tuple(getattr(value, "shape", ()))
        if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta:
            rows = value.detach()
            if rows.nbytes > limits.compared_bytes:
                some = torch.linspace(0, len(rows) - 1, min(len(rows), SOME_ROWS))
                rows = rows[some.long().to(rows.device)]
            found[name] = shape, str(value.dtype), checksum(rows.cpu().contiguous())
        else:
            found[name] = value if isinstance(value, (int, float, str, bool)) else shape
    return found


def check_alike(data: Any, group: Group) -> None:
    """Raises ValueError unless all ranks have the same data. They communicate."""
    with group.together("reading the data"):
        mine = told_apart(data)
    for rank, other in zip(group.ranks, group.collect(mine), strict=True):
        names = sorted(k for k in {*mine, *other} if mine.get(k) != other.get(k))
        if names:
            raise ValueError(
                f"rank {rank} has other data than rank {group.rank}, in {', '.join(names)}; "
                "expected the same on all. Seed what is drawn at random, as a split, or make it "
                "on one rank"
            )


def has_nodes(key: str, value: Any, nodes: int) -> bool:
    """Whether there is a row of it for each node."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.dim() > 0
        and value.shape[0] == nodes
        and not key.startswith("edge_")
    )


def sliced(x: Any, layout: Layout, nodes: np.ndarray, group: Group) -> Tensor:
    """A rank's share of the features, which may be a tensor or an array on disk.

    `nodes`: of each rank, int64 `[P]`.
    """
    rows, columns = shares(layout, nodes, x.shape[1], group.rank)
    found = x[rows, columns]
    if not isinstance(found, Tensor):
        found = torch.from_numpy(np.array(found))
    return found.detach().to(group.device, copy=True).contiguous()


def moved(data: Any, device: torch.device) -> Any:
    """The data with what tells graphs of a batch apart where the model runs."""
    batch = None if isinstance(data, tuple) else getattr(data, "batch", None)
    if batch is None or batch.device == device:
        return data
    moved = copy.copy(data)
    moved.batch = batch.to(device)
    return moved
