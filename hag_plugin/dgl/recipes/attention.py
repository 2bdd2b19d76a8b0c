"""Layers that weigh their messages by both ends: in one pass over the edges, without messages.

Such a layer shares no sums, so no HAG serves it; what it gains is that the steps between a score
and a sum are one. Each function below stands for the `forward` of a layer, and names the file of
dgl/nn/pytorch/conv that it follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import dgl.function as fn
import torch
import torch.nn.functional as F
from dgl.nn.pytorch import TypedLinear
from torch import Tensor, nn

from hag_plugin.dgl.recipes.scored import ScoredGraph, TypedEdges
from hag_plugin.modes import has_hooks
from hag_plugin.ops.edge_list import asked_for, isolated

Sizes = tuple[int, int]


def of_projection(conv: Any, x: Tensor) -> Sizes:
    """The heads of a layer that projects, and the numbers of a row, all heads together."""
    heads = conv._num_heads * x.shape[1:-1].numel()
    return heads, heads * conv._out_feats


def of_types(conv: Any, x: Tensor) -> Sizes:
    """The same of HGTConv."""
    return conv.num_heads, conv.num_heads * conv.head_size


def of_nodes(conv: Any, x: Tensor) -> Sizes:
    """The same of EGATConv."""
    return conv._num_heads, conv._num_heads * conv._out_node_feats


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
        pairs: whether it takes features of sources and of targets; "apart": on two sets of nodes
            only. On one, where stock has both under one name, the second would stand for both.
        targets_first: whether it takes one tensor of features on a block.
        allows_isolated: whether nodes may have no edges, where the layer itself does not say.
        edge_rows: the argument with features of the edges, `[E, D]`; "": there is none.
        given: numbers that each edge has of its own, from their heads and the width of `edge_rows`.
        edge_types: the argument with their types, `[E]`; "": there is none.
    """

    run: Callable[..., Any]
    sizes: Callable[[Any, Tensor], Sizes] = of_projection
    dims: tuple[int, ...] = (2,)
    by_vectors: bool = False
    pairs: Literal["always", "apart", "never"] = "always"
    targets_first: bool = True
    allows_isolated: bool = False
    edge_rows: str = ""
    given: Callable[[int, int], int] = lambda heads, width: 0
    edge_types: str = ""


def gat(
    conv: Any,
    graph: ScoredGraph,
    feat: Any,
    edge_weight: Tensor | None = None,
    get_attention: bool = False,
) -> Tensor:
    """gatconv.py: leaky_relu of a number of each end."""
    source, target, h_target = _ends(conv, graph, feat)
    out = graph.attend(
        source.flatten(1, -2),
        key=(source * conv.attn_l).sum(dim=-1).flatten(1),
        query=(target * conv.attn_r).sum(dim=-1).flatten(1),
        score="sum",
        slope=conv.leaky_relu.negative_slope,
        drop=conv.attn_drop,
        edge_weight=edge_weight,
    )
    out = out.view(-1, *source.shape[1:])
    return _finished(conv, out, h_target, conv.bias if conv.has_explicit_bias else None)


def edge_gat(
    conv: Any, graph: ScoredGraph, feat: Any, edge_feat: Tensor, get_attention: bool = False
) -> Tensor:
    """edgegatconv.py: as GATConv, with a term of the edge in the score and in the value.

    What features of edges are multiplied with is taken to the nodes' side, on the way in and out.
    The terms of both ends are a product of two numbers each.
    """
    source, target, h_target = _ends(conv, graph, feat)
    key, query = (source * conv.attn_l).sum(dim=-1), (target * conv.attn_r).sum(dim=-1)
    weight = conv.fc_edge.weight.view(conv._num_heads, conv._out_feats, -1)
    edge_query = torch.einsum("hcd,hc->hd", weight, conv.attn_edge[0])
    out = graph.attend(
        source,
        key=torch.stack([key, torch.ones_like(key)], dim=-1),
        query=torch.stack([torch.ones_like(query), query], dim=-1),
        edges=edge_feat,
        edge_query=edge_query.expand(len(target), -1, -1),
        score="dot",
        slope=conv.leaky_relu.negative_slope,
        drop=conv.attn_drop,
    )
    of_nodes, of_edges = out.tensor_split([conv._out_feats], dim=-1)
    out = of_nodes + torch.einsum("nhd,hcd->nhc", of_edges, weight)
    return _finished(conv, out, h_target, conv.bias)


