"""The classes that accelerated layers get: their `forward` decides what a call runs on."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from dgl import DGLGraph
from torch import Tensor

from hag_plugin.dgl.aggregation.choice import NO_GRAPH, UNKNOWN_MESSAGE
from hag_plugin.dgl.model.session import Session
from hag_plugin.dgl.recipes.calls import because, begin, end, is_left, note
from hag_plugin.dgl.recipes.propagate import refuse_onnx
from hag_plugin.dgl.recipes.settle_scores import settle_scores
from hag_plugin.dgl.recipes.table import aggregates, attends, recipe_of, stock_class
from hag_plugin.explanation import Calls
from hag_plugin.saved import set_module

# In a layer: what its calls ran on, the session of its model, and whether it is the model.
CALLS, SESSION, IS_ROOT = "_hag_dgl_calls", "_hag_dgl_session", "_hag_dgl_is_root"

_CLASSES: dict[type, type] = {}


def hag_class(stock: Any) -> type:
    """The subclass of `stock` that `accelerate` gives its instances. One for each class."""
    if stock not in _CLASSES:
        body = {
            "__doc__": stock.__doc__,
            "__module__": __name__,
            "_hag_dgl_stock": stock,
            "forward": _forward(stock),
            "__reduce_ex__": _reduce,
        }
        _CLASSES[stock] = type(stock)(f"Hag{stock.__name__}", (stock,), body)
    return _CLASSES[stock]


def swap_in(layer: Any, session: Session, is_root: bool) -> None:
    """Gives a layer its accelerated class.

    Args:
        layer: any that is called with a graph.
        session: of the model that it belongs to.
        is_root: whether it is that model itself.
    """
    layer.__class__ = hag_class(type(layer))
    layer.__dict__.update({CALLS: Calls(), SESSION: session, IS_ROOT: is_root})


def swap_out(layer: Any) -> None:
    """Gives a layer its stock class back."""
    layer.__class__ = stock_class(layer)
    for name in (CALLS, SESSION, IS_ROOT):
        layer.__dict__.pop(name, None)


# What the classes are made of -------------------------------------------------------------------


def _forward(stock: Any) -> Any:
    stock_forward, settled = stock.forward, _settled(stock)

    @functools.wraps(stock_forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls = self.__dict__[CALLS]
        if is_left(calls, args, kwargs):  # as those before it were
            return stock_forward(self, *args, **kwargs)
        session = self.__dict__[SESSION] if self.__dict__[IS_ROOT] else None
        if session is not None:
            session.begin()
        begin(calls, args, kwargs)
        try:
            return settled(self, args, kwargs)
        finally:
            end(calls)
            if session is not None:
                session.occasions.end()

    return forward


def _settled(stock: Any) -> Any:
    """What runs a call of a layer of this class, and notes on what."""
    if attends(stock):
        return _attended(stock)
    return _on_graphs(stock) if aggregates(stock) else _as_before(stock)


def _attended(stock: Any) -> Any:
    """A layer of attention: in one pass, without a HAG."""
    stock_forward, recipe = stock.forward, recipe_of(stock)
    assert recipe is not None
    parameters = list(inspect.signature(stock_forward).parameters.values())[1:]
    names = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]

    def settled(layer: Any, args: Any, kwargs: Any) -> Any:
        # Torch 2.8 can't put a zip with arguments of its own back after a break.
        call = dict(zip(names, args)) | kwargs  # noqa: B905
        if len(call) < len(args) + len(kwargs):
            return stock_forward(layer, *args, **kwargs)  # which says what is wrong
        choice = settle_scores(layer, recipe, call)
        if choice.run is not None:
            refuse_onnx()
            ran = choice.run()
            note(ran.kind, ran.reason)
            return ran.value
        out = stock_forward(layer, *args, **kwargs)
        note("stock", choice.reason)  # the last of a call's reasons is told
        return out

    return settled


def _on_graphs(stock: Any) -> Any:
    """A layer that aggregates: its graphs are replaced by those of the session, and their steps
    note what they ran on."""
    stock_forward = stock.forward

    def settled(layer: Any, args: Any, kwargs: Any) -> Any:
        session, reason, given = layer.__dict__[SESSION], NO_GRAPH, args
        features = next((v for v in (*args, *kwargs.values()) if _holds_rows(v)), None)
        for place, value in enumerate(given):
            if isinstance(value, DGLGraph):
                graph, reason = session.graph(value, layer, features)
                args = (*args[:place], graph, *args[place + 1 :])
        for name, value in kwargs.items():
            if isinstance(value, DGLGraph):
                graph, reason = session.graph(value, layer, features)
                kwargs = {**kwargs, name: graph}
        because(reason)
        return stock_forward(layer, *args, **kwargs)

    return settled


def _as_before(stock: Any) -> Any:
    """A layer that is not known to aggregate rows of source nodes: its calls are counted."""
    stock_forward = stock.forward

    def settled(layer: Any, args: Any, kwargs: Any) -> Any:
        because(UNKNOWN_MESSAGE)
        return stock_forward(layer, *args, **kwargs)

    return settled


def _holds_rows(value: Any) -> bool:
    """Whether an argument is features, or those of sources and of targets."""
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    return isinstance(value, Tensor)


# Copies and pickles -----------------------------------------------------------------------------


def _reduce(self: Any, protocol: Any) -> Any:
    stock: Any = stock_class(self)
    reduced = stock.__reduce_ex__(self, protocol)
    return (_new_layer, (stock,), *reduced[2:])


@set_module("hag_plugin.dgl")
def _new_layer(stock: type) -> Any:
    cls: Any = hag_class(stock)
    return cls.__new__(cls)
