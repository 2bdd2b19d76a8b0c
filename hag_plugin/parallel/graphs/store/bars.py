"""Bars of what a store is made of: one for each pass over edges or nodes, where it takes long."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from hag_plugin.progress import SHARE, bar

T = TypeVar("T")


@dataclass(frozen=True)
class Bars:
    """How passes are shown.

    Attributes:
        progress: show their bars; None: of those that take more than two seconds.
    """

    progress: bool | None

    def over(
        self, blocks: Iterable[T], what: str, count: Callable[[T], int], total: int | None
    ) -> Iterator[T]:
        """The blocks, as they are asked for.

        Args:
            blocks: of edges or nodes.
            what: is done with them: "sorting edges".
            count: how many are in a block.
            total: how many there are, where it is known.
        """
        form = "{desc}: {n_fmt} in {elapsed}" if total is None else SHARE
        options = {"total": total, "desc": what, "unit_scale": True, "bar_format": form}
        with bar(self.progress, **options) as shown:
            for block in blocks:
                yield block
                shown.update(count(block))


QUIET = Bars(False)
