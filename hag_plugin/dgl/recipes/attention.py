"""Layers that weigh their messages by both ends: in one pass over the edges, without messages.

Such a layer shares no sums, so no HAG serves it; what it gains is that the steps between a score
and a sum are one. Each function below stands for the `forward` of a layer, and names the file of
dgl/nn/pytorch/conv that it follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from hag_plugin.dgl.recipes.scored import ScoredGraph

Sizes = tuple[int, int]


def of_projection(conv: Any, x: Tensor) -> Sizes:
    """The heads of a layer that projects, and the numbers of a row, all heads together."""
    heads = conv._num_heads * x.shape[1:-1].numel()
    return heads, heads * conv._out_feats


def of_features(conv: Any, x: Tensor) -> Sizes:
    """The same of one that does not: each row of features is a head."""
    return x.shape[1:-1].numel(), x.shape[1:].numel()


@dataclass(frozen=True)
class Attention:
    """How a layer attends.

    Attributes:
        run: its forward, on a `ScoredGraph` in place of DGL's graph.
        sizes: from the layer and features, its heads and the numbers of a row of values.
        dims: how many dimensions features may have.
        by_vectors: whether stock makes a row of every edge to score it.
        one_name: whether stock has what it takes of sources and of targets under one name, so that
            of a pair of features on one set of nodes the second stands for both.
    """

    run: Callable[..., Tensor]
    sizes: Callable[[Any, Tensor], Sizes] = of_projection
    dims: tuple[int, ...] = (2,)
    by_vectors: bool = False
    one_name: bool = False


def gat(
    conv: Any,
    graph: ScoredGraph,
    feat: Any,
    edge_weight: Tensor | None = None,
    get_attention: bool = False,
) -> Tensor:
    """gatconv.py: leaky_relu of a number of each end."""
    h, h_target = _dropped(conv, feat)
    if not isinstance(feat, tuple):
        source = _in_heads(conv, conv.fc(h))
        h_target, target = graph.targets(h), graph.targets(source)
    else:
        projects = (conv.fc_src, conv.fc_dst) if hasattr(conv, "fc_src") else (conv.fc, conv.fc)
        source, target = _in_heads(conv, projects[0](h)), _in_heads(conv, projects[1](h_target))
    out = graph.attend(
        source.flatten(1, -2),
        key=(source * conv.attn_l).sum(dim=-1).flatten(1),
        query=(target * conv.attn_r).sum(dim=-1).flatten(1),
        score="sum",
        slope=conv.leaky_relu.negative_slope,
        drop=conv.attn_drop,
        edge_weight=edge_weight,
    )
    out = _with_residual(conv, out.view(-1, *source.shape[1:]), h_target)
    if conv.has_explicit_bias:
        out = out + conv.bias.view(conv._num_heads, conv._out_feats)
    return conv.activation(out) if conv.activation else out


def gatv2(conv: Any, graph: ScoredGraph, feat: Any, get_attention: bool = False) -> Tensor:
    """gatv2conv.py: a vector times leaky_relu of the sum of both ends."""
    h, h_target = _dropped(conv, feat)
    source = _in_heads(conv, conv.fc_src(h))
    if isinstance(feat, tuple):
        target = _in_heads(conv, conv.fc_dst(h_target))
    else:
        target = source if conv.share_weights else _in_heads(conv, conv.fc_dst(h))
        h_target, target = graph.targets(h), graph.targets(target)
    out = graph.attend(
        source,
        key=source,
        query=target,
        weight=conv.attn[0],
        score="vector",
        slope=conv.leaky_relu.negative_slope,
        drop=conv.attn_drop,
    )
    out = _with_residual(conv, out, h_target)
    return conv.activation(out) if conv.activation else out


def dot_gat(conv: Any, graph: ScoredGraph, feat: Any, get_attention: bool = False) -> Tensor:
    """dotgatconv.py: the scaled product of both ends."""
    if isinstance(feat, tuple):
        source, target = (
            _in_heads(conv, conv.fc_src(feat[0])),
            _in_heads(conv, conv.fc_dst(feat[1])),
        )
    else:
        source = _in_heads(conv, conv.fc(feat))
        target = graph.targets(source)
    return graph.attend(source, key=source, query=target / conv._out_feats**0.5, score="dot")


def agnn(conv: Any, graph: ScoredGraph, feat: Any) -> Tensor:
    """agnnconv.py: beta times the cosine of both ends."""
    x = feat[0] if isinstance(feat, tuple) else feat
    value = x.flatten(1, -2) if x.dim() > 2 else x.unsqueeze(1)
    key = F.normalize(value, p=2, dim=-1)
    if isinstance(feat, tuple):
        query = F.normalize(feat[1].reshape(-1, *value.shape[1:]), p=2, dim=-1)
    else:
        query = graph.targets(key)
    out = graph.attend(value, key=key, query=conv.beta * query, score="dot")
    return out.view(-1, *x.shape[1:])


# What they share --------------------------------------------------------------------------------


def _dropped(conv: Any, feat: Any) -> tuple[Tensor, Tensor]:
    """The features of sources and of targets after dropout, drawn in stock's order."""
    if isinstance(feat, tuple):
        return conv.feat_drop(feat[0]), conv.feat_drop(feat[1])
    h = conv.feat_drop(feat)
    return h, h


def _in_heads(conv: Any, rows: Tensor) -> Tensor:
    return rows.view(*rows.shape[:-1], conv._num_heads, conv._out_feats)


def _with_residual(conv: Any, out: Tensor, h_target: Tensor) -> Tensor:
    if conv.res_fc is None:
        return out
    residual: Tensor = conv.res_fc(h_target).view(*h_target.shape[:-1], -1, conv._out_feats)
    return out + residual


def why_stock(conv: Any) -> str | None:
    """Why a layer must run its stock code, as it is set up. None: it need not."""
    for name, cls in (("leaky_relu", nn.LeakyReLU), ("attn_drop", nn.Dropout)):
        part: Any = getattr(conv, name, None)
        if part is None:
            continue
        if type(part) is not cls:
            return f"its {name} was replaced by a {type(part).__name__}"
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks:
            return f"hooks on its {name} see the stock computation"
        if part._backward_pre_hooks:
            return f"hooks on its {name} see the stock computation"
    return None
