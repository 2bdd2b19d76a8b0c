"""Samples of cells, spread over everything that cells differ in."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from .plan import Cell

TRIES = 40  # draws a cell, at most; more are needed only where nearly all cells are asked for


def spread(cells: Sequence[Cell], number: int, seed: int = 0) -> list[Cell]:
    """So many of the cells, in their order: the same ones for the same seed.

    Every value of a key (graph, width, dtype and so on) is drawn equally often, but for those that
    would give a cell again.
    """
    if number >= len(cells):
        return list(cells)
    draw = random.Random(seed)
    place = {_key(cell): at for at, cell in enumerate(cells)}
    turns = {key: _Turns({cell[key]: None for cell in cells}, draw) for key in cells[0]}
    chosen: set[int] = set()
    for _ in range(TRIES * number):
        if len(chosen) == number:
            break
        at = place.get(_key({key: turn.next() for key, turn in turns.items()}))
        if at is not None:
            chosen.add(at)
    left = [at for at in range(len(cells)) if at not in chosen]
    chosen.update(draw.sample(left, number - len(chosen)))
    return [cells[at] for at in sorted(chosen)]


def _key(cell: Cell) -> tuple[Any, ...]:
    return tuple(cell.values())


class _Turns:
    """Values in a random order, all of them before any comes again."""

    def __init__(self, values: dict[Any, None], draw: random.Random) -> None:
        self._values, self._draw, self._left = list(values), draw, list[Any]()

    def next(self) -> Any:
        if not self._left:
            self._left = self._draw.sample(self._values, len(self._values))
        return self._left.pop()
