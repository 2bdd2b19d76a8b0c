"""Fuzz targets for what reads files in Python: the documented error, and no other.

`python tests/fuzz/python_doors.py NAME [options of libFuzzer] FOLDER...` runs one under atheris.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["hag_plugin"]):
        import hag_plugin
        import hag_plugin.data.graph_files
        import hag_plugin.hag.files
        import hag_plugin.parallel.search.plan

import numpy as np
import torch

import hag_plugin as hp
from hag_plugin.data.graph_files import load_file, load_npz
from hag_plugin.files import DatasetError
from hag_plugin.hag import constants, rates
from hag_plugin.hag.hag import HAG
from hag_plugin.kernels import _cpu
from hag_plugin.parallel.machine import topology

FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
NAMES = ("g.txt", "g.csv", "g.mtx", "g.npy", "g.npz", "g.gz", "g", "g.edges")
DTYPES = ("<i8", "<i4", "|u1", "<f4", "<f8", "|b1", "<i2", "<u8", ">i8", "|S1", "<c8", "<u4")

Arrays = dict[str, np.ndarray]


def names(error: Exception, file: str) -> None:
    """Fails unless an error says which file it is about."""
    if file not in str(error):
        raise AssertionError(f"{file} is not named") from error


class Door(NamedTuple):
    """What takes the bytes, and bytes that it takes; and how a document's are changed."""

    take: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    changed: Callable[[bytes, int], bytes | None] | None = None


# Archives: their zip is right, so that what is in it is looked at ---------------------------------


def packed(arrays: Arrays, header: bytes = b"") -> bytes:
    """A header and arrays in a few bytes that can be changed one by one."""
    out = [len(header).to_bytes(2, "little"), header]
    for name, array in arrays.items():
        code = DTYPES.index(array.dtype.str)
        rows = len(array) if array.ndim > 1 else 0
        content = np.ascontiguousarray(array).tobytes()
        out += [bytes([len(name)]), name.encode(), bytes([code, rows])]
        out += [len(content).to_bytes(2, "little"), content]
    return b"".join(out)


