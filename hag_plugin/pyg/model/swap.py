"""The classes that accelerated layers get: stock layers whose graph may be a HAG."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.nn import DirGNNConv, MessagePassing

from hag_plugin.hag.hag import HAG
from hag_plugin.modes import untraced
from hag_plugin.pyg.model import edge_order
from hag_plugin.pyg.model.calls import CALLS, calls_of, note, say_instead
from hag_plugin.pyg.model.choice import NOTHING, PASSED, UNTRACED, Choice
from hag_plugin.pyg.model.compiled import NAME, name_layer
from hag_plugin.pyg.model.edge_order import Edges
from hag_plugin.pyg.model.facts import (
    PARAMETERS,
    is_relations,
    plain_edges,
    refuse_edge_value,
    why_no_recipe,
)
from hag_plugin.pyg.model.settle import GRAPHS, settle
from hag_plugin.pyg.model.settle_blocks import run_blocks, taken
from hag_plugin.pyg.recipes import lstm
from hag_plugin.pyg.recipes import propagate as running
from hag_plugin.pyg.recipes.forms import FORMS
from hag_plugin.pyg.recipes.recipe import Call, Recipe, stock_class
from hag_plugin.pyg.recipes.scored import ScoredGraph, ScoredTypes
from hag_plugin.pyg.recipes.table import recipe_of
from hag_plugin.pyg.recipes.weighted import WeightedGraph
from hag_plugin.saved import set_module
from hag_plugin.sequence.prefix_tree import SequentialHAG

_CLASSES: dict[type, type] = {}


def hag_class(stock: type) -> type:
    """The subclass of `stock` that `accelerate` gives its instances. One for each class.

    Nothing of the stock class is copied: `forward` settles what the graph argument is and calls
    stock's, or the recipe's; `propagate` runs the recipe where the graph is a HAG and stock's
    code elsewhere.
    """
    if stock not in _CLASSES:
        recipe = recipe_of(stock)
        body: dict[str, Any] = {
            "__doc__": stock.__doc__,
            "__module__": __name__,
            "_hag_stock": stock,
            PARAMETERS: tuple(_names(stock)),
            "_set_jittable_templates": _leave_templates,
            "__reduce_ex__": _reduce,
            "__setstate__": _set_state,
        }
        if stock in WRAPPERS:
            body["forward"] = WRAPPERS[stock]
        elif recipe is not None:
            body["forward"] = _forward(stock, recipe)
        else:
            body |= {name: _plain_method(stock, name) for name in methods_of_edges(stock)}
        if recipe is not None or stock in FORMS:
            # `explain` and `decomposed_layers` put _orig_propagate (inherited) on the instance,
            # and _jinja_propagate back when they are turned off.
            in_blocks = _propagate_in_blocks(stock) if stock in FORMS else None
            propagate = in_blocks if recipe is None else _propagate(stock, recipe, in_blocks)
            body |= {"propagate": propagate, "_jinja_propagate": propagate}
            if recipe is not None and recipe.attention is not None:
                updater = _edge_updater(stock)
                body |= {"edge_updater": updater, "_jinja_edge_updater": updater}
        _CLASSES[stock] = type(f"Hag{stock.__name__}", (stock,), body)
    return _CLASSES[stock]


def swap_in(conv: Any, session: Any) -> None:
    """Gives a layer its accelerated class."""
    stock = type(conv)
    bound = conv.__dict__.get("propagate")
    if bound is not None and _function(bound) is getattr(stock, "_jinja_propagate", None):
        del conv.__dict__["propagate"]  # left there when `explain` was turned off again
    conv.__class__ = hag_class(stock)
    conv.__dict__["_hag_session"] = session
    if isinstance(conv, MessagePassing):
        name_layer(conv)
        calls_of(conv)  # made here, so that the replicas of DataParallel share it


def swap_out(conv: Any) -> None:
    """Gives a layer its stock class back."""
    bound = conv.__dict__.get("propagate")
    if bound is not None and _function(bound) is type(conv).__dict__.get("propagate"):
        del conv.__dict__["propagate"]
    conv.__class__ = stock_class(conv)
    conv.__dict__.pop("_hag_session", None)
    conv.__dict__.pop(edge_order.FOUND_FREE, None)
    conv.__dict__.pop(CALLS, None)
    conv.__dict__.pop(NAME, None)


def _function(method: Any) -> Any:
    return getattr(method, "__func__", method)


# What the classes are made of -------------------------------------------------------------------


def _forward(stock: type, recipe: Recipe) -> Any:
    names = _names(stock)
    stock_forward: Any = stock.forward  # type: ignore[attr-defined]
    is_normalised, has_blocks = recipe.is_normalised, stock in FORMS

    @functools.wraps(stock_forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            calls = self.__dict__.get(CALLS)
            strangers = None if calls is None else calls.strangers
            if strangers is not None and strangers.follows(args, kwargs):  # as `settle` found
                return stock_forward(self, *args, **kwargs)
        call = dict(zip(names, args))  # noqa: B905  (torch before 2.9 does not trace `strict`)
        if kwargs:
            call.update(kwargs)
        choice = settle(self, recipe, call)
        if choice.kind == "stock":
            if choice.reason == UNTRACED:
                return apart(self, *args, **kwargs)
            if not choice.changed:
                out = stock_forward(self, *args, **kwargs)
            else:
                given = {**call, **choice.changed}
                out = stock_forward(self, **given)
                _check_edges(self, stock, stock_forward, recipe, call, given)
            note(self, recipe, taken(self, choice) if has_blocks else choice, call)
            return out
        given = {**call, **choice.changed}
        graph = given.get(recipe.record.graphs[0])
        if is_normalised and isinstance(graph, HAG):
            x = given.get("x")
            if isinstance(x, Tensor) and torch.is_autocast_enabled(x.device.type):
                given["edge_weight"] = running.stand_in(recipe, self, x)
        if recipe.over_products is not None and isinstance(graph, ScoredGraph):
            out = recipe.over_products(self, **given)
        elif recipe.forward is not None and (
            isinstance(graph, (HAG, ScoredGraph, ScoredTypes)) or is_relations(graph)
        ):
            out = recipe.forward(self, **given)
        else:
            out = stock_forward(self, **given)
            _check_edges(self, stock, stock_forward, recipe, call, given)
        note(self, recipe, choice, call)
        return out

    apart = untraced(forward)
    return forward


def _check_edges(
    conv: Any, stock: type, forward: Any, recipe: Recipe, call: Call, given: dict[str, Any]
) -> None:
    """Raises ValueError if a layer that ran on the edges of its HAG depends on their order."""
    if edge_order.is_free(conv, stock):
        return
    for name in recipe.record.graphs:
        taken, graph = call.get(name), given.get(name)
        if isinstance(graph, Tensor) and not isinstance(taken, (Tensor, SequentialHAG)):
            _check_order(conv, stock, forward, (), _as_edges(conv, given, name))


def _names(stock: Any) -> list[str]:
    return list(inspect.signature(stock.forward).parameters)[1:]


def _as_edges(conv: Any, given: dict[str, Any], name: str) -> dict[str, Any]:
    """Arguments whose edges came from a HAG, told apart from other tensors."""
    edges = edge_order.of(conv, given[name])
    given = {**given, name: edges}
    if isinstance(given.get("edge_type"), Tensor):
        given["edge_type"] = Edges(given["edge_type"], edges.target)
    return given


def _check_order(
    conv: Any, stock: type, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Raises ValueError if a layer that was given a HAG's edges depends on their order."""

    def run(layer: Any, prepared: Any) -> Any:
        return method(layer, *map(prepared, args), **prepared(kwargs))

    edge_order.check(conv, stock, run)


