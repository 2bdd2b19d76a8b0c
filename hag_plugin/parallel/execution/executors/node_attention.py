"""Attention on the rows of one rank: scores of edges, a softmax over each target's, a weighted sum.

Strategies that split nodes are those of convolutions (`rows`), with this layer. The
rows that are fetched have the transformed features and behind them a score for each head.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hag_plugin.ops.weights import edge_slots, weighted_aggregate
from hag_plugin.parallel.execution.dropout import keep
from hag_plugin.parallel.execution.executors.node_layers import Fetch, NodeLayer
from hag_plugin.parallel.execution.graphs.graph_parts import LocalGraph
from hag_plugin.parallel.execution.graphs.local_graphs import LocalGraphs
from hag_plugin.parallel.execution.site import Site

WEIGHT, SOURCE, TARGET, BIAS = "lin.weight", "att_src", "att_dst", "bias"
SMALLEST = 1e-16  # as utils/_softmax.py divides


class Heads:
    """Some heads of an attention layer, over the edges of one rank.

    Args:
        site: where.
        graph: the edges, loops listed.
        first: the first head.
    """

    def __init__(self, site: Site, graph: LocalGraph, first: int = 0) -> None:
        self.site, self.first, self.module = site, first, cast(Any, site.module)
        self.hag = graph.hag("none", site.world.device)
        slots = edge_slots(torch.from_numpy(graph.index), self.hag.cpu())
        numbers = torch.empty_like(slots).index_put((slots,), torch.from_numpy(graph.edges))
        self.numbers = numbers.to(site.world.device)

    def transformed(
        self, x: Tensor, weight: Tensor, source: Tensor, target: Tensor
    ) -> list[Tensor]:
        """Features `[n, H D]`, and scores as a source and as a target, `[n, H]`."""
        h = F.linear(x, weight)
        by_head = h.view(len(h), *source.shape[1:])
        return [h, (by_head * source).sum(dim=-1), (by_head * target).sum(dim=-1)]

    def __call__(self, h: Tensor, as_source: Tensor, as_target: Tensor) -> Tensor:
        """`[S, H D]`, `[S, H]` and `[T, H]` to `[T, H D]`."""
        source, target = self.hag.edge_index
        scores = as_source.index_select(0, source) + as_target.index_select(0, target)
        alpha = self.dropped(self.softmax(F.leaky_relu(scores, self.module.negative_slope), target))
        heads = h.chunk(as_source.shape[1], dim=1)
        sums = [
            weighted_aggregate(rows, self.hag, weight.contiguous())
            for rows, weight in zip(heads, alpha.unbind(dim=1), strict=True)
        ]
        return torch.cat(sums, dim=1)

    def softmax(self, scores: Tensor, target: Tensor) -> Tensor:
        """Over the edges of each target, `[E, H]`."""
        shape = self.hag.num_dst, scores.shape[1]
        index = target.view(-1, 1).expand_as(scores)
        largest = scores.new_zeros(shape).scatter_reduce(
            0, index, scores.detach(), "amax", include_self=False
        )
        e = (scores - largest.index_select(0, target)).exp()
        total = e.new_zeros(shape).index_add(0, target, e) + SMALLEST
        return e / total.index_select(0, target)

    def dropped(self, alpha: Tensor) -> Tensor:
        """The layer's dropout: masks depend on the edge's number and the head."""
        p, world = self.module.dropout, self.site.world
        if not (self.module.training and p):
            return alpha
        if p >= 1:
            return alpha * 0
        heads = torch.arange(alpha.shape[1], device=alpha.device) + self.first
        key = (world.seed, world.step, self.site.index)
        return torch.where(keep(key, self.numbers, heads, p), alpha / (1 - p), 0)


class Attention(NodeLayer):
    """All heads, on some rows."""

    listed = True

    def __init__(self, site: Site, graphs: LocalGraphs, copies: bool) -> None:
        super().__init__(site, graphs, copies)
        self.bias = BIAS if site.op.bias else ""

    def place(self, graph: LocalGraph) -> None:
        self.heads = Heads(self.site, graph)

    def __call__(self, x: Tensor, fetch: Fetch) -> Tensor:
        op = self.site.op
        values = self.parameters(WEIGHT, SOURCE, TARGET, self.bias)
        h, as_source, as_target = self.heads.transformed(
            x, values[WEIGHT], values[SOURCE], values[TARGET]
        )
        rows = fetch(torch.cat([h, as_source], dim=1))
        out = self.heads(rows[:, : op.wide], rows[:, op.wide :], as_target)
        if not op.concatenated:
            out = out.view(len(out), op.heads, op.width).mean(dim=1)
        return out + values[BIAS] if self.bias else out
