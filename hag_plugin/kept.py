"""What is made of an object that does not change, kept as long as the object lives."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from hag_plugin.modes import outside_inference

T = TypeVar("T")


class Keeper:
    """An object that keeps what is made of it."""

    def if_kept(self, key: Hashable) -> Any:
        """What is kept; None where nothing is."""
        return self.__dict__.get("_kept", {}).get(key)

    def kept(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, made when it is first asked for.

        Two threads that ask at once may both make it, and get the same.

        Args:
            key: what is made, and all that it depends on besides the object.
            make: makes it, of plain tensors whatever mode the caller is in. Nobody may write to it.
        """
        kept: dict[Hashable, T] = self.__dict__.setdefault("_kept", {})
        if key not in kept:
            with outside_inference():
                made = make()
            kept.setdefault(key, made)
        return kept[key]
