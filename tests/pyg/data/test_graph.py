"""HAGs on data objects: batching, loaders, pickling, datasets, and edges that have changed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.data import Batch, Data, HeteroData, InMemoryDataset
from torch_geometric.datasets import TUDataset
from torch_geometric.loader import DataLoader
from torch_geometric.loader.utils import filter_data
from torch_geometric.nn import GCNConv
from torch_geometric.transforms import Compose, ToUndirected

import hag_plugin as hp
from hag_plugin.pyg import HagData, ToHAG, accelerate
from hag_plugin.pyg.data.graph import HagBatch
from hag_plugin.pyg.data.stale import Verdict, known_verdict

TO_HAG = ToHAG()


def make(seed: int, nodes: int = 9, edges: int = 30) -> Data:
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(nodes, (2, edges), generator=generator)
    x = torch.randn(nodes, 3, generator=generator)
    return Data(x=x, edge_index=edge_index, y=torch.tensor([seed % 2]))


class MyData(Data):
    """A user's own class, which increments an attribute of its own."""

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        return 100 if key == "mine" else super().__inc__(key, value, *args, **kwargs)


def graphs(count: int = 5) -> list[HagData]:
    return [TO_HAG(make(seed, 4 + seed)) for seed in range(count)]


def is_hag_of(hag: Any, data: Any) -> bool:
    assert isinstance(hag, hp.HAG)
    hag.check(data.edge_index)
    assert hag.num_dst == data.num_nodes
    return hag.method == "auto"


class TestData:
    def test_transform(self) -> None:
        plain = make(0)
        data = TO_HAG(plain)
        assert type(data) is HagData
        assert type(plain) is Data
        assert "hag" not in plain
        assert {(False, False), ("fill", False)} <= data.hag._keys()
        assert data.hag._keys() <= data.hag.transpose()._keys()
        assert is_hag_of(data.hag, data)
        assert "hag" in data
        assert repr(TO_HAG).startswith("ToHAG(method='auto'")

    def test_symmetric_graphs_need_one_direction(self) -> None:
        data = Compose([ToUndirected(), TO_HAG])(make(0))
        assert data.hag.transpose() is data.hag

    @pytest.mark.parametrize(
        "clone",
        [
            copy.copy,
            copy.deepcopy,
            lambda d: pickle.loads(pickle.dumps(d)),
            lambda d: d.clone(),
            lambda d: d.to("cpu"),
            lambda d: type(d).from_dict(d.to_dict()),
        ],
    )
    def test_copies(self, clone: Any) -> None:
        for data in (TO_HAG(make(1)), TO_HAG(MyData(**make(1).to_dict()))):
            twin = clone(data)
            assert type(twin) is type(data)
            assert is_hag_of(twin.hag, twin)

    def test_users_classes(self) -> None:
        data = TO_HAG(MyData(**make(1).to_dict(), mine=torch.zeros(2)))
        assert isinstance(data, MyData)
        assert type(data).__name__ == "HagMyData"
        assert type(data) is type(TO_HAG(data))
        batch = Batch.from_data_list([data, data])
        assert batch.mine.tolist() == [0, 0, 100, 100]
        assert is_hag_of(batch.hag, batch)
        again = pickle.loads(pickle.dumps(batch))
        assert is_hag_of(again.hag, again)
        assert pickle.loads(pickle.dumps(type(data))) is type(data)

    def test_remove_edge_index(self) -> None:
        data = ToHAG(remove_edge_index=True)(make(0))
        assert data.edge_index is None
        data.hag.check(make(0).edge_index)
        data.x = data.x[:4]
        with pytest.raises(ValueError, match="cut out of a larger graph"):
            _ = data.hag

    def test_what_is_refused(self) -> None:
        with pytest.raises(ValueError, match="needs edge_index"):
            TO_HAG(HeteroData())
        with pytest.raises(ValueError, match="ToHAG needs edge_index"):
            TO_HAG(Data(x=torch.ones(3, 1)))
        with pytest.raises(ValueError, match="a Batch"):
            TO_HAG(Batch.from_data_list([make(0), make(1)]))
        with pytest.raises(ValueError, match="expected one of"):
            ToHAG(method="best")
        with pytest.warns(UserWarning, match="edge_weight"):
            TO_HAG(Data(x=torch.ones(3, 1), edge_index=torch.zeros(2, 1).long(),
                        edge_weight=torch.ones(1)))  # fmt: skip

    def test_transform_finds_what_it_built(self) -> None:
        data = make(0)
        transform = ToHAG()
        assert transform(data).hag is transform(data).hag
        first = transform(data).hag
        data.edge_index[0, 0] = (data.edge_index[0, 0] + 1) % 9
        assert transform(data).hag is not first
        assert len(pickle.loads(pickle.dumps(transform))._built) == 0