def unpacked(content: bytes) -> tuple[bytes, Arrays]:
    """What `packed` made, or whatever other bytes stand for."""
    at = 0

    def take(count: int) -> bytes:
        nonlocal at
        at += count
        return content[at - count : at]

    header, arrays = take(int.from_bytes(take(2), "little")), {}
    while at < len(content):
        name = take(take(1)[0]).decode("latin-1").replace("\0", "") or "x"
        code, rows, *_ = *take(2), 0, 0
        dtype = np.dtype(DTYPES[code % len(DTYPES)])
        array = take(int.from_bytes(take(2), "little"))
        array = array[: len(array) // dtype.itemsize * dtype.itemsize]
        found = np.frombuffer(array, dtype)
        if rows and len(found) % rows == 0:
            found = found.reshape(rows, -1)
        arrays[name.replace("/", "-")] = found
    return header, arrays


def hag_arrays(content: bytes) -> None:
    """A HAG file with checksums that are right, that of the edges included."""
    header, arrays = unpacked(content)
    try:
        document = json.loads(header)
        row_ptr, col = arrays["hag.row_ptr"].astype(np.int64), arrays["hag.col"].astype(np.int64)
        degree = np.diff(row_ptr)
        if degree.min(initial=0) >= 0 and degree.max(initial=0) <= len(col):  # no more is repeated
            target = np.repeat(np.arange(len(degree)), degree)
            document["content_hash"] = _cpu.edge_hash(col, target)
            header = json.dumps(document).encode()
    except (KeyError, TypeError, ValueError, RecursionError, MemoryError):
        pass
    arrays = {**arrays, "header": np.frombuffer(header, np.uint8)}
    path = FOLDER / "graph.npz"
    with path.open("wb") as out:
        np.savez(out, **arrays)  # type: ignore[arg-type]
    hag_file_at(path)


def hag_file(content: bytes) -> None:
    """Any bytes."""
    path = FOLDER / "graph.npz"
    path.write_bytes(content)
    hag_file_at(path)


def hag_file_at(path: Path) -> None:
    try:
        hag = HAG.load(path)
    except ValueError as e:
        names(e, str(path))
        return
    if hag.num_src > 10_000:
        return
    # It computes what its edges say.
    x = torch.arange(3.0 * hag.num_src, dtype=torch.float64).view(-1, 3) % 7
    x.requires_grad_()
    source, target = hag.edge_index
    expected = x.new_zeros(hag.num_dst, 3).index_add(0, target, x[source])
    y = hp.aggregate(x, hag)
    assert torch.equal(y, expected)
    if y.numel():
        (grad,) = torch.autograd.grad(y.square().sum(), x)
        (wanted,) = torch.autograd.grad(expected.square().sum(), x)
        assert torch.equal(grad, wanted)


def a_hag() -> HAG:
    """With all programs that a graph can have, and those of its reverse."""
    random = np.random.default_rng(0)
    group = random.integers(0, 2, 10)
    inside = np.stack(np.nonzero(group[:, None] == group))
    edges = np.concatenate([inside, random.integers(0, 10, (2, 12))], 1)
    hag = hp.build_hag(torch.from_numpy(edges), num_nodes=10, choose="hag")
    for mode in (False, "add", "fill"):
        for idempotent in (False, True):
            hag.program(mode, idempotent=idempotent)  # type: ignore[arg-type]
    hag.transpose().program()
    return hag


def hag_seeds() -> list[bytes]:
    seeds = []
    plain = hp.build_hag(torch.tensor([[0, 1, 2], [1, 2, 0]]), num_nodes=3)
    for hag in (a_hag(), plain, hp.batch([plain, plain])):
        path = FOLDER / "seed.npz"
        hag.save(path)
        with np.load(path) as file:
            arrays = dict(file)
        seeds.append(packed(arrays, arrays.pop("header").tobytes()))
    return seeds


def hag_file_seeds() -> list[bytes]:
    a_hag().save(FOLDER / "seed.npz")
    return [(FOLDER / "seed.npz").read_bytes(), b"PK\x03\x04", b""]


EDGES = np.array([[0, 1, 2, 3, 4, 2], [1, 2, 0, 4, 3, 4]])


def npz_graph(content: bytes) -> None:
    """An archive of arrays that may be a graph."""
    _, arrays = unpacked(content)
    path = FOLDER / "arrays.npz"
    with path.open("wb") as out:
        np.savez(out, **arrays)  # type: ignore[arg-type]
    try:
        data = load_npz(path)
    except DatasetError as e:
        names(e, "arrays")
        return
    looked_at(data)


def looked_at(data: Any) -> None:
    if data.num_edges:
        assert 0 <= data.edge_index.min() <= data.edge_index.max() < data.num_nodes
    assert data.x is None or data.x.dtype == torch.float32


def npz_seeds() -> list[bytes]:
    f8, row = np.ones(3), np.array([1, 2, 3])
    known: list[dict[str, Any]] = [
        {"edge_index": EDGES, "num_nodes": np.array([5])[:1], "y": np.arange(5)},
        {"edge_index": EDGES, "x": np.ones((5, 3), np.float32), "train_mask": np.ones(5, bool)},
        {"edge_index": EDGES, "x_indptr": np.array([0, 1, 1, 2, 3, 3]),
         "x_indices": np.array([0, 2, 1]), "x_data": f8, "x_shape": np.array([5, 3])},
        {"edge_index": EDGES[:, :3], "graph_ptr": np.array([0, 3, 5]), "y": np.array([0, 1])},
        {"compact_upper_deg": np.array([1, 0, 1, 1, 0]), "graph_ptr": np.array([0, 2, 5]),
         "compact_upper_col_local": np.array([1, 1, 2])},
        {"shape": np.array([5, 5]), "data": f8, "indices": row,
         "indptr": np.array([0, 1, 2, 3, 3, 3])},
        {"row": row, "col": row}, {"src": EDGES[0], "dst": EDGES[1]}, {"edges": EDGES.T.copy()},
    ]  # fmt: skip
    return [packed({k: np.asarray(v) for k, v in each.items()}) for each in known]


# Files of edges -----------------------------------------------------------------------------------


def edge_file(content: bytes) -> None:
    """The first byte chooses its name and the options."""
    kind = content[0] if content else 0
    path = FOLDER / NAMES[kind % len(NAMES)]
    path.write_bytes(content[1:])
    try:
        looked_at(load_file(path, relabel=bool(kind & 16), undirected=bool(kind & 32)))
    except DatasetError as e:
        names(e, path.name)


def edge_seeds() -> list[bytes]:
    texts = [
        b"0 1\n1 2\n2 0\n", b"source,target,weight\n0,1,0.5\n1,2,1\n", b'"a";"b"\n"b";"c"\n',
        b"%%MatrixMarket matrix coordinate pattern general\n% words\n4 4 3\n1 2\n2 3\n4 1\n",
        b"# edges\n0\t1\t3.5\n1|2\n",
        b"%%MatrixMarket matrix array real general\n2 2\n1\n0\n0\n1\n",
        b"\xef\xbb\xbf0 1\r\n1 0\r\n", b"0 1e3\n1 nan\n",
    ]  # fmt: skip
    return [bytes([k]) + text for text in texts for k in (0, 1, 2, 6, 16, 32, 48 + 1)]


# Documents ----------------------------------------------------------------------------------------


def document(read: Callable[[Path], Any], error: type[Exception]) -> Callable[[bytes], None]:
    def take(content: bytes) -> None:
        path = FOLDER / "document.json"
        path.write_bytes(content)
        try:
            str(read(path))
        except error as e:
            names(e, str(path))

    return take


VALUES: list[Any] = [
    None, True, 0, -1, 1, 2.5, 10**400, 2**63, 2**70, 1e300, float("nan"), float("inf"), "", "x",
    "rows", "columns", "grid x2", "1" * 5000, [], [1], [[]], {}, {"a": 1},
]  # fmt: skip


def changed(content: bytes, seed: int) -> bytes | None:
    """A document with a value of it changed, moved or left out; None: these bytes hold none."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    random = np.random.default_rng(seed)
    places: list[tuple[Any, Any]] = []
    left = [value]
    while left:
        inner = left.pop()
        if isinstance(inner, (dict, list)):
            keys = list(inner) if isinstance(inner, dict) else range(len(inner))
            places += [(inner, key) for key in keys]
            left += [inner[key] for key in keys]
    if not places:
        return None
    (container, key), (other, other_key) = (places[random.integers(len(places))] for _ in range(2))
    kind = random.integers(4)
    if kind == 0:
        del container[key]
    elif kind == 1:
        container[key] = json.loads(json.dumps(other[other_key]))
    else:
        container[key] = VALUES[random.integers(len(VALUES))]
    return json.dumps(value).encode()


def a_plan() -> Any:
    from hag_plugin.parallel.model.opgraph import Op, OpGraph, gcn

    ops = [Op("x", "input", width=64), gcn("conv", 0, 64, 8), Op("loss", "loss", (1,), 8)]
    graph = OpGraph.of(ops, {"A": hp.parallel.GraphStats.assumed(10_000, 500_000)})
    return hp.parallel.plan(graph, topology="pcie4x4").as_dict()


def a_topology() -> Any:
    fit = {"collective": "all_reduce", "world_size": 2, "alpha": 1e-5, "beta": 1e-9, "error": 0.1}
    return hp.parallel.preset("4x8hdr").as_dict() | {"fits": [fit]}


def costs() -> Any:
    return {
        "format": constants.FILE_FORMAT,
        "version": constants.FILE_VERSION,
        "constants": asdict(rates.DEFAULT),
        "about": constants.here(),
    }


def texts(make: Callable[[], Any]) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(make()).encode(), json.dumps(make(), indent=1).encode(), b"[", b"{}"]


DOORS = {
    "hag_file": Door(hag_file, hag_file_seeds),
    "hag_arrays": Door(hag_arrays, hag_seeds),
    "npz_graph": Door(npz_graph, npz_seeds),
    "edge_file": Door(edge_file, edge_seeds),
    "plan": Door(document(hp.parallel.Plan.load, ValueError), texts(a_plan), changed),
    "topology": Door(document(topology.load, ValueError), texts(a_topology), changed),
    "costs": Door(document(constants.read_constants, constants.CostsError), texts(costs), changed),
}


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    door = DOORS[sys.argv.pop(1)]

    def mutated(content: bytes, most: int, seed: int) -> bytes:
        found = door.changed(content, seed) if door.changed and seed % 4 else None
        if found is None or len(found) > most:
            return atheris.Mutate(content, most)  # type: ignore[no-any-return]
        return found

    atheris.Setup(sys.argv, door.take, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
