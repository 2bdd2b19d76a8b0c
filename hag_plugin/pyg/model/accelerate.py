"""`accelerate` and `restore`: the layers of a PyG model, in place."""

from __future__ import annotations

import warnings
from typing import TypeVar

from torch.nn import Module
from torch_geometric.nn import MessagePassing

from hag_plugin import scripting
from hag_plugin.arguments import check_kind
from hag_plugin.occasions import ForwardEnd
from hag_plugin.pyg.aggregation import constant
from hag_plugin.pyg.model.calls import CALLS
from hag_plugin.pyg.model.compiled import NAME
from hag_plugin.pyg.model.edge_order import FOUND_FREE
from hag_plugin.pyg.model.session import Session
from hag_plugin.pyg.model.swap import is_swapped, swap_in, swap_out
from hag_plugin.pyg.recipes.recipe import stock_class

M = TypeVar("M", bound=Module)


def accelerate(module: M) -> M:
    """Lets the layers of a model take a HAG where an `edge_index` stands.

    Works on the module itself, recursively; parameters, `state_dict` and `isinstance` stay as
    they are, results too. What looks into its edges (attention, pooling, GraphUNet, ...) is given
    those of the HAG; what depends on their order refuses it. A plain `edge_index` is welcome: the
    rows of one that is met first, as a sampled batch, are summed as they are; a tensor that comes
    back in a second forward of `module` gets its HAG built. Other methods of `module`, its parts
    and its layers may be called, too: then a tensor comes back when the same layer is given it
    again after a step of the optimizer, or with the features that it came with.

    Args:
        module: a model of PyG layers, or one layer.

    Returns:
        `module`.

    Raises:
        TypeError: `module` is not a `torch.nn.Module`.

    Example:
        >>> import torch
        >>> from torch_geometric.nn import GCNConv
        >>> conv = accelerate(GCNConv(4, 2))
        >>> conv
        HagGCNConv(4, 2)
        >>> edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> conv(torch.ones(3, 4), edge_index).shape
        torch.Size([3, 2])
    """
    if not isinstance(module, Module):
        raise TypeError(f"accelerate takes a torch.nn.Module, got a {type(module).__name__}")
    restore(module)
    layers = [m for m in module.modules() if isinstance(m, MessagePassing)]
    if not layers:
        warnings.warn(
            f"{type(module).__name__} holds no PyG message passing layer: nothing to accelerate",
            stacklevel=2,
        )
    session = Session(module)
    for layer in layers:
        if getattr(type(layer), "_hag_recipe", None) is not None:
            layer.__dict__["_hag_session"] = session  # hag_layer prepared the class itself
        else:
            swap_in(layer, session)
    done = set(layers)
    for part in [m for m in module.modules() if m not in done and is_swapped(m)]:
        swap_in(part, session)
    if layers:
        module.register_forward_pre_hook(session)
        module.register_forward_hook(ForwardEnd(session), always_call=True)
        scripting.refuse(module, *layers)
    return module


def restore(module: M) -> M:
    """Undoes `accelerate`: classes, sessions and hooks. Returns `module`."""
    if not isinstance(module, Module):
        raise TypeError(f"restore takes a torch.nn.Module, got a {type(module).__name__}")
    for part in module.modules():
        for key, hook in list(part._forward_pre_hooks.items()):
            if isinstance(hook, Session):
                del part._forward_pre_hooks[key]
        for key, hook in list(part._forward_hooks.items()):
            if isinstance(hook, ForwardEnd):
                del part._forward_hooks[key]
                part._forward_hooks_always_called.pop(key, None)
        if stock_class(part) is not type(part):
            swap_out(part)
        part.__dict__.pop("_hag_session", None)
        part.__dict__.pop(FOUND_FREE, None)
        part.__dict__.pop(CALLS, None)
        part.__dict__.pop(NAME, None)
        scripting.allow(part)
    return module


def forget(module: Module) -> None:
    """Forgets the graphs and features that a model was called with; they are met anew."""
    check_kind("module", module, Module)
    for part in module.modules():
        constant.forget(part)
        session = part.__dict__.get("_hag_session")
        if session is not None:
            session.forget()
