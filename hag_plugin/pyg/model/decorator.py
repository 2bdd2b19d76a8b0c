"""`hag_layer`: a user's own layer declares that its message depends on the source node alone, or
that it weighs messages by attention of a known form."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, overload

import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing

from hag_plugin.hag.build import build_hag
from hag_plugin.hag.hag import HAG
from hag_plugin.layers.pyg import reducers
from hag_plugin.layers.record import Record
from hag_plugin.modes import outside_inference
from hag_plugin.ops.attention import Score
from hag_plugin.ops.registration import is_transformed
from hag_plugin.pyg.aggregation.neighbourhoods import check_sizes
from hag_plugin.pyg.model import edge_order
from hag_plugin.pyg.model.calls import note
from hag_plugin.pyg.model.facts import plain_edges
from hag_plugin.pyg.model.settle import settle
from hag_plugin.pyg.recipes.conditions import SOURCE_TO_TARGET, SUM
from hag_plugin.pyg.recipes.declared import CHECKED, Attention, declared_attention, numbers_of
from hag_plugin.pyg.recipes.lstm import is_lstm
from hag_plugin.pyg.recipes.propagate import run_rows, stand_in
from hag_plugin.pyg.recipes.recipe import Condition, Recipe
from hag_plugin.pyg.recipes.scored import How, ScoredGraph, edges_of
from hag_plugin.pyg.recipes.table import RECIPES
from hag_plugin.sequence.prefix_tree import SequentialHAG

C = TypeVar("C", bound=type)

NO_LSTM = Condition(
    is_lstm, lambda conv: f"aggr={conv.aggr!r} of a declared message, whose rows it would pad"
)
CHECKED_NODES = 32  # the self-check compares on a graph of this many nodes
CHECKED_EDGES = 96
TOLERANCE = 1e-9
OTHER_MESSAGE = "the message depends on more than the source node, or mixes nodes"
OTHER_ATTENTION = "the message is not its value times an attention of the form that is declared"
OTHER_DROPOUT = (
    "in training its message draws something else than the dropout that is declared, which is one "
    "of the softmax, [E, H]"
)


@overload
def hag_layer(cls: C) -> C: ...
@overload
def hag_layer(*, score: Score, **attention: Any) -> Callable[[C], C]: ...
def hag_layer(cls: Any = None, *, score: Score | None = None, **attention: Any) -> Any:
    """Class decorator for a `MessagePassing` layer of your own.

    By it you declare that the message of an edge depends on its source node alone: `message`
    takes `x_j` and other arguments that end in `_j`. Then it is computed once a node instead of
    once an edge, and aggregated over a HAG. Given a HAG, `propagate` does so; given a plain edge
    index it runs stock code, unless the model was accelerated and knows the graph. Subclasses
    inherit the declaration. Random numbers drawn in `message` are drawn once a node, too.

    The first time, the result is compared with stock on a small random graph, in float64 and in
    evaluation mode; with a `score`, in training mode, too.

    With a `score` you declare instead that the layer attends: its message is `value_j`, times the
    softmax, over the edges of each target, of a score of `key_j` and `query_i`. What `propagate` is
    given under these names then goes through `ops.attention.attend`, in one pass over the edges,
    and no messages are made. Values are `[N, H, C]` of H heads with `node_dim=0`, or `[N, C]`.

    Args:
        cls: a subclass of `MessagePassing`.
        score: None, or how scores are made: "dot", the products of keys and queries `[N, H, K]`;
            "sum", of two numbers a node and head `[N, H]`; "vector", `weight` times the leaky ReLU
            of the sum of two vectors `[N, H, K]`; "given", `bias` alone.
        attention: where there is a score, more of it. `key`, `query`, `value`: the arguments of
            `propagate` that they are, if these have other names. `bias`: that of numbers added to
            scores, `[E, H]`; `edges`: that of vectors added before the leaky ReLU, `[E, H * K]`.
            `slope` of the leaky ReLU (1: there is none; it follows the score, but for "vector"),
            `scale` of products (1), `dropout` of the softmax (0), and `weight` `[H, K]` ("att"):
            each a value, the name of the layer's attribute or a function of the layer.
            `normalise`: "softmax", "tanh" or "none".

    Returns:
        `cls` itself; without it, what decorates a class.

    Raises:
        TypeError: the class is no `MessagePassing`, has a `propagate`, `aggregate` or
            `edge_update` of its own, or its `message` or `update` takes more than the source; or
            what is said of the attention is unknown, or of no use with its score.

    Example:
        >>> import torch
        >>> from torch_geometric.nn import MessagePassing
        >>> @hag_layer
        ... class TanhConv(MessagePassing):
        ...     def forward(self, x, edge_index):
        ...         return self.propagate(edge_index, x=x)
        ...
        ...     def message(self, x_j):
        ...         return x_j.tanh()
        >>> hag = build_hag(torch.tensor([[0, 1], [1, 0]]))
        >>> TanhConv()(torch.zeros(2, 3), hag).shape
        torch.Size([2, 3])

        >>> from torch_geometric.utils import softmax
        >>> @hag_layer(score="dot", key="x", query="x", value="x")
        ... class Attending(MessagePassing):
        ...     def forward(self, x, edge_index):
        ...         return self.propagate(edge_index, x=x)
        ...
        ...     def message(self, x_i, x_j, index, ptr, size_i):
        ...         return x_j * softmax((x_i * x_j).sum(-1, keepdim=True), index, ptr, size_i)
        >>> Attending()(torch.zeros(2, 3), hag).shape
        torch.Size([2, 3])
    """
    if score is None and attention:
        raise TypeError(f"hag_layer got {next(iter(attention))!r}, which needs a score")
    attends = None if score is None else declared_attention(score, **attention)

    def decorate(cls: C) -> C:
        return _declare(cls, attends)

    return decorate if cls is None else decorate(cls)


def _declare(cls: C, attends: Attention | None) -> C:
    if not (isinstance(cls, type) and issubclass(cls, MessagePassing)):
        raise TypeError(f"hag_layer takes a subclass of MessagePassing, got {cls!r}")
    if cls in RECIPES:
        raise TypeError(f"{cls.__name__} needs no hag_layer: accelerate knows it")
    if attends is not None:
        return _declare_attention(cls, attends)
    _check_class(cls)
    owner = next((c for c in cls.__mro__ if c in RECIPES), None)
    base = RECIPES[owner] if owner is not None else Recipe()
    record = replace(
        base.record,
        name=f"{cls.__module__}.{cls.__qualname__}",
        graphs=("edge_index",),
        features="x",
        relations=None,
        matrix="",
    )
    cls._hag_recipe = Recipe(  # type: ignore[attr-defined]
        record, base.source, fuses=False, conditions=(NO_LSTM,), yields=False
    )
    cls._set_jittable_templates = _set_templates  # type: ignore[attr-defined]
    if base.is_normalised:
        cls.forward = _noting_features(cls.forward, base)  # type: ignore[attr-defined]
    return cls


def _declare_attention(cls: C, attends: Attention) -> C:
    known = next((c.__name__ for c in cls.__mro__ if c in RECIPES), None)
    if known is not None:
        raise TypeError(f"{cls.__name__} is a {known}; a score is for a MessagePassing of its own")
    record = Record(
        f"{cls.__module__}.{cls.__qualname__}",
        edge_values=attends.edge_values,
        reduce=reducers,
        attends=lambda conv: True,
    )
    cls._hag_recipe = Recipe(  # type: ignore[attr-defined]
        record,
        attention=attends,
        numbers=numbers_of,
        ranks=(2, 3),
        conditions=(SUM, SOURCE_TO_TARGET),
        yields=False,
    )
    _check_class(cls)
    cls._set_jittable_templates = _set_templates  # type: ignore[attr-defined]
    return cls


def _noting_features(forward: Any, base: Recipe) -> Any:
    """A known layer's `forward` that notes what `stand_in` makes of its features."""

    @functools.wraps(forward)
    def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
        like_weights = stand_in(base, self, args[0] if args else kwargs.get("x"))
        if like_weights is None:  # as always but under autocast
            return forward(self, *args, **kwargs)
        self._hag_like_weights = like_weights
        try:
            return forward(self, *args, **kwargs)
        finally:
            del self._hag_like_weights

    return noting


