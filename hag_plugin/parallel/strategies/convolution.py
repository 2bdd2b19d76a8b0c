"""Strategies of convolutions: a sum over neighbours, with a transform before or after it.

Notation: N nodes, n of the largest part, F features in, G out, P devices, w the width that is
aggregated: F where the aggregation goes first, G where the transform does. Without weights F = G.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import numpy as np

from hag_plugin.parallel.graphs.stats import HagCounts, PartitionStats
from hag_plugin.parallel.layouts import (
    COLUMNS,
    REPLICATED,
    ROWS,
    Layout,
    Message,
    Split,
    columns_to_rows,
    even,
    gather_rows,
    held,
    rows_to_columns,
    scatter_rows,
)
from hag_plugin.parallel.model.opgraph import Op, Weight
from hag_plugin.parallel.strategies import steps
from hag_plugin.parallel.strategies.activations import Held, Step, hold
from hag_plugin.parallel.strategies.registry import (
    EXACT,
    INDEX,
    LONG,
    OP,
    Config,
    Problem,
    Strategy,
    Terms,
    by_outputs,
    column_refusal,
    register,
)
from hag_plugin.reducers import LINEAR

AGGREGATE, TRANSFORM = "aggregate-first", "transform-first"


def is_kept(op: Op, fixed: bool, order: str) -> bool:
    """Whether rows that are fetched are kept for all steps: features as they are given."""
    return fixed and order != TRANSFORM and not op.edge_products and op.kind != "attention"


def is_apart(op: Op, hag: str) -> bool:
    """Whether what is made of neighbours is made of the own rows and of those of others apart."""
    whole = op.edge_products or hag != "off"
    return not whole and (op.kind == "attention" or {*op.reduce} <= {*LINEAR})


def own_share(problem: Problem, partition: PartitionStats, config: Config) -> float:
    """The share of what is made of neighbours that the own rows make, which go first."""
    if not is_apart(problem.op, config.hag) or partition.inner is None:
        return 0.0
    return float((partition.inner / np.maximum(partition.edges, 1)).min())


def orders(problem: Problem) -> list[str]:
    """In which orders the layer may be computed."""
    if not problem.op.transform:
        return [""]
    return [AGGREGATE, TRANSFORM] if problem.op.commutes else [AGGREGATE]


def aggregated_width(problem: Problem, order: str) -> int:
    """w."""
    return problem.op.width if order == TRANSFORM else problem.op.input_width


def whole_hags(problem: Problem) -> list[str]:
    """Choices of HAG where a device runs the whole graph."""
    known = problem.stats.hag is not None and _shares(problem)
    return ["off", "whole"] if known else ["off"]


def part_hags(problem: Problem, partition: PartitionStats) -> list[str]:
    """Choices of HAG where a device runs its part."""
    return ["off", "part"] if partition.hags is not None and _shares(problem) else ["off"]


def _shares(problem: Problem) -> bool:
    return not problem.op.relational and not problem.op.edge_products


def add_whole_graph(problem: Problem, terms: Terms, hag: str, width: int, backward: bool) -> None:
    """The sum over all edges, at `width` features."""
    stats, relations = problem.stats, problem.op.relations
    written = stats.nodes * (relations if width == problem.op.input_width else 1)
    counts = HagCounts(stats.edges, written)
    if hag == "whole" and stats.hag is not None:
        counts = stats.hag
    _add(problem, terms, counts, stats.edges, width, backward)
    rows = stats.nodes * relations, problem.total_sources * relations
    _add_graph(problem, terms, counts, stats.edges, rows, backward)


def add_parts(
    problem: Problem,
    terms: Terms,
    partition: PartitionStats,
    hag: str,
    width: int,
    backward: bool,
    sources: int,
) -> None:
    """The sum over the edges into the own part, on the busiest device, from so many rows."""
    most, edges = int(partition.rows.max()), int(partition.edges.max())
    relations = problem.op.relations
    counts = HagCounts(edges, most * (relations if width == problem.op.input_width else 1))
    if hag == "part" and partition.hags is not None:
        counts = max(partition.hags, key=lambda h: h.rows_read + h.rows_written)
    _add(problem, terms, counts, edges, width, backward)
    twice = 1 + is_apart(problem.op, hag)  # the own rows' edges, and those of others
    rows = most * relations * twice, sources * relations
    _add_graph(problem, terms, counts, edges, rows, backward)


def _add(
    problem: Problem, terms: Terms, counts: HagCounts, edges: int, width: int, backward: bool
) -> None:
    if problem.op.edge_products:
        for k, n in problem.op.edge_products:
            terms.linear(edges, k, n, True)
        width = problem.op.message_width
    terms.aggregate(counts, width, backward, len(problem.op.reduce))


def _add_graph(
    problem: Problem,
    terms: Terms,
    counts: HagCounts,
    edges: int,
    rows: tuple[int, int],
    backward: bool,
) -> None:
    """What is held of the edges; `rows`: of all graphs that there are, targets and sources."""
    if problem.op.edge_products:
        terms.graph += 2 * LONG * edges  # both ends
    else:
        terms.on_graph(edges, *rows, backward)
        if counts.rows_read < edges:  # a program that shares, beside it
            program = INDEX * counts.rows_read + OP * counts.rows_written
            terms.graph += program * (1 + backward)
    if not problem.stats.shares:  # a weight for each edge, and its place in the reverse
        terms.graph += (max(problem.itemsize, EXACT) + INDEX * backward) * edges


def add_transform(problem: Problem, terms: Terms, rows: int, k: int, n: int) -> None:
    """The products with weights `[F, G]`, `k` and `n` of them on this device."""
    op = problem.op
    if op.transform:
        add_relation_products(problem, terms, rows, k, n, op.relations)
    if op.root:
        terms.linear(rows, k, n, op.input_grad)
    for a, b in op.node_products:
        terms.linear(rows, a, b, True)


def add_relation_products(
    problem: Problem, terms: Terms, rows: int, k: int, n: int, relations: int
) -> None:
    """The products with weights `[k, n]` of so many relations."""
    op = problem.op
    terms.linear(rows, k, n // op.blocks, op.input_grad, relations)
    if op.bases:  # the weights are made first
        terms.linear(relations, op.bases, k * n, True)


def backward_needed(problem: Problem, order: str) -> bool:
    """Whether a gradient flows through the aggregation: weights before it always want one."""
    return problem.op.input_grad or order == TRANSFORM or bool(problem.op.edge_products)


class Replicate(Strategy):
    """Every device computes everything: no communication, no gain."""

    name, kinds, edges = "replicate", ("convolution",), "all"
    graph = "whole"

    def configs(self, problem: Problem) -> list[Config]:
        return [
            Config(self.name, REPLICATED, REPLICATED, order, hag)
            for order in orders(problem)
            for hag in whole_hags(problem)
        ]

    def terms(self, problem: Problem, config: Config) -> Terms:
        op, terms = problem.op, Terms()
        width = aggregated_width(problem, config.order)
        add_whole_graph(problem, terms, config.hag, width, backward_needed(problem, config.order))
        rows, sources = problem.total_rows, problem.total_sources
        turned = sources if config.order == TRANSFORM else rows
        add_transform(problem, terms, turned, op.input_width, op.width)
        terms.held = layer(problem, config.order, rows, (sources, sources), [])
        problem.weights(terms, op.weights + op.biases, copies=False)
        return terms


class _Rows(Strategy):
    """Nodes are split; each device fetches the rows of other parts that its edges read."""

    kinds, soap, edges = ("convolution",), "S", "part"

    def configs(self, problem: Problem) -> list[Config]:
        # With relations, the rows of each would have to be sent if they were transformed first.
        return [
            Config(self.name, ROWS, ROWS, order, hag)
            for order in orders(problem)
            if order != TRANSFORM or not problem.op.relational
            for hag in part_hags(problem, problem.partition)
        ]

    def terms(self, problem: Problem, config: Config) -> Terms:
        op, terms = problem.op, Terms()
        width = aggregated_width(problem, config.order)
        backward = backward_needed(problem, config.order)
        read = self.sources(problem)
        add_parts(problem, terms, problem.partition, config.hag, width, backward, read)
        rows, sources = problem.most_rows, problem.most_sources
        turned = sources if config.order == TRANSFORM else rows
        add_transform(problem, terms, turned, op.input_width, op.width)
        kept = is_kept(op, problem.fixed, config.order)
        (terms.laid_out if kept else terms.messages).append(self.fetch(problem, width))
        if problem.op.input_grad or config.order == TRANSFORM:
            terms.messages.append(self.give_back(problem, width))
        if not kept:
            terms.own = own_share(problem, problem.partition, config)
        apart = is_apart(op, config.hag)
        fetch = [] if kept else self.steps(problem, width, config.hag)
        terms.states += kept * (self.others(problem) if apart else read) * width
        terms.held = layer(problem, config.order, rows, (sources, read), fetch, kept and apart)
        problem.weights(terms, op.weights + op.biases, copies=True)
        return terms

    @abstractmethod
    def fetch(self, problem: Problem, width: int) -> Message:
        """What is sent before the sum."""

    @abstractmethod
    def give_back(self, problem: Problem, width: int) -> Message:
        """What is sent after the sum of the gradients over the reversed edges."""

    @abstractmethod
    def sources(self, problem: Problem) -> int:
        """Rows that a device's edges read, its own among them."""

    def others(self, problem: Problem) -> int:
        """Those that are fetched, where the own ones are read apart."""
        return self.sources(problem)

    @abstractmethod
    def steps(self, problem: Problem, width: int, hag: str) -> list[Step]:
        """Of fetching."""


