"""Choosing one configuration per node of a graph: what that costs, and how nodes are eliminated.

Every node has a cost for each of its configurations, every edge a cost for each pair of
configurations of its two ends (OptCNN, arXiv 1802.04924, equation 1). Nodes are eliminated one by
one: the cost of an eliminated node, minimised over its own configurations, becomes a table over its
neighbours. With one or two neighbours that is the paper's node elimination (section 5.2), and
adding tables over the same nodes its edge elimination; with more it is bucket elimination, which
reduces every graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hag_plugin.saved import set_module

MAX_TABLE = 1 << 27  # entries of one table: 1 GiB of float64


@set_module("hag_plugin.parallel")
class InfeasibleError(ValueError):
    """No choice meets the request.

    Attributes:
        nearest: the choice that comes nearest (least memory), or None where every one is illegal.
    """

    def __init__(self, message: str, nearest: Choice | None = None) -> None:
        super().__init__(message)
        self.nearest = nearest


@dataclass(frozen=True)
class CostGraph:
    """What each configuration costs. `inf` rules out a configuration, or a pair of them.

    Attributes:
        node_costs: for node `i`, float64 `[configurations of i]`.
        edges: `(u, v, costs)`, float64 `[configurations of u, configurations of v]`. Several edges
            may join the same two nodes, in either direction: they add.
    """

    node_costs: list[np.ndarray]
    edges: list[tuple[int, int, np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for i, costs in enumerate(self.node_costs):
            if costs.ndim != 1 or not len(costs):
                raise ValueError(
                    f"costs of node {i} have shape {costs.shape}; expected [1 or more]"
                )
            _check_numbers(f"costs of node {i}", costs)
        nodes = range(len(self.node_costs))
        for u, v, costs in self.edges:
            if u not in nodes or v not in nodes or u == v:
                raise ValueError(f"edge ({u}, {v}); expected two of {len(nodes)} nodes")
            expected = (len(self.node_costs[u]), len(self.node_costs[v]))
            if costs.shape != expected:
                raise ValueError(
                    f"costs of edge ({u}, {v}) have shape {costs.shape}; expected {expected}"
                )
            _check_numbers(f"costs of edge ({u}, {v})", costs)

    def cost(self, configs: Sequence[int]) -> float:
        """The cost of a choice, correctly rounded: independent of the order of the terms."""
        terms = [float(c[k]) for c, k in zip(self.node_costs, configs, strict=True)]
        terms += [float(costs[configs[u], configs[v]]) for u, v, costs in self.edges]
        return math.fsum(terms)


def _check_numbers(what: str, costs: np.ndarray) -> None:
    if np.isnan(costs).any() or np.isneginf(costs).any():
        raise ValueError(f"{what} hold NaN or -inf; expected finite costs, or inf for illegal")


@set_module("hag_plugin.parallel")
@dataclass(frozen=True)
class Choice:
    """One configuration per node.

    Attributes:
        configs: of each node, the index of its configuration.
        cost: their cost, as `CostGraph.cost` gives it.
        memory: their memory, summed; None where none was given.
        width: the most neighbours that a node had when it was eliminated: 1 or 2 throughout where
            the paper's eliminations reduce the graph, more where bucket elimination was needed.
    """

    configs: list[int]
    cost: float
    memory: float | None = None
    width: int = 0


def elimination_order(graph: CostGraph) -> list[tuple[int, tuple[int, ...]]]:
    """Nodes in the order in which to eliminate them, each with its neighbours at that time.

    Greedy: next is the node whose table is smallest; ties go to the lower index.

    Raises:
        ValueError: a table would have more than `MAX_TABLE` entries.
    """
    sizes = [len(c) for c in graph.node_costs]
    neighbours: list[set[int]] = [set() for _ in sizes]
    for u, v, _ in graph.edges:
        neighbours[u].add(v)
        neighbours[v].add(u)

    def table(i: int) -> int:
        return sizes[i] * math.prod(sizes[j] for j in neighbours[i])

    order = []
    tables = {i: table(i) for i in range(len(sizes))}
    while tables:
        node = min(tables, key=lambda i: (tables[i], i))
        if tables[node] > MAX_TABLE:
            raise ValueError(
                f"eliminating node {node} takes a table of {tables[node]:,} entries over "
                f"{len(neighbours[node]) + 1} nodes; expected at most {MAX_TABLE:,}: give fewer "
                "configurations"
            )
        del tables[node]
        around = neighbours[node]
        order.append((node, tuple(sorted(around))))
        for i in around:
            neighbours[i] |= around
            neighbours[i] -= {i, node}
        tables.update((i, table(i)) for i in around)
    return order


@dataclass(frozen=True)
class _Table:
    """Costs over the configurations of some nodes, whose indices increase."""

    scope: tuple[int, ...]
    costs: np.ndarray

    def over(self, scope: tuple[int, ...]) -> np.ndarray:
        """The costs with an axis of length 1 for each node of `scope` that is not in this table."""
        return self.costs.reshape(
            [self.costs.shape[self.scope.index(i)] if i in self.scope else 1 for i in scope]
        )


def _tables(graph: CostGraph) -> list[_Table]:
    found = [_Table((i,), costs) for i, costs in enumerate(graph.node_costs)]
    return found + [_Table((u, v), c) if u < v else _Table((v, u), c.T) for u, v, c in graph.edges]


def _sum(graph: CostGraph, tables: Sequence[_Table], scope: tuple[int, ...]) -> np.ndarray:
    total = np.zeros([len(graph.node_costs[i]) for i in scope])
    for table in tables:
        total += table.over(scope)
    return total


def eliminate(graph: CostGraph, sizes: CostGraph | None = None) -> Choice:
    """The cheapest choice, with what it takes of `sizes`, a graph like that of the costs.

    Raises:
        InfeasibleError: every choice is illegal.
        ValueError: the graph is too dense to be eliminated.
    """
    tables = _tables(graph)
    order = elimination_order(graph)
    steps = []
    for node, around in order:
        bucket = [t for t in tables if node in t.scope]
        tables = [t for t in tables if node not in t.scope]
        scope = tuple(sorted((*around, node)))
        total = np.moveaxis(_sum(graph, bucket, scope), scope.index(node), -1)
        steps.append((node, around, total.argmin(axis=-1)))
        tables.append(_Table(around, total.min(axis=-1)))
    configs = [0] * len(graph.node_costs)
    for node, around, best in reversed(steps):
        configs[node] = int(best[tuple(configs[i] for i in around)])
    cost = graph.cost(configs)
    if math.isinf(cost):
        raise InfeasibleError("every choice of configurations holds an illegal one")
    width = max((len(around) for _, around in order), default=0)
    return Choice(configs, cost, None if sizes is None else sizes.cost(configs), width)


def marginals(graph: CostGraph) -> list[np.ndarray]:
    """Of each node, of each configuration: the cost of the cheapest choice that has it.

    Raises:
        ValueError: the graph is too dense to be eliminated.

    Example:
        >>> stay = np.array([[0.0, 5.0], [5.0, 0.0]])
        >>> graph = CostGraph([np.array([1.0, 3.0]), np.array([4.0, 1.0])], [(0, 1, stay)])
        >>> [costs.tolist() for costs in marginals(graph)]
        [[5.0, 4.0], [5.0, 4.0]]
    """
    tables, order = _tables(graph), elimination_order(graph)
    place = {node: i for i, (node, _) in enumerate(order)}
    scopes = {node: tuple(sorted((*around, node))) for node, around in order}
    buckets: dict[int, list[_Table]] = {}
    made: dict[int, _Table] = {}
    for node, around in order:
        buckets[node] = [t for t in tables if node in t.scope]
        total = _sum(graph, buckets[node], scopes[node])
        made[node] = _Table(around, total.min(axis=scopes[node].index(node)))
        tables = [t for t in tables if node not in t.scope] + [made[node]]
    found = list(graph.node_costs)
    rest: dict[int, _Table] = {}  # of each node: what all that is not below it costs
    for node, around in reversed(order):
        others, wide = [t for t in tables if t is not made[node]], around
        if around:
            first = min(around, key=place.__getitem__)
            wide = scopes[first]
            others = [t for t in buckets[first] if t is not made[node]] + [rest[first]]
        outside = tuple(axis for axis, i in enumerate(wide) if i not in around)
        rest[node] = _Table(around, _sum(graph, others, wide).min(axis=outside))
        whole = _sum(graph, [*buckets[node], rest[node]], scopes[node])
        found[node] = whole.min(axis=tuple(a for a, i in enumerate(scopes[node]) if i != node))
    return found
