"""Assigning nodes to parts: every node once, sizes bounded, fewer rows of others than blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hag_plugin.parallel.graphs.partition import IMBALANCE, METHODS, Partition, partition
from hag_plugin.parallel.graphs.stats import measure


def communities(nodes: int, parts: int, seed: int = 0) -> torch.Tensor:
    """Edges mostly inside `parts` communities, whose nodes are numbered at random."""
    random = np.random.default_rng(seed)
    label = random.integers(0, parts, nodes)
    source = random.integers(0, nodes, 20 * nodes)
    target = random.integers(0, nodes, 20 * nodes)
    kept = (label[source] == label[target]) | (random.random(20 * nodes) < 0.02)
    return torch.from_numpy(np.stack([source[kept], target[kept]]))


def halo_rows(edges: torch.Tensor, nodes: int, found: Partition) -> int:
    stats = measure(found.renumber(edges), nodes, part=found, hag=False, progress=False)
    cut = stats.partition(len(found.rows))
    assert np.array_equal(cut.rows, found.rows)
    return int(cut.halo.sum())


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    if request.param == "metis":
        pytest.importorskip("pymetis")
    return str(request.param)


def test_every_node_is_in_one_part(method: str) -> None:
    @settings(max_examples=40)
    @given(st.integers(1, 60), st.integers(1, 8), st.integers(0, 200), st.integers(0, 2**31))
    def check(nodes: int, parts: int, edges: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        edge_index = torch.from_numpy(random.integers(0, nodes, (2, edges)))
        found = partition(edge_index, nodes, parts, method, seed)
        assert sorted(found.order.tolist()) == list(range(nodes))
        assert len(found.rows) == parts
        assert found.rows.sum() == nodes
        assert (np.diff(found.part) >= 0).all()
        if found.method == "labels":
            assert found.rows.max() <= np.ceil(IMBALANCE * nodes / parts)
        for rows in np.split(found.order, np.cumsum(found.rows)[:-1]):
            assert (np.diff(rows) > 0).all()  # a part keeps the order of its nodes

    check()


@given(st.integers(1, 50), st.integers(0, 2**31))
def test_numbers_go_there_and_back(nodes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    found = Partition(random.permutation(nodes), np.array([nodes // 2, nodes - nodes // 2]), "")
    x = torch.from_numpy(random.random((nodes, 3)))
    assert torch.equal(found.undo(found.arrange(x)), x)
    edges = torch.from_numpy(random.integers(0, nodes, (2, 30)))
    assert torch.equal(found.arrange(x)[found.renumber(edges)], x[edges])


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_communities_stay_together(parts: int, method: str) -> None:
    edges, nodes = communities(4000, parts), 4000
    blocks = halo_rows(edges, nodes, partition(edges, nodes, parts, "contiguous"))
    found = partition(edges, nodes, parts, method)
    if method == "contiguous":
        assert np.array_equal(found.order, np.arange(nodes))
    else:
        assert halo_rows(edges, nodes, found) < 0.7 * blocks
        assert found.rows.max() < 1.1 * nodes / parts


def test_blocks_are_kept_where_they_are_best() -> None:
    path = torch.stack([torch.arange(999), torch.arange(1, 1000)])
    assert partition(path, 1000, 4).method == "contiguous"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Cora", "PubMed", "AmazonPhoto"])
def test_real_graphs(name: str, shared_data: Path, method: str) -> None:
    with np.load(shared_data / "npz" / f"{name}.npz") as arrays:
        edges = torch.from_numpy(arrays["edge_index"].astype(np.int64))
        nodes = int(arrays["num_nodes"])
    blocks = halo_rows(edges, nodes, partition(edges, nodes, 4, "contiguous"))
    found = halo_rows(edges, nodes, partition(edges, nodes, 4, method))
    assert found == blocks if method == "contiguous" else found < blocks / 2


def test_wrong_arguments_are_named() -> None:
    edges = torch.tensor([[0, 1], [1, 5]])
    with pytest.raises(ValueError, match=r"method is 'best'; expected one of"):
        partition(edges, 6, 2, "best")
    with pytest.raises(ValueError, match="ids 0 to 5; expected 0 to 4"):
        partition(edges, 5, 2)
    with pytest.raises(ValueError, match="parts is 0"):
        partition(edges, 6, 0)
    with pytest.raises(ValueError, match="has 2 parts; 3 are wanted"):
        partition(edges, 6, 2)(3)