class RowsAllGather(_Rows):
    """All rows go to all devices: 2 (P-1) n w values with the gradients."""

    name = "rows, all-gather"

    def fetch(self, problem: Problem, width: int) -> Message:
        return gather_rows(problem.source_rows, width, problem.itemsize, "forward")

    def give_back(self, problem: Problem, width: int) -> Message:
        return scatter_rows(problem.source_rows, width, problem.itemsize, "backward")

    def sources(self, problem: Problem) -> int:
        return problem.total_sources

    def steps(self, problem: Problem, width: int, hag: str) -> list[Step]:
        whole = steps.gather_rows(problem.source_rows, width)
        if is_apart(problem.op, hag):  # the sum of the own rows, and their gradient, wait
            sums, own = problem.most_rows * width, problem.most_sources * width
            return [replace(whole, forward=whole.forward + sums, backward=whole.backward + own)]
        if hag != "part":
            return [whole]
        # Its own rows first: a copy of all, and in the backward pass one for each piece.
        return [whole, Step(whole.made, backward=whole.made)]


class RowsHalo(_Rows):
    """Only rows that are read go, to those who read them: the halo."""

    name = "rows, halo"

    def needed(self, problem: Problem) -> np.ndarray:
        """int64 `[P, P]`, rows that p gets from q."""
        return problem.partition.halo

    def fetch(self, problem: Problem, width: int) -> Message:
        sent = self.needed(problem).sum(axis=0) * width * problem.itemsize
        return Message("exchange", sent, "forward")

    def give_back(self, problem: Problem, width: int) -> Message:
        sent = self.needed(problem).sum(axis=1) * width * problem.itemsize
        return Message("exchange", sent, "backward")

    def sources(self, problem: Problem) -> int:
        return problem.most_sources + self.others(problem)

    def others(self, problem: Problem) -> int:
        return int(self.needed(problem).sum(axis=1).max())

    def steps(self, problem: Problem, width: int, hag: str) -> list[Step]:
        sent, received = (int(self.needed(problem).sum(axis=a).max()) for a in (0, 1))
        return [steps.exchange(problem.most_sources, sent, received, width, problem.waits)]


