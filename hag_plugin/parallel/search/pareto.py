"""The cheapest choice within a memory limit: elimination with Pareto frontiers.

Each entry of a table is a frontier of (cost, memory) instead of one cost: a partial choice is
dropped only if another, over the same outside nodes, is no worse in both, if it exceeds the limit
already, or if the Lagrangian bound shows that no completion beats a choice known to fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from hag_plugin.parallel.search.elimination import (
    Choice,
    CostGraph,
    InfeasibleError,
    eliminate,
    elimination_order,
)

BISECTIONS = 40
MAX_ENTRIES = 1 << 25


@dataclass(frozen=True)
class _Bound:
    """What the Lagrangian relaxation proves.

    Attributes:
        price: of one unit of memory, in cost.
        gap: by how much an entry's `cost + price * memory` may exceed the best over the same
            outside nodes and still be part of an optimum.
        fits: a choice that fits.
    """

    price: float
    gap: float
    fits: Choice


def cheapest_within(graph: CostGraph, sizes: CostGraph, limit: float) -> Choice:
    """The cheapest choice whose memory is at most `limit`.

    Raises:
        InfeasibleError: none fits; `nearest` is the one that takes least memory.
    """
    bound = _lagrangian(graph, sizes, limit)
    tables = _tables(graph, sizes)
    order = elimination_order(graph)
    for node, around in order:
        bucket = [t for t in tables if node in t.scope]
        tables = [t for t in tables if node not in t.scope]
        tables.append(_join_all(bucket, limit, bound).thinned(around, limit, bound))
    rest = _join_all(tables, limit, bound)
    width = max((len(around) for _, around in order), default=0)
    best = bound.fits
    for entry in np.argsort(rest.cost, kind="stable").tolist():
        choice = _measured(graph, sizes, [c for _, c in sorted(_choice_of(rest, entry).items())])
        if choice.memory is not None and choice.memory <= limit:  # exactly: sums were rounded
            best = min(choice, best, key=lambda c: c.cost)
            break
    return Choice(best.configs, best.cost, best.memory, width)


def _measured(graph: CostGraph, sizes: CostGraph, configs: list[int]) -> Choice:
    return Choice(configs, graph.cost(configs), sizes.cost(configs))


def _lagrangian(graph: CostGraph, sizes: CostGraph, limit: float) -> _Bound:
    """Bisects the price of memory between "for nothing" and "as dear as needed to fit"."""

    def weighed(price: float) -> CostGraph:
        costs = [c + price * m for c, m in zip(graph.node_costs, sizes.node_costs, strict=True)]
        priced_pairs = [(u, v, price * m) for u, v, m in sizes.edges]
        return CostGraph(costs, graph.edges + priced_pairs)

    def priced(price: float) -> Choice:
        return _measured(graph, sizes, eliminate(weighed(price)).configs)

    def excess(choice: Choice) -> float:
        return math.inf if choice.memory is None else choice.memory - limit

    costs = zip(graph.node_costs, sizes.node_costs, strict=True)
    legal = [np.where(np.isinf(c), c, m) for c, m in costs]
    pairs = [(u, v, np.where(np.isinf(c), c, 0.0)) for u, v, c in graph.edges] + sizes.edges
    fits = _measured(graph, sizes, eliminate(CostGraph(legal, pairs)).configs)
    if excess(fits) > 0:
        raise InfeasibleError(
            f"no choice fits in {limit:.6g}: the one that takes least memory takes "
            f"{fits.memory:.6g}",
            fits,
        )
    low, high = 0.0, max((fits.cost - eliminate(graph).cost) / max(abs(limit), 1.0), 1e-30)
    rising = True  # first raise the price until the choice fits, then bisect
    for _ in range(BISECTIONS):
        price = high if rising else (low + high) / 2
        choice = priced(price)
        if excess(choice) <= 0:
            rising, high = False, price
            fits = min(fits, choice, key=lambda c: c.cost)
        else:
            low, high = (price, 4 * price) if rising else (price, high)
    choice = priced(high)
    dual = choice.cost + high * excess(choice)
    slack = 1e-9 * (abs(fits.cost) + abs(dual) + high * abs(limit))  # for the rounding of sums
    return _Bound(high, max(fits.cost - dual, 0.0) + slack, fits)


# Tables of frontiers --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frontiers:
    """Partial choices over the nodes of `scope`, whose indices increase.

    Attributes:
        scope: the nodes that other tables may still share.
        configs: int64 `[entries, len(scope)]`.
        cost: float64 `[entries]`.
        memory: float64 `[entries]`.
        sources: the tables that entries were joined from, each with `[entries]` indices into it.
        names: of a leaf table, the node whose configurations `own` gives.
    """

    scope: tuple[int, ...]
    configs: np.ndarray
    cost: np.ndarray
    memory: np.ndarray
    sources: list[tuple[_Frontiers, np.ndarray]] = field(default_factory=list)
    names: int | None = None

    def thinned(self, scope: tuple[int, ...], limit: float, bound: _Bound) -> _Frontiers:
        """The entries over `scope` alone that may still be part of an optimum."""
        columns = [self.scope.index(i) for i in scope]
        configs = self.configs[:, columns]
        order = np.lexsort((self.cost, self.memory, *configs.T[::-1]))
        order = order[self.memory[order] <= limit + 1e-9 * abs(limit)]
        ranked = configs[order]
        new = np.ones(len(order), bool)
        new[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
        group = np.cumsum(new) - 1
        cost = self.cost[order]
        keep = _falls(cost, group)
        order, group = order[keep], group[keep]
        reduced = self.cost[order] + bound.price * self.memory[order]
        best = np.full(group[-1] + 1 if len(group) else 0, np.inf)
        np.minimum.at(best, group, reduced)
        order = order[reduced - best[group] <= bound.gap]
        return _Frontiers(
            scope,
            configs[order],
            self.cost[order],
            self.memory[order],
            [(table, index[order]) for table, index in self.sources] or [(self, order)],
        )


def _falls(cost: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Where the cost is below all before it in its group; groups are contiguous."""
    if not len(cost):
        return np.zeros(0, bool)
    _, rank = np.unique(cost, return_inverse=True)
    value = rank - group * (len(cost) + 1)  # later groups lie below all earlier ones
    lowest = np.minimum.accumulate(value)
    falls = np.ones(len(cost), bool)
    falls[1:] = value[1:] < lowest[:-1]
    return falls


