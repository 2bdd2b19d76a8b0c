"""What a layer is like as it is set up, and what a call of it is like: what `settle` asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from hag_plugin.hag.hag import HAG
from hag_plugin.hag.passing import runs_launches
from hag_plugin.layers.pyg import NO_RECORD
from hag_plugin.limits import limits
from hag_plugin.modes import has_hooks, outside_inference
from hag_plugin.ops.registration import DTYPES
from hag_plugin.pyg.aggregation import aggregators
from hag_plugin.pyg.aggregation.aggregators import REDUCERS
from hag_plugin.pyg.model import edge_order
from hag_plugin.pyg.model.choice import (
    FIRST,
    INFERENCE,
    LSTM_FEATURES,
    MANY,
    MANY_MET,
    MET_FEW,
    NO_EDGES,
    NO_ROWS,
    NOT_TAKEN,
    OTHER_TENSOR,
    SPARSE,
    TWO_SIDES,
)
from hag_plugin.pyg.recipes import lstm
from hag_plugin.pyg.recipes.recipe import PAIRS, Call, Recipe, of_sources, stock_class
from hag_plugin.pyg.recipes.table import recipe_of
from hag_plugin.recall import decide
from hag_plugin.sequence.cost import are_taken, why_not_shared
from hag_plugin.sequence.prefix_tree import SequentialHAG

PARAMETERS = "_hag_parameters"  # of an accelerated class: the names of what its `forward` takes

# What a layer is like ---------------------------------------------------------------------------

HOOKS = tuple(
    f"_{name}_forward_{when}"
    for name in ("propagate", "message", "aggregate", "message_and_aggregate")
    for when in ("pre_hooks", "hooks")
)
OVERRIDABLE = ("message", "aggregate", "update", "message_and_aggregate")


def why_never(conv: Any, recipe: Recipe) -> str | None:
    """Why a layer, as it is set up now, must run its stock code, whatever its call. None: it
    need not."""
    reason = why_not_as_set_up(conv, recipe)
    if reason is not None or recipe.reduce is not None:
        return reason
    module = conv._modules["aggr_module"]
    if type(module) in REDUCERS:
        return None
    reason = aggregators.why_stock(module)
    if reason is not None:
        return f"aggr={conv.aggr!r}: {reason}"
    if recipe.offset is not None and not aggregators.takes_offset(module):
        return f"aggr={conv.aggr!r} of messages with a term of the target"
    if recipe.record.self_loops(conv) is not False or recipe.scale(conv) is not None:
        return f"aggr={conv.aggr!r} over a graph with self-loops or scales that the layer adds"
    return None


def why_not_as_set_up(conv: Any, recipe: Recipe) -> str | None:
    """The same, whatever its aggregation."""
    own = conv.__dict__  # this is run at every call
    if _is_traced():
        return "traces and ONNX files hold stock's code, which runs without hag_plugin"
    if own["_explain"] is True:
        return "explain=True needs one message an edge"
    if own["_decomposed_layers"] > 1:
        return f"decomposed_layers={conv._decomposed_layers} runs the stock code in chunks"
    for name in HOOKS:
        if own[name]:
            return "hooks on propagate, message or aggregate see the stock computation"
    aggregation = own["_modules"].get("aggr_module")
    if aggregation is not None and _is_watched(aggregation):
        return "hooks on its aggregation see the stock computation"
    for name in OVERRIDABLE:
        if name in own:
            return "message, aggregate or update was replaced on the instance"
    for condition in recipe.conditions:
        if condition.holds(conv):
            return condition.reason(conv)
    return None


def _is_watched(module: Any) -> bool:
    """Whether anybody looks on when a module, or a part of it, is called."""
    return has_hooks(module) or any(map(_is_watched, module.__dict__["_modules"].values()))


def _is_traced() -> bool:
    """Whether torch.jit.trace or torch.onnx.export is writing down what runs."""
    if torch.compiler.is_compiling():
        return bool(torch.onnx.is_in_onnx_export())
    return torch._C._get_tracing_state() is not None


def why_no_lstm(conv: Any, recipe: Recipe) -> str | None:
    """Why a layer, as it is set up now, runs no LSTM over a prefix tree. None: it may."""
    reason = why_not_as_set_up(conv, recipe)
    if reason is not None:
        return reason
    if not lstm.is_lstm(conv):
        return f"aggr={conv.aggr!r} does not read its messages in an order"
    apart = recipe.offset is not None or recipe.reduce is not None
    looped = recipe.record.self_loops(conv) is not False or recipe.scale(conv) is not None
    whole = recipe.record.relations is None and recipe.forward in lstm.REORDERED
    if apart or looped or not whole:
        return "aggr='lstm': its messages are not the rows of the sources alone"
    if conv.flow != "source_to_target":
        return f"aggr='lstm' with flow={conv.flow!r}"
    return why_not_shared(conv.aggr_module.lstm)


def may_be_small(conv: Any, recipe: Recipe) -> bool:
    """Whether a layer leaves a call with few messages to stock."""
    return recipe.yields and recipe.scale(conv) is None and not conv.__dict__.get("cached")


def why_no_recipe(stock: type) -> str:
    """Why no call of a layer of this class runs on a HAG."""
    known = next((c.__name__ for c in stock.__mro__[1:] if recipe_of(c) is not None), None)
    if known is not None:
        return f"a subclass of {known} may do something else: declare it with @hag_layer"
    if stock.__module__.startswith("torch_geometric."):
        return f"no recipe: {NO_RECORD.get(stock.__name__, 'it is not known yet')}"
    return "no recipe: if its message depends on the source node alone, declare it with @hag_layer"


# What a call is like ----------------------------------------------------------------------------


def has_few(conv: Any, num_edges: int, features: Any) -> bool:
    """Whether a call has so few messages that stock's code is as fast: never in inference."""
    if num_edges >= limits.few_messages or not torch.is_grad_enabled():
        return False
    x = of_sources(features)
    if not isinstance(x, Tensor) or x.dim() < 2:
        return False
    few = num_edges * x.numel() < limits.few_messages * x.shape[conv.node_dim]
    return few and not torch.compiler.is_compiling()


