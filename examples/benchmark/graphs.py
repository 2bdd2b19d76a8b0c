"""Which graphs to measure on, and one graph made ready: features, loops, HAGs, peers' formats."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hag_plugin as hp
from hag_plugin.data import datasets, generators
from hag_plugin.data.graph_data import GraphData
from hag_plugin.hag.program import SelfLoops

GENERATED = ("collaboration", "cliques", "erdos-renyi", "power-law")
TEN_NODES = "ten nodes"  # for the cost of a call itself
# Nodes, and neighbours a node that are drawn: of one kind, for what depends on size alone.
SCALED = {
    "communities-1M": (2_330, 500),
    "communities-10M": (23_300, 560),
    "communities-115M": (232_965, 575),
}
POWER_LAW, POWER_LAW_NODES = "power-law-10M", 520_000  # of 20 neighbours each, at most
LOOPS: dict[str, SelfLoops] = {"A": False, "A+I": "add"}


def names(root: str | None, wanted: list[str] | None) -> list[str]:
    """The graphs to measure: those asked for, or all `.npz` files of `root`, or generated ones.

    From the smallest file to the largest, so that an early end leaves the most.
    """
    if wanted:
        return wanted
    if root is None:
        return list(GENERATED)
    files = sorted(Path(root).glob("*.npz"), key=lambda path: (path.stat().st_size, path.name))
    if not files:
        raise FileNotFoundError(f"--root is {root}; expected a folder with .npz files")
    return [path.stem for path in files]


class Graph:
    """A graph with everything that is prepared once, before any timing."""

    def __init__(self, name: str, root: str | None, seed: int = 0) -> None:
        """Loads a graph by name (`hag_plugin.data.datasets`)."""
        self.name = name
        self.seed = seed
        self.data: GraphData
        if name == TEN_NODES:
            self.data = _ten_nodes(seed)
        elif name in SCALED:
            self.data = _communities(name, seed)
        elif name == POWER_LAW:
            self.data = _power_law(seed)
        else:
            self.data = datasets.load(name, root, seed=seed, features=False)
        self._kept: dict[Any, Any] = {}

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self.data.num_nodes

    def facts(self) -> dict[str, int]:
        """Nodes, directed edges and graphs."""
        return {
            "nodes": self.data.num_nodes,
            "edges": self.data.num_edges,
            "graphs": self.data.num_graphs,
        }

    def kept(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` made for `key`, made once."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def forget(self, hags_only: bool = False) -> None:
        """Frees all that was made, or the HAGs alone (they are made for one width)."""
        for key in list(self._kept):
            if not hags_only or key[0] == "hag":
                del self._kept[key]
        gc.collect()

    @cached_property
    def edge_index(self) -> Tensor:
        """The edges as given, int64 `[2, E]`."""
        return self.data.edge_index

    def edges(self, loops: str) -> Tensor:
        """The edges of A, or of A + I, int64 `[2, E]`."""
        if loops == "A":
            return self.edge_index
        nodes = torch.arange(self.num_nodes)
        loop = torch.stack([nodes, nodes])
        edges: Tensor = self.kept(("edges", loops), lambda: torch.cat([self.edge_index, loop], 1))
        return edges

    def csr(self, loops: str) -> tuple[Tensor, Tensor]:
        """Row pointers int64 `[N + 1]` and sources int32 `[E]` by target, of A or A + I."""

        def make() -> tuple[Tensor, Tensor]:
            hag = hp.build_hag(self.edges(loops), num_nodes=self.num_nodes, method="none")
            return hag.row_ptr, hag.col

        arrays: tuple[Tensor, Tensor] = self.kept(("csr", loops), make)
        return arrays

    def hag(self, method: str, loops: str, width: int, choose: str | None = None) -> hp.HAG:
        """A HAG for features of this width, with its program for A or A + I.

        Where `choose` is given, every run takes that candidate.
        """
        built: hp.HAG = self.kept(
            ("hag", method, loops, width, choose),
            lambda: self.build(method, loops, width, choose=choose)[0],
        )
        return built

    def build(
        self, method: str, loops: str, width: int = 64, **options: Any
    ) -> tuple[hp.HAG, float]:
        """Builds a HAG anew, with more options of `build_hag`; the HAG and the seconds."""
        start = time.perf_counter()
        hag = hp.build_hag(
            self.edge_index,
            num_nodes=self.num_nodes,
            ptr=self.data.graph_ptr,
            method=method,
            self_loops=LOOPS[loops],
            width=width,
            progress=False,
            **options,
        )
        return hag, time.perf_counter() - start

    def reverse_hag(self, method: str) -> hp.HAG:
        """The HAG of the reversed edges, as gradients run on it, of a graph that has a reverse.

        A symmetric graph is its own reverse: of its edges those to a node with a larger id count.
        """
        edges = self.edge_index
        if self.is_symmetric:
            edges = edges[:, edges[0] <= edges[1]]
        ptr = self.data.graph_ptr
        hag = hp.build_hag(
            edges, num_nodes=self.num_nodes, ptr=ptr, method=method, self_loops=(), progress=False
        )
        # The graph forward stays alive with it: the two know each other weakly.
        self.kept(("forward", method), lambda: hag)
        return hag.transpose()

    @cached_property
    def is_symmetric(self) -> bool:
        """Whether every edge is there in both directions."""
        return bool(hp.build_hag(self.edge_index, num_nodes=self.num_nodes,
                                 method="none").is_symmetric)  # fmt: skip

    def features(self, width: int) -> Tensor:
        """Random normal features, float32 `[N, width]`, the same for the same seed."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(self.num_nodes, width, generator=generator)


def _power_law(seed: int) -> GraphData:
    """About ten million edges, of which few nodes have many."""
    edges = torch.from_numpy(generators.power_law(POWER_LAW_NODES, seed=seed))
    source = f"generated: power-law degrees, seed {seed}"
    return GraphData(POWER_LAW, source, edges, POWER_LAW_NODES)


def _ten_nodes(seed: int) -> GraphData:
    """Twenty random pairs among ten nodes, both directions."""
    pairs = torch.randint(10, (2, 20), generator=torch.Generator().manual_seed(seed))
    edges = torch.cat([pairs, pairs.flip(0)], dim=1)
    return GraphData(TEN_NODES, f"generated: twenty random pairs, seed {seed}", edges, 10)


def _communities(name: str, seed: int) -> GraphData:
    """Communities of 2,000 nodes with heavy-tailed degrees."""
    nodes, degree = SCALED[name]
    edges = generators.communities(nodes, degree, exponent=3.5, seed=seed)
    return GraphData(name, f"generated, seed {seed}", torch.from_numpy(edges), nodes)


def memory_bytes() -> int | None:
    """Bytes of main memory of this process now; None where that is not known."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
