"""What some layers do in place of their own `forward`, or `aggregate`, where the graph is a HAG.

These layers look into their edge index, for degrees or for self-loops, and not only hand it to
`propagate`. Each function names the file of torch_geometric/nn/conv that it follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch_geometric import nn
from torch_geometric.utils import one_hot

from hag_plugin.hag.hag import HAG
from hag_plugin.ops.aggregate import aggregate
from hag_plugin.ops.degrees import degree_scale
from hag_plugin.pyg.aggregation.aggregators import REDUCERS
from hag_plugin.pyg.aggregation.neighbourhoods import Neighbourhoods, check_sizes
from hag_plugin.pyg.aggregation.statistics import variance
from hag_plugin.pyg.recipes.conditions import (
    LOOPS,
    NO_ACTIVATION,
    NO_ATTENTION,
    NO_EDGE_FEATURES,
    NO_SEGMENT_MATMUL,
    ONE_LAYER_BEFORE,
    SOURCE_TO_TARGET,
    SUM,
    SUM_OR_MEAN,
)
from hag_plugin.pyg.recipes.recipe import Call, Condition, Recipe


def pair(x: Any) -> tuple[Any, Any]:
    """The features of sources and of targets."""
    return (x, x) if isinstance(x, Tensor) else (x[0], x[1])


def with_bias(conv: Any, out: Tensor) -> Tensor:
    """Adds the layer's bias, if it has one."""
    return out if conv.bias is None else out + conv.bias


def mf(conv: Any, x: Any, edge_index: HAG, size: Any = None) -> Tensor:
    """mf_conv.py: one pair of weights for each degree."""
    x = pair(x)
    h = conv.propagate(edge_index, x=x, size=size)
    degree = edge_index.degree().clamp(max=conv.max_degree)
    out: Tensor = h.new_empty([*h.shape[:-1], conv.out_channels])
    for i, (left, right) in enumerate(zip(conv.lins_l, conv.lins_r, strict=True)):
        nodes = (degree == i).nonzero().view(-1)
        rows = left(h.index_select(conv.node_dim, nodes))
        if x[1] is not None:
            rows = rows + right(x[1].index_select(conv.node_dim, nodes))
        out.index_copy_(conv.node_dim, nodes, rows)
    return out


def wl_continuous(
    conv: Any, x: Any, edge_index: HAG, edge_weight: None = None, size: Any = None
) -> Tensor:
    """wl_conv_continuous.py: the mean of the sources, then of that and the node itself."""
    x = pair(x)
    out: Tensor = conv.propagate(edge_index, x=x, edge_weight=None, size=size)
    out = degree_scale(edge_index, -1.0, False, out.dtype).to(out.dtype).view(-1, 1) * out
    return out if x[1] is None else 0.5 * (x[1] + out)


def cluster_gcn(conv: Any, x: Tensor, edge_index: HAG) -> Tensor:
    """cluster_gcn_conv.py: `D^-1 (A + I) x + lambda D^-1 x`, with one loop on each node.

    Stock computes degrees in the default dtype, whatever that of the features.
    """
    scale = degree_scale(edge_index, -1.0, "fill", torch.get_default_dtype())
    out = aggregate(x, edge_index, self_loops="fill", target_scale=scale)
    if conv.diag_lambda != 0:
        diagonal = (scale + conv.diag_lambda * scale).to(x.dtype) - scale.to(x.dtype)
        out = out + diagonal.unsqueeze(-1) * x
    total: Tensor = conv.lin_out(out) + conv.lin_root(x)
    return total


def cheb(
    conv: Any,
    x: Tensor,
    edge_index: HAG,
    edge_weight: None = None,
    batch: Tensor | None = None,
    lambda_max: Any = None,
) -> Tensor:
    """cheb_conv.py: Chebyshev polynomials of the scaled Laplacian `(2 / lambda) L - I`.

    Off its diagonal the Laplacian is `-t A s`, without self-loops. The program of A with one loop
    a node serves; the loops are taken off the diagonal again. Degrees are those of the sources.
    """
    check_sizes(edge_index, None, (x, x), conv.node_dim)
    source, target, diagonal = _laplacian(conv, edge_index, x.dtype)
    if lambda_max is None:
        # The largest entry of L: no other is above 1 in the normalised ones.
        lambda_max = 2.0 if conv.normalization is not None else 2.0 * diagonal.max()
    elif not isinstance(lambda_max, Tensor):
        lambda_max = torch.tensor(lambda_max, dtype=x.dtype, device=x.device)
    if isinstance(lambda_max, Tensor) and lambda_max.numel() > 1 and batch is not None:
        lambda_max = lambda_max[batch]
    source = -2.0 * source / lambda_max
    diagonal = 2.0 * diagonal / lambda_max
    diagonal = diagonal.masked_fill(diagonal == float("inf"), 0.0) - 1.0
    diagonal = diagonal - (source if target is None else source * target)
    diagonal = diagonal.to(x.dtype).unsqueeze(-1)

    def scaled_laplacian(z: Tensor) -> Tensor:
        out: Tensor = diagonal * z
        return out + aggregate(
            z, edge_index, self_loops="fill", source_scale=source, target_scale=target
        )

    before, now = x, x
    out: Tensor = conv.lins[0](x)
    if len(conv.lins) > 1:
        now = scaled_laplacian(x)
        out = out + conv.lins[1](now)
    for lin in conv.lins[2:]:
        before, now = now, 2.0 * scaled_laplacian(now) - before
        out = out + lin(now)
    return with_bias(conv, out)


