"""Layers that weigh their messages by both ends: in one pass over the edges, without messages.

Such a layer shares no sums, so no HAG serves it; what it gains is that no tensor of edges times
features is made. Each function below says how a layer's scores and values come to `ops.attention`,
and names the file of torch_geometric/nn/conv that it follows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric import nn

from hag_plugin.hag.passing import plain_hag
from hag_plugin.modes import has_hooks
from hag_plugin.ops.attention import attend, head_dot
from hag_plugin.ops.attention_products import Attention, Product, attend_products, may_join
from hag_plugin.ops.edge_list import EdgeList, asked_for
from hag_plugin.pyg.recipes.conditions import SOURCE_TO_TARGET, SUM
from hag_plugin.pyg.recipes.forwards import general_message, general_offset, with_bias
from hag_plugin.pyg.recipes.recipe import PAIRS, Call, Condition, Recipe
from hag_plugin.pyg.recipes.reorder import is_bare, is_product
from hag_plugin.pyg.recipes.rgat import attends_within, numbers_of, rgat, rgat_forward
from hag_plugin.pyg.recipes.scored import EdgeType, ScoredGraph, ScoredTypes, promoted

# How layers attend ------------------------------------------------------------------------------


def gat(conv: Any, graph: ScoredGraph, given: Call) -> Tensor:
    """gat_conv.py: leaky_relu of a number of each end, and of the edge."""
    scores = given["alpha"]
    key, query = scores["alpha"]
    bias = _gat_bias(conv, graph.values(conv, scores["edge_attr"]))
    return graph.attend(
        conv, given["x"][0], key=key, query=query, score="sum", bias=bias, slope=conv.negative_slope
    )


def _gat_bias(conv: Any, edge_attr: Tensor | None) -> Tensor | None:
    if edge_attr is None or conv.lin_edge is None:
        return None
    edge_attr, heads = _columns(edge_attr), conv.heads
    if not is_product(conv.lin_edge):
        rows = conv.lin_edge(edge_attr).view(-1, heads, conv.out_channels)
        by_rows: Tensor = (rows * conv.att_edge).sum(dim=-1)
        return by_rows
    weight = conv.lin_edge.weight.view(heads, conv.out_channels, -1)
    bias: Tensor = edge_attr @ torch.einsum("hcd,hc->dh", weight, conv.att_edge[0])
    return bias


def _columns(edge_attr: Tensor) -> Tensor:
    return edge_attr.view(-1, 1) if edge_attr.dim() == 1 else edge_attr


def gatv2(conv: Any, graph: ScoredGraph, given: Call) -> Tensor:
    """gatv2_conv.py: a vector times leaky_relu of the sum of both ends, and of the edge."""
    source, target = given["x"]
    edges = graph.values(conv, given["alpha"]["edge_attr"])
    projection = None
    if edges is not None:
        edges = _columns(edges)
        if is_product(conv.lin_edge):
            projection = conv.lin_edge.weight.t()
        else:
            edges = conv.lin_edge(edges)
    ends = {"key": source, "query": target, "weight": conv.att[0]}
    of_edges = {"edges": edges, "projection": projection}
    slope = conv.negative_slope
    return graph.attend(conv, source, score="vector", slope=slope, **ends, **of_edges)


def transformer(conv: Any, graph: ScoredGraph, given: Call) -> Tensor:
    """transformer_conv.py: the product of query and key. An edge adds to key and to value: what
    its features are multiplied with is taken to the nodes' side, on the way in and out."""
    query = given["query"] / math.sqrt(conv.out_channels)
    how: dict[str, Any] = {"key": given["key"], "query": query, "score": "dot"}
    edge_attr = given["edge_attr"]
    if edge_attr is None:
        return graph.attend(conv, given["value"], **how)
    weight = conv.lin_edge.weight.view(conv.heads, conv.out_channels, -1)
    how |= {"edges": edge_attr, "edge_query": torch.einsum("nhc,hcd->nhd", query, weight)}
    out = graph.attend(conv, given["value"], **how)
    of_nodes, of_edges = out.tensor_split([conv.out_channels], dim=-1)
    return of_nodes + torch.einsum("nhd,hcd->nhc", of_edges, weight)