class TestWhichGraph:
    def test_subgraph(self) -> None:
        data = TO_HAG(make(0, nodes=20, edges=90))
        part = data.subgraph(torch.arange(10))
        with pytest.warns(UserWarning, match="plain graph is used"):
            hag = part.hag
        assert not is_hag_of(hag, part)
        assert part.hag is hag  # kept; a second warning would be an error
        assert is_hag_of(data.hag, data)

    @pytest.mark.parametrize("kind", ["replaced", "in place", "more nodes"])
    def test_edits(self, kind: str) -> None:
        data = TO_HAG(make(0))
        assert is_hag_of(data.hag, data)
        if kind == "replaced":
            data.edge_index = data.edge_index[:, 1:]
        elif kind == "in place":
            data.edge_index[1, :5] = 0
        else:
            data.x = torch.cat([data.x, data.x])
        with pytest.warns(UserWarning, match="plain graph is used"):
            hag = data.hag
        assert not is_hag_of(hag, data)

    def test_data_that_holds_edges_only(self) -> None:
        data = Data(edge_index=torch.tensor([[0, 1], [1, 0]]))
        with pytest.warns(UserWarning, match="infer 'num_nodes'"):
            data = TO_HAG(data)
        assert data.hag.num_dst == 2  # a second warning would be an error

    def test_reordered_edges_are_the_same_graph(self) -> None:
        data = TO_HAG(make(0))
        data.edge_index = data.edge_index[:, torch.randperm(data.num_edges)]
        assert is_hag_of(data.hag, data)

    def test_sampled_batches(self) -> None:
        """What NeighborLoader does with the nodes and edges it sampled."""
        data = TO_HAG(make(0, nodes=50, edges=400))
        nodes, edges = torch.arange(10), torch.arange(30)
        row, col = torch.randint(10, (2, 30))
        part = filter_data(data, nodes, row, col, edges)
        with pytest.warns(UserWarning, match="plain graph is used"):
            hag = part.hag
        assert not is_hag_of(hag, part)

    def test_whole_and_part_in_turn(self) -> None:
        data = TO_HAG(make(0, nodes=20, edges=90))
        part = data.subgraph(torch.arange(10))
        with pytest.warns(UserWarning, match="plain graph is used"):
            plain = part.hag
        for _ in range(2):
            assert data.hag.method == "auto"
            assert part.hag is plain


class TestBatch:
    def test_merged_once(self) -> None:
        items = graphs()
        batch = Batch.from_data_list(items)
        assert isinstance(batch, HagData)
        assert is_hag_of(batch.hag, batch)
        assert batch.hag is batch.hag
        for i, item in enumerate(items):
            assert batch[i].hag is item.hag
        assert [d.hag for d in batch.to_data_list()] == [d.hag for d in items]
        assert [d.hag for d in batch.index_select([3, 1])] == [items[3].hag, items[1].hag]

    def test_pickle_carries_the_merged_hag_only(self) -> None:
        batch = Batch.from_data_list(graphs(40))
        twin = pickle.loads(pickle.dumps(batch))
        held = twin["hag"]
        assert isinstance(held, HagBatch)
        assert held._parts is None
        assert is_hag_of(twin.hag, twin)
        alone = len(pickle.dumps(batch.hag))
        without = Batch.from_data_list([make(s, 4 + s) for s in range(40)])
        assert len(pickle.dumps(batch)) < len(pickle.dumps(without)) + 1.1 * alone + 4096
        for i, item in enumerate(twin.to_data_list()):
            assert is_hag_of(item.hag, item)
            assert item.num_nodes == 4 + i

    def test_verdict_travels(self) -> None:
        """What the worker compared is not compared again."""
        twin = pickle.loads(pickle.dumps(Batch.from_data_list(graphs())))
        moved, size = twin.to("cpu"), (twin.num_nodes, twin.num_nodes)
        assert known_verdict(moved["hag"].merged, moved.edge_index, size) == Verdict(None)
        assert moved.hag.method == "auto"
        twin.edge_index[0, 0] = 1 - twin.edge_index[0, 0].clamp(max=1)
        with pytest.warns(UserWarning, match="plain graph is used"):
            assert twin.hag.method == "none"

    def test_edges_edited_before_batching(self) -> None:
        items = graphs()
        items[2].edge_index = items[2].edge_index[:, 3:]
        with pytest.warns(UserWarning, match="plain graph is used"):
            batch = pickle.loads(pickle.dumps(Batch.from_data_list(items)))
        with pytest.warns(UserWarning, match="plain graph is used"):
            assert not is_hag_of(batch.hag, batch)

    def test_batches_of_batches(self) -> None:
        inner = [Batch.from_data_list(graphs(3)), Batch.from_data_list(graphs(2))]
        outer = Batch.from_data_list(inner)
        assert is_hag_of(outer.hag, outer)
        _ = inner[0].hag, inner[1].hag
        outer = Batch.from_data_list(inner)
        assert is_hag_of(outer.hag, outer)

    def test_options_of_collate(self) -> None:
        items = graphs()
        batch = Batch.from_data_list(items, follow_batch=["hag", "x"], exclude_keys=["y"])
        assert is_hag_of(batch.hag, batch)
        assert batch.hag_batch.tolist() == list(range(5))
        assert Batch.from_data_list(items, exclude_keys=["hag"]).hag is None

    def test_moves(self) -> None:
        batch = Batch.from_data_list(graphs())
        for moved in (batch.to("cpu"), batch.cpu(), copy.copy(batch), batch.clone()):
            assert is_hag_of(moved.hag, moved)
        assert Batch.from_data_list(graphs()).to("meta")["hag"].merged.device.type == "meta"

    def test_no_list_is_taken_for_node_features(self) -> None:
        """As many graphs as nodes: PyG would take a list of HAGs for a node attribute."""
        ones = [TO_HAG(Data(x=torch.ones(1, 2), edge_index=torch.zeros(2, 1).long()))] * 4
        batch = Batch.from_data_list(ones)
        _ = batch.hag
        assert not batch.is_node_attr("hag")


