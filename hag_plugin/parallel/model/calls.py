"""What is written down of a model while it runs: calls of its layers and functions, and edges."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hag_plugin.hag.program import SelfLoops


@dataclass(frozen=True, eq=False)
class Edges:
    """The edges of one key of `OpGraph.graphs`, whole, as the layers were given them.

    Attributes:
        edge_index: int64 `[2, E]`, on the CPU; row 0 sources, row 1 targets.
        self_loops: those the layers add: False, "add" or "fill".
        edge_type: int64 `[E]` of relational layers, else None.
        weight: `[E]`, of edges that came as a matrix with values, or that the layer weighs; else
            None.
        normalised: whether the layer multiplies by nothing else.
        types: of the nodes that edges come from and go to, as `opgraph.Op.of` names them.
    """

    edge_index: Tensor
    self_loops: SelfLoops = False
    edge_type: Tensor | None = None
    weight: Tensor | None = None
    normalised: bool = False
    types: tuple[str, str] = ("", "")


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer, or of a function between layers.

    Attributes:
        name: of the function; the layer's class.
        args: as it was called, with tensors in them.
        kwargs: likewise.
        function: what was called.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    function: Callable[..., Any] | None = None


def named(layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a layer's call by the names that its class gives them."""
    names = list(inspect.signature(type(layer).forward).parameters)[1:]
    return dict(zip(names, args, strict=False)) | {**kwargs}
