"""DGL: graphs whose `update_all` runs on the HAG, accelerated models and the dataset transform.

The names are imported when they are first used, so that `graphbolt_stand_in` can be called before
DGL is.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hag_plugin.dgl.data.batching import batch, collate, unbatch
    from hag_plugin.dgl.data.exchange import to_pyg
    from hag_plugin.dgl.data.graph import HagBlock, HagGraph, reverse, to_plain
    from hag_plugin.dgl.data.graphbolt import graphbolt_stand_in
    from hag_plugin.dgl.data.transforms import ToHAG
    from hag_plugin.dgl.model.accelerate import accelerate, forget, restore
    from hag_plugin.dgl.model.decorator import hag_layer
    from hag_plugin.dgl.model.explain import explain

__all__ = [
    "HagBlock",
    "HagGraph",
    "ToHAG",
    "accelerate",
    "batch",
    "collate",
    "explain",
    "forget",
    "graphbolt_stand_in",
    "hag_layer",
    "restore",
    "reverse",
    "to_plain",
    "to_pyg",
    "unbatch",
]
# No file or room here is named as what it holds: importing it would put the module in place of the
# name. In a room, as in `model.explain`, a file may be: it is no attribute of this module.
FILES = {
    "aggregation.relation": ("Relation",),  # private, as Session: saved models name it
    "data.batching": ("batch", "collate", "unbatch"),
    "data.exchange": ("graph_of_parts", "to_pyg"),
    "data.graph": ("HagBlock", "HagGraph", "reverse", "to_plain"),
    "data.graphbolt": ("graphbolt_stand_in",),
    "data.transforms": ("ToHAG",),
    "model.accelerate": ("accelerate", "forget", "restore"),
    "model.decorator": ("hag_layer",),
    "model.explain": ("explain",),
    "model.session": ("Session",),
    "model.swap": ("_new_layer",),
}


def __getattr__(name: str) -> Any:
    for file, names in FILES.items():
        if name in names:
            found = getattr(import_module(f"hag_plugin.dgl.{file}"), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module 'hag_plugin.dgl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