@pytest.mark.parametrize(("workers", "context"), [(0, None), (2, "fork"), (1, "spawn")])
def test_loader(workers: int, context: str | None) -> None:
    items = graphs(12)
    loader = DataLoader(items, batch_size=4, num_workers=workers, multiprocessing_context=context)
    conv = GCNConv(3, 2)
    accelerated = accelerate(copy.deepcopy(conv))
    count = 0
    for batch in loader:
        assert is_hag_of(batch.hag, batch)
        if workers:
            assert batch["hag"]._parts is None
        torch.testing.assert_close(accelerated(batch.x, batch.hag), conv(batch.x, batch.edge_index))
        count += batch.num_graphs
    assert count == 12


class TestDatasets:
    @pytest.mark.parametrize("name", ["MUTAG", "IMDB-MULTI"])
    @pytest.mark.parametrize("way", ["pre_transform", "transform"])
    def test_tu(self, name: str, way: str, tu_copy: Callable[[str], str], shared_data: Any) -> None:
        root = tu_copy(name)
        dataset = TUDataset(root, name, **{way: ToHAG()})
        again = TUDataset(root, name, **{way: ToHAG()})  # from the processed file
        for data in (dataset[0], again[7], again[-1]):
            assert type(data) is HagData
            assert is_hag_of(data.hag, data)
        assert again[3].hag is again[3].hag
        part = again[torch.arange(len(again)) % 20 == 0]
        for batch in DataLoader(part, batch_size=32, num_workers=1):
            assert is_hag_of(batch.hag, batch)
        if way == "pre_transform":
            copied = part.copy()
            assert is_hag_of(copied[1].hag, copied[1])
            assert again[5].hag._keys() == dataset[5].hag._keys() != set()

    def test_in_memory(self, tmp_path: Path) -> None:
        for items in (graphs(6), graphs(1)):
            path = tmp_path / f"{len(items)}.pt"
            InMemoryDataset.save(items, str(path))
            dataset = InMemoryDataset()
            dataset.load(str(path))  # weights_only=True: a warning would be an error
            assert len(dataset) == len(items)
            for data, item in zip(dataset, items, strict=True):
                assert is_hag_of(data.hag, data)
                assert data.hag.content_hash == item.hag.content_hash

    def test_torch_save(self, tmp_path: Path) -> None:
        data = TO_HAG(make(0))
        torch.save(data.hag, tmp_path / "hag.pt")
        assert torch.load(tmp_path / "hag.pt", weights_only=True).content_hash


def test_a_hag_of_another_graph_is_refused() -> None:
    """The same numbers of nodes and edges, one edge elsewhere."""
    data = ToHAG()(Data(edge_index=torch.tensor([[0, 1, 2], [1, 2, 0]]), num_nodes=3))
    other = hp.build_hag(torch.tensor([[0, 1, 2], [1, 2, 1]]), num_nodes=3)
    with pytest.raises(ValueError, match="is not that of edge_index"):
        data.hag = other
    assert data.hag.matches(data.edge_index)
    with pytest.raises(ValueError, match="row 0, source 2: expected 1 edges, found 0"):
        other.check(data.edge_index)