class RowsCover(RowsHalo):
    """For each pair of parts rows or partial sums, whichever cover the cut edges with fewer."""

    name = "rows, vertex-cover halo"

    def refuses(self, problem: Problem) -> str | None:
        if not set(problem.op.reduce) <= {"sum", "mean"} or problem.op.edge_products:
            return f"partial sums need a sum or mean of node rows, not {problem.op.reduce}"
        if problem.op.relational:
            return "partial sums of several relations are not supported"
        if problem.partition.cover is None:
            return "vertex covers were not computed (they need scipy and the edges)"
        return None

    def terms(self, problem: Problem, config: Config) -> Terms:
        terms, sent = super().terms(problem, config), int(self.needed(problem).sum(axis=0).max())
        backward = backward_needed(problem, config.order)
        terms.on_graph(sent, sent, problem.most_sources, backward)  # from own rows to what is sent
        return terms

    def needed(self, problem: Problem) -> np.ndarray:
        cover = problem.partition.cover
        assert cover is not None  # refused otherwise
        return cover


def _features_refusal(problem: Problem, *widths: int) -> str | None:
    if problem.op.edge_products:
        return "its messages depend on both ends of an edge, so features cannot be split"
    if problem.op.relational:
        return "split relations instead: features of a relational layer are not split"
    return column_refusal(problem, *widths)


