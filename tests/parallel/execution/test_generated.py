"""Whatever is planned runs: models made at random, in plans that are optimal for random costs.

What a plan cannot be made for is refused by `trace`, with the layer's name.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hag_plugin.parallel.machine.topology import preset
from hag_plugin.parallel.model.opgraph import OpGraph
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.search.elimination import InfeasibleError
from hag_plugin.parallel.search.exact import brute_force
from hag_plugin.parallel.search.plan import Plan
from hag_plugin.parallel.search.planner import planned
from hag_plugin.parallel.search.space import Space
from hag_plugin.parallel.strategies.registry import Terms

from .. import generated
from ..equality import bytes_of, compare, sgd, train_alone, train_together
from ..run_ranks import run_processes, run_threads

SEEDS = range(48)


class Dice:
    """What computation costs: more than anything that is sent, and for no reason."""

    def __init__(self, seed: int) -> None:
        self.choose = random.Random(seed)

    def __call__(self, terms: Terms, itemsize: int) -> float:
        return self.choose.random()


def space_of(graph: OpGraph, size: int, seed: int) -> Space:
    machine = preset("a100x8").resized(size)
    return Space(graph, machine, Dice(seed))


def ranks_of(seed: int) -> int:
    return 2 + 2 * (seed % 2)


def plan_of(seed: int, size: int, dropout: float = 0.0) -> tuple[Plan, dict[str, Any]]:
    """An optimal plan of a model, and the bytes of its messages by phase."""
    model = generated.model(seed, dropout)
    space = space_of(trace(model, generated.data(model.pooled), hag=False), size, seed)
    chosen = list(space.cheapest().configs)
    assert space.shares(chosen)
    return planned(space, chosen), bytes_of(space, chosen)


@pytest.mark.mostly_slow("[0-9]")
@pytest.mark.parametrize("seed", SEEDS)
def test_it_trains_as_one_process(seed: int) -> None:
    model, size = generated.model(seed), ranks_of(seed)
    data, (plan, counted) = generated.data(model.pooled), plan_of(seed, size)
    expected = train_alone(model, data, sgd)
    found = run_threads(size, lambda rank: train_together(model, data, plan, sgd))
    compare(found, expected, counted, 1e-9)


@pytest.mark.mostly_slow("[0-3]")
@pytest.mark.parametrize("seed", range(12))
def test_dropout_is_that_of_one_rank(seed: int) -> None:
    model, size = generated.model(seed, dropout=0.5), ranks_of(seed)
    data, found = generated.data(model.pooled), []
    for ranks in (1, size):
        plan, counted = plan_of(seed, ranks, 0.5)
        found.append(run_threads(ranks, lambda rank: train_together(model, data, plan, sgd)))  # noqa: B023
    compare(found[1], found[0][0], counted, 1e-9)


def train_each(rank: int, jobs: list[tuple[int, Plan]]) -> list[Any]:
    """In one process of several."""
    found = []
    for seed, plan in jobs:
        model = generated.model(seed)
        found.append(train_together(model, generated.data(model.pooled), plan, sgd))
    return found


def test_processes() -> None:
    seeds = list(SEEDS)[:12]
    made = [plan_of(seed, 2) for seed in seeds]
    ranks = run_processes(2, train_each, list(zip(seeds, [plan for plan, _ in made], strict=True)))
    for seed, found, (_, counted) in zip(seeds, zip(*ranks, strict=True), made, strict=True):
        model = generated.model(seed)
        expected = train_alone(model, generated.data(model.pooled), sgd)
        compare(list(found), expected, counted, 1e-9)


def test_what_the_models_are() -> None:
    """Layers of all kinds, shared and tied, on all kinds of rows."""
    models = [generated.model(seed) for seed in SEEDS]
    words = {word.partition(",")[0] for model in models for word in model.words}
    assert len(words) >= 12
    assert any(model.pooled for model in models)
    assert sum(len({id(p) for p in m.parameters()}) < len(list(m.named_parameters(
        remove_duplicate=False))) for m in models) >= 3  # fmt: skip
    assert sum(len(model.steps) > len(model.layers) for model in models) >= 8


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), size=st.sampled_from([2, 4]))
def test_the_search_is_exact_with_shared_weights(seed: int, size: int) -> None:
    """Of two random configurations an operation, against all choices that split weights alike."""
    model = generated.model(seed)
    graph = trace(model, generated.data(model.pooled), hag=False)
    full, choose = space_of(graph, size, seed), random.Random(seed)
    few = [choose.sample(configs, min(2, len(configs))) for configs in full.configs]
    if len(few) > 12:
        few = [kept[:1] if i % 2 else kept for i, kept in enumerate(few)]
    space = Space(graph, full.topology, Dice(seed), lambda i, config: config in few[i])
    try:
        slow = brute_force(space.cost_graph)
    except InfeasibleError:
        if space.shared:
            with pytest.raises(InfeasibleError, match=r"share .* expected the same strategy"):
                space.cheapest()
        return
    fast = space.cheapest()
    assert fast.cost == pytest.approx(slow.cost, rel=1e-12)
    assert space.shares(fast.configs)
    assert space.shares(space.least_memory().configs)
    limit = space.memory(space.least_memory().configs).total
    assert space.shares(space.cheapest(limit).configs)
