"""The classes that accelerated layers of attention get: their `forward` runs in one pass."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch.nn import Module

from hag_plugin.dgl.recipes.calls import note
from hag_plugin.dgl.recipes.propagate import refuse_onnx
from hag_plugin.dgl.recipes.settle_scores import settle_scores
from hag_plugin.dgl.recipes.table import OTHER_FORWARD, recipe_of, stock_class
from hag_plugin.saved import set_module

_CLASSES: dict[type, type] = {}


def attends(layer: Module) -> bool:
    """Whether a layer is one of attention whose `forward` is DGL's."""
    recipe = recipe_of(type(layer))
    if recipe is None or recipe.attention is None:
        return False
    return recipe.ruled_out(layer) != OTHER_FORWARD


def hag_class(stock: type) -> type:
    """The subclass of `stock` that `accelerate` gives its instances. One for each class."""
    if stock not in _CLASSES:
        body = {
            "__doc__": stock.__doc__,
            "__module__": __name__,
            "_hag_dgl_stock": stock,
            "forward": _forward(stock),
            "__reduce_ex__": _reduce,
        }
        _CLASSES[stock] = type(f"Hag{stock.__name__}", (stock,), body)
    return _CLASSES[stock]


def swap_in(layer: Any, session: Any) -> None:
    """Gives a layer its accelerated class."""
    layer.__class__ = hag_class(type(layer))
    layer.__dict__["_hag_dgl_session"] = session


def swap_out(layer: Any) -> None:
    """Gives a layer its stock class back."""
    layer.__class__ = stock_class(layer)
    layer.__dict__.pop("_hag_dgl_session", None)


def _forward(stock: Any) -> Any:
    stock_forward, recipe = stock.forward, recipe_of(stock)
    assert recipe is not None
    parameters = list(inspect.signature(stock_forward).parameters.values())[1:]
    names = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]

    @functools.wraps(stock_forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = dict(zip(names, args, strict=False)) | kwargs
        if len(call) < len(args) + len(kwargs):
            return stock_forward(self, *args, **kwargs)  # which says what is wrong
        choice = settle_scores(self, recipe, call)
        if choice.run is not None:
            refuse_onnx()
            ran = choice.run()
            note(ran.kind, ran.reason)
            return ran.value
        out = stock_forward(self, *args, **kwargs)
        note("stock", choice.reason)  # the last of a call's reasons is told
        return out

    return forward


def _reduce(self: Any, protocol: Any) -> Any:
    stock: Any = stock_class(self)
    reduced = stock.__reduce_ex__(self, protocol)
    return (_new_layer, (stock,), *reduced[2:])


@set_module("hag_plugin.dgl")
def _new_layer(stock: type) -> Any:
    cls: Any = hag_class(stock)
    return cls.__new__(cls)
