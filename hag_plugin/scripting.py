"""TorchScript compiles the source of every module, which an accelerated one is more than."""

from __future__ import annotations

from typing import NoReturn

from torch.nn import Module

from hag_plugin.saved import set_module

# What torch.jit.script asks a module, and each that it holds, before it compiles it.
ASKED = "__prepare_scriptable__"


@set_module("hag_plugin")
def _refuse_script() -> NoReturn:
    raise RuntimeError(
        "torch.jit.script cannot compile an accelerated model: call hag_plugin.restore(model) "
        "first. torch.jit.trace and torch.export take it as it is"
    )


def refuse(*modules: Module) -> None:
    """Lets `torch.jit.script` say what to do about accelerated modules."""
    for module in modules:
        module.__dict__[ASKED] = _refuse_script


def allow(module: Module) -> None:
    """Undoes `refuse`."""
    if module.__dict__.get(ASKED) is _refuse_script:
        del module.__dict__[ASKED]
