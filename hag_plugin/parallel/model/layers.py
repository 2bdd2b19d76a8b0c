"""One table: what the layers of PyG and DGL are, as operations. Neither is imported here.

An entry is found by the qualified name of a layer's class or of one it is derived from. It is
given the walk through the model, the layer and the arguments of its call, names its operations,
and returns the tensor that stands for the output. What an operation beside the sum over edges
computes is given with it as a function and its arguments. A layer that is one sum over edges and
one product, as its record in `hag_plugin.layers` tells them, has the entry `convolution`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from hag_plugin.layers.record import Record, held
from hag_plugin.layers.table import record_of
from hag_plugin.parallel.model.calls import named
from hag_plugin.parallel.model.functions import tensors
from hag_plugin.parallel.model.own_code import own_code, why_not_followed
from hag_plugin.parallel.model.relation_attention import (
    han_joined,
    han_scores,
    han_targets,
    hgt_joined,
    hgt_skip,
    hgt_sources,
    hgt_targets,
)
from hag_plugin.parallel.model.walk import Entry, Walk
from hag_plugin.reducers import LINEAR, REDUCES
from hag_plugin.saved import set_module


@set_module("hag_plugin.parallel")
class UnknownLayerError(TypeError):
    """A layer cannot be planned."""


class _NotCovered(Exception):
    """A layer is used in a way that its entry does not tell: it runs as it is, whole."""


def _one(walk: Walk, x: Any) -> Tensor:
    """The features, where a layer also takes a pair of the same."""
    if isinstance(x, (tuple, list)) and len(x) == 2 and x[0] is x[1]:
        x = x[0]
    if not isinstance(x, Tensor):
        raise _NotCovered
    return x


def _two(x: Any) -> tuple[Tensor, Tensor]:
    """What a layer is given of sources and of targets; twice the same where they are the same."""
    if isinstance(x, Tensor):
        return x, x
    if not (isinstance(x, (tuple, list)) and len(x) == 2 and all(isinstance(t, Tensor) for t in x)):
        raise _NotCovered
    return x[0], x[1]


def _edges(edges: Any) -> Any:
    """The edges, where a layer also takes a sparse matrix."""
    if _is_matrix(edges):
        raise _NotCovered
    return edges


def _is_matrix(edges: Any) -> bool:
    return isinstance(edges, Tensor) and edges.layout != torch.strided


def _opened(walk: Walk, layer: Any, record: Record, matrix: Tensor) -> tuple[Tensor, Tensor | None]:
    """The edges of a matrix; their weights, where its values are not all 1.

    Raises:
        _NotCovered: the layer does more with it than to multiply, or takes the mean of loops that
            it adds to its loops.
    """
    edges, values = walk.opened(matrix)
    loops, ones, reduce = record.self_loops(layer), bool((values == 1).all()), record.reduce(layer)
    twice = loops is not False and bool((edges[0] == edges[1]).any())
    heavier = loops == "fill" and getattr(layer, "improved", False)
    multiplies = getattr(layer, "fuse", False) and _commutes(reduce)
    if values.dim() != 1 or not (multiplies or (ones and not heavier)):
        raise _NotCovered
    if twice and reduce != ("sum",):
        raise _NotCovered
    return edges, None if ones and not heavier else values


# Reducers of features one by one, in which no weights are learned.
BY_FEATURE = (*REDUCES, "mul", "var", "std", "median")


def _commutes(reduce: tuple[str, ...]) -> bool:
    return len(reduce) == 1 and reduce[0] in LINEAR


def whole(walk: Walk, layer: Any, args: Any, kwargs: Any) -> Tensor:
    """A layer that is not in the table, or not as it is used: it runs on every device, whole."""
    given = [*args, *kwargs.values()]
    if any(isinstance(value, dict) for value in (*given, *_inside(given))):
        raise UnknownLayerError(
            f"layer {walk.path!r} ({type(layer).__name__}) is given dictionaries by type of node: "
            "it cannot be planned; expected layers in a HeteroConv or HeteroGraphConv, a model "
            "that to_hetero made, or data.to_homogeneous() with edge_type"
        )
    known = list({id(t): t for t in tensors(given) if walk.knows(t)}.values())
    for edges in tensors(given):
        if edges.dtype == torch.int64 and edges.dim() == 2 and edges.shape[0] == 2:
            walk.look_at(edges)
    return walk.opaque(layer, known, _by_edges(layer, args, kwargs, known))


def _inside(given: Sequence[Any]) -> list[Any]:
    """What pairs among arguments have in them."""
    return [each for value in given if isinstance(value, (tuple, list)) for each in value]


def _by_edges(layer: Any, args: Any, kwargs: Any, known: Sequence[Tensor]) -> Tensor | None:
    """The edges of a layer that is given features, edges and what each edge has, and no more."""
    ends = list(tensors(args[:1]))
    given = list(tensors([*args, kwargs]))[len(ends) :]
    plain = len(args) > 1 and given and args[1] is given[0] and len(ends) in (1, 2)
    if not plain or not hasattr(layer, "propagate"):
        return None
    if {id(t) for t in known} != {id(t) for t in ends}:
        return None
    edges, *rest = given
    is_edges = edges.layout == torch.strided and edges.dtype == torch.int64 and edges.dim() == 2
    if not is_edges or edges.shape[0] != 2:
        return None
    of_edges = all(t.dim() > 0 and len(t) == edges.shape[1] for t in rest)
    forward = getattr(layer, "flow", "source_to_target") == "source_to_target"
    return edges if of_edges and forward and not getattr(layer, "cached", False) else None


# What layers compute beside the sum over edges --------------------------------------------------


def add_scaled(out: Tensor, x: Tensor, eps: Tensor) -> Tensor:
    """Of GIN: the sum over neighbours, and `(1 + eps)` times the node itself."""
    return out + (1 + eps) * x


def largest(xs: Sequence[Tensor]) -> Tensor:
    """Of jumping knowledge: the maximum over layers."""
    return torch.stack(tuple(xs), dim=-1).max(dim=-1)[0]


def graph_norm(x: Tensor, weight: Tensor, bias: Tensor, mean_scale: Tensor, eps: float) -> Tensor:
    """GraphNorm of one graph: features are centred on a learned share of their mean."""
    out = x - x.mean(dim=0, keepdim=True) * mean_scale
    return weight * out / (out.pow(2).mean(dim=0, keepdim=True) + eps).sqrt() + bias


def graph_layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """PyG's LayerNorm of one graph: over all its values."""
    out = (x - x.mean()) / (x.std(unbiased=False) + eps)
    return out if weight is None or bias is None else out * weight + bias