def are_few(conv: Any, recipe: Recipe, hags: Sequence[HAG], call: Call, features: Any) -> bool:
    """The same of HAGs. Not where sizes or devices are wrong: the recipe says so."""
    if not recipe.yields or not torch.is_grad_enabled():
        return False
    num_edges = hags[0].num_edges if len(hags) == 1 else sum(hag.num_edges for hag in hags)
    if not (has_few(conv, num_edges, features) and may_be_small(conv, recipe)):
        return False
    num_src, num_dst = graph_size(recipe, conv, call)
    device = of_sources(features).device
    for hag in hags:
        if hag.num_src != num_src or hag.num_dst != num_dst or hag.device != device:
            return False
    return True


def has_cache(conv: Any, recipe: Recipe) -> bool:
    """Whether a layer with `cached=True` keeps a graph by now; as it was, where it runs again."""
    name = recipe.cache
    return name is not None and decide(name, lambda: getattr(conv, name) is not None)


def why_not_taken(conv: Any, recipe: Recipe, features: Any) -> str | None:
    """Why a recipe cannot run on these features. None: it can."""
    if recipe.record.features is None:
        return None
    if not isinstance(features, PAIRS):
        return None if features is None or _is_taken(features) else NOT_TAKEN
    if not all(f is None or _is_taken(f) for f in features):
        return NOT_TAKEN
    if conv.flow == "target_to_source" and features[0] is not features[-1]:
        return TWO_SIDES  # PyG's generated code lifts x[0] here, its Python code x[1]
    return None


def _is_taken(x: Any) -> bool:
    return isinstance(x, Tensor) and x.layout == torch.strided and x.dtype in DTYPES


def why_no_tree(conv: Any, recipe: Recipe, features: Any) -> str | None:
    """Why a call runs no LSTM over a prefix tree. None: it may."""
    reason = why_no_lstm(conv, recipe)
    if reason is not None:
        return reason
    source = of_sources(features)
    if source is None or conv.node_dim not in (-2, 0):
        return NO_ROWS
    return None if are_taken(conv.aggr_module.lstm, source) else LSTM_FEATURES


def is_edge_index(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.int32, torch.int64) and tensor.dim() == 2 and tensor.shape[0] == 2


def plain_if_as_said(recipe: Recipe, conv: Any, call: Call, edge_index: Any) -> Any:
    """The tensor of an `EdgeIndex` that has as many nodes as there are features; otherwise itself.

    Of what else it says nothing is taken on trust: whoever reads the edges sees how they lie. Its
    caches of another order are not read: to check them takes as long as to sort.
    """
    said = edge_index.sparse_size()
    found = graph_size(recipe, conv, call)
    fits = all(s is None or s == n for s, n in zip(said, found, strict=True))
    return edge_index.as_tensor() if fits else edge_index


def is_multiplied(conv: Any, edge_index: Any) -> bool:
    """Whether stock multiplies by an `EdgeIndex` as by a matrix that it need not bring into another
    order, now or for gradients."""
    takes = getattr(conv, "SUPPORTS_FUSED_EDGE_INDEX", False) and conv.fuse
    if not (takes and edge_index.is_sorted_by_col):
        return False
    if not torch.is_grad_enabled():
        return True
    is_linear = REDUCERS.get(type(conv.aggr_module)) in ("sum", "mean")
    return is_linear and edge_index._T_perm is not None


def why_passing(edge_index: Tensor, reason: str) -> str:
    """Why the rows of an edge index are summed as they are."""
    return MANY_MET if edge_index.shape[1] > limits.searched_edges else reason


