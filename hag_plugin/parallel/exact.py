"""The cheapest choice of one configuration per node of a graph, exactly.

The cost is additive: every node has a cost for each of its configurations, every edge a cost for
each pair of configurations of its two ends (OptCNN, arXiv 1802.04924, equation 1). Nodes are
eliminated one by one: the cost of an eliminated node, minimised over its own configurations,
becomes a table over its neighbours. With one or two neighbours that is the paper's node
elimination (section 5.2), and adding tables over the same nodes its edge elimination; with more it
is bucket elimination, which reduces every graph. The result is optimal in all cases.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

MAX_TABLE = 1 << 27  # entries of one table: 1 GiB of float64


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


def minimise(
    graph: CostGraph,
    *,
    memory: Sequence[np.ndarray] | None = None,
    edge_memory: Sequence[np.ndarray] | None = None,
    memory_limit: float | None = None,
) -> Choice:
    """The cheapest choice; with a limit, the cheapest whose memory fits.

    The limit is exact: where the cheapest choice does not fit, every table keeps its Pareto
    frontier of cost and memory, thinned by the gap to the Lagrangian bound, which cuts off no
    optimum. Ties go to the same choice in every run.

    Args:
        graph: nodes, edges and their costs.
        memory: of each node, float64 `[configurations]`; a choice takes their sum.
        edge_memory: of each edge, shaped like its costs; added to that of the nodes.
        memory_limit: the most that a choice may take.

    Raises:
        InfeasibleError: every choice is illegal, or none fits; `nearest` then takes least memory.
        ValueError: sizes do not match, or the graph is too dense to be eliminated.

    Example:
        >>> import numpy as np
        >>> stay = np.array([[0.0, 5.0], [5.0, 0.0]])  # changing the layout costs 5
        >>> graph = CostGraph([np.array([1.0, 3.0]), np.array([4.0, 1.0])], [(0, 1, stay)])
        >>> minimise(graph)
        Choice(configs=[1, 1], cost=4.0, memory=None, width=1)
    """
    sizes = _sizes(graph, memory, edge_memory)
    if sizes is None and memory_limit is not None:
        raise ValueError(f"memory_limit is {memory_limit}; expected memory of each node too")
    best = _eliminate(graph, sizes)
    if sizes is None or memory_limit is None or sizes.cost(best.configs) <= memory_limit:
        return best
    from hag_plugin.parallel import pareto

    return pareto.minimise(graph, sizes, memory_limit)


def brute_force(
    graph: CostGraph,
    *,
    memory: Sequence[np.ndarray] | None = None,
    edge_memory: Sequence[np.ndarray] | None = None,
    memory_limit: float = math.inf,
) -> Choice:
    """The slow twin of `minimise`: tries every choice, and takes the first of the cheapest.

    Raises:
        InfeasibleError: every choice is illegal, or none fits.
    """
    sizes = _sizes(graph, memory, edge_memory)
    best: Choice | None = None
    for configs in itertools.product(*(range(len(c)) for c in graph.node_costs)):
        size = None if sizes is None else sizes.cost(configs)
        if size is not None and size > memory_limit:
            continue
        cost = graph.cost(configs)
        if cost < (best.cost if best else math.inf):
            best = Choice(list(configs), cost, size)
    if best is None:
        raise InfeasibleError("no choice is legal and fits")
    return best


def _sizes(
    graph: CostGraph,
    memory: Sequence[np.ndarray] | None,
    edge_memory: Sequence[np.ndarray] | None,
) -> CostGraph | None:
    """Memory as a graph like that of the costs; None where none is given."""
    if memory is None:
        return None
    sizes, expected = [len(m) for m in memory], [len(c) for c in graph.node_costs]
    if sizes != expected:
        raise ValueError(f"memory is given for {sizes} configurations; expected {expected}")
    if edge_memory is None:
        return CostGraph(list(memory))
    shapes, wanted = [m.shape for m in edge_memory], [c.shape for _, _, c in graph.edges]
    if shapes != wanted:
        raise ValueError(f"edge_memory is given for {shapes}; expected {wanted}")
    pairs = [(u, v, m) for (u, v, _), m in zip(graph.edges, edge_memory, strict=True)]
    return CostGraph(list(memory), pairs)


# Elimination ----------------------------------------------------------------------------------


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


def _eliminate(graph: CostGraph, sizes: CostGraph | None) -> Choice:
    tables = [_Table((i,), costs) for i, costs in enumerate(graph.node_costs)]
    tables += [_Table((u, v), c) if u < v else _Table((v, u), c.T) for u, v, c in graph.edges]
    order = elimination_order(graph)
    steps = []
    for node, around in order:
        bucket = [t for t in tables if node in t.scope]
        tables = [t for t in tables if node not in t.scope]
        scope = (*around, node)
        total = np.zeros([len(graph.node_costs[i]) for i in scope])
        for table in bucket:
            ordered = tuple(sorted(scope))
            total += np.moveaxis(table.over(ordered), ordered.index(node), -1)
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
