"""DGL's graphs as PyG's data and back: nothing is lost, and the HAGs go along."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("torch_geometric", reason="PyG is not installed")
dgl = pytest.importorskip("dgl", reason="DGL is not installed")
import dgl.function as fn  # noqa: E402
from torch_geometric import EdgeIndex  # noqa: E402
from torch_geometric.data import Batch, Data, HeteroData  # noqa: E402
from torch_geometric.nn import SimpleConv  # noqa: E402
from torch_geometric.utils import from_dgl  # noqa: E402

import hag_plugin as hp  # noqa: E402
from hag_plugin.dgl import to_pyg  # noqa: E402
from hag_plugin.pyg import to_dgl  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:this data has edge_weight")

# What DGL calls a value: what PyG does.
OF_NODES = {"feat": "x", "label": "y", "train_mask": "train_mask", "_ID": "n_id", "h": "h"}
OF_EDGES = {"feat": "edge_attr", "w": "edge_weight", "_TYPE": "edge_type", "_ID": "e_id"}
OTHER_EDGES = {
    "time": "edge_time",
    "h": "edge_h",
    "label": "edge_label",
}  # in a `Data`; as they are in a `HeteroData`
TYPES = [("a", "to", "a"), ("a", "to", "b"), ("b", "of", "c")]


def _value(name: str, count: int) -> Tensor:
    if name == "train_mask":
        return torch.rand(count) < 0.5
    if name in ("label", "y", "_ID", "_TYPE"):
        return torch.randint(5, (count,))
    return torch.randn(count, 2) if name in ("feat", "x", "edge_attr") else torch.randn(count)


@st.composite
def graphs(draw: Any, typed: bool | None = None, names: Any = None) -> Any:
    """A DGL graph with values, or a batch of several that are alike, with HAGs or without."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    typed = draw(st.booleans()) if typed is None else typed
    types = draw(st.lists(st.sampled_from(TYPES), min_size=1, unique=True)) if typed else []
    kinds = sorted({end for source, _, target in types for end in (source, target)})
    of_nodes = draw(st.sets(st.sampled_from([*OF_NODES])))
    of_edges = draw(st.sets(st.sampled_from([*OF_EDGES, *OTHER_EDGES])))
    sizes = st.integers(0, 7)

    def ends(sources: int, targets: int) -> tuple[Tensor, Tensor]:
        count = draw(sizes) if sources and targets else 0
        return torch.randint(max(sources, 1), (count,)), torch.randint(max(targets, 1), (count,))

    def one() -> Any:
        if typed:
            counts = {kind: draw(sizes) for kind in kinds}
            edges = {each: ends(counts[each[0]], counts[each[2]]) for each in types}
            graph = dgl.heterograph(edges, counts)
        else:
            nodes = draw(sizes)
            graph = dgl.graph(ends(nodes, nodes), num_nodes=nodes)
        for kind in graph.ntypes:
            for name in of_nodes:
                graph.nodes[kind].data[name] = _value(name, graph.num_nodes(kind))
        for kind in graph.canonical_etypes:
            for name in of_edges:
                graph.edges[kind].data[name] = _value(name, graph.num_edges(kind))
        return graph

    number = draw(st.integers(1, 3))
    graph = one() if number == 1 else dgl.batch([one() for _ in range(number)])
    return hp.dgl.ToHAG()(graph) if draw(st.booleans()) else graph


def _hags(graph: Any) -> list[Any]:
    if type(graph).__name__ != "HagGraph":
        return []
    return [graph[kind].hag for kind in graph.canonical_etypes]


def _assert_same_values(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].data_ptr() == value.data_ptr(), name
        assert torch.equal(found[name], value)


def _assert_same_graph(found: Any, wanted: Any) -> None:
    assert (type(found), found.canonical_etypes) == (type(wanted), wanted.canonical_etypes)
    assert {*found.ntypes} == {*wanted.ntypes}
    assert found.batch_size == wanted.batch_size
    for kind in wanted.ntypes:
        assert found.num_nodes(kind) == wanted.num_nodes(kind)
        assert torch.equal(found.batch_num_nodes(kind), wanted.batch_num_nodes(kind))
        _assert_same_values(dict(found.nodes[kind].data), dict(wanted.nodes[kind].data))
    for kind in wanted.canonical_etypes:
        for end, other in zip(found.edges(etype=kind), wanted.edges(etype=kind), strict=True):
            assert torch.equal(end, other)
        assert torch.equal(found.batch_num_edges(kind), wanted.batch_num_edges(kind))
        _assert_same_values(dict(found.edges[kind].data), dict(wanted.edges[kind].data))


