"""`accelerate` and `restore`: the layers of a DGL model, in place."""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

from torch.nn import Module

from hag_plugin import scripting
from hag_plugin.arguments import check_kind
from hag_plugin.dgl.model.session import Session
from hag_plugin.dgl.model.swap import CALLS, SESSION, swap_in, swap_out
from hag_plugin.dgl.recipes.table import aggregates, is_convolution, stock_class
from hag_plugin.explanation import Calls
from hag_plugin.occasions import ForwardEnd

M = TypeVar("M", bound=Module)


def accelerate(module: M) -> M:
    """Lets the layers of a model run on the HAG of a plain graph that comes back.

    A graph from `ToHAG` runs on its HAG in any model; this is for plain graphs. A graph that comes
    back in a second forward of `module` gets its HAG built. Layers of attention run in one pass
    over the edges of any graph, without a HAG. Works on the module itself, recursively: layers get
    classes of their own, subclasses of what they were; everything else stays as it is: parameters,
    `state_dict`, `isinstance`, results. Other methods of `module`, its parts and its layers may be
    called, too: then a graph comes back when the same layer is given it again after a step of the
    optimizer, or with the features that it came with.

    Args:
        module: a model of DGL layers, or one layer.

    Returns:
        `module`.

    Raises:
        TypeError: `module` is not a `torch.nn.Module`.

    Example:
        >>> import dgl, torch
        >>> from dgl.nn import GraphConv
        >>> conv = accelerate(GraphConv(4, 2))
        >>> conv(dgl.graph(([0, 1, 1, 2], [1, 0, 2, 1])), torch.ones(3, 4)).shape
        torch.Size([3, 2])
    """
    if not isinstance(module, Module):
        raise TypeError(f"accelerate takes a torch.nn.Module, got a {type(module).__name__}")
    restore(module)
    layers = [m for m in module.modules() if aggregates(type(m))]
    if not layers:
        warnings.warn(
            f"{type(module).__name__} holds no DGL layer that aggregates: nothing to accelerate",
            stacklevel=2,
        )
    session = Session(module)
    if layers and not aggregates(type(module)):
        module.register_forward_pre_hook(session)
        module.register_forward_hook(ForwardEnd(session), always_call=True)
    for part in module.modules():
        cls = type(part)
        if aggregates(cls) or is_convolution(cls):  # of which only the calls are counted
            swap_in(part, session, part is module)
    if layers:
        scripting.refuse(module, *layers)
    return module


def restore(module: M) -> M:
    """Undoes `accelerate`. Returns `module`."""
    if not isinstance(module, Module):
        raise TypeError(f"restore takes a torch.nn.Module, got a {type(module).__name__}")
    for part in module.modules():
        _remove(part._forward_pre_hooks, part._forward_pre_hooks_with_kwargs)
        _remove(part._forward_hooks, part._forward_hooks_always_called)
        if stock_class(part) is not type(part):
            swap_out(part)
        scripting.allow(part)
    return module


def _remove(hooks: dict[int, Any], options: dict[int, bool]) -> None:
    for key, hook in list(hooks.items()):
        if isinstance(hook, (Session, ForwardEnd)):
            del hooks[key]
            options.pop(key, None)


def forget(module: Module) -> None:
    """Forgets the graphs and edge tensors that a model was called with; they are met anew."""
    check_kind("module", module, Module)
    for part in module.modules():
        session = part.__dict__.get(SESSION)
        if session is not None:
            session.forget()


def calls_of(module: Module) -> Calls | None:
    """What the calls of a layer ran on; None where it is not accelerated."""
    return module.__dict__.get(CALLS)
