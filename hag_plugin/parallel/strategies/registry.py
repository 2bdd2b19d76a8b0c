"""How one operation may be split over P devices: one registry entry for each strategy.

A strategy says when it is legal, which configurations it has, and for each what every device
computes, sends and holds, forward and backward. Which dimension is split is said in the terms of
SOAP (FlexFlow, arXiv 1807.05358): sample (nodes), operator (relations), attribute (heads, features
that are aggregated), parameter (weights). The executor has a class of the name `executor`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from hag_plugin.parallel.graphs.stats import GraphStats, HagCounts, PartitionStats
from hag_plugin.parallel.layouts import Layout, Message, Split, chunk_sizes, even
from hag_plugin.parallel.model.opgraph import Op, OpGraph, Weight
from hag_plugin.parallel.strategies.activations import Held
from hag_plugin.reducers import LINEAR
from hag_plugin.saved import set_module

ORDERS = ("", "aggregate-first", "transform-first")
HAGS = ("off", "whole", "part")
INDEX = 4  # bytes of a source id
LONG = 8  # of an id as PyG's layers take it
EXACT = 4  # of a number that sums of half types are made with, at least
ROW = 12  # of a row of a graph: where its sources begin, and a scale
OP = 12  # of a row that a program writes: where its sources begin, and which it is
STATES = 4  # a weight, its gradient and two moments of Adam


@set_module("hag_plugin.parallel")
@dataclass(frozen=True)
class Config:
    """One way to run one operation.

    Attributes:
        strategy: the name of its registry entry.
        source: the layout in which it takes all its inputs.
        target: the layout of its output.
        order: of a convolution with weights, "aggregate-first" or "transform-first".
        hag: "off" (the plain graph), "whole", or "part" (each part's own).
    """

    strategy: str
    source: Layout
    target: Layout
    order: str = ""
    hag: str = "off"

    def __str__(self) -> str:
        words = [self.strategy, f"{self.source} to {self.target}"]
        return ", ".join(words + [w for w in (self.order,) if w])


@dataclass(frozen=True)
class Aggregation:
    """Rows of `width` that the busiest device reads and writes in one phase."""

    phase: str
    rows_read: int
    rows_written: int
    width: int


@dataclass(frozen=True)
class Product:
    """`times` dense products of `[m, k]` and `[k, n]` on the busiest device."""

    phase: str
    m: int
    k: int
    n: int
    times: int = 1

    @property
    def flops(self) -> int:
        """A multiplication and an addition for each pair."""
        return 2 * self.m * self.k * self.n * self.times


Form = tuple[str | int | bool, ...]


@dataclass
class Terms:
    """What a configuration takes, per device.

    Attributes:
        aggregations: sums over neighbours.
        products: dense products.
        streams: `(phase, values)` that elementwise work reads and writes.
        messages: what is sent in each step.
        laid_out: what is sent once, before the first: rows of features that are given.
        states: values that are there all the time: weights, their gradients and moments of the
            optimiser.
        held: what is kept for the backward pass and held while the operation runs.
        graph: bytes of the graph it runs on, in its form; layers on the same share them.
        form: which graph of the model that is, and how it is cut and laid out; see `form_of`.
        own: the share of its aggregations, and of the elementwise work on their edges, that does
            not wait for rows of others, 0 to 1.
    """

    aggregations: list[Aggregation] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    streams: list[tuple[str, int]] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    laid_out: list[Message] = field(default_factory=list)
    states: int = 0
    held: Held = field(default_factory=Held)
    graph: int = 0
    form: Form = ()
    own: float = 0.0

    def linear(self, m: int, k: int, n: int, input_grad: bool, times: int = 1) -> None:
        """`[m, k]` times weights `[k, n]`, with the gradients of both."""
        if not (m and k and n and times):
            return
        self.products.append(Product("forward", m, k, n, times))
        self.products.append(Product("backward", k, m, n, times))
        if input_grad:
            self.products.append(Product("backward", m, n, k, times))

    def aggregate(self, counts: HagCounts, width: int, input_grad: bool, times: int = 1) -> None:
        """A sum over neighbours, and over the reversed edges in the backward pass."""
        for phase in ("forward", "backward") if input_grad else ("forward",):
            read, written = counts.rows_read * times, counts.rows_written * times
            self.aggregations.append(Aggregation(phase, read, written, width))

    def on_graph(self, edges: int, targets: int, sources: int, backward: bool) -> None:
        """A graph as it is: its programs have their sources from it. The reverse is one, too."""
        for rows in (targets, sources) if backward else (targets,):
            self.graph += INDEX * edges + (ROW + OP) * rows

    @property
    def flops(self) -> int:
        """Of products and sums, forward and backward: an edge counts 2 for each feature."""
        sums = sum(2 * a.rows_read * a.width for a in self.aggregations)
        return sums + sum(p.flops for p in self.products)

    def sent(self, *phases: str) -> np.ndarray | int:
        """Bytes each device sends in these phases, by default in all: int64 `[P]`, or 0."""
        chosen = [m.sent for m in self.messages if not phases or m.phase in phases]
        return np.sum(chosen, axis=0) if chosen else 0


@dataclass(frozen=True, eq=False)
class Problem:
    """One operation, the model it is part of, and how many devices there are."""

    graph: OpGraph
    op: Op
    devices: int

    @cached_property
    def rows(self) -> np.ndarray:
        """Rows of each part, int64 `[P]`."""
        if self.op.rows is not None:
            return chunk_sizes(self.op.rows, self.devices)
        return self.graph.rows(self.devices, self.op.of)

    @cached_property
    def source_rows(self) -> np.ndarray:
        """Rows of each part that its edges come from, int64 `[P]`: of its first input."""
        if not self.op.inputs:
            return self.rows
        return replace(self, op=self.graph.ops[self.op.inputs[0]]).rows

    @property
    def stats(self) -> GraphStats:
        """The graph that the operation aggregates over."""
        return self.graph.graphs[self.op.graph]

    @property
    def partition(self) -> PartitionStats:
        """That graph, a part for each device."""
        return self.stats.partition(self.devices)

    @property
    def itemsize(self) -> int:
        """Bytes a value."""
        return self.graph.itemsize

    @property
    def fixed(self) -> bool:
        """Whether it takes the features as they are given."""
        return not self.op.input_grad and all(
            self.graph.ops[i].kind == "input" for i in self.op.inputs
        )

    @property
    def held_before(self) -> list[Weight]:
        """Its trained parameters that an earlier operation has as well: they are there once."""
        users, ops = self.graph.users, self.graph.ops
        return [
            weight
            for weight in self.op.parameters
            if weight.shape is not None
            and weight.name in users
            and ops[users[weight.name][0]].name != self.op.name
        ]

    @property
    def total_rows(self) -> int:
        """N, or the number of pooled graphs."""
        return int(self.rows.sum())

    @property
    def most_rows(self) -> int:
        """Rows of the largest part."""
        return int(self.rows.max())

    @property
    def total_sources(self) -> int:
        """Rows that its edges come from."""
        return int(self.source_rows.sum())

    @property
    def most_sources(self) -> int:
        """The same of the largest part."""
        return int(self.source_rows.max())

    @property
    def waits(self) -> bool:
        """Whether its input is read again behind it, so that a gradient of it waits already."""
        ops = self.graph.ops
        behind = ops[[op.name for op in ops].index(self.op.name) + 1 :]
        return any({*self.op.inputs} & {*op.inputs} for op in behind)

    def columns(self, width: int) -> int:
        """Features of the largest block."""
        return int(chunk_sizes(width, self.devices).max())

    def splits(self, width: int) -> bool:
        """Whether every device gets a block of the features."""
        return bool(chunk_sizes(width, self.devices).min() > 0)

    def weights(self, terms: Terms, values: int, copies: bool) -> None:
        """Counts weights; where devices have copies, one all-reduce of all their gradients."""
        terms.states += STATES * values
        if copies and values:
            nbytes = values * self.itemsize
            terms.messages.append(even("all_reduce", nbytes, self.devices, "update"))

    def grids(self, *widths: int) -> list[int]:
        """Into how many blocks features may be split in a grid of at least 2 by 2 devices."""
        return [
            k
            for k in range(2, self.devices // 2 + 1)
            if self.devices % k == 0 and all(chunk_sizes(w, k).min() > 0 for w in widths)
        ]


class Strategy(ABC):
    """A registry entry. Subclasses state what is particular to them.

    Attributes:
        name: in plans.
        kinds: of operations it is for.
        soap: the dimensions it splits, of "SOAP"; "" for none.
        executor: the name of what runs it.
        edges: those that a device needs: into its own "part", into the parts of its "row" of a
            grid, "all"; or "given": all, as the model was given them, which a store has nowhere.
        graph: what it calls the graph that it runs on, where others run on it, too.
    """

    name = ""
    kinds: tuple[str, ...] = ()
    soap = ""
    edges = "given"
    graph = ""

    @property
    def executor(self) -> str:
        """The name under which the executor has it."""
        return self.name

    def refuses(self, problem: Problem) -> str | None:
        """Why the operation cannot be split this way; None if it can."""
        return None

    @abstractmethod
    def configs(self, problem: Problem) -> list[Config]:
        """The configurations of an operation that is not refused."""

    @abstractmethod
    def terms(self, problem: Problem, config: Config) -> Terms:
        """What a configuration takes."""

    def split(self, weight: Weight, config: Config) -> Split | None:
        """How a configuration splits a parameter; None: each device has a copy."""
        return None


REGISTRY: dict[tuple[str, str], Strategy] = {}
"""By kind of operation and name."""


def register(*strategies: Strategy) -> None:
    """Adds strategies to the registry.

    Raises:
        ValueError: there is one of this name for this kind of operation already.
    """
    for strategy in strategies:
        for kind in strategy.kinds:
            if (kind, strategy.name) in REGISTRY:
                raise ValueError(f"strategy {strategy.name!r} of {kind} is registered already")
            REGISTRY[kind, strategy.name] = strategy


def configs_of(problem: Problem) -> tuple[list[Config], dict[str, str]]:
    """All configurations of an operation, and why the other strategies are refused.

    Returns:
        Configurations in the order of the registry, and a reason by strategy.
    """
    found: list[Config] = []
    reasons: dict[str, str] = {}
    for (kind, name), strategy in REGISTRY.items():
        if kind != problem.op.kind:
            continue
        reason = strategy.refuses(problem) if problem.devices > 1 else None
        if problem.op.rows is not None and kind != "pooling" and name != "replicate":
            reason = f"its output has {problem.op.rows} rows, not one a node"
        if problem.devices == 1 and kind != "input" and name != "replicate":
            reason = "there is one device"
        graph = problem.graph.graphs.get(problem.op.graph)
        if graph is not None and graph.apart and problem.devices > 1 and strategy.edges == "given":
            reason = "a store has no edge_index that a layer could be given"
        if reason is not None:
            reasons[name] = reason
        else:
            found += strategy.configs(problem)
    return found, reasons


def terms_of(problem: Problem, config: Config) -> Terms:
    """What a configuration takes.

    Raises:
        ValueError: there is no such strategy for this kind of operation.
    """
    strategy = REGISTRY.get((problem.op.kind, config.strategy))
    if strategy is None:
        known = [name for kind, name in REGISTRY if kind == problem.op.kind]
        raise ValueError(
            f"operation {problem.op.name!r} has strategy {config.strategy!r}; expected one of "
            f"{known}"
        )
    terms = strategy.terms(problem, config)
    terms.form = form_of(problem.op, config)
    terms.states -= STATES * sum(
        local_size(weight, strategy.split(weight, config), problem.devices)
        for weight in problem.held_before
    )
    return terms


def form_of(op: Op, config: Config) -> Form:
    """Tells graphs that executors have apart: operations of the same form share one."""
    strategy = REGISTRY[op.kind, config.strategy]
    if op.kind == "opaque" or op.edge_products:
        return op.graph, strategy.name, "both ends"  # as PyG's layers take them
    whole = bool(strategy.graph)
    apart = not whole and config.hag == "off" and {*op.reduce} <= {*LINEAR}
    name = strategy.graph or strategy.name
    return op.graph, name, config.target.columns * (not whole), config.hag, apart


def parts_read(op: Op, config: Config, devices: int) -> int:
    """The neighbouring parts whose edges each device needs, of an operation with edges: 1, its own;
    all of them, as many as there are devices.
    """
    edges = REGISTRY[op.kind, config.strategy].edges
    return {"part": 1, "row": config.target.columns}.get(edges, devices)


def splits_of(op: Op, config: Config) -> dict[str, Split | None]:
    """How a configuration splits the parameters of an operation, by their roles."""
    strategy = REGISTRY[op.kind, config.strategy]
    return {weight.role: strategy.split(weight, config) for weight in op.parameters}


def local_size(weight: Weight, split: Split | None, devices: int) -> int:
    """Values of a parameter on the device that has most of it."""
    assert weight.shape is not None  # it is trained
    values = math.prod(weight.shape)
    if split is None:
        return values
    whole = weight.shape[split.dim]
    return values // whole * int(chunk_sizes(whole, split.columns or devices).max())


def by_outputs(weight: Weight, columns: int = 0) -> Split | None:
    """A block of what goes out; None where the parameter has no such dimension."""
    return None if weight.outputs is None else Split(weight.outputs, columns)


def column_refusal(problem: Problem, *widths: int) -> str | None:
    """Why features cannot be split: some device would get none."""
    for width in widths:
        if not problem.splits(width):
            return (
                f"{width} features cannot be split over {problem.devices} devices in equal "
                f"blocks (of {problem.columns(width)}) without leaving one empty"
            )
    return None