class AllToAll(Strategy):
    """Rows become columns for the sum and rows again: 4 (P-1)/P n w values with the gradients."""

    name, kinds, soap = "all-to-all around aggregation", ("convolution",), "SA"
    edges = "all"
    graph = "whole"

    def refuses(self, problem: Problem) -> str | None:
        widths = {aggregated_width(problem, order) for order in orders(problem)}
        reasons = [_features_refusal(problem, width) for width in widths]
        return reasons[0] if None not in reasons else None

    def configs(self, problem: Problem) -> list[Config]:
        op, found = problem.op, []
        for order in orders(problem):
            if _features_refusal(problem, aggregated_width(problem, order)):
                continue
            ends = [(ROWS, ROWS)]
            if not op.root:  # the root weights want the rows as they came
                if order != TRANSFORM:
                    ends.append((COLUMNS, ROWS))
                if order != AGGREGATE and not op.node_products:
                    ends.append((ROWS, COLUMNS))
            if not order:
                ends.append((COLUMNS, COLUMNS))
            found += [
                Config(self.name, a, b, order, hag) for a, b in ends for hag in whole_hags(problem)
            ]
        return found

    def split(self, weight: Weight, config: Config) -> Split | None:
        whole = weight.inputs is not None or config.target == ROWS
        return None if whole else by_outputs(weight)

    def terms(self, problem: Problem, config: Config) -> Terms:
        op, terms, s = problem.op, Terms(), problem.itemsize
        width = aggregated_width(problem, config.order)
        backward = backward_needed(problem, config.order)
        add_whole_graph(problem, terms, config.hag, problem.columns(width), backward)
        turned = problem.most_sources if config.order == TRANSFORM else problem.most_rows
        add_transform(problem, terms, turned, op.input_width, op.width)
        there, back = rows_to_columns, columns_to_rows
        if config.source == ROWS:
            terms.messages.append(there(problem.source_rows, width, s, "forward"))
            if backward:
                terms.messages.append(back(problem.source_rows, width, s, "backward"))
        if config.target == ROWS:
            terms.messages.append(back(problem.rows, width, s, "forward"))
            if backward:
                terms.messages.append(there(problem.rows, width, s, "backward"))
        terms.held = self.held(problem, config, width)
        if config.target == COLUMNS:
            problem.weights(terms, op.weights, copies=True)
            problem.weights(terms, op.bias * problem.columns(op.width), copies=False)
        else:
            problem.weights(terms, op.weights + op.biases, copies=True)
        return terms

    def held(self, problem: Problem, config: Config, width: int) -> Held:
        """What it holds: the sum between two changes of layout."""
        op, rows, source = problem.op, problem.rows, config.source
        block, sources = held(COLUMNS, rows, width), problem.source_rows
        found = [] if source == COLUMNS else [steps.rows_to_columns(sources, width)]
        found.append(steps.neighbours(op, 1, block))
        if config.target == ROWS:
            found.append(steps.columns_to_rows(rows, width))
        if config.order == TRANSFORM:
            found.insert(0, steps.product(problem.most_sources, op.width))
        out = held(config.target, rows, op.width)
        if config.order == AGGREGATE:
            found.append(steps.product(1, out))
        size = held(source, sources, op.input_width)
        return steps.finished(op, size, found, out)


