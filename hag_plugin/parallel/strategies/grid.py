"""Strategies of convolutions that split more than nodes or features: grids and relations."""

from __future__ import annotations

import numpy as np

from hag_plugin.parallel.graphs.stats import HagCounts
from hag_plugin.parallel.layouts import (
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
from hag_plugin.parallel.model.opgraph import Weight
from hag_plugin.parallel.strategies import steps
from hag_plugin.parallel.strategies.activations import Held, Step, hold
from hag_plugin.parallel.strategies.convolution import (
    AGGREGATE,
    TRANSFORM,
    add_parts,
    add_relation_products,
    add_transform,
    aggregated_width,
    backward_needed,
    gather_input,
    input_steps,
    is_apart,
    is_kept,
    orders,
    own_share,
    part_hags,
)
from hag_plugin.parallel.strategies.registry import (
    Config,
    Problem,
    Strategy,
    Terms,
    by_outputs,
    register,
)


class Grid(Strategy):
    """Nodes and features are split: halos inside each column of the grid, partial outputs summed
    inside each row of it.
    """

    name, kinds, soap, edges = "2-D grid", ("convolution",), "SAP", "row"

    def refuses(self, problem: Problem) -> str | None:
        if not problem.grids(problem.op.input_width, problem.op.width):
            widths = problem.op.input_width, problem.op.width
            return f"{problem.devices} devices make no grid for {widths[0]} to {widths[1]} features"
        if problem.op.node_products or problem.op.edge_products or problem.op.relational:
            return "it has no one pair of aggregation and weights"
        return None

    def configs(self, problem: Problem) -> list[Config]:
        found = []
        for columns in problem.grids(problem.op.input_width, problem.op.width):
            layout = Layout("grid", columns)
            partition = problem.stats.partition(problem.devices, columns)
            for order in orders(problem):
                if order == TRANSFORM and problem.op.root:
                    continue
                found += [
                    Config(self.name, layout, layout, order, hag)
                    for hag in part_hags(problem, partition)
                ]
        return found

    def split(self, weight: Weight, config: Config) -> Split | None:
        columns = config.target.columns
        if weight.inputs is not None:
            return Split(weight.inputs, columns)
        return by_outputs(weight, columns)

    def terms(self, problem: Problem, config: Config) -> Terms:
        op, terms, s = problem.op, Terms(), problem.itemsize
        columns, P = config.target.columns, problem.devices
        partition = problem.stats.partition(P, columns)
        width = aggregated_width(problem, config.order)
        blocks = np.tile(chunk_sizes(width, columns), P // columns)  # of each device
        backward = backward_needed(problem, config.order)
        halo = int(partition.halo.sum(axis=1).max())
        received = int((partition.own + partition.halo.sum(axis=1)).max())
        most = int(blocks.max())
        add_parts(problem, terms, partition, config.hag, most, backward, received)
        kept = is_kept(op, problem.fixed, config.order)
        apart = is_apart(op, config.hag)
        terms.own = 0.0 if kept else own_share(problem, partition, config)
        terms.states += kept * (halo if apart else received) * most
        for phase, axis in (("forward", 0), ("backward", 1)) if backward else (("forward", 0),):
            rows = np.repeat(partition.halo.sum(axis=axis), columns)
            fetched = Message("exchange", rows * blocks * s, phase, -columns)
            (terms.laid_out if kept else terms.messages).append(fetched)
        inputs = chunk_sizes(op.input_width, columns)
        if op.transform:
            rows = partition.own if config.order == TRANSFORM else partition.rows
            add_transform(problem, terms, int(rows.max()), int(inputs.max()), op.width)
            shard = np.repeat(rows, columns) * int(chunk_sizes(op.width, columns).max()) * s
            for collective, phase in (("reduce_scatter", "forward"), ("all_gather", "backward")):
                sent = (columns - 1) * shard
                terms.messages.append(Message(collective, sent, phase, columns))
            held_weights = op.weights // op.input_width * inputs
            biases = op.bias * chunk_sizes(op.width, columns)
            values = np.tile(held_weights + biases, P // columns)
            sent = np.array([sent_bytes("all_reduce", int(v) * s, P // columns) for v in values])
            terms.messages.append(Message("all_reduce", sent, "update", -columns))
            problem.weights(terms, int(values.max()), copies=False)
        terms.held = self.held(problem, config, int(blocks.max()))
        return terms

    def held(self, problem: Problem, config: Config, width: int) -> Held:
        """What it holds: rows of a block of features, then partial outputs of full width."""
        op, columns, rows = problem.op, config.target.columns, problem.rows
        partition = problem.stats.partition(problem.devices, columns)
        most, sources = int(partition.rows.max()), int(partition.own.max())
        sent, received = (int(partition.halo.sum(axis=a).max()) for a in (0, 1))
        total = [
            steps.exchange(sources, sent, received, width, problem.waits),
            steps.neighbours(op, most, width),
        ]
        source = held(config.source, problem.source_rows, op.input_width)
        out = held(config.source, rows, op.width)
        most = sources if config.order == TRANSFORM else most
        product = []
        if op.transform:
            product.append(steps.product(most, op.width))
            if op.root:
                product.append(Step(most * op.width, forward=most * op.width))
            product.append(steps.scatter_columns(most, op.width, columns))
        found = [*product, *total] if config.order == TRANSFORM else [*total, *product]
        known = hold(source, found + steps.bias(op, out), op.input_grad)
        return steps.with_root(op, known, source)


class Relations(Strategy):
    """Each device has the edges and weights of some relations; their outputs are summed."""

    name, kinds, soap, edges = "relations", ("convolution",), "O", "all"

    def refuses(self, problem: Problem) -> str | None:
        if problem.op.relations < problem.devices:
            return f"it has {problem.op.relations} relations, fewer than {problem.devices} devices"
        return None

    def configs(self, problem: Problem) -> list[Config]:
        return [
            Config(self.name, source, target, order)
            for source in (REPLICATED, ROWS)
            for target in (REPLICATED, ROWS)
            for order in orders(problem)
        ]

    def split(self, weight: Weight, config: Config) -> Split | None:
        return None if weight.parts is None else Split(weight.parts)

    def terms(self, problem: Problem, config: Config) -> Terms:
        op, terms, s = problem.op, Terms(), problem.itemsize
        edges, count = self.busiest(problem)
        width = aggregated_width(problem, config.order)
        written = problem.total_rows * (count if config.order == AGGREGATE else 1)
        terms.aggregate(HagCounts(edges, written), width, backward_needed(problem, config.order))
        rows = count * problem.total_rows
        terms.on_graph(edges, rows, rows, backward_needed(problem, config.order))
        add_relation_products(problem, terms, problem.total_rows, op.input_width, op.width, count)
        if op.root:  # on the rows that the output is wanted for
            rows = problem.most_rows if config.target == ROWS else problem.total_rows
            terms.linear(rows, op.input_width, op.width, op.input_grad)
        gather_input(problem, terms, config.source, op.input_width)
        if config.target == ROWS:
            terms.messages.append(scatter_rows(problem.rows, op.width, s, "forward"))
            terms.messages.append(gather_rows(problem.rows, op.width, s, "backward"))
        else:
            nbytes = problem.total_rows * op.width * s
            terms.messages.append(even("all_reduce", nbytes, problem.devices, "forward"))
        terms.held = self.held(problem, config, count)
        matrix = op.input_width * op.width
        own, copied = count * (op.bases or matrix // op.blocks), op.bases * matrix
        shared = op.root * matrix + op.biases
        own, copied = (own, copied + shared) if config.target == ROWS else (own + shared, copied)
        problem.weights(terms, own, copies=False)
        problem.weights(terms, copied, copies=True)
        return terms

    def held(self, problem: Problem, config: Config, count: int) -> Held:
        """What it holds: the outputs of `count` relations for all nodes."""
        op, N, out = (
            problem.op,
            problem.total_rows,
            held(config.target, problem.rows, problem.op.width),
        )
        found = input_steps(problem, config.source, op.input_width)
        found.append(steps.relations(op, config.order, count, N, N, op.input_width, op.width))
        if config.target == ROWS:
            found.append(steps.scatter_rows(problem.rows, op.width))
        else:
            found.append(Step(out))  # an all-reduce
        return steps.finished(op, held(config.source, problem.rows, op.input_width), found, out)

    def busiest(self, problem: Problem) -> tuple[int, int]:
        """The most edges and the most relations that a device has: blocks as torch cuts them."""
        counts = chunk_sizes(problem.op.relations, problem.devices)
        edges = problem.stats.relation_edges or tuple(
            chunk_sizes(problem.stats.edges, problem.op.relations)
        )
        last = np.cumsum(counts)
        loads = [sum(edges[i - n : i]) for i, n in zip(last, counts, strict=True)]
        return int(max(loads)), int(counts.max())


register(Grid(), Relations())
