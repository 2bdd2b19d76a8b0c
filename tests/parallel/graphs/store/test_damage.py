"""A store that is not as it was written is refused, and the file that is wrong is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

import hag_plugin as hp
from hag_plugin.files import DatasetError
from hag_plugin.parallel.graphs.store import manifest
from hag_plugin.parallel.graphs.store.manifest import Manifest
from hag_plugin.parallel.graphs.store.streams import EdgeStream

from ....saving import run_fresh

hpp = hp.parallel
RANKS, RANK = 3, 1
NAMES = ("indptr", "sources", "halo", "nodes", "x", "y", "w")
FILES = ["manifest.json", *(f"part-{RANK:05d}/{name}.npy" for name in NAMES)]


def write(folder: Path, seed: int) -> Path:
    random = np.random.default_rng(seed)
    rows = {"x": random.random((60, 4)).astype(np.float32), "y": random.integers(0, 5, 60)}
    values = {"w": random.random((300, 2))}
    stream = EdgeStream.of(random.integers(0, 60, (2, 300)), 60, rows, values=values)
    owner = random.permutation(np.arange(60) % RANKS)
    hpp.write_partitions(stream, RANKS, folder, assignment=owner, hag=True)
    return folder


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two stores of graphs of the same sizes."""
    folder = tmp_path_factory.mktemp("stores")
    return write(folder / "one", 0), write(folder / "other", 1)


@pytest.fixture
def store(stores: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(stores[0], tmp_path / "parts"))


