"""The cost model: what a program costs on a device, and what the search may spend."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hag_plugin import schedule
from hag_plugin.hag import HAG
from hag_plugin.program import Program, SelfLoops, Stats


@dataclass(frozen=True)
class Prices:
    """Constants of the search.

    Attributes:
        intermediate: a row of scratch, in rows read. An intermediate of s sources and u uses is
            kept iff `s u > s + u + intermediate`.
        work_per_edge: 64-bit words that greedy merging may compare for each edge of a tile.
        seconds_per_byte: of rows read and written, one thread, rows near at hand.
    """

    intermediate: float = 2.0
    work_per_edge: int = 2048
    seconds_per_byte: float = 6e-11


# A GPU's launch and its bytes. Round figures from data sheets (an A100 has 2e12 bytes a second, an
# H100 3.3e12), not measured: they only decide whether a search beats the plain graph.
GPU_SECONDS_PER_LAUNCH = 4e-6
GPU_BYTES_PER_SECOND = 2e12


def prices(width: int, device: str = "cpu") -> Prices:
    """The constants for features of `width` values on a "cpu" or "cuda" device.

    On a CPU an op costs some 25 ns besides its rows, and a row of 16 values only 1.3 ns: the narrower the
    rows, the more an intermediate must save. On a GPU ops run side by side.
    """
    if device == "cuda":
        return Prices()
    return Prices(intermediate=2.0 + max(0, 64 - width) / 3)


def predicted_seconds(rows_read: int, rows_written: int, width: int) -> float:
    """One aggregation over float32 rows of `width`, on one thread."""
    return (rows_read + rows_written) * width * 4 * prices(width).seconds_per_byte


def gpu_seconds(rows_read: int, rows_written: int, launches: int, width: int) -> float:
    """One aggregation over float32 rows of `width` on a GPU: bytes moved, and launches."""
    seconds = (rows_read + rows_written) * width * 4 / GPU_BYTES_PER_SECOND
    return seconds + launches * GPU_SECONDS_PER_LAUNCH


def pays_on_gpu(hag: HAG, self_loops: SelfLoops, program: Program) -> bool:
    """Whether a GPU is predicted to run a program sooner than the plain graph."""
    degree = hag.degree(self_loops).cpu().numpy()
    parts = -(-degree[degree > schedule.LONGEST] // schedule.LONGEST)
    read, written = int(degree.sum() + parts.sum()), len(degree) + int(parts.sum())
    plain = gpu_seconds(read, written, 1 + bool(len(parts)), hag.options.width)
    return _scheduled_seconds(program, hag.options.width) < plain


def _scheduled_seconds(program: Program, width: int) -> float:
    found = program.schedule
    diagonal = found.num_dst if found.diagonal else 0
    read, written = len(found.source) + diagonal, len(found.target)
    return gpu_seconds(read, written, found.num_levels, width)


def program_stats(hag: HAG, self_loops: SelfLoops, program: Program) -> Stats:
    """Counts what a program reads, writes and sums, beside the plain graph."""
    arity = program.op_ptr.diff().cpu().numpy()
    degree = hag.degree(self_loops).cpu().numpy()
    partials = program.hub_ptr.diff().cpu().numpy()
    diagonal = hag.num_dst if program.diagonal else 0
    rows_read = int(arity.sum() + partials.sum()) + diagonal
    rows_written = len(arity) + len(partials)
    seconds = (
        _scheduled_seconds(program, hag.options.width)
        if hag.options.device == "cuda"
        else predicted_seconds(rows_read, rows_written, hag.options.width)
    )
    aggregations = int(np.maximum(arity - 1, 0).sum() + np.maximum(partials - 1, 0).sum())
    return Stats(
        aggregations=aggregations + diagonal,
        aggregations_before=int(np.maximum(degree - 1, 0).sum()),
        rows_read=rows_read,
        rows_read_before=int(degree.sum()),
        rows_written=rows_written,
        rows_written_before=hag.num_dst,
        intermediates=int((program.target < 0).sum()),
        tiles=program.tile_ptr.shape[0] - 1,
        levels=schedule.depth(program),
        search_seconds=program.search_seconds,
        predicted_seconds=seconds,
        bytes=program.nbytes,
        bytes_before=8 * (hag.num_dst + 1) + 4 * int(degree.sum()),
    )
