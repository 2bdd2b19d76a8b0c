"""What HGTConv and HANConv compute: of each relation apart, and of what relations give as one.

What is made for a layer's sizes is a function of tensors alone: those of nodes have a row for each
node, or for each node of one rank; sources come first in a pair, targets second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Made = Callable[..., Tensor]


def attended(
    scores: Tensor, values: Tensor, target: Tensor, rows: int, mask: Tensor | None = None
) -> Tensor:
    """The softmax over the edges of each target, and the sum of values that it weighs.

    Args:
        scores: `[E, H]`.
        values: of edges, `[E, H, D]`.
        target: int64 `[E]`.
        rows: n, of targets.
        mask: of a dropout of the softmax, `[E, H]`.

    Returns:
        `[n, H D + H]`: behind the sums the logarithms of the sums of exponentials, by which what
        several relations give can be joined.
    """
    heads, width = values.shape[1:]
    index = target.view(-1, 1).expand_as(scores)
    peak = scores.new_zeros(rows, heads)
    peak = peak.scatter_reduce(0, index, scores.detach(), "amax", include_self=False)
    e = (scores - peak[target]).exp()
    total = e.new_zeros(rows, heads).index_add(0, target, e)
    kept = e if mask is None else e * mask
    sums = e.new_zeros(rows, heads, width).index_add(0, target, kept.unsqueeze(-1) * values)
    empty = total == 0
    total = total.masked_fill(empty, 1.0)
    # No edges: less than any score, and finite, for there is none in other relations either.
    level = (peak + total.log()).masked_fill(empty, torch.finfo(e.dtype).min / 2)
    return torch.cat([(sums / total.unsqueeze(-1)).flatten(1), level], dim=1)


# HGTConv ----------------------------------------------------------------------------------------


def hgt_sources(relation: int, relations: int, heads: int) -> Made:
    """Keys and values of a relation, from those of a type of nodes."""

    def turned(kqv: Tensor, k_rel: Tensor, v_rel: Tensor, p_rel: Tensor) -> Tensor:
        """`[n, 3 H D]`, matrices `[H relations, D, D]` and factors `[1, H]` to `[n, 2 H D]`."""
        k, _, v = _by_head(kqv, 3, heads)
        k, v = (
            torch.einsum("nhd,hde->nhe", t, weight[relation::relations])
            for t, weight in ((k, k_rel), (v, v_rel))
        )
        k = k * (p_rel.view(1, -1, 1) / math.sqrt(k.shape[-1]))
        return torch.cat([k.flatten(1), v.flatten(1)], dim=1)

    return turned


def hgt_targets(heads: int) -> Made:
    """Attention over one relation."""

    def attention(ends: tuple[Tensor, Tensor], edge_index: Tensor) -> Tensor:
        """What `hgt_sources` gives and `[n, 3 H D]`, with edges, to what `attended` gives."""
        (k, v), (_, q, _) = _by_head(ends[0], 2, heads), _by_head(ends[1], 3, heads)
        source, target = edge_index
        return attended((k[source] * q[target]).sum(dim=-1), v[source], target, len(q))

    return attention


def hgt_joined(heads: int) -> Made:
    """One softmax over the edges of all relations."""

    def joined(xs: Sequence[Tensor]) -> Tensor:
        """Of each relation what `attended` gives, `[n, H D + H]`, to `[n, H D]`."""
        stacked = torch.stack(tuple(xs))
        share = stacked[..., -heads:].softmax(dim=0).unsqueeze(-1)
        width = stacked.shape[-1] // heads - 1
        sums = stacked[..., :-heads].view(*share.shape[:3], width)
        return (share * sums).sum(dim=0).flatten(1)

    return joined


def hgt_skip(out: Tensor, x: Tensor, skip: Tensor) -> Tensor:
    """A learned share of the result, and the rest of what it was made of."""
    share = skip.sigmoid()
    return share * out + (1 - share) * x


def _by_head(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """`[n, parts H D]` as so many `[n, H, D]`."""
    return x.view(len(x), parts, heads, x.shape[1] // (parts * heads)).unbind(1)


# HANConv ----------------------------------------------------------------------------------------


def han_scores(heads: int, beside: bool) -> Made:
    """Scores of nodes at one end of a relation."""

    def scored(x: Tensor, weight: Tensor) -> Tensor:
        """`[n, H D]` and `[1, H, D]` to `[n, H]`; with `beside`, behind the features."""
        scores = (x.view(len(x), *weight.shape[1:]) * weight).sum(dim=-1)
        return torch.cat([x, scores], dim=1) if beside else scores

    return scored


def han_targets(slope: float) -> Made:
    """Attention over one relation."""

    def attention(ends: tuple[Tensor, Tensor], edge_index: Tensor, p: float, mask: Made) -> Tensor:
        """`[S, H D + H]` and `[n, H]`, with edges, to `[n, H D]`; `p` of edges are dropped."""
        source, target = edge_index
        heads = ends[1].shape[1]
        x, scores = ends[0].tensor_split([ends[0].shape[1] - heads], dim=1)
        sums = F.leaky_relu(scores[source] + ends[1][target], slope)
        values = x[source].view(len(source), heads, x.shape[1] // heads)
        out = attended(sums, values, target, len(ends[1]), mask(sums, p) if p else None)
        return out[:, : x.shape[1]]

    return attention


def mean_of_rows(x: Tensor) -> Tensor:
    """`[R, n, F]` to `[R, F]`."""
    return x.mean(dim=1)


def han_joined(
    xs: Sequence[Tensor], q: Tensor, weight: Tensor, bias: Tensor, mean: Made = mean_of_rows
) -> Tensor:
    """Relations weigh by a softmax of their scores, which are means over all nodes.

    Args:
        xs: of each relation `[n, F]`.
        q: `[1, F]`.
        weight: `[F, F]`, with the bias.
        bias: `[F]`.
        mean: over the nodes of all ranks, where these are some of them.
    """
    out = torch.stack(tuple(xs))
    scores = (q * mean(F.linear(out, weight, bias).tanh())).sum(dim=-1)
    return (scores.softmax(dim=0).view(-1, 1, 1) * out).sum(dim=0)
