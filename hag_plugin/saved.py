"""Where saved objects say that they belong: public names, which stay when files move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T", bound=Any)


def set_module(name: str) -> Callable[[T], T]:
    """Makes a class or a function say that it is of a module from which it can be imported.

    Pickles name classes and functions by what they say of themselves.

    Args:
        name: of a public module that hands the object out.

    Example:
        >>> @set_module("hag_plugin")
        ... class Graph: ...
        >>> Graph.__module__
        'hag_plugin'
    """

    def decorate(obj: T) -> T:
        obj.__module__ = name
        return obj

    return decorate
