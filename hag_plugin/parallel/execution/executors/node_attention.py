"""Attention on the rows of one rank: scores of edges, a softmax over each target's, a weighted sum.

Strategies that split nodes are those of convolutions (`rows`), with this layer. The
rows that are fetched have the transformed features and behind them a score for each head.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hag_plugin.ops.attention import attend
from hag_plugin.ops.weights import edge_slots
from hag_plugin.parallel.execution.dropout import keep
from hag_plugin.parallel.execution.executors.node_layers import Fetch, NodeLayer
from hag_plugin.parallel.execution.graphs.graph_parts import LocalGraph
from hag_plugin.parallel.execution.graphs.local_graphs import RankGraphs
from hag_plugin.parallel.execution.site import Site

WEIGHT, SOURCE, TARGET, BIAS = "lin.weight", "att_src", "att_dst", "bias"


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
        heads = as_source.shape[1]
        out = attend(
            self.hag,
            h.view(len(h), heads, h.shape[1] // heads),
            key=as_source,
            query=as_target,
            score="sum",
            slope=self.module.negative_slope,
            mask=self.mask(h, heads),
        )
        return out.flatten(1)

    def mask(self, h: Tensor, heads: int) -> Tensor | None:
        """Of the layer's dropout, `[E, H]`: it depends on the edge's number and the head."""
        p, world = self.module.dropout, self.site.world
        if not (self.module.training and p):
            return None
        if p >= 1:
            return h.new_zeros(self.hag.num_edges, heads)
        numbers = torch.arange(heads, device=h.device) + self.first
        key = (world.seed, world.step, self.site.index)
        return keep(key, self.numbers, numbers, p).to(h.dtype).div_(1 - p)


class Attention(NodeLayer):
    """All heads, on some rows."""

    listed = True

    def __init__(self, site: Site, graphs: RankGraphs, copies: bool) -> None:
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
        rows, scores = fetch(torch.cat([h, as_source], dim=1)).tensor_split([op.wide], dim=1)
        out = self.heads(rows.contiguous(), scores.contiguous(), as_target)
        if not op.concatenated:
            out = out.view(len(out), op.heads, op.width).mean(dim=1)
        return out + values[BIAS] if self.bias else out
