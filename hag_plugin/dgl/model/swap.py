"""The classes that accelerated layers of attention get: their `forward` runs in one pass."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch.nn import Module

from hag_plugin.dgl.recipes.attention import Attention
from hag_plugin.dgl.recipes.calls import note
from hag_plugin.dgl.recipes.settle import settle_scores
from hag_plugin.dgl.recipes.table import OTHER_FORWARD, recipe_of, stock_class
from hag_plugin.saved import set_module

_CLASSES: dict[type, type] = {}


def attention_of(layer: Module) -> Attention | None:
    """How a layer attends, if its `forward` is DGL's."""
    recipe = recipe_of(type(layer))
    if recipe is None or recipe.attention is None or recipe.ruled_out(layer) == OTHER_FORWARD:
        return None
    return recipe.attention


def hag_class(stock: type, attention: Attention) -> type:
    """The subclass of `stock` that `accelerate` gives its instances. One for each class."""
    if stock not in _CLASSES:
        body = {
            "__doc__": stock.__doc__,
            "__module__": __name__,
            "_hag_dgl_stock": stock,
            "forward": _forward(stock, attention),
            "__reduce_ex__": _reduce,
        }
        _CLASSES[stock] = type(f"Hag{stock.__name__}", (stock,), body)
    return _CLASSES[stock]


def swap_in(layer: Any, session: Any) -> None:
    """Gives a layer its accelerated class."""
    attention = attention_of(layer)
    assert attention is not None
    layer.__class__ = hag_class(type(layer), attention)
    layer.__dict__["_hag_dgl_session"] = session


def swap_out(layer: Any) -> None:
    """Gives a layer its stock class back."""
    layer.__class__ = stock_class(layer)
    layer.__dict__.pop("_hag_dgl_session", None)


def _forward(stock: Any, attention: Attention) -> Any:
    stock_forward = stock.forward
    names = list(inspect.signature(stock_forward).parameters)[1:]

    @functools.wraps(stock_forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        choice = settle_scores(self, attention, dict(zip(names, args, strict=False)) | kwargs)
        if choice.run is not None:
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
    recipe = recipe_of(stock)
    assert recipe is not None
    assert recipe.attention is not None
    cls: Any = hag_class(stock, recipe.attention)
    return cls.__new__(cls)