class RowSplitWeights(Strategy):
    """Features are split, and the rows of the weights with them; partial outputs are summed.

    Aggregate-first to rows or columns, (P-1) n G values each way; transform-first to columns.
    """

    name, kinds, soap = "columns, row-split weights", ("convolution",), "AP"
    edges = "all"
    graph = "whole"

    def refuses(self, problem: Problem) -> str | None:
        if not problem.op.transform or problem.op.node_products:
            return "it has no weights [in, out] of its own that could be split by rows"
        return _features_refusal(problem, problem.op.input_width)

    def configs(self, problem: Problem) -> list[Config]:
        ends = [(AGGREGATE, ROWS)]
        if problem.splits(problem.op.width):
            ends.append((AGGREGATE, COLUMNS))
            if problem.op.commutes and not problem.op.root:
                ends.append((TRANSFORM, COLUMNS))
        return [
            Config(self.name, COLUMNS, target, order, hag)
            for order, target in ends
            if order in orders(problem)
            for hag in whole_hags(problem)
        ]

    def split(self, weight: Weight, config: Config) -> Split | None:
        if weight.inputs is not None:
            return Split(weight.inputs)
        return by_outputs(weight) if config.target == COLUMNS else None

    def terms(self, problem: Problem, config: Config) -> Terms:
        op, terms, s = problem.op, Terms(), problem.itemsize
        k = problem.columns(op.input_width)
        width = problem.columns(aggregated_width(problem, config.order))
        backward = backward_needed(problem, config.order)
        add_whole_graph(problem, terms, config.hag, width, backward)
        turned = problem.total_sources if config.order == TRANSFORM else problem.total_rows
        add_transform(problem, terms, turned, k, op.width)
        if config.target == ROWS:
            terms.messages.append(scatter_rows(problem.rows, op.width, s, "forward"))
            terms.messages.append(gather_rows(problem.rows, op.width, s, "backward"))
        else:
            shard = turned * problem.columns(op.width) * s
            terms.messages.append(even("reduce_scatter", shard, problem.devices, "forward"))
            terms.messages.append(even("all_gather", shard, problem.devices, "backward"))
        terms.held = self.held(problem, config)
        problem.weights(terms, op.weights // op.input_width * k, copies=False)
        split = config.target == COLUMNS
        problem.weights(terms, problem.columns(op.width) * op.bias if split else op.biases,
                        copies=not split)  # fmt: skip
        return terms

    def held(self, problem: Problem, config: Config) -> Held:
        """What it holds: partial outputs of full width before they are summed."""
        op, rows, N = problem.op, problem.rows, problem.total_rows
        if config.order == TRANSFORM:
            N = problem.total_sources
        source = held(COLUMNS, problem.source_rows, op.input_width)
        found = [steps.product(N, op.width)]
        if op.root:  # both products are added before they are sent
            found.append(Step(N * op.width, forward=N * op.width))
        if config.target == ROWS:
            found.append(steps.scatter_rows(rows, op.width))
        else:
            found.append(steps.scatter_columns(N, op.width, problem.devices))
        out = held(config.target, rows, op.width)
        total = steps.neighbours(op, 1, source if config.order == AGGREGATE else out)
        found = [total, *found] if config.order == AGGREGATE else [*found, total]
        known = hold(source, found + steps.bias(op, out), op.input_grad)
        return steps.with_root(op, known, source)


class ColumnSplitWeights(Strategy):
    """Columns of the weights are split, each device computes its own output features.

    Nothing is sent where the input is replicated and fixed; from rows, the input is gathered.
    Followed by row-split weights it is the pair: the width between them is never sent.
    """

    name, kinds, soap = "column-split weights", ("convolution",), "P"
    edges = "all"
    graph = "whole"

    def refuses(self, problem: Problem) -> str | None:
        if not problem.op.transform or not problem.op.commutes or problem.op.node_products:
            return "it has no weights [in, out] that could go before the aggregation"
        return _features_refusal(problem, problem.op.width)

    def configs(self, problem: Problem) -> list[Config]:
        return [
            Config(self.name, source, COLUMNS, TRANSFORM, hag)
            for source in (REPLICATED, ROWS)
            for hag in whole_hags(problem)
        ]

    def split(self, weight: Weight, config: Config) -> Split | None:
        return by_outputs(weight)

    def terms(self, problem: Problem, config: Config) -> Terms:
        op, terms = problem.op, Terms()
        n = problem.columns(op.width)
        add_whole_graph(problem, terms, config.hag, n, True)
        add_transform(problem, terms, problem.total_sources, op.input_width, n)
        gather_input(problem, terms, config.source, op.input_width)
        out = held(COLUMNS, problem.rows, op.width)
        fetch = input_steps(problem, config.source, op.input_width)
        turned = held(COLUMNS, problem.source_rows, op.width)
        found = [*fetch, steps.product(1, turned), steps.neighbours(op, 1, out)]
        terms.held = steps.finished(
            op, held(config.source, problem.source_rows, op.input_width), found, out
        )
        problem.weights(terms, op.weights // op.width * n + n * op.bias, copies=False)
        return terms


def gather_input(problem: Problem, terms: Terms, source: Layout, width: int) -> None:
    """The whole input on every device; each has a part of its gradient."""
    s, grad = problem.itemsize, problem.op.input_grad
    if source == ROWS:
        terms.messages.append(gather_rows(problem.source_rows, width, s, "forward"))
        if grad:
            terms.messages.append(scatter_rows(problem.source_rows, width, s, "backward"))
    elif grad:
        nbytes = problem.total_sources * width * s
        terms.messages.append(even("all_reduce", nbytes, problem.devices, "backward"))


def input_steps(problem: Problem, source: Layout, width: int) -> list[Step]:
    """The steps of that; what is there already is not copied."""
    return [steps.gather_rows(problem.source_rows, width)] if source == ROWS else []


def layer(
    problem: Problem,
    order: str,
    rows: int,
    sources: tuple[int, int],
    fetch: list[Step],
    twice: bool = False,
) -> Held:
    """What a layer holds whose weights are whole.

    Args:
        problem: the layer.
        order: of transform and sum.
        rows: of the output, on a device.
        sources: of the input, and with those that are fetched.
        fetch: steps that do.
        twice: whether it sums twice, over rows that are there, and adds both.
    """
    if problem.op.edge_products:
        edges = problem.stats.edges if not fetch else int(problem.partition.edges.max())
        return steps.messages(problem.op, rows, sources[1], edges, fetch)
    widths = problem.op.input_width, problem.op.width
    found = steps.convolution(problem.op, order, rows, widths, fetch, sources, twice)
    if problem.stats.shares or not backward_needed(problem, order):
        return found
    edges = problem.stats.edges if rows == problem.total_rows else problem.partition.edges.max()
    return replace(found, backward=found.backward + int(edges))  # their weights, in the reverse


register(
    Replicate(),
    RowsAllGather(),
    RowsHalo(),
    RowsCover(),
    RowSplitWeights(),
    AllToAll(),
    ColumnSplitWeights(),
)
