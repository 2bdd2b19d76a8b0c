"""Plans sampled by their simulated time, from where the additive optimum stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hag_plugin.arguments import check_flag, check_kind, number, whole
from hag_plugin.parallel.search.plan import Plan
from hag_plugin.parallel.search.planner import planned
from hag_plugin.parallel.search.space import Space
from hag_plugin.parallel.simulation.mcmc import Budget, Search, random_strategies, search
from hag_plugin.parallel.simulation.plan_tasks import PlanModel
from hag_plugin.parallel.simulation.strategy_model import SimulatedStrategy
from hag_plugin.saved import set_module


class _Legal(SimulatedStrategy):
    """Refuses, at infinite cost, what does not fit or splits a shared parameter in two ways."""

    def __init__(self, model: PlanModel, strategy: Sequence[int], limit: float) -> None:
        super().__init__(model, strategy)
        self._space, self._limit, self._refused = model.space, limit, False

    def propose(self, node: int, config: int) -> float:
        changed = list(self.strategy)
        changed[node] = config
        is_legal = self._space.shares(changed)
        self._refused = not is_legal or self._space.memory(changed).total > self._limit
        return float("inf") if self._refused else super().propose(node, config)

    def reject(self) -> None:
        if not self._refused:
            super().reject()


@set_module("hag_plugin.parallel")
@dataclass(frozen=True)
class Refined:
    """A plan, sampled from where the additive optimum stood.

    Attributes:
        plan: the best found, priced additively as all plans are.
        additive: predicted seconds of the plan it started from, nothing overlapping.
        simulated: of the same plan, simulated.
        sampled: of the best plan, simulated; never above `simulated`.
        search: what the sampler did.
    """

    plan: Plan
    additive: float
    simulated: float
    sampled: float
    search: Search

    def __str__(self) -> str:
        return (
            f"additive optimum {self.additive * 1e3:.4g} ms, simulated {self.simulated * 1e3:.4g} "
            f"ms, MCMC {self.sampled * 1e3:.4g} ms (predicted; simulator gap "
            f"{1 - self.sampled / self.simulated:.1%} after {self.search.proposals} proposals)"
        )


@set_module("hag_plugin.parallel")
def refine(
    plan: Plan,
    space: Space,
    budget: Budget,
    *,
    limit: float | None = None,
    randoms: int = 1,
    seed: int = 0,
    progress: bool = False,
) -> Refined:
    """Samples plans by their simulated time, from a plan, its kin without overlap, and random ones.

    Args:
        plan: where to start, such as the additive optimum.
        space: configurations to choose from.
        budget: when to stop.
        limit: bytes of a device; by default what the topology says.
        randoms: random plans to start from as well; those that do not fit are left out.
        seed: of proposals.
        progress: show a bar on stderr.

    Returns:
        The best plan: its simulated time is never above that of `plan`.

    Raises:
        ValueError: the plan is not one of the space's.

    Example:
        >>> from hag_plugin.parallel.model.opgraph import Op, OpGraph, gcn
        >>> from hag_plugin.parallel.graphs.stats import GraphStats
        >>> from hag_plugin.parallel.search.planner import plan, space_of
        >>> ops = [Op("x", "input", width=64), gcn("conv", 0, 64, 8), Op("loss", "loss", (1,), 8)]
        >>> graph = OpGraph.of(ops, {"A": GraphStats.assumed(10_000, 500_000)})
        >>> found = plan(graph, topology="pcie4x4")
        >>> refined = refine(found, space_of(graph, "pcie4x4"), Budget(proposals=20))
        >>> refined.sampled <= refined.simulated
        True
    """
    check_kind("plan", plan, Plan)
    check_kind("space", space, Space)
    check_kind("budget", budget, Budget)
    check_flag("progress", progress)
    randoms, seed = whole("randoms", randoms, 0, 10_000), whole("seed", seed, 0, 2**63 - 1)
    limit = None if limit is None else number("limit", limit)
    plan.check(space.graph, space.topology.num_devices)
    model = PlanModel(space)
    most = space.topology.memory if limit is None else limit
    start = model.numbers(plan)
    starts = {"plan": start}
    for name, strategy in random_strategies(model.sizes, randoms, seed).items():
        if space.shares(strategy) and space.memory(strategy).total <= most:
            starts[name] = strategy
    found = search(
        lambda strategy: _Legal(model, strategy, most), model.sizes, starts, budget,
        seed=seed, progress=progress,
    )  # fmt: skip
    best = planned(space, found.strategy, plan.costs, plan.baselines)
    return Refined(best, plan.seconds, found.start_costs["plan"], found.cost, found)
