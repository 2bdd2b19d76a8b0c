"""The task graph that the simulator runs: who waits for whom, on which device or link, how long.

A strategy is a configuration for each operation. Operations and the edges between them own their
tasks in *blocks*, so that a new configuration of one operation replaces its block and those of its
edges, and leaves all other tasks as they are (FlexFlow, arXiv 1807.05358, section 5.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hag_plugin.parallel.machine.topology import Topology
from hag_plugin.saved import set_module

KINDS = ("forward", "backward", "transfer", "synchronise", "update")
FORWARD, BACKWARD, TRANSFER, SYNCHRONISE, UPDATE = range(len(KINDS))
SHORTEST = 1e-9
"""Seconds, the shortest task: above the rounding of times, so that each ends after it starts."""
LONGEST = 1e5
"""Seconds, the longest task."""

SOURCE, TARGET = 1 << 20, 2 << 20
"""In an edge's dependencies, `SOURCE + i` is task i of its first operation, `TARGET + i` of its
second; a plain i is the edge's own."""
_INDEX = SOURCE - 1


def resources_of(topology: Topology) -> list[str]:
    """The resources of a machine: its devices, then its links."""
    devices = [f"{topology.device_at(i).name} {i}" for i in range(topology.num_devices)]
    return devices + [link.name for link in topology.links]


class Links:
    """Numbers of the links of a machine, as `resources_of` counts.

    Args:
        topology: the machine.
    """

    def __init__(self, topology: Topology) -> None:
        first = topology.num_devices
        self._topology = topology
        self._place = {link.name: first + i for i, link in enumerate(topology.links)}
        self._routes: dict[tuple[int, int], list[int]] = {}

    def between(self, pairs: Iterable[Sequence[int]]) -> tuple[int, ...]:
        """Those on the way from the first to the second device of each pair, increasing."""
        found: set[int] = set()
        for a, b in pairs:
            if (a, b) not in self._routes:
                route = self._topology.route(a, b)
                self._routes[a, b] = [self._place[link.name] for link in route]
            found.update(self._routes[a, b])
        return tuple(sorted(found))


class Block(NamedTuple):
    """Tasks of one operation or of one edge, and the dependencies that come with them.

    Attributes:
        kinds: what each task is, an index into `KINDS`.
        resources: the device or link of each; a tuple where a task takes several at once, as a
            message takes both ends' ports and a collective those of all who take part.
        durations: seconds of each.
        dependencies: pairs (first, then). See `SOURCE` and `TARGET` for those of an edge.
    """

    kinds: Sequence[int]
    resources: Sequence[int | tuple[int, ...]]
    durations: Sequence[float]
    dependencies: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class Task:
    """One task of a graph that is written by hand; see `TaskGraph.of`.

    Attributes:
        resource: the name of a device or link, or a tuple of names.
        duration: seconds.
        after: positions of the tasks that come before.
        kind: one of `KINDS`.
    """

    resource: str | tuple[str, ...]
    duration: float
    after: Sequence[int] = ()
    kind: str = "forward"


@dataclass
class Change:
    """What a replacement did to a graph, and what undoes it.

    Attributes:
        removed: tasks that went away.
        added: tasks that came; they may reuse the numbers of those that went.
        touched: other tasks that wait for something else than before.
    """

    removed: list[int]
    added: list[int]
    touched: list[int]
    saved_tasks: list[tuple[int, int, float, int, int, list[int], list[int]]]
    saved_lists: dict[int, tuple[list[int], list[int]]]
    saved_free: list[int]
    saved_size: int
    saved_groups: dict[int, list[int]] = field(default_factory=dict)


