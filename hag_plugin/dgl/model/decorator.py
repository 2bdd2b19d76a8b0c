"""`hag_layer`: a user's own DGL layer declares that its message depends on the source alone."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

from dgl import DGLGraph
from torch.nn import Module

from hag_plugin.dgl.aggregation.relation import relations_of
from hag_plugin.dgl.data.graph import view
from hag_plugin.dgl.recipes.table import recipe_of

C = TypeVar("C", bound=type)


def hag_layer(cls: C) -> C:
    """Class decorator for a layer of your own that calls `update_all` with a Python message.

    By it you declare that the message of an edge depends on its source node alone: on
    `edges.src`, not on `edges.dst` or `edges.data`. On a graph with HAGs the message is then
    computed once a node instead of once an edge, and aggregated with the builtin reducer (sum,
    mean, max or min) on the HAG; on other graphs DGL's code runs. Subclasses inherit the
    declaration. Random numbers drawn in the message are drawn once a node, too.

    Layers that use `fn.copy_u`, or `fn.u_mul_e` as attention does, need no declaration: a graph
    from `ToHAG` is enough. With it, `accelerate` finds them.

    The first time, the messages of some edges are compared with DGL's, in evaluation mode.

    Args:
        cls: a subclass of `torch.nn.Module` whose `forward` takes a DGLGraph.

    Returns:
        `cls` itself.

    Raises:
        TypeError: the class is no Module, has no forward of its own, or needs no declaration.

    Example:
        >>> import dgl, torch
        >>> import dgl.function as fn
        >>> from hag_plugin.dgl import ToHAG
        >>> @hag_layer
        ... class TanhConv(torch.nn.Module):
        ...     def forward(self, graph, x):
        ...         with graph.local_scope():
        ...             graph.ndata["x"] = x
        ...             graph.update_all(self.message, fn.sum("m", "y"))
        ...             return graph.ndata["y"]
        ...
        ...     def message(self, edges):
        ...         return {"m": edges.src["x"].tanh()}
        >>> graph = ToHAG()(dgl.graph(([0, 1], [1, 0])))
        >>> TanhConv()(graph, torch.zeros(2, 3)).shape
        torch.Size([2, 3])
    """
    if not (isinstance(cls, type) and issubclass(cls, Module)):
        raise TypeError(f"hag_layer takes a subclass of torch.nn.Module, got {cls!r}")
    if recipe_of(cls) is not None:
        raise TypeError(f"{cls.__name__} needs no hag_layer: accelerate knows it")
    forward = cls.__dict__.get("forward")
    if forward is None:
        raise TypeError(f"{cls.__name__} has no forward of its own; decorate the class that has")

    @functools.wraps(forward)
    def declared(self: Any, *args: Any, **kwargs: Any) -> Any:
        args = tuple(_declared(arg, self) for arg in args)
        return forward(self, *args, **{k: _declared(v, self) for k, v in kwargs.items()})

    cls.forward = declared
    cls._hag_declared = True  # type: ignore[attr-defined]
    return cls


def _declared(value: Any, layer: Module) -> Any:
    """A graph with HAGs, told which layer runs on it; any other value as it is."""
    relations = relations_of(value) if isinstance(value, DGLGraph) else None
    if relations is None:
        return value
    graph = view(value, relations)
    graph._hag_layer = layer
    return graph
