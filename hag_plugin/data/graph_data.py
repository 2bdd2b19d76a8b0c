"""`GraphData`: a graph with what there is to learn on it, checked on the way in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hag_plugin.files import DatasetError

MAX_ID = 2**31 - 2


@dataclass(frozen=True, eq=False)
class GraphData:
    """A graph, or many graphs side by side, with features and labels where there are any.

    Attributes:
        name: what to call it.
        source: where it comes from, in words.
        edge_index: int64 `[2, E]`; row 0 sources, row 1 targets.
        num_nodes: N.
        x: float32 `[N, F]`, or None.
        y: int64 `[N]`, or `[G]` where `graph_ptr` is given and labels are for graphs; -1: unknown.
        graph_ptr: int64 `[G + 1]`, the first node of each graph, or None for one graph.
        train_mask: bool `[N]`, or None. `val_mask` and `test_mask` likewise.
    """

    name: str
    source: str
    edge_index: Tensor
    num_nodes: int
    x: Tensor | None = None
    y: Tensor | None = None
    graph_ptr: Tensor | None = None
    train_mask: Tensor | None = None
    val_mask: Tensor | None = None
    test_mask: Tensor | None = None

    def __post_init__(self) -> None:
        for wrong in _problems(self):
            raise DatasetError(f"{self.name}: {wrong}")

    @property
    def num_edges(self) -> int:
        """Number of directed edges, duplicates counted."""
        return self.edge_index.shape[1]

    @property
    def num_graphs(self) -> int:
        """G; 1 for one graph."""
        return 1 if self.graph_ptr is None else self.graph_ptr.shape[0] - 1

    @property
    def num_classes(self) -> int:
        """The largest label + 1; 0 without labels."""
        return 0 if self.y is None or not self.y.numel() else max(int(self.y.max()) + 1, 0)

    @property
    def labels_graphs(self) -> bool:
        """Whether `y` labels whole graphs, not nodes."""
        return self.graph_ptr is not None and self.y is not None and len(self.y) == self.num_graphs


def _problems(data: GraphData) -> list[str]:
    """What is wrong with a graph, in words; the cheap checks first."""
    edges, n = data.edge_index, data.num_nodes
    if edges.dim() != 2 or edges.shape[0] != 2 or edges.dtype != torch.int64:
        return [f"edge_index is {edges.dtype} {list(edges.shape)}; expected int64 [2, E]"]
    if not 0 <= n <= MAX_ID + 1:
        return [f"num_nodes is {n}; expected 0 to 2^31 - 1"]
    if edges.numel() and not (int(edges.min()) >= 0 and int(edges.max()) < n):
        bad = int(((edges < 0) | (edges >= n)).any(0).nonzero()[0])
        return [f"edge {bad} is {edges[:, bad].tolist()}; expected ids from 0 to {n - 1}"]
    wrong = []
    if data.x is not None and (data.x.dim() != 2 or data.x.shape[0] != n):
        wrong.append(f"x has shape {list(data.x.shape)}; expected [{n}, F], a row for each node")
    if data.graph_ptr is not None:
        ptr = data.graph_ptr
        if ptr.dim() != 1 or len(ptr) < 2 or int(ptr[0]) != 0 or int(ptr[-1]) != n:
            return [*wrong, f"graph_ptr does not run from 0 to the number of nodes, {n}"]
        if bool((ptr.diff() < 0).any()):
            return [*wrong, "graph_ptr decreases; expected the first node of each graph in order"]
        graph = torch.repeat_interleave(torch.arange(len(ptr) - 1), ptr.diff())
        crosses = graph[edges[0]] != graph[edges[1]]
        if bool(crosses.any()):
            bad = int(crosses.nonzero()[0])
            wrong.append(f"edge {bad}, {edges[:, bad].tolist()}, links two graphs of graph_ptr")
    sizes = {n} if data.graph_ptr is None else {n, data.num_graphs}
    if data.y is not None and (data.y.dim() != 1 or len(data.y) not in sizes):
        wrong.append(
            f"y has shape {list(data.y.shape)} for {n} nodes in {data.num_graphs} graph(s)"
        )
    for name in ("train_mask", "val_mask", "test_mask"):
        mask = getattr(data, name)
        if mask is not None and (mask.dtype != torch.bool or mask.shape != (n,)):
            wrong.append(f"{name} is {mask.dtype} {list(mask.shape)}; expected bool [{n}]")
    return wrong
