"""`DeviceBytes`: what a HAG holds on a device that runs launches, told without one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from hag_plugin.hag.gpu.schedule import Schedule, schedule_of
from hag_plugin.hag.graph import Graph
from hag_plugin.hag.program import Program

PLACE_BYTES, TARGET_BYTES = 8, 4  # of the int64 place of an edge's number, and of its int32 target


@dataclass(frozen=True)
class DeviceBytes:
    """Bytes that `hag.cuda()` holds: of the HAG as it is, its reverse included where it was made.

    Attributes:
        graph: the CSR.
        programs: those that were made.
        schedules: of these, by which the kernels of sums and extrema run.
        edges: what is held besides, from the first call on whose edges have weights or scores: the
            plain graph's program and schedule, where each of its sources has its number, and the
            target of each edge. Gradients hold about as much again, of the reverse.
    """

    graph: int
    programs: int
    schedules: int
    edges: int

    @property
    def total(self) -> int:
        """From the start, without what edges take later."""
        return self.graph + self.programs + self.schedules


def device_bytes(
    graphs: Sequence[Graph], programs: Iterable[Program], plain: Program
) -> DeviceBytes:
    """That of graphs, the first of them a HAG's own, of their programs, and of its plain one."""
    programs, schedule = list(programs), schedule_of(plain)
    cols = {graph.arrays.col.data_ptr() for graph in graphs}  # plain programs have them in common

    def own(program: Program) -> int:
        shared = sum(a.nbytes for a in program.arrays if a.data_ptr() in cols)
        return program.nbytes - shared

    places = PLACE_BYTES * len(schedule.source) + TARGET_BYTES * graphs[0].num_edges
    return DeviceBytes(
        graph=sum(_nbytes(graph.arrays[:2]) for graph in graphs),
        programs=sum(program.nbytes for program in programs),
        schedules=sum(_schedule_bytes(schedule_of(program)) for program in programs),
        edges=own(plain) + _schedule_bytes(schedule) + places,
    )


def _schedule_bytes(s: Schedule) -> int:
    return _nbytes((s.op_ptr, s.source, s.target, s.row))


def _nbytes(tensors: Iterable[Tensor | None]) -> int:
    return sum(t.nbytes for t in tensors if t is not None)
