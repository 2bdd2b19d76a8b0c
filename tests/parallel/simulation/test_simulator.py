"""The simulator: what a schedule must be, on any graph."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hag_plugin.parallel.simulation.simulator import Schedule, critical_path, simulate
from hag_plugin.parallel.simulation.tasks import SOURCE, TARGET, Block, Task, TaskGraph

NAMES = ["gpu 0", "gpu 1", "link 0", "link 1"]


@st.composite
def task_lists(draw: st.DrawFn) -> list[Task]:
    tasks: list[Task] = []
    for i in range(draw(st.integers(0, 25))):
        resource = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
        duration = draw(st.sampled_from([1.0, 1.0, 2.0, 0.1, 0.7]) | st.floats(1e-6, 10))
        after = draw(st.lists(st.integers(0, i - 1), max_size=4)) if i else []
        tasks.append(Task(tuple(resource), duration, after))
    return tasks


def one_by_one(tasks: list[Task]) -> tuple[list[float], list[float]]:
    """The definition, slowly: of all tasks whose inputs are known, the first one to be ready."""
    start: dict[int, float] = {}
    end: dict[int, float] = {}
    free = dict.fromkeys(NAMES, 0.0)
    while len(end) < len(tasks):
        known = [
            (max((end[p] for p in task.after), default=0.0), i)
            for i, task in enumerate(tasks)
            if i not in end and all(p in end for p in task.after)
        ]
        ready, i = min(known)
        start[i] = max(ready, *(free[name] for name in tasks[i].resource))
        end[i] = start[i] + tasks[i].duration
        for name in tasks[i].resource:
            free[name] = end[i]
    return [start[i] for i in range(len(tasks))], [end[i] for i in range(len(tasks))]


@pytest.mark.slow
@settings(max_examples=300)
@given(task_lists())
def test_a_schedule_is_what_it_says(tasks: list[Task]) -> None:
    schedule = simulate(TaskGraph.of(tasks))
    starts, ends = one_by_one(tasks)
    assert schedule.start == starts
    assert schedule.makespan == max(ends, default=0.0)
    for i, task in enumerate(tasks):
        for before in task.after:
            assert starts[i] >= ends[before]
    for name in NAMES:
        spans = sorted((starts[i], ends[i]) for i, t in enumerate(tasks) if name in t.resource)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert schedule.makespan >= critical_path(schedule.graph)
    assert schedule.makespan >= max(schedule.busy().values(), default=0.0) * (1 - 1e-12)
    schedule.check()


@settings(max_examples=50)
@given(task_lists(), st.data())
def test_check_finds_what_is_moved(tasks: list[Task], data: st.DataObject) -> None:
    good = simulate(TaskGraph.of(tasks))
    if tasks:
        moved = list(good.start)
        moved[data.draw(st.integers(0, len(tasks) - 1))] += data.draw(st.sampled_from([0.25, -1.0]))
        with pytest.raises(ValueError, match="expected"):
            Schedule(good.graph, good.ready, moved, good.makespan).check()


def test_first_in_first_out() -> None:
    # c is longer and comes first, because it is ready first; of a and b, ready together, a is.
    tasks = [Task("x", 1.0), Task("y", 1.0), Task("gpu", 1.0, [0]), Task("gpu", 1.0, [1]),
             Task("z", 0.5), Task("gpu", 9.0, [4])]  # fmt: skip
    assert simulate(TaskGraph.of(tasks)).start[2:] == [9.5, 10.5, 0.0, 0.5]


def test_links_work_beside_devices() -> None:
    tasks = [Task("gpu", 1.0), Task("link", 5.0, [0], "transfer"), Task("gpu", 4.0, [0])]
    schedule = simulate(TaskGraph.of(tasks))
    assert schedule.makespan == 6.0
    assert schedule.busy() == {"gpu": 5.0, "link": 5.0}
    assert schedule.seconds_by_kind()["transfer"] == 5.0


def test_a_collective_waits_for_all_and_takes_all() -> None:
    tasks = [Task("a", 1.0), Task("b", 3.0), Task(("a", "b"), 1.0, [0, 1]), Task("a", 1.0, [0])]
    assert simulate(TaskGraph.of(tasks)).start == [0.0, 0.0, 3.0, 1.0]


# Refused ----------------------------------------------------------------------------------------

NOTHING = Block([], [], [])


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (Block([0], [0], [0.0]), "takes 0.0 s"),
        (Block([0], [0], [float("nan")]), "takes nan s"),
        (Block([0], [1], [1.0]), "resource 1"),
        (Block([0], [()], [1.0]), "one or more"),
        (Block([0], [(0, 0)], [1.0]), "each once"),
        (Block([0, 0], [0], [1.0]), "2 kinds, 1 resources"),
        (Block([0], [0], [1.0], [(0, 3)]), "operation 'conv'"),
        (Block([0], [0], [1.0], [(SOURCE, 0)]), "not there"),
    ],
)
def test_wrong_blocks_are_refused(block: Block, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TaskGraph(["gpu"], [block], names=["conv"])


def test_circles_are_refused() -> None:
    block = Block([0, 0], [0, 0], [1.0, 1.0], [(0, 1), (1, 0)])
    with pytest.raises(ValueError, match="for itself"):
        simulate(TaskGraph(["gpu"], [block]))


def test_replacements_are_whole() -> None:
    one = Block([0], [0], [1.0])
    join = Block([], [], [], [(SOURCE, TARGET)])
    graph = TaskGraph(["gpu"], [one, one, one], [(0, 1), (1, 2)], [join, join])
    with pytest.raises(ValueError, match="without its edge 1"):
        graph.replace({1: one}, {0: join})
    with pytest.raises(ValueError, match="its ends"):
        graph.replace({0: one}, {0: join, 1: join})
    before = (list(graph.key), [list(p) for p in graph.predecessors], graph.num_tasks)
    with pytest.raises(ValueError, match="not there"):
        graph.replace({0: NOTHING}, {0: join})
    assert (graph.key, graph.predecessors, graph.num_tasks) == before
    assert graph.label(0) == "0 forward 0"
