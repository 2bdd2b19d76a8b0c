"""A part's edges in local numbers are those of the whole graph, however many go by at a time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hag_plugin as hp
from hag_plugin.parallel.execution.graphs.part_edges import count_loops, local_graph

hpp = hp.parallel


@st.composite
def stores(draw: Any) -> tuple[torch.Tensor, int, np.ndarray, int]:
    """A graph with duplicates, loops and isolated nodes; parts may be empty."""
    nodes, ranks = draw(st.integers(1, 15)), draw(st.integers(1, 4))
    ids = st.integers(0, nodes - 1)
    pairs = draw(st.lists(st.tuples(ids, ids), max_size=60))
    owner = draw(st.lists(st.integers(0, ranks - 1), min_size=nodes, max_size=nodes))
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t(), nodes, np.array(owner), ranks


def naive(edges: list[tuple[int, int]], nodes: int, loops: Any) -> list[tuple[int, int, int]]:
    """All edges as a layer has them, with their numbers."""
    found = [(u, v, i) for i, (u, v) in enumerate(edges) if u != v or loops != "fill"]
    return found + [(v, v, len(edges) + v) for v in range(nodes) if loops is not False]


@given(stores(), st.sampled_from([False, "add", "fill"]), st.sampled_from([1, 2, 7, 1000]))
def test_edges_of_parts(
    drawn: tuple[torch.Tensor, int, np.ndarray, int], loops: Any, most: int
) -> None:
    edge_index, nodes, owner, ranks = drawn
    data = SimpleNamespace(edge_index=edge_index, num_nodes=nodes)
    with TemporaryDirectory() as there:
        folder = Path(there) / "parts"
        hpp.write_partitions(data, ranks, folder, assignment=owner)
        parts = [hpp.PartitionedData(folder, rank) for rank in range(ranks)]
        whole = [tuple(e) for part in parts for e in part.edge_index.t().tolist()]
        expected = Counter(naive(whole, nodes, loops))
        for part in parts:
            block = part.block(1)
            counted = count_loops(block, most)
            graph = local_graph(block, loops, int(counted.sum()), most)
            names = torch.cat([part.first + torch.arange(part.num_nodes), part.halo.long()])
            source, target = names.numpy()[graph.index]
            assert (np.diff(graph.index[1]) >= 0).all()
            assert graph.sources.tolist() == [*range(len(names))]
            assert graph.targets.tolist() == [*range(part.num_nodes)]
            listed = np.stack([source, target, graph.edges], axis=1).tolist()
            found = Counter((u, v, number) for u, v, number in listed)
            assert found <= expected
            expected -= found
            own = [u for u, v in part.edge_index.t().tolist() if u == v]
            assert counted.tolist() == [
                own.count(v) for v in range(part.first, part.first + part.num_nodes)
            ]
    assert not expected


def test_a_source_that_is_nowhere(tmp_path: Path) -> None:
    """Files that are not verified may hold anything."""
    edges = torch.tensor([[0, 3, 2], [1, 1, 3]])
    data = SimpleNamespace(edge_index=edges, num_nodes=4)
    hpp.write_partitions(data, 2, tmp_path / "parts", method="contiguous")
    path = tmp_path / "parts" / "part-00000" / "halo.npy"
    np.save(path, np.array([2], np.int32))
    block = hpp.PartitionedData(tmp_path / "parts", 0, verify=False).block(1)
    with pytest.raises(ValueError, match="nodes 0 to 1 has sources that are not in its halo"):
        count_loops(block)
