"""Plans sampled by their simulated time."""

from __future__ import annotations

import pytest

from hag_plugin.parallel import Budget, plan, refine, simulate_plan, space_of
from hag_plugin.parallel.search.space import Space

from ..models import skipping


@pytest.fixture(scope="module", params=["a100x8", "pcie4x4", "4x8hdr", "k80x4"])
def space(request: pytest.FixtureRequest) -> Space:
    return space_of(skipping(), request.param)


def test_sampling_never_loses(space: Space) -> None:
    found = plan(space.graph, topology=space.topology)
    refined = refine(found, space, Budget(proposals=150), seed=1)
    assert refined.sampled <= refined.simulated <= refined.additive + 1e-6
    assert refined.simulated == simulate_plan(found, space).makespan
    assert refined.sampled == simulate_plan(refined.plan, space).makespan
    assert "predicted" in str(refined)
    assert refine(found, space, Budget(proposals=150), seed=1).sampled == refined.sampled


def test_sampling_gains_where_branches_overlap() -> None:
    space = space_of(skipping(), "pcie4x4")
    found = plan(space.graph, topology=space.topology)
    refined = refine(found, space, Budget(proposals=1200), seed=0)
    assert refined.sampled < 0.97 * refined.simulated
    assert refined.plan.seconds > found.seconds  # which the additive cost cannot see


def test_sampling_stays_within_memory() -> None:
    space = space_of(skipping(), "pcie4x4")
    free = plan(space.graph, topology=space.topology)
    limit = 0.8 * free.memory.total
    tight = plan(space.graph, topology=space.topology, memory=limit)
    refined = refine(tight, space, Budget(proposals=300), limit=limit)
    assert refined.plan.memory.total <= limit
