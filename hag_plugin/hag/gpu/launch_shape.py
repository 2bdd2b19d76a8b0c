"""How a launch is cut into instances. Needs no Triton: `stats` shows it of plans, too."""

from __future__ import annotations

from dataclasses import dataclass

VECTOR_BYTES = 16  # the widest load of a thread, of accumulators: see `cut`
MAX_WARPS = 4
# Triton 3.6 fails to compile the kernel with more, on rows of 16 features.
WINNER_WARPS = 1
# Below this many instances of MAX_WARPS a level leaves multiprocessors idle: one warp each then.
FEW_INSTANCES = 512
MAX_REGISTERS = 128  # of a thread
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


def cut(ops: int, width: int, matrices: int, itemsize: int, most_warps: int = MAX_WARPS) -> Cut:
    """Every thread has one vector of a row; rows narrower than a warp's share it.

    Half types get no longer vectors: rows of x and of scratch would be spread over the threads
    differently, and would have to change hands in the inner loop.
    """
    lanes = 32 * VECTOR_BYTES // max(itemsize, 4)
    cols = min(1 << (width - 1).bit_length(), lanes)
    blocks = -(-width // cols)

    def grid(rows: int) -> int:
        return -(-ops // rows) * blocks * matrices

    warps = most_warps if grid(most_warps * lanes // cols) >= FEW_INSTANCES else 1
    rows = warps * lanes // cols
    return Cut(rows, cols, warps, grid(rows))
