"""What edges have is the same in a store, whatever it was read from."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hag_plugin as hp
from hag_plugin.cli import main
from hag_plugin.data.edge_folders import open_graph
from hag_plugin.data.edge_stream import open_edges
from hag_plugin.files import DatasetError
from hag_plugin.parallel.graphs.store.streams import EdgeStream

from ..saving import run_fresh
from .test_edge_folders import write_arrays, write_texts
from .test_edge_stream import npz, text

NODES, EDGES, NAME = 20, 90, "edge_weight"


def graph() -> tuple[np.ndarray, np.ndarray]:
    """Edges, some of them repeated, and numbers that each format has exactly."""
    random = np.random.default_rng(0)
    edges = random.integers(0, NODES, (2, EDGES))
    edges[:, :5] = edges[:, 5:10]
    edges[:, -1] = NODES - 1
    return edges, random.integers(-40, 40, EDGES) / 8


def lines(edges: np.ndarray, weight: np.ndarray, form: str, head: str = "") -> bytes:
    rows = zip(*edges.tolist(), weight.tolist(), strict=True)
    return (head + "".join(form.format(*row) + "\n" for row in rows)).encode()


def table(path: Path, edges: np.ndarray, weight: np.ndarray) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.feather
    import pyarrow.parquet

    columns = pa.table({"w": weight.astype(np.float32), "dst": edges[1], "src": edges[0]})
    if path.suffix == ".feather":
        pyarrow.feather.write_feather(columns, path, chunksize=7)
    else:
        pyarrow.parquet.write_table(columns, path, row_group_size=13)


def matrix(edges: np.ndarray, weight: np.ndarray) -> bytes:
    head = f"%%MatrixMarket matrix coordinate real general\n{NODES} {NODES} {edges.shape[1]}\n"
    return lines(edges + 1, weight, "{} {} {}", head)


def of_ogb(write: Callable[..., None], folder: Path, edges: Any, weight: Any) -> None:
    rows = {"x": np.ones((NODES, 1), np.float32), "y": np.zeros(NODES, np.int64)}
    write(folder / "raw", edges, {**rows, "node_year": rows["y"]})
    if write is write_texts:
        content = "".join(f"{w}\n" for w in weight.tolist()).encode()
        (folder / "raw" / "edge_weight.csv.gz").write_bytes(gzip.compress(content))
        return
    with np.load(folder / "raw" / "data.npz") as arrays:
        known = {**arrays}
    np.savez(folder / "raw" / "data.npz", **known, edge_weight=weight[:, None])


# Of a format: the name of the file or folder, what writes it, and the column that is asked for.
Write = Callable[[Path, np.ndarray, np.ndarray], Any]
FILES: dict[str, tuple[str, Write, str | None]] = {
    "text, by name": (
        "e.csv", lambda p, e, w: p.write_bytes(lines(e, w, "{1},{2},{0}", "target,w,source\n")), "w"
    ),
    "text, by number": ("e.txt", lambda p, e, w: p.write_bytes(lines(e, w, "{} {} {}")), "3"),
    "packed text": (
        "e.tsv.gz", lambda p, e, w: p.write_bytes(gzip.compress(lines(e, w, "{}\t{}\t{}"))), "3"
    ),
    "Parquet": ("e.parquet", table, "w"),
    "Feather": ("e.feather", table, "w"),
    "MatrixMarket": ("e.mtx", lambda p, e, w: p.write_bytes(matrix(e, w)), "value"),
    "npz": ("e.npz", lambda p, e, w: np.savez(p, edge_index=e, edge_weight=w), None),
    "npz, by name": ("e.npz", lambda p, e, w: np.savez(p, edge_index=e, w=w), "w"),
    "texts of OGB": ("ogb", lambda p, e, w: of_ogb(write_texts, p, e, w), None),
    "arrays of OGB": ("ogb", lambda p, e, w: of_ogb(write_arrays, p, e, w), None),
}  # fmt: skip


def stored(data: Any, folder: Path) -> list[tuple[int, int, float]]:
    """The edges of a store in the numbers that were given, with what they have."""
    hp.parallel.write_partitions(data, 2, folder, method="contiguous")
    return edges_in(folder)


def edges_in(folder: Path) -> list[tuple[int, int, float]]:
    parts = [hp.parallel.PartitionedData(folder, rank) for rank in range(2)]
    nodes, found = torch.cat([part.nodes for part in parts]), []
    for part in parts:
        source, target = nodes[part.edge_index].tolist()
        found += zip(source, target, getattr(part, NAME).tolist(), strict=True)
    return found


def wanted(folder: Path) -> list[tuple[int, int, float]]:
    edges, weight = graph()
    return stored(EdgeStream.of(edges, NODES, values={NAME: weight}), folder)


@pytest.mark.parametrize("kind", FILES)
def test_the_same_store(kind: str, tmp_path: Path) -> None:
    name, write, column = FILES[kind]
    write(tmp_path / name, *graph())
    columns = {} if column is None else {NAME: column}
    stream = open_graph(tmp_path / name, columns)
    for most in (1, 7, 1000):  # as many at a time as edges
        pairs = zip(stream.blocks(most), stream.values[NAME].blocks(most), strict=True)
        assert {edges.shape[1] - len(values) for edges, values in pairs} == {0}
    assert stored(stream, tmp_path / "parts") == wanted(tmp_path / "twin")
    out, given = str(tmp_path / "more"), [f"{NAME}=:{column}"] if column else []
    command = ["partition", str(tmp_path / name), "--ranks", "2", "-o", out, "--quiet"]
    assert main([*command, "--method", "contiguous", "--edge-values", *given]) == 0
    assert edges_in(tmp_path / "more") == wanted(tmp_path / "again")


BARE = {"text, by number", "packed text", "npy"}  # nothing says what columns they have


@pytest.mark.parametrize("kind", [*FILES, "npy"])
def test_a_column_of_no_edges(kind: str, tmp_path: Path) -> None:
    """It has no values, or what was asked for is named: it is not left out."""
    write_npy: Any = lambda p, e, w: np.save(p, e)  # noqa: E731
    name, write, column = FILES.get(kind, ("e.npy", write_npy, "w"))
    write(tmp_path / name, np.zeros((2, 0), np.int64), np.zeros(0))
    columns = {} if column is None else {NAME: column}
    if kind in BARE:
        with pytest.raises(DatasetError, match=rf"{name} has no .*'{column}'"):
            open_graph(tmp_path / name, columns)
        return
    stream = open_graph(tmp_path / name, columns)
    found = [*stream.values[NAME].blocks(7)]
    assert sum(map(len, found)) == 0
    assert stream.values[NAME].dtype.kind == "f"
    stream = EdgeStream(stream.blocks, "none", NODES, values=stream.values)
    assert stored(stream, tmp_path / "parts") == []


def test_graphs_in_memory(tmp_path: Path) -> None:
    edges, weight = map(torch.from_numpy, graph())
    made: dict[str, Any] = {}
    pyg = pytest.importorskip("torch_geometric.data")
    made["pyg"] = pyg.Data(edge_index=edges, edge_weight=weight, num_nodes=NODES)
    dgl = pytest.importorskip("dgl")
    made["dgl"] = dgl.graph((edges[0], edges[1]), num_nodes=NODES)
    made["dgl"].edata[NAME] = weight
    for name, data in made.items():
        assert stored(data, tmp_path / name) == wanted(tmp_path / f"{name}-twin")


WRITE = """
import dgl, dgl.distributed, numpy as np, torch
with np.load("graph.npz") as arrays:
    edges, weight = (torch.from_numpy(arrays[key]) for key in ("edges", "weight"))
