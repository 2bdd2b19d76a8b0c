"""Attention on the rows of one rank: scores of edges, a softmax over each target's, a weighted sum.

Strategies that split nodes are those of convolutions (`rows`), with this layer. The rows that are
fetched have the transformed features and behind them a score for each head. While they come, the
edges from the own rows are attended over.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.profiler import record_function

from hag_plugin.hag.hag import HAG
from hag_plugin.ops.attention import attend
from hag_plugin.ops.attention_in_parts import Rest, attend_first
from hag_plugin.ops.weights import edge_slots
from hag_plugin.parallel.execution.dropout import edge_mask
from hag_plugin.parallel.execution.executors.node_layers import Begin, Fetch, NodeLayer, Parts
from hag_plugin.parallel.execution.graphs.graph_parts import LocalGraph
from hag_plugin.parallel.execution.graphs.local_graphs import RankGraphs
from hag_plugin.parallel.execution.site import Site

WEIGHT, SOURCE, TARGET, BIAS = "lin.weight", "att_src", "att_dst", "bias"


def transformed(x: Tensor, weight: Tensor, source: Tensor, target: Tensor) -> list[Tensor]:
    """Features `[n, H D]`, and scores as a source and as a target, `[n, H]`."""
    h = F.linear(x, weight)
    by_head = h.view(len(h), *source.shape[1:])
    return [h, (by_head * source).sum(dim=-1), (by_head * target).sum(dim=-1)]


def _numbers(graph: LocalGraph, hag: HAG) -> Tensor:
    """Of the edges in the HAG's order, int64 `[E]`, where it is."""
    slots = edge_slots(torch.from_numpy(graph.index), hag.cpu())
    numbers = torch.empty_like(slots).index_put((slots,), torch.from_numpy(graph.edges))
    return numbers.to(hag.device)


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
        self.numbers: Tensor | None = None  # of edges, where some are dropped
        if self.module.dropout:
            self.numbers = self.hag.kept("numbers", partial(_numbers, graph, self.hag))

    def __call__(self, h: Tensor, as_source: Tensor, as_target: Tensor) -> Tensor:
        """`[S, H D]`, `[S, H]` and `[T, H]` to `[T, H D]`."""
        given = self.given(h, as_source, as_target)
        return attend(self.hag, **given, slope=self.module.negative_slope).flatten(1)

    def begin(self, h: Tensor, as_source: Tensor, as_target: Tensor) -> Rest:
        """The same over these edges, until what is returned is told of those from others."""
        given = self.given(h, as_source, as_target)
        return attend_first(self.hag, **given, slope=self.module.negative_slope)

    def given(self, h: Tensor, as_source: Tensor, as_target: Tensor) -> dict[str, Any]:
        """What attention takes; arguments as of a call."""
        heads = as_source.shape[1]
        return {
            "value": h.view(len(h), heads, h.shape[1] // heads), "key": as_source,
            "query": as_target, "score": "sum", "mask": self.mask(h, heads),
        }  # fmt: skip

    def mask(self, h: Tensor, heads: int) -> Tensor | None:
        """Of the layer's dropout, `[E, H]`: it depends on the edge's number and the head."""
        p, world = self.module.dropout, self.site.world
        if not (self.module.training and p):
            return None
        if self.numbers is None:
            raise RuntimeError(f"dropout of layer {self.site.op.name!r} was 0 when it was laid out")
        numbers = torch.arange(heads, device=h.device) + self.first
        key = (world.seed, world.step, self.site.index)
        return edge_mask(key, self.numbers, numbers, p, h.dtype)


class OwnFirst:
    """Attention over the edges from the own rows while the rows of others come, then over all.

    Args:
        site: where.
        parts: the edges from the own rows, and those from others.
        begin: begins to fetch what the others' edges read.
    """

    def __init__(self, site: Site, parts: Parts, begin: Begin) -> None:
        self.begin = begin
        self.own, self.others = (Heads(site, part) for part in parts)

    def __call__(self, h: Tensor, as_source: Tensor, as_target: Tensor) -> Tensor:
        """`[n, H D]` and `[n, H]` twice to `[n, H D]`."""
        both = torch.cat([h, as_source], dim=1)
        end, h, as_source = self.begin(both), h.to(both.dtype), as_source.to(both.dtype)
        del both
        with record_function("attention over own rows"):
            rest = self.own.begin(h, as_source, as_target)
        widths = [h.shape[1], as_source.shape[1]]
        rows, scores = (part.contiguous() for part in torch.split(end(), widths, dim=1))
        return rest(self.others.hag, **self.others.given(rows, scores, as_target)).flatten(1)


class Attention(NodeLayer):
    """All heads, on some rows."""

    def __init__(self, site: Site, graphs: RankGraphs, copies: bool) -> None:
        super().__init__(site, graphs, copies)
        self.bias = BIAS if site.op.bias else ""
        self.own_first: OwnFirst | None = None

    def place(self, graph: LocalGraph) -> None:
        self.heads = Heads(self.site, graph)

    def place_apart(self, parts: Parts, begin: Begin) -> None:
        """Says which edges it is to run on, those from the own rows first; as of `OwnFirst`."""
        self.own_first = OwnFirst(self.site, parts, begin)

    @property
    def names(self) -> list[str]:
        return [WEIGHT, SOURCE, TARGET, self.bias]

    def run(self, x: Tensor, fetch: Fetch, values: Mapping[str, Tensor]) -> Tensor:
        op = self.site.op
        h, as_source, as_target = transformed(x, values[WEIGHT], values[SOURCE], values[TARGET])
        if self.own_first is None:
            out = self.heads(h, as_source, as_target)
        else:
            out = self.own_first(h, as_source, as_target)
        if not op.concatenated:
            out = out.view(len(out), op.heads, op.width).mean(dim=1)
        return out + values[BIAS] if self.bias else out
