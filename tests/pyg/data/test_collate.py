"""Batches of graphs with HAGs are PyG's own, attribute by attribute."""

from __future__ import annotations

import itertools
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data, InMemoryDataset
from torch_geometric.loader import DataLoader

from hag_plugin.pyg import ToHAG


def _data(seed: int, nodes: int, edges: int, dtype: torch.dtype = torch.int64) -> Data:
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(max(nodes, 1), (2, edges if nodes else 0), generator=generator)
    x = torch.randn(nodes, 3, generator=generator)
    return Data(x=x, edge_index=ends.to(dtype), y=torch.tensor([seed]))


def _kinds(dtype: torch.dtype = torch.int64) -> list[Data]:
    sizes = [(5, 12), (1, 0), (0, 0), (7, 3), (1, 2), (4, 9)]
    return [_data(i, nodes, edges, dtype) for i, (nodes, edges) in enumerate(sizes)]


def _with(**values: Callable[[Data], Any]) -> list[Data]:
    items = _kinds()
    for data in items:
        for key, make in values.items():
            data[key] = make(data)
    return items


LISTS: dict[str, Callable[[], list[Data]]] = {
    "plain": _kinds,
    "int32": lambda: _kinds(torch.int32),
    "edge values": lambda: _with(
        edge_attr=lambda d: torch.ones(d.num_edges, 2), edge_label=lambda d: torch.ones(d.num_edges)
    ),
    "numbers": lambda: _with(size=lambda d: 3, weight=lambda d: 0.5, name=lambda d: "n"),
    "scalars": lambda: _with(z=lambda d: torch.tensor(2.0), more=lambda d: [torch.ones(2)]),
    "num_nodes": lambda: _with(num_nodes=lambda d: d.num_nodes),
    "indices": lambda: _with(
        root_index=lambda d: torch.zeros(1, dtype=torch.long),
        face=lambda d: torch.zeros(3, 2, dtype=torch.long),
        index_of=lambda d: torch.ones(2),
    ),
    "positions first": lambda: [
        Data(pos=d.x.double(), edge_index=d.edge_index, x=d.x) for d in _kinds()
    ],
    "mixed dtypes": lambda: [
        Data(x=d.x, edge_index=d.edge_index, y=torch.ones(1, dtype=dtype))
        for d, dtype in zip(_kinds(), [torch.float, torch.double] * 3, strict=True)
    ],
    "gradients": lambda: _with(w=lambda d: torch.ones(2, requires_grad=True)),
    "nothing but edges": lambda: [
        Data(edge_index=d.edge_index, num_nodes=d.num_nodes) for d in _kinds()
    ],
}


def _same(a: Any, b: Any) -> None:
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert torch.equal(a, b)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            _same(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("name", LISTS)
def test_a_batch_is_stocks(name: str) -> None:
    items = LISTS[name]()
    expected = Batch.from_data_list(items)
    found = Batch.from_data_list(ToHAG().dataset(items))
    for store in (found._store._mapping, found._slice_dict, found._inc_dict):
        assert "hag" in store
    for key, value in expected._store._mapping.items():
        _same(found._store._mapping[key], value)
    assert {*found.keys()} == {*expected.keys(), "hag"}
    for key, value in expected._slice_dict.items():
        _same(found._slice_dict[key], value)
        _same(found._inc_dict[key], expected._inc_dict[key])
    assert found.num_graphs == expected.num_graphs
    assert found.num_nodes == expected.num_nodes
    for one, other in zip(found.to_data_list(), expected.to_data_list(), strict=True):
        for key, value in other._store._mapping.items():
            _same(one._store._mapping[key], value)
    found.hag.check(expected.edge_index)
    _same(pickle.loads(pickle.dumps(found)).edge_index, expected.edge_index)


def test_what_is_excluded_and_followed() -> None:
    items = _kinds()
    loader = DataLoader(ToHAG().dataset(items), batch_size=4, follow_batch=["x"],
                        exclude_keys=["y"])  # fmt: skip
    stock = DataLoader(items, batch_size=4, follow_batch=["x"], exclude_keys=["y"])
    for found, expected in zip(loader, stock, strict=True):
        assert "y" not in found
        assert found.hag.num_edges == expected.num_edges
        for key, value in expected._store._mapping.items():
            _same(found._store._mapping[key], value)
    excluded = next(iter(DataLoader(ToHAG().dataset(items), 4, exclude_keys=["hag", "x"])))
    assert "hag" not in excluded
    assert "x" not in excluded


def test_edges_that_changed_after_are_noticed() -> None:
    items = ToHAG().dataset(_kinds())
    items[0].edge_index = items[0].edge_index.flip(0)
    batch = Batch.from_data_list(items)
    with pytest.warns(UserWarning, match="is not the graph"):
        batch.hag.check(batch.edge_index)


def _sorted_by(row: int, edges: Tensor) -> Tensor:
    return edges[:, (edges[row] * 1000 + edges[1 - row]).argsort()]


# What becomes of the edges of each graph: workers hand over those in two orders as the order alone.
ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "as drawn": lambda edges: edges,
    "by target": lambda edges: _sorted_by(1, edges),
    "by source": lambda edges: _sorted_by(0, edges),
    "both ways, by source": lambda edges: _sorted_by(0, torch.cat([edges, edges.flip(0)], 1)),
    "both ways, by target": lambda edges: _sorted_by(1, torch.cat([edges, edges.flip(0)], 1)),
    "transposed in memory": lambda edges: _sorted_by(1, edges).T.contiguous().T,
}


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_hand_over_the_same(workers: int, order: str, dtype: torch.dtype) -> None:
    items = _kinds(dtype)
    for item in items:
        item.edge_index = ORDERS[order](item.edge_index)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        batches = list(DataLoader(ToHAG().dataset(items), batch_size=4, num_workers=workers))
    for found, expected in zip(batches, DataLoader(items, batch_size=4), strict=True):
        for key, value in expected._store._mapping.items():
            _same(found._store._mapping[key], value)
        found.hag.check(expected.edge_index)
        assert found.hag.matches(expected.edge_index)


