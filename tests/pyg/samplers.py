"""PyG's loaders where PyG's compiled samplers are not: neighbours drawn in Python.

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


class StretchData(ClusterData):
    """PyG's `ClusterData`, whose clusters are stretches of nodes in place of METIS's."""

    def _metis(self, edge_index: Tensor, num_nodes: int) -> Tensor:
        return torch.arange(num_nodes) * self.num_parts // num_nodes
