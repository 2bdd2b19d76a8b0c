"""A HAG beside features whose nodes lie along any dimension."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import SelfLoops
from hag_plugin.ops.aggregate import aggregate
from hag_plugin.ops.degrees import degree_scale
from hag_plugin.sequence.prefix_tree import SequentialHAG


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
        if scale.dtype != like.dtype:
            scale = scale.to(like.dtype)
        return scale.view(-1, *[1] * (like.dim() - 1 - self.dim))


class Offset:
    """A term `c` of the target in every message: how sums and other reductions move with it."""

    def __init__(self, c: Tensor, over: Neighbourhoods) -> None:
        self.c = c
        self.over = over
        self._products: dict[float, Tensor] = {}

    @property
    def summed(self) -> Tensor:
        """The term once an edge."""
        return self._times_degree(1.0)

    @property
    def present(self) -> Tensor:
        """The term where there is an edge."""
        return self._times_degree(0.0)

    def _times_degree(self, exponent: float) -> Tensor:
        if exponent not in self._products:
            self._products[exponent] = self.over.degree(exponent, self.c) * self.c
        return self._products[exponent]


def along(x: Tensor, dim: int, walk: Callable[[Tensor], Tensor]) -> Tensor:
    """Lets `walk` see `[*, N, F]`, whatever dimension the nodes are."""
    if dim == x.dim() - 2:
        return walk(x)
    if dim == 0:
        out = walk(x.flatten(1) if x.dim() > 1 else x.unsqueeze(1))
        return out.view(out.shape[0], *x.shape[1:])
    out = walk(x.movedim(dim, 0).reshape(x.shape[dim], -1))
    others = [n for d, n in enumerate(x.shape) if d != dim]
    return out.reshape(out.shape[0], *others).movedim(0, dim)


def check_sizes(
    hag: HAG | SequentialHAG, size: Any, pair: tuple[Any, Any], node_dim: int, side: int = 0
) -> None:
    """Raises ValueError unless the features of both sides and `size` are the HAG's.

    `size` overrules the features of the side that is not lifted: some layers propagate a tensor
    of the sources alone.
    """
    for dim, (name, nodes) in enumerate((("source", hag.num_src), ("target", hag.num_dst))):
        given = None if size is None else size[dim]
        if given is not None and given != nodes:
            raise ValueError(f"size is {tuple(size)}; the HAG has {nodes} {name} nodes")
        x = pair[dim]
        if given is not None and dim != side and pair[0] is pair[1]:
            continue
        if isinstance(x, Tensor) and x.shape[node_dim] != nodes:
            raise ValueError(
                f"x has {x.shape[node_dim]} rows in dimension {node_dim}; the HAG has {nodes} "
                f"{name} nodes"
            )