def _tables(graph: CostGraph, sizes: CostGraph) -> list[_Frontiers]:
    tables = []
    for i, (costs, taken) in enumerate(zip(graph.node_costs, sizes.node_costs, strict=True)):
        legal = np.flatnonzero(np.isfinite(costs))
        own = taken[legal].astype(float)
        tables.append(_Frontiers((i,), legal[:, None], costs[legal], own, names=i))
    free = [(u, v, np.zeros_like(m, float), m) for u, v, m in sizes.edges]
    paid = [(u, v, c, np.zeros_like(c, float)) for u, v, c in graph.edges]
    for u, v, costs, taken in paid + free:
        a, b = np.nonzero(np.isfinite(costs))
        configs = np.stack([a, b] if u < v else [b, a], axis=1)
        scope = (u, v) if u < v else (v, u)
        tables.append(_Frontiers(scope, configs, costs[a, b], taken[a, b].astype(float)))
    return tables


def _join_all(tables: list[_Frontiers], limit: float, bound: _Bound) -> _Frontiers:
    joined = tables[0]
    for table in tables[1:]:
        joined = _join(joined, table)
        joined = joined.thinned(joined.scope, limit, bound)
    return joined


def _join(a: _Frontiers, b: _Frontiers) -> _Frontiers:
    """All pairs of entries that agree on the nodes of both tables."""
    scope = tuple(sorted({*a.scope, *b.scope}))
    shared = [i for i in a.scope if i in b.scope]
    keys_a, keys_b = _keys(a, b, shared)
    order = np.argsort(keys_b, kind="stable")
    first = np.searchsorted(keys_b[order], keys_a, side="left")
    count = np.searchsorted(keys_b[order], keys_a, side="right") - first
    if count.sum() > MAX_ENTRIES:
        raise ValueError(
            f"a frontier of cost and memory grew to {count.sum():,} entries; expected at most "
            f"{MAX_ENTRIES:,}: give fewer configurations or a looser memory limit"
        )
    left = np.repeat(np.arange(len(keys_a)), count)
    within = np.arange(len(left)) - np.repeat(np.cumsum(count) - count, count)
    right = order[np.repeat(first, count) + within]
    columns = [
        a.configs[left, a.scope.index(i)] if i in a.scope else b.configs[right, b.scope.index(i)]
        for i in scope
    ]
    return _Frontiers(
        scope,
        np.stack(columns, axis=1) if columns else np.zeros((len(left), 0), np.int64),
        a.cost[left] + b.cost[right],
        a.memory[left] + b.memory[right],
        [(a, left), (b, right)],
    )


def _keys(a: _Frontiers, b: _Frontiers, shared: list[int]) -> tuple[np.ndarray, np.ndarray]:
    keys_a, keys_b = np.zeros(len(a.cost), np.int64), np.zeros(len(b.cost), np.int64)
    for i in shared:
        column_a, column_b = a.configs[:, a.scope.index(i)], b.configs[:, b.scope.index(i)]
        size = 1 + max(column_a.max(initial=0), column_b.max(initial=0))
        keys_a, keys_b = keys_a * size + column_a, keys_b * size + column_b
    return keys_a, keys_b


def _choice_of(table: _Frontiers, entry: int) -> dict[int, int]:
    """The configurations of all nodes below one entry."""
    configs: dict[int, int] = {}
    stack = [(table, entry)]
    while stack:
        table, entry = stack.pop()
        if table.names is not None:
            configs[table.names] = int(table.configs[entry, 0])
        stack.extend((source, int(index[entry])) for source, index in table.sources)
    return configs
