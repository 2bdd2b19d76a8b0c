"""Files that are wrong, at every door that reads one: the documented error, and no other."""

from __future__ import annotations

import copy
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import hag_plugin as hp
from hag_plugin.data.graph_files import load_file, load_npz
from hag_plugin.files import DatasetError
from hag_plugin.hag import constants, rates
from hag_plugin.parallel.machine import topology

VALUES = [None, True, False, 0, -1, 1, 2.5, 10**400, -(10**400), 2**63, 2**70, 1e300, float("nan"),
          float("inf"), "", "x", "rows", "1" * 5000, [], [1], [[]], {}, {"a": 1}]  # fmt: skip


# Documents ---------------------------------------------------------------------------------------


def places_in(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a document, with each of its keys."""
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        found.append((value, key))
        if isinstance(inner, dict | list):
            found += places_in(inner)
    return found


def documents(good: Any, count: int) -> Iterator[bytes]:
    """A document with one value changed, left out or added; text that is none."""
    yield from (b"", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"nul", b"1" * 10_000)
    yield from (b"1e999", b"NaN", b'"x"', b"[]", b"{}", b"null", json.dumps(good).encode()[:-5])
    for place in range(len(places_in(good))):  # everywhere, everything
        for value in [*VALUES, "left out"]:
            changed = copy.deepcopy(good)
            container, key = places_in(changed)[place]
            if value == "left out":
                del container[key]
            else:
                container[key] = value
            yield json.dumps(changed).encode()
    random = np.random.default_rng(0)
    text = json.dumps(good).encode()
    for _ in range(count):
        at = random.integers(len(text))
        yield text[:at] + bytes([random.integers(256)]) + text[at + 1 :]


# Arrays ------------------------------------------------------------------------------------------

SPECIAL = [0, 1, -1, 2, 7, 2**31 - 1, -(2**31), 2**62, -(2**63)]
DTYPES = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "?", "c8", ">i8", "S3",
          "U2", "M8[s]", "V4", "f8,i4"]  # fmt: skip


def changed_array(array: np.ndarray, random: np.random.Generator) -> np.ndarray | None:
    kind = random.integers(9)
    if kind == 0:
        return None
    if kind == 1:
        return array.ravel()[: random.integers(array.size + 1)]
    if kind == 2:
        return np.concatenate([array.ravel(), array.ravel()])
    if kind == 3:
        return array[None]
    if kind == 4:
        shape = [(), (0,), (0, 2), (2, 0), (1, 1), (3, 1, 2)][random.integers(6)]
        return np.zeros(shape, array.dtype)
    if kind == 5 and array.dtype.kind != "S":
        dtype = np.dtype(DTYPES[random.integers(len(DTYPES))])
        if dtype.names or dtype.kind in "VMSU":
            return np.zeros(array.shape, dtype)
        return array.real.astype(dtype)
    changed = array.copy()
    if changed.size and changed.dtype.kind in "iuf":
        for _ in range(random.integers(1, 3)):
            at = random.integers(changed.size)
            value = SPECIAL[random.integers(len(SPECIAL))]
            changed.flat[at] = np.array(value).astype(changed.dtype)
    return changed


def archives(arrays: dict[str, np.ndarray], path: Path, count: int, seed: int) -> Iterator[None]:
    """`path` with one or two arrays changed, or a byte of it."""
    random = np.random.default_rng(seed)
    for number in range(count):
        new = dict(arrays)
        for _ in range(random.integers(1, 3)):
            name = sorted(new)[random.integers(len(new))] if new else ""
            with np.errstate(all="ignore"):
                changed = changed_array(new[name], random) if new else None
            if changed is not None:
                new[name] = changed
            else:
                new.pop(name, None)
        np.savez(path, **new)  # type: ignore[arg-type]
        if number % 5 == 0:
            content = bytearray(path.read_bytes())
            for _ in range(random.integers(1, 4)):
                content[random.integers(len(content))] = random.integers(256)
            path.write_bytes(content)
        yield


EDGES = np.array([[0, 1, 2, 3, 4, 2], [1, 2, 0, 4, 3, 4]])
# What readers take: a file of each kind.
GRAPHS: dict[str, dict[str, Any]] = {
    "all": {"edge_index": EDGES, "num_nodes": 5, "x": np.ones((5, 3), np.float32), "y": range(5),
            "train_mask": np.ones(5, bool), "val_mask": np.zeros(5, bool)},
    "sparse features": {"edge_index": EDGES, "x_indptr": [0, 1, 1, 2, 3, 3],
                        "x_indices": [0, 2, 1], "x_data": np.ones(3), "x_shape": [5, 3]},
    "many": {"edge_index": [[0, 1, 3], [1, 0, 4]], "num_nodes": 5, "graph_ptr": [0, 2, 5],
             "y": [0, 1], "node_label": range(5)},
    "compact": {"compact_upper_deg": [1, 0, 1, 1, 0], "compact_upper_col_local": [1, 1, 2],
                "graph_ptr": [0, 2, 5], "num_nodes": 5, "y": [0, 1]},
    "SciPy, CSR": {"format": b"csr", "shape": [5, 5], "data": np.ones(3), "indices": [1, 2, 3],
                   "indptr": [0, 1, 2, 3, 3, 3]},
    "SciPy, COO": {"format": b"coo", "shape": [5, 5], "data": np.ones(3), "row": [1, 2, 3],
                   "col": [1, 2, 3]},
    "SciPy, CSC": {"format": b"csc", "shape": [5, 5], "data": np.ones(3), "indices": [1, 2, 3],
                   "indptr": [0, 1, 2, 3, 3, 3]},
    "SciPy, BSR": {"format": b"bsr", "shape": [5, 5], "data": np.ones((3, 1, 1)),
                   "indices": [1, 2, 3], "indptr": [0, 1, 2, 3, 3, 3]},
    "SciPy, DIA": {"format": b"dia", "shape": [5, 5], "data": np.ones((2, 5)), "offsets": [0, 1]},
    "with a prefix": {"adj_shape": [5, 5], "adj_data": np.ones(3), "adj_indices": [1, 2, 3],
                      "adj_indptr": [0, 1, 2, 3, 3, 3], "attr_shape": [5, 3],
                      "attr_data": np.ones(1), "attr_indices": [1],
                      "attr_indptr": [0, 1, 1, 1, 1, 1], "labels": range(5)},
    "pairs": {"src": EDGES[0], "dst": EDGES[1], "num_nodes": 5},
    "edges": {"edges": EDGES.T, "y": range(5)},
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_archives_that_are_no_graph(name: str, tmp_path: Path) -> None:
    if name.startswith(("SciPy", "with a prefix")):
        pytest.importorskip("scipy")
    path = tmp_path / "graph.npz"
    arrays = {key: np.asarray(value) for key, value in GRAPHS[name].items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    assert load_npz(path).num_nodes == 5
    read, said = 0, set()
    for _ in archives(arrays, path, 400, 1):
        try:
            data = load_npz(path)
        except DatasetError as e:
            said.add("graph" in str(e))  # the file
            continue
        read += 1
        assert not data.num_edges or 0 <= data.edge_index.min() <= data.edge_index.max() < (
            data.num_nodes
        )
        assert data.x is None or data.x.dtype == torch.float32
    assert read > 0
    assert said == {True}


@pytest.mark.parametrize("column", [-1, -3, 3, 2**31])
def test_columns_of_sparse_features_do_not_wrap(column: int, tmp_path: Path) -> None:
    arrays = dict(GRAPHS["sparse features"], x_indices=[0, column, 1])
    np.savez(tmp_path / "graph.npz", **arrays)
    with pytest.raises(DatasetError, match=r"x_indices runs from .*; expected columns from 0 to 2"):
        load_npz(tmp_path / "graph.npz")


def test_archives_that_unpack_to_more_than_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 1 << 20}
    monkeypatch.setattr("os.sysconf", names.__getitem__)
    packed = tmp_path / "graph.npz"
    np.savez_compressed(packed, edge_index=np.zeros((2, 1 << 20), np.int64))
    with gzip.open(tmp_path / "edges.npy.gz", "wb") as file:
        np.save(file, np.zeros((2, 1 << 20), np.int64))
    for path in (packed, tmp_path / "edges.npy.gz"):
        assert path.stat().st_size < 1 << 16
        with pytest.raises(DatasetError, match=r"unpacked; this machine has 1,048,576 bytes"):
            load_file(path)


def table(kind: str) -> bytes:
    """A Parquet or a Feather file."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.feather as feather
    import pyarrow.parquet as parquet

    out, edges = io.BytesIO(), pa.table({"source": EDGES[0], "target": EDGES[1]})
    (parquet.write_table if kind == "parquet" else feather.write_feather)(edges, out)
    return out.getvalue()


def npy() -> bytes:
    out = io.BytesIO()
    np.save(out, EDGES)
    return out.getvalue()


CSV = b"source,target,weight\n0,1,0.5\n1,2,1\n2,0,3\n3,0,1e3\n"
MTX = b"%%MatrixMarket matrix coordinate pattern general\n% words\n4 4 3\n1 2\n2 3\n4 1\n"
FILES: dict[str, Callable[[], bytes]] = {
    "g.csv": lambda: CSV,
    "g.txt": lambda: b"# edges\n0 1\n1 2\n2 0\n",
    "g.mtx": lambda: MTX,
    "g.npy": npy,
    "g.parquet": lambda: table("parquet"),
    "g.feather": lambda: table("feather"),
    "g.csv.gz": lambda: gzip.compress(CSV),
    "g.csv.xz": lambda: lzma.compress(CSV),
    "g.npz": lambda: (Path(__file__).parent / "hag" / "files" / "version-1.npz").read_bytes(),
}
PIECES = [b"-1", b"99999999999", b"nan", b"1e400", b"\0", b"\xff\xfe", b"1" * 5000]


@pytest.mark.parametrize("name", FILES)
def test_files_with_other_bytes(name: str, tmp_path: Path) -> None:
    if name.endswith("mtx"):
        pytest.importorskip("scipy")
    random, path, good = np.random.default_rng(3), tmp_path / name, FILES[name]()
    path.write_bytes(good)
    assert load_file(path).num_edges > 2
    said = set()
    for _ in range(200):
        content = bytearray(good)
        for _ in range(random.integers(1, 4)):
            at, kind = random.integers(len(content) + 1), random.integers(4)
            if kind == 0:
                content[at : at + 1] = bytes([random.integers(256)])
            elif kind == 1:
                del content[at : at + random.integers(1, 8)]
            elif kind == 2:
                content[at:at] = PIECES[random.integers(len(PIECES))]
            else:
                del content[at:]
        path.write_bytes(content)
        for options in ({}, {"relabel": True, "undirected": True}):
            try:
                load_file(path, **options)
            except DatasetError as e:
                said.add(name in str(e))
    assert said == {True}


@pytest.mark.parametrize("end", [b"4 1x", b"4 1\xf9", b"4 1 %", b"4 1\0"])
def test_a_last_line_without_end_that_is_no_number(end: bytes, tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    (tmp_path / "g.mtx").write_bytes(MTX.removesuffix(b"4 1\n") + end)
    with pytest.raises(DatasetError, match=r"expected numbers|not a text file"):
        load_file(tmp_path / "g.mtx")


# Doors that read documents -----------------------------------------------------------------------


class Door(NamedTuple):
    good: Any  # a document
    read: Callable[[Path], Any]
    error: type[Exception] = ValueError


def a_plan() -> Any:
    pytest.importorskip("torch_geometric")
    from torch_geometric.nn import GCN

    from hag_plugin.parallel.model.trace import trace

    graph = hp.parallel.GraphStats.assumed(100, 400)
    plan = hp.parallel.plan(trace(GCN(8, 8, 2), graph, features=8), "a100x8", world_size=2)
    return Door(plan.as_dict(), hp.parallel.Plan.load)


def a_topology() -> Door:
    good = hp.parallel.preset("a100x8").as_dict()
    fit = {"collective": "all_reduce", "world_size": 2, "alpha": 1e-5, "beta": 1e-9, "error": 0.1}
    return Door(json.loads(json.dumps(good | {"fits": [fit]})), topology.load)


def costs() -> Door:
    document = {
        "format": constants.FILE_FORMAT,
        "version": constants.FILE_VERSION,
        "constants": asdict(rates.DEFAULT),
        "about": constants.here(),
    }
    return Door(document, constants.read_constants, constants.CostsError)


@pytest.mark.parametrize("make", [a_plan, a_topology, costs])
def test_documents_that_are_wrong(make: Callable[[], Door], tmp_path: Path) -> None:
    door, path = make(), tmp_path / "document.json"
    path.write_text(json.dumps(door.good))
    door.read(path)
    refused, said = 0, set()
    for content in documents(door.good, 500):
        path.write_bytes(content)
        try:
            str(door.read(path))
        except door.error as e:
            said.add(str(path) in str(e))
            refused += 1
    assert refused > 200
    assert said == {True}


@pytest.mark.parametrize("make", [a_plan, a_topology, costs])
def test_documents_that_cannot_be_read(make: Callable[[], Door], tmp_path: Path) -> None:
    door = make()
    with pytest.raises((OSError, ValueError)):
        door.read(tmp_path / "none")
    with pytest.raises((OSError, ValueError)):
        door.read(tmp_path)
