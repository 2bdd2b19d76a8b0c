"""What the candidates for one matrix take on a device that runs launches: timed there, where a HAG
is built for it and it is at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from hag_plugin import devices
from hag_plugin.devices import KINDS
from hag_plugin.hag.candidates import ROW_BYTES, SHAPE, Table
from hag_plugin.hag.gpu.schedule import Schedule, schedule_of
from hag_plugin.hag.program import Program
from hag_plugin.modes import has_ranks

WIDTHS = (16, 64, 256)  # of the float32 rows that are timed; between them times go by interpolation
MOST_BYTES = 2 << 30  # of features: wider rows of more nodes are not timed
CALLS, SWEEPS = 4, 3  # calls between two events, and how often, of which the shortest counts
# Half types, extrema and other widths: the standard deviation of the logarithm of a ratio.
ERROR = 0.1

# By kind of device, what runs a schedule on x `[N, F]` into y. It stands above this room, which it
# tells of itself.
Run = Callable[[Schedule, Tensor, Tensor, str], None]
RUNNERS: dict[str, Run] = {}
Seconds = Callable[[Callable[[], None], torch.device], float]


def can_time(device: str) -> bool:
    """Whether candidates can be timed on a kind of device, and may be: what is chosen then depends
    on a clock."""
    kind = KINDS[device]
    if kind.launches is None or device not in RUNNERS or not devices.is_available(kind):
        return False
    return not (torch.are_deterministic_algorithms_enabled() or has_ranks())


def event_seconds(call: Callable[[], None], device: torch.device) -> float:
    """Of a call, by events of the device; the shortest of a few."""
    call()
    return min(devices.event_seconds(call, CALLS, device) for _ in range(SWEEPS))


def table_of(
    candidates: Mapping[str, Program], device: torch.device, seconds: Seconds = event_seconds
) -> Table | None:
    """The seconds of the candidates on a device; None where all that could be timed is too large.

    Args:
        candidates: by name.
        device: which runs them.
        seconds: times a call on it.
    """
    schedules = {name: schedule_of(program).to(device) for name, program in candidates.items()}
    num_src, num_dst = next((s.num_src, s.num_dst) for s in schedules.values())
    widths = [w for w in WIDTHS if (num_src + num_dst) * w * 4 <= MOST_BYTES]
    if not widths:
        return None
    taken: dict[str, list[float]] = {name: [] for name in schedules}
    for width in widths:
        x = torch.ones(num_src, width, device=device)
        y = torch.empty(num_dst, width, device=device)
        for name, schedule in schedules.items():
            taken[name].append(seconds(_call(schedule, x, y), device))
    at, measured = np.log(ROW_BYTES), np.log([4 * width for width in widths])
    each = [np.exp(np.interp(at, measured, np.log(taken[name]))) for name in schedules]
    all_alike = [np.broadcast_to(times, SHAPE) for times in each]
    return Table("measure", tuple(schedules), np.stack(all_alike), np.full(SHAPE, ERROR))


def _call(schedule: Schedule, x: Tensor, y: Tensor) -> Callable[[], None]:
    return lambda: RUNNERS[x.device.type](schedule, x, y, "sum")
