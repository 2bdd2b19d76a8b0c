"""The space of plans of a model on a machine, and the cheapest plan in it.

Every operation is a node, every tensor between operations an edge; `exact.minimise` finds the
optimum under the additive cost. Memory has a part that adds up (what is kept from forward to
backward) and maxima: what an operation holds while it runs, and of each graph in each form the most
that a layer on it takes. The search goes through the values of the maxima, the graphs' as if the
largest were alone, and finds the cheapest plan whose bound fits. Where it has several graphs that
do not fit together, it branches: one of them is counted beside the others, or made smaller.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
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
    Form,
    Problem,
    Terms,
    configs_of,
    splits_of,
    terms_of,
)
from hag_plugin.units import size


@dataclass(frozen=True)
class Sizes:
    """Bytes of graphs by form: those that are counted, used or not, and what one has at most."""

    counted: Mapping[Form, int]
    most: Mapping[Form, int]

    def beside(self, terms: Terms) -> float:
        """What a configuration takes beside what is counted; `inf` where it may not."""
        if terms.graph > self.most.get(terms.form, terms.graph):
            return float("inf")
        return float(max(terms.graph - self.counted.get(terms.form, 0), 0))


ANY = Sizes({}, {})


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
        return sum(self._graphs(chosen).values())

    def _graphs(self, chosen: Sequence[int]) -> dict[Form, int]:
        """Bytes of each graph that a choice has."""
        found: dict[Form, int] = {}
        for row, k in zip(self.terms, chosen, strict=True):
            found[row[k].form] = max(found.get(row[k].form, 0), row[k].graph)
        return found

    def _split(self, sizes: Sizes, chosen: Sequence[int]) -> tuple[Sizes, ...]:
        """All choices in two: where the graph of which most is not counted is smaller than here,
        and where it is counted as here. Nothing where one alone is not, or none.
        """
        graphs = self._graphs(chosen)
        beside = {form: size - sizes.counted.get(form, 0) for form, size in graphs.items()}
        if sum(size > 0 for size in beside.values()) < 2:
            return ()
        form = max(beside, key=beside.__getitem__)
        smaller = {**sizes.most, form: graphs[form] - 1}
        counted = {**sizes.counted, form: graphs[form]}
        return replace(sizes, most=smaller), replace(sizes, counted=counted)

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
        found = self._first(
            lambda sizes: self._within_limit(limit, sizes),
            lambda choice: choice.cost,
            lambda choice: self.bound(choice.configs) <= limit,
        )
        if found is not None:
            return found
        small = [best, *self._small(ANY), self.least_memory()]
        fits = min(small, key=lambda choice: (self.memory(choice.configs).total, choice.cost))
        needed = self.memory(fits.configs).total
        if needed <= limit:
            return fits
        raise InfeasibleError(
            f"no plan fits in {size(limit)} a device on {self.topology.num_devices} devices: "
            f"the smallest that was found needs {size(needed)} ({needed} bytes)",
            self.least_memory(),
        )

    def _first(
        self,
        find: Callable[[Sizes], Choice | None],
        value: Callable[[Choice], float],
        holds: Callable[[Choice], bool],
    ) -> Choice | None:
        """Of choices that hold the one of least value; `find` gives it where graphs have some
        sizes, as if the largest that is not counted were alone.
        """
        waiting: list[tuple[float, int, Sizes, Choice]] = []
        number = itertools.count()

        def look(sizes: Sizes) -> None:
            choice = find(sizes)
            if choice is not None:
                heapq.heappush(waiting, (value(choice), next(number), sizes, choice))

        look(ANY)
        while waiting:
            _, _, sizes, choice = heapq.heappop(waiting)
            halves = () if holds(choice) else self._split(sizes, choice.configs)
            if not halves:
                return choice
            for half in halves:
                look(half)
        return None

    def _within_limit(self, limit: float, sizes: Sizes) -> Choice | None:
        """The cheapest choice, if the largest graph that is not counted were alone."""
        found: Choice | None = None
        for bound, retained, capped in self._capped(limit, sizes):
            if found is not None and bound >= found.cost:
                break  # the others cannot be cheaper even without a limit
            choice = self._within(retained, capped)
            if choice is not None and (found is None or choice.cost < found.cost):
                found = choice
        return found

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

    def _beside(self, sizes: Sizes) -> list[np.ndarray]:
        """By operation, bytes of graphs of each configuration that are not counted."""
        return [np.array([sizes.beside(t) for t in row]) for row in self.terms]

    def _maxima(self, beside: list[np.ndarray]) -> list[tuple[float, float]]:
        tables = [*self.peak.held, *self.peak.held_between]
        transient = sorted({float(size) for table in tables for size in table.flat})
        graph = sorted({float(size) for sizes in beside for size in sizes} - {np.inf})
        return list(itertools.product(transient, graph))

    def _masked(
        self, graph: CostGraph, transient: float, largest: float, beside: list[np.ndarray]
    ) -> CostGraph | None:
        """Without what exceeds the two maxima, in bytes; None where nothing is left."""
        nodes, edges = [], []
        for costs, sizes, graphs in zip(graph.node_costs, self.peak.held, beside, strict=True):
            legal = (sizes <= transient) & (graphs <= largest)
            nodes.append(np.where(legal, costs, np.inf))
        others = [_nothing(edge) for edge in graph.edges[len(self.graph.edges) :]]
        between = [*self.peak.held_between, *others]
        for (u, v, costs), sizes in zip(graph.edges, between, strict=True):
            edges.append((u, v, np.where(sizes <= transient, costs, np.inf)))
        if any(np.isinf(t).all() for t in [*nodes, *(costs for _, _, costs in edges)]):
            return None
        return CostGraph(nodes, edges)

    def _capped(self, limit: float, sizes: Sizes) -> list[tuple[float, float, CostGraph]]:
        """For all pairs of maxima: the optimum without a limit, bytes left, and the costs."""
        found: dict[bytes, tuple[float, float, CostGraph]] = {}
        left, beside = limit - sum(sizes.counted.values()), self._beside(sizes)
        for transient, graph in self._maxima(beside):
            retained = left - transient - graph
            if retained < 0:
                continue
            capped = self._masked(self.cost_graph, transient, graph, beside)
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
        found = self._first(
            lambda sizes: min(self._small(sizes), key=_bytes, default=None),
            _bytes,
            lambda choice: self.bound(choice.configs) <= _bytes(choice),
        )
        assert found is not None  # the largest maxima rule nothing out
        return replace(found, memory=self.bound(found.configs))

    def _small(self, sizes: Sizes) -> list[Choice]:
        """Of each pair of maxima the choice that keeps least, with its `bound`, as if the largest
        graph that is not counted were alone.
        """
        found = []
        tables = zip(self._pairs, self.peak.kept_between, strict=True)
        pairs = [(u, v, table) for (u, v), table in tables]
        kept = CostGraph(self.peak.kept, pairs + self.shared)
        counted, beside = sum(sizes.counted.values()), self._beside(sizes)
        for transient, graph in self._maxima(beside):
            capped = self._masked(kept, transient, graph, beside)
            if capped is None:
                continue
            try:
                configs = minimise(capped).configs
            except InfeasibleError:
                continue
            alone = max(int(row[k]) for row, k in zip(beside, configs, strict=True))
            bound = self.bound(configs) - self._graph(configs) + counted + alone
            found.append(Choice(configs, self.cost_graph.cost(configs), bound))
        return found


def _bytes(choice: Choice) -> float:
    assert choice.memory is not None
    return choice.memory


def _nothing(edge: tuple[int, int, np.ndarray]) -> np.ndarray:
    """No bytes, for each pair of configurations."""
    return np.zeros_like(edge[2])