def _laplacian(conv: Any, hag: HAG, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor]:
    """Scales `s` and `t`, and the diagonal, of utils/laplacian.py."""
    exponent = {"sym": -0.5, "rw": -1.0, None: 0.0}[conv.normalization]
    scale: Tensor = degree_scale(hag, exponent, False, dtype, "sources")
    if conv.normalization is None:
        return scale, None, degree_scale(hag, 1.0, False, dtype, "sources")
    return scale, scale if conv.normalization == "sym" else None, torch.ones_like(scale)


def pdn(conv: Any, x: Tensor, edge_index: HAG, edge_attr: None = None) -> Tensor:
    """pdn_conv.py without values of edges: as GCNConv, its weights of the features' dtype."""
    like_weights = x.new_empty(0)
    out: Tensor = conv.propagate(edge_index, x=conv.lin(x), edge_weight=like_weights)
    return with_bias(conv, out)


def hypergraph(
    conv: Any,
    x: Tensor,
    hyperedge_index: HAG,
    hyperedge_weight: Tensor | None = None,
    hyperedge_attr: Tensor | None = None,
    num_edges: int | None = None,
) -> Tensor:
    """hypergraph_conv.py: from nodes to hyperedges and back, each time divided by degrees.

    The HAG leads from the nodes to the hyperedges.
    """
    if num_edges is not None and num_edges != hyperedge_index.num_dst:
        raise ValueError(
            f"num_edges is {num_edges}; the HAG has {hyperedge_index.num_dst} hyperedges"
        )
    back = hyperedge_index.transpose()
    if hyperedge_weight is None:
        weighed = x.dtype
        per_node = degree_scale(back, -1.0, False, x.dtype)
    else:
        if not hyperedge_weight.is_floating_point():
            hyperedge_weight = hyperedge_weight.to(torch.get_default_dtype())
        weighed = hyperedge_weight.dtype
        total = aggregate(hyperedge_weight.view(-1, 1), back).squeeze(-1)
        per_node = torch.where(total == 0, 0.0, 1.0 / total.masked_fill(total == 0, 1.0))
    per_hyperedge = degree_scale(hyperedge_index, -1.0, False, x.dtype)
    monoid = REDUCERS[type(conv.aggr_module)]
    z = conv.lin(x)
    z = z.to(torch.promote_types(z.dtype, x.dtype))  # stock's degrees have the dtype of `x`
    out = aggregate(z, hyperedge_index, monoid, target_scale=per_hyperedge)
    out = out.to(torch.promote_types(out.dtype, weighed))
    out = aggregate(out, back, monoid, target_scale=per_node)
    return with_bias(conv, out)


