"""What a plan holds at its peak, as numbers of operations and of pairs of them: see `activations`.

What is kept adds up. What is held while one operation runs is a maximum over operations; from it
is taken what later operations will keep at least, for they keep it later. So the figure is never
below the model, and above it only where a plan mixes layouts of very different sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hag_plugin.parallel.layer_steps import turn
from hag_plugin.parallel.layouts import Layout, held
from hag_plugin.parallel.strategies import Config, Problem, Terms

STEPS = 32  # of sizes between powers of two: fewer sizes are searched faster


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
        """The first reader of the features, with each of the others: they may share a layout."""
        readers = [v for u, v in self.edges if self.problems[u].op.kind == "input"]
        return [(readers[0], v) for v in readers[1:]]

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
            self._per_pair(u, v, self._features) for u, v in self.beside
        ]

    def _copy(self, u: int, i: int, v: int, j: int) -> int:
        layout, first = self.configs[v][j].source, self.terms[u][i].held
        if self.problems[u].op.kind == "input":
            others = {w for _, w in self.beside}
            return 0 if v in others else self.size(u, layout) * self.itemsize
        again = layout == self.configs[u][i].target and first.output
        if again or not self._keeps_input(v, j):
            return 0
        return self.size(u, layout) * self.itemsize

    def _features(self, u: int, i: int, v: int, j: int) -> int:
        layouts = self.configs[u][i].source, self.configs[v][j].source
        return 0 if layouts[0] == layouts[1] else self.size(0, layouts[1]) * self.itemsize

    def _keeps_input(self, v: int, j: int) -> bool:
        if self.problems[v].op.needs == "same":
            readers = (w for u, w in self.edges if u == v)
            return any(self._keeps_input(w, k) for w in readers for k in range(len(self.terms[w])))
        return self.gradients[v] and self.terms[v][j].held.input

    # What is held besides --------------------------------------------------------------------

    @cached_property
    def later(self) -> list[float]:
        """Bytes that the operations behind each one keep at least."""
        least = []
        for v, terms in enumerate(self.terms):
            sizes = np.array([float(t.held.kept) for t in terms]) * self.gradients[v]
            sizes *= self.itemsize
            for (u, w), between in zip(self.edges, self.kept_between, strict=False):
                if w == v and self.problems[u].op.kind != "input":
                    sizes += between.min(axis=0)
            least.append(float(sizes.min()))
        behind = np.cumsum(least[::-1])[::-1]
        return [float(size) for size in (*behind[1:], 0.0)]

    @cached_property
    def held(self) -> list[np.ndarray]:
        """By operation, bytes that each configuration holds besides while it runs."""
        return [
            np.array([max(self._forward(v, j), self._backward(v, j)) for j in range(len(terms))])
            for v, terms in enumerate(self.terms)
        ]

    @cached_property
    def held_between(self) -> list[np.ndarray]:
        """By edge, bytes held besides while a tensor changes its layout, either way."""
        return [self._per_pair(u, v, self._changing) for u, v in self.edges]

    def _forward(self, v: int, j: int) -> float:
        """Inputs, output and more; tensors that wait for another branch."""
        op, config, own = self.problems[v].op, self.configs[v][j], self.terms[v][j].held
        if op.kind == "input":
            return 0.0
        values = own.forward
        if not own.output:
            values += self._output(v, config)
        for u in range(1, v):  # the first operation is the features
            if self._always_kept(u) or self._last(u) < v:
                continue
            if not (u in op.inputs and self._keeps_input(v, j)):
                values += self.size(u, config.source)
        return rounded(values * self.itemsize - self.later[v])

    def _backward(self, v: int, j: int) -> float:
        """Gradients of the output and of inputs, those that wait for another branch, and more."""
        op, config, own = self.problems[v].op, self.configs[v][j], self.terms[v][j].held
        if op.kind == "input" or not self.gradients[v]:
            return 0.0
        values = own.backward + self._output(v, config)
        for u in range(1, v):
            if self.gradients[u]:
                wanted = u in op.inputs and op.needs != "same"
                waits = self._last(u) > v
                values += (wanted + waits) * self.size(u, config.source)
        return rounded(values * self.itemsize - self.later[v])

    def _changing(self, u: int, i: int, v: int, j: int) -> float:
        """The tensor in both layouts, and buffers; the copy while the second one runs."""
        before, after = self.configs[u][i].target, self.configs[v][j].source
        if before == after or self.problems[u].op.kind == "input":
            return 0.0
        problem = self.problems[u]
        sizes = self.size(u, before), self.size(u, after)
        moving = sum(sizes) + turn(before, after, problem.rows, problem.op.width)
        if self.gradients[u]:
            moving = max(moving, sum(sizes) + turn(after, before, problem.rows, problem.op.width))
        size = moving * self.itemsize - self.later[v - 1]
        if not self._keeps_input(v, j) and self._always_kept(u):
            size = max(size, self._forward(v, j) + sizes[1] * self.itemsize)
        return rounded(size)

    def _output(self, v: int, config: Config) -> int:
        """Values of the output, of which a loss and what gives its input on have none."""
        op = self.problems[v].op
        return 0 if op.kind == "loss" or op.needs == "same" else self.size(v, config.target)

    def _always_kept(self, u: int) -> bool:
        return self.gradients[u] and all(t.held.output for t in self.terms[u])

    def _last(self, u: int) -> int:
        """The last operation that reads an output."""
        return self._readers[u]

    @cached_property
    def _readers(self) -> dict[int, int]:
        last = dict.fromkeys(range(len(self.terms)), 0)
        for u, v in self.edges:
            last[u] = max(last[u], v)
        return last

    def _per_pair(self, u: int, v: int, value: object) -> np.ndarray:
        table = np.empty((len(self.configs[u]), len(self.configs[v])))
        for i in range(table.shape[0]):
            for j in range(table.shape[1]):
                table[i, j] = value(u, i, v, j)  # type: ignore[operator]
        return table


def rounded(size: float) -> float:
    """Up, by a few percent at most."""
    if size <= 0:
        return 0.0
    step = 2.0 ** math.floor(math.log2(size)) / STEPS
    return math.ceil(size / step) * step
