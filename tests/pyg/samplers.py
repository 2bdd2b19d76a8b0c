"""PyG's loaders where PyG's compiled samplers are not: neighbours and subgraphs drawn in Python.

All but the drawing is PyG's own: what surrounds it, `NeighborLoader` to `HGTLoader`'s batches,
filters, transforms and negative samples run as with pyg-lib. What is drawn lies as pyg-lib lays it:
the nodes in the order in which they were met, seeds first; edges hop by hop, sorted by target.
"""

from __future__ import annotations

import random
import warnings
from typing import Any

import torch
from torch import Tensor
from torch_geometric.loader import ClusterData
from torch_geometric.sampler import HeteroSamplerOutput, NeighborSampler, SamplerOutput

ONLY = "all"  # the one type of nodes of a graph without types


class PythonSampler(NeighborSampler):
    """PyG's `NeighborSampler`, without replacement and without times."""

    def __init__(self, data: Any, num_neighbors: Any, **how: Any) -> None:
        with warnings.catch_warnings():  # that pyg-lib is not there
            warnings.simplefilter("ignore")
            super().__init__(data, num_neighbors, **how)

    def _sample(self, seed: Any, seed_time: Any = None, **how: Any) -> Any:
        if not isinstance(seed, dict):
            edges = {(ONLY, "to", ONLY): (self.colptr, self.row)}
            fan_out = {(ONLY, "to", ONLY): self.num_neighbors.get_mapped_values()}
            node, row, col, edge, nodes_of_hop, edges_of_hop = draw({ONLY: seed}, edges, fan_out)
            (found,) = zip(row.values(), col.values(), edge.values(), strict=True)
            counts = nodes_of_hop[ONLY], *edges_of_hop.values()
            return SamplerOutput(
                node[ONLY], *found, num_sampled_nodes=counts[0], num_sampled_edges=counts[1]
            )
        edges = {
            kind: (self.colptr_dict["__".join(kind)], self.row_dict["__".join(kind)])
            for kind in self.edge_types
        }
        mapped = self.num_neighbors.get_mapped_values(self.edge_types)
        fan_out = {kind: mapped["__".join(kind)] for kind in self.edge_types}
        node, row, col, edge, nodes_of_hop, edges_of_hop = draw(seed, edges, fan_out)
        return HeteroSamplerOutput(
            node, row, col, edge, num_sampled_nodes=nodes_of_hop, num_sampled_edges=edges_of_hop
        )


def draw(seed: dict[str, Tensor], edges: dict[Any, tuple[Tensor, Tensor]], fan_out: Any) -> Any:
    """Nodes by type; sources, targets and edges by kind; counts of each hop of nodes and edges."""
    types = dict.fromkeys([t for kind in edges for t in (kind[0], kind[-1])])
    nodes: Any = {t: seed[t].tolist() if t in seed else [] for t in types}
    place = {t: {v: i for i, v in enumerate(nodes[t])} for t in types}
    frontier = {t: (0, len(nodes[t])) for t in types}
    found: Any = {kind: ([], [], []) for kind in edges}
    nodes_of_hop = {t: [len(nodes[t])] for t in types}
    edges_of_hop: Any = {kind: [] for kind in edges}
    for hop in range(max(map(len, fan_out.values()))):
        for kind, (colptr, row) in edges.items():
            source, target = kind[0], kind[-1]
            rows, cols, drawn = found[kind]
            before = len(rows)
            for position in range(*frontier[target]):
                first, last = colptr[nodes[target][position]], colptr[nodes[target][position] + 1]
                every, most = range(int(first), int(last)), fan_out[kind][hop]
                few = 0 <= most < len(every)
                for edge in sorted(random.sample(every, most)) if few else every:
                    neighbour = int(row[edge])
                    if neighbour not in place[source]:
                        place[source][neighbour] = len(nodes[source])
                        nodes[source].append(neighbour)
                    rows.append(place[source][neighbour])
                    cols.append(position)
                    drawn.append(edge)
            edges_of_hop[kind].append(len(rows) - before)
        for t in types:
            frontier[t] = frontier[t][1], len(nodes[t])
            nodes_of_hop[t].append(len(nodes[t]) - frontier[t][0])
    parts = [
        {kind: torch.tensor(found[kind][i], dtype=torch.int64) for kind in edges} for i in range(3)
    ]
    node = {t: torch.tensor(nodes[t], dtype=torch.int64) for t in types}
    return node, *parts, nodes_of_hop, edges_of_hop


