"""What a recipe is: how a layer aggregates, told in data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import Module

from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import SelfLoops
from hag_plugin.pyg.recipes.weighted import Weigh, normalised

Call = Mapping[str, Any]  # the arguments of one call of `forward` or `propagate`, by name

PAIRS = (tuple, list)


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
            HAGs, or an edge index with the argument `edge_type`. None, or if it gives None: one
            graph.
        size: from the layer and the call, the numbers of sources and targets of an edge index.
        edge_arguments: arguments of `forward` with one value an edge. A HAG keeps no order of
            edges, so a call with one of these runs the stock layer, but for `weigh`.
        weigh: the weights of the messages, where `edge_weight` is given with an edge index.
        conditions: what else rules it out.
        returns: whether it aggregates back over the reverse of its graph, too.
        yields: whether stock's code runs where there are few messages (see `model/settle.py`). Not
            for layers that normalise or split their edge index at each call, which takes longer
            than all else.
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
    relations: Callable[[Any], int | None] | None = None
    size: Callable[[Any, Call], tuple[int, int]] | None = None
    edge_arguments: tuple[str, ...] = ()
    weigh: Weigh | None = None
    conditions: tuple[Condition, ...] = ()
    returns: bool = False
    yields: bool = False
    cache: str | None = None

    @property
    def is_normalised(self) -> bool:
        """Whether the layer makes weights of its graph where it is given none."""
        return self.weigh is normalised


def stock_class(conv: Module) -> type:
    """The class that a layer had before `accelerate`."""
    stock: type = type(conv).__dict__.get("_hag_stock", type(conv))
    return stock