# What a class may look like ---------------------------------------------------------------------


def _check_class(cls: type) -> None:
    """Raises TypeError unless all that `cls` defines fits the declaration."""
    for name in ("propagate", "aggregate", "edge_update"):
        if _is_own(cls, name):
            raise TypeError(
                f"{cls.__name__} has its own {name}; hag_layer expects that of MessagePassing"
            )
    recipe = getattr(cls, "_hag_recipe", None)
    if _is_own(cls, "message") and (recipe is None or recipe.attention is None):
        for name in _parameters(cls, "message"):
            if not name.endswith("_j") or name in MessagePassing.special_args:
                raise TypeError(
                    f"{cls.__name__}.message takes {name!r}; hag_layer expects arguments of the "
                    "source node alone, whose names end in '_j'"
                )
    if _is_own(cls, "update"):
        for name in _parameters(cls, "update")[1:]:
            if name.endswith(("_i", "_j")) or name in {*MessagePassing.special_args, "dim_size"}:
                raise TypeError(
                    f"{cls.__name__}.update takes {name!r}, which is lifted to edges; hag_layer "
                    "expects the aggregate and arguments given to propagate"
                )


def _is_own(cls: type, name: str) -> bool:
    """Whether `cls` or a base that is not PyG's own defines a method."""
    for base in cls.__mro__:
        if base is MessagePassing or base in RECIPES:
            return False
        method = base.__dict__.get(name)
        if method is not None:
            return not (name == "propagate" and _is_installed(base, method))
    return False


