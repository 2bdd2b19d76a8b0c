"""Modules that hold layers, data of several node types, and graphs that are cut into clusters."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data, HeteroData, InMemoryDataset
from torch_geometric.loader import ClusterData, DataLoader
from torch_geometric.loader.utils import filter_hetero_data
from torch_geometric.nn import (
    AntiSymmetricConv,
    DirGNNConv,
    GATConv,
    GCNConv,
    GINConv,
    GPSConv,
    GraphConv,
    HeteroConv,
    PNAConv,
    SAGEConv,
    to_hetero,
)

import hag_plugin as hp
from hag_plugin.pyg import ToHAG, accelerate, restore
from hag_plugin.pyg.data.batching import HagBatch
from hag_plugin.pyg.data.graph import HagHeteroData

WIDTH = 4
WRAPPED = {
    "dir-gcn": lambda: DirGNNConv(GCNConv(WIDTH, 3)),
    "dir-sage": lambda: DirGNNConv(SAGEConv(WIDTH, 3, aggr="max"), alpha=0.3),
    "dir-pna": lambda: DirGNNConv(PNAConv(WIDTH, 3, ["std", "mean"], ["linear"], torch.ones(9))),
    "dir-cached": lambda: DirGNNConv(GCNConv(WIDTH, 3, cached=True)),
    "dir-gat": lambda: DirGNNConv(GATConv(WIDTH, 3, add_self_loops=False)),
    "antisymmetric": lambda: AntiSymmetricConv(WIDTH, num_iters=3),
    "antisymmetric-graph": lambda: AntiSymmetricConv(WIDTH, GraphConv(WIDTH, WIDTH)),
    "gps": lambda: GPSConv(WIDTH, GINConv(nn.Linear(WIDTH, WIDTH)), heads=2).eval(),
    "gps-gat": lambda: GPSConv(WIDTH, GATConv(WIDTH, WIDTH), heads=2).eval(),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapper_equals_stock(name: str, awkward: Any) -> None:
    stock = WRAPPED[name]().double()
    ours = accelerate(copy.deepcopy(stock))
    hag = hp.build_hag(awkward.edge_index, num_nodes=awkward.num_src)
    x = torch.randn(awkward.num_src, WIDTH, dtype=torch.float64)
    session = next(iter(ours._forward_pre_hooks.values()))
    plain, handed = [awkward.edge_index] * 3, [hag]
    for edges in plain if "cached" in name else [*handed, *plain]:
        results = []
        for model, graph in ((stock, awkward.edge_index), (ours, edges)):
            leaf = x.clone().requires_grad_()
            model.zero_grad()
            y = model(leaf, graph)
            y.square().sum().backward()
            results.append([y, leaf.grad, *(p.grad for p in model.parameters())])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert session.num_hags == (0 if "gat" in name else 1)  # cached: of one direction
    twin = pickle.loads(pickle.dumps(ours))
    torch.testing.assert_close(twin(x, awkward.edge_index), stock(x, awkward.edge_index))
    assert type(restore(ours)) is type(stock)


# Several types of nodes -------------------------------------------------------------------------

LIKES, WROTE, BY = ("a", "likes", "a"), ("a", "wrote", "b"), ("b", "by", "a")


def hetero(seed: int = 0) -> HeteroData:
    generator = torch.Generator().manual_seed(seed)
    data = HeteroData()
    counts = {"a": 20 + seed, "b": 13}
    for kind, count in counts.items():
        data[kind].x = torch.randn(count, WIDTH, generator=generator)
    for kind in (LIKES, WROTE, BY):
        ends = [torch.randint(counts[kind[end]], (70,), generator=generator) for end in (0, 2)]
        data[kind].edge_index = torch.stack(ends)
    return data


def model() -> HeteroConv:
    convs = {LIKES: GCNConv(WIDTH, 3), WROTE: SAGEConv(WIDTH, 3), BY: GraphConv(WIDTH, 3)}
    return HeteroConv(convs, aggr="sum")


def assert_same(ours: dict[str, Tensor], stock: dict[str, Tensor]) -> None:
    assert ours.keys() == stock.keys()
    for kind, y in stock.items():
        torch.testing.assert_close(ours[kind], y, rtol=1e-5, atol=1e-5)


def test_hetero_data() -> None:
    data = ToHAG()(hetero())
    assert isinstance(data, HagHeteroData)
    assert {kind: hag.num_edges for kind, hag in data.hag_dict.items()} == {
        LIKES: 70, WROTE: 70, BY: 70,
    }  # fmt: skip
    for kind, hag in data.hag_dict.items():
        hag.check(data[kind].edge_index)
    stock = model()
    ours = accelerate(copy.deepcopy(stock))
    expected = stock(data.x_dict, data.edge_index_dict)
    for edges in (data.hag_dict, data.edge_index_dict, data.edge_index_dict):
        assert_same(ours(data.x_dict, edges), expected)
    assert ours._forward_pre_hooks.popitem()[1].num_hags == 3
    removed = ToHAG(remove_edge_index=True)(hetero())
    assert_same(ours(removed.x_dict, removed.hag_dict), expected)
    assert removed.edge_types == data.edge_types


@pytest.mark.parametrize(
    "clone",
    [
        copy.copy,
        copy.deepcopy,
        lambda d: pickle.loads(pickle.dumps(d)),
        lambda d: d.to("cpu"),
        lambda d: type(d).from_dict(d.to_dict()),
    ],
)
def test_hetero_copies(clone: Any) -> None:
    data = ToHAG()(hetero())
    for given in (data, Batch.from_data_list([data, ToHAG()(hetero(3))])):
        twin = clone(given) if given is data else pickle.loads(pickle.dumps(given))
        assert isinstance(twin, HagHeteroData)
        for kind, hag in twin.hag_dict.items():
            assert hag.method == "auto"
            hag.check(twin[kind].edge_index)


def test_hetero_batches(tmp_path: Path) -> None:
    items = [ToHAG()(hetero(seed)) for seed in range(6)]
    stock = model()
    ours = accelerate(copy.deepcopy(stock))
    for workers in (0, 2):
        for batch in DataLoader(items, batch_size=3, num_workers=workers):
            assert isinstance(batch, HagHeteroData)
            assert_same(
                ours(batch.x_dict, batch.hag_dict), stock(batch.x_dict, batch.edge_index_dict)
            )
            assert isinstance(batch[WROTE]["hag"], HagBatch)
            for item in batch.to_data_list():
                for kind, hag in item.hag_dict.items():
                    hag.check(item[kind].edge_index)
                    assert hag.method == "auto"
    InMemoryDataset.save(items, str(tmp_path / "items.pt"))
    dataset = InMemoryDataset()
    dataset.load(str(tmp_path / "items.pt"), data_cls=HagHeteroData)
    for item, original in zip(dataset, items, strict=True):
        for kind, hag in item.hag_dict.items():
            assert hag.content_hash == original[kind]["hag"].content_hash


def test_sampled_hetero_data() -> None:
    """What NeighborLoader does: the sample's own edges count, not the HAGs of the whole."""
    data = ToHAG()(hetero())
    kinds = (LIKES, WROTE, BY)
    part = filter_hetero_data(
        data,
        {"a": torch.arange(8), "b": torch.arange(5)},
        {kind: torch.randint(5, (9,)) for kind in kinds},
        {kind: torch.randint(5, (9,)) for kind in kinds},
        {kind: torch.arange(9) for kind in kinds},
        None,
    )
    stock = model()
    ours = accelerate(copy.deepcopy(stock))
    expected = stock(part.x_dict, part.edge_index_dict)
    assert_same(ours(part.x_dict, part.edge_index_dict), expected)
    with pytest.warns(UserWarning, match="plain graph is used"):
        hags = part.hag_dict
    assert_same(ours(part.x_dict, hags), expected)
    assert {hag.method for hag in hags.values()} == {"none"}