def one_product(x: Tensor, weight: Tensor, which: int) -> Tensor:
    """Of GatedGraphConv: `[n, F]` times one of several matrices `[L, F, F]`."""
    return x @ weight[which]


def residual_product(x: Tensor, weight: Tensor, beta: float) -> Tensor:
    """Of GCN2: `(1 - beta) x + beta x W`."""
    return torch.addmm(x, x, weight, beta=1.0 - beta, alpha=beta)


def stacked_product(x: Tensor, weight: Tensor, which: int | None = None) -> Tensor:
    """Of ARMA: `[n, F]` or, a block for each stack, `[n, K F]`, times `[K, F, G]`: `[n, K G]`."""
    weight = weight if which is None else weight[which]
    if x.shape[1] == weight.shape[1]:
        return torch.einsum("nf,kfg->nkg", x, weight).flatten(1)
    return torch.einsum("nkf,kfg->nkg", x.view(len(x), *weight.shape[:2]), weight).flatten(1)


def stacked_bias(x: Tensor, bias: Tensor, which: int) -> Tensor:
    """Of ARMA: `[n, K G]` with the bias of each stack, one of `[T, K, 1, G]`."""
    return x + bias[which].view(1, -1)


def mean_of_stacks(x: Tensor, stacks: int) -> Tensor:
    """Of ARMA: `[n, K G]` to `[n, G]`."""
    return x.view(len(x), stacks, -1).mean(dim=1)


def combined(xs: Sequence[Tensor], aggr: str) -> Tensor:
    """Of HeteroConv: what several relations give the same nodes, `[n, G]` each."""
    out = getattr(torch, aggr)(torch.stack(tuple(xs)), dim=0)
    result: Tensor = out if isinstance(out, Tensor) else out[0]
    return result


# Sums over edges ------------------------------------------------------------------------------


def convolution(walk: Walk, layer: Any, args: Any, kwargs: Any) -> Tensor:
    """A layer that is what its record tells, and nothing else."""
    return _convolution(walk, layer, named(layer, args, kwargs))


def _convolution(walk: Walk, layer: Any, call: dict[str, Any], **changes: Any) -> Tensor:
    """One sum over edges with its product, as the layer's record tells them.

    Args:
        walk: through the model.
        layer: one that has a record.
        call: its arguments by name.
        changes: attributes of the operation that the record does not tell.

    Raises:
        _NotCovered: edges have other values than one weight each, or the reducer is another.
    """
    record = record_of(type(layer))
    assert record is not None
    for name in record.edge_values:
        if name != "edge_weight" and call.get(name) is not None:
            raise _NotCovered
    x, own = _two(call[record.features or "x"])
    weight, reduce = held(layer, record.weight), record.reduce(layer)
    given = call.get("edge_weight")
    if isinstance(given, Tensor):
        if walk.knows(given) or walk.is_weight(given):  # they are learned
            raise _NotCovered
        walk.look_at(given)
    several = bool(changes.get("edge_products"))
    edges, values, loops = call[record.graphs[0]], None, record.self_loops(layer)
    if _is_matrix(edges):
        if given is not None or several:
            raise _NotCovered
        edges, values = _opened(walk, layer, record, edges)
        loops = "add" if loops else False  # PyG adds loops to a matrix even where it has some
    if not several and (len(reduce) != 1 or reduce[0] not in BY_FEATURE):
        raise _NotCovered
    is_pair, root = own is not x, held(layer, record.root)
    scaled = any(record.exponents(layer)) and record.library != "dgl"  # by the targets' degrees
    one_graph = not several and loops is False and not scaled
    if is_pair and not (one_graph and "relations" not in changes):
        raise _NotCovered
    width = attrgetter(weight)(layer).shape[record.outputs] if weight else x.shape[-1]
    told: dict[str, Any] = {
        "input_width": x.shape[-1],
        "transform": bool(weight),
        "commutes": bool(weight) and _commutes(reduce),
        "root": bool(root) and not is_pair,
        "bias": bool(held(layer, record.bias)),
        "reduce": reduce,
        "weight": values if given is None else given,
    }
    ends = (x, own) if is_pair else x
    graph = walk.graph(ends, edges, loops, call.get("edge_type"), values)
    told |= {"graph": graph, "dims": _dimensions(layer, record), **changes}
    if not told["dims"] and not several:
        told["used"] = ()  # of what the layer has, other operations
    elif is_pair:
        told["used"] = [name for name in told["dims"] if name != root]
    out = walk.add("convolution", [x], told.pop("width", width), **told)
    return _with_targets(walk, layer, out, own, root) if is_pair and root else out