class Matrix:
    """What GraphSAINT's and ShaDow's samplers ask of torch_sparse's `SparseTensor`, in Python."""

    def __init__(
        self,
        row: Tensor | None = None,
        rowptr: Tensor | None = None,
        col: Tensor | None = None,
        value: Tensor | None = None,
        sparse_sizes: tuple[int, int] = (0, 0),
        **trust: Any,
    ) -> None:
        assert col is not None
        assert value is not None
        if row is None:
            assert rowptr is not None
            row = torch.repeat_interleave(torch.arange(sparse_sizes[0]), rowptr.diff())
        order = torch.argsort(row * sparse_sizes[1] + col, stable=True)
        self._coo = row[order], col[order], value[order]
        self._sizes = sparse_sizes
        self.storage = self

    def coo(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._coo

    def csr(self) -> tuple[Tensor, Tensor, Tensor]:
        row, col, value = self._coo
        starts = torch.zeros(self._sizes[0] + 1, dtype=torch.int64)
        starts[1:] = torch.bincount(row, minlength=self._sizes[0]).cumsum(0)
        return starts, col, value

    def t(self) -> Matrix:
        row, col, value = self._coo
        return Matrix(row=col, col=row, value=value, sparse_sizes=self._sizes[::-1])

    def sparse_size(self, dim: int) -> int:
        return self._sizes[dim]

    def row(self) -> Tensor:
        return self._coo[0]

    def value(self) -> Tensor:
        return self._coo[2]

    def rowcount(self) -> Tensor:
        return torch.bincount(self._coo[0], minlength=self._sizes[0])

    def colcount(self) -> Tensor:
        return torch.bincount(self._coo[1], minlength=self._sizes[1])

    def saint_subgraph(self, nodes: Tensor) -> tuple[Matrix, Tensor]:
        row, col, value = self._coo
        place = torch.full((self._sizes[0],), -1).index_put((nodes,), torch.arange(len(nodes)))
        inside = (place[row] >= 0) & (place[col] >= 0)
        sizes = len(nodes), len(nodes)
        part = Matrix(
            row=place[row[inside]], col=place[col[inside]], value=value[inside], sparse_sizes=sizes
        )
        return part, value[inside]

    def random_walk(self, start: Tensor, length: int) -> Tensor:
        starts, col, _ = self.csr()
        walks = [start.tolist()]
        for _ in range(length):
            ends = [
                int(col[random.randrange(int(starts[v]), int(starts[v + 1]))])
                if starts[v] < starts[v + 1]
                else v
                for v in walks[-1]
            ]
            walks.append(ends)
        return torch.tensor(walks).t().contiguous()


def ego_nets(
    starts: Tensor, col: Tensor, roots: Tensor, depth: int, most: int, replace: bool
) -> tuple[Tensor, ...]:
    """torch_sparse's `ego_k_hop_sample_adj`: the graph around each root, one after the other."""
    nodes: list[int] = []
    counts, rows, columns, edges, ends, at = [], [], [], [], [0], []
    for root in roots.tolist():
        place, frontier = {root: 0}, [root]
        for _ in range(depth):
            met = []
            for v in frontier:
                near = col[int(starts[v]) : int(starts[v + 1])].tolist()
                met += random.sample(near, most) if 0 <= most < len(near) else near
            frontier = [v for v in dict.fromkeys(met) if v not in place]
            place |= {v: len(place) + i for i, v in enumerate(frontier)}
        for v, i in place.items():
            before = len(columns)
            for e in range(int(starts[v]), int(starts[v + 1])):
                if int(col[e]) in place:
                    rows.append(len(nodes) + i)
                    columns.append(len(nodes) + place[int(col[e])])
                    edges.append(e)
            counts.append(len(columns) - before)
        at.append(len(nodes))
        nodes += place
        ends.append(len(nodes))
    row_ptr = torch.tensor([0, *counts]).cumsum(0)
    found = row_ptr, *map(torch.tensor, (columns, nodes, edges, ends, at))
    return tuple(part.long() for part in found)


class StretchData(ClusterData):
    """PyG's `ClusterData`, whose clusters are stretches of nodes in place of METIS's."""

    def _metis(self, edge_index: Tensor, num_nodes: int) -> Tensor:
        return torch.arange(num_nodes) * self.num_parts // num_nodes
