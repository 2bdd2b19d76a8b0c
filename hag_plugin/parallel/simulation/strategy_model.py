"""From a strategy, one configuration per operation, to its simulated time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from hag_plugin.parallel.simulation.delta import DeltaSimulator
from hag_plugin.parallel.simulation.simulator import Schedule, simulate
from hag_plugin.parallel.simulation.tasks import Block, TaskGraph


class StrategyModel(Protocol):
    """What can be chosen, and the tasks that follow from it.

    Attributes:
        names: of the operations.
        edges: pairs of operations between which tensors flow, in this direction.
        resources: names of devices and links.
    """

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def edges(self) -> Sequence[tuple[int, int]]: ...

    @property
    def resources(self) -> Sequence[str]: ...

    def num_configs(self, node: int) -> int:
        """How many configurations an operation has."""
        ...

    def node_block(self, node: int, config: int) -> Block:
        """The tasks of an operation."""
        ...

    def edge_block(self, edge: int, first: int, second: int) -> Block:
        """The tasks between two operations, which have these configurations."""
        ...


def task_graph(model: StrategyModel, strategy: Sequence[int]) -> TaskGraph:
    """The task graph of a strategy.

    Raises:
        ValueError: the strategy is not one of the model's.
    """
    check_strategy(model, strategy)
    nodes = [model.node_block(node, config) for node, config in enumerate(strategy)]
    edges = [
        model.edge_block(edge, strategy[u], strategy[v]) for edge, (u, v) in enumerate(model.edges)
    ]
    return TaskGraph(model.resources, nodes, model.edges, edges, model.names)


def check_strategy(model: StrategyModel, strategy: Sequence[int]) -> None:
    """Raises ValueError where a strategy is not one of the model's."""
    if len(strategy) != len(model.names):
        raise ValueError(f"a strategy has {len(strategy)} configurations; expected one for each of "
                         f"{len(model.names)} operations")  # fmt: skip
    for node, config in enumerate(strategy):
        if not 0 <= config < model.num_configs(node):
            raise ValueError(f"operation {model.names[node]!r} has configuration {config}; "
                             f"expected a number below {model.num_configs(node)}")  # fmt: skip


def simulate_strategy(model: StrategyModel, strategy: Sequence[int]) -> Schedule:
    """The schedule of a strategy, simulated from the start."""
    return simulate(task_graph(model, strategy))


class SimulatedStrategy:
    """A strategy and its simulated seconds, kept up to date by delta simulation.

    A proposal that changes most tasks is built and simulated from the start: that is less work
    than taking the old ones away.

    Args:
        model: what can be chosen.
        strategy: where to start.
    """

    def __init__(self, model: StrategyModel, strategy: Sequence[int]) -> None:
        self.model = model
        self.strategy = list(strategy)
        self.simulator = DeltaSimulator(task_graph(model, strategy))
        self._edges: list[list[int]] = [[] for _ in model.names]
        for edge, ends in enumerate(model.edges):
            for node in ends:
                self._edges[node].append(edge)
        self._proposed: dict[int, int] = {}
        self._fresh: Schedule | None = None

    @property
    def cost(self) -> float:
        """Simulated seconds of the current strategy."""
        return self.simulator.makespan

    def propose(self, node: int, config: int) -> float:
        """Simulated seconds with another configuration of one operation."""
        return self.propose_all({node: config})

    def propose_all(self, changes: Mapping[int, int]) -> float:
        """Simulated seconds with other configurations of these operations, all at once."""
        model = self.model
        changed = list(self.strategy)
        for node, config in changes.items():
            changed[node] = config
        edges = {}
        for edge in sorted({edge for node in changes for edge in self._edges[node]}):
            u, v = model.edges[edge]
            edges[edge] = model.edge_block(edge, changed[u], changed[v])
        self._proposed = dict(changes)
        nodes = {node: model.node_block(node, config) for node, config in changes.items()}
        graph = self.simulator.graph
        coming = sum(len(block.kinds) for block in (*nodes.values(), *edges.values()))
        if coming + graph.count(nodes, edges) < graph.num_tasks:
            return self.simulator.propose(nodes, edges)
        self._fresh = simulate(task_graph(model, changed))
        work, tasks = self.simulator.work, self._fresh.graph.num_tasks
        work.proposals, work.rebuilt = work.proposals + 1, work.rebuilt + 1
        work.scheduled, work.full = work.scheduled + tasks, work.full + tasks
        return self._fresh.makespan

    def accept(self) -> None:
        """Takes the proposal."""
        if self._fresh is None:
            self.simulator.accept()
        else:
            fresh, self._fresh = self._fresh, None
            self.simulator = DeltaSimulator(
                fresh.graph, makespan=fresh.makespan, work=self.simulator.work
            )
        for node, config in self._proposed.items():
            self.strategy[node] = config

    def reject(self) -> None:
        """Stays with the current strategy."""
        if self._fresh is None:
            self.simulator.reject()
        self._fresh = None
