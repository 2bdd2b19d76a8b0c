"""`accelerate`, `restore`, `explain` and `hag_layer`, handed to the adapter of the framework.

A framework is touched only if its package was imported already, as it was if there is a layer of
it to accelerate.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any, TypeVar

from torch.nn import Module

M = TypeVar("M", bound=Module)
C = TypeVar("C", bound=type)

ADAPTERS = {"torch_geometric": "hag_plugin.pyg"}  # package: its adapter


def _adapter(purpose: str) -> ModuleType:
    for package, adapter in ADAPTERS.items():
        if package in sys.modules:
            return importlib.import_module(adapter)
    raise TypeError(f"{purpose}, but none of {', '.join(ADAPTERS)} has been imported")


def accelerate(module: M) -> M:
    """Lets the layers of a model, found recursively, run on HAGs. In place.

    The results stay the same, and so do parameters, `state_dict` and `isinstance`. Pass a HAG
    where the model takes an `edge_index`; a plain `edge_index` gets its HAG built when it comes
    back in a second forward of `module`.

    Args:
        module: a model of PyG layers, or one layer.

    Returns:
        `module`.

    Raises:
        TypeError: `module` is no `torch.nn.Module`, or no framework was imported.
    """
    accelerated: M = _adapter("accelerate takes a model of PyG layers").accelerate(module)
    return accelerated


def restore(module: M) -> M:
    """Undoes `accelerate`. Returns `module`."""
    restored: M = _adapter("restore takes a model of PyG layers").restore(module)
    return restored


def explain(module: Module) -> Any:
    """Says for each layer of a model what it aggregates, or why it runs as before.

    Returns:
        An object with `rows`, which prints as a table.
    """
    return _adapter("explain takes a model of PyG layers").explain(module)


def hag_layer(cls: C) -> C:
    """Decorates a user's own layer class whose message depends on the source node alone.

    The declaration is the contract; the layer then takes a HAG where an `edge_index` stands.

    Raises:
        TypeError: `cls` is no `MessagePassing`, or its message takes more than the source node.
    """
    decorated: C = _adapter("hag_layer takes a PyG MessagePassing class").hag_layer(cls)
    return decorated