def egat(
    conv: Any,
    graph: ScoredGraph,
    nfeats: Any,
    efeats: Tensor,
    edge_weight: Tensor | None = None,
    get_attention: bool = False,
) -> tuple[Tensor, Tensor]:
    """egatconv.py: a score of the edge's new features, which are a result, too."""
    source, target = nfeats if isinstance(nfeats, tuple) else (nfeats, nfeats)
    with graph.graph.local_scope():
        graph.graph.srcdata["f_ni"] = conv.fc_ni(source)
        of_target = conv.fc_nj(target)
        graph.graph.dstdata["f_nj"] = of_target if conv.bias is None else of_target + conv.bias
        graph.graph.apply_edges(fn.u_add_v("f_ni", "f_nj", "f"))
        rows = F.leaky_relu(graph.graph.edata["f"] + conv.fc_fij(efeats))
    rows = rows.view(-1, conv._num_heads, conv._out_edge_feats)
    value = conv.fc_node_src(source).view(-1, conv._num_heads, conv._out_node_feats)
    scores = (rows * conv.attn).sum(dim=-1)
    return graph.attend(value, bias=scores, score="given", edge_weight=edge_weight), rows


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
    return _finished(conv, out, h_target)


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
    query = conv.beta * asked_for(query, isolated(graph.hag))
    out = graph.attend(value, key=key, query=query, score="dot")
    return out.view(-1, *x.shape[1:])


def hgt(
    conv: Any, g: ScoredGraph, x: Tensor, ntype: Tensor, etype: Tensor, *, presorted: bool = False
) -> Tensor:
    """hgtconv.py: keys and values are multiplied with matrices of the edge's type, here once for
    each pair of a node and a type that occurs."""
    conv.presorted = presorted
    x_target, ntype_target = g.targets(x), g.targets(ntype)
    heads = (-1, conv.num_heads, conv.head_size)
    key, value = (
        linear(x, ntype, presorted).view(heads) for linear in (conv.linear_k, conv.linear_v)
    )
    query = conv.linear_q(x_target, ntype_target, presorted).view(heads)
    assert isinstance(g.edges, TypedEdges)
    scale = torch.stack([each[g.edges.types] for each in conv.relation_pri], dim=1) / conv.sqrt_d
    h: Tensor = g.attend(
        g.edges.by_type(conv.relation_msg, value),
        key=g.edges.by_type(conv.relation_att, key) * scale.unsqueeze(-1),
        query=query,
        score="dot",
    )
    h = conv.drop(conv.linear_a(h.flatten(1), ntype_target, presorted))
    alpha = torch.sigmoid(conv.skip[ntype_target]).unsqueeze(-1)
    own = x_target if x_target.shape == h.shape else x_target @ conv.residual_w
    h = h * alpha + own * (1 - alpha)
    return conv.norm(h) if conv.use_norm else h


# What they share --------------------------------------------------------------------------------


def _dropped(conv: Any, feat: Any) -> tuple[Tensor, Tensor]:
    """The features of sources and of targets after dropout, drawn in stock's order."""
    if isinstance(feat, tuple):
        return conv.feat_drop(feat[0]), conv.feat_drop(feat[1])
    h = conv.feat_drop(feat)
    return h, h


def _ends(conv: Any, graph: ScoredGraph, feat: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Of GATConv: rows of sources and of targets in heads; and features of targets."""
    h, h_target = _dropped(conv, feat)
    if not isinstance(feat, tuple):
        source = _in_heads(conv, conv.fc(h))
        return source, graph.targets(source), graph.targets(h)
    projects = (conv.fc_src, conv.fc_dst) if hasattr(conv, "fc_src") else (conv.fc, conv.fc)
    return _in_heads(conv, projects[0](h)), _in_heads(conv, projects[1](h_target)), h_target


def _in_heads(conv: Any, rows: Tensor) -> Tensor:
    return rows.view(*rows.shape[:-1], conv._num_heads, conv._out_feats)


def _finished(conv: Any, out: Tensor, h_target: Tensor, bias: Tensor | None = None) -> Tensor:
    """With the residual, a bias and the activation."""
    if conv.res_fc is not None:
        out = out + conv.res_fc(h_target).view(*h_target.shape[:-1], -1, conv._out_feats)
    if bias is not None:
        out = out + bias.view(conv._num_heads, conv._out_feats)
    return conv.activation(out) if conv.activation else out


# What is not called here, but read.
OWN_PARTS: dict[str, type] = {
    "leaky_relu": nn.LeakyReLU,
    "attn_drop": nn.Dropout,
    "fc_edge": nn.Linear,
    "relation_att": TypedLinear,  # called, but on other rows
    "relation_msg": TypedLinear,
}


def why_stock(conv: Any) -> str | None:
    """Why a layer must run its stock code, as it is set up. None: it need not."""
    if "message" in conv.__dict__:
        return "its message was replaced on the instance"
    for name, cls in OWN_PARTS.items():
        held: Any = getattr(conv, name, None)
        parts: list[Any] = [*held] if isinstance(held, nn.ModuleList) else [held]
        for part in parts:
            if part is None:
                continue
            if type(part) is not cls:
                return f"its {name} was replaced by a {type(part).__name__}"
            if name == "fc_edge" and getattr(part, "bias", None) is not None:
                return "its fc_edge was replaced by one with a bias"
            if has_hooks(part):
                return f"hooks on its {name} see the stock computation"
    return None


def draws(conv: Any) -> bool:
    """Whether a call draws a dropout of attention."""
    drop = getattr(conv, "attn_drop", None)
    return drop is not None and drop.training and drop.p > 0