@set_module("hag_plugin.parallel")
class TaskGraph:
    """Tasks, their durations and resources, and what each waits for.

    Tasks are numbered; a number says nothing (numbers are used again), the `key` does: it orders
    tasks that are ready at the same time, by operation or edge, then by place in the block.

    Args:
        resources: names of the devices and links. Each runs one task at a time.
        nodes: the block of each operation.
        edges: pairs of operations, first and second. There may be several between two operations.
        edge_blocks: the block of each edge.
        names: of the operations, for traces.

    Raises:
        ValueError: a resource, a duration or a dependency is out of range.

    Example:
        >>> graph = TaskGraph.of([Task("a", 2.0), Task("b", 1.0, after=[0])])
        >>> graph.num_tasks, graph.predecessors[1]
        (2, [0])
    """

    def __init__(
        self,
        resources: Sequence[str],
        nodes: Sequence[Block],
        edges: Sequence[tuple[int, int]] = (),
        edge_blocks: Sequence[Block] = (),
        names: Sequence[str] | None = None,
    ) -> None:
        if len(edges) != len(edge_blocks):
            raise ValueError(f"{len(edges)} edges with {len(edge_blocks)} blocks; expected as many")
        self.resources = list(resources)
        self.names = [str(i) for i in range(len(nodes))] if names is None else list(names)
        self.edges = list(edges)
        self.kind: list[int] = []
        self.resource: list[int] = []  # below 0: `~resource` is a place in `resource_sets`
        self.resource_sets: list[tuple[int, ...]] = []
        self._set_codes: dict[tuple[int, ...], int] = {}
        self.duration: list[float] = []
        self.key: list[int] = []  # -1: the number is free
        self.group: list[int] = []
        self.predecessors: list[list[int]] = []
        self.successors: list[list[int]] = []
        self._nodes = len(nodes)
        self._tasks: list[list[int]] = [[] for _ in range(len(nodes) + len(edges))]
        self._free: list[int] = []
        self._incident: list[set[int]] = [set() for _ in nodes]
        for number, (first, second) in enumerate(self.edges):
            if not (0 <= first < len(nodes) and 0 <= second < len(nodes)):
                raise ValueError(f"edge {number} joins operations {first} and {second}; expected "
                                 f"numbers below {len(nodes)}")  # fmt: skip
            self._incident[first].add(number)
            self._incident[second].add(number)
        self.replace(dict(enumerate(nodes)), dict(enumerate(edge_blocks)))

    @classmethod
    def of(cls, tasks: Sequence[Task]) -> TaskGraph:
        """A graph of tasks written by hand; task i has the number i."""
        used = [(t.resource,) if isinstance(t.resource, str) else t.resource for t in tasks]
        names = list(dict.fromkeys(name for names in used for name in names))
        place = {name: i for i, name in enumerate(names)}
        block = Block(
            kinds=[KINDS.index(task.kind) for task in tasks],
            resources=[tuple(place[name] for name in names) for names in used],
            durations=[task.duration for task in tasks],
            dependencies=[(first, i) for i, task in enumerate(tasks) for first in task.after],
        )
        return cls(names, [block])

    @property
    def num_tasks(self) -> int:
        """Tasks that there are now."""
        return len(self.key) - len(self._free)

    def tasks(self) -> Iterable[int]:
        """The numbers of all tasks."""
        return (task for task, key in enumerate(self.key) if key >= 0)

    def count(self, nodes: Iterable[int], edges: Iterable[int]) -> int:
        """How many tasks these operations and edges have."""
        groups = (*nodes, *(self._nodes + edge for edge in edges))
        return sum(len(self._tasks[group]) for group in groups)

    def occupied(self, task: int) -> tuple[int, ...]:
        """The resources that a task takes."""
        resource = self.resource[task]
        return (resource,) if resource >= 0 else self.resource_sets[~resource]

    def label(self, task: int) -> str:
        """A task's name for people, such as `conv1 forward 3`."""
        group, index = self.group[task], self.key[task] & 0xFFFFFF
        if group < self._nodes:
            return f"{self.names[group]} {KINDS[self.kind[task]]} {index}"
        first, second = self.edges[group - self._nodes]
        return f"{self.names[first]} > {self.names[second]} {KINDS[self.kind[task]]} {index}"

    # Replacing ------------------------------------------------------------------------------------

    def replace(self, nodes: Mapping[int, Block], edges: Mapping[int, Block]) -> Change:
        """Replaces the blocks of operations, and of every edge that touches them.

        Raises:
            ValueError: a block is wrong, an edge of a replaced operation is missing, or an edge is
                given without either of its operations.
        """
        for node in nodes:
            if missing := self._incident[node] - edges.keys():
                raise ValueError(f"operation {node} is replaced without its edge {min(missing)}")
        for edge in edges:
            if nodes.keys().isdisjoint(self.edges[edge]):
                raise ValueError(f"edge {edge} is replaced without {self.edges[edge]}, its ends")
        for block in (*nodes.values(), *edges.values()):
            self._check(block)
        blocks = {**nodes, **{self._nodes + edge: block for edge, block in edges.items()}}
        change = self._remove(blocks.keys())
        try:
            self._add(blocks, change)
        except BaseException:
            self.undo(change)
            raise
        return change

    def undo(self, change: Change) -> None:
        """Takes the last replacement back."""
        for task in change.added:
            self.key[task] = -1
            self.predecessors[task] = self.successors[task] = []
        for task, kind, duration, resource, key, before, after in change.saved_tasks:
            self.kind[task], self.duration[task], self.resource[task] = kind, duration, resource
            self.key[task], self.predecessors[task], self.successors[task] = key, before, after
        for task, (before, after) in change.saved_lists.items():
            self.predecessors[task], self.successors[task] = before, after
        for group, tasks in change.saved_groups.items():
            self._tasks[group] = tasks
            for task in tasks:
                self.group[task] = group
        self._free = change.saved_free
        for values in (self.kind, self.resource, self.duration, self.key, self.group):
            del values[change.saved_size :]
        del self.predecessors[change.saved_size :], self.successors[change.saved_size :]

    def _check(self, block: Block) -> None:
        count = len(block.kinds)
        if not len(block.resources) == len(block.durations) == count < SOURCE:
            raise ValueError(f"a block has {count} kinds, {len(block.resources)} resources and "
                             f"{len(block.durations)} durations; expected as many")  # fmt: skip
        wrong = next((d for d in block.durations if not SHORTEST <= d <= LONGEST), None)
        if wrong is not None:
            raise ValueError(f"a task takes {wrong} s; expected {SHORTEST} to {LONGEST} s")

    def _code(self, resource: int | tuple[int, ...]) -> int:
        if isinstance(resource, int):
            if not 0 <= resource < len(self.resources):
                raise ValueError(f"a task is for resource {resource}; expected a number below "
                                 f"{len(self.resources)}")  # fmt: skip
            return resource
        code = self._set_codes.get(resource)
        if code is None:
            if not resource or len(set(resource)) < len(resource):
                raise ValueError(f"a task is for resources {resource}; expected one or more, each "
                                 "once")  # fmt: skip
            for one in resource:
                self._code(one)
            code = resource[0]
            if len(resource) > 1:
                code = ~len(self.resource_sets)
                self.resource_sets.append(resource)
            self._set_codes[resource] = code
        return code

    def _remove(self, groups: Iterable[int]) -> Change:
        saved_groups = {group: self._tasks[group] for group in groups}
        removed = [task for tasks in saved_groups.values() for task in tasks]
        gone = set(removed)
        change = Change(removed, [], [], [], {}, self._free, len(self.key), saved_groups)
        for task in removed:
            change.saved_tasks.append((
                task, self.kind[task], self.duration[task], self.resource[task], self.key[task],
                self.predecessors[task], self.successors[task],
            ))  # fmt: skip
        waiting: dict[int, None] = {}  # in place of a set, whose order is not defined
        feeding: dict[int, None] = {}
        for task in removed:
            waiting.update((after, None) for after in self.successors[task] if after not in gone)
            feeding.update((before, None) for before in self.predecessors[task]
                           if before not in gone)  # fmt: skip
            self.key[task] = -1
        for task in {**waiting, **feeding}:
            change.saved_lists[task] = self.predecessors[task], self.successors[task]
        for task in waiting:
            self.predecessors[task] = [p for p in self.predecessors[task] if p not in gone]
        for task in feeding:
            self.successors[task] = [s for s in self.successors[task] if s not in gone]
        change.touched = list(waiting)
        return change

    def _add(self, blocks: Mapping[int, Block], change: Change) -> None:
        free = change.saved_free + change.removed
        for group, block in blocks.items():
            numbers = []
            codes = [self._code(resource) for resource in block.resources]
            for index in range(len(block.kinds)):
                if free:
                    task = free.pop()
                    self.group[task] = group
                    self.predecessors[task], self.successors[task] = [], []
                    self.kind[task] = block.kinds[index]
                    self.resource[task] = codes[index]
                    self.duration[task] = block.durations[index]
                    self.key[task] = (group << 24) | index
                else:
                    task = len(self.key)
                    self.group.append(group)
                    self.predecessors.append([])
                    self.successors.append([])
                    self.kind.append(block.kinds[index])
                    self.resource.append(codes[index])
                    self.duration.append(block.durations[index])
                    self.key.append((group << 24) | index)
                numbers.append(task)
            self._tasks[group] = numbers
            change.added.extend(numbers)
        for task in free:
            self.predecessors[task], self.successors[task] = [], []
        self._free = free
        self._join(blocks, change)

    def _join(self, blocks: Mapping[int, Block], change: Change) -> None:
        added, saved = set(change.added), change.saved_lists
        touched = dict.fromkeys(change.touched)
        nobody: list[int] = []
        for group, block in blocks.items():
            own = self._tasks[group]
            if group < self._nodes:
                sides = (own, nobody, nobody)
            else:
                first, second = self.edges[group - self._nodes]
                sides = (own, self._tasks[first], self._tasks[second])
            for start, then in block.dependencies:
                try:
                    before = sides[start >> 20][start & _INDEX]
                    after = sides[then >> 20][then & _INDEX]
                except IndexError:
                    raise ValueError(f"{self._words(group)} has a dependency ({start}, {then}) on "
                                     "a task that is not there") from None  # fmt: skip
                if before not in added:
                    self._own_lists(before, saved)
                if after not in added:
                    self._own_lists(after, saved)
                    touched[after] = None
                self.successors[before].append(after)
                self.predecessors[after].append(before)
        change.touched = list(touched)

    def _own_lists(self, task: int, saved: dict[int, tuple[list[int], list[int]]]) -> None:
        """Copies a task's lists before they are written, so that `undo` finds the old ones."""
        if task not in saved:
            saved[task] = self.predecessors[task], self.successors[task]
        if self.predecessors[task] is saved[task][0]:
            self.predecessors[task] = list(saved[task][0])
        if self.successors[task] is saved[task][1]:
            self.successors[task] = list(saved[task][1])

    def _words(self, group: int) -> str:
        if group < self._nodes:
            return f"operation {self.names[group]!r}"
        first, second = self.edges[group - self._nodes]
        return f"the edge {self.names[first]!r} > {self.names[second]!r}"