def agnn(conv: Any, graph: ScoredGraph, given: Call) -> Tensor:
    """agnn_conv.py: beta times the cosine of both ends."""
    key = given["x_norm"].unsqueeze(1)
    value, query = given["x"].unsqueeze(1), conv.beta * asked_for(key, graph.isolated())
    return graph.attend(conv, value, key=key, query=query, score="dot").squeeze(1)


def fa(conv: Any, graph: ScoredGraph, given: Call) -> Tensor:
    """fa_conv.py: tanh of a number of each end, times the edge's weight."""
    key, query = given["alpha"]
    weight = given["edge_weight"] if graph.edges.weight is None else graph.edges.weight
    how: dict[str, Any] = {"score": "sum", "normalise": "tanh", "edge_weight": weight}
    return graph.attend(conv, given["x"].unsqueeze(1), key=key, query=query, **how).squeeze(1)


def han(conv: Any, graph: ScoredGraph, given: Call) -> Tensor:
    """han_conv.py: as GATConv, over the edges of each type."""
    key, query = given["alpha"]
    how: dict[str, Any] = {"score": "sum", "slope": conv.negative_slope}
    out = graph.attend(conv, given["x"][0], key=key, query=query, **how)
    return out.view(-1, conv.out_channels)


def supergat(conv: Any, graph: ScoredGraph, given: Call) -> Tensor:
    """supergat_conv.py: the product of both ends, alone or as a gate of GATConv's score."""
    x = given["x"]
    if conv.attention_type == "SD":
        query = x / math.sqrt(conv.out_channels)
        how: dict[str, Any] = {"key": x, "query": query, "score": "dot"}
        return graph.attend(conv, x, slope=conv.negative_slope, **how)
    order, (source, target) = graph.order(), graph.index()
    gate = head_dot(graph.hag, x, x, order=order).sigmoid()
    left, right = (x * conv.att_l).sum(-1), (x * conv.att_r).sum(-1)
    scores = (left[source] + right[target]) * gate
    return graph.attend(conv, x, bias=scores, score="given", slope=conv.negative_slope)


def hgt(conv: Any, graph: ScoredTypes, given: Call) -> Tensor:
    """hgt_conv.py: the product of query and key, which have the weights of types by now."""
    return attend(graph.edges.hag, **promoted(given), score="dot").flatten(1)


def hgt_forward(conv: Any, x_dict: Mapping[str, Tensor], edge_index_dict: ScoredTypes) -> Any:
    """hgt_conv.py: keys, values and their products with weights of types, once a node and type."""
    heads, width = conv.heads, conv.out_channels // conv.heads
    keys, queries, values = {}, {}, {}
    for kind, rows in conv.kqv_lin(x_dict).items():
        parts = torch.tensor_split(rows, 3, dim=1)
        keys[kind], queries[kind], values[kind] = (p.view(-1, heads, width) for p in parts)
    query, starts = conv._cat(queries)
    types = edge_index_dict.types
    if _are_matrices(conv.k_rel, conv.v_rel):
        key = _by_types(conv, conv.k_rel.weight, keys, types)
        value = _by_types(conv, conv.v_rel.weight, values, types)
    else:
        key, value, _ = conv._construct_src_node_feat(keys, values, dict.fromkeys(types))
    scale = [conv.p_rel["__".join(t)].expand(len(keys[t[0]]), -1) for t in types]
    key = key * (torch.cat(scale) / math.sqrt(width)).unsqueeze(-1)
    out = hgt(conv, edge_index_dict, {"value": value, "key": key, "query": query})
    outs = {
        kind: out[start : start + len(queries[kind])]
        for kind, start in starts.items()
        if kind in conv.dst_node_types
    }
    rows = conv.out_lin({kind: F.gelu(out) for kind, out in outs.items()})
    for kind in outs:
        outs[kind] = rows[kind]
        if outs[kind].size(-1) == x_dict[kind].size(-1):
            alpha = conv.skip[kind].sigmoid()
            outs[kind] = alpha * outs[kind] + (1 - alpha) * x_dict[kind]
    return outs