@given(graphs())
def test_there_and_back_again(graph: Any) -> None:
    found = to_dgl(to_pyg(graph))
    _assert_same_graph(found, graph)
    for hag, own in zip(_hags(found), _hags(graph), strict=True):
        assert hag is own


@given(graphs(typed=False))
def test_data_is_what_pyg_itself_makes_of_a_graph(graph: Any) -> None:
    """But for names, which PyG leaves, and nodes without edges, which it does not count."""
    data, stock = to_pyg(graph), from_dgl(_apart(graph))
    assert isinstance(data, Batch if graph.batch_size > 1 else Data)
    assert data.num_nodes == graph.num_nodes()
    assert torch.equal(data.edge_index, stock.edge_index)
    for name in graph.ndata:
        assert torch.equal(data[OF_NODES[name]], stock[f"nodes' {name}"])
    for name in graph.edata:
        assert torch.equal(data[{**OF_EDGES, **OTHER_EDGES}[name]], stock[f"edges' {name}"])
    if graph.batch_size > 1:
        assert data.num_graphs == graph.batch_size
        assert torch.equal(data.ptr.diff(), graph.batch_num_nodes())
        assert torch.equal(data.batch.bincount(minlength=data.num_graphs), data.ptr.diff())


def _apart(graph: Any) -> Any:
    """A graph whose nodes' and edges' values have different names: PyG would mix them up."""
    other = dgl.graph(graph.edges(), num_nodes=graph.num_nodes())
    for name, value in graph.ndata.items():
        other.ndata[f"nodes' {name}"] = value
    for name, value in graph.edata.items():
        other.edata[f"edges' {name}"] = value
    return other


@given(graphs(typed=True))
def test_types_keep_their_names_and_values(graph: Any) -> None:
    data = to_pyg(graph)
    assert isinstance(data, HeteroData)
    assert {*data.edge_types} == {*graph.canonical_etypes}
    for kind in graph.ntypes:
        assert data[kind].num_nodes == graph.num_nodes(kind)
        for name, value in graph.nodes[kind].data.items():
            assert torch.equal(data[kind][OF_NODES[name]], value)
    for kind in graph.canonical_etypes:
        assert torch.equal(data[kind].edge_index, torch.stack(graph.edges(etype=kind)))
        for name, value in graph.edges[kind].data.items():
            assert torch.equal(data[kind][OF_EDGES.get(name, name)], value)


@given(graphs())
def test_sums_are_the_same(graph: Any) -> None:
    """What DGL adds up on its graph, and what PyG does on the data: its edges, and its HAGs."""
    data = to_pyg(graph)
    for kind in graph.canonical_etypes:
        x = torch.randn(graph.num_nodes(kind[0]), 3)
        with graph.local_scope():
            graph.nodes[kind[0]].data["h"] = x
            graph.update_all(fn.copy_u("h", "m"), fn.sum("m", "s"), etype=kind)
            wanted = graph.nodes[kind[2]].data["s"]
        store = data[kind] if isinstance(data, HeteroData) else data
        size = x.shape[0], graph.num_nodes(kind[2])
        conv = hp.accelerate(SimpleConv("sum"))
        if graph.num_nodes(kind[2]):
            found = conv((x, None), store.edge_index, size=size)
            torch.testing.assert_close(found, wanted)
            if _hags(graph):
                torch.testing.assert_close(conv((x, None), store.hag, size=size), wanted)
        for held in [store.hag] if _hags(graph) else []:
            held.check(store.edge_index)


# From PyG ----------------------------------------------------------------------------------------

PYG_NODES = ["x", "y", "train_mask", "node_type", "pos"]
PYG_EDGES = ["edge_attr", "edge_weight", "edge_type", "edge_time"]