def test_a_data_set_is_as_its_graphs() -> None:
    items = LISTS["edge values"]()
    for remove in (False, True):
        transform = ToHAG(remove_edge_index=remove)
        for found, expected in zip(transform.dataset(items), map(transform, items), strict=True):
            assert [*found.keys()] == [*expected.keys()]
            for key, value in expected._store._mapping.items():
                if key != "hag":
                    _same(found._store._mapping[key], value)
            assert found.hag.content_hash == expected.hag.content_hash


def test_a_saved_data_set_is_one_set_again(tmp_path: Path) -> None:
    """As `InMemoryDataset` saves and loads it, with `pre_transform`: batched in one call."""
    items = [ToHAG()(data) for data in _kinds()]
    data, slices = InMemoryDataset.collate(items)
    torch.save((data.to_dict(), slices), tmp_path / "data.pt")
    values, slices = torch.load(tmp_path / "data.pt")
    again = type(data).from_dict(values)
    sets = {id(graphs) for hag in again._store._mapping["hag"] for graphs in hag._places.sets}
    assert len(sets) == 1
    hags = again._store._mapping["hag"]
    assert [hag._keys() for hag in hags] == [item.hag._keys() for item in items]
    for hag, item in zip(hags, items, strict=True):
        hag.check(item.edge_index)


def test_a_damaged_set_is_refused() -> None:
    made = ToHAG().dataset(_kinds())
    batch = Batch.from_data_list(made)
    expected = batch.hag.edge_index
    rebuild, (header, wide, narrow) = batch.hag.__reduce_ex__(4)
    for broken in (
        (header, (wide[0], wide[1][: -wide[0]]), narrow),
        (header, wide, (narrow[0], narrow[1][: -narrow[0]])),
        ({**header, "graphs": 10**6}, wide, narrow),
        (header, wide, (1, b"\xff" * (len(narrow[1]) // narrow[0]))),
        (header, (4, wide[1]), narrow),
        (header, (3, wide[1]), narrow),
        (header, wide, (1, "x")),
    ):
        with pytest.raises(ValueError, match=r"."):
            rebuild(*broken)
    for key, value in itertools.product(header, ("absent", None, "x", [1], 2.5, {})):
        other = {k: v for k, v in header.items() if k != key}
        try:
            found = rebuild(other if value == "absent" else {**other, key: value}, wide, narrow)
        except ValueError:
            continue
        found.check(expected)  # it was of no account


def test_rules_that_somebody_gave_the_class_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [Data(x=torch.ones(3, 2), edge_index=torch.tensor([[0, 1], [1, 2]]),
                  foo_index=torch.tensor([1])) for _ in range(2)]  # fmt: skip
    stock = Data.__inc__

    def step(self: Any, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        return 50 if key == "foo_index" else stock(self, key, value, *args, **kwargs)

    monkeypatch.setattr(Data, "__inc__", step)
    found = Batch.from_data_list(ToHAG().dataset(items))
    assert found.foo_index.tolist() == Batch.from_data_list(items).foo_index.tolist() == [1, 51]
