"""Operations of a network and their SOAP configurations: what each part computes and reads.

A configuration splits an operation's output `[batch, channels, height, width]` into equal parts and
gives each part a device. Splits of the batch are the sample dimension, of height and width the
attribute dimensions, of channels the parameter dimension; the devices are the operation dimension
(FlexFlow, arXiv 1807.05358, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product

Interval = tuple[int, int]


@dataclass(frozen=True)
class Read:
    """How an operation reads one of its inputs.

    Attributes:
        channels: "same" as it writes, "all", or the channel of the output at which this input
            starts (concatenation).
        space: "all", or (kernel, stride, padding) of height and of width.
        steps: "same" time steps, "all" of them before the first of its own, or the "last" alone.
    """

    channels: str | int = "all"
    space: str | tuple[tuple[int, int, int], tuple[int, int, int]] = ((1, 1, 0), (1, 1, 0))
    steps: str = "same"


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        name: of it.
        kind: conv, pool, linear, concat, add, embedding, lstm, attention.
        shape: of the output: batch, channels, height, width.
        inputs: operations that come before, by number, and how each is read.
        flops: of the forward pass, of the whole batch and all time steps.
        weights: parameters.
        splits: the dimensions that may be split, out of "nchw".
        steps: blocks of time steps, one after the other; `shape` and `flops` are of all of them.
        exchanges: time steps in a block, where each needs the whole state of the one before.
    """

    name: str
    kind: str
    shape: tuple[int, int, int, int]
    inputs: tuple[tuple[int, Read], ...] = ()
    flops: float = 0.0
    weights: float = 0.0
    splits: str = "nchw"
    steps: int = 1
    exchanges: int = 0

    @property
    def elements(self) -> int:
        """Of the output."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Config:
    """How one operation is split, and where its parts run.

    Attributes:
        degrees: parts of batch, channels, height, width.
        first: device of the first part.
        stride: from one part's device to the next part's.
    """

    degrees: tuple[int, int, int, int]
    first: int = 0
    stride: int = 1

    @property
    def parts(self) -> int:
        """How many there are."""
        return math.prod(self.degrees)

    def device(self, part: int) -> int:
        """Where a part runs."""
        return self.first + part * self.stride

    @property
    def devices(self) -> list[int]:
        """Of all parts."""
        return [self.device(part) for part in range(self.parts)]

    def __str__(self) -> str:
        splits = [f"{name}={d}" for name, d in zip("nchw", self.degrees, strict=True) if d > 1]
        last = self.device(self.parts - 1)
        where = f"device {self.first}" if self.parts == 1 else f"devices {self.first}-{last}"
        by = f" by {self.stride}" if self.parts > 1 and self.stride > 1 else ""
        return f"{' '.join(splits) or 'whole'} on {where}{by}"


def configs(
    operation: Operation, num_devices: int, *, placed: bool, group: int = 1
) -> list[Config]:
    """All configurations in powers of two.

    Args:
        operation: what is split.
        num_devices: of the machine.
        placed: whether parts may start at other devices than the first: the operation dimension,
            which FlexFlow has and OptCNN has not.
        group: devices of a node. With `placed`, one part a node is a placement, too.
    """
    found = []
    for degrees in _degrees(operation, num_devices):
        parts = math.prod(degrees)
        starts = range(0, num_devices, parts) if placed else range(1)
        found += [Config(degrees, start) for start in starts]
        if placed and 1 < group < num_devices and parts == num_devices // group:
            found += [Config(degrees, start, group) for start in range(group)]
    return found


def _degrees(operation: Operation, num_devices: int) -> Iterator[tuple[int, int, int, int]]:
    powers = [1 << i for i in range(num_devices.bit_length())]
    choices = [
        [d for d in powers if d <= size] if name in operation.splits else [1]
        for name, size in zip("nchw", operation.shape, strict=True)
    ]
    for degrees in product(*choices):
        if math.prod(degrees) <= num_devices:
            yield degrees


@lru_cache(maxsize=100_000)
def intervals(size: int, degree: int) -> tuple[Interval, ...]:
    """What each part of a dimension holds; parts differ by one at most."""
    return tuple((i * size // degree, (i + 1) * size // degree) for i in range(degree))


def largest_share(operation: Operation, config: Config) -> float:
    """The share of the output that the largest part holds."""
    share = 1.0
    for size, degree in zip(operation.shape, config.degrees, strict=True):
        share *= math.ceil(size / degree) / size
    return share


def reads(
    operation: Operation, read: Read, source: Operation, degrees: tuple[int, int, int, int]
) -> tuple[tuple[Interval, ...], ...]:
    """For each dimension of the input, what each part of that dimension of the output reads."""
    batch = intervals(operation.shape[0], degrees[0])
    channels: tuple[Interval, ...]
    written = intervals(operation.shape[1], degrees[1])
    if read.channels == "all":
        channels = ((0, source.shape[1]),) * degrees[1]
    elif read.channels == "same":
        channels = written
    else:
        offset = int(read.channels)
        channels = tuple((max(a - offset, 0), min(b - offset, source.shape[1])) for a, b in written)
    space = []
    for axis in (0, 1):
        size = source.shape[2 + axis]
        if isinstance(read.space, str):
            space.append(((0, size),) * degrees[2 + axis])
            continue
        kernel, stride, padding = read.space[axis]
        space.append(tuple(
            (max(a * stride - padding, 0), min((b - 1) * stride - padding + kernel, size))
            for a, b in intervals(operation.shape[2 + axis], degrees[2 + axis])
        ))  # fmt: skip
    return batch, channels, space[0], space[1]


@lru_cache(maxsize=50_000)
def overlaps(
    source: Operation,
    target: Operation,
    read: Read,
    degrees: tuple[int, int, int, int],
    target_degrees: tuple[int, int, int, int],
) -> list[tuple[int, int, int]]:
    """(part of the source, part of the target, elements that pass between them)."""
    needed = reads(target, read, source, target_degrees)
    shared: list[list[list[tuple[int, int]]]] = []  # by dimension and part of the target
    for axis in range(4):
        held = intervals(source.shape[axis], degrees[axis])
        shared.append([
            [(i, min(b, d) - max(a, c)) for i, (a, b) in enumerate(held) if max(a, c) < min(b, d)]
            for c, d in needed[axis]
        ])  # fmt: skip
    found = []
    n, c, h, w = target_degrees
    for part, (i, j, k, m) in enumerate(product(range(n), range(c), range(h), range(w))):
        for x, nx in shared[0][i]:
            for y, ny in shared[1][j]:
                for z, nz in shared[2][k]:
                    base = ((x * degrees[1] + y) * degrees[2] + z) * degrees[3]
                    size = nx * ny * nz
                    for u, nu in shared[3][m]:
                        found.append((base + u, part, size * nu))
    return found


@dataclass
class Network:
    """Operations in an order in which they can run.

    Attributes:
        name: of it.
        operations: in order.
    """

    name: str
    operations: list[Operation] = field(default_factory=list)

    def add(self, operation: Operation) -> int:
        """Appends an operation; returns its number."""
        self.operations.append(operation)
        return len(self.operations) - 1

    @property
    def parameters(self) -> float:
        """Of all operations."""
        return sum(operation.weights for operation in self.operations)

    @property
    def flops(self) -> float:
        """Of the forward pass."""
        return sum(operation.flops for operation in self.operations)
