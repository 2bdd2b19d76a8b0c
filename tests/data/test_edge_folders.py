"""Folders that others wrote hold the graph that was written, block by block."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hag_plugin as hp
from hag_plugin.cli import main
from hag_plugin.data.edge_folders import open_graph
from hag_plugin.files import DatasetError
from hag_plugin.parallel.graphs.store.streams import EdgeStream, RowStream

from ..saving import run_fresh

NODES = 30


def graph(seed: int = 0, nodes: int = NODES, edges: int = 90) -> tuple[np.ndarray, dict[str, Any]]:
    random = np.random.default_rng(seed)
    rows = {
        "x": random.standard_normal((nodes, 3)).astype(np.float32),
        "y": random.integers(0, 5, nodes),
        "node_year": random.integers(1970, 2020, nodes),
    }
    return random.integers(0, nodes, (2, edges)), rows


def lines(rows: np.ndarray) -> bytes:
    """As pandas writes them, without a head."""
    table = rows.reshape(len(rows), int(np.prod(rows.shape[1:]))).tolist()
    return "".join(",".join(map(repr, row)) + "\n" for row in table).encode()


def write_texts(raw: Path, edges: np.ndarray, rows: dict[str, Any], packed: bool = True) -> None:
    raw.mkdir(parents=True)
    files = {
        "edge": edges.T,
        "num-node-list": np.array([len(rows["y"])]),
        "num-edge-list": np.array([edges.shape[1]]),
        "node-feat": rows["x"],
        "node-label": rows["y"],
        "node_year": rows["node_year"],
    }
    for name, values in files.items():
        content = lines(values)
        if packed:
            (raw / f"{name}.csv.gz").write_bytes(gzip.compress(content))
        else:
            (raw / f"{name}.csv").write_bytes(content)


def write_arrays(raw: Path, edges: np.ndarray, rows: dict[str, Any]) -> None:
    raw.mkdir(parents=True)
    np.savez_compressed(
        raw / "data.npz",
        edge_index=edges,
        num_nodes_list=np.array([len(rows["y"])]),
        num_edges_list=np.array([edges.shape[1]]),
        node_feat=rows["x"],
        node_year=rows["node_year"][:, None],
    )
    np.savez(raw / "node-label.npz", node_label=rows["y"][:, None])


WRITERS: dict[str, Callable[[Path, np.ndarray, dict[str, Any]], None]] = {
    "packed texts": write_texts,
    "texts": lambda *given: write_texts(*given, packed=False),
    "arrays": write_arrays,
}


def values_of(stream: RowStream, most: int) -> np.ndarray:
    blocks = [*stream.blocks(most)]
    assert all(len(block) <= most for block in blocks)
    found = np.concatenate([np.zeros((0, *stream.shape), stream.dtype), *blocks])
    assert (found.dtype, found.shape[1:], len(found)) == (stream.dtype, stream.shape, stream.rows)
    return found


def edges_of(stream: EdgeStream, most: int) -> np.ndarray:
    blocks = [*stream.blocks(most)]
    assert all(block.shape[1] <= most for block in blocks)
    return np.concatenate([np.zeros((2, 0), np.int64), *blocks], axis=1)


@pytest.mark.parametrize("whole", [True, False], ids=["with raw", "raw itself"])
@pytest.mark.parametrize("writer", WRITERS)
def test_raw_folders_of_ogb(writer: str, whole: bool, tmp_path: Path) -> None:
    edges, rows = graph()
    WRITERS[writer](tmp_path / "raw", edges, rows)
    for most in (1, 7, 1000):
        found = open_graph(tmp_path if whole else tmp_path / "raw")
        assert found.num_nodes == NODES
        assert np.array_equal(edges_of(found, most), edges)
        assert found.rows.keys() == rows.keys()
        for name, values in rows.items():
            assert np.array_equal(values_of(found.rows[name], most), values), name
            assert found.rows[name].dtype == values.dtype


@settings(max_examples=25)
@given(st.integers(1, 12), st.integers(0, 40), st.integers(1, 9), st.sampled_from([*WRITERS]))
def test_small_graphs_of_ogb(
    tmp_path_factory: pytest.TempPathFactory, nodes: int, count: int, most: int, writer: str
) -> None:
    edges, rows = graph(count, nodes, count)
    raw = tmp_path_factory.mktemp("ogb") / "raw"
    WRITERS[writer](raw, edges, rows)
    assert np.array_equal(edges_of(open_graph(raw), most), edges)


def test_a_split_is_masks(tmp_path: Path) -> None:
    edges, rows = graph()
    write_texts(tmp_path / "raw", edges, rows)
    split = tmp_path / "split" / "time"
    split.mkdir(parents=True)
    parts = {"train": [7, 0, 29], "valid": [3], "test": []}
    for name, ids in parts.items():
        (split / f"{name}.csv.gz").write_bytes(gzip.compress(lines(np.array(ids, np.int64))))
    found = open_graph(tmp_path).rows
    for name, mask in (("train", "train_mask"), ("valid", "val_mask"), ("test", "test_mask")):
        for most in (1, 4, 100):
            assert values_of(found[mask], most).nonzero()[0].tolist() == sorted(parts[name])
    (tmp_path / "split" / "random").mkdir()
    assert open_graph(tmp_path).rows.keys() == rows.keys()  # nobody says which of two


@pytest.mark.parametrize("writer", WRITERS)
def test_a_store_of_a_folder(writer: str, tmp_path: Path) -> None:
    """What is cut from a folder is what is cut from the graph in memory."""
    edges, rows = graph()
    WRITERS[writer](tmp_path / "ogb" / "raw", edges, rows)
    command = ["partition", str(tmp_path / "ogb"), "--ranks", "3", "-o", str(tmp_path / "parts")]
    assert main([*command, "--method", "contiguous", "--quiet"]) == 0
    stream = EdgeStream.of(edges, NODES, rows)
    hp.parallel.write_partitions(stream, 3, tmp_path / "twin", method="contiguous")
    for rank in range(3):
        one, other = (hp.parallel.PartitionedData(tmp_path / k, rank) for k in ("parts", "twin"))
        assert {*one.names} == {*other.names}
        for name in (*one.names, "indptr", "sources"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


# What is wrong ------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[str, bytes | None, str]] = {
    "no count": ("num-node-list.csv", None, r"num-node-list\.csv\.gz is missing"),
    "several graphs": ("num-node-list.csv", b"3\n4\n", r"num-node-list.csv holds 2 graphs"),
    "three columns": ("edge.csv", b"0,1,2\n", r"edge\.csv, line 1: 3 columns"),
    "a word": ("edge.csv", b"0,1\n1,x\n", r"edge\.csv, lines 1 on: "),
    "a blank line": ("edge.csv", b"0,1\n\n1,2\n", r"edge\.csv, lines 1 on: 2 rows of 2"),
    "an id beyond": ("edge.csv", b"0,1\n1,30\n", r"edge\.csv, line 2: 1,30; expected ids from 0"),
    "few rows": ("node-label.csv", b"1\n2\n", "y ends after 2 rows; expected 30"),
    "a short row": ("node-feat.csv", b"1,2\n1\n", r"node-feat\.csv, lines 1 on: "),
}


@pytest.mark.parametrize("what", BROKEN)
def test_texts_that_are_wrong_are_named(what: str, tmp_path: Path) -> None:
    write_texts(tmp_path / "raw", *graph(), packed=False)
    name, content, words = BROKEN[what]
    (tmp_path / "raw" / name).unlink()
    if content is not None:
        (tmp_path / "raw" / name).write_bytes(content)
    with pytest.raises(DatasetError, match=words):
        hp.parallel.write_partitions(open_graph(tmp_path), 2, tmp_path / "parts")
    assert not (tmp_path / "parts").exists()


def test_arrays_that_are_wrong_are_named(tmp_path: Path) -> None:
    edges, rows = graph()
    write_arrays(tmp_path / "raw", edges, rows)
    content = (tmp_path / "raw" / "data.npz").read_bytes()
    for bad, words in (
        ({"edge_index": edges}, "expected 'num_nodes_list'"),
        ({"edge_index": edges, "num_nodes_list": np.array([3, 4])}, "holds 2 graphs"),
    ):
        np.savez(tmp_path / "raw" / "data.npz", **bad)
        with pytest.raises(DatasetError, match=words):
            open_graph(tmp_path)
    (tmp_path / "raw" / "data.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match=r"data\.npz is not a readable \.npz"):
        open_graph(tmp_path)


def test_a_split_of_other_nodes_is_refused(tmp_path: Path) -> None:
    write_texts(tmp_path / "raw", *graph())
    (tmp_path / "split" / "time").mkdir(parents=True)
    (tmp_path / "split" / "time" / "train.csv").write_text("0\n30\n")
    with pytest.raises(DatasetError, match=r"train\.csv has nodes 0 to 30; expected 0 to 29"):
        hp.parallel.write_partitions(open_graph(tmp_path), 2, tmp_path / "parts")


def test_folders_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DatasetError, match="is a folder without raw/edge"):
        open_graph(tmp_path)
    (tmp_path / "other.json").write_text("{")
    with pytest.raises(DatasetError, match=r"other\.json"):
        open_graph(tmp_path)


# DGL ----------------------------------------------------------------------------------------------


WRITE = """
import dgl, dgl.distributed, numpy as np, torch
with np.load("graph.npz") as arrays:
    edges, x, y = (torch.from_numpy(arrays[key]) for key in ("edges", "x", "y"))