def _with_targets(walk: Walk, layer: Any, out: Tensor, own: Tensor, root: str) -> Tensor:
    """What was summed, and the product of the targets' own rows, which are not the sources'."""
    weight = attrgetter(root)(layer)
    product = walk.add(
        "linear", [own], weight.shape[0], input_width=own.shape[-1], suffix="root",
        call=(F.linear, own, weight),
    )  # fmt: skip
    return walk.add("sum", [out, product], weight.shape[0], suffix="root_sum",
                    call=(torch.add, out, product))  # fmt: skip


def _dimensions(layer: Any, record: Record) -> dict[str, dict[str, int]]:
    """Those of a layer's parameters, by name. Of relations, those that each has for itself."""
    found: dict[str, dict[str, int]] = {}
    for name in filter(None, (held(layer, record.weight), held(layer, record.root))):
        dims = attrgetter(name)(layer).dim()
        found[name] = {"inputs": record.inputs % dims, "outputs": record.outputs % dims}
    if bias := held(layer, record.bias):
        found[bias] = {"outputs": 0}
    if record.relations is not None:
        each = held(layer, record.coefficients) or held(layer, record.weight)
        found[each] = found.get(each, {}) | {"parts": 0}
    return found


def _with_itself(walk: Walk, layer: Any, out: Tensor, x: Tensor) -> Tensor:
    """Of GIN: what was summed, and the node itself."""
    values = layer.eps.numel() if layer.eps.requires_grad else 0
    call = (add_scaled, out, x, layer.eps)
    return walk.add("sum", [out, x], x.shape[-1], suffix="self", values=values, call=call)


# PyG ------------------------------------------------------------------------------------------


def _sage(walk: Walk, conv: Any, args: Any, kwargs: Any) -> Tensor:
    if conv.project and hasattr(conv, "lin"):
        raise _NotCovered
    out = convolution(walk, conv, args, kwargs)
    if conv.normalize:
        out = walk.add(
            "normalisation", [out], conv.out_channels, over="features", suffix="normalize",
            statistics=(1, 1), call=(F.normalize, out, 2.0, -1),
        )  # fmt: skip
    return out


