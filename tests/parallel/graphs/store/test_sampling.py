"""A part as a graph of PyG's or DGL's, whose loaders sample from it: ids lead back to the whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import SAGEConv
from torch_geometric.utils import k_hop_subgraph

import hag_plugin as hp

hpp = hp.parallel


@st.composite
def stores(draw: Any) -> tuple[Data, int, int]:
    """A graph with duplicates, loops and isolated nodes, parts and a seed; parts may be empty."""
    nodes, ranks = draw(st.integers(1, 20)), draw(st.integers(1, 4))
    ids = st.integers(0, nodes - 1)
    pairs = draw(st.lists(st.tuples(ids, ids), max_size=60))
    edges = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t().contiguous()
    return Data(torch.randn(nodes, 3), edges), ranks, draw(st.integers(0, 2**31))


def written(data: Data, ranks: int, seed: int, folder: Path) -> list[Any]:
    """All parts of a store, in which nodes are dealt out at random."""
    owner = np.random.default_rng(seed).integers(0, ranks, data.num_nodes)
    hpp.write_partitions(data, ranks, folder, assignment=owner)
    return [hpp.PartitionedData(folder, rank) for rank in range(ranks)]


def rows_of(parts: list[Any], name: str, ids: Tensor) -> Tensor:
    """Rows of any nodes, by the store's numbers, from the files of those that have them."""
    owner = parts[0].owners(ids)
    found = getattr(parts[0], name).new_empty(len(ids), *getattr(parts[0], name).shape[1:])
    for part in parts:
        of_part = owner == part.rank
        found[of_part] = getattr(part, name)[ids[of_part] - part.first]
    return found


def of_pyg(part: Any) -> tuple[Tensor, Tensor, Tensor]:
    data = part.to_pyg()
    assert data.num_nodes == len(data.n_id)
    return data.edge_index, data.n_id, data.inner_node


def of_dgl(part: Any) -> tuple[Tensor, Tensor, Tensor]:
    dgl = pytest.importorskip("dgl", reason="DGL is not installed")
    graph = part.to_dgl()
    return torch.stack(graph.edges()), graph.ndata[dgl.NID], graph.ndata["inner_node"]


@pytest.mark.parametrize("taken", [of_pyg, of_dgl])
def test_parts_are_the_whole(taken: Callable[[Any], tuple[Tensor, Tensor, Tensor]]) -> None:
    """Every edge is in one part, every node is one part's own, and ids are the store's numbers."""

    @settings(max_examples=25)
    @given(stores())
    def check(drawn: tuple[Data, int, int]) -> None:
        data, ranks, seed = drawn
        with TemporaryDirectory() as there:
            parts = written(data, ranks, seed, Path(there) / "parts")
            before = torch.cat([part.nodes for part in parts])
            edges, inner = [], []
            for part in parts:
                edge_index, ids, is_inner = taken(part)
                assert torch.equal(ids[edge_index], part.edge_index)
                assert torch.equal(ids[~is_inner], part.halo.long())
                assert not is_inner[edge_index[0]].numel() or is_inner[edge_index[1]].all()
                edges.append(before[ids[edge_index]])
                inner.append(before[ids[is_inner]])
        assert torch.equal(torch.cat(inner).sort()[0], torch.arange(data.num_nodes))
        found = torch.cat(edges, 1).t().tolist()
        assert sorted(found) == sorted(data.edge_index.t().tolist())

    check()


@pytest.fixture
def parts(tmp_path: Path) -> tuple[list[Any], Data]:
    """A store of three parts; and the whole graph, in the store's numbers."""
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(60, (2, 300), generator=generator)
    data = Data(torch.randn(60, 5, generator=generator), edges)
    found = written(data, 3, 0, tmp_path / "parts")
    before = torch.cat([part.nodes for part in found])
    return found, Data(data.x[before], before.argsort()[edges])


def test_neighbourhoods_in_pyg(parts: tuple[list[Any], Data]) -> None:
    """A layer over all neighbours of some nodes has the rows that it has on the whole graph."""
    found, whole = parts
    conv = SAGEConv(5, 4)
    expected = conv(whole.x, whole.edge_index)
    for part in found:
        data = part.to_pyg()
        seeds = torch.arange(part.num_nodes)[::2]
        nodes, edge_index, places, _ = k_hop_subgraph(
            seeds, 1, data.edge_index, relabel_nodes=True, num_nodes=data.num_nodes
        )
        out = conv(rows_of(found, "x", data.n_id[nodes]), edge_index)[places]
        torch.testing.assert_close(out, expected[data.n_id[seeds]])


@pytest.mark.filterwarnings("ignore:Dataloader CPU affinity")
def test_dgl_samples_from_a_part(parts: tuple[list[Any], Data]) -> None:
    dgl = pytest.importorskip("dgl", reason="DGL is not installed")
    from dgl.dataloading import DataLoader, NeighborSampler

    found, whole = parts
    graph = dgl.graph(tuple(whole.edge_index), num_nodes=whole.num_nodes)
    conv = dgl.nn.pytorch.SAGEConv(5, 4, "mean")
    expected = conv(graph, whole.x)
    seen = []
    for part in found:
        local = part.to_dgl()
        ids, seeds = local.ndata[dgl.NID], torch.arange(part.num_nodes)
        for sources, targets, (block,) in DataLoader(local, seeds, NeighborSampler([-1]),
                                                     batch_size=7, shuffle=True):  # fmt: skip
            out = conv(block, rows_of(found, "x", ids[sources]))
            torch.testing.assert_close(out, expected[ids[targets]])
            seen.append(ids[targets])
    assert torch.equal(torch.cat(seen).sort()[0], torch.arange(whole.num_nodes))


def test_what_a_store_without_a_rank_lacks(tmp_path: Path) -> None:
    written(Data(torch.ones(4, 1), torch.tensor([[0, 1], [1, 2]])), 2, 0, tmp_path / "parts")
    for make in ("to_pyg", "to_dgl"):
        with pytest.raises(ValueError, match="rank is None; expected rank=0 to 1"):
            getattr(hpp.PartitionedData(tmp_path / "parts"), make)()
