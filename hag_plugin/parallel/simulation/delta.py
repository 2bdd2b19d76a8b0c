"""Delta simulation: after one operation's tasks are replaced, the same schedule for less work.

A schedule up to a time T is decided by the tasks that become ready before T. A replacement changes
nothing before the earliest time at which a task that went away was ready, or one that came or now
waits for something else can be. The simulator keeps snapshots of its state at fixed times, takes
the last one before that time, corrects it for the tasks that changed and runs on from there. Where
its state meets that of the old simulation again at a snapshot, the rest is copied.

Results are those of `simulator.simulate`, to the last bit: both schedule tasks in the order of
(ready, key), with the same additions and comparisons (FlexFlow, arXiv 1807.05358, section 5.3,
Algorithm 2, has the same contract; it moves tasks one by one through the old timeline instead).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from heapq import heapify

from hag_plugin.parallel.simulation.simulator import (
    NEVER,
    Progress,
    Schedule,
    advance,
    begin,
    check_finished,
    simulate,
)
from hag_plugin.parallel.simulation.tasks import Block, Change, TaskGraph

MOST_SNAPSHOTS, TASKS_A_SNAPSHOT = 16, 100
DRIFT = 0.75  # snapshots are laid anew once the makespan is this much shorter, or longer


@dataclass
class Snapshot:
    """The state of a simulation once all tasks that are ready before `time` are scheduled.

    Attributes:
        scheduled: how many tasks those are.
        stale: tasks for which it does not hold any more, because the graph changed since.
    """

    time: float
    heap: list[tuple[float, int, int]]
    pending: list[int]
    partial: list[float]
    available: list[float]
    scheduled: int
    stale: set[int] = field(default_factory=set)


@dataclass
class _Run:
    """One finished simulation."""

    ready: list[float]
    start: list[float]
    makespan: float
    snapshots: list[Snapshot]


@dataclass
class Work:
    """What delta simulation did, in tasks; beside what full simulations would have done.

    Attributes:
        scheduled: tasks that were scheduled.
        corrected: tasks that were corrected in a snapshot.
        full: tasks that as many full simulations would have scheduled.
        fell_back: proposals that were simulated from the start.
        rebuilt: proposals that changed most tasks, and whose graph was built from the start.
        met: proposals whose end was copied from the old simulation.
        proposals: in all.
    """

    scheduled: int = 0
    corrected: int = 0
    full: int = 0
    fell_back: int = 0
    rebuilt: int = 0
    met: int = 0
    proposals: int = 0


class DeltaSimulator:
    """Simulates a graph again and again as its operations are replaced.

    Each `propose` must be followed by `accept` or `reject`, which takes the replacement back.

    Args:
        graph: the task graph; it is this simulator's to change from now on.
        snapshots: how many states to keep; by default one for every `TASKS_A_SNAPSHOT` tasks, and
            not more than `MOST_SNAPSHOTS`.
        makespan: of the graph's schedule, if it is known.
        work: where to count; by default anew.

    Example:
        >>> from hag_plugin.parallel.simulation.tasks import Block, TaskGraph
        >>> one, two, edge = Block([0], [0], [1.0]), Block([0], [0], [2.0]), Block([], [], [])
        >>> simulator = DeltaSimulator(TaskGraph(["gpu"], [one, two], [(0, 1)], [edge]))
        >>> simulator.makespan, simulator.propose({1: one}, {0: edge})
        (3.0, 2.0)
        >>> simulator.reject(); simulator.makespan
        3.0
    """

    def __init__(
        self,
        graph: TaskGraph,
        snapshots: int | None = None,
        makespan: float | None = None,
        work: Work | None = None,
    ) -> None:
        if snapshots is None:
            snapshots = max(1, min(MOST_SNAPSHOTS, graph.num_tasks // TASKS_A_SNAPSHOT))
        if snapshots < 1:
            raise ValueError(f"snapshots is {snapshots}; expected 1 or more")
        self.graph = graph
        self.work = Work() if work is None else work
        self._count = snapshots
        self._lay(simulate(graph).makespan if makespan is None else makespan)
        self._current = self._finish(begin(graph), [])
        self._proposed: tuple[Change, _Run, set[int]] | None = None

    @property
    def makespan(self) -> float:
        """Seconds of the current graph's schedule."""
        return self._current.makespan

    @property
    def schedule(self) -> Schedule:
        """The current graph's schedule; good until the next proposal."""
        run = self._current
        return Schedule(self.graph, run.ready, run.start, run.makespan)

    # Proposals ------------------------------------------------------------------------------------

    def propose(self, nodes: Mapping[int, Block], edges: Mapping[int, Block]) -> float:
        """Replaces operations and their edges (see `TaskGraph.replace`); returns the makespan."""
        if self._proposed is not None:
            raise RuntimeError("the last proposal was neither accepted nor rejected")
        graph = self.graph
        change = graph.replace(nodes, edges)
        changed = {*change.removed, *change.added, *change.touched}
        try:
            run = self._simulate(change, changed)
        except BaseException:
            graph.undo(change)
            raise
        self.work.proposals += 1
        self.work.full += graph.num_tasks
        self._proposed = change, run, changed
        return run.makespan

    def accept(self) -> None:
        """Makes the proposal the current graph."""
        _, run, changed = self._take()
        for snapshot, old in zip(run.snapshots, self._current.snapshots, strict=False):
            if snapshot is not old:
                break  # it and those after it were taken after the change
            snapshot.stale |= changed
        self._current = run
        saved = self.work.full - self.work.scheduled - self.work.corrected
        drifted = not DRIFT * self._laid <= run.makespan <= self._laid / DRIFT
        if drifted and saved > self.graph.num_tasks:
            self._lay(run.makespan)
            progress = begin(self.graph)
            self._current = self._finish(progress, [])
            self.work.scheduled += progress.scheduled

    def reject(self) -> None:
        """Takes the proposal back."""
        self.graph.undo(self._take()[0])

    def _take(self) -> tuple[Change, _Run, set[int]]:
        if self._proposed is None:
            raise RuntimeError("there is no proposal to accept or reject")
        proposed, self._proposed = self._proposed, None
        return proposed

    # Simulation -----------------------------------------------------------------------------------

    def _lay(self, makespan: float) -> None:
        """Lays the times of the snapshots."""
        self._laid = makespan
        self._times = [makespan * i / (self._count + 1) for i in range(1, self._count + 1)]

    def _simulate(self, change: Change, changed: set[int]) -> _Run:
        place = bisect_right(self._times, self._earliest(change))
        kept = self._current.snapshots[:place]
        progress = None
        if kept:
            stale = kept[-1].stale | changed
            if len(stale) < kept[-1].scheduled:  # else a simulation from the start is less work
                self.work.corrected += len(stale)
                progress = self._resume(kept[-1], stale, change)
        if progress is None:
            self.work.fell_back += 1
            kept = []
            progress = begin(self.graph)
        before = progress.scheduled
        run = self._finish(progress, kept, change)
        self.work.scheduled += progress.scheduled - before
        return run

    def _earliest(self, change: Change) -> float:
        """A time before which the change changes nothing."""
        graph, old = self.graph, self._current
        ready, start = old.ready, old.start
        added = set(change.added)
        earliest = min((ready[task] for task in change.removed), default=NEVER)
        for task in change.touched:
            earliest = min(earliest, ready[task])
        for task in (*change.added, *change.touched):
            latest = 0.0
            for before in graph.predecessors[task]:
                if before in added:
                    break  # it is ready after that one, which is in this loop, too
                latest = max(latest, start[before] + graph.duration[before])
            else:
                earliest = min(earliest, latest)
        return earliest

    def _resume(self, snapshot: Snapshot, stale: Iterable[int], change: Change) -> Progress:
        """The state at a snapshot, as it is in the graph as changed."""
        graph, old, time = self.graph, self._current, snapshot.time
        size = len(graph.key)
        pending = _padded(snapshot.pending, -1, size)
        partial = _padded(snapshot.partial, -1.0, size)
        ready, start = _padded(old.ready, 0.0, size), _padded(old.start, 0.0, size)
        stale, added = set(stale), set(change.added)
        heap = [item for item in snapshot.heap if item[2] not in stale]
        for task in stale:  # none was scheduled by then
            key = graph.key[task]
            count, latest = -1, -1.0
            if key >= 0:
                count, latest = 0, 0.0
                for before in graph.predecessors[task]:
                    if before in added or ready[before] >= time:
                        count += 1
                    else:
                        latest = max(latest, start[before] + graph.duration[before])
                if not count:
                    heap.append((latest, key, task))
            pending[task], partial[task] = count, latest
        heapify(heap)
        available = list(snapshot.available)
        return Progress(heap, pending, partial, available, ready, start, snapshot.scheduled)

    def _finish(
        self, progress: Progress, kept: list[Snapshot], change: Change | None = None
    ) -> _Run:
        """Runs on to the end, taking the snapshots that come after those that were kept."""
        graph = self.graph
        snapshots = list(kept)
        for number in range(len(kept), len(self._times)):
            advance(graph, progress, self._times[number])
            if change is not None and self._meets(progress, number, change):
                return self._copy_rest(progress, number, snapshots)
            snapshots.append(Snapshot(
                self._times[number], list(progress.heap), list(progress.pending),
                list(progress.partial), list(progress.available), progress.scheduled,
            ))  # fmt: skip
        advance(graph, progress)
        check_finished(graph, progress.pending)
        makespan = max(progress.available, default=0.0)
        return _Run(progress.ready, progress.start, makespan, snapshots)

    def _meets(self, progress: Progress, number: int, change: Change) -> bool:
        """Whether from this snapshot's time on all runs as in the old simulation."""
        old = self._current
        if number >= len(old.snapshots) or old.snapshots[number].stale:
            return False
        snapshot = old.snapshots[number]
        time, size = snapshot.time, len(progress.pending)
        for a, b in zip(progress.available, snapshot.available, strict=True):
            if a != b and (a > time or b > time):
                return False
        return (
            all(old.ready[task] < time for task in change.removed)
            and progress.pending == _padded(snapshot.pending, -1, size)
            and progress.partial == _padded(snapshot.partial, -1.0, size)
        )

    def _copy_rest(self, progress: Progress, number: int, snapshots: list[Snapshot]) -> _Run:
        """The rest of the old run behind what was simulated anew."""
        old, graph = self._current, self.graph
        self.work.met += 1
        free = list(progress.available)
        for task, count in enumerate(progress.pending):
            if count >= 0:
                progress.ready[task], progress.start[task] = old.ready[task], old.start[task]
                for resource in graph.occupied(task):
                    free[resource] = max(free[resource], old.start[task] + graph.duration[task])
        met = old.snapshots[number]
        shift = progress.scheduled - met.scheduled
        rest = []
        for later in old.snapshots[number:]:
            # A resource that has not worked since is free from when it is now.
            available = [
                ours if now == then else now
                for ours, then, now in zip(
                    progress.available, met.available, later.available, strict=True
                )
            ]
            scheduled = later.scheduled + shift
            rest.append(replace(later, available=available, scheduled=scheduled, stale=set()))
        makespan = max(free, default=0.0)
        return _Run(progress.ready, progress.start, makespan, [*snapshots, *rest])


def _padded(values: list, fill: float, size: int) -> list:  # type: ignore[type-arg]
    """A copy, for numbers of tasks that came since."""
    return values + [fill] * (size - len(values))
