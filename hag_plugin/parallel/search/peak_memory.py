"""What a plan holds at its peak, as numbers of operations and of pairs of them.

`strategies.activations` says what operations keep and hold.

What is kept adds up. What is held while one operation runs is a maximum over operations; from it
is taken what later operations keep, for they keep it later. A search that does not know yet how
later operations are split takes off what they keep at least: a bound that is never too low.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from hag_plugin.parallel.layouts import Layout, held
from hag_plugin.parallel.strategies.registry import Config, Problem, Terms
from hag_plugin.parallel.strategies.steps import turn

STEPS = 8  # of bounds between powers of two: fewer are searched faster


@dataclass(frozen=True, eq=False)
class PeakMemory:
    """Bytes that configurations keep, and hold while they run.

    Attributes:
        problems: one for each operation.
        configs: of each operation.
        terms: of each configuration.
        gradients: whether the gradient of each operation's output is wanted.
    """

    problems: Sequence[Problem]
    configs: Sequence[Sequence[Config]]
    terms: Sequence[Sequence[Terms]]
    gradients: Sequence[bool]

    @cached_property
    def edges(self) -> list[tuple[int, int]]:
        """(producer, consumer) of every tensor between operations."""
        return self.problems[0].graph.edges

    @cached_property
    def beside(self) -> list[tuple[int, int]]:
        """The first reader of features, with each of the others: they may share a layout."""
        return [pair for _, pair in self._sharing]

    @cached_property
    def _sharing(self) -> list[tuple[int, tuple[int, int]]]:
        """The same with the operation that has the features."""
        first: dict[int, int] = {}
        found = []
        for u, v in self.edges:
            if self.problems[u].op.kind == "input" and first.setdefault(u, v) != v:
                found.append((u, (first[u], v)))
        return found

    @property
    def itemsize(self) -> int:
        """Bytes a value."""
        return self.problems[0].itemsize

    def size(self, op: int, layout: Layout) -> int:
        """Values of an operation's output in a layout."""
        problem = self.problems[op]
        return held(layout, problem.rows, problem.op.width)

    # What is kept ----------------------------------------------------------------------------

    @cached_property
    def kept(self) -> list[np.ndarray]:
        """By operation, bytes that each configuration keeps, and states of its weights."""
        found = []
        for v, terms in enumerate(self.terms):
            values = [t.states + t.held.kept * self.gradients[v] for t in terms]
            found.append(np.array(values, float) * self.itemsize)
        return found

    @cached_property
    def kept_between(self) -> list[np.ndarray]:
        """By edge, then by pair of `beside`, bytes `[first's configurations, second's]`: of an
        input that its consumer keeps and its producer does not, and of features.
        """
        return [self._per_pair(u, v, self._copy) for u, v in self.edges] + [
            self._per_pair(*pair, partial(self._features, u)) for u, pair in self._sharing
        ]

    def _copy(self, u: int, i: int, v: int, j: int) -> int:
        layout, first = self.configs[v][j].source, self.terms[u][i].held
        if self.problems[u].op.kind == "input":
            shares = any(of == u and pair[1] == v for of, pair in self._sharing)
            return 0 if shares else self.size(u, layout) * self.itemsize
        same = layout == self.configs[u][i].target
        handed_on = not same and self.problems[v].op.needs == "same"
        if (same and first.output) or not (handed_on or self._keeps_input(v, j)):
            return 0
        return self.size(u, layout) * self.itemsize

    def _features(self, of: int, u: int, i: int, v: int, j: int) -> int:
        layouts = self.configs[u][i].source, self.configs[v][j].source
        return 0 if layouts[0] == layouts[1] else self.size(of, layouts[1]) * self.itemsize

    def _keeps_input(self, v: int, j: int) -> bool:
        if self.problems[v].op.needs == "same":
            readers = (w for u, w in self.edges if u == v)
            return any(self._keeps_input(w, k) for w in readers for k in range(len(self.terms[w])))
        return self.gradients[v] and self.terms[v][j].held.input

    @cached_property
    def activations(self) -> list[np.ndarray]:
        """By operation, bytes that each configuration keeps, weights left out."""
        pairs = zip(self.terms, self.gradients, strict=True)
        return [np.array([t.held.kept * self.itemsize * wanted for t in terms], float)
                for terms, wanted in pairs]  # fmt: skip

    @cached_property
    def least(self) -> list[float]:
        """Bytes that each operation keeps at least, in any configuration."""
        found = [sizes.copy() for sizes in self.activations]
        for (u, v), between in zip(self.edges, self.kept_between, strict=False):
            if self.problems[u].op.kind != "input":
                found[v] += between.min(axis=0)
        return [float(sizes.min()) for sizes in found]

    # What is held besides --------------------------------------------------------------------

    @cached_property
    def running(self) -> list[np.ndarray]:
        """By operation, bytes that each configuration holds besides while it runs."""
        found = []
        for v, terms in enumerate(self.terms):
            both = [[f(v, j) for j in range(len(terms))] for f in (self._forward, self._backward)]
            found.append(np.array(both, float).max(axis=0) * self.itemsize)
        return found

    @cached_property
    def moving(self) -> list[np.ndarray]:
        """By edge, bytes held besides while a tensor changes its layout, either way."""
        return [self._per_pair(u, v, self._moving) for u, v in self.edges]

    @cached_property
    def reading(self) -> list[np.ndarray]:
        """By edge, bytes held besides while the second operation reads a copy."""
        return [self._per_pair(u, v, self._reading) for u, v in self.edges]

    def _forward(self, v: int, j: int) -> int:
        """Inputs, output and more; tensors that wait for another branch."""
        op, config, own = self.problems[v].op, self.configs[v][j], self.terms[v][j].held
        if op.kind == "input":
            return 0
        values = own.forward
        if not own.output:
            values += self._output(v, config)
        for u in range(v):
            given = self.problems[u].op.kind == "input"
            if given or self._always_kept(u) or self._last[u] < v:
                continue
            if not (u in op.inputs and self._keeps_input(v, j)):
                values += self.size(u, config.source)
        return values

    def _backward(self, v: int, j: int) -> int:
        """Gradients of the output and of inputs, those that wait for another branch, and more.

        Those of a sum's or a concatenation's inputs are (parts of) that of its output.
        """
        op, config, own = self.problems[v].op, self.configs[v][j], self.terms[v][j].held
        if op.kind == "input" or not self.gradients[v]:
            return 0
        values = own.backward + self._output(v, config)
        shared = op.kind in ("sum", "concatenation") and op.needs in ("", "scaled")
        for u in range(1, v):
            if self.gradients[u]:
                wanted = u in op.inputs and op.needs != "same" and not shared
                waits = self._last[u] > v
                values += (wanted + waits) * self.size(u, config.source)
        return values

    def _moving(self, u: int, i: int, v: int, j: int) -> int:
        before, after = self.configs[u][i].target, self.configs[v][j].source
        problem = self.problems[u]
        if before == after or problem.op.kind == "input":
            return 0
        ways = [(before, after), (after, before)][: 1 + self.gradients[u]]
        buffers = max(turn(*way, problem.rows, problem.op.width) for way in ways)
        return (self.size(u, before) + self.size(u, after) + buffers) * self.itemsize

    def _reading(self, u: int, i: int, v: int, j: int) -> int:
        before, after = self.configs[u][i].target, self.configs[v][j].source
        same = before == after or self.problems[u].op.kind == "input"
        if same or self._keeps_input(v, j) or not self._always_kept(u):
            return 0  # there is no copy, or it is counted already
        return (self._forward(v, j) + self.size(u, after)) * self.itemsize

    # The peak --------------------------------------------------------------------------------

    @cached_property
    def held(self) -> list[np.ndarray]:
        """By operation, `running` where later ones keep least: no less than in any plan."""
        later = behind(self.least)
        return [rounded(sizes - later[v]) for v, sizes in enumerate(self.running)]

    @cached_property
    def held_between(self) -> list[np.ndarray]:
        """By edge, `moving` and `reading` likewise."""
        later, found = behind(self.least), []
        for (_, v), *tables in zip(self.edges, self.moving, self.reading, strict=True):
            found.append(rounded(np.maximum(tables[0] - later[v - 1], tables[1] - later[v])))
        return found

    def retained(self, chosen: Sequence[int]) -> float:
        """Bytes that a choice keeps, all in all."""
        total = sum(float(sizes[k]) for sizes, k in zip(self.kept, chosen, strict=True))
        pairs = zip([*self.edges, *self.beside], self.kept_between, strict=True)
        return total + sum(float(sizes[chosen[u], chosen[v]]) for (u, v), sizes in pairs)

    def transient(self, chosen: Sequence[int]) -> float:
        """Bytes that a choice holds besides at its peak."""
        own = [float(sizes[k]) for sizes, k in zip(self.activations, chosen, strict=True)]
        ends = [(u, v, chosen[u], chosen[v]) for u, v in self.edges]
        for (u, v, i, j), sizes in zip(ends, self.kept_between, strict=False):
            if self.problems[u].op.kind != "input":
                own[v] += float(sizes[i, j])
        later = behind(own)
        most = max(float(r[k]) - x for r, k, x in zip(self.running, chosen, later, strict=True))
        for (_, v, i, j), moving, reading in zip(ends, self.moving, self.reading, strict=True):
            most = max(most, moving[i, j] - later[v - 1], reading[i, j] - later[v])
        return max(most, 0.0)

    def bound(self, chosen: Sequence[int]) -> float:
        """Bytes that `transient` cannot exceed, as a maximum over operations and edges."""
        own = [float(sizes[k]) for sizes, k in zip(self.held, chosen, strict=True)]
        pairs = zip(self.edges, self.held_between, strict=True)
        return max(own + [float(sizes[chosen[u], chosen[v]]) for (u, v), sizes in pairs])

    def _output(self, v: int, config: Config) -> int:
        """Values of the output, of which a loss and what gives its input on have none."""
        op = self.problems[v].op
        return 0 if op.kind == "loss" or op.needs == "same" else self.size(v, config.target)

    def _always_kept(self, u: int) -> bool:
        return self.gradients[u] and all(t.held.output for t in self.terms[u])

    @cached_property
    def _last(self) -> dict[int, int]:
        """Of each operation, the last one that reads its output."""
        last = dict.fromkeys(range(len(self.terms)), 0)
        for u, v in self.edges:
            last[u] = max(last[u], v)
        return last

    def _per_pair(self, u: int, v: int, value: Callable[[int, int, int, int], int]) -> np.ndarray:
        pairs = range(len(self.configs[u])), range(len(self.configs[v]))
        return np.array([[value(u, i, v, j) for j in pairs[1]] for i in pairs[0]], float)


def behind(sizes: Sequence[float]) -> list[float]:
    """Of each, the sum of those behind it."""
    return [float(total) for total in (*np.cumsum(sizes[::-1])[::-1][1:], 0.0)]


def rounded(sizes: np.ndarray) -> np.ndarray:
    """Up, by an eighth at most; what is negative to nothing."""
    steps = 2.0 ** np.floor(np.log2(np.maximum(sizes, 1.0))) / STEPS
    up: np.ndarray = np.maximum(np.ceil(sizes / steps) * steps, 0.0)
    return up
