"""The five graphs of the HAG paper: published ones where they can be had, or named stand-ins."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from examples.benchmark.graphs import Graph
from hag_plugin.data import datasets, generators
from hag_plugin.data.graph_data import GraphData
from hag_plugin.files import DatasetError

from . import hag_paper
from .hag_paper import DataSet

PAPER = {row.name: row for row in hag_paper.DATA_SETS}
# By the paper's name: the name as `datasets.load` takes it, and stand-ins of the same kind.
PUBLISHED = {"BZR": "BZR_MD", "IMDB": "IMDB-MULTI", "COLLAB": "COLLAB"}
STAND_INS = {"COLLAB": "COLLAB_ego_recon", "PPI": "PPI_ohmnet_brain", "REDDIT": "ego-Facebook"}
WORDS = {
    "COLLAB_ego_recon": "COLLAB-like: ego-networks rebuilt from three of the collaboration "
    "networks that COLLAB was made from, with its numbers of graphs, nodes and edges",
    "PPI_ohmnet_brain": "nine other protein networks, of brain tissues",
    "ego-Facebook": "another dense social network",
}
_failed: set[str] = set()  # downloads of this run that are not tried again
SMALL = 10  # a --quick run takes a graph this many times smaller


@dataclass(frozen=True)
class Found:
    """A graph to measure on.

    Attributes:
        paper: the row of the paper's table.
        data: what is measured.
        exact: the published data set with the paper's numbers.
        words: what `data` is.
    """

    paper: DataSet
    data: GraphData
    exact: bool
    words: str

    def facts(self) -> dict[str, Any]:
        """For a record: what was measured on."""
        return {
            "paper": self.paper.name,
            "measured_on": self.data.name,
            "exact": self.exact,
            "words": self.words,
            "nodes": self.data.num_nodes,
            "directed_edges": self.data.num_edges,
            "graphs": self.data.num_graphs,
        }


class Given(Graph):
    """A graph for the benchmark's sides that was loaded here."""

    def __init__(self, data: GraphData, seed: int) -> None:
        self.name, self.seed, self.data = data.name, seed, data
        self._kept = {}


def folder_of(root: str) -> Path:
    """Where `.npz` graphs are: the folder itself, or its folder `npz`."""
    npz = Path(root) / "npz"
    return npz if npz.is_dir() else Path(root)


@functools.lru_cache(maxsize=1)  # steps ask for the same graph several times in a row
def load(name: str, root: str | None, *, offline: bool, quick: bool, seed: int) -> Found:
    """A graph of the paper, by the paper's name.

    Tried in this order: `root` (an `.npz` in it or in its folder `npz`), PyG's data set class,
    which downloads into `root`, a stand-in in `root`, a generated stand-in.

    Args:
        name: of `PAPER`.
        root: folder of data sets; None: generated stand-ins.
        offline: do not try to download.
        quick: a small generated stand-in.
        seed: of what is generated.
    """
    paper = PAPER[name]
    if root is None or quick:
        return _generated(paper, seed, SMALL if quick else 1)
    folder = folder_of(root)
    data = _published(name, folder, offline)
    if data is not None:
        both_ways = paper.edges * (2 if paper.directions == 1 else 1)
        exact = data.num_nodes == paper.nodes and abs(data.num_edges / both_ways - 1) < 0.001
        words = f"{data.name}, the published data set"
        return Found(paper, data, exact, words if exact else f"{words}, of other numbers")
    stand_in = STAND_INS.get(name)
    if stand_in is not None and (folder / f"{stand_in}.npz").is_file():
        data = datasets.load(stand_in, folder, features=False)
        return Found(paper, data, False, f"stand-in: {WORDS[stand_in]}")
    return _generated(paper, seed, 1)


def _published(name: str, folder: Path, offline: bool) -> GraphData | None:
    known = PUBLISHED.get(name)
    if known is not None and (not offline or (folder / f"{known}.npz").is_file()):
        try:
            return datasets.load(known, folder, features=False)
        except DatasetError:
            return None
    if known is None and not offline and name not in _failed:
        try:
            return _large(name, folder)
        except Exception as e:  # whatever a downloader or a reader raises: there are stand-ins
            _failed.add(name)
            print(f"{name} could not be downloaded ({type(e).__name__}): a stand-in is taken",
                  file=sys.stderr)  # fmt: skip
    return None


def _large(name: str, folder: Path) -> GraphData:
    """PPI or Reddit, by PyG's own classes."""
    from torch_geometric.datasets import PPI, Reddit

    if name == "REDDIT":
        graph = Reddit(str(folder / "Reddit"))[0]
        return GraphData("Reddit", "PyG's Reddit", graph.edge_index, graph.num_nodes)
    parts = [g for split in ("train", "val", "test") for g in PPI(str(folder / "PPI"), split)]
    ptr = torch.tensor([0, *(g.num_nodes for g in parts)]).cumsum(0)
    edges = torch.cat([g.edge_index + p for g, p in zip(parts, ptr, strict=False)], 1)
    return GraphData("PPI", "PyG's PPI", edges, int(ptr[-1]), graph_ptr=ptr)


def _generated(paper: DataSet, seed: int, smaller: int) -> Found:
    data, words = GENERATED[paper.name](seed, smaller)
    data = replace(data, name=f"{paper.name}-generated")
    return Found(paper, data, False, f"stand-in, generated: {words}")


def _complete(seed: int, smaller: int) -> tuple[GraphData, str]:
    count = 306 // smaller
    edges = torch.from_numpy(generators.cliques(count, 21, bridges=0, seed=seed))
    return GraphData("", "", edges, 21 * count), f"{count} complete graphs of 21 nodes"


def _collaboration(count: int) -> Callable[[int, int], tuple[GraphData, str]]:
    def make(seed: int, smaller: int) -> tuple[GraphData, str]:
        data = datasets.collaboration(count // smaller, seed)
        return data, f"{count // smaller} ego-networks of authors, papers as cliques"

    return make


def _power_law(nodes: int, degree: float) -> Callable[[int, int], tuple[GraphData, str]]:
    def make(seed: int, smaller: int) -> tuple[GraphData, str]:
        n = nodes // smaller
        edges = torch.from_numpy(generators.power_law(n, degree, seed=seed))
        words = f"{n:,} nodes, power-law degrees, pairs at random"
        return GraphData("", "", edges, n), words

    return make


GENERATED: dict[str, Callable[[int, int], tuple[GraphData, str]]] = {
    "BZR": _complete,
    "PPI": _power_law(5_000, 28.0),
    "REDDIT": _power_law(10_000, 60.0),
    "IMDB": _collaboration(200),
    "COLLAB": _collaboration(1_000),
}
