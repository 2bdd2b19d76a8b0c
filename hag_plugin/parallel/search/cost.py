"""What a configuration costs in time: analytic, measured on this machine, or calibrated.

Additive, as OptCNN has it (arXiv 1802.04924, equation 1): computation of each operation, its own
communication, synchronisation of its weights, and resharding between operations. Nothing overlaps.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from hag_plugin import devices
from hag_plugin.files import cache_folder, read_json, write_whole
from hag_plugin.hag.build import build_hag
from hag_plugin.limits import limits
from hag_plugin.ops.aggregate import aggregate
from hag_plugin.parallel.layouts import Message
from hag_plugin.parallel.machine.topology import Device, Topology
from hag_plugin.parallel.strategies.registry import INDEX, Terms
from hag_plugin.saved import set_module
from hag_plugin.version import __version__

MODES = ("analytic", "measured", "calibrated")
REPEATS = 5
SAMPLES = 6  # blocks that a calibration measures


class ComputeCost(Protocol):
    """Seconds that the busiest device computes."""

    def __call__(self, terms: Terms, itemsize: int) -> float:
        """Forward and backward."""
        ...


@set_module("hag_plugin.parallel")
@dataclass(frozen=True)
class Seconds:
    """Predicted time of one operation, forward and backward.

    Attributes:
        compute: of the busiest device.
        communication: of activations and their gradients.
        synchronisation: of weight gradients.
    """

    compute: float = 0.0
    communication: float = 0.0
    synchronisation: float = 0.0

    @property
    def total(self) -> float:
        """The sum: nothing is assumed to overlap."""
        return self.compute + self.communication + self.synchronisation


def message_seconds(topology: Topology, message: Message) -> float:
    """How long one collective takes."""
    P, k = len(message.sent), message.columns
    sent = int(message.sent.max(initial=0))
    if not sent:
        return 0.0
    if k == 0:
        return topology.seconds(message.collective, sent, range(P))
    members = range(k) if k > 0 else range(0, P, -k)
    return topology.seconds(message.collective, sent, members, at_once=P // len(members))


def price(topology: Topology, compute: ComputeCost, terms: Terms, itemsize: int) -> Seconds:
    """The seconds of what a configuration takes."""
    seconds = {"forward": 0.0, "backward": 0.0, "update": 0.0}
    for message in terms.messages:
        seconds[message.phase] += message_seconds(topology, message)
    return Seconds(
        compute(terms, itemsize), seconds["forward"] + seconds["backward"], seconds["update"]
    )


# Computation ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Analytic:
    """From the devices' peaks: sums are bound by memory, products by memory or arithmetic.

    All devices have equal work, so a block takes what it takes on the slowest one.

    Attributes:
        topology: whose devices they are.
        scale: measured over analytic; 1 where nothing was measured.

    Example:
        >>> from hag_plugin.parallel.strategies.registry import Product
        >>> from hag_plugin.parallel.machine.topology import preset
        >>> cost = Analytic(preset("a100x8"))
        >>> round(cost(Terms(products=[Product("forward", 1000, 1000, 1000)]), 4) * 1e6)  # us
        157
    """

    topology: Topology
    scale: float = 1.0

    def __call__(self, terms: Terms, itemsize: int) -> float:
        return self.scale * max(_block(d, terms, itemsize) for d in self.topology.kinds)


def _block(device: Device, terms: Terms, itemsize: int) -> float:
    """Seconds of a block on a device."""
    rate = device.bandwidth * device.bandwidth_efficiency
    flops = device.flops * device.flops_efficiency
    seconds = 0.0
    for a in terms.aggregations:
        index = INDEX * a.rows_read
        moved = index + (a.rows_read + a.rows_written) * a.width * itemsize
        seconds += device.overhead + moved / rate
    for p in terms.products:
        moved = p.times * (p.m * p.k + p.k * p.n + p.m * p.n) * itemsize
        seconds += device.overhead * p.times + max(p.flops / flops, moved / rate)
    for _, values in terms.streams:
        seconds += device.overhead + values * itemsize / rate
    return seconds


@dataclass
class Measured:
    """Runs each block once on the machine at hand, and keeps what it took.

    A block is all that a configuration computes, in one go. It is found again by the device, the
    versions and the shapes; large ones (`limits.measured_edges`) are run smaller and scaled.

    Attributes:
        device: where to run.
        path: the file of results; by default in the user's cache folder.
    """

    device: str = "cpu"
    path: Path | None = None
    _known: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.path = self.path or cache_folder() / f"blocks-{_machine(self.device)}.json"
        self._known = _read(self.path)

    def __call__(self, terms: Terms, itemsize: int) -> float:
        key = block_key(terms, itemsize)
        if key not in self._known:
            self._known[key] = measure_block(terms, itemsize, self.device)
            assert self.path is not None
            _write(self.path, self._known)
        return self._known[key]


def calibrated(topology: Topology, measured: Measured, blocks: Iterable[Terms], itemsize: int
               ) -> Analytic:  # fmt: skip
    """The analytic cost times the median ratio of a few measured blocks to it."""
    analytic = Analytic(topology)
    chosen = {block_key(t, itemsize): t for t in blocks if t.aggregations or t.products}
    sample = sorted(chosen.items())[:: max(len(chosen) // SAMPLES, 1)][:SAMPLES]
    ratios = [measured(t, itemsize) / analytic(t, itemsize) for _, t in sample]
    return Analytic(topology, statistics.median(ratios) if ratios else 1.0)


def block_key(terms: Terms, itemsize: int) -> str:
    """The shapes of a block."""
    sums = [(a.rows_read, a.rows_written, a.width) for a in terms.aggregations]
    products = [(p.m, p.k, p.n, p.times) for p in terms.products]
    return f"{itemsize} {sums} {products} {[v for _, v in terms.streams]}"


def measure_block(terms: Terms, itemsize: int, device: str = "cpu") -> float:
    """Seconds of a block: the median of a few runs, on random data of its shapes."""
    largest = max(
        [a.rows_read for a in terms.aggregations]
        + [p.m for p in terms.products]
        + [v // 64 for _, v in terms.streams]
        + [1]
    )
    share = min(1.0, limits.measured_edges / largest)
    dtype = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[itemsize]
    work: list[Callable[[], Any]] = []
    for a in terms.aggregations:
        work.append(_sum_of_rows(a.rows_read, a.rows_written, a.width, share, dtype, device))
    for p in terms.products:
        m = max(int(p.m * share), 1) if p.m >= p.k else p.m
        k = max(int(p.k * share), 1) if p.m < p.k else p.k
        left = torch.rand(m, k, dtype=dtype, device=device)
        right = torch.rand(k, p.n, dtype=dtype, device=device)
        work += [partial(torch.matmul, left, right)] * p.times
    for _, values in terms.streams:
        row = torch.rand(max(int(values * share) // 2, 1), dtype=dtype, device=device)
        work.append(row.relu)
    return _median_seconds(work, device) / share


def _sum_of_rows(
    reads: int, writes: int, width: int, share: float, dtype: torch.dtype, device: str
) -> Callable[[], Any]:
    edges, nodes = max(int(reads * share), 1), max(int(writes * share), 1)
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(nodes, (2, edges), generator=generator)
    hag = build_hag(edge_index, num_nodes=nodes, method="none").to(device)
    x = torch.rand(nodes, width, dtype=dtype, device=device)
    return lambda: aggregate(x, hag)


def _median_seconds(work: list[Callable[[], Any]], device: str) -> float:
    taken = []
    for repeat in range(REPEATS + 1):
        devices.synchronize(device)
        start = time.perf_counter()
        for run in work:
            run()
        devices.synchronize(device)
        if repeat:  # the first is warm-up
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


# The cache ------------------------------------------------------------------------------------


def _machine(device: str) -> str:
    name = devices.name_of(device) or f"{devices.processor()} {torch.get_num_threads()} threads"
    text = f"{name} {torch.__version__} {__version__}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _read(path: Path) -> dict[str, float]:
    try:
        document = read_json(path)
    except (OSError, ValueError):  # none yet, or damaged: measured anew
        return {}
    if not isinstance(document, dict):
        return {}
    return {k: v for k, v in document.items() if isinstance(v, float) and v > 0}


def _write(path: Path, known: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(known, indent=1).encode())
