"""Graphs on disk: what each part has is what an in-memory twin cuts out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hag_plugin as hp
from hag_plugin.files import DatasetError
from hag_plugin.parallel.graphs.stats import measure
from hag_plugin.parallel.graphs.store import assign
from hag_plugin.parallel.graphs.store.fennel import fennel
from hag_plugin.parallel.graphs.store.sorting import (
    EDGE_BYTES,
    VALUE_BYTES,
    Numbering,
    Spool,
    sorted_rows,
)
from hag_plugin.parallel.graphs.store.streams import EdgeStream, RowStream
from hag_plugin.parallel.graphs.store.write import resident
from hag_plugin.parallel.layouts import chunk_sizes

from .... import reference

hpp = hp.parallel


@st.composite
def graphs(draw: Any) -> tuple[torch.Tensor, int]:
    """Edges with duplicates, loops and isolated nodes; or none at all."""
    nodes = draw(st.integers(0, 30))
    ids = st.integers(0, max(nodes - 1, 0))
    pairs = draw(st.lists(st.tuples(ids, ids), max_size=80 if nodes else 0))
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t(), nodes


def parts_in(folder: Path) -> list[hpp.PartitionedData]:
    ranks = hpp.PartitionedData(folder, 0).ranks
    return [hpp.PartitionedData(folder, rank) for rank in range(ranks)]


def owner_of(parts: list[hpp.PartitionedData]) -> torch.Tensor:
    """The part of each node, by its old number."""
    nodes = torch.cat([part.nodes for part in parts])
    assert sorted(nodes.tolist()) == list(range(len(nodes)))
    owner = torch.full((len(nodes),), -1)
    for part in parts:
        owner[part.nodes] = part.rank
    return owner


def assert_same(
    parts: list[hpp.PartitionedData], edges: torch.Tensor, owner: torch.Tensor, undirected: bool
) -> None:
    """Each part is what the twin cuts out, in all the forms in which it gives it."""
    twins = reference.parts_of(edges, owner, len(parts), undirected)
    for part, (nodes, rows, halo) in zip(parts, twins, strict=True):
        assert part.nodes.tolist() == nodes
        assert part.halo.tolist() == halo
        ends = part.indptr.tolist()
        assert [part.sources[a:b].tolist() for a, b in pairwise(ends)] == rows
        wanted = [(u, part.first + i) for i, row in enumerate(rows) for u in row]
        assert [*map(tuple, part.edge_index.t().tolist())] == wanted
        names = [*range(part.first, part.first + len(nodes)), *halo]
        local = part.local_edge_index
        assert [(names[u], part.first + v) for u, v in local.t().tolist()] == wanted
        assert part.num_edges == len(wanted)
        sources = torch.tensor([u for u, _ in wanted], dtype=torch.int64)
        new = torch.cat([torch.full((len(n),), p) for p, (n, _, _) in enumerate(twins)])
        assert part.owners(sources).tolist() == new[sources].tolist()


def assert_counts(parts: list[hpp.PartitionedData], nodes: int) -> None:
    """The counts in the manifest are those that are measured on the whole graph."""
    found, ranks = parts[0].stats, len(parts)
    edges = torch.cat([part.edge_index for part in parts], dim=1)
    rows = [part.num_nodes for part in parts]
    owner = np.repeat(np.arange(ranks), rows)
    measured = measure(edges, nodes, part=lambda _: owner, hag=False, progress=False)
    assert (found.nodes, found.edges) == (nodes, measured.edges)
    assert found.fingerprint == measured.fingerprint
    for merged in range(1, ranks + 1):
        if ranks % merged or ranks > nodes:
            continue
        mine, theirs = (stats.partition(ranks, merged) for stats in (found, measured))
        for name in ("rows", "edges", "halo"):
            assert getattr(mine, name).tolist() == getattr(theirs, name).tolist()
        if merged == 1:
            assert mine.inner is not None
            assert theirs.inner is not None
            assert mine.inner.tolist() == theirs.inner.tolist()
    if edges.numel():
        cut = np.count_nonzero(owner[edges[0]] != owner[edges[1]]) / edges.shape[1]
        assert parts[0].manifest.cut == pytest.approx(cut)
        assert parts[0].manifest.node_balance == pytest.approx(max(rows) / np.mean(rows))


@pytest.mark.parametrize("method", [*assign.METHODS, "assignment"])
def test_parts_are_those_of_the_twin(method: str) -> None:
    if method == "metis":
        pytest.importorskip("pymetis")

    @settings(max_examples=25)
    @given(graphs(), st.integers(1, 9), st.booleans(), st.integers(0, 2**31))
    def check(graph: tuple[torch.Tensor, int], ranks: int, undirected: bool, seed: int) -> None:
        edges, nodes = graph
        random = np.random.default_rng(seed)
        options: dict[str, Any] = {"method": method}
        if method == "assignment":  # some parts may be empty
            options = {"assignment": random.integers(0, ranks, nodes)}
        x = random.random((nodes, 3))
        stream = EdgeStream.of(edges.numpy(), nodes, {"x": x, "y": np.arange(nodes)})
        with TemporaryDirectory() as folder:
            path = Path(folder) / "parts"
            hpp.write_partitions(stream, ranks, path, undirected=undirected, **options)
            assert [each.name for each in Path(folder).iterdir()] == ["parts"]
            parts = parts_in(path)
        assert len(parts) == ranks
        owner = owner_of(parts)
        if method == "assignment":
            assert owner.tolist() == options["assignment"].tolist()
        elif method == "contiguous":
            assert owner.tolist() == np.repeat(range(ranks), chunk_sizes(nodes, ranks)).tolist()
        assert_same(parts, edges, owner, undirected)
        assert_counts(parts, nodes)
        for part in parts:
            assert part.names == ("x", "y")
            assert np.array_equal(part.x.numpy(), x[part.nodes.numpy()])
            assert part.y.tolist() == part.nodes.tolist()

    check()


@settings(max_examples=60)
@given(graphs(), st.integers(1, 5), st.booleans(), st.integers(0, 2**31))
def test_what_edges_have_goes_with_them(
    graph: tuple[torch.Tensor, int], ranks: int, undirected: bool, seed: int
) -> None:
    """Of repeated edges in the order in which they came; of both directions, what came first."""
    edges, nodes = graph
    random, count = np.random.default_rng(seed), edges.shape[1]
    owner = random.integers(0, ranks, nodes)
    values = {"number": np.arange(count), "edge_attr": random.random((count, 2)).astype(">f4")}
    stream = EdgeStream.of(edges.numpy(), nodes, {"x": np.ones(nodes)}, values=values)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "parts"
        hpp.write_partitions(stream, ranks, path, assignment=owner, undirected=undirected)
        parts = parts_in(path)
    assert_same(parts, edges, torch.from_numpy(owner), undirected)
    assert_counts(parts, nodes)
    twins = reference.edges_of_parts(edges, torch.from_numpy(owner), ranks, undirected)
    for part, wanted in zip(parts, twins, strict=True):
        assert (part.names, part.edge_names) == (("x",), ("number", "edge_attr"))
        assert part.number.tolist() == wanted
        assert part.edge_attr.dtype == torch.float32
        assert np.array_equal(part.edge_attr.numpy(), values["edge_attr"][wanted])


@settings(max_examples=40)
@given(graphs(), st.sampled_from([(1, 1), (4, 1), (4, 2), (4, 4), (6, 3)]), st.integers(0, 2**31))
def test_neighbours_as_one(
    graph: tuple[torch.Tensor, int], split: tuple[int, int], seed: int
) -> None:
    """Edges one part after the other, and all rows that they read of others."""
    edges, nodes = graph
    ranks, count = split
    owner = np.random.default_rng(seed).integers(0, ranks, nodes)
    stream = EdgeStream.of(edges.numpy(), nodes, values={"w": np.arange(edges.shape[1])})
    with TemporaryDirectory() as folder:
        path = Path(folder) / "parts"
        hpp.write_partitions(stream, ranks, path, assignment=owner)
        parts = parts_in(path)
        for part in parts:
            found = part.block(count)
            own = parts[found.number * count : (found.number + 1) * count]
            assert part in own
            index = torch.cat([each.edge_index for each in own], dim=1).numpy()
            assert np.array_equal(found.edge_index(), index)
            assert (found.first, found.last) == (own[0].first, own[-1].first + own[-1].num_nodes)
            others = {*index[0].tolist()} - {*range(found.first, found.last)}
            assert found.halo.tolist() == sorted(others)
            assert found.before == sum(each.num_edges for each in parts[: own[0].rank])
            assert found.values["w"].tolist() == torch.cat([each.w for each in own]).tolist()


def test_neighbours_that_are_none(tmp_path: Path) -> None:
    hpp.write_partitions(EdgeStream.of(EDGES, 3), 3, tmp_path / "parts")
    for count, words in ((2, "count is 2; expected a divisor of 3"), (4, "count is 4; expected")):
        with pytest.raises(ValueError, match=words):
            hpp.PartitionedData(tmp_path / "parts", 0).block(count)
    with pytest.raises(ValueError, match="rank is None"):
        hpp.PartitionedData(tmp_path / "parts").block(1)


@given(graphs(), st.integers(1, 7), st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_sorting_with_little_memory(
    graph: tuple[torch.Tensor, int], most: int, block: int, parts: int, both: bool
) -> None:
    """Whatever fits into memory, rows come out as the twin has them; what does not fit is told."""
    edges, nodes = graph
    random = np.random.default_rng(nodes)
    owner = random.integers(0, parts, nodes).astype(np.int32)
    twins = reference.parts_of(edges, torch.from_numpy(owner), parts, both)
    wanted = [row for _, rows, _ in twins for row in rows]
    stream = EdgeStream.of(edges.numpy(), nodes, values={"w": np.arange(edges.shape[1])})
    with TemporaryDirectory() as folder:
        spool = Spool(stream, Path(folder) / "edges", nodes, block)
        assert spool.edges == edges.shape[1]
        assert spool.largest == max(edges.flatten().tolist(), default=-1)
        numbering, found, buckets = assign.numbered(owner, parts), [], 0
        try:
            for rows in sorted_rows(spool, numbering, both, most * EDGE_BYTES, Path(folder)):
                buckets += 1
                assert rows.first == len(found)
                assert len(rows.sources) <= most or len(rows.degree) == 1
                cuts = np.cumsum(rows.degree)[:-1]
                found += [row.tolist() for row in np.split(rows.sources, cuts)]
        except DatasetError as e:
            repeated = edges if not both else torch.cat([edges, edges.flip(0)], 1)
            assert most < int(torch.bincount(repeated[1]).max())
            assert "expected a larger one" in str(e)  # noqa: PT017
            return
        assert found == wanted
        assert buckets >= len(wanted) / most
        twin = reference.edges_of_parts(edges, torch.from_numpy(owner), parts, both)
        each = EDGE_BYTES + VALUE_BYTES + 3 * 8
        valued = sorted_rows(spool, numbering, both, most * each, Path(folder), valued=True)
        held = [w for row in valued if row.values is not None for w in row.values["w"].tolist()]
        assert held == [number for part in twin for number in part]
        assert {each.name for each in Path(folder).iterdir()} == {"edges", "edges-w"}
        spool.unlink()
        assert not list(Path(folder).iterdir())


def test_more_nodes_than_are_counted_apart(tmp_path: Path) -> None:
    """Targets are counted in bins of several, which the border of a part may cross."""
    nodes, random = 3_000_001, np.random.default_rng(0)
    edges = random.integers(0, nodes, (2, 20_000))
    edges[1, :200] = nodes // 3  # many edges into one node
    first = np.array([0, 1_000_001, 1_000_001, nodes])
    spool = Spool(EdgeStream.of(edges, nodes), tmp_path / "edges", nodes, 777)
    key = np.sort(edges[1] * nodes + edges[0])
    found, expected, buckets = [], 0, 0
    for rows in sorted_rows(spool, Numbering(first), False, 300_000 * EDGE_BYTES, tmp_path):
        assert rows.first == expected
        expected += len(rows.degree)
        assert not rows.first < first[1] < expected  # no bucket crosses it
        target = np.repeat(rows.first + np.arange(len(rows.degree)), rows.degree)
        found.append(target * nodes + rows.sources)
        buckets += 1
    assert expected == nodes
    assert buckets > 8
    assert np.array_equal(np.concatenate(found), key)


@settings(max_examples=60)
@given(graphs(), st.integers(1, 6), st.integers(1, 9), st.integers(1, 4), st.integers(1, 30))
def test_fennel_is_its_twin(
    graph: tuple[torch.Tensor, int], parts: int, block: int, passes: int, most: int
) -> None:
    edges, nodes = graph
    with TemporaryDirectory() as folder:
        spool = Spool(EdgeStream.of(edges.numpy(), nodes), Path(folder) / "edges", nodes, 50)
        memory = 1 << 20
        owner = fennel(spool, nodes, parts, memory, Path(folder), block, passes)
    assert owner.tolist() == reference.fennel(edges, nodes, parts, block, passes)
    assert max(np.bincount(owner), default=0) <= -(-int(np.ceil(1.03 * nodes)) // parts)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_fennel_finds_communities(parts: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    label, nodes = random.integers(0, parts, 4000), 4000
    edges = random.integers(0, nodes, (2, 20 * nodes))
    edges = edges[:, (label[edges[0]] == label[edges[1]]) | (random.random(20 * nodes) < 0.02)]
    found = hpp.write_partitions(EdgeStream.of(edges, nodes), parts, tmp_path / "parts")
    assert found.method in ("fennel", "metis")
    assert found.cut < 0.4
    assert found.node_balance < 1.04


def test_blocks_are_kept_where_they_are_best(tmp_path: Path) -> None:
    path = EdgeStream.of(np.stack([np.arange(999), np.arange(1, 1000)]), 1000)
    assert hpp.write_partitions(path, 4, tmp_path / "parts").method == "contiguous"


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
def test_parts_aggregate_what_the_whole_does(reduce: str, tmp_path: Path) -> None:
    """The HAG of each part, of own rows and those of its halo: rows of the whole graph's result."""
    random = np.random.default_rng(1)
    edges, nodes = torch.from_numpy(random.integers(0, 200, (2, 3000))), 210
    x = torch.randn(nodes, 5, dtype=torch.float64)
    whole = reference.aggregate(x, edges, nodes, reduce)
    hpp.write_partitions(
        EdgeStream.of(edges.numpy(), nodes, {"x": x.numpy()}),
        3,
        tmp_path / "parts",
        method="fennel",
    )
    parts = parts_in(tmp_path / "parts")
    everything = torch.cat([part.x for part in parts])  # what exchanges bring
    for part in parts:
        given = torch.cat([part.x, everything[part.halo.long()]])
        size = (len(given), part.num_nodes)
        hag = hp.build_hag(part.local_edge_index, size=size, targets_first=True)
        torch.testing.assert_close(hp.aggregate(given, hag, reduce=reduce), whole[part.nodes])


