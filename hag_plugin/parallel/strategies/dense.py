"""Strategies of operations without edges: products, elementwise work, normalisation, the loss."""

from __future__ import annotations

import numpy as np

from hag_plugin.parallel.graphs.stats import HagCounts
from hag_plugin.parallel.layouts import (
    COLUMNS,
    REPLICATED,
    ROWS,
    Layout,
    Message,
    Split,
    chunk_sizes,
    even,
    gather_rows,
    held,
    scatter_rows,
    sent_bytes,
)
from hag_plugin.parallel.model.opgraph import Op, Weight
from hag_plugin.parallel.strategies import steps
from hag_plugin.parallel.strategies.activations import Held, Step, hold
from hag_plugin.parallel.strategies.convolution import gather_input, input_steps, is_kept
from hag_plugin.parallel.strategies.registry import (
    LONG,
    Config,
    Problem,
    Strategy,
    Terms,
    by_outputs,
    column_refusal,
    register,
)
from hag_plugin.parallel.strategies.steps import product


def grids(problem: Problem) -> list[Layout]:
    """The grids that the operation's features may lie in."""
    return [Layout("grid", k) for k in problem.grids(problem.op.width)]


def local_terms(problem: Problem, layout: Layout) -> Terms:
    """Elementwise work on what lies there: read and write, forward and backward."""
    terms = Terms()
    values = held(layout, problem.rows, problem.op.width)
    reads = max(len(problem.op.inputs), 1)
    terms.streams += [("forward", (reads + 1) * values), ("backward", (reads + 1) * values)]
    terms.held = function_held(problem, layout)
    if problem.op.kind == "loss":
        terms.states += values  # whoever trains has the model's output, too
    return terms


