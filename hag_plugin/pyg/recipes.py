"""One table: what each PyG layer aggregates, told in data, and when that does not hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import GCNConv, GINConv, GraphConv, MessagePassing, SAGEConv, SimpleConv
from torch_geometric.nn.aggr import MaxAggregation, MeanAggregation, MinAggregation, SumAggregation

from hag_plugin.aggregate import DTYPES, aggregate
from hag_plugin.hag import HAG
from hag_plugin.program import SelfLoops

Call = Mapping[str, Any]  # the arguments of one call of `forward`, by name

REDUCERS: dict[type, Any] = {
    SumAggregation: "sum",
    MeanAggregation: "mean",
    MaxAggregation: "max",
    MinAggregation: "min",
}
HOOKED = ("propagate", "message", "aggregate", "message_and_aggregate")
OVERRIDABLE = ("message", "aggregate", "update", "message_and_aggregate")


@dataclass(frozen=True)
class Recipe:
    """How a layer's `propagate` comes to `y_i = t_i * REDUCE_j(s_j * x_j)`.

    The layer's own `forward` runs as it is and hands `propagate` a HAG where an edge index stood.
    PyG's layers then leave out normalisation and self-loops, which the recipe puts back.

    Attributes:
        graphs: the arguments of `forward` that are edge indices.
        source: the argument of `propagate` that is aggregated.
        self_loops: from the layer, the loops it adds: False, "add" or "fill".
        scale: from the layer, the exponent `p` where `s = t = degree ** p`, or None. Degrees are
            those of the targets, loops counted, on both sides, as in PyG's `gcn_norm`.
        edge_arguments: arguments of `forward` with one value an edge. A HAG keeps no order of
            edges, so a call with one of these runs the stock layer.
        cache: where a layer with `cached=True` keeps the graph of its first call.
    """

    graphs: tuple[str, ...] = ("edge_index",)
    source: str = "x"
    self_loops: Callable[[Any], SelfLoops] = lambda conv: False
    scale: Callable[[Any], float | None] = lambda conv: None
    edge_arguments: tuple[str, ...] = ()
    cache: str | None = None


RECIPES: dict[type, Recipe] = {
    # improved=True changes nothing here: gcn_norm ignores it for a plain edge index without
    # weights (torch_geometric/nn/conv/gcn_conv.py, add_remaining_self_loops of edge_attr=None).
    GCNConv: Recipe(
        self_loops=lambda conv: "fill" if conv.normalize and conv.add_self_loops else False,
        scale=lambda conv: -0.5 if conv.normalize else None,
        edge_arguments=("edge_weight",),
        cache="_cached_edge_index",
    ),
    SAGEConv: Recipe(),
    GINConv: Recipe(),
    GraphConv: Recipe(edge_arguments=("edge_weight",)),
    SimpleConv: Recipe(
        self_loops=lambda conv: "add" if conv.combine_root == "self_loop" else False,
        edge_arguments=("edge_weight",),
    ),
}


@dataclass(frozen=True)
class Condition:
    """Something that rules the recipe out: the stock layer runs instead.

    Attributes:
        holds: given the layer.
        reason: given the layer, in words.
    """

    holds: Callable[[Any], bool]
    reason: Callable[[Any], str]


def _has_hooks(conv: Any) -> bool:
    return any(
        getattr(conv, f"_{name}_forward_{when}")
        for name in HOOKED
        for when in ("pre_hooks", "hooks")
    )


LAYER_CONDITIONS = (
    Condition(
        lambda conv: type(conv.aggr_module) not in REDUCERS,
        lambda conv: f"aggr={conv.aggr!r} is not one of sum, mean, max and min",
    ),
    Condition(
        lambda conv: conv._explain is True,
        lambda conv: "explain=True needs one message an edge",
    ),
    Condition(
        lambda conv: conv._decomposed_layers > 1,
        lambda conv: f"decomposed_layers={conv._decomposed_layers} runs the stock code in chunks",
    ),
    Condition(
        _has_hooks,
        lambda conv: "hooks on propagate, message or aggregate see the stock computation",
    ),
    Condition(
        lambda conv: any(name in conv.__dict__ for name in OVERRIDABLE),
        lambda conv: "message, aggregate or update was replaced on the instance",
    ),
)


def recipe_of(cls: type) -> Recipe | None:
    """The recipe of exactly this class: of the table, or declared by `hag_layer`."""
    declared = getattr(cls, "_hag_recipe", None)
    return declared if declared is not None else RECIPES.get(cls)


def ruled_out(conv: MessagePassing) -> str | None:
    """Why the layer, as it is set up now, must run its stock code. None: it need not."""
    for condition in LAYER_CONDITIONS:
        if condition.holds(conv):
            return condition.reason(conv)
    return None


def edge_values(names: tuple[str, ...], call: Call) -> str | None:
    """The first of the arguments `names`, one value an edge each, that a call gives."""
    for name in names:
        if call.get(name) is not None:
            return name
    return None


def why_stock(conv: Any, features: Any) -> str | None:
    """Why this call, with these features, must run stock code. None: it need not."""
    reason = ruled_out(conv)
    if reason is not None:
        return reason
    pair = features if isinstance(features, tuple | list) else (features,)
    if not all(f is None or _is_taken(f) for f in pair):
        return "the features are not dense tensors of a floating dtype"
    if conv.flow == "target_to_source" and pair[0] is not pair[-1]:
        # PyG's generated code lifts x[0] here, its Python code x[1] (collect.jinja, _collect).
        return "flow='target_to_source' with two sets of nodes is left to stock"
    return None


def _is_taken(x: Any) -> bool:
    return isinstance(x, Tensor) and x.layout == torch.strided and x.dtype in DTYPES


def run(recipe: Recipe, conv: Any, hag: HAG, size: Any, arguments: Call) -> Tensor:
    """What `conv.propagate(edge_index, size=size, **arguments)` returns before `update`.

    Raises:
        ValueError: the features or `size` are not those of the HAG's nodes.
    """
    # For flow="target_to_source" PyG lifts x_j from the second row of the edge index.
    side = 0 if conv.flow == "source_to_target" else 1
    check_sizes(hag, size, arguments[recipe.source], conv.node_dim)
    source = arguments[recipe.source]
    x = source[side] if isinstance(source, tuple | list) else source
    return run_rows(recipe, conv, hag if side == 0 else hag.transpose(), x)


def run_rows(recipe: Recipe, conv: Any, hag: HAG, x: Tensor) -> Tensor:
    """Aggregates messages that were computed once per source node, `x`, along `conv.node_dim`."""
    self_loops, exponent = recipe.self_loops(conv), recipe.scale(conv)
    scale = None
    if exponent is not None:
        scale = degree_scale(hag, exponent, self_loops, x.dtype)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.promote_types(x.dtype, scale.dtype))  # as stock's weights promote it
    dim = conv.node_dim if conv.node_dim >= 0 else x.dim() + conv.node_dim
    rows = x if dim == x.dim() - 2 else x.movedim(dim, 0).reshape(x.shape[dim], -1)
    out = aggregate(
        rows,
        hag,
        REDUCERS[type(conv.aggr_module)],
        self_loops=self_loops,
        source_scale=scale,
        target_scale=scale,
        ties="even",
    )
    if rows is x:
        return out
    others = [n for d, n in enumerate(x.shape) if d != dim]
    return out.reshape(out.shape[0], *others).movedim(0, dim)


def check_sizes(hag: HAG, size: Any, source: Any, node_dim: int) -> None:
    """Raises ValueError unless features (a tensor or a pair) and `size` are the HAG's."""
    pair = source if isinstance(source, tuple | list) else (source, source)
    for dim, (name, nodes) in enumerate((("source", hag.num_src), ("target", hag.num_dst))):
        if size is not None and size[dim] is not None and size[dim] != nodes:
            raise ValueError(f"size is {tuple(size)}; the HAG has {nodes} {name} nodes")
        x = pair[dim]
        if isinstance(x, Tensor) and x.shape[node_dim] != nodes:
            raise ValueError(
                f"x has {x.shape[node_dim]} rows in dimension {node_dim}; the HAG has {nodes} "
                f"{name} nodes"
            )


