"""The space of plans of a model on a machine, and the cheapest plan in it.

Every operation is a node, every tensor between operations an edge; `exact.minimise` finds the
optimum under the additive cost. Memory has a part that adds up (what is kept from forward to
backward) and two maxima (what an operation holds while it runs, the graph that layers share): the
search goes through the values of the maxima, and finds the cheapest plan whose bound fits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hag_plugin.parallel.layouts import Layout, Message, reshard
from hag_plugin.parallel.machine.topology import Topology
from hag_plugin.parallel.model.opgraph import OpGraph
from hag_plugin.parallel.search.cost import ComputeCost, Seconds, message_seconds, price
from hag_plugin.parallel.search.elimination import Choice, CostGraph, InfeasibleError
from hag_plugin.parallel.search.exact import minimise
from hag_plugin.parallel.search.peak_memory import PeakMemory
from hag_plugin.parallel.search.plan import Memory
from hag_plugin.parallel.strategies.registry import (
    Config,
    Problem,
    Terms,
    configs_of,
    splits_of,
    terms_of,
)
from hag_plugin.units import size


@dataclass(frozen=True, eq=False)
class Space:
    """All plans of one model on one machine.

    Attributes:
        graph: the model.
        topology: the machine; all its devices are used.
        compute: what computation costs.
        allow: whether a configuration of an operation may be chosen.
    """

    graph: OpGraph
    topology: Topology
    compute: ComputeCost
    allow: Callable[[int, Config], bool] = lambda op, config: True

    @cached_property
    def problems(self) -> list[Problem]:
        """One for each operation."""
        devices = self.topology.num_devices
        return [Problem(self.graph, op, devices) for op in self.graph.ops]

    @cached_property
    def _found(self) -> list[tuple[list[Config], dict[str, str]]]:
        return [configs_of(problem) for problem in self.problems]

    @cached_property
    def configs(self) -> list[list[Config]]:
        """Configurations of each operation.

        Raises:
            InfeasibleError: an operation has none.
        """
        found = []
        for i, (configs, reasons) in enumerate(self._found):
            allowed = [c for c in configs if self.allow(i, c)]
            if not allowed:
                op = self.graph.ops[i]
                words = "; ".join(f"{name}: {why}" for name, why in reasons.items())
                known = sorted({c.strategy for c in configs})
                raise InfeasibleError(
                    f"layer {op.name!r} ({op.layer or op.kind}) cannot be split as asked"
                    f"{' (' + words + ')' if words else ''}; it can be split by: {known}"
                )
            found.append(allowed)
        return found

    @cached_property
    def terms(self) -> list[list[Terms]]:
        """What each configuration takes."""
        pairs = zip(self.problems, self.configs, strict=True)
        return [[terms_of(problem, c) for c in configs] for problem, configs in pairs]

    @cached_property
    def seconds(self) -> list[list[Seconds]]:
        """What each configuration costs."""
        s = self.graph.itemsize
        return [[price(self.topology, self.compute, t, s) for t in row] for row in self.terms]

    @cached_property
    def cost_graph(self) -> CostGraph:
        """The additive cost."""
        nodes = [np.array([s.total for s in row]) for row in self.seconds]
        edges = []
        for u, v in self.graph.edges:
            seconds = self._per_layouts(u, v, self.reshard_seconds)
            edges.append((u, v, seconds))
        for u, v in self.peak.beside:  # they share memory
            edges.append((u, v, np.zeros((len(nodes[u]), len(nodes[v])))))
        return CostGraph(nodes, edges + self.shared)

    @cached_property
    def shared(self) -> list[tuple[int, int, np.ndarray]]:
        """Operations that share a parameter: no cost where they split it alike, else `inf`."""
        splits = [
            [{w.name: splits_of(op, c)[w.role] for w in op.parameters} for c in configs]
            for op, configs in zip(self.graph.ops, self.configs, strict=True)
        ]
        found: dict[tuple[int, int], np.ndarray] = {}
        for name, users in self.graph.users.items():
            for u, v in itertools.pairwise(users):
                unlike = [[a[name] != b[name] for b in splits[v]] for a in splits[u]]
                found[u, v] = found.get((u, v), 0.0) + np.where(unlike, np.inf, 0.0)
        return [(u, v, costs) for (u, v), costs in found.items()]

    def shares(self, chosen: Sequence[int]) -> bool:
        """Whether a choice splits every parameter in one way."""
        return all(costs[chosen[u], chosen[v]] == 0 for u, v, costs in self.shared)

    def _per_layouts(
        self, u: int, v: int, value: Callable[[int, int, Layout, Layout], float]
    ) -> np.ndarray:
        known: dict[tuple[Layout, Layout], float] = {}
        table = np.empty((len(self.configs[u]), len(self.configs[v])))
        for i, j in itertools.product(*map(range, table.shape)):
            key = self.configs[u][i].target, self.configs[v][j].source
            if key not in known:
                known[key] = value(u, v, *key)
            table[i, j] = known[key]
        return table

    def reshard_messages(self, u: int, v: int, before: Layout, after: Layout) -> list[Message]:
        """What is sent between two operations, forward, and backward if a gradient flows."""
        op, problem = self.graph.ops[u], self.problems[u]
        sizes = (problem.rows, op.width, self.graph.itemsize)
        messages = reshard(before, after, *sizes, "forward")
        if self.gradients[u]:
            messages += reshard(after, before, *sizes, "backward")
        return messages

    @cached_property
    def gradients(self) -> list[bool]:
        """Whether the gradient of each operation's output is wanted: weights lie before it."""
        wanted: list[bool] = []
        for op in self.graph.ops:
            wanted.append(bool(op.weights or op.biases) or any(wanted[i] for i in op.inputs))
        return wanted

    def reshard_seconds(self, u: int, v: int, before: Layout, after: Layout) -> float:
        """How long that takes. Fixed features are laid out before training, in every layout."""
        if self.graph.ops[u].kind == "input":
            return 0.0
        messages = self.reshard_messages(u, v, before, after)
        return sum(message_seconds(self.topology, m) for m in messages)

    # Searching -------------------------------------------------------------------------------

    @cached_property
    def peak(self) -> PeakMemory:
        """What configurations keep and hold."""
        return PeakMemory(self.problems, self.configs, self.terms, self.gradients)

    @cached_property
    def _pairs(self) -> list[tuple[int, int]]:
        return [*self.graph.edges, *self.peak.beside]

    def kept(self, chosen: Sequence[int], op: int) -> float:
        """Bytes that an operation keeps in a choice, with what it adds to its inputs."""
        total = float(self.peak.kept[op][chosen[op]])
        for (u, v), sizes in zip(self._pairs, self.peak.kept_between, strict=True):
            total += float(sizes[chosen[u], chosen[v]]) if v == op else 0.0
        return total

    def memory(self, chosen: Sequence[int]) -> Memory:
        """What a choice holds."""
        kept, passing = self.peak.retained(chosen), self.peak.transient(chosen)
        return Memory(round(kept), round(passing), self._graph(chosen))

    def bound(self, chosen: Sequence[int]) -> int:
        """What the search takes for the bytes of a choice: never less than it holds."""
        kept, passing = self.peak.retained(chosen), self.peak.bound(chosen)
        return round(kept) + round(passing) + self._graph(chosen)

    def _graph(self, chosen: Sequence[int]) -> int:
        return max(row[k].graph for row, k in zip(self.terms, chosen, strict=True))

    def cheapest(self, limit: float | None = None) -> Choice:
        """The optimum under the additive cost, within `limit` bytes on every device.

        Where the optimum without a limit does not fit, it is the cheapest whose `bound` does.

        Raises:
            InfeasibleError: none fits; `nearest` is the choice whose bound is least.
        """
        try:
            best = minimise(self.cost_graph)
        except InfeasibleError:
            raise InfeasibleError(self._unshared()) from None
        if limit is None or self.memory(best.configs).total <= limit:
            return best
        found: Choice | None = None
        for bound, retained, capped in self._capped(limit):
            if found is not None and bound >= found.cost:
                break  # the others cannot be cheaper even without a limit
            choice = self._within(retained, capped)
            if choice is not None and (found is None or choice.cost < found.cost):
                found = choice
        if found is not None:
            return found
        small = [best, *self._small()]
        fits = min(small, key=lambda choice: (self.memory(choice.configs).total, choice.cost))
        needed = self.memory(fits.configs).total
        if needed <= limit:
            return fits
        raise InfeasibleError(
            f"no plan fits in {size(limit)} a device on {self.topology.num_devices} devices: "
            f"the smallest that was found needs {size(needed)} ({needed} bytes)",
            self.least_memory(),
        )

    def _unshared(self) -> str:
        """Why there is no plan: what is left of some operations would split a parameter twice."""
        names = {
            (u, v): name
            for name, ops in self.graph.users.items()
            for u, v in itertools.pairwise(ops)
        }
        found = [(u, v) for u, v, costs in self.shared if np.isinf(costs).all()]
        u, v = found[0] if found else next(iter(names))
        known = [sorted({c.strategy for c in self.configs[i]}) for i in (u, v)]
        return (
            f"{self.graph.ops[u].name!r} and {self.graph.ops[v].name!r} share {names[u, v]!r} and "
            f"cannot split it in two ways: one may have {known[0]}, the other {known[1]}; expected "
            "the same strategy for both"
        )

    @cached_property
    def _maxima(self) -> list[tuple[float, int]]:
        tables = [*self.peak.held, *self.peak.held_between]
        transient = sorted({float(size) for table in tables for size in table.flat})
        graph = sorted({t.graph for row in self.terms for t in row})
        return list(itertools.product(transient, graph))

    def _masked(self, graph: CostGraph, transient: float, largest: int) -> CostGraph | None:
        """Without what exceeds the two maxima, in bytes; None where nothing is left."""
        nodes, edges = [], []
        for costs, sizes, row in zip(graph.node_costs, self.peak.held, self.terms, strict=True):
            legal = (sizes <= transient) & np.array([t.graph <= largest for t in row])
            nodes.append(np.where(legal, costs, np.inf))
        beside = [_nothing(edge) for edge in graph.edges[len(self.graph.edges) :]]
        between = [*self.peak.held_between, *beside]
        for (u, v, costs), sizes in zip(graph.edges, between, strict=True):
            edges.append((u, v, np.where(sizes <= transient, costs, np.inf)))
        if any(np.isinf(t).all() for t in [*nodes, *(costs for _, _, costs in edges)]):
            return None
        return CostGraph(nodes, edges)

    def _capped(self, limit: float) -> list[tuple[float, float, CostGraph]]:
        """For all pairs of maxima: the optimum without a limit, bytes left, and the costs."""
        found: dict[bytes, tuple[float, float, CostGraph]] = {}
        for transient, graph in self._maxima:
            retained = limit - transient - graph
            capped = self._masked(self.cost_graph, transient, graph) if retained >= 0 else None
            if capped is None:
                continue
            tables = [*capped.node_costs, *(costs for _, _, costs in capped.edges)]
            key = b"".join(np.isinf(table).tobytes() for table in tables)
            if key in found:
                continue  # where more room allows nothing more, the first pair leaves more
            with suppress(InfeasibleError):
                found[key] = (minimise(capped).cost, retained, capped)
        return sorted(found.values(), key=lambda entry: entry[:2])

    def _within(self, retained: float, capped: CostGraph) -> Choice | None:
        """The cheapest that keeps at most so many bytes; None where none does."""
        nodes, edges = self.peak.kept, [*self.peak.kept_between, *map(_nothing, self.shared)]
        try:
            return minimise(capped, memory=nodes, edge_memory=edges, memory_limit=retained)
        except InfeasibleError:
            return None

    def least_memory(self) -> Choice:
        """The choice of least `bound`; of several the cheapest that the search meets."""
        found = self._small()
        assert found  # the largest maxima rule nothing out
        return min(found, key=lambda choice: choice.memory or 0)

    def _small(self) -> list[Choice]:
        """Of each pair of maxima the choice that keeps least, with its `bound`."""
        found = []
        tables = zip(self._pairs, self.peak.kept_between, strict=True)
        pairs = [(u, v, sizes) for (u, v), sizes in tables]
        kept = CostGraph(self.peak.kept, pairs + self.shared)
        for transient, graph in self._maxima:
            capped = self._masked(kept, transient, graph)
            if capped is None:
                continue
            try:
                configs = minimise(capped).configs
            except InfeasibleError:
                continue
            found.append(Choice(configs, self.cost_graph.cost(configs), self.bound(configs)))
        return found


def _nothing(edge: tuple[int, int, np.ndarray]) -> np.ndarray:
    """No bytes, for each pair of configurations."""
    return np.zeros_like(edge[2])