def _gin(walk: Walk, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = named(conv, args, kwargs)
    out = _with_itself(walk, conv, _convolution(walk, conv, call), _two(call["x"])[1])
    result: Tensor = conv.nn(out)
    return result


def _simple(walk: Walk, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = named(conv, args, kwargs)
    out, x = _convolution(walk, conv, call), _two(call["x"])[1]
    if conv.combine_root == "sum":
        return walk.add("sum", [out, x], x.shape[-1], suffix="self", call=(torch.add, out, x))
    if conv.combine_root == "cat":
        joined = (torch.cat, (x, out), -1)
        width = x.shape[-1] + out.shape[-1]
        return walk.add("concatenation", [x, out], width, suffix="self", call=joined)
    return out


def _sg(walk: Walk, conv: Any, args: Any, kwargs: Any) -> Tensor:
    if conv.cached:
        raise _NotCovered
    call = named(conv, args, kwargs)
    for hop in range(conv.K):
        call["x"] = _convolution(walk, conv, call, suffix=f"hop{hop}")
    out: Tensor = conv.lin(call["x"])
    return out


def _appnp(walk: Walk, conv: Any, args: Any, kwargs: Any) -> Tensor:
    if conv.dropout:  # of edges
        raise _NotCovered
    call = named(conv, args, kwargs)
    first = _one(walk, call["x"])
    for hop in range(conv.K):
        out = _convolution(walk, conv, call, suffix=f"hop{hop}")
        call["x"] = out * (1 - conv.alpha) + conv.alpha * first
    return _one(walk, call["x"])


def _ssg(walk: Walk, conv: Any, args: Any, kwargs: Any) -> Tensor:
    if conv.cached:
        raise _NotCovered
    call = named(conv, args, kwargs)
    total = _one(walk, call["x"]) * conv.alpha
    for hop in range(conv.K):
        call["x"] = _convolution(walk, conv, call, suffix=f"hop{hop}")
        total = total + (1 - conv.alpha) / conv.K * call["x"]
    out: Tensor = conv.lin(total)
    return out


def _tag(walk: Walk, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = named(conv, args, kwargs)
    out: Tensor = conv.lins[0](_one(walk, call["x"]))
    for hop, lin in enumerate(conv.lins[1:]):
        call["x"] = _convolution(walk, conv, call, suffix=f"hop{hop}")
        out = out + lin(call["x"])
    return out if conv.bias is None else out + conv.bias


def _cluster_gcn(walk: Walk, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = named(conv, args, kwargs)
    x, edges = _one(walk, call["x"]), _edges(call["edge_index"])
    if not conv.add_self_loops:
        raise _NotCovered
    out = _convolution(walk, conv, call)
    if conv.diag_lambda:  # more of the node itself, by its degree, its one loop counted
        into = edges[1][edges[0] != edges[1]]
        degree = torch.zeros(len(x), device=into.device).index_add_(0, into, torch.ones_like(
            into, dtype=torch.float32)) + 1  # fmt: skip
        out = out + x * (conv.diag_lambda / degree).to(x.device, x.dtype).view(-1, 1)
    result: Tensor = conv.lin_out(out) + conv.lin_root(x)
    return result


def _cheb(walk: Walk, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = named(conv, args, kwargs)
    before, edges = _one(walk, call["x"]), _edges(call["edge_index"])
    weight, largest = call.get("edge_weight"), call.get("lambda_max")
    if call.get("batch") is not None:
        raise _NotCovered
    if isinstance(weight, Tensor):
        if walk.knows(weight) or walk.is_weight(weight):
            raise _NotCovered
        walk.look_at(weight)

    def laplacian() -> tuple[Tensor, Tensor]:
        exact = weight if weight is None else weight.double()
        found: tuple[Tensor, Tensor] = conv.__norm__(
            edges, len(before), exact, conv.normalization, largest, torch.float64
        )
        return found

    words = f"Laplacian ({conv.normalization}, {largest}" + (", weights)" if weight is not None
                                                            else ")")  # fmt: skip
    graph = walk.weighed(before, edges, words, laplacian)

    out: Tensor = conv.lins[0](before)
    last = before
    for hop, lin in enumerate(conv.lins[1:]):
        this = _hop(walk, last, graph, hop)
        this = 2.0 * this - before if hop else this
        out = out + lin(this)
        before, last = last, this
    return out if conv.bias is None else out + conv.bias


def _hop(walk: Walk, x: Tensor, graph: str, hop: int) -> Tensor:
    """A sum over the edges of a graph whose weights are known."""
    return walk.add("convolution", [x], x.shape[-1], suffix=f"hop{hop}", graph=graph,
                    input_width=x.shape[-1], used=())  # fmt: skip


def _gcn2(walk: Walk, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = named(conv, args, kwargs)
    first = call["x_0"]
    if conv.cached or not (isinstance(first, Tensor) and walk.knows(first)):
        raise _NotCovered
    out, first = _convolution(walk, conv, call) * (1 - conv.alpha), conv.alpha * first
    if conv.weight2 is None:
        return _by_row(walk, "product", out.shape[-1], residual_product, out + first,
                       conv.weight1, conv.beta)  # fmt: skip
    first = _by_row(walk, "first", out.shape[-1], residual_product, first, conv.weight2, conv.beta)
    out = _by_row(walk, "product", out.shape[-1], residual_product, out, conv.weight1, conv.beta)
    return out + first


def _arma(walk: Walk, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = named(conv, args, kwargs)
    x = _one(walk, call["x"])
    width = conv.num_stacks * conv.out_channels
    for t in range(conv.num_layers):
        at = 0 if conv.shared_weights else t
        weights = (conv.weight, 0 if conv.shared_weights else t - 1) if t else (conv.init_weight,)
        call["x"] = _by_row(walk, "product", width, stacked_product, call["x"], *weights)
        out = _convolution(walk, conv, call)
        root = F.dropout(x, p=conv.dropout, training=conv.training)
        out = out + _by_row(walk, "root", width, stacked_product, root, conv.root_weight, at)
        if conv.bias is not None:
            out = _by_row(walk, "bias", width, stacked_bias, out, conv.bias, at)
        call["x"] = out if conv.act is None else conv.act(out)
    out = _one(walk, call["x"])
    if conv.num_stacks == 1:
        return out
    return _by_row(walk, "mean", conv.out_channels, mean_of_stacks, out, conv.num_stacks)


def _gated_graph(walk: Walk, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = named(conv, args, kwargs)
    x, width = _one(walk, call["x"]), conv.out_channels
    if x.shape[-1] > width:
        raise _NotCovered  # which says so
    if x.shape[-1] < width:
        x = F.pad(x, (0, width - x.shape[-1]))
    for i in range(conv.num_layers):
        call["x"] = _by_row(walk, "product", width, one_product, x, conv.weight, i)
        x = conv.rnn(_convolution(walk, conv, call), x)
    return x


def _by_row(walk: Walk, suffix: str, width: int, function: Any, x: Tensor, *rest: Any) -> Tensor:
    """A function of each row by itself, and of parameters of the layer."""
    values = sum(t.numel() for t in tensors(rest) if t.requires_grad)
    return walk.add("opaque", [x], width, suffix=suffix, by_row=True, values=values,
                    call=(function, x, *rest))  # fmt: skip


def _gat(walk: Walk, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = named(conv, args, kwargs)
    x = _one(walk, call["x"])
    if call.get("edge_attr") is not None or call.get("return_attention_weights"):
        raise _NotCovered
    if not isinstance(conv.in_channels, int):  # sources and targets have weights each
        raise _NotCovered
    width = conv.out_channels * (conv.heads if conv.concat else 1)
    out = walk.add(
        "attention",
        [x],
        width,
        input_width=conv.in_channels,
        graph=walk.graph(x, _edges(call["edge_index"]), "fill" if conv.add_self_loops else False),
        heads=conv.heads,
        concatenated=bool(conv.concat),
        bias=conv.bias is not None,
        keeps="mask" if conv.dropout else "",
        dims={"lin.weight": {"parts": 0}, "att_src": {"parts": 1}, "att_dst": {"parts": 1}}
        | ({"bias": {"parts": 0}} if conv.concat else {}),
    )
    if getattr(conv, "residual", False):
        own = walk.add(
            "linear", [x], width, input_width=conv.in_channels, suffix="residual",
            call=(F.linear, x, conv.res.weight),
        )  # fmt: skip
        added = (torch.add, out, own)
        out = walk.add("sum", [out, own], width, suffix="residual_sum", call=added)
    return out


def _rgcn(walk: Walk, conv: Any, args: Any, kwargs: Any) -> Tensor:
    return _convolution(
        walk,
        conv,
        named(conv, args, kwargs),
        width=conv.out_channels,
        input_width=conv.in_channels_l,
        relations=conv.num_relations,
        bases=conv.num_bases or 0,
        blocks=conv.num_blocks or 1,
    )


def _pna(walk: Walk, conv: Any, args: Any, kwargs: Any) -> Tensor:
    pre = [(m.in_features, m.out_features) for m in _linears(conv.pre_nns)]
    post = [(m.in_features, m.out_features) for m in _linears(conv.post_nns)]
    lin = (conv.lin.in_channels, conv.lin.out_channels)
    return _convolution(
        walk,
        conv,
        named(conv, args, kwargs),
        width=conv.out_channels,
        bias=True,
        edge_products=tuple(pre),
        node_products=(*post, lin),
        message_width=conv.towers * conv.F_in,
        values=sum(n for _, n in (*pre, *post)),  # their biases
    )


def _linears(modules: Any) -> list[Any]:
    """The linear layers inside, PyG's or torch's, with torch's names for their sizes."""
    found = []
    for module in modules.modules():
        if hasattr(module, "in_channels"):
            module.in_features, module.out_features = module.in_channels, module.out_channels
        if hasattr(module, "in_features"):
            found.append(module)
    return found


def _hetero(walk: Walk, conv: Any, args: Any, kwargs: Any) -> dict[str, Tensor]:
    """A layer for each relation, and what they give the same nodes as one: conv/hetero_conv.py."""
    odd = [name for name in kwargs if not name.endswith("_dict")]
    if odd:
        raise TypeError(f"layer {walk.path!r} is given {odd[0]!r}; expected a name with _dict")
    found: dict[str, list[Tensor]] = {}
    for kind, layer in conv.convs.items():
        if any(kind in values for values in (*args, *kwargs.values())):
            given = [_of_relation(values, kind) for values in args if _has(values, kind)]
            by_name = {name.removesuffix("_dict"): _of_relation(values, kind)
                      for name, values in kwargs.items() if _has(values, kind)}  # fmt: skip
            found.setdefault(kind[-1], []).append(layer(*given, **by_name))
    return {of: _combined(walk, of, xs, conv.aggr) for of, xs in found.items()}


def _has(values: Any, kind: tuple[str, str, str]) -> bool:
    """Whether a dictionary by types of edges, or of nodes, says anything of a relation."""
    return any(key in values for key in (kind, kind[0], kind[-1]))


def _of_relation(values: Any, kind: tuple[str, str, str]) -> Any:
    """What it says: of sources and targets, a pair."""
    source, _, target = kind
    if kind in values:
        return values[kind]
    return values[source] if source == target else (values.get(source), values.get(target))


def _combined(walk: Walk, of: str, xs: list[Tensor], aggr: str | None) -> Tensor:
    """What relations give the nodes of a type, as one."""
    first, widths = xs[0], [x.shape[-1] for x in xs]
    wide = first.shape[1:].numel()
    if aggr is None:
        return walk.add("opaque", xs, len(xs) * wide, suffix=of, by_row=True,
                        shape=(len(first), len(xs), *first.shape[1:]),
                        call=(torch.stack, tuple(xs), 1))  # fmt: skip
    if len(xs) == 1:
        return first
    if first.dim() != 2:  # heads apart
        return walk.add("opaque", xs, wide, suffix=of, by_row=True, shape=tuple(first.shape),
                        call=(combined, tuple(xs), aggr))  # fmt: skip
    if aggr == "cat":
        return walk.add("concatenation", xs, sum(widths), suffix=of,
                        call=(torch.cat, tuple(xs), -1))  # fmt: skip
    return walk.add("sum", xs, widths[0], suffix=of, call=(combined, tuple(xs), aggr))


def _hgt(walk: Walk, conv: Any, args: Any, kwargs: Any) -> dict[str, Tensor]:
    """Attention over each relation, joined to one softmax: conv/hgt_conv.py."""
    call = named(conv, args, kwargs)
    x_dict, width, heads = call["x_dict"], conv.out_channels, conv.heads
    kqv = {of: conv.kqv_lin.lins[of](x) for of, x in x_dict.items()}
    found: dict[str, list[Tensor]] = {}
    for kind, edges in _of_relations(call["edge_index_dict"], conv.edge_types).items():
        name, number = ".".join(kind), conv.edge_types_map[kind]
        weights = conv.k_rel.weight, conv.v_rel.weight, conv.p_rel["__".join(kind)]
        source, target = kqv[kind[0]], kqv[kind[-1]]
        turned = walk.add(
            "opaque", [source], 2 * width, suffix=f"{name}.sources", by_row=True,
            values=_trained(weights),
            call=(hgt_sources(number, len(conv.edge_types), heads), source, *weights),
        )  # fmt: skip
        ends = turned, target
        found.setdefault(kind[-1], []).append(walk.add(
            "opaque", ends, width + heads, suffix=name, by_edges=True, input_width=2 * width,
            graph=walk.graph(ends, edges), call=(hgt_targets(heads), ends, edges),
        ))  # fmt: skip
    outs = {}
    for of, xs in found.items():
        out = walk.add("opaque", xs, width, suffix=of, by_row=True,
                       call=(hgt_joined(heads), tuple(xs)))  # fmt: skip
        out = conv.out_lin.lins[of](F.gelu(out))
        if width == x_dict[of].shape[-1]:
            skip = conv.skip[of]
            out = walk.add("opaque", [out, x_dict[of]], width, suffix=f"{of}.skip", by_row=True,
                           values=_trained([skip]),
                           call=(hgt_skip, out, x_dict[of], skip))  # fmt: skip
        outs[of] = out
    return outs


def _han(walk: Walk, conv: Any, args: Any, kwargs: Any) -> dict[str, Tensor | None]:
    """Attention over each relation, weighed by scores of relations: conv/han_conv.py."""
    call = named(conv, args, kwargs)
    if call.get("return_semantic_attention_weights"):
        raise _NotCovered
    heads, width, p = conv.heads, conv.out_channels, conv.dropout * conv.training
    xs = {of: conv.proj[of](x) for of, x in call["x_dict"].items()}
    found: dict[str, list[Tensor]] = {of: [] for of in xs}
    for kind, edges in _of_relations(call["edge_index_dict"], conv.metadata[1]).items():
        name, key = ".".join(kind), "__".join(kind)
        sources, targets = (
            walk.add(
                "opaque", [xs[of]], width * is_source + heads, suffix=f"{name}.{end}",
                by_row=True, values=_trained([weight]),
                call=(han_scores(heads, is_source), xs[of], weight),
            )
            for of, end, weight, is_source in (
                (kind[0], "sources", conv.lin_src[key], True),
                (kind[-1], "targets", conv.lin_dst[key], False),
            )
        )  # fmt: skip
        ends = sources, targets
        out = walk.add(
            "opaque", ends, width, suffix=name, by_edges=True, input_width=width + heads,
            graph=walk.graph(ends, edges), drops=True,
            call=(han_targets(conv.negative_slope), ends, edges, p),
        )  # fmt: skip
        found[kind[-1]].append(F.relu(out))
    weights = conv.q, conv.k_lin.weight, conv.k_lin.bias
    return {
        of: walk.add("opaque", outs, width, suffix=of, values=_trained(weights),
                     means=len(outs) * width, call=(han_joined, tuple(outs), *weights))
        if outs else None for of, outs in found.items()
    }  # fmt: skip


def _of_relations(edges: Any, kinds: Sequence[tuple[str, str, str]]) -> dict[Any, Tensor]:
    """The edges of a layer that was made for these relations.

    Raises:
        _NotCovered: some are a sparse matrix, or a relation has none.
    """
    if {*edges} != {*map(tuple, kinds)}:
        raise _NotCovered
    return {kind: _edges(each) for kind, each in edges.items()}


def _trained(weights: Sequence[Tensor]) -> int:
    return sum(weight.numel() for weight in weights if weight.requires_grad)


def _jumping(walk: Walk, module: Any, args: Any, kwargs: Any) -> Tensor:
    xs = named(module, args, kwargs)["xs"]
    width = xs[0].shape[-1]
    if module.mode == "cat":
        call = (torch.cat, tuple(xs), -1)
        return walk.add("concatenation", list(xs), sum(x.shape[-1] for x in xs), call=call)
    if module.mode == "max":
        return walk.add("sum", list(xs), width, call=(largest, tuple(xs)))
    values = sum(p.numel() for p in module.parameters())
    return walk.add("opaque", list(xs), width, values=values)


def _graph_norm(walk: Walk, module: Any, args: Any, kwargs: Any) -> Tensor:
    given = named(module, args, kwargs)
    if given.get("batch") is not None:
        return whole(walk, module, args, kwargs)
    x = given["x"]
    return walk.add(
        "normalisation", [x], x.shape[-1], over="nodes", affine=True, values=x.shape[-1],
        call=(graph_norm, x, module.weight, module.bias, module.mean_scale, module.eps),
    )  # fmt: skip


def _layer_norm(walk: Walk, module: Any, args: Any, kwargs: Any) -> Tensor:
    given = named(module, args, kwargs)
    if module.mode != "node" and given.get("batch") is not None:
        return whole(walk, module, args, kwargs)
    x, affine = given["x"], module.weight is not None
    weights = (module.weight, module.bias)
    if module.mode == "node":
        call = (F.layer_norm, x, (x.shape[-1],), *weights, module.eps)
        return walk.add("normalisation", [x], x.shape[-1], over="features", affine=affine,
                        call=call)  # fmt: skip
    return walk.add(
        "normalisation", [x], x.shape[-1], over="everything", affine=affine,
        call=(graph_layer_norm, x, *weights, module.eps),
    )  # fmt: skip


# DGL ------------------------------------------------------------------------------------------


def _dgl_gcn(walk: Walk, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = named(conv, args, kwargs)
    if call.get("weight") is not None or conv._norm not in ("both", "none", "right", "left"):
        raise _NotCovered
    return _activated(walk, conv, _convolution(walk, conv, call))


def _dgl_sage(walk: Walk, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = named(conv, args, kwargs)
    if conv._aggre_type not in ("mean", "gcn"):
        raise _NotCovered
    if conv.feat_drop.p:
        feat = call["feat"]
        is_pair = isinstance(feat, tuple)
        call["feat"] = tuple(map(conv.feat_drop, feat)) if is_pair else conv.feat_drop(feat)
    out = _activated(walk, conv, _convolution(walk, conv, call))
    return out if conv.norm is None else conv.norm(out)


def _dgl_gin(walk: Walk, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = named(conv, args, kwargs)
    _, own = _two(call["feat"])
    out = _with_itself(walk, conv, _convolution(walk, conv, call), own)
    if conv.apply_func is not None:
        out = conv.apply_func(out)
    return _activated(walk, conv, out)


def _dgl_symmetric(walk: Walk, conv: Any, call: dict[str, Any]) -> str:
    """The key of a graph whose edges weigh `1 / sqrt(d_i d_j)`, by degrees into both of their ends.

    Raises:
        _NotCovered: edges have weights, or what is summed is kept from call to call.
    """
    if call.get("edge_weight") is not None or getattr(conv, "_cached", False):
        raise _NotCovered
    graph = call["graph"]

    def weights() -> tuple[Tensor, Tensor]:
        edges = torch.stack(graph.edges()).long()
        scale = graph.in_degrees().double().clamp(min=1).pow(-0.5)
        return edges, scale[edges[0]] * scale[edges[1]]

    return walk.weighed(_one(walk, call["feat"]), graph, "A by degrees into both ends", weights)


def _dgl_sg(walk: Walk, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = named(conv, args, kwargs)
    x, graph = _one(walk, call["feat"]), _dgl_symmetric(walk, conv, call)
    for hop in range(conv._k):
        x = _hop(walk, x, graph, hop)
    out: Tensor = conv.fc(x if conv.norm is None else conv.norm(x))
    return out


def _dgl_tag(walk: Walk, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = named(conv, args, kwargs)
    found, graph = [_one(walk, call["feat"])], _dgl_symmetric(walk, conv, call)
    for hop in range(conv._k):
        found.append(_hop(walk, found[-1], graph, hop))
    return _activated(walk, conv, conv.lin(torch.cat(found, dim=-1)))


def _dgl_appnp(walk: Walk, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = named(conv, args, kwargs)
    if conv.edge_drop.p or call.get("edge_weight") is not None:
        raise _NotCovered
    first = _one(walk, call["feat"])
    for hop in range(conv._k):
        out = _convolution(walk, conv, call, suffix=f"hop{hop}")
        call["feat"] = (1 - conv._alpha) * out + conv._alpha * first
    return _one(walk, call["feat"])


def _dgl_cheb(walk: Walk, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = named(conv, args, kwargs)
    if call.get("lambda_max") is not None:
        raise _NotCovered
    found, graph = [_one(walk, call["feat"])], _dgl_symmetric(walk, conv, call)
    for hop in range(1, conv._k):  # of the Laplacian whose largest eigenvalue is taken for 2
        out = _hop(walk, found[-1], graph, hop)
        found.append(-2.0 * out - found[-2] if hop > 1 else -out)
    return _activated(walk, conv, conv.linear(torch.cat(found, dim=1)))


def _dgl_gcn2(walk: Walk, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = named(conv, args, kwargs)
    x, first = _one(walk, call["feat"]), call["feat_0"]
    if x.dim() != 2 or not (isinstance(first, Tensor) and walk.knows(first)):
        raise _NotCovered
    graph = _dgl_symmetric(walk, conv, call)
    out, first = _hop(walk, x, graph, 0) * (1 - conv.alpha), first * conv.alpha
    total = out + first
    if conv._project_initial_features:
        turned = total @ conv.weight1
    else:
        turned = out @ conv.weight1 + first @ conv.weight2
    out = (1 - conv.beta) * total + conv.beta * turned
    return _activated(walk, conv, out + conv.bias if conv._bias else out)


def _dgl_gated(walk: Walk, conv: Any, args: Any, kwargs: Any) -> Tensor:
    call = named(conv, args, kwargs)
    if conv._n_etypes != 1 or call.get("etypes") is not None:
        raise _NotCovered
    x = _one(walk, call["feat"])
    if conv._out_feats > x.shape[-1]:
        x = F.pad(x, (0, conv._out_feats - x.shape[-1]))
    for _ in range(conv._n_steps):
        call["feat"] = conv.linears[0](x)
        x = conv.gru(_convolution(walk, conv, call), x)
    return x


def _dgl_hetero(walk: Walk, conv: Any, args: Any, kwargs: Any) -> dict[str, Tensor]:
    """A layer for each relation, and what they give the same nodes as one."""
    call = named(conv, args, kwargs)
    graph, inputs = call["g"], call["inputs"]
    if graph.is_block or not isinstance(inputs, dict):
        raise _NotCovered
    more, by_name = call.get("mod_args") or {}, call.get("mod_kwargs") or {}
    found: dict[str, list[Tensor]] = {}
    for kind in graph.canonical_etypes:
        source, relation, target = kind
        if source in inputs:
            ends = inputs[source], inputs[target]
            layer, edges = conv._get_module(kind), walk.relation(graph, kind)
            out = layer(edges, ends, *more.get(relation, ()), **by_name.get(relation, {}))
            found.setdefault(target, []).append(out)
    return {of: _dgl_combined(walk, conv, of, xs) for of, xs in found.items()}


def _dgl_combined(walk: Walk, conv: Any, of: str, xs: list[Tensor]) -> Tensor:
    """What relations give the nodes of a type, as one: dgl/nn/pytorch/hetero.py."""
    function = conv.agg_fn
    reducer = getattr(getattr(function, "keywords", {}).get("fn"), "__name__", "")
    aggr = reducer.strip("_").removesuffix("_reduce_func")
    if aggr in ("sum", "mean", "max", "min"):
        return _combined(walk, of, xs, aggr)
    if getattr(function, "__name__", "") == "_stack_agg_func":
        return _combined(walk, of, xs, None)
    out: Tensor = function(xs, of)  # the user's
    return out


def _activated(walk: Walk, conv: Any, out: Tensor) -> Tensor:
    activation = getattr(conv, "_activation", None) or getattr(conv, "activation", None)
    return out if activation is None else activation(out)


PYG, DGL = "torch_geometric.nn.", "dgl.nn.pytorch.conv."
TABLE: dict[str, Entry] = {
    f"{PYG}conv.gcn_conv.GCNConv": convolution,
    f"{PYG}conv.sage_conv.SAGEConv": _sage,
    f"{PYG}conv.gin_conv.GINConv": _gin,
    f"{PYG}conv.graph_conv.GraphConv": convolution,
    f"{PYG}conv.simple_conv.SimpleConv": _simple,
    f"{PYG}conv.lg_conv.LGConv": convolution,
    f"{PYG}conv.sg_conv.SGConv": _sg,
    f"{PYG}conv.ssg_conv.SSGConv": _ssg,
    f"{PYG}conv.tag_conv.TAGConv": _tag,
    f"{PYG}conv.appnp.APPNP": _appnp,
    f"{PYG}conv.cheb_conv.ChebConv": _cheb,
    f"{PYG}conv.arma_conv.ARMAConv": _arma,
    f"{PYG}conv.gcn2_conv.GCN2Conv": _gcn2,
    f"{PYG}conv.cluster_gcn_conv.ClusterGCNConv": _cluster_gcn,
    f"{PYG}conv.gated_graph_conv.GatedGraphConv": _gated_graph,
    f"{PYG}conv.gat_conv.GATConv": _gat,
    f"{PYG}conv.rgcn_conv.RGCNConv": _rgcn,
    f"{PYG}conv.pna_conv.PNAConv": _pna,
    f"{PYG}conv.hetero_conv.HeteroConv": _hetero,
    f"{PYG}conv.hgt_conv.HGTConv": _hgt,
    f"{PYG}conv.han_conv.HANConv": _han,
    f"{PYG}models.jumping_knowledge.JumpingKnowledge": _jumping,
    f"{PYG}norm.graph_norm.GraphNorm": _graph_norm,
    f"{PYG}norm.layer_norm.LayerNorm": _layer_norm,
    f"{DGL}graphconv.GraphConv": _dgl_gcn,
    f"{DGL}sageconv.SAGEConv": _dgl_sage,
    f"{DGL}ginconv.GINConv": _dgl_gin,
    f"{DGL}sgconv.SGConv": _dgl_sg,
    f"{DGL}tagconv.TAGConv": _dgl_tag,
    f"{DGL}appnpconv.APPNPConv": _dgl_appnp,
    f"{DGL}chebconv.ChebConv": _dgl_cheb,
    f"{DGL}gcn2conv.GCN2Conv": _dgl_gcn2,
    f"{DGL}gatedgraphconv.GatedGraphConv": _dgl_gated,
    "dgl.nn.pytorch.hetero.HeteroGraphConv": _dgl_hetero,
}


MESSAGE_PASSING = "torch_geometric.nn.conv.message_passing.MessagePassing"


def entry_of(layer: Module, runs_whole: bool = False) -> Entry | None:
    """The entry of a layer's class, or of the first of its bases that has one; `whole` where it has
    code of its own, of other layers that pass messages, and of what runs whole in any case; None of
    other modules.
    """
    bases = {f"{base.__module__}.{base.__qualname__}": base for base in type(layer).__mro__}
    found = next((name for name in bases if name in TABLE), None)
    if found is None and MESSAGE_PASSING not in bases and not runs_whole:
        return None
    why = why_not_followed(layer)
    if why is not None:
        return partial(_refuse, why)
    if runs_whole or found is None or own_code(layer, bases[found]) is not None:
        return whole
    if getattr(layer, "flow", "source_to_target") != "source_to_target":
        return whole
    return partial(_as_told, TABLE[found])


def _as_told(entry: Entry, walk: Walk, layer: Any, args: Any, kwargs: Any) -> Any:
    """A layer by its entry, which refuses before it names an operation; else whole."""
    if walk.runs_whole:
        return whole(walk, layer, args, kwargs)
    try:
        return entry(walk, layer, args, kwargs)
    except _NotCovered:
        return whole(walk, layer, args, kwargs)


def _refuse(why: str, walk: Walk, layer: Any, args: Any, kwargs: Any) -> Tensor:
    raise UnknownLayerError(f"layer {walk.path!r} ({type(layer).__name__}) {why}: it cannot be "
                            "planned")  # fmt: skip