def _is_installed(cls: type, propagate: Any) -> bool:
    """Whether a class's `propagate` was put there by PyG's templates or by this file."""
    if propagate in (_propagate, cls.__dict__.get("_hag_template")):
        return True
    return str(propagate.__module__).startswith(f"{cls.__module__}_{cls.__name__}_propagate")


def _parameters(cls: Any, method: str) -> list[str]:
    return list(inspect.signature(getattr(cls, method)).parameters)[1:]


# What a class gets ------------------------------------------------------------------------------


def _set_templates(self: Any, raise_on_error: bool = False) -> None:
    """Lets PyG generate its `propagate` for this very class, then puts ours before it."""
    cls = type(self)
    if "_hag_template" in cls.__dict__:
        return
    _check_class(cls)  # a subclass of the decorated class may have changed
    MessagePassing._set_jittable_templates(self, raise_on_error)
    cls._hag_template = cls.__dict__.get("propagate", MessagePassing.propagate)
    cls._orig_propagate = MessagePassing.propagate
    cls._jinja_propagate = _propagate
    cls.propagate = _propagate


def _stock_propagate(conv: Any) -> Any:
    template = type(conv)._hag_template
    return MessagePassing.propagate if template is _propagate else template


def _propagate(self: Any, edge_index: Any, *args: Any, size: Any = None, **kwargs: Any) -> Any:
    """Settled here and not in forward, which may do with its tensor what a HAG cannot do."""
    recipe: Recipe = type(self)._hag_recipe
    if isinstance(edge_index, SequentialHAG):
        size = (edge_index.num_src, edge_index.num_dst) if size is None else size
        edge_index = plain_edges(edge_index)
    if isinstance(recipe.attention, Attention):
        recipe.attention.check(self, kwargs)
    call = {**kwargs, "size": size, "edge_index": edge_index}
    attends = recipe.attention is not None
    if attends or not isinstance(edge_index, Tensor) or not torch.compiler.is_compiling():
        call["x"] = _features(self, recipe, kwargs)
    choice = settle(self, recipe, call)
    hag = choice.changed.get("edge_index", edge_index)
    if choice.kind != "stock":
        if (
            not torch.compiler.is_compiling()
            and CHECKED not in self.__dict__
            and not is_transformed()
            and _self_check(self, recipe, kwargs)
        ):
            self.__dict__[CHECKED] = True
        out = _run(self, recipe, hag, size, kwargs)
    elif isinstance(edge_index, HAG):
        out = _run_plain(self, edge_index, args, size, kwargs)
    else:
        out = _stock_propagate(self)(self, edge_index, *args, size=size, **kwargs)
    note(self, recipe, choice, call)
    return out


