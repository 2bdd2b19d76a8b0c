"""Evaluates strategies of a network on a machine: baselines, exact layer-wise search, MCMC."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from hag_plugin.parallel.machine.topology import Topology
from hag_plugin.parallel.search.exact import minimise
from hag_plugin.parallel.simulation.mcmc import Budget, Search, random_strategies, search
from hag_plugin.parallel.simulation.strategy_model import (
    SimulatedStrategy,
    simulate_strategy,
    task_graph,
)

from .flexflow_additive import cost_graph
from .flexflow_model import SoapModel
from .flexflow_soap import Network


@dataclass(frozen=True)
class Outcome:
    """One strategy.

    Attributes:
        name: of it.
        strategy: its configurations.
        additive: seconds as if nothing overlapped; None where a configuration is not OptCNN's.
        simulated: seconds with overlap.
        gigabytes: sent by all devices in one iteration.
    """

    name: str
    strategy: list[int]
    additive: float | None
    simulated: float
    gigabytes: float


@dataclass(frozen=True)
class LayerWise:
    """The exact optimum of the additive cost, and how long it took to find.

    Attributes:
        strategy: its configurations, as numbers of the model it was made for.
        additive: seconds.
        table_seconds: to compute all costs.
        search_seconds: to find the optimum.
        width: of the widest elimination; up to 2 where the paper's own eliminations suffice.
    """

    strategy: list[int]
    additive: float
    table_seconds: float
    search_seconds: float
    width: int


def outcome(
    model: SoapModel, name: str, strategy: Sequence[int], additive: float | None
) -> Outcome:
    """Simulates a strategy."""
    return Outcome(name, list(strategy), additive, simulate_strategy(model, strategy).makespan,
                   model.transferred_bytes(strategy) / 1e9)  # fmt: skip


def layer_wise(
    network: Network, topology: Topology, model: SoapModel, singles: dict[str, list[int]],
    progress: bool,
) -> tuple[LayerWise, dict[str, float]]:  # fmt: skip
    """OptCNN's search, and the additive costs of single strategies, which it must not exceed.

    Args:
        network: what is split.
        topology: the machine.
        model: the model whose numbers the strategies have; it may have more configurations.
        singles: strategies to compare with, by name; those with placements are left out.
        progress: show a bar.
    """
    unplaced = SoapModel(network, topology, placed=False, summed=model.summed)
    began = time.perf_counter()
    graph = cost_graph(unplaced, progress)
    tabled = time.perf_counter()
    choice = minimise(graph)
    done = time.perf_counter()
    costs = {}
    for name, strategy in singles.items():
        found = [model.configs[node][config] for node, config in enumerate(strategy)]
        if all(config in unplaced.place[node] for node, config in enumerate(found)):
            costs[name] = graph.cost([unplaced.place[n][c] for n, c in enumerate(found)])
    chosen = [unplaced.configs[node][config] for node, config in enumerate(choice.configs)]
    strategy = [model.place[node][config] for node, config in enumerate(chosen)]
    return LayerWise(strategy, choice.cost, tabled - began, done - tabled, choice.width), costs


def sample(
    model: SoapModel, starts: dict[str, list[int]], proposals: int, randoms: int, seed: int,
    progress: bool,
) -> Search:  # fmt: skip
    """FlexFlow's search, from all starts and some random ones."""
    starts = {**starts, **random_strategies(model.sizes, randoms, seed)}
    return search(
        lambda strategy: SimulatedStrategy(model, strategy), model.sizes, starts,
        Budget(proposals=proposals), seed=seed, progress=progress,
    )  # fmt: skip


@dataclass(frozen=True)
class DeltaSpeed:
    """Delta simulation beside full simulation, on the same proposals.

    Attributes:
        proposals: how many. Seconds are of the processor.
        tasks: of the first strategy.
        full_seconds: to build each task graph and simulate it.
        delta_seconds: to replace the tasks and simulate what changes.
        scheduled_share: tasks that delta scheduled or corrected, over those that full did.
    """

    proposals: int
    tasks: int
    full_seconds: float
    delta_seconds: float
    scheduled_share: float


def delta_speed(model: SoapModel, strategy: Sequence[int], proposals: int, seed: int) -> DeltaSpeed:
    """Times both; raises AssertionError where their results differ in a single bit."""
    choose = random.Random(seed)
    chain = SimulatedStrategy(model, strategy)
    tasks = chain.simulator.graph.num_tasks
    full = delta = 0.0
    for _ in range(proposals):
        node = choose.randrange(len(model.names))
        changed = list(chain.strategy)
        changed[node] = choose.randrange(model.num_configs(node))
        task_graph(model, changed)  # blocks are made, and kept, before either is timed
        a = time.process_time()
        new = chain.propose(node, changed[node])
        b = time.process_time()
        expected = simulate_strategy(model, changed).makespan
        c = time.process_time()
        assert new == expected, (new, expected)
        full, delta = full + c - b, delta + b - a
        if new <= chain.cost:
            chain.accept()
        else:
            chain.reject()
    work = chain.simulator.work
    share = (work.scheduled + work.corrected) / max(work.full, 1)
    return DeltaSpeed(proposals, tasks, full, delta, share)
