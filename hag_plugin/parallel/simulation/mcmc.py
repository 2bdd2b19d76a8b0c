"""Metropolis-Hastings over strategies (FlexFlow, arXiv 1807.05358, section 6).

Strategies are sampled in proportion to exp(-beta cost). A proposal gives one operation, chosen
uniformly, another of its configurations, chosen uniformly; so it is as likely as its reverse, and
it is accepted with probability min(1, exp(beta (cost - new cost))).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hag_plugin.arguments import number, whole
from hag_plugin.progress import bar
from hag_plugin.saved import set_module

WORSE_BY = 0.01  # by default a strategy that is this much worse is accepted once in e times


class Chain(Protocol):
    """A strategy with its cost, that can be changed by one operation at a time."""

    strategy: list[int]

    @property
    def cost(self) -> float:
        """Of the current strategy."""
        ...

    def propose(self, node: int, config: int) -> float:
        """The cost with another configuration of one operation."""
        ...

    def accept(self) -> None:
        """Takes the proposal."""
        ...

    def reject(self) -> None:
        """Stays with the current strategy."""
        ...


@set_module("hag_plugin.parallel")
@dataclass(frozen=True)
class Budget:
    """When a search ends, for all starts together: whichever comes first.

    Attributes:
        proposals: how many, or None. Without `seconds`, the result depends on the seed alone.
        seconds: how long, or None.
        patience: a start is left after this share of its budget without a better strategy (half of
            it in the paper); 1 uses the budget up.

    Raises:
        ValueError: neither is given, or one is negative.
    """

    proposals: int | None = None
    seconds: float | None = None
    patience: float = 0.5

    def __post_init__(self) -> None:
        if self.proposals is None and self.seconds is None:
            raise ValueError("budget is empty; expected proposals or seconds")
        if self.proposals is not None:
            whole("proposals", self.proposals, 0, 2**63 - 1)
        if self.seconds is not None:
            number("seconds", self.seconds)
        number("patience", self.patience)
        if not 0 < self.patience <= 1:
            raise ValueError(f"patience is {self.patience}; expected more than 0, at most 1")


@set_module("hag_plugin.parallel")
@dataclass
class Search:
    """What a search found.

    Attributes:
        strategy: the best, one configuration for each operation.
        cost: its cost; never above that of any start.
        start_costs: cost of each start, by name.
        best_start: the name of the start that led to it.
        proposals: how many were tried.
        accepted: how many were accepted.
        seconds: of wall-clock time.
        history: (proposals, seconds, cost) at each better strategy.
    """

    strategy: list[int]
    cost: float
    start_costs: dict[str, float]
    best_start: str
    proposals: int = 0
    accepted: int = 0
    seconds: float = 0.0
    history: list[tuple[int, float, float]] = field(default_factory=list)


def search(
    chain: Callable[[Sequence[int]], Chain],
    num_configs: Sequence[int],
    starts: Mapping[str, Sequence[int]],
    budget: Budget,
    *,
    beta: float | None = None,
    seed: int = 0,
    progress: bool = False,
    visit: Callable[[Sequence[int]], None] | None = None,
) -> Search:
    """Looks for the cheapest strategy, from several starts one after the other.

    Args:
        chain: makes a chain that starts at a strategy, such as a `SimulatedStrategy`.
        num_configs: configurations of each operation.
        starts: strategies by name, such as the optimum of the additive cost, data parallelism and
            random ones (`random_strategies`). Each gets the same share of the budget.
        budget: when to stop.
        beta: acceptance falls by e per 1 / beta of cost; by default per `WORSE_BY` of the cheapest
            start's cost.
        seed: of proposals and acceptance.
        progress: show a bar on stderr.
        visit: called with the strategy after each proposal.

    Raises:
        ValueError: there is no start, or beta is not positive or zero.

    Example:
        >>> class Sum:
        ...     def __init__(self, strategy): self.strategy = list(strategy)
        ...     cost = property(lambda self: float(sum(self.strategy)))
        ...     def propose(self, node, config):
        ...         self.new = [*self.strategy[:node], config, *self.strategy[node + 1:]]
        ...         return float(sum(self.new))
        ...     def accept(self): self.strategy = self.new
        ...     def reject(self): pass
        >>> search(Sum, [3, 3], {"worst": [2, 2]}, Budget(proposals=50)).strategy
        [0, 0]
    """
    if not starts:
        raise ValueError("there is no strategy to start from")
    if beta is not None and not 0 <= beta < math.inf:
        raise ValueError(f"beta is {beta}; expected 0 or more")
    choose = random.Random(seed)
    chains = {name: chain(strategy) for name, strategy in starts.items()}
    costs = {name: one.cost for name, one in chains.items()}
    best_start = min(costs, key=costs.__getitem__)
    found = Search(list(starts[best_start]), costs[best_start], costs, best_start)
    if beta is None:
        beta = 1.0 / (WORSE_BY * found.cost) if found.cost > 0 else 0.0
    began = time.perf_counter()
    options = {"total": budget.proposals, "unit": " proposals", "desc": "MCMC"}
    with bar(progress, **options) as shown:
        for number, name in enumerate(starts):
            one, share = chains.pop(name), _Share(budget, len(starts), number)
            for accepted in _walk(one, num_configs, share, beta, choose):
                found.proposals += 1
                found.accepted += accepted
                if one.cost < found.cost:
                    found.cost, found.strategy, found.best_start = one.cost, [*one.strategy], name
                    elapsed = time.perf_counter() - began
                    found.history.append((found.proposals, elapsed, found.cost))
                if visit is not None:
                    visit(one.strategy)
                shown.update()
    found.seconds = time.perf_counter() - began
    return found


def _walk(
    chain: Chain, num_configs: Sequence[int], share: _Share, beta: float, choose: random.Random
) -> Iterator[bool]:
    """Proposes until the share is spent; yields whether each proposal was accepted."""
    free = [node for node, count in enumerate(num_configs) if count > 1]
    best = chain.cost
    while free and not share.spent():
        share.proposals += 1
        node = free[choose.randrange(len(free))]
        config = choose.randrange(num_configs[node] - 1)
        config += config >= chain.strategy[node]  # any but the one it has
        old, new = chain.cost, chain.propose(node, config)
        accepted = new <= old or choose.random() < math.exp(beta * (old - new))
        if accepted:
            chain.accept()
        else:
            chain.reject()
        if chain.cost < best:
            best = chain.cost
            share.better()
        yield accepted


class _Share:
    """One start's share of a budget."""

    def __init__(self, budget: Budget, starts: int, number: int) -> None:
        self.proposals = 0
        self._most = math.inf
        if budget.proposals is not None:  # shares differ by one at most, and add up
            whole = budget.proposals
            self._most = whole * (number + 1) // starts - whole * number // starts
        self._seconds = math.inf if budget.seconds is None else budget.seconds / starts
        self._patience = budget.patience
        self._began = time.perf_counter()
        self.better()

    def better(self) -> None:
        """Notes that a better strategy was found."""
        self._better = self.proposals, time.perf_counter() if self._seconds < math.inf else 0.0

    def spent(self) -> bool:
        """Whether to stop."""
        proposals, seconds = self._better
        if self.proposals >= min(self._most, proposals + math.ceil(self._patience * self._most)
                                 if self._most < math.inf else self._most):  # fmt: skip
            return True
        if self._seconds == math.inf:
            return False
        now = time.perf_counter()
        return now >= min(self._began + self._seconds, seconds + self._patience * self._seconds)


def random_strategies(num_configs: Sequence[int], count: int, seed: int) -> dict[str, list[int]]:
    """Strategies of uniformly chosen configurations, by name.

    Example:
        >>> random_strategies([2, 3], 1, seed=0)
        {'random 1': [1, 1]}
    """
    choose = random.Random(seed)
    return {f"random {i + 1}": [choose.randrange(n) for n in num_configs] for i in range(count)}
