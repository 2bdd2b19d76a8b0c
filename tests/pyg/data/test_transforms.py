"""All of PyG's transforms, after ToHAG: what stands for the edges is the graph of the edges."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric import seed_everything
from torch_geometric import transforms as T
from torch_geometric.data import Batch, Data, HeteroData, InMemoryDataset
from torch_geometric.loader import DataLoader
from torch_geometric.nn import HeteroConv, SAGEConv

import hag_plugin as hp
from hag_plugin.pyg import HagData, ToHAG, accelerate

# How each is made; for those that are missing here see ELSEWHERE.
MADE: dict[str, Callable[[], Any]] = {
    "Compose": lambda: T.Compose([T.ToUndirected(), T.AddSelfLoops()]),
    "ToDevice": lambda: T.ToDevice("cpu"),
    "ToSparseTensor": lambda: T.ToSparseTensor(layout=torch.sparse_csr),
    "SVDFeatureReduction": lambda: T.SVDFeatureReduction(2),
    "RandomLinkSplit": lambda: T.RandomLinkSplit(edge_types=EDGE_TYPES),
    "NodePropertySplit": lambda: T.NodePropertySplit("popularity", [0.2] * 5),
    "RandomNodeSplit": lambda: T.RandomNodeSplit(num_val=2, num_test=2),
    "Pad": lambda: T.Pad(max_num_nodes=40, max_num_edges=400),
    "OneHotDegree": lambda: T.OneHotDegree(100),
    "ToUndirected": lambda: T.ToUndirected(merge=False),
    "KNNGraph": lambda: T.KNNGraph(3),
    "RadiusGraph": lambda: T.RadiusGraph(0.5),
    "GDC": lambda: T.GDC(
        diffusion_kwargs={"alpha": 0.1, "method": "ppr"},
        sparsification_kwargs={"method": "threshold", "avg_degree": 4},
    ),
    "SIGN": lambda: T.SIGN(2),
    "AddMetaPaths": lambda: T.AddMetaPaths([[WROTE, BY]]),
    "AddRandomMetaPaths": lambda: T.AddRandomMetaPaths([[WROTE, BY]]),
    "RootedEgoNets": lambda: T.RootedEgoNets(1),
    "RootedRWSubgraph": lambda: T.RootedRWSubgraph(2),
    "AddLaplacianEigenvectorPE": lambda: T.AddLaplacianEigenvectorPE(2, attr_name=None),
    "AddRandomWalkPE": lambda: T.AddRandomWalkPE(2, attr_name=None),
    "FeaturePropagation": lambda: T.FeaturePropagation(torch.zeros(NODES, 3).bool()),
    "RandomJitter": lambda: T.RandomJitter(0.1),
    "RandomFlip": lambda: T.RandomFlip(0),
    "LinearTransformation": lambda: T.LinearTransformation(torch.eye(3)),
    "RandomScale": lambda: T.RandomScale((1.0, 2.0)),
    "RandomRotate": lambda: T.RandomRotate(10),
    "RandomShear": lambda: T.RandomShear(0.1),
    "SamplePoints": lambda: T.SamplePoints(10),
    "FixedPoints": lambda: T.FixedPoints(10),
    "GridSampling": lambda: T.GridSampling(0.5),
    "merging ToUndirected": lambda: T.ToUndirected(merge=True),
    "RemoveTrainingClasses": lambda: T.RemoveTrainingClasses([1]),
    "HalfHop": lambda: T.HalfHop(p=0.7),
}
# An abstract class; one of filters; one of a pretrained model; one of images; one in which torch
# crashes, in a product of sparse matrices.
ELSEWHERE = {"BaseTransform", "ComposeFilters", "AddGPSE", "ToSLIC"}
NAMES = sorted({*T.__all__, *MADE} - ELSEWHERE)
NODES = 14
LIKES, WROTE, BY = ("a", "likes", "a"), ("a", "wrote", "b"), ("b", "by", "a")
EDGE_TYPES = None


def edges_of(sources: int, targets: int, count: int) -> Tensor:
    """Distinct edges: PyG multiplies sparse matrices in a form that must not hold duplicates."""
    edges = torch.randperm(sources * (targets - 1))[:count]
    return torch.stack([edges % sources, edges // sources])


def homogeneous() -> Data:
    return Data(
        x=torch.randn(NODES, 3),
        edge_index=edges_of(NODES, NODES, 40),
        edge_attr=torch.rand(40, 1),
        y=torch.arange(NODES) % 2,
        pos=torch.randn(NODES, 3),
        normal=torch.nn.functional.normalize(torch.randn(NODES, 3)),
        norm=torch.nn.functional.normalize(torch.randn(NODES, 3)),
        face=torch.tensor([[0, 1, 2], [1, 2, 3], [2, 3, 4]]),
        train_mask=torch.arange(NODES) < 9,
    )


def heterogeneous() -> HeteroData:
    data = HeteroData()
    counts = {"a": NODES, "b": 9}
    for kind, count in counts.items():
        data[kind].x = torch.randn(count, 3)
        data[kind].y = torch.arange(count) % 2
    for kind in (LIKES, WROTE, BY):
        data[kind].edge_index = edges_of(counts[kind[0]], counts[kind[2]], 30)
    return data


def parts(result: Any) -> Iterator[Any]:
    return iter(result if isinstance(result, list | tuple) else [result])


def transformed(name: str, data: Any) -> list[Any]:
    seed_everything(1)
    made = MADE[name]() if name in MADE else getattr(T, name)()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(parts(made(data)))


def compared(name: str, stock: Any, data: Any) -> list[tuple[Any, Any]]:
    """What stock makes of its data, and what comes of ours; nothing where both raise alike.

    Stock does where the transform is not for this kind of data, or wants an absent package.
    """
    try:
        expected = transformed(name, copy.deepcopy(stock))
    except Exception as e:
        with pytest.raises(type(e)):
            transformed(name, data)
        return []
    return list(zip(expected, transformed(name, data), strict=True))


def assert_is_graph_of(hag: Any, edge_index: Tensor) -> None:
    assert isinstance(hag, hp.HAG)
    hag.check(edge_index)


def test_all_are_tried() -> None:
    assert set(NAMES) >= set(T.__all__) - ELSEWHERE


@pytest.mark.filterwarnings("ignore:edge_index:UserWarning", "ignore:.*no HAG:UserWarning")
@pytest.mark.parametrize("remove", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_homogeneous(name: str, remove: bool) -> None:
    data = homogeneous()
    if name == "HalfHop":  # which is for edges without values
        del data.edge_attr
    if remove:  # the order of edges becomes the HAG's
        hag = ToHAG()(data).hag
        order = torch.from_numpy(np.lexsort(tuple(data.edge_index.numpy())))
        data.edge_index = hag.edge_index.clone()
        if "edge_attr" in data:
            data.edge_attr = data.edge_attr[order]
    for expected, result in compared(name, data, ToHAG(remove_edge_index=remove)(data)):
        for key, value in expected.items():
            if key == "edge_index" and remove and key not in result:
                assert value.equal(data.edge_index)  # it was left alone, and stays removed
            elif isinstance(value, Tensor):
                torch.testing.assert_close(result[key], value, equal_nan=True)
        assert set(result.keys()) - {"hag"} == set(expected.keys()) - (
            set() if "edge_index" in result else {"edge_index"}
        )
        if name == "FixedPoints":  # edges of nodes that are there no more
            with pytest.raises(ValueError, match=r"expected 0 <= id <|cut out of a larger graph"):
                _ = result.hag
        elif "hag" in result and "edge_index" in expected:
            assert_is_graph_of(result.hag, expected.edge_index)
            assert result.hag.num_dst == result.num_nodes


@pytest.mark.filterwarnings("ignore:edge_index:UserWarning", "ignore:.*no HAG:UserWarning")
@pytest.mark.parametrize("remove", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_heterogeneous(name: str, remove: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "EDGE_TYPES", [LIKES])
    data = heterogeneous()
    if remove:
        for hag, store in zip(ToHAG()(data).hag_dict.values(), data.edge_stores, strict=True):
            store.edge_index = hag.edge_index.clone()
    for expected, result in compared(name, data, ToHAG(remove_edge_index=remove)(data)):
        assert result.node_types == expected.node_types
        assert result.edge_types == expected.edge_types
        if not isinstance(expected, HeteroData):
            continue
        edges = expected.collect("edge_index", allow_empty=True)
        hags = result.hag_dict
        assert set(hags) >= set(edges)
        for kind, edge_index in edges.items():
            assert_is_graph_of(hags[kind], edge_index)
            assert result[kind].hag is hags[kind] is result.collect("hag")[kind]


# What else is done to data of several kinds of edges --------------------------------------------


CHANGES: dict[str, Callable[[HeteroData], Any]] = {
    "subgraph": lambda data: data.subgraph({"a": torch.arange(7)}),
    "edge subgraph": lambda data: data.edge_subgraph({LIKES: torch.arange(5)}),
    "node types": lambda data: data.node_type_subgraph(["a"]),
    "edge types": lambda data: data.edge_type_subgraph([WROTE, BY]),
    "renamed": lambda data: data.rename("b", "c"),
    "another type": lambda data: with_another_type(data),
    "a HAG deleted": lambda data: without_a_hag(data),
    "from_dict": lambda data: type(data).from_dict(data.to_dict()),
    "copied": lambda data: copy.deepcopy(copy.copy(with_another_type(data))),
    "pickled": lambda data: pickle.loads(pickle.dumps(with_another_type(data))),
    "batched": lambda data: Batch.from_data_list([with_another_type(data), data.clone()]),
    "unbatched": lambda data: Batch.from_data_list([data, data])[1],
}


def with_another_type(data: HeteroData) -> HeteroData:
    data["b", "near", "b"].edge_index = edges_of(9, 9, 20)
    return data


def without_a_hag(data: HeteroData) -> HeteroData:
    del data[WROTE].hag
    return data


@pytest.mark.filterwarnings("ignore:edge_index:UserWarning", "ignore:.*no HAG:UserWarning")
@pytest.mark.parametrize("name", CHANGES)
def test_every_view_is_of_the_edges_at_hand(name: str) -> None:
    if name == "batched":
        first, second = ToHAG()(heterogeneous()), heterogeneous()
        data = Batch.from_data_list([with_another_type(first), with_another_type(second)])
    else:
        data = CHANGES[name](ToHAG()(heterogeneous()))
    hags = data.hag_dict
    assert list(hags) == data.edge_types
    for kind, edge_index in data.edge_index_dict.items():
        assert_is_graph_of(hags[kind], edge_index)
        assert data[kind].hag is hags[kind] is data.collect("hag")[kind]
        assert data.edge_stores[data.edge_types.index(kind)].hag is hags[kind]
        assert hags[kind].num_dst == data[kind[2]].num_nodes


def test_an_edge_type_without_a_hag_is_said_once() -> None:
    data = T.ToUndirected(merge=False)(ToHAG()(heterogeneous()))
    del data["a", "rev_likes", "a"], data["a", "rev_by", "b"]
    reverse = ("b", "rev_wrote", "a")
    with pytest.warns(UserWarning, match="rev_wrote.*no HAG: the plain graph is used"):
        hag = data[reverse].hag
    assert hag.method == "none"
    assert data.hag_dict[reverse] is hag  # a second warning would be an error
    assert data[WROTE].hag.method == "auto"
    data[reverse].edge_index = data[reverse].edge_index[:, 1:]
    with pytest.warns(UserWarning, match="is not the graph"):
        assert data[reverse].hag.num_edges == hag.num_edges - 1
    sums = {kind: SAGEConv(3, 2) for kind in data.edge_types}
    stock = HeteroConv(sums)
    ours = accelerate(copy.deepcopy(stock))
    for kind, expected in stock(data.x_dict, data.edge_index_dict).items():
        torch.testing.assert_close(ours(data.x_dict, data.hag_dict)[kind], expected)


@pytest.mark.parametrize("remove", [False, True])
def test_one_type_of_several_and_back(remove: bool) -> None:
    stock = heterogeneous()
    data = ToHAG(remove_edge_index=remove)(copy.deepcopy(stock))
    single = data.to_homogeneous()
    assert single.num_edges == stock.to_homogeneous().num_edges
    with pytest.warns(UserWarning, match="no HAG: the plain graph is used"):
        hag = single.hag
    assert_is_graph_of(hag, stock.to_homogeneous().edge_index)
    again = single.to_heterogeneous()
    assert "hag" not in again._global_store
    with pytest.warns(UserWarning, match="no HAG: the plain graph is used"):
        hags = again.hag_dict
    for kind, edge_index in stock.edge_index_dict.items():
        assert_is_graph_of(hags[kind], edge_index)
    assert data.hag_dict[LIKES].method == "auto"


# Data without a HAG among data that have one ----------------------------------------------------

LISTS = {
    "first without": [0, 1, 1],
    "first with": [1, 0, 1],
    "one with": [0, 0, 1],
    "two ways": [1, 2],
    "two ways, removed first": [2, 1],
    "removed and without": [2, 0],
    "without and removed": [0, 2],
}


class MyData(Data):
    """A class of a user."""


torch.serialization.add_safe_globals([MyData])


def items(kinds: list[int], make: Callable[[], Any]) -> list[Any]:
    """Data as it is (0), with its HAG (1), or with that alone (2)."""
    ways = [lambda data: data, ToHAG(), ToHAG(remove_edge_index=True)]
    return [ways[kind](make()) for kind in kinds]


def mine() -> MyData:
    return MyData(**homogeneous().to_dict())


@pytest.mark.filterwarnings("ignore:.*no HAG:UserWarning")
@pytest.mark.parametrize("make", [homogeneous, heterogeneous, mine])
@pytest.mark.parametrize("kinds", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("way", ["Batch", "DataLoader", "workers", "collate", "save", "batches"])
def test_mixed_lists(make: Any, kinds: list[int], way: str, tmp_path: Path) -> None:
    given = items(kinds, make)
    edges = [[s["edge_index"] if "edge_index" in s else s["hag"].edge_index for s in d.edge_stores]
             for d in given]  # fmt: skip
    before = [(type(d), d.to_dict().keys()) for d in given]
    if way == "Batch":
        whole = Batch.from_data_list(given)
    elif way == "batches":
        whole = Batch.from_data_list([Batch.from_data_list([d]) for d in given])
    elif way in ("DataLoader", "workers"):
        loader = DataLoader(given, batch_size=len(given), num_workers=int(way == "workers"))
        whole = next(iter(loader))
    else:
        dataset = InMemoryDataset()
        if way == "save":
            InMemoryDataset.save(given, str(tmp_path / "data.pt"))
            dataset.load(str(tmp_path / "data.pt"))
        else:
            dataset.data, dataset.slices = InMemoryDataset.collate(given)
        whole = Batch.from_data_list(list(dataset))
    parts = [whole] if way == "batches" else whole.to_data_list()
    for part, expected in zip(parts, edges, strict=way != "batches"):
        for store, edge_index in zip(part.edge_stores, expected, strict=True):
            hag = part.hag if isinstance(part, Data) else store.hag
            if way != "batches":
                assert_is_graph_of(hag, edge_index)
    for store in whole.edge_stores:
        hag = whole.hag if isinstance(whole, Data) else store.hag
        assert hag.num_edges == sum(e[0].shape[1] for e in edges) or len(edges[0]) > 1
        if "edge_index" in store:
            assert_is_graph_of(hag, store.edge_index)
    assert [(type(d), d.to_dict().keys()) for d in given] == before  # the items stay as they are


def test_mixed_lists_are_said() -> None:
    with pytest.warns(UserWarning, match="1 of 2 graphs of a batch or dataset have no HAG"):
        Batch.from_data_list(items([0, 1], homogeneous))
    batch = Batch.from_data_list(items([0, 1], homogeneous), exclude_keys=["hag"])
    assert "hag" not in batch
    plain = Batch.from_data_list([homogeneous(), homogeneous()])
    assert "hag" not in plain
    assert not isinstance(plain, HagData)


# Options ----------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"bogus": 1}, TypeError, "no option 'bogus'"),
    ({"edge_index": 1}, TypeError, "edge_index is taken from the graph"),
    ({"num_nodes": 3}, TypeError, "num_nodes is taken from the graph"),
    ({"size": (3, 3)}, TypeError, "size is taken from the graph"),
    ({"targets_first": True}, TypeError, "targets_first is taken from the graph"),
    ({"ptr": [0]}, TypeError, "ptr is taken from the graph"),
    ({"method": "best"}, ValueError, "method is 'best'"),
    ({"method": 3}, ValueError, "method is 3"),
    ({"method": "greedy", "capacity": -1}, ValueError, "capacity is -1"),
    ({"method": "greedy", "capacity": "2"}, TypeError, "capacity is '2'"),
    ({"capacity": 3}, ValueError, 'for method="greedy" only'),
    ({"width": "a"}, TypeError, "width is 'a'"),
    ({"width": 0}, ValueError, "width is 0"),
    ({"dtype": torch.int64}, ValueError, "dtype is torch.int64"),
    ({"dtype": "float"}, ValueError, "dtype is 'float'"),
    ({"allow_subtraction": "yes"}, TypeError, "allow_subtraction is 'yes'"),
    ({"progress": 3}, TypeError, "progress is 3"),
]
WRONG_PYG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"self_loops": "bogus"}, ValueError, "self_loops is 'bogus'"),
    ({"self_loops": (False, None)}, ValueError, "self_loops is None"),
    ({"self_loops": True}, ValueError, "self_loops is True"),
    ({"device": "nowhere"}, ValueError, "device is 'nowhere'"),
]


@pytest.mark.parametrize(("options", "error", "words"), WRONG + WRONG_PYG)
def test_wrong_options_are_refused_at_once(options: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        ToHAG(**options)


@pytest.mark.parametrize("options", [{}, {"width": 8, "progress": False, "dtype": torch.float64},
                                     {"method": "greedy", "capacity": 0}, {"self_loops": ["add"]},
                                     {"device": "cpu", "allow_subtraction": True}])  # fmt: skip
def test_right_options_are_taken(options: Any) -> None:
    data = ToHAG(**options)(homogeneous())
    assert_is_graph_of(data.hag, data.edge_index)


@pytest.mark.filterwarnings("ignore:.*has no HAG")
@pytest.mark.parametrize("removed", [False, True])
def test_concatenated_data(removed: bool) -> None:
    """Their edges run on the plain graph."""
    plain = [Data(x=torch.randn(5, 2), edge_index=torch.randint(5, (2, 12))) for _ in range(2)]
    first, second = (ToHAG(remove_edge_index=removed)(each) for each in plain)
    out, expected = first.concat(second), plain[0].concat(plain[1])
    assert torch.equal(out.x, expected.x)
    out.hag.check(expected.edge_index)
    hetero = HeteroData()
    hetero["a"].x = plain[0].x
    hetero["a", "to", "a"].edge_index = plain[0].edge_index
    held = ToHAG(remove_edge_index=removed)(hetero)
    out, expected = held.concat(held), hetero.concat(hetero)
    out.hag_dict["a", "to", "a"].check(expected["a", "to", "a"].edge_index)
