"""Graphs for the PyG tests: real data sets as PyG's own classes read them, and awkward ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch
from torch_geometric.datasets import Planetoid, TUDataset

from hag_plugin.testing import limits

REAL = ("Cora", "MUTAG", "IMDB-MULTI")


@dataclass(frozen=True)
class Graph:
    """Edges `[2, E]` between `num_src` and `num_dst` nodes."""

    name: str
    edge_index: Tensor
    num_src: int
    num_dst: int

    @property
    def is_square(self) -> bool:
        """Whether sources and targets are the same nodes."""
        return self.num_src == self.num_dst


@pytest.fixture(autouse=True)
def one_thread(seeded: None) -> None:
    """The graphs are small: on a busy machine threads would wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def few_messages() -> Iterator[None]:
    """Lets recipes run on the small graphs of these tests, which are left to stock otherwise."""
    with limits(few_messages=0, passing_gain=0.0):
        yield


@pytest.fixture(scope="session")
def raw_root(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A writable copy of the raw files that PyG's dataset classes read."""
    root = tmp_path_factory.mktemp("raw")
    for name in REAL:
        shutil.copytree(shared_data / "raw" / name, root / name, copy_function=shutil.copyfile)
        for path in [root / name, *(root / name).rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    return root


@pytest.fixture(scope="session")
def cora(raw_root: Path) -> Planetoid:
    """Cora with the Planetoid split."""
    return Planetoid(str(raw_root), "Cora")


@pytest.fixture(scope="session")
def tu_copy(raw_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A root of its own for a data set of the TU collection, not processed yet."""

    def copy(name: str) -> str:
        root = tmp_path_factory.mktemp(name)
        shutil.copytree(raw_root / name / "raw", root / name / "raw")
        return str(root)

    return copy


def multigraph() -> Graph:
    """Directed, with duplicate edges, duplicate self-loops and isolated nodes."""
    generator = torch.Generator().manual_seed(1)
    edges = torch.randint(50, (2, 300), generator=generator)
    loops = torch.tensor([0, 1, 2, 2, 2, 7]).expand(2, -1)
    edges = torch.cat([edges, edges[:, :60], loops], dim=1)
    return Graph(
        "multigraph", edges[:, torch.randperm(edges.shape[1], generator=generator)], 57, 57
    )


def bipartite() -> Graph:
    """From 40 sources to 25 targets, duplicates and isolated nodes on both sides."""
    generator = torch.Generator().manual_seed(2)
    source = torch.randint(37, (150,), generator=generator)
    target = torch.randint(22, (150,), generator=generator)
    edges = torch.stack([source, target])
    return Graph("bipartite", torch.cat([edges, edges[:, :30]], dim=1), 40, 25)


_KNOWN: dict[str, Graph] = {}


@pytest.fixture
def graph(request: pytest.FixtureRequest) -> Graph:
    """A graph by name: tests parametrize it indirectly."""
    name = request.param
    if name in REAL:
        request.getfixturevalue(
            "shared_data"
        )  # so that this test counts among those on real graphs
    if name not in _KNOWN:
        _KNOWN[name] = _load(name, request)
    return _KNOWN[name]


def _load(name: str, request: pytest.FixtureRequest) -> Graph:
    if name == "multigraph":
        return multigraph()
    if name == "bipartite":
        return bipartite()
    if name == "Cora":
        data = request.getfixturevalue("cora")[0]
    else:
        dataset = TUDataset(str(request.getfixturevalue("raw_root")), name)
        data = Batch.from_data_list([dataset[i] for i in range(0, len(dataset), 12)])
    return Graph(name, data.edge_index, data.num_nodes, data.num_nodes)


@pytest.fixture
def awkward() -> Graph:
    """The multigraph alone."""
    return multigraph()
