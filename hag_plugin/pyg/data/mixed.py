"""Where PyG asks nobody: lists of data of which some hold HAGs, and transforms that need edges.

PyG collates a list by the class and the keys of its first item, and calls a transform on whatever
data there is. Both are functions of PyG itself, so these are wrapped, once, when the adapter is
imported; without a HAG they do what they did.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch_geometric.data import batch as batching
from torch_geometric.data import in_memory_dataset
from torch_geometric.transforms import BaseTransform

from hag_plugin.pyg.data import collate as fast
from hag_plugin.pyg.data.graph import (
    KEY,
    HagStores,
    adopt,
    edges_of,
    is_removed,
    plain_graph,
    warn_of_no_hag,
    with_edges,
)

EDGES = "edge_index"


def install() -> None:
    """Wraps what PyG collates and transforms with. Once."""
    if hasattr(batching.collate, "__wrapped__"):
        return
    batching.collate = in_memory_dataset.collate = _collating(batching.collate)
    call = BaseTransform.__call__
    BaseTransform.__call__ = _transforming(call)


# Lists ------------------------------------------------------------------------------------------


def _collating(stock: Any) -> Any:
    @functools.wraps(stock)
    def collate(cls: Any, data_list: Any, *args: Any, **kwargs: Any) -> Any:
        data_list = data_list if isinstance(data_list, (list, tuple)) else list(data_list)
        if not args and fast.takes(cls, data_list, kwargs):
            return fast.collate(data_list, kwargs.get("exclude_keys"))
        if any(isinstance(data, HagStores) for data in data_list):
            without = KEY in (kwargs.get("exclude_keys") or ())
            items = data_list if without else _completed(data_list)
            if cls is type(data_list[0]):
                cls = type(items[0])
            data_list = items
        return stock(cls, data_list, *args, **kwargs)

    return collate


def _completed(items: Any) -> Any:
    """The list with a HAG, and `edge_index`, in every item where one item has them."""
    held = {s._key for data in items for s in data.edge_stores if KEY in s._mapping}
    given = {s._key for data in items for s in data.edge_stores if EDGES in s._mapping}

    def lacks(data: Any) -> bool:
        return any(
            (s._key in held and KEY not in s._mapping)
            or (s._key in given and EDGES not in s._mapping)
            for s in data.edge_stores
        )

    incomplete = [lacks(data) for data in items]
    if not any(incomplete):
        return items
    out = [_complete(d, held, given) if lacking else d
           for d, lacking in zip(items, incomplete, strict=True)]  # fmt: skip
    plain = sum(
        any(KEY not in s._mapping and s._key in held for s in data.edge_stores) for data in items
    )
    if plain:
        warn_of_no_hag(f"{plain} of {len(items)} graphs of a batch or dataset have")
    return out


def _complete(data: Any, held: set[Any], given: set[Any]) -> Any:
    data = copy.copy(data)
    adopt(data)
    for store in data.edge_stores:
        hag, edge_index = store._mapping.get(KEY), store._mapping.get(EDGES)
        if store._key in held and hag is None and isinstance(edge_index, Tensor):
            store[KEY] = plain_graph(data, store)
        elif store._key in given and edge_index is None and hag is not None:
            store[EDGES] = edges_of(data, store)
    return data


# Transforms -------------------------------------------------------------------------------------


def _transforming(stock: Any) -> Any:
    @functools.wraps(stock)
    def __call__(self: Any, data: Any) -> Any:
        removed = {store._key for store in _stores_of(data) if is_removed(store)}
        if not removed:
            return stock(self, data)
        data = with_edges(data)
        lent = {s._key: s[EDGES] for s in data.edge_stores if s._key in removed}
        versions = {key: edges._version for key, edges in lent.items()}
        out = stock(self, data)
        for result in out if isinstance(out, (list, tuple)) else (out,):
            for store in _stores_of(result):
                edges = store._mapping.get(EDGES)
                same = edges is not None and edges is lent.get(store._key)
                if same and edges._version == versions[store._key]:
                    del store[EDGES]
        return out

    return __call__


def _stores_of(data: Any) -> Iterator[Any]:
    knowing: Any = data if isinstance(data, HagStores) else None
    return iter(() if knowing is None else knowing.edge_stores)
