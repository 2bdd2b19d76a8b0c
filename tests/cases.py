"""Graphs on which operators are tested, and the options that they take."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MODES = (False, "add", "fill")
TIES = ("even", "first", "last")


def random_graph(num_src: int, num_dst: int, num_edges: int, seed: int = 0) -> Tensor:
    """Some edges are duplicates, some self-loops; the last rows have no edge."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(0, max(num_src, 1), (num_edges,), generator=generator)
    target = torch.randint(0, max(num_dst - 2, 1), (num_edges,), generator=generator)
    edges = torch.stack([source, target])
    return torch.cat([edges, edges[:, : num_edges // 8]], dim=1)


def draw_graph(data: st.DataObject, square: bool = False) -> tuple[Tensor, int, int]:
    """Directed, with duplicates, self-loops, isolated nodes; sometimes without an edge."""
    num_src = data.draw(st.integers(1, 12))
    num_dst = num_src if square else data.draw(st.integers(1, 12))
    pairs = st.tuples(st.integers(0, num_src - 1), st.integers(0, num_dst - 1))
    edges = torch.tensor(data.draw(st.lists(pairs, max_size=40)), dtype=torch.int64)
    return edges.view(-1, 2).t(), num_src, num_dst


def bags(nodes: int, count: int, seed: int, density: float = 0.4) -> tuple[Tensor, Tensor]:
    """Edges `[2, E]` of induced subgraphs side by side, and the node that each of theirs is."""
    rng = torch.Generator().manual_seed(seed)
    whole = torch.rand(nodes, nodes, generator=rng) < density
    edges, ids, start = [torch.empty(2, 0, dtype=torch.int64)], [], 0
    for _ in range(count):
        kept = torch.nonzero(torch.rand(nodes, generator=rng) < 0.8).flatten()
        edges.append(whole[kept][:, kept].nonzero().t() + start)
        ids.append(kept)
        start += len(kept)
    return torch.cat(edges, 1), torch.cat(ids)
