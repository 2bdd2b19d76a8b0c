"""How a launch is cut into instances. Needs no Triton: `stats` shows it of plans, too."""

from __future__ import annotations

import math
from dataclasses import dataclass

VECTOR_BYTES = 16  # the widest load of a thread, of accumulators: see `cut`
MAX_WARPS = 4
# Triton 3.6 fails to compile the kernel with more, on rows of 16 features.
WINNER_WARPS = 1
# Below this many instances of MAX_WARPS a level leaves multiprocessors idle: one warp each then.
FEW_INSTANCES = 512
# Of a thread. With 128, weighted and scaled sums of bfloat16 at odd widths keep three on the stack
# on sm_80.
MAX_REGISTERS = 136
# Rows that a thread has under way at a time.
UNROLL = 4
# Left to itself, ptxas spills a register or two of some kernels to fit 48. Nothing is pipelined:
# rows are fetched where they are needed, UNROLL at a time.
CODE = {"num_stages": 1, "maxnreg": MAX_REGISTERS, "enable_fp_fusion": True}


@dataclass(frozen=True)
class Cut:
    """What an instance takes: `rows` ops by `cols` features, and the grid of all instances."""

    rows: int
    cols: int
    warps: int
    grid: int

    @property
    def options(self) -> dict[str, int]:
        """As a launch takes it."""
        return {"ROWS": self.rows, "COLS": self.cols, "num_warps": self.warps} | CODE


@dataclass(frozen=True)
class HeadCut(Cut):
    """The same with `cols` features of each of `heads` heads.

    Attributes:
        step: how many features divide all widths.
        unroll: edges under way at a time: one where a row takes many loads anyway.
    """

    heads: int
    step: int
    unroll: int

    @property
    def options(self) -> dict[str, int]:
        """As a launch takes it."""
        return super().options | {"HEADS": self.heads, "STEP": self.step}


def cut(ops: int, width: int, matrices: int, itemsize: int, most_warps: int = MAX_WARPS) -> Cut:
    """Every thread has one vector of a row; rows narrower than a warp's share it.

    Half types get no longer vectors: rows of x and of scratch would be spread over the threads
    differently, and would have to change hands in the inner loop.
    """
    lanes = _lanes(itemsize)
    cols = _power(width, lanes)
    blocks = -(-width // cols)

    def grid(rows: int) -> int:
        return -(-ops // rows) * blocks * matrices

    warps = most_warps if grid(most_warps * lanes // cols) >= FEW_INSTANCES else 1
    rows = warps * lanes // cols
    return Cut(rows, cols, warps, grid(rows))


def cut_heads(ops: int, heads: int, widths: tuple[int, ...], itemsize: int) -> HeadCut:
    """The same where features belong to heads; of several widths the largest one counts.

    An instance is a warp, so that what goes from features to heads and back waits for nobody.
    """
    lanes, width = _lanes(itemsize), max(1, *widths)
    cols = _power(width, lanes)
    of_warp = _power(heads, lanes // cols)
    rows = lanes // cols // of_warp
    grid = -(-ops // rows) * -(-width // cols) * -(-heads // of_warp)
    step = math.gcd(*widths, VECTOR_BYTES)
    is_wide = step * itemsize % VECTOR_BYTES == 0
    return HeadCut(rows, cols, 1, grid, of_warp, step, UNROLL if is_wide else 1)


def _lanes(itemsize: int) -> int:
    """Features that a warp takes at a time."""
    return 32 * VECTOR_BYTES // max(itemsize, 4)


def _power(size: int, most: int) -> int:
    """The power of two that holds `size`, but no more than `most`."""
    return min(1 << (size - 1).bit_length(), most)
