"""`accelerate`, `restore`, `forget`, `explain`, `hag_layer`: handed to a framework's adapter.

A framework is touched only if its package was imported already, as it was if there is a layer of
it to accelerate. A model may hold layers of several.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any, TypeVar, overload

from torch.nn import Module

from hag_plugin.explanation import Explanation

M = TypeVar("M", bound=Module)
C = TypeVar("C", bound=type)

ADAPTERS = {"torch_geometric": "hag_plugin.pyg", "dgl": "hag_plugin.dgl"}  # package: its adapter


def _adapters(purpose: str, module: Any) -> list[Any]:
    """The adapters of the frameworks whose layers a model holds; that of the first if of none."""
    imported = {package: name for package, name in ADAPTERS.items() if package in sys.modules}
    if not imported:
        raise TypeError(f"{purpose}, but none of {', '.join(ADAPTERS)} has been imported")
    held = frameworks(module) if isinstance(module, Module) else set()
    chosen = [name for package, name in imported.items() if package in held]
    return [importlib.import_module(name) for name in chosen or [*imported.values()][:1]]


def frameworks(module: Module) -> set[str]:
    """The packages whose layers, or classes declared with their `hag_layer`, a model holds."""
    found = set()
    for part in module.modules():
        if getattr(type(part), "_hag_declared", False):
            found.add("dgl")
        found |= {cls.__module__.partition(".")[0] for cls in type(part).__mro__}
    return found & {*ADAPTERS}


def graph_of_parts(package: str, parts: Any) -> Any:
    """A framework's graph of parts that another's adapter made: see `hag_plugin.exchange`."""
    return importlib.import_module(ADAPTERS[package]).graph_of_parts(parts)


def accelerate(module: M) -> M:
    """Lets the layers of a model, found recursively, run on HAGs. In place.

    The results stay the same, and so do parameters, `state_dict` and `isinstance`. Pass a HAG
    where a model of PyG layers takes an `edge_index`, a graph from `hag_plugin.dgl.ToHAG` where
    one of DGL layers takes a graph; a plain `edge_index` or graph gets its HAG built when it comes
    back in a second forward of `module`.

    Args:
        module: a model of PyG or DGL layers, or one layer.

    Returns:
        `module`.

    Raises:
        TypeError: `module` is no `torch.nn.Module`, or no framework was imported.
    """
    for adapter in _adapters("accelerate takes a model of PyG or DGL layers", module):
        adapter.accelerate(module)
    return module


def restore(module: M) -> M:
    """Undoes `accelerate`. Returns `module`."""
    for adapter in _adapters("restore takes a model of PyG or DGL layers", module):
        adapter.restore(module)
    return module


def forget(module: M) -> M:
    """Lets an accelerated model forget the tensors and graphs that it was called with.

    What it built of these goes, and they are met anew. Needed only after a write that cannot be
    seen: to constant features through `.data`, through `storage()` or behind DLPack, and, on other
    devices than the CPU, any write to edges that torch does not count. Stays accelerated.

    Args:
        module: a model, or one layer; nothing happens where it was not accelerated.

    Returns:
        `module`.

    Raises:
        TypeError: `module` is no `torch.nn.Module`, or no framework was imported.
    """
    if not isinstance(module, Module):
        raise TypeError(f"forget takes a torch.nn.Module, got a {type(module).__name__}")
    for adapter in _adapters("forget takes a model of PyG or DGL layers", module):
        adapter.forget(module)
    return module


def explain(module: Module) -> Explanation:
    """Says for each layer of a model what it aggregates, or why it runs as before.

    Returns:
        The `rows`, which print as a table.
    """
    found: list[Explanation] = [
        adapter.explain(module)
        for adapter in _adapters("explain takes a model of PyG or DGL layers", module)
    ]
    if len(found) == 1:
        return found[0]
    return Explanation(
        tuple(row for explanation in found for row in explanation),
        tuple(note for explanation in found for note in explanation.notes),
    )


@overload
def hag_layer(cls: C) -> C: ...
@overload
def hag_layer(**attention: Any) -> Callable[[C], C]: ...
def hag_layer(cls: Any = None, **attention: Any) -> Any:
    """Decorates a user's own layer class whose message depends on the source node alone.

    The declaration is the contract. A PyG layer then takes a HAG where an `edge_index` stands; a
    DGL layer computes its message once a node on a graph from `hag_plugin.dgl.ToHAG`. With
    `hag_layer(score=...)` a PyG layer declares that it attends instead: see
    `hag_plugin.pyg.hag_layer`, which says what else it takes.

    Raises:
        TypeError: `cls` is no PyG `MessagePassing` and, where DGL was imported, no
            `torch.nn.Module`; or its message takes more than the source node; or a DGL layer was
            declared to attend.
    """
    if cls is None:
        return functools.partial(hag_layer, **attention)
    purpose = "hag_layer takes a PyG MessagePassing class or a DGL layer class"
    adapters = _adapters(purpose, None)
    packages = {base.__module__.partition(".")[0] for base in getattr(cls, "__mro__", ())}
    if "dgl" in sys.modules and "torch_geometric" not in packages:
        adapters = [importlib.import_module(ADAPTERS["dgl"])]
    if attention and adapters[0].__name__ != ADAPTERS["torch_geometric"]:
        raise TypeError(f"{cls.__name__} is no PyG layer: scores are declared of these only")
    return adapters[0].hag_layer(cls, **attention)
