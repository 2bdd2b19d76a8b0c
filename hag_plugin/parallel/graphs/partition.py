"""Assigning nodes to ranks, so that few edges are cut and every rank has about as many nodes.

Strategies that split rows fetch what other parts own: `partition` numbers the nodes anew so that
each part is a contiguous range. METIS does it where pymetis is installed; otherwise nodes take the
label of most of their neighbours, with bounds on the size of parts (label propagation: Raghavan et
al., arXiv 0709.2938; with bounds: Meyerhenke, Sanders and Schulz, arXiv 1402.3281).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hag_plugin.arguments import check_choice, whole
from hag_plugin.extras import needed_by
from hag_plugin.hag.graph import MAX_NODES, check_edge_index
from hag_plugin.parallel.layouts import chunk_sizes
from hag_plugin.saved import set_module

METHODS = ("auto", "contiguous", "metis", "labels")
IMBALANCE = 1.03  # nodes of the largest part over the mean, as METIS has it by default
CLUSTERS = 32  # that label propagation makes for each part, before it packs them
SWEEPS = 20
CHUNKS = 8  # of nodes that choose their labels at once


@set_module("hag_plugin.parallel")
@dataclass(frozen=True, eq=False)
class Partition:
    """Nodes numbered anew, part by part. Give it as `part`, with data in that numbering.

    Attributes:
        order: int64 `[N]`, the node that now has each number.
        rows: int64 `[P]`, nodes of each part.
        method: "contiguous", "metis" or "labels".
    """

    order: np.ndarray
    rows: np.ndarray
    method: str

    @property
    def part(self) -> np.ndarray:
        """int64 `[N]`, the part of each node in the new numbering: increasing."""
        return np.repeat(np.arange(len(self.rows)), self.rows)

    def __call__(self, parts: int) -> np.ndarray:
        """`part`, as `measure`, `plan` and `parallelize` ask for it.

        Raises:
            ValueError: the partition has another number of parts.
        """
        if parts != len(self.rows):
            raise ValueError(f"the partition has {len(self.rows)} parts; {parts} are wanted")
        return self.part

    @property
    def position(self) -> np.ndarray:
        """int64 `[N]`, the number that each node has now."""
        position = np.empty_like(self.order)
        position[self.order] = np.arange(len(self.order))
        return position

    def renumber(self, edge_index: Tensor) -> Tensor:
        """Edges `[2, E]` in the new numbering."""
        return torch.from_numpy(self.position).to(edge_index.device)[edge_index]

    def arrange(self, x: Tensor) -> Tensor:
        """Rows `[N, ...]` of nodes in the new order."""
        return x[torch.from_numpy(self.order).to(x.device)]

    def apply(self, data: Any) -> Any:
        """A PyG `Data` in the new numbering: all that has a row for each node, and the edges."""
        out = data.clone()
        for key, value in data.to_dict().items():
            if isinstance(value, Tensor) and data.is_node_attr(key):
                out[key] = self.arrange(value)
        out.edge_index = self.renumber(data.edge_index)
        return out

    def undo(self, x: Tensor) -> Tensor:
        """Rows in the new order, back in the old one."""
        return x[torch.from_numpy(self.position).to(x.device)]


@set_module("hag_plugin.parallel")
def partition(
    edge_index: Tensor, num_nodes: int, parts: int, method: str = "auto", seed: int = 0
) -> Partition:
    """Assigns the nodes of a graph to parts.

    Args:
        edge_index: int64 `[2, E]`; directions do not matter.
        num_nodes: N.
        parts: P.
        method: "contiguous": nodes keep their numbers. "metis": as pymetis does it. "labels": by
            label propagation; no part is larger than 1.03 N / P. "auto": METIS or labels, or the
            contiguous blocks if these need no more rows of others.
        seed: of label propagation.

    Raises:
        ValueError: an argument is wrong.
        ImportError: "metis", and pymetis is not installed.

    Example:
        >>> edges = torch.tensor([[0, 2, 4, 1, 3, 5], [2, 4, 0, 3, 5, 1]])  # even and odd nodes
        >>> found = partition(edges, num_nodes=6, parts=2, method="labels")
        >>> sorted(sorted(p.tolist()) for p in np.split(found.order, [3]))
        [[0, 2, 4], [1, 3, 5]]
    """
    check_choice("method", method, METHODS)
    check_edge_index(edge_index)
    num_nodes, parts = (
        whole("num_nodes", num_nodes, 0, MAX_NODES),
        whole("parts", parts, 1, MAX_NODES),
    )
    seed = whole("seed", seed, 0, 2**63 - 1)
    edges = edge_index.detach().cpu().numpy()
    if edges.size and not (edges.min() >= 0 and edges.max() < num_nodes):
        raise ValueError(
            f"edge_index has ids {edges.min()} to {edges.max()}; expected 0 to {num_nodes - 1}"
        )
    plain = np.repeat(np.arange(parts), chunk_sizes(num_nodes, parts))
    if method == "contiguous" or parts == 1 or num_nodes <= parts:
        return _numbered(plain, parts, "contiguous")
    kind, assign = ("metis", _metis) if method == "metis" else ("labels", _labels)
    if method == "auto" and has_metis():
        kind, assign = "metis", _metis
    owner = assign(_Neighbours.of(edges, num_nodes), parts, seed)
    if method == "auto" and _halo(edges, plain) <= _halo(edges, owner):
        return _numbered(plain, parts, "contiguous")
    return _numbered(owner, parts, kind)


def _numbered(owner: np.ndarray, parts: int, method: str) -> Partition:
    """Nodes of a part stay in their old order."""
    order = np.argsort(owner, kind="stable")
    return Partition(order, np.bincount(owner, minlength=parts).astype(np.int64), method)


def _halo(edges: np.ndarray, owner: np.ndarray) -> int:
    """Rows that parts read of others."""
    source, target = edges
    cut = owner[source] != owner[target]
    return len(np.unique(source[cut] * (int(owner.max()) + 1) + owner[target[cut]]))


@dataclass(frozen=True)
class _Neighbours:
    """The graph without directions, loops and repeated edges: `index[start[v]:start[v + 1]]`."""

    start: np.ndarray
    index: np.ndarray

    @classmethod
    def of(cls, edges: np.ndarray, nodes: int) -> _Neighbours:
        source, target = np.concatenate([edges, edges[::-1]], axis=1)
        key = np.sort((target * nodes + source)[source != target])
        key = key[np.diff(key, prepend=-1) > 0]
        degree = np.bincount(key // nodes, minlength=nodes)
        return cls(np.concatenate([[0], np.cumsum(degree)]), key % nodes)

    def gather(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each edge at one of `nodes`: which of them, and the node at the other end."""
        degree = self.start[nodes + 1] - self.start[nodes]
        at = np.repeat(np.arange(len(nodes)), degree)
        first = np.repeat(self.start[nodes] - np.cumsum(degree) + degree, degree)
        return at, self.index[first + np.arange(len(at))]