def _run_plain(conv: Any, hag: HAG, args: Any, size: Any, kwargs: dict[str, Any]) -> Any:
    """Stock's code on the edges of a HAG, where their order makes no difference."""
    given = {**kwargs, "size": (hag.num_src, hag.num_dst) if size is None else size}
    edges = plain_edges(hag)
    out = _stock_propagate(conv)(conv, edges, *args, **given)
    if not edge_order.is_free(conv, MessagePassing):  # its message is declared to be
        told_apart = {**given, "edge_index": edge_order.of(conv, edges)}

        def run(layer: Any, prepared: Any) -> Any:
            return _stock_propagate(layer)(layer, **prepared(told_apart))

        edge_order.check(conv, type(conv), run)
    return out


def _features(conv: Any, recipe: Recipe, kwargs: dict[str, Any]) -> Any:
    """The first tensor, or pair, that `message` is given node by node."""
    if isinstance(recipe.attention, Attention):
        return recipe.attention.ends(kwargs)
    for name in _parameters(type(conv), "message"):
        if name.endswith("_j") and kwargs.get(name[:-2]) is not None:
            return kwargs[name[:-2]]
    return None


def _run(conv: Any, recipe: Recipe, graph: Any, size: Any, kwargs: dict[str, Any]) -> Tensor:
    """What the messages come to over a HAG, or a graph whose edges are scored; then update."""
    attends = recipe.attention
    if isinstance(attends, Attention):
        check_sizes(graph.hag, size, attends.ends(kwargs), conv.node_dim)
        out = attends(conv, graph, kwargs)
    else:
        out = _aggregated(conv, recipe, graph, size, kwargs)
    rest = {n: kwargs[n] for n in _parameters(type(conv), "update")[1:] if n in kwargs}
    updated: Tensor = conv.update(out, **rest)
    return updated


def _aggregated(conv: Any, recipe: Recipe, hag: HAG, size: Any, kwargs: dict[str, Any]) -> Tensor:
    """Message once a node, then the HAG."""
    side = 0 if conv.flow == "source_to_target" else 1
    lifted = {}
    for name in _parameters(type(conv), "message"):
        if not name.endswith("_j"):
            continue  # a known layer's edge_weight, which is None
        value = kwargs[name[:-2]]
        pair = (value[0], value[1]) if isinstance(value, (tuple, list)) else (value, value)
        check_sizes(hag, size, pair, conv.node_dim, side)
        lifted[name] = value[side] if isinstance(value, (tuple, list)) else value
    if _is_own(type(conv), "message"):
        message = conv.message(**lifted)
    else:
        message = lifted[f"{recipe.source}_j"]
    like_weights = conv.__dict__.get("_hag_like_weights")
    if like_weights is not None:
        message = message.to(torch.promote_types(message.dtype, like_weights.dtype))
    graph = hag if side == 0 else hag.transpose()
    return run_rows(recipe, conv, graph, message)


# The self-check ---------------------------------------------------------------------------------