@st.composite
def datas(draw: Any) -> Any:
    """A `Data` or `HeteroData` with values by PyG's names, or a `Batch`; with HAGs or without."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    typed, with_hags = draw(st.booleans()), draw(st.booleans())
    types = draw(st.lists(st.sampled_from(TYPES), min_size=1, unique=True)) if typed else [None]
    kinds = sorted({end for each in types if each for end in (each[0], each[2])}) or [None]
    of_nodes = draw(st.sets(st.sampled_from(PYG_NODES)))
    of_edges = draw(st.sets(st.sampled_from(PYG_EDGES)))
    removed = with_hags and draw(st.booleans())
    sizes = st.integers(0, 7)

    def one() -> Any:
        data: Any = HeteroData() if typed else Data()
        counts = {kind: draw(sizes) for kind in kinds}
        for kind, count in counts.items():
            store = data[kind] if typed else data
            store.num_nodes = count
            for name in of_nodes:
                store[name] = _value(name, count)
        for each in types:
            sources, targets = (counts[each[0]], counts[each[2]]) if each else [counts[None]] * 2
            count = draw(sizes) if sources and targets else 0
            store = data[each] if typed else data
            store.edge_index = torch.stack(
                [torch.randint(max(n, 1), (count,)) for n in (sources, targets)]
            )
            for name in of_edges:
                store[name] = _value(name, count)
        return hp.pyg.ToHAG(remove_edge_index=removed)(data) if with_hags else data

    number = draw(st.integers(1, 3))
    return one() if number == 1 else Batch.from_data_list([one() for _ in range(number)])


def _held(data: Any) -> dict[Any, Any]:
    stores = {store._key: store for store in data.edge_stores if "hag" in store}
    return {key: data.hag if key is None else store.hag for key, store in stores.items()}


@given(datas())
def test_data_and_back_again(data: Any) -> None:
    found = to_pyg(to_dgl(data))
    assert type(found) is type(data)
    stores = {store._key: store for store in data.stores}
    assert stores.keys() == {store._key for store in found.stores}
    for store in found.stores:
        given = stores[store._key]
        told = {*store.keys()} - {"num_nodes", "edge_index", "hag"}
        assert told == {*given.keys()} - {"num_nodes", "edge_index", "hag"}
        for name in told:
            assert torch.equal(store[name], given[name])
        edges = given.get("edge_index")
        if edges is not None:
            assert torch.equal(store.edge_index, edges)
    held, own = _held(found), _held(data)
    assert held.keys() == own.keys()
    assert all(hag is own[key] for key, hag in held.items())
    assert found.num_nodes == data.num_nodes


# HAGs --------------------------------------------------------------------------------------------


def _ring(nodes: int = 12) -> Any:
    return dgl.graph((torch.arange(nodes), (torch.arange(nodes) + 1) % nodes))


def test_what_a_hag_was_asked_for_goes_along() -> None:
    to_hag = hp.dgl.ToHAG(method="greedy", capacity=3, width=8)
    graph = to_dgl(to_pyg(to_hag(_ring())))
    assert to_hag(graph).hag is graph.hag
    (part, _) = hp.dgl.unbatch(hp.dgl.batch([graph, graph]))
    assert part.hag.options == graph.hag.options


def test_loops_that_were_added_later_are_in_the_hag() -> None:
    data = to_pyg(dgl.add_self_loop(hp.dgl.ToHAG()(_ring())))
    data.hag.check(data.edge_index)
    assert data.edge_index.shape[1] == 24


def test_a_changed_graph_has_no_hag() -> None:
    graph = hp.dgl.ToHAG()(_ring())
    graph.add_edges(0, 5)
    assert type(to_pyg(graph)) is Data


def test_a_hag_of_other_edges_does_not_go_along() -> None:
    data = hp.pyg.ToHAG()(to_pyg(_ring()))
    data.edge_index = data.edge_index[:, 3:]
    with pytest.warns(UserWarning, match="the plain graph is used"):
        graph = to_dgl(data)
    graph.hag.check(torch.stack(graph.edges()))


def test_a_hag_in_data_of_pygs_own_class() -> None:
    data = to_pyg(_ring())
    data.hag = hp.build_hag(data.edge_index, num_nodes=12)
    assert to_dgl(data).hag is data.hag
    assert type(data) is Data


def test_types_without_a_hag_run_as_they_are() -> None:
    graph = dgl.heterograph({("a", "to", "b"): ([0, 1], [1, 0]), ("b", "of", "a"): ([0], [1])})
    data = to_pyg(hp.dgl.ToHAG()(graph))
    del data["b", "of", "a"].hag
    found = to_dgl(data)
    assert found["to"].hag is data["a", "to", "b"].hag
    assert found["of"].hag.method == "none"


# Values ------------------------------------------------------------------------------------------


def test_ids_become_int64() -> None:
    graph = _ring().int()
    assert to_pyg(graph).edge_index.dtype == torch.int64
    data = Data(edge_index=torch.tensor([[0, 1], [1, 0]], dtype=torch.int32), num_nodes=3)
    assert to_dgl(data).idtype == torch.int64


def test_in_inference_mode() -> None:
    with torch.inference_mode():
        data = to_pyg(_ring())
    assert not data.edge_index.is_inference()


def test_gradients_flow_to_what_was_given() -> None:
    graph = _ring()
    x = graph.ndata["feat"] = torch.randn(12, 2, requires_grad=True)
    to_dgl(to_pyg(graph)).ndata["feat"].sum().backward()
    assert torch.equal(x.grad, torch.ones(12, 2))


def test_types_and_ids_that_dgl_leaves() -> None:
    types = {("a", "to", "b"): ([0, 1], [1, 0]), ("b", "of", "a"): ([0], [1])}
    graph = dgl.to_homogeneous(dgl.heterograph(types))
    data = to_pyg(graph)
    assert {*data.keys()} == {"edge_index", "node_type", "n_id", "edge_type", "e_id"}
    assert data.node_type is graph.ndata[dgl.NTYPE]
    assert data.n_id is graph.ndata[dgl.NID]
    assert data.edge_type is graph.edata[dgl.ETYPE]
    assert data.e_id is graph.edata[dgl.EID]


def test_names_that_are_there_already_are_kept() -> None:
    graph = _ring()
    for name in ("feat", "x"):
        graph.ndata[name] = torch.randn(12)
    for name in ("h", "edge_h", "w", "weight"):
        graph.edata[name] = torch.randn(12)
    data = to_pyg(graph)
    nodes, edges = {"feat", "x"}, {"h", "edge_h", "edge_weight", "weight"}
    assert {*data.keys()} == nodes | edges | {"edge_index"}
    assert data.edge_weight is graph.edata["w"]


def test_as_many_nodes_as_edges() -> None:
    """A name says what a value is one of."""
    data = to_pyg(_ring())
    data.x, data.edge_attr, data.own, data.edge_own, data.e_id = torch.randn(5, 12, 1)
    graph = to_dgl(data)
    assert {*graph.ndata} == {"feat", "own"}
    assert {*graph.edata} == {"feat", "own", "_ID"}


def test_what_is_of_the_whole_graph_stays_behind() -> None:
    data = Data(edge_index=torch.tensor([[0, 1], [1, 0]]), num_nodes=3)
    data.y, data.scale, data.smiles = torch.tensor([1]), torch.tensor(2.0), "CC"
    data.edge_label_index, data.edge_label = torch.tensor([[0, 1], [2, 2]]), torch.ones(2)
    graph = to_dgl(data)
    assert graph.num_nodes() == 3
    assert not graph.ndata
    assert not graph.edata


def test_nodes_are_counted_as_pyg_counts_them() -> None:
    edge_index = torch.tensor([[0, 1], [4, 0]])
    assert to_dgl(Data(edge_index=edge_index)).num_nodes() == 5
    assert to_dgl(Data(edge_index=EdgeIndex(edge_index, sparse_size=(9, 9)))).num_nodes() == 9
    data = HeteroData()
    data["a"].x = torch.randn(3, 1)
    data["a", "to", "b"].edge_index = edge_index
    graph = to_dgl(data)
    assert (graph.num_nodes("a"), graph.num_nodes("b")) == (3, 5)
    assert data.node_types == ["a"]


def test_edges_of_a_batch_in_any_order() -> None:
    data = Batch.from_data_list([to_pyg(_ring(3)), to_pyg(_ring(4))])
    data.edge_weight = torch.randn(7)
    order = torch.tensor([5, 0, 4, 2, 6, 1, 3])
    data.edge_index, data.edge_weight = data.edge_index[:, order], data.edge_weight[order]
    graph = to_dgl(data)
    weights = {}
    for first, part in zip(data.ptr.tolist(), dgl.unbatch(graph), strict=False):
        for source, target, weight in zip(*part.edges(), part.edata["w"], strict=True):
            weights[first + int(source), first + int(target)] = weight
    assert len(weights) == 7
    for (source, target), weight in zip(data.edge_index.T.tolist(), data.edge_weight, strict=True):
        assert weights[source, target] == weight


def test_what_is_given_stays_as_it_is() -> None:
    graph = hp.dgl.ToHAG()(_ring())
    graph.edata["w"] = torch.ones(12)
    data = to_pyg(graph)
    before = copy.copy(data)
    to_dgl(data)
    assert {*data.keys()} == {*before.keys()}
    assert {*graph.edata} == {"w"}


# What is refused ----------------------------------------------------------------------------------


def test_blocks_are_refused() -> None:
    block = dgl.to_block(_ring())
    with pytest.raises(ValueError, match="graph is a block"):
        to_pyg(block)
    assert isinstance(to_pyg(dgl.block_to_graph(block)), HeteroData)


@pytest.mark.parametrize("name", ["own_index", "edge_h", "num_nodes", "edge_index"])
def test_names_that_pyg_takes_for_something_else(name: str) -> None:
    graph = _ring()
    graph.edata["h"], graph.ndata[name] = torch.ones(12), torch.ones(12, 2)
    with pytest.raises(ValueError, match=f"graph has values '(edge_h|{name})'"):
        to_pyg(graph)


@pytest.mark.parametrize("data", [Data(x=torch.ones(3, 1)), HeteroData(a={"x": torch.ones(2, 1)})])
def test_data_without_edges(data: Any) -> None:
    with pytest.raises(ValueError, match=r"data has .*x.*; expected"):
        to_dgl(data)


def rings(*sizes: int) -> Batch:
    graphs = []
    for size in sizes:
        nodes = torch.arange(size)
        graphs.append(
            Data(x=torch.ones(size, 1), edge_index=torch.stack([nodes, (nodes + 1) % size]))
        )
    return Batch.from_data_list(graphs)


def test_nodes_that_a_batch_lost() -> None:
    """PyG leaves `ptr` as it was; `batch` is right."""
    kept = rings(3, 4, 2).subgraph(torch.tensor([1, 2, 3, 4, 5, 6]))
    graph = hp.pyg.to_dgl(kept)
    assert graph.batch_num_nodes().tolist() == [2, 4, 0]
    assert [g.num_edges() for g in dgl.unbatch(graph)] == [1, 4, 0]
    assert dgl.sum_nodes(graph, "feat").flatten().tolist() == [2.0, 4.0, 0.0]
    nested = Batch.from_data_list([rings(3, 4), rings(2)])
    assert hp.pyg.to_dgl(nested).batch_num_nodes().tolist() == [3, 4, 2]


@pytest.mark.parametrize(
    ("edge_index", "words"),
    [
        (torch.tensor([[0.9, 1.9], [1.0, 2.0]]), "edge_index"),
        (torch.tensor([[-1], [0]]), "-1"),
        (torch.tensor([[0], [3]]), "0 to 2"),
        (torch.zeros(3, 3).long(), "edge_index"),
        (torch.zeros(3).long(), "edge_index"),
        (torch.tensor([[0, 1], [1, 2]]).to_sparse(), "edge_index"),
    ],
)
def test_edges_that_are_none(edge_index: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        hp.pyg.to_dgl(Data(edge_index=edge_index, num_nodes=3))


def test_edges_across_graphs() -> None:
    batch = rings(3, 4)
    batch.edge_index[1, 0] = 5
    with pytest.raises(ValueError, match=r"\[0, 5\]"):
        hp.pyg.to_dgl(batch)
    unordered = rings(3, 4)
    unordered.batch = unordered.batch.flip(0)
    with pytest.raises(ValueError, match="batch"):
        hp.pyg.to_dgl(unordered)