# Where edges are looked into --------------------------------------------------------------------

# Methods of PyG's that only hand on the edges they are given, to layers that may have a recipe.
HAND_ON = {
    "AntiSymmetricConv.forward",
    "BasicGNN.forward",
    "CorrectAndSmooth.correct",
    "CorrectAndSmooth.smooth",
    "GPSConv.forward",
    "GraphModule.forward",  # of SGFormer
    "LINKX.forward",
    "LightGCN.get_embedding",
    "NeuralFingerprint.forward",
    "PMLP.forward",
    "RECT_L.embed",
    "RECT_L.forward",
    "SGFormer.forward",
    "Sequential.forward",  # PyG gives the class what it generates for a model
    "SignedGCN.forward",
}


def methods_of_edges(stock: type) -> tuple[str, ...]:
    """The methods that are to be given edges where a HAG stands.

    `forward` of a message passing layer without a recipe; of PyG's other modules, all that take an
    edge index, but for those that hand it on.
    """
    if issubclass(stock, MessagePassing):
        return ("forward",)
    if not any(cls.__module__.startswith("torch_geometric.") for cls in stock.__mro__):
        return ()
    found = []
    for name in (name for name in dir(stock) if not name.startswith("_")):
        method = inspect.getattr_static(stock, name)
        known = edge_order.pyg_method(stock, name)
        if known is None or known in HAND_ON or not inspect.isfunction(method):
            continue
        if any("edge_index" in parameter for parameter in inspect.signature(method).parameters):
            found.append(name)
    return tuple(found)