def why_unknown(edge_index: Tensor) -> str:
    """Why nothing was made of an edge index."""
    if edge_index.layout != torch.strided:
        return SPARSE
    if type(edge_index) is not Tensor and type(edge_index) is not Parameter:
        return OTHER_TENSOR.format(type(edge_index).__name__)
    if not is_edge_index(edge_index):
        return NO_EDGES
    if edge_index.is_inference() and not edge_index.is_cpu:
        return INFERENCE
    if edge_index.shape[1] > limits.searched_edges:
        return MANY
    return why_met(edge_index)


def why_met(tensor: Tensor, on_device: bool = True) -> str:
    """Why nothing was made of a graph that is met first, and is where this tensor is.

    Args:
        tensor: of the graph.
        on_device: as of `first_met`.
    """
    return MET_FEW if tensor.is_cpu or (on_device and runs_launches(tensor)) else FIRST


def edge_values_of(names: tuple[str, ...], call: Call) -> str | None:
    """The first of the arguments `names`, one value an edge each, that a call gives."""
    for name in names:
        if call.get(name) is not None:
            return name
    return None


def graph_size(recipe: Recipe, conv: Any, call: Call) -> tuple[int, int]:
    """The number of nodes on both sides, as `MessagePassing._collect` finds it."""
    if recipe.size is not None:
        return recipe.size(conv, call)
    x = call[recipe.record.features or recipe.source]
    given = call.get("size")
    if given is None and isinstance(x, Tensor):
        num_nodes = x.shape[conv.node_dim]
        return num_nodes, num_nodes
    pair = list(x) if isinstance(x, PAIRS) else [x, x]
    size = list(given or (None, None))
    for dim, features in enumerate(pair):
        if size[dim] is None and features is not None:
            size[dim] = features.shape[conv.node_dim]
    num_src = size[0] if size[0] is not None else size[1]
    num_dst = size[1] if size[1] is not None else size[0]
    return int(num_src), int(num_dst)


# What cannot be -----------------------------------------------------------------------------------


def is_relations(graph: Any) -> bool:
    """Whether a graph argument is a sequence of HAGs, one for each relation."""
    return isinstance(graph, PAIRS) and bool(graph) and isinstance(graph[0], HAG)


def check_relations(conv: Any, recipe: Recipe, graphs: Sequence[HAG] | None) -> None:
    """Raises ValueError unless there are as many HAGs as relations; None stands for one HAG."""
    count = None if recipe.record.relations is None else recipe.record.relations(conv)
    if count is None and graphs is not None:
        raise ValueError(f"{stock_class(conv).__name__} got {len(graphs)} HAGs; expected one HAG")
    if count is not None and (graphs is None or len(graphs) != count):
        raise ValueError(
            f"{stock_class(conv).__name__} got {'one HAG' if graphs is None else len(graphs)}; "
            f"expected a list of {count} HAGs, one for each relation, as "
            "hag_plugin.pyg.relation_hags makes it"
        )


def refuse_edge_values(conv: Any, names: tuple[str, ...], call: Call) -> None:
    given = edge_values_of(names, call) if names else None
    if given is not None:
        refuse_edge_value(conv, given)


def refuse_edge_value(conv: Any, given: str) -> None:
    """Raises ValueError: what was given has a value for each edge."""
    raise ValueError(
        f"{stock_class(conv).__name__} got {given} together with a HAG. Edge weights have an "
        "order that a HAG does not keep; pass edge_index instead"
    )


def refuse_if_ordered(conv: Any, recipe: Recipe, call: Call, reason: str) -> None:
    stock = stock_class(conv)
    is_declared = getattr(stock, "_hag_recipe", None) is recipe
    changes = recipe.scale(conv) is not None or recipe.record.self_loops(conv) is not False
    if is_declared and changes:
        raise ValueError(f"a HAG cannot be used here: {reason}; pass edge_index instead")
    ordered = edge_order.why_ordered(conv, stock, "forward", dict(call))
    if ordered is not None:
        edge_order.refuse(stock, ordered)


# Edges in place of a graph --------------------------------------------------------------------


def as_plain(conv: Any, graph: HAG | SequentialHAG, name: str, call: Call) -> dict[str, Any]:
    """The arguments that say with plain edges what a graph says."""
    plain: dict[str, Any] = {name: plain_edges(graph)}
    names = getattr(type(conv), PARAMETERS, ())
    if call.get("size") is None and "size" in names and not graph.is_square:
        plain["size"] = (graph.num_src, graph.num_dst)
    if "num_edges" in names:
        plain["num_edges"] = graph.num_dst
    return plain


def plain_edges(graph: HAG | SequentialHAG) -> Tensor:
    """The edge index of a HAG or a prefix tree."""
    if not torch.compiler.is_compiling():
        if isinstance(graph, HAG):
            return graph.own_edge_index
    elif torch.onnx.is_in_onnx_export():
        from torch.utils._python_dispatch import _disable_current_modes

        with _disable_current_modes():  # a constant of the file
            return graph.edge_index
    with outside_inference():
        return graph.edge_index
