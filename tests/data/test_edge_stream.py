"""Files that are read block by block hold what the readers of whole files find in them."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hag_plugin.data.edge_stream import open_edges, open_rows
from hag_plugin.data.graph_files import load_file
from hag_plugin.files import DatasetError
from hag_plugin.parallel.graphs.store.streams import EdgeStream
from hag_plugin.testing import limits


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def npz(compressed: bool = False, **arrays: Any) -> bytes:
    out = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(out, **arrays)
    return out.getvalue()


def table(edges: np.ndarray, feather: bool = False, kind: Any = np.int64) -> bytes:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.feather
    import pyarrow.parquet

    source, target = edges.astype(kind)
    columns = pa.table({"weight": np.ones(len(source)), "dst": target, "src": source})
    out = io.BytesIO()
    if feather:
        pyarrow.feather.write_feather(columns, out, chunksize=4)
    else:
        pyarrow.parquet.write_table(columns, out, row_group_size=7)
    return out.getvalue()


def matrix(edges: np.ndarray, nodes: int, banner: str, value: str = "") -> bytes:
    pytest.importorskip("scipy")
    if banner.endswith(("symmetric", "hermitian")):  # each pair once, from the lower triangle
        edges = np.unique(np.sort(edges, axis=0)[::-1], axis=1)
    lines = [f"{u + 1} {v + 1}{value}" for u, v in edges.T]
    head = f"%%MatrixMarket matrix coordinate {banner}\n% words\n{nodes} {nodes} {len(lines)}\n"
    return (head + "\n".join(lines) + "\n").encode()


def text(edges: np.ndarray, form: str, head: str = "", end: str = "\n") -> bytes:
    return (head + "".join(form.format(u, v) + end for u, v in edges.T)).encode()


# Given edges [2, E] and the number of nodes: the name and the content of a file.
FILES: dict[str, tuple[str, Callable[[np.ndarray, int], bytes]]] = {
    "[2, E]": ("g.npy", lambda e, n: npy(e)),
    "[E, 2]": ("g.npy", lambda e, n: npy(e.T.copy())),
    "columns together": ("g.npy", lambda e, n: npy(np.asfortranarray(e))),
    "[E, 2], columns together": ("g.npy", lambda e, n: npy(np.asfortranarray(e.T))),
    "int32": ("g.npy", lambda e, n: npy(e.astype(np.int32))),
    "uint8": ("g.npy", lambda e, n: npy(e.astype(np.uint8))),
    "big endian": ("g.npy", lambda e, n: npy(e.astype(">i8"))),
    "floats": ("g.npy", lambda e, n: npy(e.astype(np.float32))),
    "packed array": ("g.npy.gz", lambda e, n: gzip.compress(npy(e))),
    "npz": ("g.npz", lambda e, n: npz(edge_index=e, num_nodes=n)),
    "compressed npz": ("g.npz", lambda e, n: npz(True, edge_index=e, num_nodes=n)),
    "pairs": ("g.npz", lambda e, n: npz(src=e[0], dst=e[1])),
    "packed npz": ("g.npz.gz", lambda e, n: gzip.compress(npz(edge_index=e))),
    "a sparse matrix": (
        "g.npz",
        lambda e, n: npz(adj_shape=[n, n], adj_data=np.ones(len(e[0])), adj_row=e[0],
                         adj_col=e[1], adj_format=b"coo"),
    ),
    "Parquet": ("g.parquet", lambda e, n: table(e)),
    "Parquet, int32": ("g.parquet", lambda e, n: table(e, kind=np.int32)),
    "Parquet, floats": ("g.parquet", lambda e, n: table(e, kind=np.float64)),
    "Feather": ("g.feather", lambda e, n: table(e, feather=True)),
    "pattern": ("g.mtx", lambda e, n: matrix(e, n, "pattern general")),
    "real": ("g.mtx", lambda e, n: matrix(e, n, "real general", " 0.5e3")),
    "complex": ("g.mtx", lambda e, n: matrix(e, n, "complex general", " 1.0 -2")),
    "symmetric": ("g.mtx", lambda e, n: matrix(e, n, "integer symmetric", " 7")),
    "packed matrix": ("g.mtx.gz", lambda e, n: gzip.compress(matrix(e, n, "pattern general"))),
    "blanks": ("g.txt", lambda e, n: text(e, "{} {}")),
    "tabs": ("g.tsv", lambda e, n: text(e, "{}\t{}", "# SNAP\n# FromNodeId\tToNodeId\n")),
    "windows": ("g.txt", lambda e, n: text(e, "{} {}", end="\r\n")),
    "header": ("g.csv", lambda e, n: text(e, "{1},{0},0.5", "target,source,weight\n")),
    "quoted": ("g.csv", lambda e, n: text(e, '"{}";"{}"')),
    "words after": ("g.txt", lambda e, n: text(e, "{} {} {{'w': 1}}")),
    "whole floats": ("g.csv", lambda e, n: text(e, "{}.0,{}")),
    "comments between": ("g.txt", lambda e, n: text(e, "{} {}\n% c\n\n")),
    "packed text": ("g.txt.gz", lambda e, n: gzip.compress(text(e, "{} {}"))),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_the_same_edges(kind: str, tmp_path: Path) -> None:
    name, content = FILES[kind]
    path = tmp_path / name

    @settings(max_examples=15)
    @given(st.integers(3, 40), st.integers(3, 60), st.integers(0, 2**31), st.integers(1, 70))
    def check(nodes: int, count: int, seed: int, most: int) -> None:
        edges = np.random.default_rng(seed).integers(0, nodes, (2, count))
        if kind == "a sparse matrix":
            edges = np.unique(edges, axis=1)
        path.write_bytes(content(edges, nodes))
        whole = load_file(path)
        with limits(read_characters=13 * most):
            stream = open_edges(path)
            blocks = [*stream.blocks(most)]
        assert max(block.shape[1] for block in blocks) <= most
        wanted = whole.edge_index.numpy()
        found = np.concatenate(blocks, axis=1)
        if kind == "symmetric":  # in another order
            found, wanted = (each[:, np.lexsort(each)] for each in (found, wanted))
        assert np.array_equal(found, wanted)
        if stream.num_nodes is not None:
            assert stream.num_nodes == whole.num_nodes
        if kind not in ("symmetric", "a sparse matrix"):
            last = stream.where(count - 1)
            assert name in last or "edge" in last

    check()


@pytest.mark.parametrize("compressed", [False, True])
def test_what_nodes_and_edges_have(compressed: bool, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = {"x": random.random((9, 4)).astype(np.float16), "y": random.integers(0, 3, 9),
            "train_mask": random.random(9) < 0.5}  # fmt: skip
    values = {"edge_weight": random.random(20), "edge_attr": random.integers(0, 3, (20, 2))}
    path, edges = tmp_path / "g.npz", random.integers(0, 9, (2, 20))
    path.write_bytes(npz(compressed, edge_index=edges, num_nodes=9, **rows, **values))
    stream = open_edges(path)
    for streams, expected in ((stream.rows, rows), (stream.values, values)):
        assert streams.keys() == expected.keys()
        for name, array in expected.items():
            for most in (1, 4, 100):
                found = np.concatenate([*streams[name].blocks(most)])
                assert found.dtype == array.dtype
                assert np.array_equal(found, array)
    np.save(tmp_path / "x.npy", rows["x"])
    assert np.array_equal(np.concatenate([*open_rows(tmp_path / "x.npy").blocks(2)]), rows["x"])


def test_sparse_features(tmp_path: Path) -> None:
    path = tmp_path / "g.npz"
    path.write_bytes(npz(edge_index=[[0, 1], [1, 2]], num_nodes=3, x_indptr=[0, 1, 1, 2],
                         x_indices=[0, 1], x_data=np.ones(2), x_shape=[3, 2]))  # fmt: skip
    (x,) = open_edges(path).rows["x"].blocks(10)
    assert x.tolist() == [[1, 0], [0, 0], [0, 1]]


def drained(path: Path) -> EdgeStream:
    stream = open_edges(path)
    for _ in stream.blocks(3):
        pass
    for rows in stream.rows.values():
        for _ in rows.blocks(3):
            pass
    return stream


@pytest.mark.parametrize("kind", FILES)
def test_files_with_other_bytes(kind: str, tmp_path: Path) -> None:
    """Whatever is in it: edges, or an error that names the file."""
    name, content = FILES[kind]
    random, path = np.random.default_rng(3), tmp_path / name
    good, said = content(random.integers(0, 9, (2, 12)), 9), set()
    for _ in range(120):
        changed = bytearray(good)
        for _ in range(random.integers(1, 4)):
            at = int(random.integers(len(changed) + 1))
            if random.integers(2):
                changed[at : at + 1] = bytes([random.integers(256)])
            else:
                del changed[at : at + int(random.integers(1, 8)) if random.integers(4) else None]
        path.write_bytes(changed)
        try:
            drained(path)
        except DatasetError as e:
            said.add(name in str(e))
    assert said == {True}


WRONG: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "three columns": ("g.npy", lambda: npy(np.zeros((3, 4), int)), r"int64 \[3, 4\]; exp"),
    "no whole numbers": ("g.npy", lambda: npy(np.full((2, 3), 0.5)), "edges 0 on"),
    "objects": ("g.npy", lambda: npy(np.array([["a", "b"]] * 2)), "expected integers"),
    "names": ("g.txt", lambda: b"a b\nc d\n", r"line 1: 'a b'; expected two node ids"),
    "a word in the midst": ("g.txt", lambda: b"0 1\n1 2\n2 x\n", r"line 3: '2 x'; expected two"),
    "a short line": ("g.csv", lambda: b"0,1\n1,2\n2\n", r"line 3"),
    "a dense matrix": (
        "g.mtx", lambda: b"%%MatrixMarket matrix array real general\n1 1\n1\n", "line 1: .*coord",
    ),
    "a rectangle": (
        "g.mtx",
        lambda: b"%%MatrixMarket matrix coordinate pattern general\n2 3 1\n1 1\n",
        "2 x 3 matrix; expected a square one",
    ),
    "too few entries": (
        "g.mtx",
        lambda: b"%%MatrixMarket matrix coordinate pattern general\n3 3 2\n1 1\n",
        "has 1 entries; expected the 2",
    ),
    "HDF5": ("g.h5", lambda: b"\x89HDF\r\n\x1a\n", "is a HDF5 file"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_told(what: str, tmp_path: Path) -> None:
    name, content, words = WRONG[what]
    (tmp_path / name).write_bytes(content())
    with pytest.raises(DatasetError, match=words) as e:
        drained(tmp_path / name)
    assert name in str(e.value)


def test_nulls_and_texts_in_tables(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    path = tmp_path / "g.parquet"
    for source, words in (([1, None, 2], "a null"), (["a", "b", "c"], "expected node ids")):
        parquet.write_table(pa.table({"source": source, "target": [0, 1, 2]}), path)
        with pytest.raises(DatasetError, match=words):
            drained(path)
    with pytest.raises(DatasetError, match="standard input"):
        open_edges("-")
    with pytest.raises(DatasetError, match="no such file"):
        open_edges(tmp_path / "absent.npy")


@pytest.mark.parametrize("rows", [np.array(3.0), np.array(["a"]), np.ones((2, 3)).T])
def test_rows_that_are_none(rows: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows)
    with pytest.raises(DatasetError, match=r"x\.npy"):
        open_rows(tmp_path / "x.npy")