def _plain_method(stock: type, name: str) -> Any:
    stock_method: Any = getattr(stock, name)
    parameters = list(inspect.signature(stock_method).parameters.values())[1:]
    names = [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL]
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}

    why = Choice("stock", why_no_recipe(stock), NOTHING)
    is_layer = issubclass(stock, MessagePassing)

    @functools.wraps(stock_method)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(map(_holds_graph, args)) or any(map(_holds_graph, kwargs.values())):
            out = run(self, args, kwargs)
        else:
            out = stock_method(self, *args, **kwargs)
        if is_layer:
            note(self, None, taken(self, why), NOTHING)
        return out

    def run(self: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        call = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
        for given in _edge_value_names(call):
            if call[given] is not None and not isinstance(call[given], GRAPHS):
                refuse_edge_value(self, given)
        if any(_holds_graph(value, HAG) for value in (*args, *kwargs.values())):
            reason = edge_order.why_ordered(self, stock, name, call)
            if reason is not None:
                edge_order.refuse(stock, reason)
        out = stock_method(self, *_replaced(args, plain_edges), **_replaced(kwargs, plain_edges))
        if is_layer and not edge_order.is_free(self, stock):
            edges = functools.partial(_replaced, with_=lambda graph: _told_apart(self, graph))
            _check_order(self, stock, stock_method, edges(args), edges(kwargs))
        return out

    return method


def _told_apart(conv: Any, graph: HAG | SequentialHAG) -> Any:
    edge_index = plain_edges(graph)
    return edge_order.of(conv, edge_index) if isinstance(graph, HAG) else edge_index


def _holds_graph(value: Any, kinds: Any = GRAPHS) -> bool:
    if isinstance(value, dict):  # HANConv and HGTConv take a dictionary by edge type
        return any(isinstance(v, kinds) for v in value.values())
    if isinstance(value, (list, tuple)):
        return any(isinstance(v, kinds) for v in value)
    return isinstance(value, kinds)


def _replaced(value: Any, with_: Any) -> Any:
    """Arguments with every HAG, and tree, replaced."""
    if isinstance(value, GRAPHS):
        return with_(value)
    if isinstance(value, dict):
        return {key: _replaced(v, with_) for key, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)([_replaced(v, with_) for v in value])
    return value


def _edge_value_names(names: Any) -> list[str]:
    return [name for name in names if name.startswith("edge_") and "index" not in name]


# What a layer does with what it was given --------------------------------------------------------


def _propagate_in_blocks(stock: type) -> Any:
    """Of a layer that has a form: stock's, or the same in blocks of edges."""
    cls: Any = stock  # which PyG, or a user, may give another `propagate` later

    def propagate(self: Any, edge_index: Any, *args: Any, size: Any = None, **kwargs: Any) -> Any:
        if type(edge_index) is Tensor and not torch.compiler.is_compiling():
            out = None if args else run_blocks(self, edge_index, size, kwargs)
            if out is not None:
                return out
        return cls.propagate(self, edge_index, *args, size=size, **kwargs)

    return propagate


def _propagate(stock: type, recipe: Recipe, in_blocks: Any) -> Any:
    """Of a layer that has a recipe; `in_blocks`: as `_propagate_in_blocks` gives it, if it has a
    form, too."""
    cls: Any = stock

    def propagate(self: Any, edge_index: Any, *args: Any, size: Any = None, **kwargs: Any) -> Any:
        if type(edge_index) is not Tensor:
            if isinstance(edge_index, HAG):
                return running.run(recipe, self, edge_index, size, kwargs)
            if isinstance(edge_index, SequentialHAG):
                return lstm.run(recipe, self, edge_index, size, kwargs)
            if isinstance(edge_index, WeightedGraph):
                return running.run_weighted(recipe, self, edge_index, kwargs)
            if isinstance(edge_index, ScoredGraph):
                return running.run_scored(recipe, self, edge_index, size, kwargs)
        if in_blocks is not None:
            return in_blocks(self, edge_index, *args, size=size, **kwargs)
        return cls.propagate(self, edge_index, *args, size=size, **kwargs)

    return propagate


def _edge_updater(stock: type) -> Any:
    cls: Any = stock

    def edge_updater(self: Any, edge_index: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(edge_index, ScoredGraph):
            return kwargs  # `propagate` gets it, in place of scores
        return cls.edge_updater(self, edge_index, *args, **kwargs)

    return edge_updater


def _dir_gnn_forward(self: Any, x: Any, edge_index: Any) -> Any:
    """dir_gnn_conv.py flips its edge index, and the new tensor would never come back."""
    inner = self.conv_in
    recipe = recipe_of(stock_class(inner))
    is_plain = isinstance(edge_index, Tensor) and isinstance(x, Tensor)
    may = not getattr(inner, "cached", False) and not lstm.is_lstm(inner)
    if is_plain and recipe is not None and may and not torch.compiler.is_compiling():
        choice = settle(inner, recipe, {"x": x, "edge_index": edge_index})
        hag = choice.changed.get("edge_index")
        if isinstance(hag, HAG):
            out = DirGNNConv.forward(self, x, hag)
            for layer in (self.conv_in, self.conv_out):
                say_instead(layer, PASSED, choice.reason)
            return out
    return DirGNNConv.forward(self, x, edge_index)


# Modules that are no MessagePassing, and change the edge index for the layers that they hold.
WRAPPERS: dict[type, Any] = {DirGNNConv: _dir_gnn_forward}


def is_swapped(part: Module) -> bool:
    """Whether `accelerate` gives this part of a model another class."""
    stock: Any = type(part)
    return isinstance(part, MessagePassing) or stock in WRAPPERS or bool(methods_of_edges(stock))


def _leave_templates(self: Any, raise_on_error: bool = False) -> None:
    """PyG would put a generated `propagate` on this class; the stock class has one already."""


def _reduce(self: Any, protocol: Any) -> Any:
    stock: Any = stock_class(self)
    reduced = stock.__reduce_ex__(self, protocol)
    return (_new_layer, (stock,), *reduced[2:])


@set_module("hag_plugin.pyg")
def _new_layer(stock: type) -> Any:
    cls: Any = hag_class(stock)
    return cls.__new__(cls)


def _set_state(self: Any, state: dict[str, Any]) -> None:
    # As a stock layer, so that PyG generates the stock class's code where it was not run yet.
    accelerated = type(self)
    self.__class__ = accelerated._hag_stock
    try:
        self.__setstate__({key: value for key, value in state.items() if key != CALLS})
    finally:
        self.__class__ = accelerated
    if NAME in self.__dict__:  # that of the layer that this is a copy of
        name_layer(self)