# Degrees ---------------------------------------------------------------------------------------


def degree_scale(hag: HAG, exponent: float, self_loops: SelfLoops, dtype: torch.dtype) -> Tensor:
    """`hag.degree_scale` in the dtype sums of `dtype` accumulate in; also inside torch.compile."""
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    if torch.compiler.is_compiling():
        scale: Tensor = torch.ops.hag_plugin_pyg.degree_scale.default(
            hag.row_ptr, hag.col, exponent, self_loops or "", dtype
        )
        return scale
    return hag.degree_scale(exponent, self_loops, dtype)


def _run_degree_scale(
    row_ptr: Tensor, col: Tensor, exponent: float, self_loops: str, dtype: torch.dtype
) -> Tensor:
    from hag_plugin.hag import find

    hag = find(row_ptr)
    if hag is None:  # its identity was lost: an input was cloned
        hag = HAG.from_csr(row_ptr.clone(), col.clone(), row_ptr.shape[0] - 1, method="none")
    mode: Any = self_loops or False
    return hag.degree_scale(exponent, mode, dtype).clone()  # a compiled graph may write into it


def _shape_of_degree_scale(
    row_ptr: Tensor, col: Tensor, exponent: float, self_loops: str, dtype: torch.dtype
) -> Tensor:
    return row_ptr.new_empty(row_ptr.shape[0] - 1, dtype=dtype)


_library: Any = torch.library.Library("hag_plugin_pyg", "DEF")  # type: ignore[no-untyped-call]
_library.define(
    "degree_scale(Tensor row_ptr, Tensor col, float exponent, str self_loops, ScalarType dtype)"
    " -> Tensor"
)
_library.impl("degree_scale", _run_degree_scale, "CompositeExplicitAutograd")
torch.library.register_fake("hag_plugin_pyg::degree_scale", _shape_of_degree_scale, lib=_library)
