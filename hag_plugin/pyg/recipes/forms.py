"""The table of layers whose messages come in blocks of edges, and leaner forms of some messages.

A linear layer of `[x_i, x_j, e_ij]` is the sum of one of each: the first two are applied to nodes,
of which there are fewer than edges. Each function names the file of torch_geometric/nn/conv that it
follows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric import nn as pyg

from hag_plugin.limits import limits
from hag_plugin.ops.message_blocks import Messages, Rows
from hag_plugin.pyg.recipes.in_blocks import (
    LINEAR,
    EdgeRecipe,
    Given,
    aggregated,
    names_of,
    widest,
)

Linear = Any  # torch's, or PyG's


def _rows(layer: Linear, x: Tensor, first: int, last: int, bias: bool = False) -> Tensor:
    """What some columns of a linear layer's weight make of rows."""
    return nn.functional.linear(x, layer.weight[:, first:last], layer.bias if bias else None)


def _plus(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias


def res_gated(conv: Any, given: Given) -> Messages | None:
    """res_gated_graph_conv.py with edge features: gates and values are sums of three terms."""
    edge_attr = given.values.get("edge_attr")
    names = "lin_key", "lin_query", "lin_value"
    if edge_attr is None or not given.is_dense or not _are_linear(conv, *names):
        return None
    x_i, x_j = given.target("k"), given.source("q")
    if given.source("v") is not x_j or edge_attr.dim() != 2:
        return None
    key, query, value = conv.lin_key, conv.lin_query, conv.lin_value
    if (query.bias is None) != (value.bias is None):
        return None
    if not (_take(key, x_i, edge_attr) and _take(query, x_j, edge_attr)):
        return None
    width, i, j = len(key.weight), x_i.shape[-1], x_j.shape[-1]
    both = torch.cat([query.weight[:, :j], value.weight[:, :j]])
    of_edges = torch.cat([key.weight[:, i:] + query.weight[:, j:], value.weight[:, j:]])
    source = nn.functional.linear(x_j, both)
    if query.bias is not None:
        source = source + torch.cat([query.bias, value.bias])

    def message(module: Any, k: Rows, qv: Rows, edges: Rows, whole: Rows) -> Tensor:
        made = qv[0] + nn.functional.linear(edges[0], whole[0])
        gated: Tensor = module.act(made[:, :width] + k[0]) * made[:, width:]
        return gated

    return aggregated(
        *(conv, names_of(conv, ("act",)), message),
        targets=(_rows(key, x_i, 0, i, bias=True),),
        sources=(source,),
        edges=(edge_attr,),
        whole=(of_edges,),
        width=3 * width,
    )


def cg(conv: Any, given: Given) -> Messages | None:
    """cg_conv.py: both of its linear layers at once."""
    if not given.is_dense or not _are_linear(conv, "lin_f", "lin_s"):
        return None
    x_i, x_j, edge_attr = given.target("x"), given.source("x"), given.values.get("edge_attr")
    if (conv.lin_f.bias is None) != (conv.lin_s.bias is None):
        return None
    if not all(_take(linear, x_i, x_j, edge_attr) for linear in (conv.lin_f, conv.lin_s)):
        return None
    i, j = x_i.shape[-1], x_i.shape[-1] + x_j.shape[-1]
    weight = torch.cat([conv.lin_f.weight, conv.lin_s.weight])
    bias = None if conv.lin_f.bias is None else torch.cat([conv.lin_f.bias, conv.lin_s.bias])
    width, has_edges = len(conv.lin_f.weight), edge_attr is not None

    def message(module: Any, x_i: Rows, x_j: Rows, edges: Rows, whole: Rows) -> Tensor:
        made = x_i[0] + x_j[0]
        if has_edges:
            made = made + nn.functional.linear(edges[0], whole[0])
        return made[:, :width].sigmoid() * nn.functional.softplus(made[:, width:])

    return aggregated(
        *(conv, (), message),
        targets=(nn.functional.linear(x_i, weight[:, :i], bias),),
        sources=(nn.functional.linear(x_j, weight[:, i:j]),),
        edges=(edge_attr,) if has_edges else (),
        whole=(weight[:, j:],) if has_edges else (),
        width=4 * width,
    )


def edge(conv: Any, given: Given) -> Messages | None:
    """edge_conv.py: `W [x_i, x_j - x_i]` is `(W_1 - W_2) x_i + W_2 x_j`."""
    x_i, x_j = given.target("x"), given.source("x")
    first = _first_linear(conv.nn)
    if first is None or not given.is_dense or x_i.dim() != 2 or x_j.dim() != 2:
        return None
    path, linear = first
    if not _take(linear, x_i, x_j):
        return None
    width = x_i.shape[1]
    left, right = linear.weight[:, :width], linear.weight[:, width:]
    module = _without(conv, ("nn", *path))

    def message(module: Any, x_i: Rows, x_j: Rows, edges: Rows, whole: Rows) -> Tensor:
        made: Tensor = module.nn(x_i[0] + x_j[0])
        return made

    return aggregated(
        *(conv, names_of(module, ("nn",)), message, module),
        targets=(nn.functional.linear(x_i, left - right, linear.bias),),
        sources=(nn.functional.linear(x_j, right),),
        edges=(),
        width=2 * max(len(linear.weight), widest(module.nn)),
    )


def pna(conv: Any, given: Given) -> Messages | None:
    """pna_conv.py: the first layer of each tower, after that of the edge's features."""
    x_i, x_j, edge_attr = given.target("x"), given.source("x"), given.values.get("edge_attr")
    found = [_first_linear(tower) for tower in conv.pre_nns]
    if None in found or not given.is_dense or x_i.dim() != 3:
        return None
    if edge_attr is not None and not _are_linear(conv, "edge_encoder"):
        return None
    firsts = [each for each in found if each is not None]
    linears, width = [linear for _, linear in firsts], conv.F_in
    encoded = None if edge_attr is None else conv.edge_encoder.weight.t()  # as wide as they are
    if not all(_take(linear, x_i, x_j, encoded) for linear in linears):
        return None
    module = conv
    for n, (path, _) in enumerate(firsts):
        module = _without(module, ("pre_nns", str(n), *path))
    is_last = all(len(tower) == 1 for tower in conv.pre_nns)
    edges: tuple[Tensor, ...] = ()
    whole: tuple[Tensor, ...] = ()
    target = _of_towers(linears, x_i, 0, width, bias=True)
    if edge_attr is not None:
        encoder = conv.edge_encoder
        weight = torch.cat([linear.weight[:, 2 * width :] for linear in linears])
        edges, whole = (edge_attr,), (weight @ encoder.weight,)
        if encoder.bias is not None:
            target = target + (weight @ encoder.bias).view(len(linears), -1)

    def message(module: Any, x_i: Rows, x_j: Rows, edges: Rows, whole: Rows) -> Tensor:
        made = x_i[0] + x_j[0]
        if edges:
            made = made + nn.functional.linear(edges[0], whole[0]).view_as(made)
        if is_last:
            return made
        return torch.stack([tower(made[:, n]) for n, tower in enumerate(module.pre_nns)], dim=1)

    return aggregated(
        *(conv, names_of(module, ("pre_nns",)), message, module),
        targets=(target,),
        sources=(_of_towers(linears, x_j, width, 2 * width),),
        edges=edges,
        whole=whole,
        width=3 * target[:1].numel(),
    )


def _of_towers(
    linears: list[Linear], x: Tensor, first: int, last: int, bias: bool = False
) -> Tensor:
    parts = [_rows(linear, x[:, n], first, last, bias) for n, linear in enumerate(linears)]
    return torch.stack(parts, dim=1)


def general(conv: Any, given: Given) -> Messages | None:
    """general_conv.py without attention: its message is a sum of linear terms."""
    x_i, x_j, edge_attr = given.target("x"), given.source("x"), given.values.get("edge_attr")
    if not given.is_dense or (edge_attr is not None and not _are_linear(conv, "lin_edge")):
        return None
    heads, width = conv.heads, conv.out_channels
    edges: tuple[Tensor, ...] = ()
    whole: tuple[Tensor, ...] = ()
    targets = () if conv.directed_msg else (conv.lin_msg_i(x_i),)
    source = conv.lin_msg(x_j)
    if edge_attr is not None:
        edges, whole = (edge_attr,), (conv.lin_edge.weight,)
        source = _plus(source, conv.lin_edge.bias)

    def message(module: Any, x_i: Rows, x_j: Rows, edges: Rows, whole: Rows) -> Tensor:
        made = x_j[0] + x_i[0] if x_i else x_j[0]
        if edges:
            made = made + nn.functional.linear(edges[0], whole[0])
        split: Tensor = made.view(-1, heads, width)
        return split

    return aggregated(
        *(conv, (), message),
        targets=targets,
        sources=(source,),
        edges=edges,
        whole=whole,
        width=3 * heads * width,
    )


# Networks, and what they are without some of their layers ---------------------------------------


def _are_linear(conv: Any, *names: str) -> bool:
    return all(type(getattr(conv, name)) in LINEAR for name in names)


def _take(linear: Linear, *rows: Tensor | None) -> bool:
    """Whether a linear layer is as wide as rows beside each other. Where it is not, stock's code
    says so in its own words."""
    widths = [each.shape[-1] for each in rows if each is not None]
    return bool(linear.weight.shape[1] == sum(widths))


def _first_linear(network: Any) -> tuple[tuple[str, ...], Linear] | None:
    """The linear layer that a network begins with, and where it is."""
    if type(network) in LINEAR:
        return (), network
    if type(network) is pyg.MLP:
        return ("lins", "0"), network.lins[0]
    if type(network) is nn.Sequential and len(network):
        name = next(iter(network._modules))
        if type(network[0]) in LINEAR:
            return (name,), network[0]
    return None


def _without(module: Any, path: tuple[str, ...]) -> Any:
    """A shallow copy of a module, with nothing done in one place."""
    if not path:
        return nn.Identity()
    copy: Any = object.__new__(type(module))
    copy.__dict__.update(module.__dict__)
    name, *rest = path
    inner = _without(module._modules[name], tuple(rest))
    copy.__dict__["_modules"] = {**module._modules, name: inner}
    return copy


# The table --------------------------------------------------------------------------------------


def _has_relations(conv: Any) -> str | None:
    return "a graph for each relation" if conv.num_relations > 1 else None


def _has_small_matrices(conv: Any) -> str | None:
    inputs = conv.in_channels
    width = inputs[0] if isinstance(inputs, tuple) else inputs
    if torch.is_grad_enabled() and width * conv.out_channels < limits.block_matrix:
        return "in training with small matrices of edges, stock is as fast"
    return None


def _attends(conv: Any) -> str | None:
    return "attention weighs each edge by both of its ends" if conv.attention else None


_EDGE = EdgeRecipe(("nn",), ("x_i", "x_j"), edge)
_POINTS = ("x_j", "pos_i", "pos_j")
FORMS: dict[type, EdgeRecipe] = {
    pyg.ResGatedGraphConv: EdgeRecipe(
        ("lin_key", "lin_query", "lin_value", "act"),
        ("k_i", "q_j", "v_j", "edge_attr"),
        res_gated,
    ),
    pyg.GINEConv: EdgeRecipe(("lin",), ("x_j", "edge_attr")),
    pyg.GENConv: EdgeRecipe(("lin_edge",), ("x_j", "edge_attr")),
    pyg.PNAConv: EdgeRecipe(("edge_encoder", "pre_nns"), ("x_i", "x_j", "edge_attr"), pna),
    pyg.EdgeConv: _EDGE,
    pyg.DynamicEdgeConv: _EDGE,
    pyg.CGConv: EdgeRecipe(("lin_f", "lin_s"), ("x_i", "x_j", "edge_attr"), cg),
    pyg.NNConv: EdgeRecipe(("nn",), ("x_j", "edge_attr"), why_not=_has_small_matrices),
    pyg.GMMConv: EdgeRecipe(("g", "mu", "sigma"), ("x_j", "edge_attr")),
    pyg.PointNetConv: EdgeRecipe(("local_nn",), _POINTS),
    pyg.PPFConv: EdgeRecipe(("local_nn",), (*_POINTS, "normal_i", "normal_j")),
    pyg.PointGNNConv: EdgeRecipe(("mlp_h", "mlp_f"), ("x_i", *_POINTS)),
    pyg.FiLMConv: EdgeRecipe(("act",), ("x_j", "beta_i", "gamma_i"), why_not=_has_relations),
    pyg.GeneralConv: EdgeRecipe(
        ("lin_msg", "lin_msg_i", "lin_edge"),
        ("x_i", "x_j", "edge_attr"),
        general,
        _attends,
        has_own=False,
    ),
}