def _self_check(conv: Any, recipe: Recipe, kwargs: dict[str, Any]) -> bool:
    """Compares with stock on a small random graph over the first nodes, in float64.

    Returns:
        Whether a later call needs none: False where this one had no nodes, or no edges.

    Raises:
        ValueError: they differ: the message depends on more than the source node.
    """
    if recipe.scale(conv) is not None or recipe.record.self_loops(conv) is not False:
        return True  # stock normalises in forward: propagate alone has nothing to compare with
    try:
        twin = copy.deepcopy(conv).double().eval()
    except (RuntimeError, TypeError, ValueError):  # not every module can be copied
        return True
    count = min([CHECKED_NODES, *_row_counts(conv, kwargs)])
    of_edges = [kwargs.get(name) for name in recipe.record.edge_values]
    few = count == 0 if recipe.attention is None else count < 2  # one score is a softmax of 1
    if few or any(isinstance(value, Tensor) and len(value) == 0 for value in of_edges):
        return False
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(count, (2, CHECKED_EDGES), generator=generator)
    sample = {
        name: _of_edges(value)
        if name in recipe.record.edge_values
        else _sampled(value, count, conv.node_dim)
        for name, value in kwargs.items()
    }
    device = next((p.device for p in conv.parameters()), torch.device("cpu"))
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        outside_inference(),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        size = (count, count)
        if recipe.attention is None:
            graph: Any = build_hag(edges, num_nodes=count, method="none").to(device)
        else:
            graph = ScoredGraph(edges_of(edges, size, How(False, None)), edges)
            # Parameters may be 0 at first, and rows alike.
            sample = {name: _shaken(value) for name, value in sample.items()}
            for parameter in twin.parameters():
                parameter.copy_(_shaken(parameter))
        pairs = []
        for training in (False, True)[: 1 if recipe.attention is None else 2]:
            twin.train(training)
            torch.manual_seed(0)  # the same dropout
            stock = _stock_on(twin, edges.to(device), size, sample, recipe)
            torch.manual_seed(0)
            pairs.append((stock, _run(twin, recipe, graph, size, sample)))
    differ = [not _are_same(*pair) for pair in pairs]
    if any(differ):
        why = OTHER_MESSAGE if recipe.attention is None else OTHER_ATTENTION
        if not differ[0]:
            why = OTHER_DROPOUT
        raise ValueError(
            f"{type(conv).__name__} is declared with hag_layer, but on a small graph its result "
            f"differs from the stock computation: {why}"
        )
    return True


def _are_same(stock: Tensor, ours: Tensor) -> bool:
    scale = max(1.0, float(stock.abs().nan_to_num(0.0, 0.0).max())) if stock.numel() else 1.0
    how: dict[str, Any] = {"rtol": 0.0, "atol": TOLERANCE * scale, "equal_nan": True}
    return stock.shape == ours.shape and torch.allclose(stock, ours, **how)


def _row_counts(conv: Any, kwargs: dict[str, Any]) -> list[int]:
    """Rows of every argument that `message` is given node by node."""
    rows = []
    for name in _parameters(type(conv), "message"):
        value = kwargs.get(name[:-2])
        for x in value if isinstance(value, (tuple, list)) else (value,):
            if name.endswith(("_i", "_j")) and isinstance(x, Tensor):
                rows.append(x.shape[conv.node_dim])
    return rows


def _stock_on(conv: Any, edges: Tensor, size: Any, sample: dict[str, Any], recipe: Recipe) -> Any:
    """Stock's code on the small graph.

    Raises:
        ValueError: an attention does not run there.
    """
    try:
        return _stock_propagate(conv)(conv, edges, size=size, **sample)
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        if recipe.attention is None:
            raise
        raise ValueError(
            f"{type(conv).__name__} is declared with hag_layer, but its message does not run on a "
            "small graph, to be compared: what it is given edge by edge must be declared, as bias "
            "or edges"
        ) from error


def _shaken(value: Any) -> Any:
    """An argument with noise."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_shaken, value))
    if not isinstance(value, Tensor) or not value.dtype.is_floating_point:
        return value
    return value + 0.1 * torch.randn_like(value)


def _of_edges(value: Any) -> Any:
    """Rows of an argument with one for each edge, for the edges of the small graph."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach()[torch.arange(CHECKED_EDGES, device=value.device) % len(value)]
    return value.double() if value.dtype.is_floating_point else value


def _sampled(value: Any, count: int, node_dim: int) -> Any:
    """The first `count` nodes of an argument of `propagate`, in float64."""
    if isinstance(value, (tuple, list)):
        return tuple(_sampled(v, count, node_dim) for v in value)
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    value = value.double() if value.dtype.is_floating_point else value
    dim = node_dim if node_dim >= 0 else value.dim() + node_dim
    if not 0 <= dim < value.dim() or value.shape[dim] <= count:
        return value
    return value.narrow(dim, 0, count)
