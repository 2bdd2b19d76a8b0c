"""Where the tensors of a plain torch model lie, given how its operations are split.

The planner prices what stands here and the executor does it: which boxes move before each
operation, and where parameters are kept. A parameter is kept in a block for each rank, cut along
the dimension in which its first operation reads it; each operation fetches what it reads of it, and
gradients go the same way back. That sends what summing the gradients of copies would, and keeps no
copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from hag_plugin.parallel.layouts import chunk_sizes
from hag_plugin.parallel.model.network import Network, Operation, Shape, source
from hag_plugin.parallel.ranks.boxes import Box, Boxes, Move, volume, whole
from hag_plugin.parallel.strategies.axes import Parts, Split, check, nodes_of, parts_of, rule_of


@dataclass(frozen=True)
class Placed:
    """Where a tensor lies.

    Attributes:
        boxes: that ranks own; of partial sums with a dimension more in front.
        partial: how many partial sums there are; 0 where it is the tensor itself.
    """

    boxes: Boxes
    partial: int = 0

    def move(self, wanted: Boxes, alike: bool = False) -> Move:
        """To what ranks read."""
        if self.partial:
            wanted = tuple(None if b is None else ((0, self.partial), *b) for b in wanted)
        return Move(self.boxes, wanted, alike)


@dataclass(frozen=True, eq=False)
class Read:
    """How an operation gets one of its inputs.

    Attributes:
        node: the input.
        boxes: what ranks read.
        placed: where it lies; None: every rank has all of it.
    """

    node: fx.Node
    boxes: Boxes
    placed: Placed | None

    @property
    def move(self) -> Move:
        """What is sent; of something that not every rank has."""
        assert self.placed is not None
        return self.placed.move(self.boxes)


@dataclass(frozen=True, eq=False)
class Task:
    """An operation, split.

    Attributes:
        operation: it.
        split: how.
        parts: what each rank reads and makes.
        reads: of each input, and of what is read again.
    """

    operation: Operation
    split: Split
    parts: Parts
    reads: tuple[Read, ...]


@dataclass(frozen=True, eq=False)
class Placement:
    """A network, split.

    Attributes:
        tasks: of the operations.
        weights: of each parameter, the dimension that it is cut along.
        outputs: of each tensor that the model returns, how all ranks get it.
    """

    tasks: tuple[Task, ...]
    weights: dict[str, int]
    outputs: dict[fx.Node, Move]


def weight_dim(boxes: Boxes, shape: Shape) -> int:
    """The dimension along which a parameter is kept: the first that is read in parts, else 0."""
    parts = [box for box in boxes if box is not None]
    for dim, size in enumerate(shape):
        if any(box[dim] != (0, size) for box in parts):
            return dim
    return 0


def kept(shape: Shape, dim: int, world_size: int) -> Placed:
    """A parameter in a block for each rank, as `torch.chunk` cuts."""
    ends = np.cumsum(chunk_sizes(shape[dim], world_size)).tolist()
    boxes = []
    for first, end in zip([0, *ends[:-1]], ends, strict=True):
        boxes.append(tuple((first, end) if d == dim else (0, n) for d, n in enumerate(shape)))
    return Placed(tuple(boxes))


def sums(parts: Parts, axis: int) -> Move:
    """Partial sums `[1, b - a]` of all parts, by the interval of one axis, to all in that interval:
    `[count, b - a]`.
    """
    counts: dict[tuple[int, int], int] = {}
    owned: list[Box | None] = []
    for of in parts.part:
        if of is None:
            owned.append(None)
            continue
        k = counts[of[axis]] = counts.get(of[axis], -1) + 1
        owned.append(((k, k + 1), of[axis]))
    count = max(counts.values()) + 1
    return Move(
        tuple(owned), tuple(None if of is None else ((0, count), of[axis]) for of in parts.part)
    )


def collected(parts: Parts, axis: int, size: int) -> Move:
    """What parts have alike by the interval of one axis, `[1, b - a]`, to `[1, size]` on all ranks:
    from the first part in each interval.
    """
    first: set[tuple[int, int]] = set()
    owned: list[Box | None] = []
    for of in parts.part:
        new = of is not None and of[axis] not in first
        owned.append(((0, 1), of[axis]) if of is not None and new else None)
        first |= {of[axis]} if of is not None else set()
    return Move(tuple(owned), (((0, 1), (0, size)),) * len(parts.part), alike=True)


def states(parts: Parts, hidden: int) -> Move:
    """The state of a step of an LSTM, `[samples, hidden]`, in parts to the whole of the samples."""
    return Move(
        tuple(None if of is None else (of[0], of[1]) for of in parts.part),
        tuple(None if of is None else (of[0], (0, hidden)) for of in parts.part),
    )


def together(operation: Operation, split: Split) -> bool:
    """Whether ranks send each other something while an operation runs: all take part then."""
    if operation.kind == "lstm":
        return dict(split.parts).get("channel", 1) > 1
    return operation.kind == "batch_norm"


def inner(operation: Operation, parts: Parts, split: Split) -> list[Move]:
    """What ranks send each other while an operation runs, in training."""
    if operation.kind == "lstm" and together(operation, split):
        layers, batch_first = operation.node.args[4], operation.node.args[8]
        steps = operation.shapes[0][1 if batch_first else 0]
        return [states(parts, operation.shapes[1][-1])] * (steps * layers)  # type: ignore[operator]
    if operation.kind != "batch_norm" or not operation.node.args[5]:
        return []
    channels = operation.shapes[0][1]
    running = 2 if operation.node.args[3] is not None else 0
    return [sums(parts, 1)] * 2 + [collected(parts, 1, channels)] * running


def default() -> Split:
    """Of an operation of which nothing is said: whole, on the first rank."""
    return Split((), (0,))


def place(
    network: Network,
    splits: Mapping[str, Split],
    world_size: int,
    weights: Mapping[str, int] | None = None,
) -> Placement:
    """Where everything lies.

    Args:
        network: the operations.
        splits: of each by its name; others are whole on the first rank.
        world_size: ranks.
        weights: how parameters are kept, where that is so already.

    Raises:
        ValueError: a split is not possible; names the operation and what is.
    """
    made: dict[tuple[fx.Node, int], Placed] = {}
    weights = dict(weights or {})
    tasks = []
    for operation in network.operations:
        rule, split = rule_of(operation), splits.get(operation.name, default())
        check(split, operation, rule, world_size)
        parts = parts_of(operation, rule, split, world_size)
        reads = []
        for node, boxes in zip(nodes_of(operation, rule), parts.reads, strict=True):
            placed = None
            if node in network.parameters:
                shape = tuple(node.meta["val"].shape)
                name = network.parameters[node]
                dim = weights.setdefault(name, weight_dim(boxes, shape))
                placed = kept(shape, dim, world_size)
            elif node not in network.everywhere:
                placed = made[source(node)]
            reads.append(Read(node, boxes, placed))
        for i, boxes in enumerate(parts.writes):
            made[operation.node, i] = Placed(boxes, parts.partial)
        tasks.append(Task(operation, split, parts, tuple(reads)))
    outputs = {}
    for node in network.outputs:
        everything = (whole(node.meta["val"].shape),) * world_size
        outputs[node] = made[source(node)].move(everything, alike=True)
    return Placement(tuple(tasks), weights, outputs)


def fetched(network: Network, task: Task) -> list[tuple[int, ...]]:
    """What an operation fetches, in order: each at once, as places among its reads. Parameters go
    first; what is fetched at once is of one type.
    """
    kinds: dict[tuple[bool, torch.dtype], list[int]] = {}
    for place_, read in enumerate(task.reads):
        if read.placed is not None:
            kind = (read.node not in network.parameters, read.node.meta["val"].dtype)
            kinds.setdefault(kind, []).append(place_)
    return [tuple(kinds[kind]) for kind in sorted(kinds, key=lambda kind: kind[0])]


def floating(node: fx.Node) -> bool:
    """Whether a tensor may have a gradient."""
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype.is_floating_point


def itemsize(node: fx.Node) -> int:
    """Bytes a value."""
    return int(node.meta["val"].dtype.itemsize)


def sent(read: Read) -> np.ndarray:
    """Bytes that each rank sends for an input, int64 `[2, P]`: forward and backward."""
    assert read.placed is not None
    found = read.move.sent(itemsize(read.node))
    return found if floating(read.node) else found * np.array([[1], [0]])


def held(boxes: Boxes, size: int) -> int:
    """Bytes of the largest box."""
    return max(volume(box) for box in boxes) * size
