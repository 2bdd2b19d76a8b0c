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
from hag_plugin.modes import outside_inference
from hag_plugin.pyg.model import edge_order
from hag_plugin.pyg.model.edge_order import Edges
from hag_plugin.pyg.recipes import lstm
from hag_plugin.pyg.recipes import propagate as running
from hag_plugin.pyg.recipes import recipe as recipes
from hag_plugin.pyg.recipes.recipe import Recipe
from hag_plugin.pyg.recipes.relations import plain_relations
from hag_plugin.pyg.recipes.table import recipe_of
from hag_plugin.pyg.recipes.weighted import WeightedGraph, weighted_graph
from hag_plugin.sequence.prefix_tree import SequentialHAG

GRAPHS = (HAG, SequentialHAG)
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
        if recipe is not None:
            # `explain` and `decomposed_layers` put _orig_propagate (inherited) on the instance,
            # and _jinja_propagate back when they are turned off.
            propagate = _propagate(stock, recipe)
            body |= {"propagate": propagate, "_jinja_propagate": propagate}
        _CLASSES[stock] = type(f"Hag{stock.__name__}", (stock,), body)
    return _CLASSES[stock]


def stock_class(conv: Module) -> type:
    """The class that a layer had before `accelerate`."""
    stock: type = type(conv).__dict__.get("_hag_stock", type(conv))
    return stock


def swap_in(conv: Any, session: Any) -> None:
    """Gives a layer its accelerated class."""
    stock = type(conv)
    bound = conv.__dict__.get("propagate")
    if bound is not None and _function(bound) is getattr(stock, "_jinja_propagate", None):
        del conv.__dict__["propagate"]  # left there when `explain` was turned off again
    conv.__class__ = hag_class(stock)
    conv.__dict__["_hag_session"] = session


def swap_out(conv: Any) -> None:
    """Gives a layer its stock class back."""
    bound = conv.__dict__.get("propagate")
    if bound is not None and _function(bound) is type(conv).__dict__.get("propagate"):
        del conv.__dict__["propagate"]
    conv.__class__ = stock_class(conv)
    conv.__dict__.pop("_hag_session", None)
    conv.__dict__.pop(edge_order.FOUND_FREE, None)


def _function(method: Any) -> Any:
    return getattr(method, "__func__", method)


# What the classes are made of -------------------------------------------------------------------


