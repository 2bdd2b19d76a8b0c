"""Where saved objects say that they belong: public names, which stay when files move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T", bound=Callable[..., Any])


def set_module(name: str) -> Callable[[T], T]:
    """Decorates a class, or a function, that a pickle names: it is to be found in module `name`.

    That module must have it, public or not.
    """

    def decorate(saved: T) -> T:
        saved.__module__ = name
        return saved

    return decorate
