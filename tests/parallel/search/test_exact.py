"""The exact search equals brute force, with and without a memory limit."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hag_plugin.parallel.search.elimination import (
    CostGraph,
    InfeasibleError,
    elimination_order,
    marginals,
)
from hag_plugin.parallel.search.exact import brute_force, minimise


def random_graph(seed: int, integers: bool) -> tuple[CostGraph, list, list]:
    """A graph of up to 7 nodes with up to 4 configurations, parallel edges and illegal pairs."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, rng.integers(1, 8))

    def numbers(*shape: int) -> np.ndarray:
        return rng.integers(0, 9, shape).astype(float) if integers else rng.random(shape)

    density = rng.random()
    edges = []
    for u in range(len(sizes)):
        for v in range(len(sizes)):
            if u != v and rng.random() < density:
                costs = numbers(sizes[u], sizes[v])
                costs[rng.random(costs.shape) < 0.05] = np.inf
                edges.append((u, v, costs))
    memory = [rng.integers(0, 9, k).astype(float) for k in sizes]
    edge_memory = [rng.integers(0, 4, c.shape).astype(float) for _, _, c in edges]
    return CostGraph([numbers(k) for k in sizes], edges), memory, edge_memory


def test_equals_brute_force_on_400_random_graphs() -> None:
    widths = []
    for seed in range(400):
        graph, _, _ = random_graph(seed, integers=seed % 2 == 0)
        try:
            slow = brute_force(graph)
        except InfeasibleError:
            with pytest.raises(InfeasibleError):
                minimise(graph)
            continue
        fast = minimise(graph)
        assert fast.cost == pytest.approx(slow.cost, rel=1e-12, abs=1e-12)
        assert graph.cost(fast.configs) == fast.cost
        widths.append(fast.width)
    assert max(widths) >= 3  # some needed more than node and edge elimination
    assert widths.count(1) + widths.count(2) > 50


def test_each_configuration_costs_what_the_cheapest_choice_with_it_does() -> None:
    widths = set()
    for seed in range(200):
        graph, _, _ = random_graph(seed, integers=seed % 2 == 0)
        sizes = [range(len(costs)) for costs in graph.node_costs]
        expected = [np.full(len(size), np.inf) for size in sizes]
        for configs in itertools.product(*sizes):
            cost = graph.cost(configs)
            for costs, k in zip(expected, configs, strict=True):
                costs[k] = min(costs[k], cost)
        for fast, slow in zip(marginals(graph), expected, strict=True):
            np.testing.assert_allclose(fast, slow, rtol=1e-12, atol=1e-12)
        widths |= {len(around) for _, around in elimination_order(graph)}
    assert max(widths) >= 3


@pytest.mark.slow
def test_equals_brute_force_within_memory_on_300_random_graphs() -> None:
    met = {"fits": 0, "binds": 0, "infeasible": 0}
    for seed in range(300):
        graph, memory, edge_memory = random_graph(1000 + seed, integers=seed % 2 == 0)
        given_edges = edge_memory if seed % 3 else None
        limit = float(np.random.default_rng(seed).integers(2, 30))
        try:
            slow = brute_force(graph, memory=memory, edge_memory=given_edges, memory_limit=limit)
        except InfeasibleError:
            with pytest.raises(InfeasibleError):
                minimise(graph, memory=memory, edge_memory=given_edges, memory_limit=limit)
            met["infeasible"] += 1
            continue
        fast = minimise(graph, memory=memory, edge_memory=given_edges, memory_limit=limit)
        assert fast.cost == pytest.approx(slow.cost, rel=1e-12, abs=1e-12)
        assert fast.memory is not None
        assert fast.memory <= limit
        met["fits" if fast.cost == minimise(graph).cost else "binds"] += 1
    assert min(met.values()) > 20, met


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_chains_need_width_one(seed: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    edges = [(i, i + 1, rng.random((3, 3))) for i in range(length - 1)]
    graph = CostGraph([rng.random(3) for _ in range(length)], edges)
    fast = minimise(graph)
    assert fast.width == 1
    assert fast.cost == pytest.approx(brute_force(graph).cost, rel=1e-12)


def test_deep_models_with_skips_are_eliminated_with_small_tables() -> None:
    rng = np.random.default_rng(0)
    layers, configs = 24, 16
    edges = [(i, i + 1, rng.random((configs, configs))) for i in range(layers - 1)]
    edges += [(i, i + 2, rng.random((configs, configs))) for i in range(layers - 2)]
    edges += [(i, layers - 1, rng.random((configs, configs))) for i in range(layers - 2)]
    graph = CostGraph([rng.random(configs) for _ in range(layers)], edges)
    choice = minimise(graph)
    assert choice.width <= 3
    assert choice.cost == graph.cost(choice.configs)
    moved = list(choice.configs)
    for i in range(layers):  # no single change improves an optimum
        for k in range(configs):
            moved[i] = k
            assert graph.cost(moved) >= choice.cost
        moved[i] = choice.configs[i]


def test_ties_go_to_the_same_choice() -> None:
    graph = CostGraph([np.zeros(3), np.zeros(2)], [(0, 1, np.zeros((3, 2)))])
    assert minimise(graph).configs == [0, 0] == brute_force(graph).configs


def test_parallel_and_reversed_edges_add() -> None:
    a, b = np.array([[0.0, 2.0], [3.0, 9.0]]), np.array([[7.0, 0.0], [0.0, 0.0]])
    graph = CostGraph([np.zeros(2), np.zeros(2)], [(0, 1, a), (1, 0, b), (0, 1, a)])
    assert minimise(graph).cost == brute_force(graph).cost == 4.0


def test_infeasible_names_the_least_memory() -> None:
    graph = CostGraph([np.array([1.0, 2.0])] * 2)
    memory = [np.array([8.0, 5.0])] * 2
    with pytest.raises(InfeasibleError, match="takes 10") as caught:
        minimise(graph, memory=memory, memory_limit=9.0)
    assert caught.value.nearest is not None
    assert caught.value.nearest.configs == [1, 1]
    assert minimise(graph, memory=memory, memory_limit=13.0).cost == 3.0


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"edge \(0, 0\)"):
        CostGraph([np.zeros(2)], [(0, 0, np.zeros((2, 2)))])
    with pytest.raises(ValueError, match=r"shape \(2, 3\); expected \(2, 2\)"):
        CostGraph([np.zeros(2)] * 2, [(0, 1, np.zeros((2, 3)))])
    with pytest.raises(ValueError, match="NaN"):
        CostGraph([np.array([math.nan])])
    with pytest.raises(ValueError, match="expected memory"):
        minimise(CostGraph([np.zeros(2)]), memory_limit=1.0)
    with pytest.raises(ValueError, match=r"memory is given for \[3\]"):
        minimise(CostGraph([np.zeros(2)]), memory=[np.zeros(3)])


def test_a_graph_too_dense_is_refused() -> None:
    clique = [(i, j, np.zeros((50, 50))) for i in range(8) for j in range(i)]
    with pytest.raises(ValueError, match="give fewer"):
        elimination_order(CostGraph([np.zeros(50)] * 8, clique))
