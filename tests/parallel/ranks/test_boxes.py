"""Boxes that move between ranks: values are the whole tensor's, and gradients add up."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from hag_plugin.parallel.ranks.boxes import Box, Boxes, Exchange, Move, cut, fetch, tie, whole
from hag_plugin.parallel.ranks.comm import Group

from ..run_ranks import run_threads

SIZE, SHAPE = 4, (7, 5)


def owned(draw: random.Random) -> Boxes:
    """A grid of boxes on some ranks, in any order."""
    rows, columns = draw.choice([(1, 1), (1, 2), (2, 1), (3, 1), (2, 2), (1, 4)])
    cuts = [
        [0, *sorted(draw.sample(range(1, size), parts - 1)), size]
        for size, parts in zip(SHAPE, (rows, columns), strict=True)
    ]
    boxes: list[Box | None] = [
        ((a, b), (c, d))
        for a, b in zip(cuts[0], cuts[0][1:], strict=False)
        for c, d in zip(cuts[1], cuts[1][1:], strict=False)
    ]
    boxes += [None] * (SIZE - len(boxes))
    draw.shuffle(boxes)
    return tuple(boxes)


def wanted(draw: random.Random) -> Boxes:
    """Any boxes, which may overlap; on some ranks none, or one without values."""

    def interval(size: int) -> tuple[int, int]:
        a, b = draw.randint(0, size), draw.randint(0, size)
        return min(a, b), max(a, b)

    return tuple(
        None if draw.random() < 0.2 else (interval(SHAPE[0]), interval(SHAPE[1]))
        for _ in range(SIZE)
    )


@pytest.mark.parametrize("seed", range(20))
def test_boxes_are_fetched_and_their_gradients_added_up(seed: int) -> None:
    draw = random.Random(seed)
    have = owned(draw)
    moves = [Move(have, wanted(draw)), Move(owned(draw), wanted(draw)), Move(have, have)]
    torch.manual_seed(seed)
    tensors = [torch.randn(SHAPE, dtype=torch.float64) for _ in moves]
    factors = torch.randn(SIZE, len(moves), *SHAPE, dtype=torch.float64)

    def case(rank: int) -> Any:
        group = Group.world("cpu")
        nothing = torch.empty(0, 0, dtype=torch.float64)
        blocks = [
            (nothing if (box := m.owned[rank]) is None else cut(t, box)).clone().requires_grad_()
            for m, t in zip(moves, tensors, strict=True)
        ]
        token, found = fetch(Exchange(moves, group, ("forward", "backward")), blocks)
        loss = blocks[0].new_zeros(())
        for i, (move, read) in enumerate(zip(moves, found, strict=True)):
            box = move.wanted[rank]
            expected = nothing if box is None else cut(tensors[i], box)
            assert torch.equal(read, expected)
            if box is not None and rank:  # the first rank uses nothing, and takes part
                loss = loss + (read * cut(factors[rank, i], box)).sum()
        [tied] = tie([loss], [token])
        tied.backward()
        return [b.grad for b in blocks], group.sent.phases

    results = run_threads(SIZE, case)
    for i, move in enumerate(moves):
        gradient = torch.zeros(SHAPE, dtype=torch.float64)
        for rank, box in enumerate(move.wanted):
            if box is not None and rank:
                cut(gradient, box).add_(cut(factors[rank, i], box))
        for rank, box in enumerate(move.owned):
            if box is not None:
                torch.testing.assert_close(results[rank][0][i], cut(gradient, box))
    sent = sum(move.sent(8) for move in moves)
    for rank, (_, phases) in enumerate(results):
        assert phases.get("forward", 0) == sent[0, rank]
        assert phases.get("backward", 0) == sent[1, rank]


@pytest.mark.parametrize("seed", range(4))
def test_what_all_read_alike_sends_no_gradients_back(seed: int) -> None:
    draw = random.Random(seed)
    move = Move(owned(draw), (whole(SHAPE),) * SIZE, alike=True)
    tensor, factor = torch.randn(2, *SHAPE).unbind(0)

    def case(rank: int) -> Any:
        group, box = Group.world("cpu"), move.owned[rank]
        block = (torch.empty(0, 0) if box is None else cut(tensor, box)).clone().requires_grad_()
        _, [found] = fetch(Exchange([move], group, ("forward", "backward")), [block])
        assert torch.equal(found, tensor)
        (found * factor).sum().backward()
        if box is not None:
            torch.testing.assert_close(block.grad, cut(factor, box).clone())
        return group.sent.phases.get("backward", 0)

    assert run_threads(SIZE, case) == [0] * SIZE
