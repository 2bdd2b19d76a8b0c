"""How `[N, F]` tensors lie in blocks over a group, and what is sent to gather, sum or turn them.

Tensors only: `transfer` gives these maps their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hag_plugin.parallel.layouts import chunk_sizes
from hag_plugin.parallel.ranks.comm import Group, Then

Rows = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Blocks:
    """How `[N, width]` lies over a group: member `i * columns + j` has block i of the rows and
    block j of the features. Rows are one column of blocks, columns one row of them.
    """

    rows: tuple[int, ...]
    width: int
    columns: int
    group: Group

    @classmethod
    def of(cls, rows: Rows, width: int, columns: int, group: Group) -> Blocks:
        """From the rows of each member; in a grid, neighbours' rows make a block."""
        parts = np.asarray(rows)
        if len(parts) != group.size:
            raise ValueError(
                f"rows has {len(parts)} entries; expected one for each of {group.size} ranks"
            )
        merged = parts.reshape(-1, columns).sum(axis=1).tolist()
        return cls(tuple(merged), width, columns, group)

    @property
    def shape(self) -> tuple[int, int]:
        """Of this member's shard."""
        i, j = divmod(self.group.rank, self.columns)
        return self.rows[i], int(chunk_sizes(self.width, self.columns)[j])

    @property
    def padded(self) -> tuple[int, int]:
        """Of the largest block of rows and of features."""
        return max(self.rows), int(chunk_sizes(self.width, self.columns).max())

    def gather(self, x: Tensor, phase: str) -> Tensor:
        """Shards to the whole."""
        return self.begin_gather(x, phase, overlaps=False).wait()

    def begin_gather(self, x: Tensor, phase: str, overlaps: bool | None = None) -> Then:
        """Begins `gather`; `overlaps` in place of the group's."""
        self._check(x, self.shape, "the shard of this rank")
        padded = _pad(x, *self.padded)
        return self.group.begin_all_gather(padded, phase, overlaps).then(self._joined)

    def _joined(self, out: Tensor) -> Tensor:
        """All shards, padded, to the whole."""
        n, g = self.padded
        bands, wide = len(self.rows), self.columns * g
        out = out.view(bands, self.columns, n, g).transpose(1, 2).reshape(bands, n, wide)
        if min(self.rows) == n:
            return out.reshape(bands * n, wide)[:, : self.width].contiguous()
        return torch.cat([block[:k, : self.width] for block, k in zip(out, self.rows, strict=True)])

    def scatter(self, x: Tensor, phase: str) -> Tensor:
        """Partial sums of the whole to shards."""
        return self.begin_scatter(x, phase, overlaps=False).wait()

    def begin_scatter(self, x: Tensor, phase: str, overlaps: bool | None = None) -> Then:
        """Begins `scatter`; `overlaps` in place of the group's."""
        self._check(x, (sum(self.rows), self.width), "partial sums of the whole")
        n, g = self.padded
        if min(self.rows) < n or self.width < self.columns * g:
            blocks = torch.split(x, list(self.rows))
            x = torch.cat([_pad(block, n, self.columns * g) for block in blocks])
        bands = len(self.rows)
        by_member = x.reshape(bands, n, self.columns, g).transpose(1, 2)
        flat, (rows, width) = by_member.reshape(self.group.size * n, g), self.shape
        begun = self.group.begin_reduce_scatter(flat, phase, overlaps)
        return begun.then(lambda out: out[:rows, :width].contiguous())

    def cut(self, x: Tensor, phase: str) -> Tensor:
        """The whole to shards: a copy, so that nothing is changed in the whole in place."""
        self._check(x, (sum(self.rows), self.width), "the whole")
        i, j = divmod(self.group.rank, self.columns)
        first = sum(self.rows[:i])
        left = int(chunk_sizes(self.width, self.columns)[:j].sum())
        rows, width = self.shape
        return x[first : first + rows, left : left + width].clone(
            memory_format=torch.contiguous_format
        )

    def _check(self, x: Tensor, expected: tuple[int, int], what: str) -> None:
        if tuple(x.shape) != expected:
            raise ValueError(f"x has shape {list(x.shape)}; expected {list(expected)}, {what}")


def _pad(x: Tensor, rows: int, width: int) -> Tensor:
    if x.shape == (rows, width):
        return x
    out = x.new_zeros(rows, width)
    out[: x.shape[0], : x.shape[1]] = x
    return out


@dataclass(frozen=True)
class Turn:
    """Between rows `[n, width]` and columns `[N, g]` of the members of a group."""

    rows: tuple[int, ...]
    width: int
    group: Group

    @classmethod
    def of(cls, rows: Rows, width: int, group: Group) -> Turn:
        """From the rows of each member."""
        if len(rows) != group.size:
            raise ValueError(f"rows has {len(rows)} entries; expected one for each of {group.size}")
        return cls(tuple(int(n) for n in rows), width, group)

    @property
    def widths(self) -> list[int]:
        """Features of each member's block."""
        sizes: list[int] = chunk_sizes(self.width, self.group.size).tolist()
        return sizes

    def to_columns(self, x: Tensor, phase: str) -> Tensor:
        """`[n, width]` to `[N, g]`."""
        mine, g = self.rows[self.group.rank], self.widths[self.group.rank]
        if tuple(x.shape) != (mine, self.width):
            raise ValueError(f"x has shape {list(x.shape)}; expected {[mine, self.width]}")
        flat = torch.cat([block.reshape(-1) for block in torch.split(x, self.widths, dim=1)])
        send = [mine * k for k in self.widths]
        receive = [n * g for n in self.rows]
        return self.group.all_to_all(flat, send, receive, phase).view(sum(self.rows), g)

    def to_rows(self, x: Tensor, phase: str) -> Tensor:
        """`[N, g]` to `[n, width]`."""
        mine, g = self.rows[self.group.rank], self.widths[self.group.rank]
        if tuple(x.shape) != (sum(self.rows), g):
            raise ValueError(f"x has shape {list(x.shape)}; expected {[sum(self.rows), g]}")
        send = [n * g for n in self.rows]
        receive = [mine * k for k in self.widths]
        flat = self.group.all_to_all(x.reshape(-1), send, receive, phase)
        parts = zip(torch.split(flat, receive), self.widths, strict=True)
        return torch.cat([part.view(mine, k) for part, k in parts], dim=1)