def cut_off(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def longer(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def missing(path: Path, other: Path) -> None:
    path.unlink()


def a_folder(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()


def of_another_store(path: Path, other: Path) -> None:
    shutil.copy(other, path)


def of_another_kind(path: Path, other: Path) -> None:
    path.write_bytes(b"PK" + path.read_bytes()[2:])


def dangling(path: Path, other: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


WAYS = [cut_off, emptied, longer, missing, a_folder, of_another_store, of_another_kind, dangling]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("way", WAYS)
def test_the_file_is_named(
    way: Callable[[Path, Path], None], name: str, store: Path, stores: tuple[Path, Path]
) -> None:
    assert hpp.PartitionedData(store, RANK).num_edges > 0
    way(store / name, stores[1] / name)
    if (way, name) == (of_another_store, "manifest.json"):
        name = FILES[1]  # it is whole, and all others are not its own
    with pytest.raises(DatasetError) as e:
        hpp.PartitionedData(store, RANK)
    assert str(store / name) in str(e.value)


@pytest.mark.parametrize("name", FILES)
def test_any_changed_byte_is_found(name: str, store: Path) -> None:
    path, random = store / name, np.random.default_rng(0)
    good = path.read_bytes()
    for at in {0, len(good) - 1, *random.integers(0, len(good), 25).tolist()}:
        changed = bytearray(good)
        changed[at] ^= 1 << int(random.integers(8))
        if name == "manifest.json" and _same(good, bytes(changed)):
            continue  # a blank for another
        path.write_bytes(changed)
        with pytest.raises(DatasetError) as e:
            hpp.PartitionedData(store, RANK)
        assert str(path) in str(e.value)


def _same(one: bytes, other: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


@pytest.mark.parametrize("way", [cut_off, emptied, longer, missing, a_folder, of_another_kind])
def test_without_verifying_sizes_and_headers_are_compared(
    way: Callable[[Path, Path], None], store: Path, stores: tuple[Path, Path]
) -> None:
    path = store / FILES[1]
    way(path, stores[1] / FILES[1])
    with pytest.raises(DatasetError) as e:
        hpp.PartitionedData(store, RANK, verify=False)
    assert str(path) in str(e.value)


# What somebody has put in, with a checksum that is right.
VALUES: list[Any] = [None, True, -1, 0, 2.5, "x", [], {}, [1], 10**30, "left out"]


def test_manifests_that_say_something_else(store: Path) -> None:
    """Any value in any place: refused, with the name of a file, or the same store."""
    path = store / "manifest.json"
    good = json.loads(path.read_bytes())
    said: list[str] = []
    for place in range(len(_places(good))):
        for value in VALUES:
            document = json.loads(json.dumps(good))
            container, key = _places(document)[place]
            if value == "left out":
                del container[key]
            else:
                container[key] = value
            document.pop("sha256", None)
            document["sha256"] = manifest._digest(document)
            path.write_text(json.dumps(document))
            try:
                found = hpp.PartitionedData(store, RANK)
            except DatasetError as e:
                said.append(str(e))
            else:
                assert len(found.indptr) == found.num_nodes + 1
    assert len(said) > 1000
    assert all(str(store) in each for each in said)


def _places(value: Any) -> list[tuple[Any, Any]]:
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        found.append((value, key))
        if isinstance(inner, dict | list):
            found += _places(inner)
    return found


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"null", b"\xff", b'{"format": 1}'])
def test_documents_that_are_no_manifest(content: bytes, store: Path) -> None:
    (store / "manifest.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"manifest\.json"):
        Manifest.load(store)


def test_later_versions_and_no_stores(store: Path, tmp_path: Path) -> None:
    path = store / "manifest.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(DatasetError, match="of version 2; expected 1"):
        Manifest.load(store)
    for place in (tmp_path, tmp_path / "absent", path):
        with pytest.raises(DatasetError, match="is missing; expected the folder of a store"):
            Manifest.load(place)


# A part alone -----------------------------------------------------------------------------------

COUNTING = """
import sys
opened = []
sys.addaudithook(lambda event, args: event == "open" and opened.append(str(args[0])))
import hag_plugin as hp
opened.clear()
part = hp.parallel.PartitionedData("parts", {rank})
part.x.sum(), part.edge_index, part.local_edge_index, part.stats.partition({ranks}), part.owners
print("\\n".join(sorted(name for name in opened if name.startswith("parts"))))
"""


def test_no_other_part_is_opened(store: Path) -> None:
    said = run_fresh(COUNTING.format(rank=RANK, ranks=RANKS), store.parent).split()
    assert {*said} == {f"parts/{name}" for name in FILES}


def test_no_other_part_is_needed(store: Path) -> None:
    for rank in range(RANKS):
        if rank != RANK:
            shutil.rmtree(store / f"part-{rank:05d}")
    part = hpp.PartitionedData(store, RANK)
    assert part.edge_index.shape == part.local_edge_index.shape == (2, part.num_edges)
    with pytest.raises(DatasetError, match=r"part-00000/indptr\.npy is missing"):
        hpp.PartitionedData(store, 0)


def test_ranks_that_are_no_parts(store: Path) -> None:
    none = hpp.PartitionedData(store)  # the manifest alone
    assert (none.ranks, none.names, none.stats.nodes) == (3, ("x", "y"), 60)
    assert repr(none) == "PartitionedData(3 parts: 60 nodes, 300 edges; x, y, w)"
    for name in ("num_nodes", "num_edges", "first"):
        with pytest.raises(ValueError, match="rank is None; expected rank=0 to 2, or torch"):
            getattr(none, name)
    for name in ("x", "indptr"):
        with pytest.raises(AttributeError, match=f"no '{name}' without a rank; expected rank=0"):
            getattr(none, name)
    with pytest.raises(ValueError, match="rank is 3; expected 0 to 2"):
        hpp.PartitionedData(store, 3)


def test_the_rank_is_that_of_the_group(store: Path, stores: tuple[Path, Path]) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="1 ranks run; the store has 3 parts"):
            hpp.PartitionedData(store)
        one = store.with_name("one")
        hpp.write_partitions(EdgeStream.of(np.array([[0, 1], [1, 2]]), 3), 1, one)
        assert hpp.PartitionedData(one).rank == 0
    finally:
        dist.destroy_process_group()