def _are_matrices(*lins: Any) -> bool:
    """Whether these are but a matrix for each type, and nobody watches them."""
    return all(
        type(lin) is nn.HeteroLinear
        and not has_hooks(lin)
        and lin.bias is None
        and "forward" not in lin.__dict__
        for lin in lins
    )


def _by_types(
    conv: Any, weight: Tensor, rows: Mapping[str, Tensor], types: tuple[EdgeType, ...]
) -> Tensor:
    """The rows of each type of edges' sources, `[N, H, D]`, times its matrix, one after another."""
    heads, count = conv.heads, len(conv.edge_types)
    weight = weight.view(heads, count, *weight.shape[1:])
    numbers = (conv.edge_types_map[kind] for kind in types)
    parts = [
        (rows[kind[0]].transpose(0, 1) @ weight[:, number]).transpose(0, 1)
        for kind, number in zip(types, numbers)  # noqa: B905  (torch before 2.9 traces no `strict`)
    ]
    return torch.cat(parts)


def general(conv: Any, graph: ScoredGraph, given: Call) -> Tensor:
    """general_conv.py with attention and directed messages."""
    source, target = given["x"]
    heads = (-1, conv.heads, conv.out_channels)
    value = conv.lin_msg(source).view(heads)
    if conv.attention_type == "additive":
        key = (value * conv.att_msg).sum(dim=-1)
        return graph.attend(conv, value, key=key, score="sum", slope=0.2)
    query = (value if target is source else conv.lin_msg(target).view(heads)) / conv.scaler
    return graph.attend(conv, value, key=value, query=query, score="dot", slope=0.2)


def supergat_forward(
    conv: Any, x: Tensor, edge_index: ScoredGraph, neg_edge_index: Any = None, batch: Any = None
) -> Tensor:
    """supergat_conv.py: the edges that its loss compares are drawn as stock draws them."""
    out = conv.propagate(edge_index, x=(h := conv.lin(x).view(-1, conv.heads, conv.out_channels)))
    if conv.training:
        index = edge_index.index()
        positive = conv.positive_sampling(index)
        if neg_edge_index is None:
            neg_edge_index = conv.negative_sampling(index, len(x), batch)
        logits = [_logits(conv, h, drawn) for drawn in (positive, neg_edge_index)]
        conv.att_x = torch.cat(logits, dim=0)
        conv.att_y = conv.att_x.new_zeros(len(conv.att_x))
        conv.att_y[: positive.size(1)] = 1.0
    return with_bias(conv, out.flatten(1) if conv.concat is True else out.mean(dim=1))


def _logits(conv: Any, h: Tensor, edges: Tensor) -> Tensor:
    """Of edges that send nothing, the products of both ends, `[E, H]`, which a loss compares."""
    # A caller's own edges may be what stock takes otherwise, or refuses. On a GPU it is sooner to
    # gather their ends than to sort edges, in main memory, that are drawn anew at each call.
    if not (h.is_cpu and _are_ids(edges, len(h))):
        source, target = edges[0], edges[1]
        by_edges: Tensor = conv.get_attention(
            target, h[target], h[source], num_nodes=len(h), return_logits=True
        )
        return by_edges
    graph = EdgeList(plain_hag(edges, (len(h), len(h))))
    dots = head_dot(graph.hag, h, h, order=graph.order(lambda: edges))
    return dots / math.sqrt(conv.out_channels) if conv.attention_type == "SD" else dots


def _are_ids(edges: Any, num_nodes: int) -> bool:
    """Whether these are edges `[2, E]` of nodes that there are."""
    if type(edges) is not Tensor or edges.dtype not in (torch.int32, torch.int64):
        return False
    if edges.dim() != 2 or len(edges) != 2:
        return False
    least, most = edges.aminmax() if edges.numel() else (0, 0)
    return bool(least >= 0 and most < max(num_nodes, 1))


# With their linear layers -------------------------------------------------------------------------


def gat_forward(conv: Any, x: Any, edge_index: ScoredGraph, *args: Any, **how: Any) -> Any:
    """gat_conv.py: a score's term of an end is a product of its features, too."""
    lins = (conv.lin_src, conv.lin_dst) if conv.lin is None else (conv.lin, conv.lin)
    return _joined(conv, x, edge_index, lins, conv.res, _gat_products, args, how)


