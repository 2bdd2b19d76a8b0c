"""Dropout whose masks do not depend on who computes them.

Whether a value stays is a hash of the seed, the training step, the operation, and the value's row
and column in the whole tensor: one process and many, in every layout, drop the same values.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MIX = (0x7FEB352D, -0x7B935975)  # 32-bit finaliser of low bias (hash-prospector, "lowbias32")
_ROW, _COLUMN = -0x61C88647, 0x3C6EF372 | 1


def _mixed(h: Tensor) -> Tensor:
    """An int32 tensor, scrambled in place."""
    h ^= (h >> 16) & 0xFFFF
    h *= _MIX[0]
    h ^= (h >> 15) & 0x1FFFF
    h *= _MIX[1]
    h ^= (h >> 16) & 0xFFFF
    return h


def keep(key: tuple[int, ...], rows: Tensor, columns: Tensor, p: float) -> Tensor:
    """Which values of a tensor stay.

    Args:
        key: numbers that the mask depends on: seed, step, operation.
        rows: int64 `[n]`, indices of the rows in the whole tensor.
        columns: int64 `[w]`, of the columns.
        p: probability that a value is dropped.

    Returns:
        bool `[n, w]`.

    Example:
        >>> mask = keep((0, 1, 2), torch.arange(100), torch.arange(50), 0.25)
        >>> torch.equal(mask[10:20, 5:], keep((0, 1, 2), torch.arange(10, 20),
        ...                                   torch.arange(5, 50), 0.25))
        True
        >>> round(mask.float().mean().item(), 2)
        0.75
    """
    state = torch.zeros(1, dtype=torch.int32, device=rows.device)
    for number in key:
        for part in (number & 0xFFFFFFFF, (number >> 32) & 0xFFFFFFFF):
            state = _mixed((state * 31 + _signed(part)).to(torch.int32))
    h = _mixed(_low(rows) * _ROW + state).view(-1, 1) ^ _mixed(_low(columns) * _COLUMN - state)
    threshold = min(round(p * 2**32), 2**32 - 1) - 2**31
    return _mixed(h) >= threshold


def dropout(x: Tensor, p: float, key: tuple[int, ...], first_row: int, first_column: int) -> Tensor:
    """Sets values to zero with probability `p`, and scales the others by `1 / (1 - p)`.

    Args:
        x: `[n, w]`, a shard.
        p: probability.
        key: as for `keep`.
        first_row: of the shard, in the whole tensor.
        first_column: likewise.
    """
    if p >= 1:
        return x * 0
    rows = torch.arange(first_row, first_row + x.shape[0], device=x.device)
    columns = torch.arange(first_column, first_column + x.shape[1], device=x.device)
    return torch.where(keep(key, rows, columns, p), x * (1 / (1 - p)), 0)


def edge_mask(
    key: tuple[int, ...], numbers: Tensor, heads: Tensor, p: float, dtype: torch.dtype
) -> Tensor:
    """What attention is multiplied with: 0 with probability `p`, else `1 / (1 - p)`.

    Args:
        key: as for `keep`.
        numbers: int64 `[E]`, of the edges in the whole graph.
        heads: int64 `[H]`, of the layer's.
        p: probability.
        dtype: of the result.

    Returns:
        `[E, H]`.
    """
    if p >= 1:
        return torch.zeros(len(numbers), len(heads), dtype=dtype, device=numbers.device)
    return keep(key, numbers, heads, p).to(dtype).div_(1 - p)


def _low(indices: Tensor) -> Tensor:
    """The low 32 bits; tensors of more rows than that repeat their masks."""
    return indices.to(torch.int32)


def _signed(bits: int) -> int:
    return bits - 2**32 if bits >= 2**31 else bits
