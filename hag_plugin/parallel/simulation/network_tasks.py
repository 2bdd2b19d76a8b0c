"""The tasks of a plan for a plain torch model.

Every rank goes through the operations in their order, as `execution.network` does: it fetches
parameters, then what else the operation reads, and computes its own part. The outputs come last;
the backward pass is all of it in reverse. On a rank nothing overlaps: a task waits for the one
before it on each rank that takes part. Ranks that take no part go on, so that operations on
different ranks run at the same time. In an exchange those take part that send or receive
something; with gloo all ranks do, which waits for messages without values, too.

What is computed between the exchanges within an operation is taken to be of one size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hag_plugin.parallel.model.network import source
from hag_plugin.parallel.search.network import PASSES, NetworkSpace
from hag_plugin.parallel.simulation.tasks import (
    BACKWARD,
    FORWARD,
    SHORTEST,
    SOURCE,
    SYNCHRONISE,
    TARGET,
    TRANSFER,
    Block,
    Links,
    TaskGraph,
    resources_of,
)
from hag_plugin.parallel.strategies.placement import Placement, fetched, floating, inner, itemsize


@dataclass(frozen=True, eq=False)
class Step:
    """What ranks do next, of one operation: each computes, or they send each other something.

    Attributes:
        operation: its number.
        kind: of the tasks, an index into `KINDS`.
        seconds: that each rank computes, float64 `[P]`; 0 where it does not.
        sent: bytes from each rank to each other, int64 `[P, P]`.
        phase: under which they are counted; "" where nothing is sent.
    """

    operation: int
    kind: int
    seconds: np.ndarray
    sent: np.ndarray
    phase: str = ""

    @property
    def does(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.seconds.any() or self.sent.any())


def steps_of(space: NetworkSpace, placement: Placement) -> list[Step]:
    """A step of training, in the order in which every rank goes through it."""
    pairs = list(_pairs(space, placement))
    order = [there for there, _ in pairs] + [back for _, back in reversed(pairs)]
    return [step for step in order if step.does]


def _pairs(space: NetworkSpace, placement: Placement) -> Iterator[tuple[Step, Step]]:
    """What is done forward, in order, each with what is done for it backward."""
    network, P = space.network, space.world_size
    nothing, silence = np.zeros(P), np.zeros((P, P), np.int64)

    def computing(i: int, seconds: np.ndarray) -> tuple[Step, Step]:
        return (Step(i, FORWARD, seconds, silence),
                Step(i, BACKWARD, (PASSES - 1) * seconds, silence))  # fmt: skip

    def sending(
        i: int, there: np.ndarray, back: np.ndarray, kind: int = TRANSFER
    ) -> tuple[Step, Step]:
        phases = ("forward", "backward") if kind == TRANSFER else ("update", "update")
        return (Step(i, kind, nothing, there, phases[0]),
                Step(i, kind, nothing, back.T, phases[1]))  # fmt: skip

    for i, task in enumerate(placement.tasks):
        for places in fetched(network, task):
            reads = [task.reads[place] for place in places]
            sent = sum((r.move.between(itemsize(r.node)) for r in reads), silence)
            kind = SYNCHRONISE if reads[0].node in network.parameters else TRANSFER
            yield sending(i, sent, sent if floating(reads[0].node) else silence, kind)
        moves = inner(task.operation, task.parts, task.split)
        own = np.array([space.own(task, rank) for rank in range(P)]) / (len(moves) + 1)
        yield computing(i, own)
        size = itemsize(task.operation.inputs[0])
        between = {move: move.between(size) for move in dict.fromkeys(moves)}
        for move in moves:
            yield sending(i, between[move], silence if move.alike else between[move])
            yield computing(i, own)
    for node, move in placement.outputs.items():
        i = space.numbers[source(node)[0]]
        yield sending(i, move.between(itemsize(node)), silence)


def network_tasks(space: NetworkSpace, placement: Placement) -> TaskGraph:
    """The tasks of a step of training."""
    count = len(placement.tasks)
    links = Links(space.topology)
    kinds: list[list[int]] = [[] for _ in range(count)]
    resources: list[list[int | tuple[int, ...]]] = [[] for _ in range(count)]
    durations: list[list[float]] = [[] for _ in range(count)]
    within: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    between: dict[tuple[int, int], list[tuple[int, int]]] = {}
    last: list[tuple[int, int] | None] = [None] * space.world_size  # operation, place in its block

    def join(before: tuple[int, int], after: tuple[int, int]) -> None:
        (u, i), (v, j) = before, after
        if u == v:
            within[u].append((i, j))
        elif u < v:
            between.setdefault((u, v), []).append((SOURCE + i, TARGET + j))
        else:
            between.setdefault((v, u), []).append((TARGET + i, SOURCE + j))

    for step in steps_of(space, placement):
        of = step.operation
        for taken, seconds, ranks in _tasks(step, space, links):
            task = (of, len(kinds[of]))
            kinds[of].append(step.kind)
            resources[of].append(taken)
            durations[of].append(max(seconds, SHORTEST))
            for before in dict.fromkeys(last[rank] for rank in ranks):
                if before is not None:
                    join(before, task)
            for rank in ranks:
                last[rank] = task
    blocks = [Block(*each) for each in zip(kinds, resources, durations, within, strict=True)]
    joins = [Block((), (), (), pairs) for pairs in between.values()]
    names = [task.operation.name for task in placement.tasks]
    return TaskGraph(resources_of(space.topology), blocks, list(between), joins, names)


def _tasks(
    step: Step, space: NetworkSpace, links: Links
) -> Iterator[tuple[int | tuple[int, ...], float, list[int]]]:
    """Resources and seconds of each task of a step, and which ranks take part in it."""
    for rank in np.flatnonzero(step.seconds).tolist():
        yield rank, float(step.seconds[rank]), [rank]
    if step.sent.any():
        ranks = np.flatnonzero(step.sent.any(axis=0) | step.sent.any(axis=1)).tolist()
        if space.topology.backend == "gloo":
            ranks = list(range(space.world_size))
        busiest = int(step.sent.sum(axis=1).max())
        yield links.between(np.argwhere(step.sent).tolist()), space.all_to_all(busiest), ranks