made = dgl.graph((edges[0], edges[1]), num_nodes=len(y))
made.ndata["feat"], made.ndata["label"], made.ndata["before"] = x, y, torch.arange(len(y))
dgl.distributed.partition_graph(made, "net", 3, "parts", part_method="random")
"""


@pytest.fixture(scope="module")
def written_by_dgl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three parts, which DGL has made at random."""
    pytest.importorskip("dgl")
    folder = tmp_path_factory.mktemp("dgl")
    edges, rows = graph()
    np.savez(folder / "graph.npz", edges=edges, x=rows["x"], y=rows["y"])
    run_fresh(WRITE, folder)  # DGL leaves files open
    return folder / "parts"


def test_parts_of_dgl(written_by_dgl: Path, tmp_path: Path) -> None:
    edges, rows = graph()
    for most in (1, 8, 1000):
        found = open_graph(written_by_dgl)
        before = values_of(found.rows["before"], most)
        assert sorted(before.tolist()) == [*range(NODES)]
        given, again = (
            np.sort(e[0] * NODES + e[1]) for e in (edges, before[edges_of(found, most)])
        )
        assert np.array_equal(given, again)
        for name in ("x", "y"):
            assert np.array_equal(values_of(found.rows[name], most), rows[name][before])


def test_parts_of_dgl_stay_what_they_are(written_by_dgl: Path, tmp_path: Path) -> None:
    json_of, out = written_by_dgl / "net.json", str(tmp_path / "parts")
    command = ["partition", str(written_by_dgl), "--ranks", "3", "-o", out, "--assignment"]
    assert main([*command, str(json_of), "--quiet"]) == 0
    document = json.loads(json_of.read_text())
    (ranges,) = document["node_map"].values()
    for rank, (first, last) in enumerate(ranges):
        part = hp.parallel.PartitionedData(out, rank)
        assert part.nodes.tolist() == [*range(first, last)]
        assert torch.equal(part.y, torch.from_numpy(graph()[1]["y"])[part.before])


def test_parts_of_dgl_that_are_wrong_are_named(written_by_dgl: Path, tmp_path: Path) -> None:
    def changed(**fields: Any) -> Path:
        folder = tmp_path / str(len([*tmp_path.iterdir()]))
        shutil.copytree(written_by_dgl, folder)
        document = json.loads((folder / "net.json").read_text()) | fields
        (folder / "net.json").write_text(json.dumps(document))
        return folder

    for fields, words in (
        ({"node_map": {"a": [[0, 3]], "b": [[3, 4]]}}, "has no node_map of one type of nodes"),
        ({"node_map": {"_N": [[0, 3], [4, 9], [9, 30]]}}, "do not follow each other"),
        ({"node_map": {"_N": [[0, 3]]}}, "node_map is no list of ranges"),
        ({"num_parts": "x"}, "node_map is no list of ranges"),
        ({"part-1": 3}, "does not tell of all its 3 parts"),
    ):
        with pytest.raises(DatasetError, match=words):
            open_graph(changed(**fields))
    missing = changed()
    (missing / "part1" / "graph.dgl").unlink()
    with pytest.raises(DatasetError, match=r"part1/graph\.dgl can't be read"):
        edges_of(open_graph(missing), 10)
