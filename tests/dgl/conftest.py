"""Graphs for the DGL tests: awkward ones, blocks, and real ones."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hag_plugin.data.graph_files import load_npz
from hag_plugin.dgl import graphbolt_stand_in

if importlib.util.find_spec("dgl") is not None:
    if not importlib.metadata.version("dgl").startswith("1."):
        graphbolt_stand_in()
    import dgl

REAL = ("Cora", "MUTAG", "IMDB-MULTI")
BATCHED = 40  # graphs of a data set that make a batch


@pytest.fixture(autouse=True)
def one_thread(seeded: None) -> None:
    """The graphs are small: on a busy machine threads would wait for each other."""
    torch.set_num_threads(1)


def _multigraph(idtype: torch.dtype = torch.int64) -> Any:
    """Directed, with duplicate edges, duplicate self-loops and isolated nodes."""
    generator = torch.Generator().manual_seed(1)
    edges = torch.randint(50, (2, 300), generator=generator)
    loops = torch.tensor([0, 1, 2, 2, 2, 7]).expand(2, -1)
    edges = torch.cat([edges, edges[:, :60], loops], dim=1)
    edges = edges[:, torch.randperm(edges.shape[1], generator=generator)]
    return dgl.graph(tuple(edges.to(idtype)), num_nodes=57)


def _block(idtype: torch.dtype = torch.int64) -> Any:
    """A message flow graph of fewer targets than sources."""
    graph = _multigraph(idtype)
    seeds = torch.arange(0, 57, 3, dtype=idtype)
    return dgl.to_block(dgl.in_subgraph(graph, seeds), seeds)


def _hetero() -> Any:
    """Two node types, three edge types, one of them between nodes of one type."""
    generator = torch.Generator().manual_seed(2)

    def edges(sources: int, targets: int, count: int) -> Any:
        source = torch.randint(sources, (count,), generator=generator)
        return source, torch.randint(targets, (count,), generator=generator)

    return dgl.heterograph(
        {
            ("user", "follows", "user"): edges(12, 12, 60),
            ("user", "plays", "game"): edges(12, 7, 40),
            ("game", "liked-by", "user"): edges(7, 12, 20),
        },
        {"user": 14, "game": 8},
    )


def _real_graph(name: str, folder: Path) -> Any:
    """Cora, or the first graphs of a data set as one batch."""
    data = load_npz(folder / "npz" / f"{name}.npz", features=False)
    if data.graph_ptr is None:
        return dgl.graph(tuple(data.edge_index), num_nodes=data.num_nodes)
    graphs = []
    for first, last in zip(data.graph_ptr[:BATCHED], data.graph_ptr[1:], strict=False):
        inside = (data.edge_index[1] >= first) & (data.edge_index[1] < last)
        edges = data.edge_index[:, inside] - first
        graphs.append(dgl.graph(tuple(edges), num_nodes=int(last - first)))
    return dgl.batch(graphs)


@pytest.fixture(scope="session")
def multigraph() -> Callable[..., Any]:
    """Makes a directed graph with all that is awkward; an argument sets the dtype of ids."""
    return _multigraph


@pytest.fixture(scope="session")
def block() -> Callable[..., Any]:
    """Makes a message flow graph."""
    return _block


@pytest.fixture(scope="session")
def hetero() -> Callable[..., Any]:
    """Makes a graph of several node and edge types."""
    return _hetero


@pytest.fixture(scope="session", params=REAL)
def real_graph(request: pytest.FixtureRequest, shared_data: Path) -> Any:
    """Cora, and batches of MUTAG and IMDB-MULTI."""
    return _real_graph(request.param, shared_data)