@torch.no_grad()
def label_propagation(
    conv: Any,
    y: Tensor,
    edge_index: HAG,
    mask: Tensor | None = None,
    edge_weight: None = None,
    post_step: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """models/label_prop.py: `alpha D^-1/2 A D^-1/2 y + (1 - alpha) y`, again and again.

    Stock's weights have the default dtype, whatever that of the labels, which they promote.
    """
    if y.dtype == torch.long and y.size(0) == y.numel():
        y = one_hot(y.view(-1))
    like_weights = y.new_empty(0, dtype=torch.get_default_dtype())
    out = y
    if mask is not None:
        out = torch.zeros_like(y)
        out[mask] = y[mask]
    rest = (1 - conv.alpha) * out
    for _ in range(conv.num_layers):
        promoted = out.to(torch.promote_types(out.dtype, like_weights.dtype))
        out = conv.propagate(edge_index, x=promoted, edge_weight=like_weights)
        out.mul_(conv.alpha).add_(rest)
        out = out.clamp_(0.0, 1.0) if post_step is None else post_step(out)
    return out


# One HAG for each relation ----------------------------------------------------------------------


def rgcn(conv: Any, x: Any, edge_index: Sequence[HAG], edge_type: None = None) -> Tensor:
    """rgcn_conv.py: each relation's aggregate by its own weight. Integer features look up rows."""
    source, target = (x[0], x[1]) if isinstance(x, tuple) else (x, x)
    if source is None:
        source = torch.arange(conv.in_channels_l, device=conv.weight.device)
        target = source if target is None else target
    size = (source.shape[0], target.shape[0])
    is_lookup = not target.is_floating_point()
    looked_up = source
    if isinstance(conv, nn.FastRGCNConv):  # it looks up the node's number, whatever its feature
        looked_up = torch.arange(size[0], device=source.device)
    weight = conv.weight
    if conv.num_bases is not None:
        weight = (conv.comp @ weight.view(conv.num_bases, -1)).view(
            conv.num_relations, conv.in_channels_l, conv.out_channels
        )
    if conv.num_blocks is not None and is_lookup:
        raise ValueError("block-diagonal decomposition takes features of a floating dtype")
    out: Tensor | None = None
    if not isinstance(conv, nn.FastRGCNConv):
        out = torch.zeros(target.shape[0], conv.out_channels, device=target.device)
    for i, hag in enumerate(edge_index):
        rows = weight[i, looked_up] if is_lookup else source
        h = conv.propagate(hag, x=rows, size=size)
        if conv.num_blocks is not None:
            h = h.view(-1, weight.shape[1], weight.shape[2])
            h = torch.einsum("abc,bcd->abd", h, weight[i]).reshape(-1, conv.out_channels)
        elif not is_lookup:
            h = h @ weight[i]
        out = h if out is None else out + h
    assert out is not None  # there is a relation at least
    if conv.root is not None:
        out = out + (conv.root[target] if is_lookup else target @ conv.root)
    return with_bias(conv, out)


def film(conv: Any, x: Any, edge_index: Any, edge_type: None = None) -> Tensor:
    """film_conv.py with act=None: `gamma_i REDUCE_j(x_j) + beta_i`, one more for each relation."""
    x = pair(x)
    beta, gamma = conv.film_skip(x[1]).split(conv.out_channels, dim=-1)
    out: Tensor = gamma * conv.lin_skip(x[1]) + beta
    graphs = [edge_index] if isinstance(edge_index, HAG) else edge_index
    exponent = 0.0 if REDUCERS[type(conv.aggr_module)] == "mean" else 1.0
    for hag, lin, layer in zip(graphs, conv.lins, conv.films, strict=True):
        beta, gamma = layer(x[1]).split(conv.out_channels, dim=-1)
        h = conv.propagate(hag, x=lin(x[0]), size=(hag.num_src, hag.num_dst))
        count = degree_scale(hag, exponent, False, h.dtype).to(h.dtype).unsqueeze(-1)
        out = out + gamma * h + count * beta
    return out


# In place of an aggregation module --------------------------------------------------------------


def eg_aggregate(conv: Any, z: Tensor, hag: HAG) -> Tensor:
    """eg_conv.py, `aggregate`: several aggregators, "symnorm" among them, stacked."""
    over = Neighbourhoods(hag, 0, "fill" if conv.add_self_loops else False)
    wanted = conv.aggregators
    if conv.add_self_loops and "symnorm" not in wanted:
        # eg_conv.py adds loops without a number of nodes: none beyond the last that has an edge.
        z = z * degree_scale(hag, 0.0, False, z.dtype, "linked").to(z.dtype).unsqueeze(-1)
    found = {}
    if {"sum", "mean", "var", "std"} & set(wanted):
        has_squares = not {"var", "std"}.isdisjoint(wanted)
        total = over.reduce("sum", torch.cat([z, z * z], dim=-1) if has_squares else z)
        found = dict(zip(("sum", "squares"), torch.split(total, z.shape[-1], dim=-1), strict=False))
    outs = []
    for name in wanted:
        if name == "symnorm":
            scale = degree_scale(hag, -0.5, over.self_loops, z.dtype)
            out = aggregate(
                z, hag, self_loops=over.self_loops, source_scale=scale, target_scale=scale
            )
        elif name == "sum":
            out = found["sum"]
        elif name == "mean":
            out = found["sum"] * over.degree(-1.0, z)
        elif name in ("max", "min"):
            out = over.reduce(name, z)
        else:
            out = variance(found, over)
            out = out.clamp(min=1e-5).sqrt() if name == "std" else out
        outs.append(out)
    return torch.stack(outs, dim=1) if len(outs) > 1 else outs[0]


# What a layer does before it aggregates ---------------------------------------------------------


def pna_message(conv: Any, x: Tensor) -> Tensor:
    """pna_conv.py: the part of each tower's linear layer that sees the source, `[N, T, F]`."""
    return _by_tower(conv, x, slice(conv.F_in, None), bias=False)


def pna_offset(conv: Any, x: Tensor) -> Tensor:
    """The part that sees the target, with the bias."""
    return _by_tower(conv, x, slice(0, conv.F_in), bias=True)


def _by_tower(conv: Any, x: Tensor, columns: slice, bias: bool) -> Tensor:
    outs = []
    for i, tower in enumerate(conv.pre_nns._modules.values()):
        (lin,) = tower._modules.values()
        rows = x if x.shape[1] == 1 else x.narrow(1, i, 1)
        outs.append(
            torch.nn.functional.linear(rows, lin.weight[:, columns], lin.bias if bias else None)
        )
    return torch.cat(outs, dim=1) if len(outs) > 1 else outs[0]


def general_message(conv: Any, x: Tensor) -> Tensor:
    """general_conv.py, `message_basic`: the linear layer once a node, `[N, heads, F]`."""
    rows: Tensor = conv.lin_msg(x).view(-1, conv.heads, conv.out_channels)
    return rows


def general_offset(conv: Any, x: Tensor) -> Tensor | None:
    """What an undirected message adds of its target."""
    if conv.directed_msg:
        return None
    rows: Tensor = conv.lin_msg_i(x).view(-1, conv.heads, conv.out_channels)
    return rows


def gen_message(conv: Any, x: Tensor) -> Tensor:
    """gen_conv.py: relu and a small number more, once a node."""
    z: Tensor = x.relu() + conv.eps
    return z


# The recipes of these layers, with what `forward` cannot tell -------------------------------------


def _hypergraph_size(conv: Any, call: Call) -> tuple[int, int]:
    hyperedges = call.get("num_edges")
    if hyperedges is None:
        index = call["hyperedge_index"]
        hyperedges = int(index[1].max()) + 1 if index.numel() else 0
    return call["x"].shape[0], hyperedges


def _relational_size(conv: Any, call: Call) -> tuple[int, int]:
    x = call["x"]
    source, target = (x[0], x[1]) if isinstance(x, tuple) else (x, x)
    num_src = conv.in_channels_l if source is None else source.shape[0]
    return num_src, num_src if target is None else target.shape[0]


NORMALISES = Condition(
    lambda conv: not conv.normalize,
    lambda conv: "normalize=False: its messages are then made of edge_attr alone",
    "normalize=True",
)
_RELATIONAL = Recipe(forward=rgcn, size=_relational_size)

RECIPES: dict[type, Recipe] = {
    nn.LabelPropagation: Recipe(
        forward=label_propagation, size=lambda conv, call: (call["y"].shape[0],) * 2
    ),
    nn.MFConv: Recipe(forward=mf, conditions=(SOURCE_TO_TARGET,)),
    nn.WLConvContinuous: Recipe(forward=wl_continuous, fuses=False, conditions=(SOURCE_TO_TARGET,)),
    nn.EGConv: Recipe(reduce=eg_aggregate, cache="_cached_edge_index", yields=False),
    nn.ClusterGCNConv: Recipe(
        forward=cluster_gcn, conditions=(LOOPS, SUM, SOURCE_TO_TARGET), yields=False
    ),
    nn.ChebConv: Recipe(
        forward=cheb, fuses=False, conditions=(SUM, SOURCE_TO_TARGET), yields=False
    ),
    nn.PDNConv: Recipe(forward=pdn, conditions=(NORMALISES,)),
    nn.HypergraphConv: Recipe(
        forward=hypergraph,
        size=_hypergraph_size,
        conditions=(NO_ATTENTION, SUM_OR_MEAN),
        returns=True,
        yields=False,
    ),
    nn.RGCNConv: replace(_RELATIONAL, conditions=(NO_SEGMENT_MATMUL,), yields=False),
    nn.FastRGCNConv: replace(_RELATIONAL, conditions=(SUM_OR_MEAN,)),
    nn.FiLMConv: Recipe(forward=film, conditions=(NO_ACTIVATION, SUM_OR_MEAN, SOURCE_TO_TARGET)),
    nn.PNAConv: Recipe(
        message=pna_message, offset=pna_offset, conditions=(NO_EDGE_FEATURES, ONE_LAYER_BEFORE)
    ),
    nn.GENConv: Recipe(message=gen_message),
}
