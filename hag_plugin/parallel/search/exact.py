"""The cheapest choice of one configuration per node of a graph, exactly.

The cost is additive (OptCNN, arXiv 1802.04924, equation 1), and nodes are eliminated one by one;
with a memory limit, with Pareto frontiers of cost and memory. The result is optimal in all cases.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from hag_plugin.parallel.search.elimination import Choice, CostGraph, InfeasibleError, eliminate
from hag_plugin.parallel.search.pareto import cheapest_within


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
    best = eliminate(graph, sizes)
    if sizes is None or memory_limit is None or sizes.cost(best.configs) <= memory_limit:
        return best
    return cheapest_within(graph, sizes, memory_limit)


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
