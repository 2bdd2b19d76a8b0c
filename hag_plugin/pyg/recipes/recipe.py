"""What a recipe is: how a layer aggregates, told in data, and when that does not hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing

from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import SelfLoops
from hag_plugin.ops.registration import DTYPES
from hag_plugin.pyg.aggregation import aggregators
from hag_plugin.pyg.aggregation.aggregators import REDUCERS
from hag_plugin.pyg.recipes.weighted import Weigh, normalised
from hag_plugin.recall import decide

Call = Mapping[str, Any]  # the arguments of one call of `forward` or `propagate`, by name

HOOKS = tuple(
    f"_{name}_forward_{when}"
    for name in ("propagate", "message", "aggregate", "message_and_aggregate")
    for when in ("pre_hooks", "hooks")
)
# In numbers: with fewer in all messages of a call, stock's code is mostly the faster one. Measured,
# forward and backward: the times meet at 1,000 (FastRGCNConv) to 25,000 (PNAConv with one sum).
SMALL = 4096

PAIRS = (tuple, list)
NOT_TAKEN = "the features are not dense tensors of a floating dtype"
OVERRIDABLE = ("message", "aggregate", "update", "message_and_aggregate")


@dataclass(frozen=True)
class Condition:
    """Something that rules a recipe out: the stock layer runs instead.

    Attributes:
        holds: given the layer.
        reason: given the layer, in words.
        needs: what the layer must be like for the recipe, in words; for the table of layers.
    """

    holds: Callable[[Any], bool]
    reason: Callable[[Any], str]
    needs: str = ""


@dataclass(frozen=True)
class Recipe:
    """How a layer's `propagate` comes to `y_i = t_i * REDUCE_j(s_j * z_j + c_i)`.

    The layer's own `forward` runs as it is and hands `propagate` a HAG where an edge index stood.
    PyG's layers then leave out normalisation and self-loops, which the recipe puts back.

    Attributes:
        graphs: the arguments of `forward` that are edge indices.
        features: the argument of `forward` with a row for each node. None: not to be looked at.
        source: the argument of `propagate` that is lifted to edges as `x_j`.
        target: the argument of `propagate` with a row for each target, where that is another.
        message: `z`, `[N_src, ...]`, from the layer and the source's rows; by default these.
        offset: `c`, `[N_dst, ...]`, from the layer and the target's rows.
        reduce: from the layer, `z` and the graph: what the layer does in place of its
            aggregation module.
        self_loops: from the layer, the loops it adds: False, "add" or "fill".
        scale: from the layer, the exponent `p` where `s = t = degree ** p`, or None. Degrees are
            those of the targets, loops counted, on both sides, as in PyG's `gcn_norm`.
        keeps: None, or aggregates of features that do not change are computed once and kept: for
            layers that aggregate what they are given. Whether the layer only reads the aggregate,
            and does not hand it on to others; they get a copy.
        matrix: what is aggregated over, in words, where self_loops and scale do not tell it.
        forward: what runs in place of the layer's own `forward` where its graph is a HAG, for
            layers that look into their edge index.
        relations: from the layer, the number of relations: the graph is then a sequence of
            HAGs, or an edge index with the argument `edge_type`. None: one graph.
        size: from the layer and the call, the numbers of sources and targets of an edge index.
        edge_arguments: arguments of `forward` with one value an edge. A HAG keeps no order of
            edges, so a call with one of these runs the stock layer, but for `weigh`.
        weigh: the weights of the messages, where `edge_weight` is given with an edge index.
        conditions: what else rules it out.
        yields: whether stock's code runs where there are few messages (`SMALL`). Not for layers
            that normalise or split their edge index at each call, which takes longer than all else.
        cache: where a layer with `cached=True` keeps the graph of its first call.
    """

    graphs: tuple[str, ...] = ("edge_index",)
    features: str | None = "x"
    source: str = "x"
    target: str | None = None
    message: Callable[[Any, Tensor], Tensor] | None = None
    offset: Callable[[Any, Tensor], Tensor | None] | None = None
    reduce: Callable[[Any, Tensor, HAG], Tensor] | None = None
    self_loops: Callable[[Any], SelfLoops] = lambda conv: False
    scale: Callable[[Any], float | None] = lambda conv: None
    keeps: Callable[[Any], bool] | None = None
    matrix: str | None = None
    forward: Callable[..., Tensor] | None = None
    relations: Callable[[Any], int | None] = lambda conv: None
    size: Callable[[Any, Call], tuple[int, int]] | None = None
    edge_arguments: tuple[str, ...] = ()
    weigh: Weigh | None = None
    conditions: tuple[Condition, ...] = ()
    yields: bool = False
    cache: str | None = None

    @property
    def is_normalised(self) -> bool:
        """Whether the layer makes weights of its graph where it is given none."""
        return self.weigh is normalised


# What holds for every layer ---------------------------------------------------------------------


def _has_hooks(conv: Any) -> bool:
    own = conv.__dict__  # this and the loops below are run at every call
    for name in HOOKS:  # noqa: SIM110
        if own[name]:
            return True
    return False


def _is_changed(conv: Any) -> bool:
    own = conv.__dict__
    for name in OVERRIDABLE:  # noqa: SIM110
        if name in own:
            return True
    return False


def _is_traced() -> bool:
    """Whether torch.jit.trace or torch.onnx.export is writing down what runs."""
    if torch.compiler.is_compiling():
        return bool(torch.onnx.is_in_onnx_export())
    return torch._C._get_tracing_state() is not None


LAYER_CONDITIONS = (
    Condition(
        lambda conv: _is_traced(),
        lambda conv: "traces and ONNX files hold stock's code, which runs without hag_plugin",
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
        _is_changed,
        lambda conv: "message, aggregate or update was replaced on the instance",
    ),
)


def ruled_out_as_set_up(conv: MessagePassing, recipe: Recipe) -> str | None:
    """Why the layer must run its stock code, whatever its aggregation. None: it need not."""
    for conditions in (LAYER_CONDITIONS, recipe.conditions):
        for condition in conditions:
            if condition.holds(conv):
                return condition.reason(conv)
    return None


def ruled_out(conv: MessagePassing, recipe: Recipe) -> str | None:
    """Why the layer, as it is set up now, must run its stock code. None: it need not."""
    reason = ruled_out_as_set_up(conv, recipe)
    if reason is not None:
        return reason
    if recipe.reduce is not None:
        return None
    module = conv.aggr_module
    if type(module) in REDUCERS:
        return None
    reason = aggregators.why_stock(module)
    if reason is not None:
        return f"aggr={conv.aggr!r}: {reason}"
    if recipe.offset is not None and not aggregators.takes_offset(module):
        return f"aggr={conv.aggr!r} of messages with a term of the target"
    if recipe.self_loops(conv) is not False or recipe.scale(conv) is not None:
        return f"aggr={conv.aggr!r} over a graph with self-loops or scales that the layer adds"
    return None


def edge_values(names: tuple[str, ...], call: Call) -> str | None:
    """The first of the arguments `names`, one value an edge each, that a call gives."""
    for name in names:
        if call.get(name) is not None:
            return name
    return None


def why_stock(conv: Any, recipe: Recipe, features: Any) -> str | None:
    """Why this call, with these features, must run stock code. None: it need not."""
    reason = ruled_out(conv, recipe)
    if reason is not None or recipe.features is None:
        return reason
    if not isinstance(features, PAIRS):
        return None if features is None or _is_taken(features) else NOT_TAKEN
    if not all(f is None or _is_taken(f) for f in features):
        return NOT_TAKEN
    if conv.flow == "target_to_source" and features[0] is not features[-1]:
        # PyG's generated code lifts x[0] here, its Python code x[1] (collect.jinja, _collect).
        return "flow='target_to_source' with two sets of nodes is left to stock"
    return None


def may_be_small(conv: Any, recipe: Recipe) -> bool:
    """Whether the layer leaves a call with few messages to stock."""
    return recipe.yields and recipe.scale(conv) is None and not conv.__dict__.get("cached")


def is_small(conv: Any, recipe: Recipe, num_edges: int, features: Any) -> bool:
    """Whether a call has so few messages that stock's code is as fast: never in inference."""
    return _has_few(conv, recipe, num_edges, features) and may_be_small(conv, recipe)


def is_small_plain(conv: Any, recipe: Recipe, edge_index: Tensor, features: Any) -> bool:
    """The same of an edge index: there, stock may also have cached what it normalised."""
    if not _has_few(conv, recipe, edge_index.shape[-1], features):
        return False
    is_cached = recipe.cache is not None and has_cache(conv, recipe.cache)
    return is_cached or may_be_small(conv, recipe)


def has_cache(conv: Any, name: str) -> bool:
    """Whether a layer with `cached=True` keeps a graph by now; as it was, where it runs again."""
    return decide(name, lambda: getattr(conv, name) is not None)


def _has_few(conv: Any, recipe: Recipe, num_edges: int, features: Any) -> bool:
    if not recipe.yields or num_edges >= SMALL or not torch.is_grad_enabled():
        return False
    x = features[0] if isinstance(features, PAIRS) else features
    if not isinstance(x, Tensor) or x.dim() < 2:
        return False
    few = num_edges * x.numel() < SMALL * x.shape[conv.node_dim]
    return few and not torch.compiler.is_compiling()


def _is_taken(x: Any) -> bool:
    return isinstance(x, Tensor) and x.layout == torch.strided and x.dtype in DTYPES
