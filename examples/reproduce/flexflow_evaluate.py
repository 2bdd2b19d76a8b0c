"""Evaluates strategies of a network on a machine: baselines, exact layer-wise search, MCMC."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
from .flexflow_soap import Network, by_layer


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
    unplaced = SoapModel(network, topology, space="unplaced", summed=model.summed)
    began = time.perf_counter()
    graph = cost_graph(unplaced, progress)
    tabled = time.perf_counter()
    choice = minimise(graph)
    done = time.perf_counter()
    costs, firsts = {}, [layer[0] for layer in network.layers]
    for name, strategy in singles.items():
        found = [model.configs[node][strategy[node]] for node in firsts]
        if all(config in unplaced.place[node] for node, config in zip(firsts, found, strict=True)):
            costs[name] = graph.cost([
                unplaced.place[node][config] for node, config in zip(firsts, found, strict=True)
            ])  # fmt: skip
    chosen = [
        unplaced.configs[node][config] for node, config in zip(firsts, choice.configs, strict=True)
    ]
    strategy = [model.place[node][config] for node, config in enumerate(by_layer(network, chosen))]
    return LayerWise(strategy, choice.cost, tabled - began, done - tabled, choice.width), costs


class LayerChain:
    """A chain for `search` whose steps change all operations of a layer at once.

    A layer that runs in several blocks of time steps pays for weights that travel where one block
    alone is changed; a walk over single operations rarely gets across.
    """

    def __init__(self, model: SoapModel, strategy: Sequence[int]) -> None:
        self.layers = model.network.layers
        self.operations = SimulatedStrategy(model, [strategy[n] for n in model.layer_of])
        self.strategy = list(strategy)
        self._proposed = (0, 0)

    @property
    def cost(self) -> float:
        """Simulated seconds."""
        return self.operations.cost

    def propose(self, node: int, config: int) -> float:
        """Simulated seconds with another configuration of a layer."""
        self._proposed = node, config
        return self.operations.propose_all(dict.fromkeys(self.layers[node], config))

    def accept(self) -> None:
        """Takes the proposal."""
        layer, config = self._proposed
        self.strategy[layer] = config
        self.operations.accept()

    def reject(self) -> None:
        """Stays with the current strategy."""
        self.operations.reject()


def moved(model: SoapModel, other: SoapModel, strategy: Sequence[int]) -> list[int]:
    """A strategy of one model in the numbers of another, which has these configurations, too."""
    return [other.place[node][model.configs[node][config]] for node, config in enumerate(strategy)]


def sample_layers(
    model: SoapModel, starts: dict[str, list[int]], proposals: int, randoms: int, seed: int,
    progress: bool,
) -> Search:  # fmt: skip
    """FlexFlow's search with a configuration for each layer, from all starts and random ones."""
    firsts = [layer[0] for layer in model.network.layers]
    sizes = [model.num_configs(node) for node in firsts]
    by_layers = {name: [strategy[node] for node in firsts] for name, strategy in starts.items()}
    by_layers |= random_strategies(sizes, randoms, seed)
    found = search(
        lambda strategy: LayerChain(model, strategy), sizes, by_layers, Budget(proposals),
        seed=seed, progress=progress,
    )  # fmt: skip
    found.strategy = [found.strategy[layer] for layer in model.layer_of]
    return found


def sample(
    model: SoapModel, coarse: Search, proposals: int, seed: int, progress: bool
) -> Search:  # fmt: skip
    """FlexFlow's search with a configuration for each operation, from what layers got."""
    return search(
        lambda strategy: SimulatedStrategy(model, strategy), model.sizes,
        {coarse.best_start: coarse.strategy}, Budget(proposals, patience=1.0), seed=seed,
        progress=progress,
    )  # fmt: skip


def followed(first: Search, second: Search) -> Search:
    """Two searches, one after the other, as one."""
    later = [
        (first.proposals + tried, first.seconds + seconds, cost)
        for tried, seconds, cost in second.history
        if cost < first.cost
    ]
    return replace(
        second, proposals=first.proposals + second.proposals,
        accepted=first.accepted + second.accepted, seconds=first.seconds + second.seconds,
        history=first.history + later,
    )  # fmt: skip


def computing_seconds(model: SoapModel, strategy: Sequence[int]) -> float:
    """Forward and backward of a strategy on its busiest device, without any communication."""
    busy = [0.0] * model.topology.num_devices
    for node, choice in enumerate(strategy):
        config = model.configs[node][choice]
        for device in config.devices:
            busy[device] += sum(model.compute_seconds(node, config, device))
    return max(busy)


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
