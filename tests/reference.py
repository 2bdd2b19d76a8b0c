"""Slow, obvious versions of everything fast. The tests trust these, so they stay short.

Graphs are `[2, E]` edge lists (row 0 sources, row 1 targets), never a HAG, unless the function is
about a HAG's program.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hag_plugin.hag.program import Program, SelfLoops


def with_self_loops(edge_index: Tensor, num_dst: int, self_loops: SelfLoops) -> Tensor:
    """The edge list `[2, E']` after `self_loops`: False, "add" (A + I) or "fill" (one a node)."""
    if self_loops is False:
        return edge_index
    if self_loops == "fill":
        edge_index = edge_index[:, edge_index[0] != edge_index[1]]
    loops = torch.arange(num_dst, dtype=edge_index.dtype)
    return torch.cat([edge_index, torch.stack([loops, loops])], dim=1)


def aggregate(
    x: Tensor,
    edge_index: Tensor,
    num_dst: int,
    reduce: str = "sum",
    *,
    self_loops: SelfLoops = False,
    source_scale: Tensor | None = None,
    target_scale: Tensor | None = None,
) -> Tensor:
    """`y_i = t_i * REDUCE_j(s_j * x_j)`, one message a edge, in the dtype of `x`.

    Args:
        x: `[*, N_src, F]`.
        edge_index: `[2, E]`.
        num_dst: number of rows of the result `[*, num_dst, F]`.
        reduce: "sum", "mean", "max" or "min".
        self_loops: False, "add" or "fill".
        source_scale: `[N_src]` or None.
        target_scale: `[num_dst]` or None.
    """
    source, target = with_self_loops(edge_index.long(), num_dst, self_loops)
    message = x if source_scale is None else x * source_scale.unsqueeze(-1)
    message = message.index_select(-2, source)
    zeros = x.new_zeros(*x.shape[:-2], num_dst, x.shape[-1], dtype=message.dtype)
    if reduce in ("sum", "mean"):
        y = zeros.index_add(-2, target, message)
        if reduce == "mean":
            count = torch.bincount(target, minlength=num_dst).clamp(min=1)
            y = y / count.unsqueeze(-1).to(y.dtype)
    else:
        index = target.unsqueeze(-1).expand_as(message)
        y = zeros.scatter_reduce(-2, index, message, f"a{reduce}", include_self=False)
    return y if target_scale is None else y * target_scale.unsqueeze(-1)


def winners(
    x: Tensor, edge_index: Tensor, num_dst: int, *, largest: bool, last: bool
) -> tuple[Tensor, Tensor]:
    """Max or min, and the source that each value comes from, edge by edge.

    Args:
        x: `[N_src, F]`. NaN wins over numbers.
        edge_index: `[2, E]`, self-loops included.
        num_dst: number of rows of both results, `[num_dst, F]`.
        largest: max, otherwise min.
        last: of sources that tie the largest wins, otherwise the smallest.

    Returns:
        The values, 0 where a node has no source, and the sources, -1 there.
    """
    y = x.new_zeros(num_dst, x.shape[1])
    winner = torch.full(y.shape, -1)
    source, target = edge_index.long()
    order = torch.argsort(source, descending=last, stable=True)  # a later one must be better
    for j, i in zip(source[order].tolist(), target[order].tolist(), strict=True):
        better = x[j] > y[i] if largest else x[j] < y[i]
        better |= x[j].isnan() & ~y[i].isnan()
        better |= winner[i] < 0
        y[i] = torch.where(better, x[j], y[i])
        winner[i] = torch.where(better, j, winner[i])
    return y, winner


def weighted_aggregate(
    x: Tensor,
    edge_index: Tensor,
    weight: Tensor,
    num_dst: int,
    reduce: str = "sum",
    *,
    self_loops: SelfLoops = False,
    loop_weight: Tensor | None = None,
    source_scale: Tensor | None = None,
    target_scale: Tensor | None = None,
) -> Tensor:
    """`y_i = t_i * REDUCE_e(w_e * s_j * x_j)`, one message an edge, in the dtype of `x`.

    Args:
        x: `[*, N_src, F]`.
        edge_index: `[2, E]`.
        weight: `[E]`.
        num_dst: number of rows of the result `[*, num_dst, F]`.
        reduce: "sum" or "mean" (by the number of edges).
        self_loops: False, "add" or "fill".
        loop_weight: `[num_dst]`, of the loops that `self_loops` appends; None: 1.
        source_scale: `[N_src]` or None.
        target_scale: `[num_dst]` or None.
    """
    if self_loops == "fill":
        weight = weight[edge_index[0] != edge_index[1]]
    if self_loops is not False:
        ones = weight.new_ones(num_dst)
        weight = torch.cat([weight, ones if loop_weight is None else loop_weight])
    source, target = with_self_loops(edge_index.long(), num_dst, self_loops)
    message = x if source_scale is None else x * source_scale.unsqueeze(-1)
    message = message.index_select(-2, source) * weight.unsqueeze(-1)
    zeros = message.new_zeros(*x.shape[:-2], num_dst, x.shape[-1])
    y = zeros.index_add(-2, target, message)
    if reduce == "mean":
        count = torch.bincount(target, minlength=num_dst).clamp(min=1)
        y = y / count.unsqueeze(-1).to(y.dtype)
    return y if target_scale is None else y * target_scale.unsqueeze(-1)


def attend(
    value: Tensor,
    edge_index: Tensor,
    num_dst: int,
    *,
    key: Tensor | None = None,
    query: Tensor | None = None,
    score: str = "given",
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    edges: Tensor | None = None,
    edge_query: Tensor | None = None,
    projection: Tensor | None = None,
    mask: Tensor | None = None,
    slope: float = 1.0,
    normalise: str = "softmax",
) -> Tensor:
    """Attention with a message for each edge and head; what is of edges is in their order.

    Arguments are those of `hag_plugin.ops.attention.attend`.
    """
    source, target = edge_index.long()
    leaky_relu = torch.nn.functional.leaky_relu
    s = value.new_zeros(len(source), value.shape[1])
    if score == "vector":
        z = key[source] + query[target]
        if edges is not None:
            z = z + (edges if projection is None else edges @ projection).view(z.shape)
        s = (weight * leaky_relu(z, slope)).sum(-1)
    elif score == "dot":
        s = (key[source] * query[target]).sum(-1)
        if edge_query is not None:
            s = s + (edge_query[target] * edges.unsqueeze(1)).sum(-1)
    elif score == "sum":
        s = s + (0 if key is None else key[source]) + (0 if query is None else query[target])
    s = s if bias is None else s + bias
    p = s if score == "vector" else leaky_relu(s, slope)
    if normalise == "softmax":
        p = softmax(p, target, num_nodes=num_dst)
    elif normalise == "tanh":
        p = p.tanh()
    p = p if mask is None else p * mask
    message = value[source]
    if edge_query is not None:
        sent = edges.unsqueeze(1).expand(-1, value.shape[1], -1)
        message = torch.cat([message, sent], -1)
    message = message * p.unsqueeze(-1)
    return message.new_zeros(num_dst, *message.shape[1:]).index_add(0, target, message)


def softmax(scores: Tensor, target: Tensor, num_nodes: int) -> Tensor:
    """`torch_geometric.utils.softmax` over the edges of each target, `[E, H]`."""
    index = target.unsqueeze(-1).expand_as(scores)
    zeros = scores.new_zeros(num_nodes, scores.shape[1])
    largest = zeros.scatter_reduce(0, index, scores.detach(), "amax", include_self=False)
    e = (scores - largest[target]).exp()
    return e / (zeros.index_add(0, target, e) + 1e-16)[target]


def run_program(program: Program, x: Tensor, reduce: str = "sum") -> Tensor:
    """Walks a program op by op, row by row: `y = P x + d x` for a sum, or max, or min."""

    def combine(rows: list[Tensor]) -> Tensor:
        if not rows:
            return torch.zeros(x.shape[1], dtype=x.dtype)
        stacked = torch.stack(rows)
        if reduce == "sum":
            return stacked.sum(0)
        return stacked.amax(0) if reduce == "max" else stacked.amin(0)

    op_ptr, source = program.op_ptr.tolist(), program.source.tolist()
    target, tile_ptr = program.target.tolist(), program.tile_ptr.tolist()
    hub_row, hub_ptr = program.hub_row.tolist(), program.hub_ptr.tolist()
    rows: dict[int, list[Tensor]] = {}  # sources of y's rows, and of the hubs' partial rows
    for tile in range(len(tile_ptr) - 1):
        scratch: dict[int, Tensor] = {}
        for op in range(tile_ptr[tile], tile_ptr[tile + 1]):
            sources = source[op_ptr[op] : op_ptr[op + 1]]
            value = [x[s] if s >= 0 else scratch[~s] for s in sources]
            if target[op] < 0:
                scratch[~target[op]] = combine(value)
            else:
                rows[target[op]] = value
    for hub, row in enumerate(hub_row):
        rows[row] = [
            combine(rows.pop(program.num_dst + p)) for p in range(hub_ptr[hub], hub_ptr[hub + 1])
        ]
    if program.diagonal:
        for row, value in rows.items():
            value.append(x[row] if reduce != "sum" else program.diagonal * x[row])
    y = torch.zeros(program.num_dst, x.shape[1], dtype=x.dtype)
    for row, value in rows.items():
        y[row] = combine(value)
    return y


def greedy_merges(rows: list[set[int]], num_nodes: int, capacity: int) -> list[tuple[int, int]]:
    """Algorithm 3 of the HAG paper (arXiv 1906.03707), step for step, for a set aggregate.

    While there are fewer than `capacity` intermediates, take the pair with the largest
    redundancy (the number of rows that aggregate both), the smallest pair among equals; if its
    redundancy exceeds 1, make it an intermediate (numbered from `num_nodes` on) and rewire.
    `rows` is changed in place to the final covers.
    """
    merges: list[tuple[int, int]] = []
    while len(merges) < capacity:
        redundancy = Counter(pair for row in rows for pair in combinations(sorted(row), 2))
        if not redundancy:
            break
        pair, count = min(redundancy.items(), key=lambda item: (-item[1], item[0]))
        if count <= 1:
            break
        for row in rows:
            if row.issuperset(pair):
                row.difference_update(pair)
                row.add(num_nodes + len(merges))
        merges.append(pair)
    return merges


def parts_of(
    edge_index: Tensor, owner: Tensor, parts: int, undirected: bool
) -> list[tuple[list[int], list[list[int]], list[int]]]:
    """A graph cut into parts: of each its nodes, by their old numbers; the sources of the edges
    into each of them, and the sources that others have, by the new numbers, which increase by part.
    """
    nodes = [[v for v, p in enumerate(owner.tolist()) if p == part] for part in range(parts)]
    position = {v: i for i, v in enumerate(v for own in nodes for v in own)}
    edges = [(position[u], position[v]) for u, v in edge_index.t().tolist()]
    if undirected:
        edges = list({pair for u, v in edges if u != v for pair in ((u, v), (v, u))})
    found = []
    for own in nodes:
        mine = [position[v] for v in own]
        rows = [sorted(u for u, w in edges if w == v) for v in mine]
        found.append((own, rows, sorted({u for row in rows for u in row} - {*mine})))
    return found


def edges_of_parts(
    edge_index: Tensor, owner: Tensor, parts: int, undirected: bool
) -> list[list[int]]:
    """The numbers of the edges of each part in the order in which `parts_of` has them; of a pair in
    both directions, that of the first edge between the two.
    """
    nodes = [v for part in range(parts) for v, p in enumerate(owner.tolist()) if p == part]
    position = {v: i for i, v in enumerate(nodes)}
    edges = [(position[u], position[v], k) for k, (u, v) in enumerate(edge_index.t().tolist())]
    if undirected:
        first: dict[frozenset[int], int] = {}
        for u, v, k in edges:
            if u != v:
                first.setdefault(frozenset((u, v)), k)
        edges = [(u, v, k) for pair, k in first.items() for u in pair for v in pair if u != v]
    edges.sort(key=lambda e: (e[1], e[0], e[2]))
    mine = [int(owner[nodes[v]]) for _, v, _ in edges]
    return [[e[2] for e, p in zip(edges, mine, strict=True) if p == part] for part in range(parts)]


def fennel(edge_index: Tensor, nodes: int, parts: int, block: int, passes: int) -> list[int]:
    """Fennel's assignment, restreamed: nodes of a block choose at once, gainers go first."""
    near: list[set[int]] = [set() for _ in range(nodes)]
    for u, v in edge_index.t().tolist():
        if u != v:
            near[u].add(v)
            near[v].add(u)
    largest = math.ceil(math.ceil(1.03 * nodes) / parts)
    penalty = 1.5 * parts**0.5 * (sum(map(len, near)) / 2) / max(nodes, 1) ** 1.5
    owner: list[int | None] = [None] * nodes
    for _ in range(passes):
        for first in range(0, nodes, block):
            waiting = list(range(first, min(first + block, nodes)))
            there = [[u for u in near[v] if owner[u] is not None] for v in waiting]
            counts = {
                v: Counter(owner[u] for u in own) for v, own in zip(waiting, there, strict=True)
            }
            for v in waiting:
                owner[v] = None
            sizes = [owner.count(p) for p in range(parts)]
            room = [largest - size for size in sizes]
            while waiting:
                wishes = []
                for v in waiting:
                    score = [
                        counts[v][p] - penalty * sizes[p] ** 0.5 if room[p] > 0 else -math.inf
                        for p in range(parts)
                    ]
                    wishes.append((score.index(max(score)), -max(score), v))
                for p, _, v in sorted(wishes):
                    if room[p] > 0:
                        owner[v] = p
                        room[p] -= 1
                waiting = [v for v in waiting if owner[v] is None]
    return [p for p in owner if p is not None]
