"""Simulates a task graph: when each task is ready, starts and ends.

Devices and links are first in, first out: each runs its tasks in the order in which they become
ready, the smaller key first where two are ready at once. So the schedule is defined by the graph
alone: ready = the latest end of what a task waits for, start = max(ready, ends of the tasks before
it on its resources), end = start + duration (FlexFlow, arXiv 1807.05358, section 5.2, Algorithm 1;
there a task has one resource). Computation and communication overlap because links are resources of
their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from hag_plugin.notebook import html_table
from hag_plugin.parallel.simulation.tasks import KINDS, TaskGraph
from hag_plugin.saved import set_module
from hag_plugin.units import milliseconds

NEVER = float("inf")


@dataclass
class Progress:
    """How far a simulation has come.

    Attributes:
        heap: (ready, key, task) of tasks that wait for nothing but their resource.
        pending: how many tasks each still waits for; -1 once it is scheduled.
        partial: when those that it no longer waits for end; -1 once it is scheduled.
        available: when each resource is free.
        ready: seconds, of scheduled tasks.
        start: seconds, of scheduled tasks.
        scheduled: how many tasks this simulation has scheduled.
    """

    heap: list[tuple[float, int, int]]
    pending: list[int]
    partial: list[float]
    available: list[float]
    ready: list[float]
    start: list[float]
    scheduled: int = 0


def begin(graph: TaskGraph) -> Progress:
    """The state before anything has run."""
    keys = graph.key
    pending = [
        len(before) if key >= 0 else -1
        for before, key in zip(graph.predecessors, keys, strict=True)
    ]
    partial = [0.0 if key >= 0 else -1.0 for key in keys]
    heap = [(0.0, keys[task], task) for task, count in enumerate(pending) if count == 0]
    heapify(heap)
    size = len(keys)
    return Progress(
        heap, pending, partial, [0.0] * len(graph.resources), [0.0] * size, [0.0] * size
    )


def advance(graph: TaskGraph, progress: Progress, until: float = NEVER) -> None:
    """Schedules all tasks that become ready before `until`, in the order of (ready, key)."""
    heap, pending, partial = progress.heap, progress.pending, progress.partial
    available, ready_of, start_of = progress.available, progress.ready, progress.start
    resource_of, resource_sets, duration_of = graph.resource, graph.resource_sets, graph.duration
    successors, key_of = graph.successors, graph.key
    count = 0
    while heap:
        first = heappop(heap)
        ready, _, task = first
        if ready >= until:
            heappush(heap, first)
            break
        count += 1
        resource = resource_of[task]
        if resource >= 0:
            start = available[resource]
            if start < ready:
                start = ready
            end = start + duration_of[task]
            available[resource] = end
        else:
            taken = resource_sets[~resource]
            start = ready
            for one in taken:
                if available[one] > start:
                    start = available[one]
            end = start + duration_of[task]
            for one in taken:
                available[one] = end
        ready_of[task] = ready
        start_of[task] = start
        pending[task] = -1
        partial[task] = -1.0
        for after in successors[task]:
            if end > partial[after]:
                partial[after] = end
            left = pending[after] - 1
            pending[after] = left
            if not left:
                heappush(heap, (partial[after], key_of[after], after))
    progress.scheduled += count


@set_module("hag_plugin.parallel")
@dataclass(frozen=True)
class Schedule:
    """When each task of a graph runs. Lists are indexed by the task's number.

    Attributes:
        graph: what was simulated, as it was then.
        ready: seconds at which all that a task waits for has ended.
        start: seconds at which it starts.
        makespan: seconds until the last one ends.
    """

    graph: TaskGraph
    ready: list[float]
    start: list[float]
    makespan: float

    def end(self, task: int) -> float:
        """Seconds at which a task ends."""
        return self.start[task] + self.graph.duration[task]

    def busy(self) -> dict[str, float]:
        """Seconds that each resource works."""
        total = dict.fromkeys(self.graph.resources, 0.0)
        for task in self.graph.tasks():
            for resource in self.graph.occupied(task):
                total[self.graph.resources[resource]] += self.graph.duration[task]
        return total

    def seconds_by_kind(self) -> dict[str, float]:
        """Seconds of all tasks together, by kind."""
        total = dict.fromkeys(KINDS, 0.0)
        for task in self.graph.tasks():
            total[KINDS[self.graph.kind[task]]] += self.graph.duration[task]
        return total

    def _repr_html_(self) -> str:
        busy = [
            (
                name,
                milliseconds(seconds),
                f"{seconds / self.makespan:.0%}" if self.makespan else "-",
            )
            for name, seconds in self.busy().items()
        ]
        above = f"{len(self.start):,} tasks, {milliseconds(self.makespan)} ms (simulated)"
        return html_table([("resource", "busy, ms", "of the time"), *busy], above=above)

    def check(self) -> None:
        """Checks the schedule against the graph, from the definition.

        Raises:
            ValueError: a task starts before its inputs end, or while a resource of its works, or
                out of turn.
        """
        graph = self.graph
        free = [0.0] * len(graph.resources)
        for task in sorted(graph.tasks(), key=lambda t: (self.ready[t], graph.key[t])):
            ready = max((self.end(p) for p in graph.predecessors[task]), default=0.0)
            start = max(ready, *(free[resource] for resource in graph.occupied(task)))
            if (self.ready[task], self.start[task]) != (ready, start):
                raise ValueError(
                    f"{graph.label(task)} is ready at {self.ready[task]} s and starts at "
                    f"{self.start[task]} s; expected {ready} s and {start} s"
                )
            for resource in graph.occupied(task):
                free[resource] = self.end(task)
        if self.makespan != max(free, default=0.0):
            raise ValueError(f"makespan is {self.makespan} s; expected {max(free)} s")


def simulate(graph: TaskGraph) -> Schedule:
    """Runs a task graph on its devices and links.

    Raises:
        ValueError: tasks wait for each other in a circle.

    Example:
        >>> from hag_plugin.parallel.simulation.tasks import Task, TaskGraph
        >>> tasks = [Task("gpu", 2.0), Task("link", 3.0, after=[0]), Task("gpu", 1.0, after=[0])]
        >>> simulate(TaskGraph.of(tasks)).makespan
        5.0
    """
    progress = begin(graph)
    advance(graph, progress)
    check_finished(graph, progress.pending)
    makespan = max(progress.available, default=0.0)
    return Schedule(graph, progress.ready, progress.start, makespan)


def check_finished(graph: TaskGraph, pending: list[int]) -> None:
    """Raises ValueError where a task was never scheduled."""
    if max(pending, default=-1) >= 0:
        task = next(task for task, count in enumerate(pending) if count >= 0)
        raise ValueError(f"{graph.label(task)} waits, through others, for itself")


def critical_path(graph: TaskGraph) -> float:
    """Seconds of the longest chain of tasks: what no schedule beats.

    Example:
        >>> from hag_plugin.parallel.simulation.tasks import Task, TaskGraph
        >>> critical_path(TaskGraph.of([Task("a", 2.0), Task("a", 1.0), Task("b", 1.0, [0])]))
        3.0
    """
    progress = begin(graph)
    order = [task for _, _, task in progress.heap]
    longest = progress.partial
    pending = progress.pending
    for task in order:  # grows while it is walked
        end = longest[task] = longest[task] + graph.duration[task]
        for after in graph.successors[task]:
            longest[after] = max(longest[after], end)
            pending[after] -= 1
            if pending[after] == 0:
                order.append(after)
    return max(longest, default=0.0)
