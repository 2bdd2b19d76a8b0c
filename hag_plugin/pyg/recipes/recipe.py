"""What a recipe is: how a layer aggregates, told in data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import Module

from hag_plugin.hag.hag import HAG
from hag_plugin.layers.pyg import reducers
from hag_plugin.layers.record import Record, unscaled

Call = Mapping[str, Any]  # the arguments of one call of `forward` or `propagate`, by name

PAIRS = (tuple, list)
UNKNOWN = Record("", reduce=reducers)  # a layer that has no record


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


def heads_of(conv: Any, x: Tensor) -> tuple[int, int]:
    """The heads of a layer, and how many numbers its messages have, all heads together."""
    heads: int = getattr(conv, "heads", 1)
    channels = getattr(conv, "out_channels", None)
    return heads, x.shape[-1] if channels is None else heads * channels


@dataclass(frozen=True)
class Recipe:
    """How a layer's `propagate` comes to `y_i = t_i * REDUCE_j(s_j * z_j + c_i)`.

    The layer's own `forward` runs as it is and hands `propagate` a HAG where an edge index stood.
    PyG's layers then leave out normalisation and self-loops, which the recipe puts back.

    Attributes:
        record: what the layer is; a call with one of its edge values runs the stock layer, since a
            HAG keeps no order of edges, but for weights that are fused.
        source: the argument of `propagate` that is lifted to edges as `x_j`.
        target: the argument of `propagate` with a row for each target, where that is another.
        message: `z`, `[N_src, ...]`, from the layer and the source's rows; by default these.
        offset: `c`, `[N_dst, ...]`, from the layer and the target's rows.
        reduce: from the layer, `z` and the graph: what the layer does in place of its
            aggregation module.
        keeps: None, or aggregates of features that do not change are computed once and kept: for
            layers that aggregate what they are given. Whether the layer only reads the aggregate,
            and does not hand it on to others; they get a copy.
        forward: what runs in place of the layer's own `forward` where its graph is a HAG, for
            layers that look into their edge index.
        size: from the layer and the call, the numbers of sources and targets of an edge index.
        fuses: whether messages are rows of the source alone, so that `edge_weight` given with an
            edge index may be among the scales of a HAG.
        attention: what runs in place of `propagate` over a graph with a score for each edge (see
            `attention`): given the layer, that graph and the arguments. Messages are then no rows
            of the source alone.
        numbers: from the layer and the sources' rows, the heads of its attention and how many
            numbers a message has, all heads together.
        over_products: what runs in place of the layer's own `forward` where its edges are scored,
            for layers whose attention is one function with their linear layers.
        whole: whether a layer's attention, over vectors, is one function with its linear layers.
        fused_below: of how many numbers in all messages of a call on attention compiled code of
            stock's is as fast, without gradients and with them: its compiler fuses what it can.
        unfit: from the layer and a call, why its attention is left to stock in that call. None: it
            need not be.
        ranks: the dimensions that features of a layer with attention may have.
        joins: whether it does so over the edges of all types of a dictionary as one graph.
        breaks: whether no compiler traces the `forward` of a layer with attention in one piece, as
            it is set up: so it is not traced here either.
        conditions: what else rules it out.
        returns: whether it aggregates back over the reverse of its graph, too.
        yields: whether stock's code runs where there are few messages (see `model/settle.py`). Not
            for layers that normalise or split their edge index at each call, which takes longer
            than all else.
        cache: where a layer with `cached=True` keeps the graph of its first call.
    """

    record: Record = UNKNOWN
    source: str = "x"
    target: str | None = None
    message: Callable[[Any, Tensor], Tensor] | None = None
    offset: Callable[[Any, Tensor], Tensor | None] | None = None
    reduce: Callable[[Any, Tensor, HAG], Tensor] | None = None
    keeps: Callable[[Any], bool] | None = None
    forward: Callable[..., Tensor] | None = None
    size: Callable[[Any, Call], tuple[int, int]] | None = None
    fuses: bool = True
    attention: Callable[[Any, Any, Call], Tensor] | None = None
    numbers: Callable[[Any, Tensor], tuple[int, int]] = heads_of
    over_products: Callable[..., Any] | None = None
    whole: Callable[[Any], bool] = lambda conv: False
    fused_below: tuple[int, int] = 20_000, 20_000
    unfit: Callable[[Any, Call], str | None] = lambda conv, call: None
    ranks: tuple[int, ...] = (2,)
    joins: bool = False
    breaks: Callable[[Any], bool] = lambda conv: False
    conditions: tuple[Condition, ...] = ()
    returns: bool = False
    yields: bool = True
    cache: str | None = None

    @property
    def is_normalised(self) -> bool:
        """Whether the layer may make weights of its graph where it is given none."""
        weighs = "edge_weight" in self.record.edge_values
        return weighs and self.record.exponents is not unscaled

    @property
    def fuses_weights(self) -> bool:
        """Whether there is anything to fuse."""
        return self.fuses and "edge_weight" in self.record.edge_values

    def scores(self, conv: Any) -> bool:
        """Whether a layer gives each edge a score, of both of its ends."""
        return self.attention is not None and self.record.attends(conv)

    def scale(self, conv: Any) -> float | None:
        """The exponent `p` where `s = t = degree ** p`, or None: `propagate` is not scaled."""
        return self.record.exponents(conv)[0] or None


def of_sources(value: Any) -> Any:
    """What is of the sources, where a value may be a pair of sources' and targets'."""
    return value[0] if isinstance(value, PAIRS) else value


def stock_class(conv: Module) -> type:
    """The class that a layer had before `accelerate`."""
    stock: type = type(conv).__dict__.get("_hag_stock", type(conv))
    return stock
