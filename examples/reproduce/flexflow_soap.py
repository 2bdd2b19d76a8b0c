"""Operations of a network and their SOAP configurations: what each part computes and reads.

A configuration splits an operation's output `[batch, channels, height, width]` into equal parts and
gives each part a device. Splits of the batch are the sample dimension, of height and width the
attribute dimensions, of channels the parameter dimension; the devices are the operation dimension
(FlexFlow, arXiv 1807.05358, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import permutations, product

Interval = tuple[int, int]
Degrees = tuple[int, int, int, int]
SPACES = ("unplaced", "grids", "any")  # each a part of the next


@dataclass(frozen=True)
class Read:
    """How an operation reads one of its inputs.

    Attributes:
        channels: "same" as it writes, "all", or the channel of the output at which this input
            starts (concatenation).
        space: "all", or (kernel, stride, padding) of height and of width.
        last: of the first dimension of space, the last row alone: the state after a block of time
            steps.
        weights: it reads the weights of the input, not what it computes: another block of time
            steps of the same layer. Gradients go the other way.
    """

    channels: str | int = "all"
    space: str | tuple[tuple[int, int, int], tuple[int, int, int]] = ((1, 1, 0), (1, 1, 0))
    last: bool = False
    weights: bool = False


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        name: of it.
        kind: conv, pool, linear, concat, add, embedding, lstm, attention.
        shape: of the output: batch, channels, height, width.
        inputs: operations that come before, by number, and how each is read.
        flops: of the forward pass, of the whole batch.
        weights: parameters.
        splits: the dimensions that may be split, out of "nchw".
        exchanges: time steps inside, where each needs the whole state of the one before.
    """

    name: str
    kind: str
    shape: tuple[int, int, int, int]
    inputs: tuple[tuple[int, Read], ...] = ()
    flops: float = 0.0
    weights: float = 0.0
    splits: str = "nchw"
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
        devices: of the parts, width running fastest, then height, then channels; each one once.
    """

    degrees: Degrees
    devices: tuple[int, ...]

    @property
    def parts(self) -> int:
        """How many there are."""
        return len(self.devices)

    def __str__(self) -> str:
        splits = [f"{name}={d}" for name, d in zip("nchw", self.degrees, strict=True) if d > 1]
        where = " ".join(map(str, self.devices))
        return f"{' '.join(splits) or 'whole'} on {where}"


def configs(operation: Operation, num_devices: int, space: str) -> list[Config]:
    """All configurations of a space, one of `SPACES`.

    "unplaced" is OptCNN's: degrees that are powers of two, on the first devices, in order. "grids"
    has FlexFlow's operation dimension: parts go to any aligned grid of devices, neighbours or one
    of every 2, 4, ... devices, as one in each node; and any dimension may run along neighbours.
    "any" has all degrees, and all devices in all orders: of few devices, there are that many.
    """
    found: dict[Config, None] = {}
    for degrees in _degrees(operation, num_devices, space):
        parts = math.prod(degrees)
        if space == "unplaced":
            found[Config(degrees, tuple(range(parts)))] = None
            continue
        if space == "any":
            found |= {
                Config(degrees, order): None for order in permutations(range(num_devices), parts)
            }
            continue
        for order in _orders(degrees):
            stride = 1
            while parts * stride <= num_devices:
                for start in range(0, num_devices, parts * stride):
                    for offset in range(start, start + stride):
                        devices = tuple(offset + stride * i for i in order)
                        found[Config(degrees, devices)] = None
                stride *= 2
    return list(found)


def _degrees(operation: Operation, num_devices: int, space: str) -> Iterator[Degrees]:
    possible = [1 << i for i in range(num_devices.bit_length())]
    if space == "any":
        possible = list(range(1, num_devices + 1))
    choices = [
        [d for d in possible if d <= size] if name in operation.splits else [1]
        for name, size in zip("nchw", operation.shape, strict=True)
    ]
    for degrees in product(*choices):
        if math.prod(degrees) <= num_devices:
            yield degrees


@lru_cache(maxsize=1000)
def _orders(degrees: Degrees) -> tuple[tuple[int, ...], ...]:
    """For each order of the split dimensions, the place of each part in a row of devices."""
    split = [axis for axis in range(4) if degrees[axis] > 1]
    found: dict[tuple[int, ...], None] = {}
    for slowest_first in permutations(split):
        steps, step = [0, 0, 0, 0], 1
        for axis in reversed(slowest_first):
            steps[axis] = step
            step *= degrees[axis]
        indices = product(*(range(d) for d in degrees))
        found[tuple(sum(i * s for i, s in zip(at, steps, strict=True)) for at in indices)] = None
    return tuple(found)


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
    operation: Operation, read: Read, source: Operation, degrees: Degrees
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
        if read.last and axis == 0:
            space.append(((size - 1, size),) * degrees[2])
            continue
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
    degrees: Degrees,
    target_degrees: Degrees,
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
        layers: operations of a layer; they share its weights, which are the first one's.
    """

    name: str
    operations: list[Operation] = field(default_factory=list)
    layers: list[list[int]] = field(default_factory=list)

    def add(self, *operations: Operation) -> list[int]:
        """Appends a layer of one or more operations; returns their numbers."""
        first = len(self.operations)
        self.operations += operations
        self.layers.append(list(range(first, len(self.operations))))
        return self.layers[-1]

    @property
    def parameters(self) -> float:
        """Of all layers."""
        return sum(self.operations[layer[0]].weights for layer in self.layers)

    @property
    def flops(self) -> float:
        """Of the forward pass."""
        return sum(operation.flops for operation in self.operations)


def by_layer(network: Network, chosen: Sequence[Config]) -> list[Config]:
    """A configuration for each operation, from one for each layer."""
    found = [chosen[0]] * len(network.operations)
    for layer, config in zip(network.layers, chosen, strict=True):
        for node in layer:
            found[node] = config
    return found
