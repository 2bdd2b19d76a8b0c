"""Whether a layer computes what the class computes that the table of layers knows."""

from __future__ import annotations

from typing import Any

from torch.nn import Module
from torch.nn.utils import parametrize

# Methods that do not bear on what a layer computes in a call.
_ASIDE = {"reset_parameters", "extra_repr", "jittable", "set_extra_state", "get_extra_state"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PYG_HOOKS = tuple(
    f"_{name}_forward_{when}"
    for name in ("propagate", "message", "aggregate", "message_and_aggregate", "edge_update")
    for when in ("pre_hooks", "hooks")
)


def why_not_followed(module: Module) -> str | None:
    """Why a layer can neither stand for itself nor run as it is on every device. None: it may.

    Hooks see what passes through a layer, which is not whole on any device; and what makes its
    weights anew for each call is not among its parameters.
    """
    if parametrize.is_parametrized(module):
        return "has parametrized weights"
    hooks = (module.__dict__.get(name) or {} for name in (*_HOOKS, *_PYG_HOOKS))
    if any(_package(type(hook)) != "hag_plugin" for each in hooks for hook in each.values()):
        return "has hooks"  # others than those of `accelerate`
    return None


def own_code(module: Module, known: type) -> str | None:
    """What a layer computes by code of its own, not by that of the class that is known.

    Subclasses may override a method, instances have one put on them, and a class have one of its
    methods replaced. None: nothing.

    Args:
        module: the layer.
        known: the class, of which the layer is an instance.
    """
    stock = type(module).__dict__.get("_hag_stock")  # `accelerate` computes the same
    cls = type(module) if stock is None else stock
    for name, value in module.__dict__.items():
        if callable(value) and _is_method(known, name) and not _is_accelerated(module, name):
            return name
    for base in cls.__mro__[: cls.__mro__.index(known)]:
        for name, value in vars(base).items():
            if _is_method(known, name) and not _is_generated(base, name, value):
                return name
    package = known.__module__.partition(".")[0]
    for name, value in vars(known).items():
        if _is_generated(known, name, value):
            continue
        if _is_method(known, name) and _package(value) not in (package, ""):
            return name
    return None


def _is_method(known: type, name: str) -> bool:
    is_own = name.startswith("__") and name != "__call__"
    return not is_own and name not in _ASIDE and callable(getattr(known, name, None))


def _is_generated(cls: type, name: str, value: Any) -> bool:
    """Whether PyG wrote a method of `MessagePassing` for a class, and what it keeps of it."""
    kept = name.startswith(("_jinja_", "_orig_")) or name in ("collect", "edge_collect")
    return kept or value is vars(cls).get(f"_jinja_{name}")


def _is_accelerated(module: Module, name: str) -> bool:
    """Whether PyG's own `explain` put it there, or takes it away again."""
    return getattr(module.__dict__[name], "__func__", None) is getattr(type(module), name, None)


def _package(function: Any) -> str:
    return str(getattr(function, "__module__", None) or "").partition(".")[0]
