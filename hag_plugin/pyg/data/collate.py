"""What PyG's `collate` makes of graphs with HAGs, without Python for each graph and attribute.

PyG adds to each graph's edges, and fills a vector for each graph, before it concatenates them: on
batches of small graphs that takes as long as the model. Whatever is no dense tensor is left to PyG.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from torch_geometric.data import Batch
from torch_geometric.data import collate as stock
from torch_geometric.data.storage import N_KEYS

from hag_plugin.kernels import _cpu
from hag_plugin.pyg.data.graph import KEY, HagData, new_batch
from hag_plugin.pyg.data.messages import are_few, order_known

IDS = (torch.int64, torch.int32)

PLAIN_RULES = HagData.__inc__, HagData.__cat_dim__


def takes(cls: Any, items: Sequence[Any], options: dict[str, Any]) -> bool:
    """Whether these are plain graphs, to be made a batch as `Batch.from_data_list` makes it."""
    if cls is not Batch or {*map(type, items)} != {HagData} or options.get("follow_batch"):
        return False
    if (HagData.__inc__, HagData.__cat_dim__) != PLAIN_RULES:  # somebody gave the class others
        return False
    if not (options.get("increment", True) and options.get("add_batch", True)):
        return False
    first = items[0]._store._mapping
    if len({tuple(data._store._mapping) for data in items}) > 1 and any(
        data._store._mapping.keys() != first.keys() for data in items
    ):
        return False
    return not any(isinstance(value, Tensor) and not value.is_cpu for value in first.values())


def collate(
    items: Sequence[Any], exclude_keys: Iterable[str] | None = None
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """As `torch_geometric.data.collate.collate`, for what `takes` allows."""
    excluded = set(exclude_keys or ())
    out = new_batch()
    HagData.__init__(out)
    made = out._store._mapping  # new: nothing is known of it that a change would spoil
    stores = [data._store for data in items]
    mappings = [store._mapping for store in stores]
    num_nodes = _numbers_of_nodes(stores, mappings)
    ends = [0, *accumulate(num_nodes)]
    starts = torch.tensor(ends)
    is_worker = get_worker_info() is not None
    first = mappings[0]
    is_known = is_worker and order_known(first.get(KEY), first.get("edge_index")) is not None
    slices: dict[str, Any] = {}
    incs: dict[str, Any] = {}
    for key in mappings[0]:
        if key in excluded or key == "ptr":
            continue
        values = [mapping[key] for mapping in mappings]
        if key == "num_nodes":
            out._store._num_nodes = values
            out._store.num_nodes = sum(values)
        elif _is_dense(key, values):
            is_sent = is_worker and not (key == "edge_index" and is_known)
            made[key], slices[key], incs[key] = _joined(key, values, starts, is_sent)
        else:
            found = stock._collate(key, values, items, stores, True)
            out._store[key], slices[key], incs[key] = found
    if stores[0].can_infer_num_nodes:
        zeros = torch.zeros(ends[-1], dtype=torch.int64)
        made["batch"] = _shifted(zeros, starts, torch.arange(len(items)))
        made["ptr"] = starts.clone()
    return out, slices, incs


def _numbers_of_nodes(stores: Sequence[Any], mappings: Sequence[Any]) -> list[int]:
    first = mappings[0]
    if "num_nodes" in first:
        return [mapping["num_nodes"] or 0 for mapping in mappings]
    if next((key for key in first if key in N_KEYS), None) == "x":
        features = [mapping["x"] for mapping in mappings]
        if {*map(type, features)} == {Tensor} and 0 not in {x.dim() for x in features}:
            return [x.shape[0] for x in features]
    return [store.num_nodes or 0 for store in stores]


def _is_index(key: str) -> bool:
    return "index" in key or key == "face"


def _is_dense(key: str, values: Sequence[Any]) -> bool:
    """Whether values are tensors that PyG concatenates along one dimension as they stand, or after
    it added the nodes before them."""
    first = values[0]
    if type(first) is not Tensor or first.layout != torch.strided or first.is_nested:
        return False
    if "batch" in key or (_is_index(key) and first.dtype not in IDS):
        return False
    return (
        first.dim() > 0 and {*map(type, values)} == {Tensor} and len({v.dtype for v in values}) == 1
    )


def _joined(
    key: str, values: list[Tensor], starts: Tensor, is_sent: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Values of all graphs in one tensor, where each one's begin, and what was added to each.

    `is_sent`: the tensor is handed over to another process.
    """
    dim = -1 if _is_index(key) else 0
    ends = [0, *accumulate([value.shape[dim] for value in values])]
    slices = torch.tensor(ends)
    out = _shared(values, dim, ends[-1]) if is_sent else None
    joined = torch.cat(values, dim, out=out)
    if dim == 0:
        return joined, slices, torch.zeros(len(values), dtype=torch.int64)
    added = starts[:-1].clone()
    return _shifted(joined, slices, added), slices, added


def _shared(values: list[Tensor], dim: int, length: int) -> Tensor | None:
    """Shared memory to join values in, as in PyG; None: they go into a message."""
    first, count = values[0], sum([value.numel() for value in values])
    if are_few(count * first.element_size()):
        return None
    shape = list(first.shape)
    shape[dim] = length
    storage: Any = first.untyped_storage()
    shared = storage._new_shared(count * first.element_size(), device="cpu")
    out: Tensor = first.new(shared).resize_(*shape)
    return out


def _shifted(ids: Tensor, ends: Tensor, added: Tensor) -> Tensor:
    """Integers `[*, E]` with a number added to each stretch of them, in place.

    Torch would make as many numbers as there are integers, which takes longer than all the rest.
    """
    ids = ids.contiguous()
    rows = ids.shape[:-1].numel()
    is_wide = ids.dtype == torch.int64
    _cpu.add_to_stretches(ids.data_ptr(), rows, is_wide, ends.numpy(), added.numpy())
    return ids
