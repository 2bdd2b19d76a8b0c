"""Strategies of attention: scores of edges, a softmax over each target's, a weighted sum.

H heads of D features: the transform comes first, `[F, H D]`, so H D features and H scores of each
source are what an edge reads. Weights of edges differ, so there is nothing for a HAG to share.
"""

from __future__ import annotations

import numpy as np

from hag_plugin.parallel.graphs.stats import HagCounts
from hag_plugin.parallel.layouts import (
    COLUMNS,
    REPLICATED,
    ROWS,
    Message,
    Split,
    gather_rows,
    scatter_rows,
)
from hag_plugin.parallel.model.opgraph import Weight
from hag_plugin.parallel.strategies import steps
from hag_plugin.parallel.strategies.activations import Step
from hag_plugin.parallel.strategies.convolution import gather_input, own_share
from hag_plugin.parallel.strategies.registry import (
    LONG,
    Config,
    Problem,
    Strategy,
    Terms,
    register,
)

SCORE_PASSES = 6  # reads and writes of a score: add, activation, maximum, exponential, sum, divide


def add_attention(
    problem: Problem, terms: Terms, rows: int, edges: int, heads: int, others: int = 0
) -> None:
    """Transform of `rows`, then attention of `heads` heads over `edges`, from `others`, too."""
    op = problem.op
    features = problem.op.wide // op.heads * heads
    terms.linear(rows, op.input_width, features, op.input_grad)
    terms.aggregate(HagCounts(edges, rows), features, True)
    terms.aggregate(HagCounts(edges, rows), features, False)  # gradients of the scores, counted
    # as one more read of the edges' rows.
    scores = SCORE_PASSES * edges * heads
    terms.streams += [("forward", scores), ("backward", scores)]
    terms.on_graph(edges, rows + rows * (others > 0), rows + others, True)
    terms.graph += LONG * edges * (op.needs == "mask")  # their numbers


class Replicate(Strategy):
    """Every device computes everything."""

    name, kinds, edges = "replicate", ("attention",), "all"
    graph = "whole"

    def configs(self, problem: Problem) -> list[Config]:
        return [Config(self.name, REPLICATED, REPLICATED)]

    def terms(self, problem: Problem, config: Config) -> Terms:
        op, terms, rows = problem.op, Terms(), problem.total_rows
        edges = problem.stats.edges
        add_attention(problem, terms, rows, edges, op.heads)
        terms.held = steps.attention(op, rows, edges, op.heads)
        problem.weights(terms, op.weights + op.biases, copies=False)
        return terms


class RowsAllGather(Strategy):
    """Transformed rows and scores of all sources go to all devices."""

    name, kinds, soap, edges = "rows, all-gather", ("attention",), "S", "part"

    def configs(self, problem: Problem) -> list[Config]:
        return [Config(self.name, ROWS, ROWS)]

    def terms(self, problem: Problem, config: Config) -> Terms:
        op, terms = problem.op, Terms()
        edges = int(problem.partition.edges.max())
        rows, width = problem.most_rows, op.wide + op.heads
        add_attention(problem, terms, rows, edges, op.heads, self.others(problem))
        terms.held = steps.attention(op, rows, edges, op.heads, self.fetch(problem, width))
        terms.messages += self.messages(problem, width)
        terms.own = own_share(problem, problem.partition, config)
        problem.weights(terms, op.weights + op.biases, copies=True)
        return terms

    def others(self, problem: Problem) -> int:
        """Rows that are fetched."""
        return problem.total_rows

    def fetch(self, problem: Problem, width: int) -> Step:
        """What brings the rows of others."""
        whole = steps.gather_rows(problem.rows, width)
        return steps.others_rows(whole.made // width, whole.forward // width, width)

    def messages(self, problem: Problem, width: int) -> list[Message]:
        """What is sent before the scores, and with their gradients."""
        s = problem.itemsize
        return [
            gather_rows(problem.rows, width, s, "forward"),
            scatter_rows(problem.rows, width, s, "backward"),
        ]


class RowsHalo(RowsAllGather):
    """Only rows that are read go."""

    name = "rows, halo"

    def others(self, problem: Problem) -> int:
        return int(problem.partition.halo.sum(axis=1).max())

    def fetch(self, problem: Problem, width: int) -> Step:
        sent = int(problem.partition.halo.sum(axis=0).max())
        return steps.others_rows(self.others(problem), sent, width)

    def messages(self, problem: Problem, width: int) -> list[Message]:
        halo: np.ndarray = problem.partition.halo * width * problem.itemsize
        return [
            Message("exchange", halo.sum(axis=0), "forward"),
            Message("exchange", halo.sum(axis=1), "backward"),
        ]


class Heads(Strategy):
    """Heads are split, with the columns of the weights: scores and softmax stay local."""

    name, kinds, soap, edges = "heads", ("attention",), "A", "all"
    graph = "whole"

    def refuses(self, problem: Problem) -> str | None:
        if problem.op.heads % problem.devices:
            return f"{problem.op.heads} heads cannot be split evenly over {problem.devices} devices"
        return None

    def configs(self, problem: Problem) -> list[Config]:
        target = COLUMNS if problem.op.concatenated else ROWS
        return [Config(self.name, source, target) for source in (REPLICATED, ROWS)]

    def split(self, weight: Weight, config: Config) -> Split | None:
        return None if weight.parts is None else Split(weight.parts)

    def terms(self, problem: Problem, config: Config) -> Terms:
        op, terms, s, P = problem.op, Terms(), problem.itemsize, problem.devices
        rows = problem.total_rows
        edges, heads, to_rows = problem.stats.edges, op.heads // P, config.target == ROWS
        add_attention(problem, terms, rows, edges, heads)
        fetched = config.source == ROWS
        terms.held = steps.heads(op, problem.rows, edges, heads, fetched, to_rows)
        gather_input(problem, terms, config.source, op.input_width)
        if to_rows:  # the mean of heads: partial sums on every device
            terms.messages.append(scatter_rows(problem.rows, op.width, s, "forward"))
            terms.messages.append(gather_rows(problem.rows, op.width, s, "backward"))
        bias = op.bias * op.width
        problem.weights(terms, (op.weights + op.biases - bias) // P, copies=False)
        split = config.target == COLUMNS
        problem.weights(terms, bias // P if split else bias, copies=not split)
        return terms


register(Replicate(), RowsAllGather(), RowsHalo(), Heads())