@pytest.mark.parametrize("progress", [True, False, None])
def test_bars(progress: bool | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of every pass where they are asked for; by default of none that is over in two seconds."""
    rows = {"x": np.ones((500, 2))}
    stream = EdgeStream.of(np.random.default_rng(0).integers(0, 500, (2, 3000)), 500, rows)
    hpp.write_partitions(stream, 3, tmp_path / "parts", method="fennel", progress=progress)
    said = capfd.readouterr().err
    passes = ("reading edges", "sorting edges", "assigning nodes", "writing x", "writing edges")
    if progress:
        assert all(f"{each}: " in said for each in passes)
    else:
        assert said == ""


# What a user gives ------------------------------------------------------------------------------


def test_data_of_pyg(tmp_path: Path) -> None:
    pyg = pytest.importorskip("torch_geometric.data")
    edges = torch.tensor([[0, 1, 2, 4, 4], [1, 0, 1, 3, 3]])
    data = pyg.Data(torch.randn(6, 3), edges, y=torch.arange(6), train_mask=torch.arange(6) > 2)
    data.edge_weight = torch.rand(5)
    data.name, data.scale = "a graph", torch.ones(1)
    hpp.write_partitions(data, 3, tmp_path / "parts")
    parts = parts_in(tmp_path / "parts")
    assert_same(parts, edges, owner_of(parts), False)
    for part in parts:
        assert {*part.names} == {"x", "y", "train_mask"}
        for name in part.names:
            assert torch.equal(getattr(part, name), data[name][part.nodes])
    found = {tuple(pair): w for pair, w in _old_edges(parts, "edge_weight")}
    assert found == {
        tuple(pair): w
        for pair, w in zip(edges.t().tolist(), data.edge_weight.tolist(), strict=True)
    }
    data.edge_label_index = torch.ones(2, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"edge_label_index has shape \[2, 5\]; expected a row"):
        hpp.write_partitions(data, 3, tmp_path / "others")
    with pytest.raises(AttributeError, match=r"no 'weights'; .*'train_mask', 'edge_weight'"):
        _ = parts[0].weights


def test_several_types_are_one_graph(tmp_path: Path) -> None:
    """They are refused with what makes one of them, which keeps their relations."""
    data = pytest.importorskip("torch_geometric.data").HeteroData()
    data["a"].x, data["b"].x = torch.ones(3, 2), torch.zeros(4, 2)
    data["a", "to", "b"].edge_index = torch.tensor([[0, 1, 2], [3, 3, 0]])
    data["b", "of", "a"].edge_index = torch.tensor([[0, 1], [2, 2]])
    with pytest.raises(ValueError, match=r"one of each: data\.to_homogeneous"):
        hpp.write_partitions(data, 2, tmp_path / "parts")
    hpp.write_partitions(data.to_homogeneous(), 2, tmp_path / "parts")
    found = sorted(_old_edges(parts_in(tmp_path / "parts"), "edge_type"))
    assert found == [([0, 6], 0), ([1, 6], 0), ([2, 3], 0), ([3, 2], 1), ([4, 2], 1)]
    dgl = pytest.importorskip("dgl")
    ids = torch.tensor([0, 1])
    graph = dgl.heterograph({("a", "to", "b"): (ids, ids), ("b", "of", "a"): (ids, ids)})
    graph.ndata["x"] = {"a": torch.ones(2, 3), "b": torch.zeros(2, 3)}
    graph.nodes["a"].data["own"] = torch.ones(2)
    with pytest.raises(ValueError, match=r"each: dgl\.to_homogeneous\(graph, ndata=\['x'\]\) is"):
        hpp.write_partitions(graph, 2, tmp_path / "others")
    whole = dgl.to_homogeneous(graph, ndata=["x"])
    hpp.write_partitions(whole, 2, tmp_path / "others")
    parts = parts_in(tmp_path / "others")
    assert {*parts[0].names} == {"x", "node_type"}
    for part in parts:
        assert torch.equal(part.node_type, whole.ndata[dgl.NTYPE][part.nodes])
    kinds = zip(*map(torch.Tensor.tolist, (*whole.edges(), whole.edata[dgl.ETYPE])), strict=True)
    assert sorted(_old_edges(parts, "edge_type")) == sorted(([u, v], k) for u, v, k in kinds)
    whole.edata["edge_type"] = torch.full((4,), 7)  # what a user has called so is kept
    hpp.write_partitions(whole, 2, tmp_path / "third")
    assert {k for _, k in _old_edges(parts_in(tmp_path / "third"), "edge_type")} == {7}


def _old_edges(parts: list[hpp.PartitionedData], name: str) -> list[Any]:
    """Edges by the numbers that nodes had before, and what they have."""
    nodes, found = torch.cat([part.nodes for part in parts]), []
    for part in parts:
        pairs = nodes[part.edge_index].t().tolist()
        found += zip(pairs, getattr(part, name).tolist(), strict=True)
    return found


def test_graphs_of_dgl(tmp_path: Path) -> None:
    dgl = pytest.importorskip("dgl")
    edges = torch.tensor([[0, 1, 2, 4, 4], [1, 0, 1, 3, 3]])
    graph = dgl.graph((edges[0], edges[1]), num_nodes=6)
    graph.ndata["feat"] = torch.randn(6, 2)
    hpp.write_partitions(graph, 2, tmp_path / "parts")
    parts = parts_in(tmp_path / "parts")
    assert_same(parts, edges, owner_of(parts), False)
    for part in parts:
        assert torch.equal(part.feat, graph.ndata["feat"][part.nodes])
    graph.edata["w"] = torch.rand(5)
    hpp.write_partitions(graph, 2, tmp_path / "others")
    found = sorted(w for _, w in _old_edges(parts_in(tmp_path / "others"), "w"))
    assert found == sorted(graph.edata["w"].tolist())


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i2", "i8", "f2", "f4", ">f4", "f8", "c8"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 2), (0,)])
def test_rows_of_every_kind(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = random.integers(0, 2, (7, *shape)).astype(dtype)
    edges = EdgeStream.of(np.array([[0, 6], [3, 3]]), None, {"feature": rows})
    hpp.write_partitions(edges, 4, tmp_path / "parts")
    for part in parts_in(tmp_path / "parts"):
        assert (
            part.feature.dtype == torch.from_numpy(rows.astype(rows.dtype.newbyteorder("="))).dtype
        )
        assert np.array_equal(part.feature.numpy(), rows[part.nodes.numpy()])


def test_writing_to_a_tensor_changes_no_file(tmp_path: Path) -> None:
    rows = {"x": np.ones((4, 2), np.float32)}
    hpp.write_partitions(EdgeStream.of(np.zeros((2, 1), int), 4, rows), 1, tmp_path / "parts")
    hpp.PartitionedData(tmp_path / "parts").x.zero_()
    assert hpp.PartitionedData(tmp_path / "parts").x.sum() == 8


def test_a_plan_from_the_manifest(tmp_path: Path) -> None:
    """`trace` takes the counts of a store; grids, which merge parts, are found among them."""
    nn = pytest.importorskip("torch_geometric.nn")
    random = np.random.default_rng(0)
    hpp.write_partitions(
        EdgeStream.of(random.integers(0, 400, (2, 4000)), 400), 4, tmp_path / "parts"
    )
    stats = hpp.PartitionedData(tmp_path / "parts", 2).stats
    graph = hpp.trace(nn.GCN(64, 64, 3, 16), stats, features=64)
    assert hpp.plan(graph, topology="a100x8", world_size=4).layers
    with pytest.raises(ValueError, match="nothing is known of the graph cut into 8 parts"):
        hpp.plan(graph, topology="a100x8", world_size=8)


# What is refused --------------------------------------------------------------------------------

EDGES = np.array([[0, 1, 2], [1, 2, 0]])
Broken = Callable[[], dict[str, Any]]
WRONG: dict[str, tuple[Broken, str]] = {
    "an id that is too large": (lambda: {"data": EdgeStream.of(EDGES, 2)}, "edge 1 is .1, 2.; exp"),
    "a negative id": (lambda: {"data": EdgeStream.of(EDGES - 1, None)}, "edge 0 is .-1, 0.; expec"),
    "an id beyond 32 bits": (lambda: {"data": EdgeStream.of(EDGES + 2**31, None)}, "edge 0 is"),
    "too few rows": (
        lambda: {"data": EdgeStream.of(EDGES, 3, {"x": np.ones(2)})},
        "x has 2 rows; expected 3",
    ),
    "rows that end early": (
        lambda: {
            "data": EdgeStream(
                EdgeStream.of(EDGES, 3).blocks,
                "",
                3,
                rows={"x": RowStream(3, np.dtype("f4"), (), lambda most: iter([np.ones(2)]))},
            )
        },
        "x ends after 2 rows; expected 3",
    ),
    "texts": (lambda: {"data": EdgeStream.of(EDGES, 3, {"x": np.array(["a"] * 3)})}, "x is <U1"),
    "a name of the store's own": (
        lambda: {"data": EdgeStream.of(EDGES, 3, {"halo": np.ones(3)})},
        "'halo' can't be the name",
    ),
    "a name that is a path": (
        lambda: {"data": EdgeStream.of(EDGES, 3, {"../x": np.ones(3)})},
        "'../x' can't be the name",
    ),
    "too few values of edges": (
        lambda: {"data": EdgeStream.of(EDGES, 3, values={"w": np.ones(2)})},
        "w has 2 rows; expected 3, one an edge",
    ),
    "values that are texts": (
        lambda: {"data": EdgeStream.of(EDGES, 3, values={"w": np.array(["a"] * 3)})},
        "w is <U1",
    ),
    "one name for two things": (
        lambda: {"data": EdgeStream.of(EDGES, 3, {"w": np.ones(3)}, values={"w": np.ones(3)})},
        "'w' is what nodes have, and edges",
    ),
    "a short assignment": (lambda: {"assignment": [0, 1]}, "assignment has 2 parts; expected 3"),
    "an assignment beyond": (
        lambda: {"assignment": [0, 1, 2]},
        "has parts 0 to 2; expected 0 to 1",
    ),
    "little memory": (
        lambda: {"memory": 1 << 20},
        "memory is 1,048,576 bytes; expected .* or more",
    ),
    "nodes without memory": (
        lambda: {"memory": resident() + (1 << 28), "data": EdgeStream.of(EDGES, 2**30)},
        "and 1,073,741,824 nodes need 9,6",
    ),
    "HAGs without memory": (
        lambda: {
            "memory": resident() + (64 << 20) + (8 << 20),
            "method": "contiguous",
            "hag": True,
            "data": EdgeStream.of(np.zeros((2, 400_000), int), 3),
        },
        "the HAG of a part takes 48,000,240 bytes of memory for its 400,000 edges and 2 nodes",
    ),
    "labels without memory": (
        lambda: {
            "memory": resident() + (64 << 20) + (8 << 20),
            "method": "labels",
            "data": EdgeStream.of(np.zeros((2, 400_000), int), 3),
        },
        "method 'labels' takes 80,000,600 bytes",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_refused_leaves_nothing(what: str, tmp_path: Path) -> None:
    make, words = WRONG[what]
    arguments = {"data": EdgeStream.of(EDGES, 3), **make()}
    with pytest.raises(ValueError, match=words):
        hpp.write_partitions(arguments.pop("data"), 2, tmp_path / "parts", **arguments)
    assert not list(tmp_path.iterdir())
