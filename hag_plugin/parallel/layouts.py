"""Where the rows and columns of a tensor `[N, F]` lie, and what it sends to change that.

Bytes are exact: what each device hands to others, in whole rows, columns and bytes. In collectives
they are counted as a ring sends them (`sent_bytes`), so that a counter and these formulas agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hag_plugin.saved import set_module

KINDS = ("replicated", "rows", "columns", "grid")


@set_module("hag_plugin.parallel")
@dataclass(frozen=True)
class Layout:
    """How a tensor is split over P devices.

    Attributes:
        kind: "replicated": each device has all, values and gradients alike. "rows": device p has
            the nodes of part p. "columns": device p has block p of the features. "grid": device
            `i * columns + j` has the nodes of `columns` consecutive parts and a block of features.
        columns: of a grid, into how many blocks the features are split; 1 otherwise.
    """

    kind: str
    columns: int = 1

    def __str__(self) -> str:
        return f"grid x{self.columns}" if self.kind == "grid" else self.kind


REPLICATED, ROWS, COLUMNS = Layout("replicated"), Layout("rows"), Layout("columns")


@dataclass(frozen=True)
class Split:
    """A parameter of which each device has a block, as `torch.chunk` cuts.

    Attributes:
        dim: the dimension that is cut.
        columns: 0: into a block for each device; k > 0: into a block for each column of a grid
            with k columns, the same in all its rows.
    """

    dim: int
    columns: int = 0


@dataclass(frozen=True, eq=False)
class Message:
    """One collective.

    Attributes:
        collective: as `Topology.seconds` names it.
        sent: int64 `[P]`, bytes that each device sends.
        phase: "forward", "backward" or "update" (weight gradients).
        columns: the groups that take part: 0 all devices; k > 0 the groups of k neighbours; k < 0
            the strided groups of devices that are the same in such a group of -k.
    """

    collective: str
    sent: np.ndarray
    phase: str
    columns: int = 0


def chunk_sizes(total: int, parts: int) -> np.ndarray:
    """Sizes of the blocks `torch.chunk` and DTensor make: int64 `[parts]`, some may be 0.

    Example:
        >>> chunk_sizes(10, 4).tolist()
        [3, 3, 3, 1]
    """
    size = -(-total // parts)
    return np.clip(total - size * np.arange(parts), 0, size)


def sent_bytes(collective: str, nbytes: int, devices: int) -> int:
    """Bytes that each device sends in a ring.

    Args:
        collective: "all_gather" or "reduce_scatter" of shards of `nbytes`, or "all_reduce" of
            `nbytes` in all.
        nbytes: of the (padded) shard, or of the whole for an all-reduce.
        devices: how many take part.
    """
    if collective == "all_reduce":
        return 2 * (devices - 1) * nbytes // devices
    if collective not in ("all_gather", "reduce_scatter"):
        raise ValueError(
            f"collective is {collective!r}; expected all_gather, reduce_scatter or all_reduce"
        )
    return (devices - 1) * nbytes


def even(
    collective: str, nbytes: int, devices: int, phase: str, columns: int = 0, group: int = 0
) -> Message:
    """A collective in which every device sends the same; `group` devices each, by default all."""
    sent = sent_bytes(collective, nbytes, group or devices)
    return Message(collective, np.full(devices, sent, np.int64), phase, columns)


def gather_rows(rows: np.ndarray, width: int, itemsize: int, phase: str) -> Message:
    """All-gather of row shards, padded to the largest."""
    return even("all_gather", int(rows.max()) * width * itemsize, len(rows), phase)


def scatter_rows(rows: np.ndarray, width: int, itemsize: int, phase: str) -> Message:
    """Reduce-scatter to row shards, padded to the largest."""
    return even("reduce_scatter", int(rows.max()) * width * itemsize, len(rows), phase)


def rows_to_columns(
    rows: np.ndarray, width: int, itemsize: int, phase: str, columns: int = 0
) -> Message:
    """All-to-all: device p sends its rows' columns that others keep.

    Args:
        rows: int64 `[P]`.
        width: F of the whole tensor.
        itemsize: bytes a value.
        phase: as in `Message`.
        columns: with k > 0, only among k neighbours: rows to a grid.
    """
    group = columns or len(rows)
    kept = chunk_sizes(width, group)[np.arange(len(rows)) % group]
    return Message("all_to_all", rows * (width - kept) * itemsize, phase, columns)


def columns_to_rows(
    rows: np.ndarray, width: int, itemsize: int, phase: str, columns: int = 0
) -> Message:
    """The way back of `rows_to_columns`: device p sends its columns of rows that others keep."""
    group = columns or len(rows)
    kept = chunk_sizes(width, group)[np.arange(len(rows)) % group]
    blocks = np.repeat(rows.reshape(-1, group).sum(axis=1), group)
    return Message("all_to_all", (blocks - rows) * kept * itemsize, phase, columns)


def reshard(
    before: Layout, after: Layout, rows: np.ndarray, width: int, itemsize: int, phase: str
) -> list[Message]:
    """What it takes to change the layout of a tensor whose rows are split as `rows`, one way.

    Slicing sends nothing. A grid reaches columns, and another grid, by way of rows.

    Example:
        >>> [m] = reshard(ROWS, COLUMNS, np.array([2, 2]), width=8, itemsize=4, phase="forward")
        >>> m.collective, m.sent.tolist()
        ('all_to_all', [32, 32])
    """
    if before in (after, REPLICATED):
        return []
    if after == REPLICATED:
        if before == ROWS:
            return [gather_rows(rows, width, itemsize, phase)]
        if before == COLUMNS:
            shard = int(rows.sum()) * int(chunk_sizes(width, len(rows)).max()) * itemsize
            return [even("all_gather", shard, len(rows), phase)]
        blocks = rows.reshape(-1, before.columns).sum(axis=1)
        shard = int(blocks.max()) * int(chunk_sizes(width, before.columns).max()) * itemsize
        return [even("all_gather", shard, len(rows), phase)]
    if before == ROWS:
        return [rows_to_columns(rows, width, itemsize, phase, _neighbours(after))]
    back = columns_to_rows(rows, width, itemsize, phase, _neighbours(before))
    return [back] if after == ROWS else [back, *reshard(ROWS, after, rows, width, itemsize, phase)]


def _neighbours(layout: Layout) -> int:
    """Among how many neighbouring devices the features are split; 0 for all."""
    return layout.columns if layout.kind == "grid" else 0


def held(layout: Layout, rows: np.ndarray, width: int) -> int:
    """Values of a tensor `[N, width]` that the device which holds most of it holds."""
    parts = len(rows)
    if layout.kind == "replicated":
        return int(rows.sum()) * width
    if layout.kind == "rows":
        return int(rows.max()) * width
    if layout.kind == "columns":
        return int(rows.sum()) * int(chunk_sizes(width, parts).max())
    blocks = rows.reshape(-1, layout.columns).sum(axis=1)
    return int(blocks.max()) * int(chunk_sizes(width, layout.columns).max())


def shares(layout: Layout, rows: np.ndarray, width: int, rank: int) -> tuple[slice, slice]:
    """The rows and the columns of a tensor `[N, width]` that a rank has.

    Example:
        >>> shares(Layout("grid", 2), np.array([3, 3, 2, 2]), 5, rank=3)
        (slice(6, 10, None), slice(3, 5, None))
    """
    parts = len(rows)
    columns = {"columns": parts, "grid": layout.columns}.get(layout.kind, 1)
    strips = {"rows": parts, "grid": parts // layout.columns}.get(layout.kind, 1)
    ends = np.cumsum(rows.reshape(strips, -1).sum(axis=1))
    blocks = np.cumsum(chunk_sizes(width, columns))
    i = rank // columns if strips > 1 else 0
    j = rank % columns
    first_row, first_column = (int(e[k - 1]) if k else 0 for e, k in ((ends, i), (blocks, j)))
    return slice(first_row, int(ends[i])), slice(first_column, int(blocks[j]))