made = dgl.graph((edges[0], edges[1]), num_nodes=20)
made.ndata["before"], made.edata["weight"] = torch.arange(20), weight
dgl.distributed.partition_graph(made, "net", 2, "parts", part_method="random")
"""


def test_parts_of_dgl(tmp_path: Path) -> None:
    pytest.importorskip("dgl")
    edges, weight = graph()
    np.savez(tmp_path / "graph.npz", edges=edges, weight=weight)
    run_fresh(WRITE, tmp_path)  # DGL leaves files open
    stream = open_graph(tmp_path / "parts")
    found = stored(stream, tmp_path / "store")
    before = np.concatenate([*stream.rows["before"].blocks(7)]).tolist()
    ours = sorted((before[source], before[target], w) for source, target, w in found)
    assert ours == sorted(wanted(tmp_path / "twin"))


@pytest.mark.parametrize(("kind", "sign"), [("symmetric", 1), ("skew-symmetric", -1)])
@pytest.mark.parametrize("most", [1, 3, 100])
def test_both_directions_of_an_entry(kind: str, sign: int, most: int, tmp_path: Path) -> None:
    entries = {(1, 0): 3, (2, 0): -4, (3, 1): 5} | ({(2, 2): 7} if sign == 1 else {})
    head = f"%%MatrixMarket matrix coordinate integer {kind}\n4 4 {len(entries)}\n"
    body = "".join(f"{u + 1} {v + 1} {w}\n" for (u, v), w in entries.items())
    (tmp_path / "e.mtx").write_text(head + body)
    stream = open_edges(tmp_path / "e.mtx", {NAME: "value"})
    edges = np.concatenate([*stream.blocks(most)], axis=1)
    values = np.concatenate([*stream.values[NAME].blocks(most)])
    found = dict(zip(map(tuple, edges.T.tolist()), values.tolist(), strict=True))
    assert found == entries | {(v, u): sign * w for (u, v), w in entries.items() if u != v}


def sparse() -> bytes:
    out = io.BytesIO()
    shape = np.array([2, 2])
    np.savez(out, adj_shape=shape, adj_data=[1.0], adj_row=[0], adj_col=[1], adj_format=b"coo")
    return out.getvalue()


WRONG: dict[str, tuple[str, Callable[[], bytes], str, str]] = {
    "no such name": ("e.csv", lambda: b"source,target,w\n0,1,2\n", "x", "no column 'x'.*'w'"),
    "no such number": ("e.txt", lambda: text(graph()[0], "{} {}"), "3", r"'3' .*\['1', '2'\]"),
    "a word": ("e.txt", lambda: b"0 1 2\n1 2 x\n", "3", "edges 1 on, column '3': "),
    "no such array": ("e.npz", lambda: npz(edge_index=graph()[0]), "w", r"'w' .*\['edge_index'\]"),
    "a sparse matrix": ("e.npz", sparse, "value", "has no columns"),
    "a pattern": (
        "e.mtx", lambda: b"%%MatrixMarket matrix coordinate pattern general\n2 2 1\n1 2\n",
        "value", "has no columns",
    ),
    "another name": (
        "e.mtx", lambda: b"%%MatrixMarket matrix coordinate real general\n2 2 1\n1 2 3\n",
        "w", r"expected one of \['value'\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_columns_that_are_none(what: str, tmp_path: Path) -> None:
    name, content, column, words = WRONG[what]
    (tmp_path / name).write_bytes(content())
    with pytest.raises(DatasetError, match=words) as e:
        for _ in open_edges(tmp_path / name, {NAME: column}).values[NAME].blocks(10):
            pass
    assert name in str(e.value)


def test_columns_of_tables_that_are_none(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    given = {"source": [0, 1], "target": [1, 0], "word": ["a", "b"], "hole": [1.0, None]}
    parquet.write_table(pa.table(given), tmp_path / "e.parquet")
    for column, words in (
        ("word", "no column 'word' of numbers"),
        ("hole", "a null"),
        ("x", "'x'"),
    ):
        with pytest.raises(DatasetError, match=words):
            [*open_edges(tmp_path / "e.parquet", {NAME: column}).values[NAME].blocks(10)]
    np.save(tmp_path / "e.npy", np.zeros((2, 3), int))
    for place in ("e.npy", "."):
        with pytest.raises(DatasetError, match=r"has no columns|is a folder"):
            open_graph(tmp_path / place, {NAME: "w"})
