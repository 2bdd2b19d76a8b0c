"""A store is cut again into another number of parts, as what it was made of would be."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hag_plugin as hp
from hag_plugin.cli.main import main
from hag_plugin.data.edge_folders import open_graph
from hag_plugin.files import DatasetError
from hag_plugin.parallel.graphs.store.streams import EdgeStream

from .test_write import graphs

hpp = hp.parallel
METHODS = ("contiguous", "fennel", "labels")


def of_all_kinds(edges: torch.Tensor, nodes: int) -> EdgeStream:
    """A graph whose nodes and edges have something of several dtypes and shapes."""
    random = np.random.default_rng(0)
    rows = {
        "x": random.standard_normal((nodes, 3)).astype(np.float16),
        "y": random.integers(0, 9, nodes),
        "train_mask": random.random(nodes) < 0.5,
    }
    count = edges.shape[1]
    values = {
        "edge_weight": random.random(count).astype(np.float32),
        "edge_attr": random.integers(0, 9, (count, 2)),
    }
    return EdgeStream.of(edges.numpy(), nodes, rows, values=values)


def files(store: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*.npy")}
    assert found
    return found


@settings(max_examples=30)
@given(graphs(), st.integers(1, 5), st.integers(1, 5), st.sampled_from(METHODS), st.booleans())
def test_a_store_is_cut_as_what_it_was_made_of(
    graph: tuple[torch.Tensor, int], before: int, ranks: int, method: str, undirected: bool
) -> None:
    """Whatever the first cut was; every file has the same bytes."""
    given = of_all_kinds(*graph)
    with TemporaryDirectory() as there:
        first, wanted, found = (Path(there, name) for name in ("first", "wanted", "found"))
        hpp.write_partitions(given, before, first, method="fennel", undirected=undirected)
        hpp.write_partitions(given, ranks, wanted, method=method, undirected=undirected)
        made = hpp.write_partitions(open_graph(first), ranks, found, method=method)
        assert files(found) == files(wanted)
        assert made.fingerprint == hpp.PartitionedData(wanted, 0).manifest.fingerprint
        assert made.source == f"{first} read as: a store of {before} parts"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    edges = torch.randint(0, 40, (2, 300))
    data = SimpleNamespace(edge_index=edges, num_nodes=40, y=torch.arange(40))
    hpp.write_partitions(data, 3, tmp_path / "parts")
    return tmp_path / "parts"


def test_on_the_command_line(store: Path, tmp_path: Path) -> None:
    words = ["partition", str(store), "--ranks", "2", "-o", str(tmp_path / "two"), "--quiet"]
    assert main(words) == 0
    parts = [hpp.PartitionedData(tmp_path / "two", rank) for rank in range(2)]
    for part in parts:
        assert part.y.tolist() == part.nodes.tolist()
    assert sum(part.num_edges for part in parts) == 300


@pytest.mark.parametrize("name", ["nodes", "indptr", "sources", "y"])
@pytest.mark.parametrize("damage", ["missing", "cut off", "changed"])
def test_a_damaged_store_is_refused(store: Path, tmp_path: Path, name: str, damage: str) -> None:
    path = store / "part-00001" / f"{name}.npy"
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        end = content[-1:] if damage == "cut off" else bytes([content[-1] ^ 1])
        path.write_bytes(content[:-1] + (b"" if damage == "cut off" else end))
    with pytest.raises(DatasetError, match=f"part-00001/{name}.npy"):
        hpp.write_partitions(open_graph(store), 2, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_damaged_manifest_is_named(store: Path) -> None:
    (store / "manifest.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"manifest\.json is no manifest of a graph store"):
        open_graph(store)


def test_blocks_of_edges_and_of_their_values_are_as_long(store: Path) -> None:
    """However few are asked for at a time."""
    stream: Any = open_graph(store)
    whole = np.concatenate([*stream.blocks(10**6)], axis=1)
    for most in (1, 7, 100):
        blocks = [*stream.blocks(most)]
        assert max(block.shape[1] for block in blocks) <= most
        assert np.array_equal(np.concatenate(blocks, axis=1), whole)
        rows = np.concatenate([*stream.rows["y"].blocks(most)])
        assert rows.tolist() == [*range(40)]
