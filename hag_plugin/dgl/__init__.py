"""DGL: graphs whose `update_all` runs on the HAG, accelerated models and the dataset transform.

The names are imported when they are first used, so that `graphbolt_stand_in` can be called before
DGL is.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hag_plugin.dgl.accelerate import accelerate, restore
    from hag_plugin.dgl.batching import batch, collate, reverse, unbatch
    from hag_plugin.dgl.explain import explain
    from hag_plugin.dgl.graph import HagBlock, HagGraph
    from hag_plugin.dgl.graphbolt import graphbolt_stand_in
    from hag_plugin.dgl.layer import hag_layer
    from hag_plugin.dgl.transforms import ToHAG

__all__ = [
    "HagBlock",
    "HagGraph",
    "ToHAG",
    "accelerate",
    "batch",
    "collate",
    "explain",
    "graphbolt_stand_in",
    "hag_layer",
    "restore",
    "reverse",
    "unbatch",
]
FILES = {
    "accelerate": ("accelerate", "restore"),
    "batching": ("batch", "collate", "reverse", "unbatch"),
    "explain": ("explain",),
    "graph": ("HagBlock", "HagGraph"),
    "graphbolt": ("graphbolt_stand_in",),
    "layer": ("hag_layer",),
    "transforms": ("ToHAG",),
}


def _names() -> dict[str, str]:
    return {name: file for file, names in FILES.items() for name in names}


def __getattr__(name: str) -> Any:
    file = _names().get(name)
    if file is None:
        raise AttributeError(f"module 'hag_plugin.dgl' has no attribute {name!r}")
    # Importing the file puts a module of that name here (`accelerate`): the function goes over it.
    module = import_module(f"hag_plugin.dgl.{file}")
    for public in FILES[file]:
        globals()[public] = getattr(module, public)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
