"""How the launches of a schedule fill a GPU, as far as that shows without one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hag_plugin.hag.gpu.launch_shape import MAX_REGISTERS, cut
from hag_plugin.hag.gpu.schedule import Schedule

MULTIPROCESSORS = 132  # of an H100
# A multiprocessor of either has 65,536 registers: room for this many warps of whatever kernel.
RESIDENT_WARPS = 65_536 // (32 * MAX_REGISTERS)


@dataclass(frozen=True)
class Launch:
    """One level of a schedule on float32 rows.

    Attributes:
        ops: number of ops.
        rows: read and written.
        longest_op: rows that the longest op reads.
        width_blocks: instances that share the features of an op.
        instances: number of instances.
        warps: of an instance.
        occupancy: share of the warps which the card holds at a time that the launch has; 1 where it
            has more. Kernels that need fewer registers leave room for more.
    """

    ops: int
    rows: int
    longest_op: int
    width_blocks: int
    instances: int
    warps: int
    occupancy: float


@dataclass(frozen=True)
class Occupancy:
    """The launches of one aggregation.

    Attributes:
        multiprocessors: of the card.
        launches: one after the other.
        serial_chain: rows that the longest ops of all launches read, one after the other. An
            aggregation takes as long as these, however large the card is.
        scratch_bytes: what all launches together write to scratch, and need in main memory.
    """

    multiprocessors: int
    launches: tuple[Launch, ...]
    serial_chain: int
    scratch_bytes: int


def launches(
    schedule: Schedule, width: int, multiprocessors: int = MULTIPROCESSORS
) -> tuple[Launch, ...]:
    """What each level of a schedule does on one matrix of float32 rows of `width`.

    Example:
        >>> import torch, hag_plugin as hp
        >>> from hag_plugin.hag.gpu.schedule import schedule_of
        >>> edges = torch.stack([torch.arange(300), torch.zeros(300, dtype=torch.long)])
        >>> hag = hp.build_hag(edges, size=(300, 1), method="none")
        >>> [(each.ops, each.longest_op) for each in launches(schedule_of(hag.program()), 64)]
        [(3, 128), (1, 3)]
    """
    op_ptr, target = schedule.op_ptr.cpu().numpy(), schedule.target.cpu().numpy()
    length = np.diff(op_ptr)
    found = []
    for first, last in schedule.levels:
        rows = int(op_ptr[last] - op_ptr[first]) + last - first
        if schedule.diagonal:
            rows += int((target[first:last] >= 0).sum())
        how = cut(last - first, width, 1, 4)
        share = how.grid * how.warps / (multiprocessors * RESIDENT_WARPS)
        found.append(
            Launch(
                ops=last - first,
                rows=rows,
                longest_op=int(length[first:last].max()),
                width_blocks=-(-width // how.cols),
                instances=how.grid,
                warps=how.warps,
                occupancy=min(share, 1.0),
            )
        )
    return tuple(found)


def occupancy(schedule: Schedule, width: int, multiprocessors: int = MULTIPROCESSORS) -> Occupancy:
    """How a schedule fills a card of so many multiprocessors, on float32 rows of `width`."""
    found = launches(schedule, width, multiprocessors)
    return Occupancy(
        multiprocessors=multiprocessors,
        launches=found,
        serial_chain=sum(each.longest_op for each in found),
        scratch_bytes=schedule.scratch_rows * width * 4,
    )
