"""Layers made with no more than the arguments that they ask for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn


def plain(cls: Any, width: int, values: Mapping[str, Any], **options: Any) -> nn.Module:
    """A layer of a class, its arguments without a default by their names.

    Args:
        cls: of the layer.
        width: what arguments are that are not in `values`: numbers of features.
        values: what others are.
        options: arguments with a default, given where the class takes them.
    """
    given = {}
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        if name == "self" or parameter.kind is parameter.VAR_KEYWORD:
            continue
        if parameter.default is parameter.empty:
            given[name] = values.get(name, width)
        elif name in options:
            given[name] = options[name]
    layer: nn.Module = cls(**given)
    return layer
