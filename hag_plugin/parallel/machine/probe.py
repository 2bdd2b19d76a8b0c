"""`probe`: measures a machine. What comes out is a topology whose figures were met, not published.

Processes, one a device, run every collective over a range of sizes; what counts is the slowest
process, the median over repeats. Each collective and world size gets a line of its own,
`seconds = alpha + beta * bytes sent`: the formula of a ring does not hold on gloo.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing

from hag_plugin import devices
from hag_plugin.arguments import check_kind, some, whole
from hag_plugin.hag.build import build_hag
from hag_plugin.ops.aggregate import aggregate
from hag_plugin.parallel.machine.levels import Level
from hag_plugin.parallel.machine.topology import Device, Fit, Topology
from hag_plugin.parallel.ranks.comm import Group, session
from hag_plugin.saved import set_module
from hag_plugin.starting import interrupts_blocked

SIZES = tuple(1 << k for k in range(10, 25, 2))  # bytes that each process hands in
REPEATS = 7
RESULT = "result.json"
TIMEOUT = timedelta(seconds=120)


def probe(
    world_sizes: Sequence[int] = (2,),
    *,
    backend: str = "gloo",
    sizes: Sequence[int] = SIZES,
    name: str = "this machine",
    report: Callable[[str, float], None] = lambda words, share: None,
) -> Topology:
    """The topology of this machine, measured.

    Args:
        world_sizes: numbers of processes; the largest is the number of devices.
        backend: "gloo", a process a share of the cores; "nccl", a process a GPU.
        sizes: bytes, of the tensors that processes hand in.
        name: of the topology.
        report: called with what is being done and the share that is done.

    Raises:
        ValueError: a world size is less than 2, or there are fewer GPUs.
        RuntimeError: a process failed.
    """
    if not world_sizes or min(world_sizes) < 2:
        raise ValueError(f"world_sizes are {list(world_sizes)}; expected numbers of 2 or more")
    if backend not in devices.backends():
        names = " or ".join(map(repr, devices.backends()))
        raise ValueError(f"backend is {backend!r}; expected {names}")
    module = devices.module_of(devices.kind_with(backend))
    if module is not None and module.device_count() < max(world_sizes):
        raise ValueError(
            f"{backend} over {max(world_sizes)} processes needs as many GPUs; there are "
            f"{module.device_count()}"
        )
    fits: list[Fit] = []
    device: Device | None = None
    for i, size in enumerate(sorted(set(world_sizes))):
        report(f"{size} processes", i / len(world_sizes))
        measured, device = _measure(size, backend, tuple(sizes))
        fits += [fit(c, size, sent, seconds) for c, (sent, seconds) in measured.items()]
    report("done", 1.0)
    assert device is not None  # there was one world size at least
    return _topology(name, backend, fits, device, size)


@set_module("hag_plugin.parallel")
def probe_ranks(
    group: Group | None = None, *, sizes: Sequence[int] = SIZES, name: str = "these ranks"
) -> Topology:
    """The machine that the ranks of this program run on, measured by them; every rank calls it.

    Args:
        group: all ranks, 2 or more; by default those of torch.distributed.
        sizes: bytes, of the tensors that ranks hand in.
        name: of the topology.

    Returns:
        The same on every rank.
    """
    check_kind("name", name, str)
    sizes = [whole("sizes", size, 1, 2**40) for size in some("sizes", sizes)]
    if group is not None:
        check_kind("group", group, Group)
    group = group or Group.world()
    if group.size < 2:
        raise ValueError("group has one rank; expected 2 or more, which have something to send")
    measured, device = _run_collectives(group, sizes), _device_of(group)
    fits = [fit(c, group.size, sent, seconds) for c, (sent, seconds) in measured.items()]
    backend = devices.kind_of(group.device).collectives
    found: Topology = group.broadcast(_topology(name, backend, fits, device, group.size))
    return found


def probe_alone(device: torch.device) -> Topology:
    """This process's device as a machine of one, measured alone in about a second."""
    figures = _device(device, 1, lambda run: _median(run, device))
    words = f"measured in one process, torch {torch.__version__}"
    backend = devices.kind_of(device).collectives
    return Topology("this device", figures, (Level("none", 1, 1.0, 1.0),), (), backend, (words,))


def _topology(name: str, backend: str, fits: list[Fit], device: Device, size: int) -> Topology:
    widest = next(f for f in fits if f.collective == "all_to_all" and f.world_size == size)
    level = Level(
        "measured", size, 1 / max(widest.beta, 1e-15), max(widest.alpha, 1e-9), efficiency=1.0
    )
    words = f"measured by hag-plugin probe, {backend}, torch {torch.__version__}"
    return Topology(name, device, (level,), tuple(fits), backend, (words,))


def fit(collective: str, world_size: int, sent: Sequence[float], seconds: Sequence[float]) -> Fit:
    """The line of least squared relative error through measured times.

    Args:
        collective: as in `COLLECTIVES`.
        world_size: devices.
        sent: bytes that each sent.
        seconds: what that took.

    Example:
        >>> line = fit("all_reduce", 2, [1e3, 1e6], [2e-5 + 1e-6, 2e-5 + 1e-3])
        >>> round(line.alpha * 1e6, 3), round(line.beta * 1e9, 3)
        (20.0, 1.0)
    """
    x, y = np.asarray(sent, float), np.asarray(seconds, float)
    columns = np.stack([np.ones_like(x), x], axis=1) / y[:, None]
    alpha, beta = np.linalg.lstsq(columns, np.ones_like(y), rcond=None)[0].tolist()
    if alpha < 0 or beta < 0:  # noise: the best line with one of them 0
        only = [(0.0, _best(x / y)), (_best(1 / y), 0.0)]
        alpha, beta = min(only, key=lambda ab: float((((ab[0] + ab[1] * x) / y - 1) ** 2).sum()))
    error = float(np.abs((alpha + beta * x) / y - 1).max())
    return Fit(collective, world_size, alpha, beta, error)


