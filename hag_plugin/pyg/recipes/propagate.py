"""What an accelerated layer's `propagate` does with a HAG: its recipe, run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hag_plugin.hag.hag import HAG
from hag_plugin.ops.degrees import degree_scale
from hag_plugin.pyg.aggregation import constant
from hag_plugin.pyg.aggregation.aggregators import REDUCERS, reduce
from hag_plugin.pyg.aggregation.neighbourhoods import Neighbourhoods, Offset, check_sizes
from hag_plugin.pyg.recipes.recipe import Call, Recipe
from hag_plugin.pyg.recipes.scored import ScoredGraph
from hag_plugin.pyg.recipes.weighted import WeightedGraph


def run(recipe: Recipe, conv: Any, hag: HAG, size: Any, arguments: Call) -> Tensor:
    """What `conv.propagate(edge_index, size=size, **arguments)` returns before `update`.

    Raises:
        ValueError: the features or `size` are not those of the HAG's nodes.
    """
    # For flow="target_to_source" PyG lifts x_j from the second row of the edge index.
    side = 0 if conv.flow == "source_to_target" else 1
    source = arguments[recipe.source]
    target = source if recipe.target is None else arguments[recipe.target]
    check_sizes(hag, size, (_side(source, 0), _side(target, 1)), conv.node_dim, side)
    z = _side(source, side)
    if recipe.message is not None:
        z = recipe.message(conv, z)
    like_weights = arguments.get("edge_weight")
    if like_weights is not None:  # see `stand_in`
        z = z.to(torch.promote_types(z.dtype, like_weights.dtype))
    offset = None if recipe.offset is None else recipe.offset(conv, _side(target, 1 - side))
    return run_rows(recipe, conv, hag if side == 0 else hag.transpose(), z, offset)


def run_weighted(recipe: Recipe, conv: Any, graph: WeightedGraph, arguments: Call) -> Tensor:
    """The same where weights were found with the graph, whose edges lead the layer's way."""
    return graph.propagate(conv, _side(arguments[recipe.source], 0))


def run_scored(recipe: Recipe, conv: Any, graph: ScoredGraph, size: Any, arguments: Call) -> Tensor:
    """The same where each edge has a score, of both of its ends.

    Raises:
        ValueError: the features or `size` are not those of the graph's nodes.
    """
    assert recipe.attention is not None
    x = arguments.get("x")
    pair = (_side(x, 0), _side(x, 1)) if x is not None else (arguments["value"], arguments["query"])
    check_sizes(graph.hag, size, pair, conv.node_dim)
    return recipe.attention(conv, graph, arguments)


def stand_in(recipe: Recipe, conv: Any, x: Any) -> Tensor | None:
    """What goes to `propagate` as `edge_weight` with a HAG, where that makes a difference.

    Stock multiplies messages with weights of the dtype that the layer's features have. That is the
    messages' own dtype, too, but under autocast: there the weights promote what a linear layer
    rounded. So this is an empty tensor of the features' dtype.
    """
    if not recipe.is_normalised or not isinstance(x, Tensor):
        return None
    if not torch.is_autocast_enabled(x.device.type) or recipe.scale(conv) is None:
        return None
    return x.new_empty(0)


def _side(value: Any, side: int) -> Any:
    return value[side] if isinstance(value, (tuple, list)) else value


def run_rows(
    recipe: Recipe, conv: Any, hag: HAG, z: Tensor, offset: Tensor | None = None
) -> Tensor:
    """Aggregates messages that were computed once per source node, `z`, along `conv.node_dim`."""
    if recipe.reduce is not None:
        return recipe.reduce(conv, z, hag)
    self_loops, exponent = recipe.record.self_loops(conv), recipe.scale(conv)
    dim = conv.node_dim if conv.node_dim >= 0 else z.dim() + conv.node_dim
    over = Neighbourhoods(hag, dim, self_loops)
    monoid = REDUCERS.get(type(conv.aggr_module))
    moved = None if offset is None else Offset(offset, over)
    if monoid is None:
        return reduce(conv.aggr_module, z, over, moved)
    scale = None
    if exponent is not None:
        scale = degree_scale(hag, exponent, self_loops, z.dtype)
    if recipe.keeps is not None:
        how = (monoid, dim, self_loops, exponent)
        known = constant.kept(conv, hag, z, how, lambda: over.reduce(monoid, z, scale))
        if known is not None:
            return known if recipe.keeps(conv) else known.clone()
    out = over.reduce(monoid, z, scale)
    if moved is not None:
        out = out + (moved.summed if monoid == "sum" else moved.present)
    return out