def _forward(stock: type, recipe: Recipe) -> Any:
    names = list(inspect.signature(stock.forward).parameters)[1:]  # type: ignore[attr-defined]
    stock_forward: Any = stock.forward  # type: ignore[attr-defined]
    # The commonest call, features and graphs, which for few messages is settled before all else.
    few = recipe if recipe.yields else None
    taken = 0 if few is None else 1 + len(few.graphs)
    if few is not None and names[:taken] != ["x", *few.graphs]:
        few = None

    @functools.wraps(stock_forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if few is not None and len(args) == taken and not kwargs:
            edges = _few_edges(self, few, *args)
            if edges is not None:
                return stock_forward(self, args[0], *edges)
        call = dict(zip(names, args, strict=False))
        call.update(kwargs)
        changed = _settle_graphs(self, recipe, names, call)
        graph = changed.get(recipe.graphs[0], call.get(recipe.graphs[0]))
        if isinstance(graph, HAG) and recipe.is_normalised:
            like_weights = running.stand_in(recipe, self, call.get("x"))
            if like_weights is not None:
                changed["edge_weight"] = like_weights
        runs_own = isinstance(graph, HAG) or _is_relations(graph)
        if runs_own and recipe.forward is not None:
            return recipe.forward(self, **{**call, **changed})
        if not changed:
            return stock_forward(self, *args, **kwargs)
        given = {**call, **changed}
        out = stock_forward(self, **given)
        for name in recipe.graphs:
            replaced = isinstance(changed.get(name), Tensor)
            if replaced and not (
                isinstance(call[name], SequentialHAG) or edge_order.is_free(self, stock)
            ):
                _check_order(self, stock, stock_forward, (), _as_edges(self, given, name))
        return out

    return forward


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
    "GPSConv.forward",
    "GraphModule.forward",  # of SGFormer
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

    @functools.wraps(stock_method)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not any(map(_holds_graph, args)) and not any(map(_holds_graph, kwargs.values())):
            return stock_method(self, *args, **kwargs)
        call = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
        _refuse_edge_values(self, _edge_value_names(call), call)
        if any(_holds_graph(value, HAG) for value in (*args, *kwargs.values())):
            reason = edge_order.why_ordered(self, stock, name, call)
            if reason is not None:
                edge_order.refuse(stock, reason)
        out = stock_method(self, *_replaced(args, plain_edges), **_replaced(kwargs, plain_edges))
        if isinstance(self, MessagePassing) and not edge_order.is_free(self, stock):
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
    if isinstance(value, list | tuple):
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


# Where a recipe may run -------------------------------------------------------------------------


def _few_edges(conv: Any, recipe: Recipe, x: Any, *graphs: Any) -> list[Tensor] | None:
    """The edges that stock's code is to take where there are few messages; None: not settled."""
    edges = []
    for graph in graphs:
        found = _few_of_one(conv, recipe, x, graph)
        if found is None:
            return None
        edges.append(found)
    return edges


def _few_of_one(conv: Any, recipe: Recipe, x: Any, graph: Any) -> Tensor | None:
    if type(graph) is Tensor:
        few = graph.dim() == 2 and recipes.is_small_plain(conv, recipe, graph, x)
        return graph if few and not lstm.is_lstm(conv) else None
    if type(graph) is not HAG or not isinstance(x, Tensor) or recipe.relations(conv) is not None:
        return None
    if not recipes.is_small(conv, recipe, graph.num_edges, x):
        return None
    nodes = x.shape[conv.node_dim]
    fits = nodes == graph.num_src == graph.num_dst and x.device == graph.device
    fits = fits and conv._explain is not True and edge_order.has_free_aggregation(conv)
    return plain_edges(graph) if fits else None


def _settle_graphs(
    conv: Any, recipe: Recipe, names: list[str], call: dict[str, Any]
) -> dict[str, Any]:
    """The arguments to replace: a tensor by its HAG, or a HAG that cannot be used by its edges."""
    changed: dict[str, Any] = {}
    for name in recipe.graphs:
        graph = call.get(name)
        if isinstance(graph, HAG):
            _refuse_edge_values(conv, recipe.edge_arguments, call)
            _check_relations(conv, recipe, None)
            small = _is_small(conv, recipe, graph, call)
            if not small and _why_stock(conv, recipe, call) is None:
                continue
            _refuse_if_ordered(conv, call)
            changed |= _plain(graph, name, names, call)
        elif isinstance(graph, SequentialHAG):
            _refuse_edge_values(conv, recipe.edge_arguments, call)
            if graph.num_edges == 0 or lstm.why_stock(conv, recipe, call) is not None:
                changed |= _plain(graph, name, names, call)
        elif isinstance(graph, Tensor):
            if torch.compiler.is_compiling():
                continue
            if not lstm.is_lstm(conv):
                changed |= find_graph(conv, recipe, name, call)
            elif lstm.is_left_to_stock(conv, graph):
                continue
            elif lstm.why_stock(conv, recipe, call) is None:
                size = graph_size(recipe, conv, call)
                changed |= lstm.find_tree(conv, recipe, name, call, size)
        elif graph is not None and _is_relations(graph):
            _check_relations(conv, recipe, graph)
            _refuse_edge_values(conv, ("edge_type",), call)
            if _is_small(conv, recipe, graph, call) or _why_stock(conv, recipe, call) is not None:
                _refuse_if_ordered(conv, call)
                changed[name], changed["edge_type"] = plain_relations(graph)
    return changed


def _refuse_if_ordered(conv: Any, call: dict[str, Any]) -> None:
    stock = stock_class(conv)
    reason = edge_order.why_ordered(conv, stock, "forward", call)
    if reason is not None:
        edge_order.refuse(stock, reason)


def _plain(
    graph: HAG | SequentialHAG, name: str, names: list[str], call: dict[str, Any]
) -> dict[str, Any]:
    """The arguments that say with plain edges what a graph says."""
    plain: dict[str, Any] = {name: plain_edges(graph)}
    if "size" in names and call.get("size") is None and not graph.is_square:
        plain["size"] = (graph.num_src, graph.num_dst)
    if "num_edges" in names:
        plain["num_edges"] = graph.num_dst
    return plain


def _is_relations(graph: Any) -> bool:
    return isinstance(graph, list | tuple) and bool(graph) and isinstance(graph[0], HAG)


def _check_relations(conv: Any, recipe: Recipe, graphs: list[HAG] | None) -> None:
    """Raises ValueError unless there are as many HAGs as relations; None stands for one HAG."""
    count = recipe.relations(conv)
    if count is None and graphs is not None:
        raise ValueError(f"{stock_class(conv).__name__} got {len(graphs)} HAGs; expected one HAG")
    if count is not None and (graphs is None or len(graphs) != count):
        raise ValueError(
            f"{stock_class(conv).__name__} got {'one HAG' if graphs is None else len(graphs)}; "
            f"expected a list of {count} HAGs, one for each relation, as "
            "hag_plugin.pyg.relation_hags makes it"
        )


def _why_stock(conv: Any, recipe: Recipe, call: dict[str, Any]) -> str | None:
    features = None if recipe.features is None else call.get(recipe.features)
    return recipes.why_stock(conv, recipe, features)


def _is_small(conv: Any, recipe: Recipe, graph: HAG | list[HAG], call: dict[str, Any]) -> bool:
    """As `recipes.is_small`. Not where sizes or devices are wrong: the recipe says so."""
    hags = [graph] if isinstance(graph, HAG) else graph
    features = call.get(recipe.features or recipe.source)
    num_edges = sum(hag.num_edges for hag in hags)
    if not recipes.is_small(conv, recipe, num_edges, features):
        return False
    size = graph_size(recipe, conv, call)
    x: Any = features[0] if isinstance(features, recipes.PAIRS) else features
    return all(size == (hag.num_src, hag.num_dst) and x.device == hag.device for hag in hags)


def find_graph(conv: Any, recipe: Recipe, name: str, call: dict[str, Any]) -> dict[str, Any]:
    """The arguments that stand for a plain edge index, if the model's session has its HAG.

    Args:
        conv: the layer.
        recipe: its recipe.
        name: the argument that is the edge index.
        call: all arguments.
    """
    session = conv.__dict__.get("_hag_session")
    if session is None:
        return {}
    edge_index = call[name]
    features = call.get(recipe.features or recipe.source)
    if recipes.is_small_plain(conv, recipe, edge_index, features):
        return {}
    if _why_stock(conv, recipe, call) is not None:
        return {}
    size = graph_size(recipe, conv, call)
    weighted = recipes.edge_values(recipe.edge_arguments, call) is not None
    if recipe.cache is not None and conv.cached and getattr(conv, "normalize", True):
        # Stock runs the graph of its first call for ever, whatever it is given: let it fill its
        # cache, and follow only as long as the graph is the same.
        if not recipes.has_cache(conv, recipe.cache):
            if not weighted:
                session.fills_cache(conv, edge_index, size)
                session.hag_of(edge_index, *size)
            return {}
        if weighted or not session.is_cached(conv, edge_index, size):
            return {}
    if weighted:
        return _find_weighted(conv, recipe, name, call, size)
    relations = recipe.relations(conv)
    if relations is None:
        hag = session.hag_of(edge_index, *size)
        return {} if hag is None else {name: hag}
    edge_type = call.get("edge_type")
    if not isinstance(edge_type, Tensor):
        return {}
    hags = session.relations_of(edge_index, edge_type, relations, size)
    return {} if hags is None else {name: hags, "edge_type": None}


def _find_weighted(
    conv: Any, recipe: Recipe, name: str, call: dict[str, Any], size: tuple[int, int]
) -> dict[str, Any]:
    weight = call.get("edge_weight")
    if recipe.weigh is None or not isinstance(weight, Tensor):
        return {}
    session = conv.__dict__["_hag_session"]
    graph = weighted_graph(conv, recipe.weigh, session, (call[name], weight), size)
    return {} if graph is None else {name: graph, "edge_weight": None}


def graph_size(recipe: Recipe, conv: Any, call: dict[str, Any]) -> tuple[int, int]:
    """The number of nodes on both sides, as `MessagePassing._collect` finds it."""
    if recipe.size is not None:
        return recipe.size(conv, call)
    x = call[recipe.features or recipe.source]
    pair = list(x) if isinstance(x, tuple | list) else [x, x]
    size = list(call.get("size") or (None, None))
    for dim, features in enumerate(pair):
        if size[dim] is None and features is not None:
            size[dim] = features.shape[conv.node_dim]
    num_src = size[0] if size[0] is not None else size[1]
    num_dst = size[1] if size[1] is not None else size[0]
    return int(num_src), int(num_dst)


def plain_edges(graph: HAG | SequentialHAG) -> Tensor:
    """The edge index of a HAG or a prefix tree."""
    if torch.compiler.is_compiling() and torch.onnx.is_in_onnx_export():
        from torch.utils._python_dispatch import _disable_current_modes

        with _disable_current_modes():  # a constant of the file
            return graph.edge_index
    if isinstance(graph, HAG) and not torch.compiler.is_compiling():
        return graph.own_edge_index
    with outside_inference():
        return graph.edge_index


def _refuse_edge_values(conv: Any, names: Any, call: dict[str, Any]) -> None:
    if not names:
        return
    given = recipes.edge_values(
        tuple(n for n in names if not isinstance(call.get(n), GRAPHS)), call
    )
    if given is not None:
        raise ValueError(
            f"{stock_class(conv).__name__} got {given} together with a HAG. Edge weights have an "
            "order that a HAG does not keep; pass edge_index instead"
        )


def _propagate(stock: type, recipe: Recipe) -> Any:
    def propagate(self: Any, edge_index: Any, *args: Any, size: Any = None, **kwargs: Any) -> Any:
        if type(edge_index) is Tensor:
            return stock.propagate(self, edge_index, *args, size=size, **kwargs)  # type: ignore[attr-defined]
        if isinstance(edge_index, HAG):
            return running.run(recipe, self, edge_index, size, kwargs)
        if isinstance(edge_index, SequentialHAG):
            return lstm.run(recipe, self, edge_index, size, kwargs)
        if isinstance(edge_index, WeightedGraph):
            return running.run_weighted(recipe, self, edge_index, kwargs)
        return stock.propagate(self, edge_index, *args, size=size, **kwargs)  # type: ignore[attr-defined]

    return propagate


def _dir_gnn_forward(self: Any, x: Any, edge_index: Any) -> Any:
    """dir_gnn_conv.py flips its edge index, and the new tensor would never come back."""
    session = self.__dict__.get("_hag_session")
    inner = self.conv_in
    if session is not None and isinstance(edge_index, Tensor) and isinstance(x, Tensor):
        recipe = recipe_of(stock_class(inner))
        usable = recipe is not None and recipes.why_stock(inner, recipe, x) is None
        if usable and not getattr(inner, "cached", False) and not torch.compiler.is_compiling():
            nodes = x.shape[inner.node_dim]
            edge_index = session.hag_of(edge_index, nodes, nodes) or edge_index
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


def _new_layer(stock: type) -> Any:
    cls: Any = hag_class(stock)
    return cls.__new__(cls)


def _set_state(self: Any, state: dict[str, Any]) -> None:
    # As a stock layer, so that PyG generates the stock class's code where it was not run yet.
    accelerated = type(self)
    self.__class__ = accelerated._hag_stock
    try:
        self.__setstate__(state)
    finally:
        self.__class__ = accelerated
