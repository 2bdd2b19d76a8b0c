"""Moving boxes of tensors between ranks, with their gradients.

A box is an interval of each dimension of a tensor. Of a tensor that is shared out, every rank owns
at most one box, and no two of them overlap. Before an operation each rank says which box it reads;
boxes that are read may overlap (the halo of a convolution), and their gradients are added up where
the values are owned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hag_plugin.parallel.ranks.comm import Group

Box = tuple[tuple[int, int], ...]
Boxes = tuple[Box | None, ...]  # of each rank; None: nothing


def volume(box: Box | None) -> int:
    """Values in a box.

    Example:
        >>> volume(((0, 2), (1, 4))), volume(None)
        (6, 0)
    """
    return 0 if box is None else math.prod(end - first for first, end in box)


def overlap(a: Box | None, b: Box | None) -> Box | None:
    """What two boxes share; None where that is nothing.

    Example:
        >>> overlap(((0, 4), (0, 2)), ((3, 6), (0, 9)))
        ((3, 4), (0, 2))
    """
    if a is None or b is None:
        return None
    shared = tuple((max(p, r), min(q, s)) for (p, q), (r, s) in zip(a, b, strict=True))
    return None if any(first >= end for first, end in shared) else shared


def whole(shape: Sequence[int]) -> Box:
    """The box of a whole tensor."""
    return tuple((0, int(size)) for size in shape)


def cut(tensor: Tensor, box: Box, inside: Box | None = None) -> Tensor:
    """The part of a tensor in a box; `inside`: the box that the tensor is of."""
    firsts = [0] * len(box) if inside is None else [first for first, _ in inside]
    return tensor[tuple(slice(a - f, b - f) for (a, b), f in zip(box, firsts, strict=True))]


@dataclass(frozen=True)
class Move:
    """A tensor on its way to an operation.

    Attributes:
        owned: the box that each rank has.
        wanted: the box that each rank reads.
        alike: every rank has the same gradient of what it reads: the owner takes its own.
    """

    owned: Boxes
    wanted: Boxes
    alike: bool = False

    @property
    def dims(self) -> int:
        """Dimensions of the tensor."""
        return next(len(box) for box in self.owned if box is not None)

    @property
    def stays(self) -> bool:
        """Whether each rank reads exactly what it has."""
        return self.owned == self.wanted

    def sent(self, itemsize: int) -> np.ndarray:
        """Bytes that each rank sends to others, int64 `[2, P]`: forward, and backward."""
        there = self.between(itemsize)
        back = there.sum(axis=0)
        return np.stack([there.sum(axis=1), 0 * back if self.alike else back])

    def between(self, itemsize: int) -> np.ndarray:
        """Bytes that go from each rank to each other, int64 `[P, P]`; gradients go the other way,
        if they are not alike.
        """
        found = np.zeros((len(self.owned), len(self.wanted)), np.int64)
        for source, have in enumerate(self.owned):
            for target, read in enumerate(self.wanted):
                if source != target:
                    found[source, target] = volume(overlap(have, read)) * itemsize
        return found


class Exchange:
    """Several tensors of one type that are moved at once, in one all-to-all.

    Args:
        moves: of each.
        group: all ranks.
        phases: under which bytes are counted, forward and backward.
    """

    def __init__(self, moves: Sequence[Move], group: Group, phases: tuple[str, str]) -> None:
        self.moves, self.group, self.phases = moves, group, phases
        me, ranks = group.rank, range(group.size)
        going = [(i, move) for i, move in enumerate(moves) if not move.stays]
        # (tensor, box) that go to each rank, and that come from each
        self.gives = [
            [(i, box) for i, m in going if (box := overlap(m.owned[me], m.wanted[q])) is not None]
            for q in ranks
        ]
        self.takes = [
            [(i, box) for i, m in going if (box := overlap(m.owned[q], m.wanted[me])) is not None]
            for q in ranks
        ]
        self.travels = any(m.sent(1)[0].any() for _, m in going)
        back = [(i, move) for i, move in going if not move.alike]
        self.travels_back = any(m.sent(1)[1].any() for _, m in back)
        alike = {i for i, move in going if move.alike}
        # An owner of what is read alike takes its own gradient, the others' go nowhere.
        own = [(i, box) for i, box in self.takes[me] if i in alike]
        self.returns = [[(i, b) for i, b in each if i not in alike] for each in self.takes]
        self.returned = [[(i, b) for i, b in each if i not in alike] for each in self.gives]
        self.returns[me], self.returned[me] = self.returns[me] + own, self.returned[me] + own

    def there(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        """What this rank has, to what it reads."""
        me = self.group.rank
        boxes = [move.owned[me] for move in self.moves]
        made = [
            b.view_as(b) if m.stays else _empty(b, m.wanted[me], m.dims)
            for b, m in zip(blocks, self.moves, strict=True)
        ]
        wanted = [move.wanted[me] for move in self.moves]
        pieces = self._turn(blocks, boxes, self.gives, self.takes, self.travels, self.phases[0])
        for (i, box), piece in pieces:
            cut(made[i], box, wanted[i]).copy_(piece)
        return made

    def back(self, grads: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
        """Gradients of what this rank read, to those of what it has; of the type of `like`.

        Of what it did not use there are zeros: others may have used it.
        """
        me = self.group.rank
        wanted = [move.wanted[me] for move in self.moves]
        owned = [move.owned[me] for move in self.moves]
        given = [
            _empty(like, m.wanted[me], m.dims).zero_() if g is None else g
            for g, m in zip(grads, self.moves, strict=True)
        ]
        made = [
            g if m.stays else _empty(like, m.owned[me], m.dims).zero_()
            for g, m in zip(given, self.moves, strict=True)
        ]
        pieces = self._turn(
            given, wanted, self.returns, self.returned, self.travels_back, self.phases[1]
        )
        for (i, box), piece in pieces:
            cut(made[i], box, owned[i]).add_(piece)
        return made

    def _turn(
        self, tensors: Sequence[Tensor], inside: Sequence[Box | None], gives: Any, takes: Any,
        travels: bool, phase: str,
    ) -> list[tuple[tuple[int, Box], Tensor]]:  # fmt: skip
        """Pieces that go to others, to those that come from them."""
        me = self.group.rank
        if not travels:
            own = gives[me]
            return [((i, box), cut(tensors[i], box, inside[i])) for i, box in own]
        flat = [cut(tensors[i], box, inside[i]).reshape(-1) for each in gives for i, box in each]
        send = [sum(volume(box) for _, box in each) for each in gives]
        receive = [sum(volume(box) for _, box in each) for each in takes]
        joined = torch.cat(flat) if flat else tensors[0].new_empty(0)
        come = self.group.all_to_all(joined, send, receive, phase)
        order = [item for each in takes for item in each]
        parts = torch.split(come, [volume(box) for _, box in order])
        return [
            ((i, box), part.view([end - first for first, end in box]))
            for (i, box), part in zip(order, parts, strict=True)
        ]


def _empty(like: Tensor, box: Box | None, dims: int) -> Tensor:
    return like.new_empty([0] * dims if box is None else [end - first for first, end in box])


class _Fetch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, exchange: Exchange, *blocks: Tensor) -> Any:
        ctx.exchange = exchange
        ctx.like = blocks[0].new_empty(0)
        ctx.set_materialize_grads(False)
        made = exchange.there(blocks)
        needed = ctx.needs_input_grad[1:]
        ctx.mark_non_differentiable(*(t for t, n in zip(made, needed, strict=True) if not n))
        return torch.zeros((), device=blocks[0].device), *made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor | None, *grads: Tensor | None) -> Any:
        return None, *ctx.exchange.back(grads, ctx.like)


class _Tie(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: int, *tensors: Tensor) -> Any:
        ctx.tokens = [t.new_zeros(()) for t in tensors[:tokens]]
        return tuple(t.view_as(t) for t in tensors[tokens:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, *ctx.tokens, *grads


def fetch(exchange: Exchange, blocks: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """What this rank has of some tensors, to what it reads of them.

    Every rank calls it, in the same order; also one that reads nothing, with blocks of no values.

    Returns:
        A token, which `tie` takes, and the boxes that are read.
    """
    token, *found = _Fetch.apply(exchange, *blocks)  # type: ignore[no-untyped-call]
    return token, found


def tie(tensors: Sequence[Tensor], tokens: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors, whose backward pass goes through what the tokens came of: on every rank,
    be it one that had no part in the work between.
    """
    live = [t for t in tokens if t.requires_grad]
    places = [i for i, t in enumerate(tensors) if t.is_floating_point()]
    found = list(tensors)
    if live and places:
        tied = _Tie.apply(len(live), *live, *(tensors[i] for i in places))  # type: ignore[no-untyped-call]
        for i, t in zip(places, tied, strict=True):
            found[i] = t
    return found