def _gat_products(conv: Any, source: Any, target: Any) -> dict[str, Any]:
    heads = (conv.heads, conv.out_channels, -1)
    ends = ((source, conv.att_src), (target, conv.att_dst))
    key, query = (
        Product((lin.weight.view(heads) * att[0].unsqueeze(-1)).sum(1)) for lin, att in ends
    )
    return {
        "score": "sum", "value": Product(source.weight), "key": key, "query": query,
        "shift": conv.bias, "slope": conv.negative_slope,
    }  # fmt: skip


def gatv2_forward(conv: Any, x: Any, edge_index: ScoredGraph, *args: Any, **how: Any) -> Any:
    """gatv2_conv.py."""
    lins = (conv.lin_l, conv.lin_r)
    return _joined(conv, x, edge_index, lins, conv.res, _gatv2_products, args, how)


def _gatv2_products(conv: Any, source: Any, target: Any) -> dict[str, Any]:
    return {
        "score": "vector", "value": product_of(source), "key": None, "query": product_of(target),
        "weight": conv.att[0], "shift": conv.bias, "slope": conv.negative_slope,
    }  # fmt: skip


def transformer_forward(conv: Any, x: Any, edge_index: ScoredGraph, *args: Any, **how: Any) -> Any:
    """transformer_conv.py."""
    lins = (conv.lin_key, conv.lin_query, conv.lin_value)
    root = conv.lin_skip if conv.root_weight else None
    return _joined(conv, x, edge_index, lins, root, _transformer_products, args, how)


def _transformer_products(conv: Any, key: Any, query: Any, value: Any) -> dict[str, Any]:
    scale = 1 / math.sqrt(conv.out_channels)
    bias = None if query.bias is None else query.bias * scale
    scaled = Product(query.weight * scale, bias)
    return {"score": "dot", "value": product_of(value), "key": product_of(key), "query": scaled}


def is_whole(conv: Any) -> bool:
    """Whether a layer, as it is set up, has nothing between its attention and its result."""
    return bool(conv.concat) and conv.lin_edge is None and getattr(conv, "lin_beta", None) is None


def product_of(lin: Any) -> Product:
    """What a linear layer multiplies with."""
    return Product(lin.weight, lin.bias)


def _joined(
    conv: Any,
    x: Any,
    graph: Any,
    lins: tuple[Any, ...],
    root: Any,
    products: Any,
    args: tuple[Any, ...],
    how: dict[str, Any],
) -> Any:
    """`forward` in one function of the features and of the layer's weights, where nobody looks
    between; otherwise stock's, whose `propagate` attends."""
    source, target = x if isinstance(x, PAIRS) else (x, x)
    joins = isinstance(graph, ScoredGraph) and not torch.compiler.is_compiling()
    joins = (
        joins and is_whole(conv) and not any(each is not None for each in (*args, *how.values()))
    )
    joins = joins and all(map(is_bare, (*lins, *(() if root is None else (root,)))))
    if joins and isinstance(source, Tensor) and isinstance(target, Tensor):
        over_root = None if root is None else product_of(root)
        attention = Attention(conv.heads, root=over_root, **products(conv, *lins))
        if may_join(graph.hag, source, target, attention):
            if conv.dropout > 0 and conv.training:
                mask = graph.dropped(attention.heads, source, conv.dropout, source.dtype)
                attention = attention._replace(mask=mask, order=graph.order())
            return attend_products(graph.hag, source, target, attention)
    return conv._hag_stock.forward(conv, x, graph, *args, **how)


# The recipes ------------------------------------------------------------------------------------

