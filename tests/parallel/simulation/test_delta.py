"""Delta simulation gives the floats of full simulation, and never more work."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hag_plugin.parallel.simulation.delta import DeltaSimulator
from hag_plugin.parallel.simulation.simulator import simulate
from hag_plugin.parallel.simulation.tasks import SOURCE, TARGET, Block, TaskGraph

NO_TASKS = Block([], [], [])


class RandomBlocks:
    """Operations of random tasks on a random directed graph; few durations, so that times tie.
    Some have no tasks."""

    def __init__(self, seed: int, nodes: int, resources: int) -> None:
        self.random = random.Random(seed)
        self.resources = resources
        pairs = [(u, v) for v in range(nodes) for u in range(v)]
        self.edges = [pair for pair in pairs if self.random.random() < 2.5 / nodes]
        self.edges += self.random.sample(self.edges, len(self.edges) // 4)  # parallel ones
        self.sizes = [self.random.randint(1, 4) for _ in range(nodes)]

    def tasks(self, count: int) -> tuple[list[int], list[int | tuple[int, ...]], list[float]]:
        choose = self.random
        resources: list[int | tuple[int, ...]] = []
        for _ in range(count):
            taken = choose.sample(range(self.resources), choose.choice([1, 1, 1, 2]))
            resources.append(taken[0] if len(taken) == 1 else tuple(taken))
        durations = [choose.choice([0.1, 0.1, 0.3, 0.7, choose.random() + 0.01]) for _ in resources]
        return [choose.randrange(5) for _ in resources], resources, durations

    def node(self, node: int) -> Block:
        count = self.sizes[node] = self.random.randint(0, 4)
        inside = [(i, j) for j in range(count) for i in range(j) if self.random.random() < 0.3]
        return Block(*self.tasks(count), inside)

    def edge(self, edge: int) -> Block:
        u, v = (self.sizes[node] for node in self.edges[edge])
        count = self.random.choice([0, 1, 2])
        joins = []
        if u and v:
            joins.append((SOURCE + self.random.randrange(u), TARGET + self.random.randrange(v)))
        for task in range(count):
            if u:
                joins.append((SOURCE + self.random.randrange(u), task))
            if v:
                joins.append((task, TARGET + self.random.randrange(v)))
        return Block(*self.tasks(count), joins)

    def graph(self) -> TaskGraph:
        nodes = [self.node(i) for i in range(len(self.sizes))]
        edges = [self.edge(i) for i in range(len(self.edges))]
        return TaskGraph([f"r{i}" for i in range(self.resources)], nodes, self.edges, edges)

    def proposal(self) -> tuple[dict[int, Block], dict[int, Block]]:
        """Other tasks for one operation, or for a few at once."""
        count = min(self.random.choice([1, 1, 1, 2, 3]), len(self.sizes))
        nodes = {
            node: self.node(node) for node in self.random.sample(range(len(self.sizes)), count)
        }
        touched = [i for i, ends in enumerate(self.edges) if not nodes.keys().isdisjoint(ends)]
        return nodes, {i: self.edge(i) for i in touched}


def same_as_full(simulator: DeltaSimulator) -> None:
    full = simulate(simulator.graph)
    ours = simulator.schedule
    assert ours.makespan == full.makespan
    for task in simulator.graph.tasks():
        assert (ours.ready[task], ours.start[task]) == (full.ready[task], full.start[task])


def run(seed: int, nodes: int, resources: int, proposals: int, accept: float, snapshots: int
        ) -> DeltaSimulator:  # fmt: skip
    blocks = RandomBlocks(seed, nodes, resources)
    simulator = DeltaSimulator(blocks.graph(), snapshots)
    for _ in range(proposals):
        sizes = list(blocks.sizes)
        before = simulator.makespan
        makespan = simulator.propose(*blocks.proposal())
        assert makespan == simulate(simulator.graph).makespan
        if blocks.random.random() < accept:
            simulator.accept()
            assert simulator.makespan == makespan
        else:
            simulator.reject()
            blocks.sizes = sizes
            assert simulator.makespan == before
        same_as_full(simulator)
    simulator.schedule.check()
    return simulator


@pytest.mark.slow
@pytest.mark.parametrize("accept", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(("nodes", "resources"), [(6, 2), (25, 4), (60, 12)])
def test_thousands_of_proposals(nodes: int, resources: int, accept: float) -> None:
    for seed in range(4):
        work = run(seed, nodes, resources, 100, accept, [1, 4, 16, 40][seed]).work
        assert work.proposals == 100
        assert work.scheduled + work.corrected <= work.full


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    nodes=st.integers(1, 15),
    resources=st.integers(3, 6),
    accept=st.floats(0, 1),
    snapshots=st.integers(1, 20),
)
def test_any_graph(seed: int, nodes: int, resources: int, accept: float, snapshots: int) -> None:
    run(seed, nodes, resources, 12, accept, snapshots)


def test_late_and_hidden_changes_are_cheap() -> None:
    """What comes late is simulated late; what others hide is simulated until it is over."""
    seconds = {"chain": 1.0, "side": 0.25}
    chain = Block([0] * 200, [0] * 200, [seconds["chain"]] * 200, [(i, i + 1) for i in range(199)])
    side = Block([0], [1], [seconds["side"]])
    joins = Block([], [], [], [(SOURCE + 20, TARGET)])
    late = Block([], [], [], [(SOURCE + 190, TARGET)])
    graph = TaskGraph(["gpu", "side"], [chain, side, side], [(0, 1), (0, 2)], [joins, late])
    simulator = DeltaSimulator(graph, snapshots=16)
    longer = Block([0], [1], [0.75])
    assert simulator.propose({2: longer}, {1: late}) == 200.0
    assert simulator.work.scheduled < 20
    simulator.reject()
    assert simulator.propose({1: longer}, {0: joins}) == 200.0
    simulator.accept()
    assert simulator.work.scheduled < 60
    assert simulator.work.met >= 1
    same_as_full(simulator)


def test_proposals_are_settled() -> None:
    simulator = DeltaSimulator(TaskGraph(["gpu"], [Block([0], [0], [1.0])]))
    with pytest.raises(RuntimeError, match="no proposal"):
        simulator.accept()
    assert simulator.propose({0: Block([0], [0], [2.0])}, {}) == 2.0
    with pytest.raises(RuntimeError, match="neither accepted nor rejected"):
        simulator.propose({0: NO_TASKS}, {})
    simulator.reject()
    with pytest.raises(ValueError, match="takes -1"):
        simulator.propose({0: Block([0], [0], [-1.0])}, {})
    circle = Block([0, 0], [0, 0], [1.0, 1.0], [(0, 1), (1, 0)])
    with pytest.raises(ValueError, match="for itself"):
        simulator.propose({0: circle}, {})
    assert simulator.propose({0: NO_TASKS}, {}) == 0.0
    simulator.accept()
    assert simulator.propose({0: Block([0], [0], [2.0])}, {}) == 2.0
    simulator.accept()
    same_as_full(simulator)