def function_held(problem: Problem, layout: Layout) -> Held:
    """What a function holds that runs on what lies there, as torch has it."""
    op = problem.op
    values = held(layout, problem.rows, op.width)
    inputs = held(layout, problem.rows, op.input_width or op.width)
    if op.kind == "linear":
        return hold(inputs, [Step(values, "input", weights=True)], op.input_grad)
    if op.kind == "loss":  # cross entropy
        return Held(values, backward=values)
    if op.kind == "concatenation":
        return Held()
    if op.kind == "opaque":
        return Held(values)
    if op.needs == "largest":  # all inputs side by side; which was the largest
        indices = -(-8 * values // problem.itemsize)
        return Held(indices, forward=len(op.inputs) * values)
    if op.needs == "mask":  # of a byte a value; made from three tensors of 32-bit numbers
        mask, hashes = -(-values // problem.itemsize), -(-12 * values // problem.itemsize)
        return Held(mask, forward=max(hashes - mask - values, values), backward=values)
    if op.needs == "scaled":
        return Held(forward=values, backward=values)
    if op.needs == "same":
        return Held(output=True)
    if op.needs in ("centred", "all"):
        return Held(2 * values, op.needs == "all", forward=values, backward=2 * values)
    of_output = op.needs == "output"
    return Held(values * of_output, op.needs == "input", of_output)


class Fixed(Strategy):
    """Features that are given: every layer that reads them has them laid out as it wants them,
    once, before training.
    """

    name, kinds = "laid out", ("input",)

    def configs(self, problem: Problem) -> list[Config]:
        return [Config(self.name, REPLICATED, REPLICATED)]

    def terms(self, problem: Problem, config: Config) -> Terms:
        return Terms()


class Embedding(Strategy):
    """Learned features: each device has those that it starts from, and nothing is sent."""

    kinds = ("embedding",)

    def __init__(self, name: str, layout: Layout, soap: str) -> None:
        self.name, self.layout, self.soap = name, layout, soap

    def refuses(self, problem: Problem) -> str | None:
        if self.layout == COLUMNS:
            return column_refusal(problem, problem.op.width)
        even = chunk_sizes(problem.total_rows, problem.devices)
        if self.layout == ROWS and (problem.rows != even).any():
            return f"its rows are split as {even.tolist()}, the nodes as {problem.rows.tolist()}"
        return None

    def configs(self, problem: Problem) -> list[Config]:
        return [Config(self.name, self.layout, self.layout)]

    def split(self, weight: Weight, config: Config) -> Split | None:
        dim = {ROWS: weight.parts, COLUMNS: weight.outputs}.get(self.layout)
        return None if dim is None else Split(dim)

    def terms(self, problem: Problem, config: Config) -> Terms:
        terms = Terms()
        problem.weights(terms, held(self.layout, problem.rows, problem.op.width), copies=False)
        return terms


class Replicate(Strategy):
    """Every device computes everything."""

    name = "replicate"
    kinds = (
        "linear", "elementwise", "normalisation", "concatenation", "sum", "pooling",
        "opaque", "loss",
    )  # fmt: skip

    def configs(self, problem: Problem) -> list[Config]:
        return [Config(self.name, REPLICATED, REPLICATED)]

    def terms(self, problem: Problem, config: Config) -> Terms:
        op = problem.op
        terms = local_terms(problem, REPLICATED)
        if op.kind == "linear":
            terms.linear(problem.total_rows, op.input_width, op.width, op.input_grad)
        if op.by_edges:
            add_layer(problem, terms, problem.total_rows, problem.stats.edges)
        problem.weights(terms, op.weights + op.biases, copies=False)
        return terms


class Local(Strategy):
    """On whatever layout the input has."""

    name, kinds, soap = "local", ("elementwise", "sum"), "SA"

    def configs(self, problem: Problem) -> list[Config]:
        layouts = [ROWS]
        if problem.splits(problem.op.width):
            layouts.append(COLUMNS)
        return [Config(self.name, k, k) for k in layouts + grids(problem)]

    def terms(self, problem: Problem, config: Config) -> Terms:
        terms = local_terms(problem, config.target)
        problem.weights(terms, problem.op.weights, copies=True)
        return terms


class Rows(Strategy):
    """Nodes are split; weights, if there are any, have copies."""

    name, kinds, soap = "rows", ("linear", "concatenation", "opaque", "loss"), "S"

    def refuses(self, problem: Problem) -> str | None:
        if problem.op.kind == "opaque" and not problem.op.by_row:
            return "its rows may depend on each other"
        return None

    def configs(self, problem: Problem) -> list[Config]:
        return [Config(self.name, ROWS, ROWS)]

    def terms(self, problem: Problem, config: Config) -> Terms:
        op = problem.op
        terms = local_terms(problem, ROWS)
        if op.kind == "linear":
            terms.linear(problem.most_rows, op.input_width, op.width, op.input_grad)
        problem.weights(terms, op.weights + op.biases, copies=True)
        return terms


class LayerHalo(Strategy):
    """A layer that is opaque, on the own rows and those of others that their edges read."""

    name, kinds, soap, edges = "rows, halo", ("opaque",), "S", "part"

    def refuses(self, problem: Problem) -> str | None:
        if not problem.op.by_edges:
            return "its rows may depend on more than the edges into them"
        return None

    def configs(self, problem: Problem) -> list[Config]:
        return [Config(self.name, ROWS, ROWS)]

    def terms(self, problem: Problem, config: Config) -> Terms:
        op, s, partition = problem.op, problem.itemsize, problem.partition
        terms = local_terms(problem, ROWS)
        add_layer(problem, terms, problem.most_rows, int(partition.edges.max()))
        halo = partition.halo * op.input_width * s
        kept = is_kept(op, problem.fixed, "")
        fetched = Message("exchange", halo.sum(axis=0), "forward")
        (terms.laid_out if kept else terms.messages).append(fetched)
        received = problem.most_sources + int(partition.halo.sum(axis=1).max())
        terms.states += kept * received * op.input_width
        if op.input_grad:
            terms.messages.append(Message("exchange", halo.sum(axis=1), "backward"))
        problem.weights(terms, op.weights + op.biases, copies=True)
        return terms


class Means(Strategy):
    """Nodes are split; each device sums its own for the means, and the sums are added up."""

    name, kinds, soap = "rows, means summed", ("opaque",), "S"

    def refuses(self, problem: Problem) -> str | None:
        return None if problem.op.means else "it is not known to take means over nodes"

    def configs(self, problem: Problem) -> list[Config]:
        return [Config(self.name, ROWS, ROWS)]

    def terms(self, problem: Problem, config: Config) -> Terms:
        op, terms = problem.op, local_terms(problem, ROWS)
        nbytes = op.means * problem.itemsize
        for phase in ("forward", "backward"):
            terms.messages.append(even("all_reduce", nbytes, problem.devices, phase))
        problem.weights(terms, op.weights + op.biases, copies=True)
        return terms


def add_layer(problem: Problem, terms: Terms, rows: int, edges: int) -> None:
    """What a layer that is opaque computes: taken for one sum over edges as wide as its input or
    output, and a product of each row with all its weights.
    """
    op = problem.op
    wide = max(op.input_width, op.width)
    terms.aggregate(HagCounts(edges, rows), wide, True)
    terms.linear(rows, op.input_width, op.values // max(op.input_width, 1), op.input_grad)
    terms.graph += 3 * LONG * edges  # both ends, and their numbers


class RowSplitWeights(Strategy):
    """Features are split, and the rows of the weights; partial outputs are summed."""

    name, kinds, soap = "columns, row-split weights", ("linear",), "P"

    def refuses(self, problem: Problem) -> str | None:
        return column_refusal(problem, problem.op.input_width)

    def configs(self, problem: Problem) -> list[Config]:
        targets = [ROWS, COLUMNS] if problem.splits(problem.op.width) else [ROWS]
        return [Config(self.name, COLUMNS, target) for target in targets]

    def split(self, weight: Weight, config: Config) -> Split | None:
        if weight.inputs is not None:
            return Split(weight.inputs)
        return by_outputs(weight) if config.target == COLUMNS else None

    def terms(self, problem: Problem, config: Config) -> Terms:
        op, s = problem.op, problem.itemsize
        terms = local_terms(problem, config.target)
        k = problem.columns(op.input_width)
        terms.linear(problem.total_rows, k, op.width, op.input_grad)
        if config.target == ROWS:
            terms.messages.append(scatter_rows(problem.rows, op.width, s, "forward"))
            terms.messages.append(gather_rows(problem.rows, op.width, s, "backward"))
        else:
            shard = problem.total_rows * problem.columns(op.width) * s
            terms.messages.append(even("reduce_scatter", shard, problem.devices, "forward"))
            terms.messages.append(even("all_gather", shard, problem.devices, "backward"))
        out = held(config.target, problem.rows, op.width)
        found = [product(problem.total_rows, op.width)]
        if config.target == ROWS:
            found.append(steps.scatter_rows(problem.rows, op.width))
        else:
            found.append(steps.scatter_columns(problem.total_rows, op.width, problem.devices))
        source = held(COLUMNS, problem.rows, op.input_width)
        terms.held = hold(source, found + steps.bias(op, out), op.input_grad)
        problem.weights(terms, k * op.width, copies=False)
        split = config.target == COLUMNS
        biases = op.bias * problem.columns(op.width) if split else op.biases
        problem.weights(terms, biases, copies=not split)
        return terms


class ColumnSplitWeights(Strategy):
    """Columns of the weights are split, each device computes its own output features."""

    name, kinds, soap = "column-split weights", ("linear",), "P"

    def refuses(self, problem: Problem) -> str | None:
        return column_refusal(problem, problem.op.width)

    def configs(self, problem: Problem) -> list[Config]:
        return [Config(self.name, source, COLUMNS) for source in (REPLICATED, ROWS)]

    def split(self, weight: Weight, config: Config) -> Split | None:
        return by_outputs(weight)

    def terms(self, problem: Problem, config: Config) -> Terms:
        op, n = problem.op, problem.columns(problem.op.width)
        terms = local_terms(problem, COLUMNS)
        terms.linear(problem.total_rows, op.input_width, n, op.input_grad)
        gather_input(problem, terms, config.source, op.input_width)
        out = held(COLUMNS, problem.rows, op.width)
        found = [*input_steps(problem, config.source, op.input_width), product(1, out)]
        source = held(config.source, problem.rows, op.input_width)
        terms.held = hold(source, found + steps.bias(op, out), op.input_grad)
        problem.weights(terms, (op.input_width + op.bias) * n, copies=False)
        return terms


class Normalise(Strategy):
    """Statistics are summed over the devices where what is normalised over is split."""

    name, kinds, soap = "local statistics, summed", ("normalisation",), "SA"

    def configs(self, problem: Problem) -> list[Config]:
        layouts = [ROWS]
        if problem.splits(problem.op.width):
            layouts.append(COLUMNS)
        return [Config(self.name, k, k) for k in layouts + grids(problem)]

    def split(self, weight: Weight, config: Config) -> Split | None:
        layout = config.target
        return None if layout == ROWS else by_outputs(weight, layout.columns * (layout.columns > 1))

    def terms(self, problem: Problem, config: Config) -> Terms:
        op, s, P = problem.op, problem.itemsize, problem.devices
        layout, terms = config.target, local_terms(problem, config.target)
        columns = {"rows": 1, "columns": P}.get(layout.kind, layout.columns)
        features = np.tile(chunk_sizes(op.width, columns), P // columns)
        nodes = np.repeat(problem.rows.reshape(-1, columns).sum(axis=1), columns)
        if op.over == "nodes" and columns < P:
            self._sum(op, terms, features * s, -columns if columns > 1 else 0, P // columns)
        if op.over == "features" and columns > 1:
            self._sum(op, terms, nodes * s, columns if columns < P else 0, columns)
        if op.over == "everything":
            self._sum(op, terms, np.full(P, s), 0, P)
        terms.held = self.held(problem, layout, columns)
        values = features * (op.biases + op.weights) // op.width
        problem.weights(terms, int(values.max()), copies=False)
        if columns < P and values.any():
            groups, size = (-columns if columns > 1 else 0), P // columns
            sent = np.array([sent_bytes("all_reduce", int(v) * s, size) for v in values])
            terms.messages.append(Message("all_reduce", sent, "update", groups))
        return terms

    def held(self, problem: Problem, layout: Layout, columns: int) -> Held:
        """What it holds where statistics are summed over devices; else as torch has it."""
        op, P = problem.op, problem.devices
        whole = (op.over == "nodes" and columns == P) or (op.over == "features" and columns == 1)
        if whole:
            return function_held(problem, layout)
        values = held(layout, problem.rows, op.width)
        if op.needs == "output":  # softmax: of exponentials
            return Held(values, forward=values, backward=2 * values)
        if not op.affine:
            return Held(values, output=True, forward=values, backward=values)
        return Held(values, forward=values, backward=values)

    def _sum(self, op: Op, terms: Terms, nbytes: np.ndarray, columns: int, size: int) -> None:
        sent = np.array([sent_bytes("all_reduce", int(n), size) for n in nbytes])
        for phase, count in zip(("forward", "backward"), op.statistics, strict=True):
            terms.messages += [Message("all_reduce", sent, phase, columns)] * count


class Pool(Strategy):
    """Each device pools its own nodes; the sums of the graphs are added up."""

    name, kinds, soap = "rows, summed", ("pooling",), "S"

    def refuses(self, problem: Problem) -> str | None:
        if not set(problem.op.reduce) <= {"sum", "mean"}:
            return f"partial results of {problem.op.reduce} are not sums"
        return None

    def configs(self, problem: Problem) -> list[Config]:
        return [Config(self.name, ROWS, REPLICATED)]

    def terms(self, problem: Problem, config: Config) -> Terms:
        op, rows = problem.op, problem.graph.rows(problem.devices)
        values = int(rows.max()) * op.width
        terms = Terms(streams=[("forward", values), ("backward", values)])
        nbytes = problem.total_rows * op.width * problem.itemsize
        terms.messages.append(even("all_reduce", nbytes, problem.devices, "forward"))
        terms.held = Held()
        return terms


register(
    Fixed(),
    Embedding("replicate", REPLICATED, ""),
    Embedding("rows", ROWS, "S"),
    Embedding("columns", COLUMNS, "P"),
    Replicate(),
    Rows(),
    Local(),
    LayerHalo(),
    Means(),
    RowSplitWeights(),
    ColumnSplitWeights(),
    Normalise(),
    Pool(),
)