NOT_CACHED = Condition(
    lambda conv: conv.cached,
    lambda conv: "cached=True: stock keeps the normalised edges of its first call",
    "cached=False",
)
DIRECTED = Condition(
    lambda conv: not conv.directed_msg,
    lambda conv: "attention over messages of both ends (directed_msg=False)",
    "directed_msg=True",
)
NO_EDGE_CHANNELS = Condition(
    lambda conv: conv.in_edge_channels is not None,
    lambda conv: "attention over messages of edge features (in_edge_channels)",
    "in_edge_channels=None",
)
ITS_OWN_PRODUCT = Condition(
    lambda conv: conv.lin_edge is not None and not is_product(conv.lin_edge),
    lambda conv: "the layer of its edge features was replaced, or has hooks",
    "its own layer of edge features",
)
NO_MOD = Condition(
    lambda conv: conv.mod is not None,
    lambda conv: f"mod={conv.mod!r} changes attention by its number of edges",
    "mod=None",
)
UNSEEN_SCORES = Condition(
    lambda conv: bool(
        conv._edge_update_forward_hooks
        or conv._edge_update_forward_pre_hooks
        or "edge_update" in conv.__dict__  # asked one by one: a compiler guards what was asked
        or "edge_updater" in conv.__dict__
    ),
    lambda conv: "hooks on edge_update, or another one, see the stock computation",
)


def _why_other_attributes(conv: Any, call: Call) -> str | None:
    if (call.get("edge_attr") is None) != (getattr(conv, "lin_edge", None) is None):
        return "edge_attr without edge_dim, or edge_dim without edge_attr"
    return None


def _why_other_weight(conv: Any, call: Call) -> str | None:
    if conv.normalize != (call.get("edge_weight") is None):
        return "edge_weight where it normalises, or none where it does not"
    return None


def _where_it_attends(condition: Condition) -> Condition:
    """A condition of a layer that has attention as an option."""
    needs = condition.needs and f"{condition.needs}, where it has attention"
    return replace(
        condition, holds=lambda conv: conv.attention and condition.holds(conv), needs=needs
    )


def _all_heads(conv: Any, x: Tensor) -> tuple[int, int]:
    """Of layers whose `out_channels` are those of all heads together."""
    return conv.heads, conv.out_channels


_OVER = (SUM, SOURCE_TO_TARGET, UNSEEN_SCORES)
_ATTENTION = Recipe(conditions=_OVER)
_OF_EDGES = replace(_ATTENTION, unfit=_why_other_attributes)

# `fused_below`: beside compiled stock with 300 to 100,000 edges, 16 to 64 numbers a message.
RECIPES: dict[type, Recipe] = {
    nn.GATConv: replace(_OF_EDGES, attention=gat, over_products=gat_forward),
    nn.GATv2Conv: replace(
        _OF_EDGES,
        attention=gatv2,
        over_products=gatv2_forward,
        whole=is_whole,
        fused_below=(45_000, 45_000),
    ),
    nn.TransformerConv: replace(
        _OF_EDGES,
        attention=transformer,
        over_products=transformer_forward,
        whole=is_whole,
        fused_below=(100_000, 220_000),
        conditions=(*_OVER, ITS_OWN_PRODUCT),
    ),
    nn.AGNNConv: replace(_ATTENTION, attention=agnn, fused_below=(130_000, 4_000_000)),
    nn.FAConv: Recipe(
        attention=fa, unfit=_why_other_weight, fuses=False, conditions=(*_OVER, NOT_CACHED)
    ),
    nn.GeneralConv: Recipe(
        message=general_message,
        offset=general_offset,
        attention=general,
        unfit=_why_other_attributes,
        conditions=tuple(map(_where_it_attends, (*_OVER, DIRECTED, NO_EDGE_CHANNELS))),
    ),
    nn.HANConv: replace(_ATTENTION, attention=han, numbers=_all_heads),
    nn.HGTConv: replace(
        _ATTENTION, attention=hgt, forward=hgt_forward, numbers=_all_heads, joins=True
    ),
    nn.SuperGATConv: replace(
        _ATTENTION,
        attention=supergat,
        forward=supergat_forward,
        breaks=lambda conv: bool(conv.training),  # drawing the edges of its loss does
    ),
    nn.RGATConv: Recipe(
        attention=rgat,
        forward=rgat_forward,
        numbers=numbers_of,
        unfit=_why_other_attributes,
        conditions=(SUM, SOURCE_TO_TARGET, NO_MOD),
        breaks=attends_within,
    ),
}
