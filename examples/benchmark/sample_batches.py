"""Mini-batches as PyG's `NeighborLoader` yields them, drawn with numpy.

PyG's own samplers need pyg-lib or torch-sparse. What a model is given is the same: the nodes of a
batch in the order in which they were met, seeds first, and for each hop the edges that lead to the
nodes of the hop before, relabelled and sorted by target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Batch:
    """A sampled batch.

    Attributes:
        n_id: the nodes, in the graph's numbers, `[N]`.
        edge_index: between them, int64 `[2, E]`, sorted by target.
        num_sampled_nodes: of each hop, that of the seeds first.
        num_sampled_edges: of each hop.
    """

    n_id: Tensor
    edge_index: Tensor
    num_sampled_nodes: list[int]
    num_sampled_edges: list[int]


class Sampler:
    """Draws sources of nodes without replacement, hop after hop.

    Args:
        edge_index: of the graph, `[2, E]`.
        num_nodes: of the graph.
        fan_out: how many sources at most, hop by hop.
        seed: of the draws.
    """

    def __init__(
        self, edge_index: Tensor, num_nodes: int, fan_out: Sequence[int], seed: int = 0
    ) -> None:
        source, target = edge_index.numpy()
        order = np.argsort(target, kind="stable")
        self.col = source[order].astype(np.int64)
        self.row_ptr = np.zeros(num_nodes + 1, np.int64)
        np.cumsum(np.bincount(target, minlength=num_nodes), out=self.row_ptr[1:])
        self.fan_out = list(fan_out)
        self.random = np.random.default_rng(seed)
        self.place = np.full(num_nodes, -1, np.int64)  # of a node in the batch that is drawn

    def batch(self, seeds: Array) -> Batch:
        """The batch of some seeds, each of which stands there once."""
        place = self.place
        nodes = [seeds]
        place[seeds] = np.arange(len(seeds))
        count, frontier, first = len(seeds), seeds, 0
        sources, targets = [], []
        for most in self.fan_out:
            source, position = self._drawn(frontier, most)
            new = source[place[source] < 0]
            _, at = np.unique(new, return_index=True)
            new = new[np.sort(at)]  # in the order in which they are met
            place[new] = count + np.arange(len(new))
            sources.append(place[source])
            targets.append(first + position)
            first, count, frontier = count, count + len(new), new
            nodes.append(new)
        n_id = np.concatenate(nodes)
        place[n_id] = -1
        edges = np.stack([np.concatenate(sources), np.concatenate(targets)])
        return Batch(
            torch.from_numpy(n_id),
            torch.from_numpy(edges),
            [len(of_hop) for of_hop in nodes],
            [len(of_hop) for of_hop in sources],
        )

    def _drawn(self, nodes: Array, most: int) -> tuple[Array, Array]:
        """Sources of some nodes, and the places of these nodes, which increase."""
        degree = self.row_ptr[nodes + 1] - self.row_ptr[nodes]
        position = np.repeat(np.arange(len(nodes)), degree)
        before = np.cumsum(degree) - degree
        edge = np.arange(len(position)) - before[position] + self.row_ptr[nodes][position]
        order = np.lexsort((self.random.random(len(position)), position))
        rank = np.arange(len(position)) - before[position]
        kept = order[rank < most]
        return self.col[edge[kept]], position[kept]