class Homogeneous(nn.Module):
    """A model that PyG makes heterogeneous."""

    def __init__(self) -> None:
        super().__init__()
        self.first = SAGEConv((-1, -1), 5)
        self.second = GraphConv((-1, -1), 3)

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)


def test_to_hetero() -> None:
    data = ToHAG()(hetero())
    stock = to_hetero(Homogeneous(), data.metadata())
    stock(data.x_dict, data.edge_index_dict)  # lazy layers
    ours = accelerate(copy.deepcopy(stock))
    expected = stock(data.x_dict, data.edge_index_dict)
    for edges in (data.hag_dict, data.edge_index_dict, data.edge_index_dict):
        assert_same(ours(data.x_dict, edges), expected)
    assert next(iter(ours._forward_pre_hooks.values())).num_hags == 3


# Clusters ---------------------------------------------------------------------------------------


def test_clusters(awkward: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A HAG for each fixed cluster, in place of the one of the whole graph."""
    n = awkward.num_src
    x = torch.randn(n, WIDTH)
    data = Data(x=x, edge_index=awkward.edge_index)
    assignment = torch.arange(n) % 3  # as METIS would give, which is not installed everywhere
    monkeypatch.setattr(ClusterData, "_metis", lambda self, *args: assignment)
    clusters = [ToHAG()(part) for part in ClusterData(data, num_parts=3, log=False)]
    assert sum(part.num_nodes for part in clusters) == n
    stock = GCNConv(WIDTH, 3)
    ours = accelerate(copy.deepcopy(stock))
    for part in clusters:
        assert part.hag.method == "auto"
        torch.testing.assert_close(ours(part.x, part.hag), stock(part.x, part.edge_index))
    for batch in DataLoader(clusters, batch_size=2):  # as ClusterLoader, less the edges between
        assert batch.hag.method == "auto"
        torch.testing.assert_close(ours(batch.x, batch.hag), stock(batch.x, batch.edge_index))
    whole = ToHAG()(data)
    for part in ClusterData(whole, num_parts=3, log=False):
        with pytest.warns(UserWarning, match="plain graph is used"):
            assert part.hag.method == "none"
        break
