"""Graphs by name and from files, and what is said about those that are wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hag_plugin as hp
from hag_plugin.data import datasets, generators, graph_files
from hag_plugin.data.graph_data import GraphData
from hag_plugin.files import DatasetError


def edges_of(data: GraphData) -> set[tuple[int, int]]:
    return set(map(tuple, data.edge_index.T.tolist()))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# Generated --------------------------------------------------------------------------------------


@pytest.mark.mostly_slow("cliques")
@pytest.mark.parametrize("name", [n for n in datasets.BUILT_IN if n != "collaboration"])
def test_built_in_graphs_are_simple_undirected_and_repeatable(name: str) -> None:
    data, again = datasets.load(name), datasets.load(name)
    source, target = data.edge_index
    assert torch.equal(data.edge_index, again.edge_index)
    assert (source != target).all()
    assert edges_of(data) == {(b, a) for a, b in edges_of(data)}
    assert len(edges_of(data)) == data.num_edges
    assert data.source


@pytest.mark.parametrize("name", ["cliques", "erdos-renyi", "power-law"])
def test_seed_changes_the_graph(name: str) -> None:
    a, b = datasets.load(name, seed=0), datasets.load(name, seed=1)
    assert edges_of(a) != edges_of(b)


def test_collaboration_is_a_batch_of_ego_networks() -> None:
    data = datasets.load("collaboration", num_graphs=60, seed=3)
    assert data.graph_ptr is not None
    assert data.y is not None
    assert data.labels_graphs
    assert data.num_graphs == 60
    assert torch.bincount(data.y).tolist() == [20, 20, 20]
    size = data.graph_ptr.diff()
    assert int(size.min()) >= generators.MIN_AUTHORS
    assert int(size.max()) <= generators.MAX_AUTHORS
    source, target = data.edge_index
    assert (source != target).all()
    degree = torch.bincount(target, minlength=data.num_nodes)
    assert torch.equal(degree[data.graph_ptr[:-1]], size - 1), "an ego knows all its authors"
    assert len(edges_of(data)) == data.num_edges


def test_collaboration_fields_differ_in_density() -> None:
    data = datasets.collaboration(num_graphs=150)
    assert data.graph_ptr is not None
    assert data.y is not None
    graph = torch.searchsorted(data.graph_ptr, data.edge_index[0], right=True) - 1
    size = data.graph_ptr.diff()
    density = torch.bincount(graph, minlength=150) / (size * (size - 1))
    large, middle, small = (density[data.y == field].median() for field in range(3))
    assert large > middle > small
    # Not trivial: some egos of one field are denser than some of the next.
    assert density[data.y == 1].max() > density[data.y == 0].min()


def test_collaboration_depends_on_its_seed_only() -> None:
    np.random.seed(1)  # noqa: NPY002  (the global state must have no say)
    a = datasets.collaboration(30, seed=5)
    np.random.seed(2)  # noqa: NPY002
    b, c = datasets.collaboration(30, seed=5), datasets.collaboration(30, seed=6)
    assert torch.equal(a.edge_index, b.edge_index)
    assert not torch.equal(a.edge_index[:, :100], c.edge_index[:, :100])


def test_union_of_cliques_by_hand() -> None:
    edges = generators._union_of_cliques(np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 2, 3]), 4)
    assert set(map(tuple, edges.T.tolist())) == {
        (0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1), (2, 3), (3, 2)
    }  # fmt: skip


def test_digits_have_real_labels() -> None:
    data = datasets.load("digits")
    assert data.x is not None
    assert (data.num_nodes, data.x.shape[1], data.num_classes) == (1797, 64, 10)
    assert not data.labels_graphs


def test_degree_features_are_one_hot_and_kept_where_there_are_some() -> None:
    data = datasets.with_features(datasets.load("karate"))
    assert data.x is not None
    assert torch.equal(data.x.sum(1), torch.ones(34))
    assert datasets.with_features(data) is data


# Edge lists -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0 1\n1 2\n", "# a\n\n0,1\n% b\n1,2\n", "0\t1\t5.0\n1\t2\tx"])
def test_edge_list_forms(tmp_path: Path, text: str) -> None:
    data = datasets.load(write(tmp_path / "g.txt", text))
    assert edges_of(data) == {(0, 1), (1, 2)}
    assert data.num_nodes == 3


def test_edge_list_keeps_direction_and_duplicates(tmp_path: Path) -> None:
    data = datasets.load(write(tmp_path / "g.csv", "0,1\n0,1\n2,2\n"))
    assert data.edge_index.tolist() == [[0, 0, 2], [1, 1, 2]]


def test_edge_list_undirected(tmp_path: Path) -> None:
    data = datasets.load(write(tmp_path / "g.el", "0 1\n1 0\n1 2\n"), undirected=True)
    assert data.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]


def test_edge_list_ids_are_kept_unless_relabelled(tmp_path: Path) -> None:
    path = write(tmp_path / "g.txt", "10 20\n20 40\n")
    kept, relabelled = datasets.load(path), datasets.load(path, relabel=True)
    assert kept.num_nodes == 41
    assert "38 of the ids" in kept.source
    assert relabelled.num_nodes == 3
    assert edges_of(relabelled) == {(0, 1), (1, 2)}
    assert "relabelled" in relabelled.source


def test_empty_edge_list(tmp_path: Path) -> None:
    data = datasets.load(write(tmp_path / "g.txt", "# nothing\n"))
    assert (data.num_nodes, data.num_edges) == (0, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 1\n0 x\n", "line 2: '0 x'; expected two node ids"),
        ("0 1\n\n5\n", "line 3: '5'; expected two node ids"),
        ("0 -1\n", "line 1: '0 -1'; expected ids from 0"),
        (f"0 {2**31}\n", "line 1"),
        ("0.5 1\n", "line 1"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DatasetError, match=f"g.txt, {words}"):
        datasets.load(write(tmp_path / "g.txt", text))


def test_binary_edge_list(tmp_path: Path) -> None:
    path = tmp_path / "g.txt"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DatasetError, match="not a text file"):
        datasets.load(path)


# .npz -------------------------------------------------------------------------------------------


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **{k: np.asarray(v) for k, v in arrays.items()})
    return path


EDGES = np.array([[0, 1, 2, 3], [1, 0, 3, 2]], dtype=np.int32)


def test_npz_with_everything(tmp_path: Path) -> None:
    path = save(tmp_path / "g.npz", edge_index=EDGES, num_nodes=5, graph_ptr=[0, 2, 5], y=[1, 0],
                x_indptr=[0, 1, 1, 2, 2, 2], x_indices=[2, 0], x_data=[1.5, 2.5],
                x_shape=[5, 3], train_mask=[True, False, True, False, False])  # fmt: skip
    data = datasets.load(path)
    assert data.x is not None
    assert data.x[0].tolist() == [0, 0, 1.5]
    assert data.x[2].tolist() == [2.5, 0, 0]
    assert data.labels_graphs
    assert data.num_classes == 2
    assert data.edge_index.dtype == torch.int64
    assert datasets.load(path, features=False).x is None


def test_npz_compact_form_is_expanded(tmp_path: Path) -> None:
    # Two triangles: the upper triangle's neighbours, counted inside each graph.
    path = save(tmp_path / "g.npz", compact_upper_deg=np.array([2, 1, 0, 2, 1, 0], np.uint16),
                compact_upper_col_local=np.array([1, 2, 2, 1, 2, 2], np.uint16), num_nodes=6,
                graph_ptr=[0, 3, 6])  # fmt: skip
    data = datasets.load(path)
    triangle = {(a, b) for a in range(3) for b in range(3) if a != b}
    assert edges_of(data) == triangle | {(a + 3, b + 3) for a, b in triangle}


def test_npz_node_labels_become_features(tmp_path: Path) -> None:
    path = save(tmp_path / "g.npz", edge_index=EDGES, num_nodes=4, node_label=[7, 9, 9, 7])
    data = datasets.load(path)
    assert data.x is not None
    assert data.x.tolist() == [[1, 0], [0, 1], [0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": [1]}, r"holds \['a'\]; expected at least edge_index"),
        ({"edge_index": EDGES.astype(float)}, "float64 .*expected integers"),
        ({"edge_index": EDGES[:1]}, r"\[1, 4\]; expected integers \[2, E\]"),
        ({"edge_index": EDGES, "num_nodes": 3}, r"edge 2 is \[2, 3\]; expected ids from 0 to 2"),
        ({"edge_index": EDGES - 1, "num_nodes": 4}, "edge 0 is .*expected ids"),
        ({"edge_index": EDGES, "x": np.ones((3, 2))}, r"x has shape \[3, 2\]; expected \[4, F\]"),
        ({"edge_index": EDGES, "y": [1, 2]}, r"y has shape \[2\] for 4 nodes"),
        ({"edge_index": EDGES, "graph_ptr": [0, 1, 4]}, r"edge 0, \[0, 1\], links two graphs"),
        ({"edge_index": EDGES, "graph_ptr": [0, 2]}, "graph_ptr does not run from 0"),
        ({"edge_index": EDGES, "graph_ptr": [0, 5, 2, 4]}, "graph_ptr decreases"),
        ({"edge_index": EDGES, "test_mask": [True]}, r"test_mask .*expected bool \[4\]"),
        ({"edge_index": EDGES, "x_indptr": [0]}, "x_indptr but not"),
        ({"compact_upper_deg": [1]}, "compact_upper_deg but not"),
    ],
)
def test_bad_npz_is_refused(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        datasets.load(save(tmp_path / "g.npz", **arrays))


def test_damaged_npz(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"g\.npz is not a readable"):
        datasets.load(write(tmp_path / "g.npz", "no"))
    path = save(tmp_path / "h.npz", edge_index=EDGES)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DatasetError, match="not a readable"):
        datasets.load(path)


def test_npz_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.npz"
    np.savez(path, edge_index=np.array([{}], dtype=object))
    with pytest.raises(DatasetError, match="not a readable"):
        datasets.load(path)


def test_hag_file_gives_its_graph(tmp_path: Path) -> None:
    path = tmp_path / "g.npz"
    hp.build_hag(torch.from_numpy(EDGES), num_nodes=5).save(path)
    assert graph_files.is_hag_file(path)
    data = datasets.load(path)
    assert data.num_nodes == 5
    assert edges_of(data) == set(map(tuple, EDGES.T.tolist()))


# Names ------------------------------------------------------------------------------------------


def test_unknown_names_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"'nope' is neither a file nor a built-in .*karate.*--root"
    ):
        datasets.load("nope")
    with pytest.raises(DatasetError, match="no such file"):
        datasets.load(tmp_path / "nope.npz")
    with pytest.raises(DatasetError, match=r"unknown kind of file '.zip'"):
        datasets.load(write(tmp_path / "g.zip", ""))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["MUTAG", "Cora"])
def test_missing_download_says_which_files(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch_geometric")
    import torch_geometric.io.fs as fs

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(fs, "cp", offline)
    for module in ("planetoid", "tu_dataset"):
        monkeypatch.setattr(f"torch_geometric.datasets.{module}.fs.cp", offline, raising=False)
    monkeypatch.setattr("torch_geometric.datasets.planetoid.download_url", offline, raising=False)
    with pytest.raises(DatasetError, match="Network is unreachable") as error:
        datasets.load(name, tmp_path)
    expected = "MUTAG_graph_indicator.txt" if name == "MUTAG" else "ind.cora.allx"
    assert expected in str(error.value)


# Real graphs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nodes", "edges", "graphs"),
    [
        ("BZR_MD", 6519, 137734, 306),
        ("MUTAG", 3371, 7442, 188),
        ("Cora", 2708, 10556, 1),
        ("ca-HepPh", 12008, 236978, 1),
    ],
)
def test_real_npz(shared_data: Path, name: str, nodes: int, edges: int, graphs: int) -> None:
    data = datasets.load(name, shared_data / "npz")
    assert (data.num_nodes, data.num_edges, data.num_graphs) == (nodes, edges, graphs)


@pytest.mark.slow
def test_real_compact_npz(shared_data: Path) -> None:
    data = datasets.load(shared_data / "npz" / "COLLAB_ego_recon.npz")
    assert (data.num_nodes, data.num_edges, data.num_graphs) == (372474, 24572158, 5000)
    with np.load(shared_data / "npz" / "COLLAB_ego_recon.npz") as file:
        edge_ptr = torch.from_numpy(file["edge_ptr"]).long()
    assert data.graph_ptr is not None
    first = torch.searchsorted(data.edge_index[0].contiguous(), data.graph_ptr)
    assert torch.equal(first, edge_ptr)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [str, str.lower, str.upper])
@pytest.mark.parametrize("name", ["MUTAG", "Cora"])
def test_pyg_reads_the_same_graph(
    shared_data: Path, tmp_path: Path, name: str, case: Callable[[str], str]
) -> None:
    pytest.importorskip("torch_geometric")
    shutil.copytree(shared_data / "raw" / name, tmp_path / name)
    for path in [tmp_path / name, *(tmp_path / name).rglob("*")]:
        path.chmod(0o755)
    ours, theirs = datasets.load(name, shared_data / "npz"), datasets.load(case(name), tmp_path)
    assert theirs.num_nodes == ours.num_nodes
    assert edges_of(theirs) == edges_of(ours)
    assert torch.equal(theirs.y, ours.y)
    assert theirs.x is not None
    assert (theirs.train_mask is None) == (ours.train_mask is None)
