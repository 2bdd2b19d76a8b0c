"""A HAG beside features whose nodes lie along any dimension."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hag_plugin.aggregate import aggregate
from hag_plugin.hag import HAG
from hag_plugin.program import SelfLoops
from hag_plugin.pyg.degrees import degree_scale


@dataclass(frozen=True)
class Neighbourhoods:
    """The sources of each target, for features whose nodes lie along dimension `dim`."""

    hag: HAG
    dim: int
    self_loops: SelfLoops = False

    def reduce(self, monoid: Any, z: Tensor, scale: Tensor | None = None) -> Tensor:
        """Sum, mean, max or min of the sources' rows of `z`, with one scale on both sides."""
        return along(
            z,
            self.dim,
            lambda rows: aggregate(
                rows,
                self.hag,
                monoid,
                self_loops=self.self_loops,
                source_scale=scale,
                target_scale=scale,
                ties="even",
            ),
        )

    def degree(self, exponent: float, like: Tensor) -> Tensor:
        """Degrees to a power, 0 where there are none, in the dtype of `like` and against it."""
        scale = degree_scale(self.hag, exponent, self.self_loops, like.dtype)
        shape = [1] * like.dim()
        shape[self.dim] = -1
        return scale.to(like.dtype).view(shape)


def along(x: Tensor, dim: int, walk: Callable[[Tensor], Tensor]) -> Tensor:
    """Lets `walk` see `[*, N, F]`, whatever dimension the nodes are."""
    if dim == x.dim() - 2:
        return walk(x)
    out = walk(x.movedim(dim, 0).reshape(x.shape[dim], -1))
    others = [n for d, n in enumerate(x.shape) if d != dim]
    return out.reshape(out.shape[0], *others).movedim(0, dim)