# METIS ----------------------------------------------------------------------------------------


def has_metis() -> bool:
    """Whether METIS is installed."""
    try:
        import pymetis  # noqa: F401
    except ImportError:
        return False
    return True


def _metis(graph: _Neighbours, parts: int, seed: int) -> np.ndarray:
    with needed_by("method 'metis'"):
        import pymetis
    options = pymetis.Options(seed=seed)
    adjacency = pymetis.CSRAdjacency(graph.start, graph.index)
    return np.asarray(pymetis.part_graph(parts, adjacency, options=options)[1], np.int64)


# Label propagation ----------------------------------------------------------------------------


def _labels(graph: _Neighbours, parts: int, seed: int) -> np.ndarray:
    """Clusters that are dense, packed into parts, at whose borders nodes then change sides."""
    nodes = len(graph.start) - 1
    random = np.random.default_rng(seed)
    largest = int(np.ceil(IMBALANCE * nodes / parts))
    cluster = _propagate(graph, np.arange(nodes), max(nodes // (parts * CLUSTERS), 1), random)
    owner = _pack(graph, cluster, parts, largest)
    return _propagate(graph, owner, largest, random)


def _propagate(
    graph: _Neighbours, labels: np.ndarray, largest: int, random: np.random.Generator
) -> np.ndarray:
    """Nodes take the label that most neighbours have, while no label has more than `largest`.

    Nodes that want to change places do so in pairs, others where there is room.
    """
    labels = labels.copy()
    sizes = np.bincount(labels)
    kinds = len(sizes)
    for _ in range(SWEEPS):
        moved = 0
        for nodes in np.array_split(random.permutation(len(labels)), CHUNKS):
            best, gain = _preferred(graph, nodes, labels)
            order = np.argsort(-gain, kind="stable")[: np.count_nonzero(gain > 0)]
            nodes, best = nodes[order], best[order]  # those that gain most go first
            there, back = labels[nodes] * kinds + best, best * kinds + labels[nodes]
            swaps = _place(there) < _count(there, back)
            alone = ~swaps
            fits = swaps.copy()
            fits[alone] = _place(best[alone]) < (largest - sizes)[best[alone]]
            nodes, best = nodes[fits], best[fits]
            np.subtract.at(sizes, labels[nodes], 1)
            np.add.at(sizes, best, 1)
            labels[nodes] = best
            moved += len(nodes)
        if not moved:
            break
    return labels


def _place(keys: np.ndarray) -> np.ndarray:
    """How many equal keys come before each."""
    order = np.argsort(keys, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(keys)) - np.searchsorted(keys[order], keys[order])
    return place


def _count(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """How often each of `wanted` is among the keys."""
    ordered = np.sort(keys)
    return np.searchsorted(ordered, wanted, "right") - np.searchsorted(ordered, wanted)


def _preferred(
    graph: _Neighbours, nodes: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each node the label that most neighbours have, and how many more of them have it than
    have the node's own.
    """
    at, neighbour = graph.gather(nodes)
    kinds = len(labels)
    key, count = np.unique(at * kinds + labels[neighbour], return_counts=True)
    node, label = key // kinds, key % kinds
    best, gain = labels[nodes], np.zeros(len(nodes), np.int64)
    own = label == best[node]
    gain[node[own]] = -count[own]
    most = np.lexsort((own, count, node))  # of equal counts, the own label comes last
    most = most[np.diff(node[most], append=len(nodes)) > 0]
    best[node[most]] = label[most]
    gain[node[most]] += count[most]
    return best, gain


def _pack(graph: _Neighbours, cluster: np.ndarray, parts: int, largest: int) -> np.ndarray:
    """Clusters, largest first, go to the part they have most edges to among those with room."""
    _, cluster, sizes = np.unique(cluster, return_inverse=True, return_counts=True)
    nodes = len(cluster)
    source = np.repeat(cluster, np.diff(graph.start))
    target = cluster[graph.index]
    pair, weight = np.unique(source * nodes + target, return_counts=True)
    start = np.searchsorted(pair // nodes, np.arange(len(sizes) + 1))
    part = np.full(len(sizes), -1)
    load = np.zeros(parts, np.int64)
    for c in np.argsort(-sizes, kind="stable"):
        edges = slice(start[c], start[c + 1])
        ends = part[pair[edges] % nodes]
        edges_to = np.bincount(ends[ends >= 0], weight[edges][ends >= 0], minlength=parts)
        pull = edges_to * (1 - load / largest)  # as in linear deterministic greedy
        room = np.flatnonzero(load + sizes[c] <= largest)
        if len(room):
            k = max(room, key=lambda k: (pull[k], -load[k]))
            part[c], load[k] = k, load[k] + sizes[c]
    owner = part[cluster]
    left = np.flatnonzero(owner < 0)  # clusters that fit nowhere as a whole
    owner[left] = np.repeat(np.arange(parts), largest - load)[: len(left)]
    return owner
