"""Metropolis-Hastings: right frequencies, the optimum of small graphs, never worse than a start."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hag_plugin.parallel.search.elimination import CostGraph
from hag_plugin.parallel.search.exact import brute_force, minimise
from hag_plugin.parallel.simulation.mcmc import Budget, Search, random_strategies, search


class Additive:
    """A chain over a cost graph."""

    def __init__(self, graph: CostGraph, strategy: Sequence[int]) -> None:
        self.graph, self.strategy = graph, list(strategy)
        self.cost = graph.cost(strategy)

    def propose(self, node: int, config: int) -> float:
        self.new = list(self.strategy)
        self.new[node] = config
        self.new_cost = self.graph.cost(self.new)
        return self.new_cost

    def accept(self) -> None:
        self.strategy, self.cost = self.new, self.new_cost

    def reject(self) -> None:
        pass


def run(graph: CostGraph, starts: dict[str, list[int]], proposals: int, **options: object
        ) -> Search:  # fmt: skip
    sizes = [len(costs) for costs in graph.node_costs]
    budget = Budget(proposals=proposals, patience=1.0)
    return search(lambda s: Additive(graph, s), sizes, starts, budget, **options)  # type: ignore[arg-type]


def random_graph(seed: int, nodes: int, configs: int) -> CostGraph:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, configs + 1, nodes)
    edges = [
        (u, v, rng.random((sizes[u], sizes[v])))
        for u, v in itertools.combinations(range(nodes), 2)
        if rng.random() < 0.5
    ]
    return CostGraph([rng.random(size) for size in sizes], edges)


TOY = CostGraph(
    [np.array([0.0, 0.3, 0.9]), np.array([0.2, 0.0])],
    [(0, 1, np.array([[0.0, 1.0], [0.4, 0.1], [0.2, 0.0]]))],
)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_frequencies_follow_the_cost(beta: float) -> None:
    """Chi-square of the strategies visited against exp(-beta cost), thinned to be independent."""
    seen: Counter[tuple[int, ...]] = Counter()
    steps = itertools.count()

    def visit(strategy: Sequence[int]) -> None:
        if next(steps) % 25 == 0:
            seen[tuple(strategy)] += 1

    run(TOY, {"start": [2, 1]}, 150_000, beta=beta, seed=3, visit=visit)
    pairs = list(itertools.product(range(3), range(2)))
    weights = [math.exp(-beta * TOY.cost(pair)) for pair in pairs]
    total = sum(seen.values())
    chi_square = 0.0
    for pair, weight in zip(pairs, weights, strict=True):
        expected = total * weight / sum(weights)
        assert expected > 5
        chi_square += (seen[pair] - expected) ** 2 / expected
    assert chi_square < 20.5  # 5 degrees of freedom: more than this once in a thousand


def test_the_chi_square_can_fail() -> None:
    """The same samples do not follow another beta."""
    seen: Counter[tuple[int, ...]] = Counter()
    run(TOY, {"start": [2, 1]}, 20_000, beta=4.0, visit=lambda s: seen.update([tuple(s)]))
    uniform = sum(seen.values()) / 6
    assert sum((seen[p] - uniform) ** 2 / uniform for p in seen) > 1000


@pytest.mark.parametrize("seed", range(10))
def test_reaches_the_optimum_of_small_graphs(seed: int) -> None:
    graph = random_graph(seed, 5, 4)
    sizes = [len(costs) for costs in graph.node_costs]
    found = run(graph, random_strategies(sizes, 3, seed), 6000, seed=seed)
    assert found.cost == brute_force(graph).cost


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(0, 60), st.sampled_from([None, 0.0, 1.0, 100.0]))
def test_never_worse_than_a_start(seed: int, proposals: int, beta: float | None) -> None:
    graph = random_graph(seed, 6, 3)
    sizes = [len(costs) for costs in graph.node_costs]
    exact = minimise(graph)
    starts = {"exact": exact.configs, **random_strategies(sizes, 2, seed)}
    found = run(graph, starts, proposals, beta=beta, seed=seed)
    assert found.cost == exact.cost == graph.cost(found.strategy)  # an additive optimum stays one
    worse = {name: start for name, start in starts.items() if name != "exact"}
    found = run(graph, worse, proposals, beta=beta, seed=seed)
    assert found.cost == graph.cost(found.strategy) <= min(found.start_costs.values())
    assert found.proposals <= proposals


def test_a_seed_decides() -> None:
    graph = random_graph(1, 8, 5)
    start = {"start": [0] * 8}
    assert run(graph, start, 300, seed=5).history != run(graph, start, 300, seed=6).history
    one, two = (run(graph, start, 300, seed=5) for _ in range(2))
    assert (one.strategy, one.accepted) == (two.strategy, two.accepted)


def test_stops_without_improvement() -> None:
    best = minimise(TOY).configs
    budget = Budget(proposals=1000, patience=0.5)
    found = search(lambda s: Additive(TOY, s), [3, 2], {"best": best}, budget)
    assert found.proposals == 500
    budget = Budget(seconds=0.02)
    assert search(lambda s: Additive(TOY, s), [3, 2], {"best": best}, budget).seconds < 10


@pytest.mark.parametrize(
    "options", [{}, {"proposals": -1}, {"seconds": float("nan")}, {"proposals": 1, "patience": 0.0}]
)
def test_wrong_budgets_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"budget|patience|proposals|seconds"):
        Budget(**options)  # type: ignore[arg-type]


def test_wrong_searches_are_refused() -> None:
    with pytest.raises(ValueError, match="start"):
        run(TOY, {}, 10)
    with pytest.raises(ValueError, match="beta is -1"):
        run(TOY, {"a": [0, 0]}, 10, beta=-1.0)