def _best(ratio: np.ndarray) -> float:
    """The factor f for which f * ratio is nearest to 1."""
    return float(ratio.sum() / (ratio**2).sum())


Measurements = dict[str, tuple[list[float], list[float]]]


def _measure(size: int, backend: str, sizes: tuple[int, ...]) -> tuple[Measurements, Device]:
    with tempfile.TemporaryDirectory() as folder:
        # The start method is spawn: OpenMP and CUDA do not survive a fork.
        arguments = (size, backend, sizes, folder)
        try:
            start: Any = torch.multiprocessing.start_processes  # type: ignore[attr-defined]
            with interrupts_blocked():
                ranks = start(_run_rank, arguments, size, join=False, start_method="spawn")
            try:
                while not ranks.join():
                    pass
            finally:
                for process in ranks.processes:
                    process.terminate()
                    process.join()
        except Exception as e:
            raise RuntimeError(f"a process of {size} failed while probing: {e}") from e
        measured, device = json.loads((Path(folder) / RESULT).read_text())
    return measured, Device(**device)


def _run_rank(rank: int, size: int, backend: str, sizes: tuple[int, ...], folder: str) -> None:
    """One process: takes part in every collective; rank 0 writes what was measured."""
    if sys.platform == "linux":  # the machine may have no other interface that works
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    module = devices.module_of(devices.kind_with(backend))
    if module is None:
        torch.set_num_threads(max(_cores() // size, 1))
    else:
        module.set_device(rank)
    with session(backend, f"file://{folder}/meet", rank, size, TIMEOUT) as group:
        measured, figures = _run_collectives(group, sizes), _device_of(group)
        if rank == 0:
            text = json.dumps([measured, asdict(figures)])
            (Path(folder) / RESULT).write_text(text)
        group.barrier()


def _run_collectives(group: Group, sizes: Sequence[int]) -> Measurements:
    """Bytes sent and seconds of each collective, over the sizes."""
    measured: Measurements = {}
    for collective, run in _collectives(group).items():
        for nbytes in sizes:
            count = max(nbytes // 4 // group.size, 1) * group.size
            call = run(torch.rand(count, device=group.device))
            before = group.sent["probe"]
            call()
            xs, ys = measured.setdefault(collective, ([], []))
            xs.append(group.sent["probe"] - before)
            ys.append(_slowest(call, group))
    measured["exchange"] = measured["all_to_all"]  # the same call with uneven parts
    return measured


Run = Callable[[torch.Tensor], Callable[[], torch.Tensor]]


def _collectives(group: Group) -> dict[str, Run]:
    """For each, from the tensor handed in, the call."""

    def all_to_all(x: torch.Tensor) -> Callable[[], torch.Tensor]:
        even = [len(x) // group.size] * group.size
        return lambda: group.all_to_all(x, even, even, "probe")

    return {
        "all_gather": lambda x: lambda: group.all_gather(x, "probe"),
        "reduce_scatter": lambda x: lambda: group.reduce_scatter(x, "probe"),
        "all_reduce": lambda x: lambda: group.all_reduce(x, "probe"),
        "all_to_all": all_to_all,
    }


def _median(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call, the median over repeats."""
    taken = []
    for _ in range(REPEATS + 1):
        devices.synchronize(device)
        start = time.perf_counter()
        run()
        devices.synchronize(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])  # the first is warm-up


def _slowest(run: Callable[[], Any], group: Group) -> float:
    """Seconds of a call on the slowest rank, the median over repeats."""
    taken = []
    for repeat in range(REPEATS + 1):
        group.barrier()
        start = time.perf_counter()
        run()
        devices.synchronize(group.device)
        seconds = torch.tensor(
            [time.perf_counter() - start], dtype=torch.float64, device=group.device
        )
        longest = group.all_reduce(seconds, "clock", "max")
        if repeat:  # the first is warm-up
            taken.append(longest.item())
    return statistics.median(taken)


def _device_of(group: Group) -> Device:
    """What a device reaches while all others work, too."""
    return _device(group.device, group.size, lambda run: _slowest(run, group))


def _device(
    device: torch.device, sharing: int, seconds: Callable[[Callable[[], Any]], float]
) -> Device:
    """What a device reaches.

    Args:
        device: to measure.
        sharing: how many processes share the memory of the machine.
        seconds: that a call takes.
    """
    n = 1024 if device.type == "cpu" else 8192
    a, b = torch.rand(n, n, device=device), torch.rand(n, n, device=device)
    product = seconds(lambda: a @ b)
    nodes, width = (1 << 16, 64) if device.type == "cpu" else (1 << 20, 128)
    edges = torch.randint(nodes, (2, 8 * nodes), generator=torch.Generator().manual_seed(0))
    hag = build_hag(edges, num_nodes=nodes, method="none").to(device)
    x = torch.rand(nodes, width, device=device)
    gathered = seconds(lambda: aggregate(x, hag))
    small = torch.rand(16, 16, device=device)
    overhead = seconds(lambda: small.relu())
    moved = 9 * nodes * width * 4 + 8 * nodes * 4
    name = devices.name_of(device)
    if name is not None:
        memory = devices.module_of(devices.kind_of(device)).mem_get_info(device)[1]
    else:
        name = f"{torch.get_num_threads()} threads of {_cores()} cores"
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // sharing
    return Device(name, 2 * n**3 / product, moved / gathered, memory, overhead, 1.0, 1.0)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
