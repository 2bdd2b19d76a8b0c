"""Executors of convolutions that split features: the sum runs on the whole graph, or on a grid."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from hag_plugin.parallel.execution.executors.forms import Form, form_of
from hag_plugin.parallel.execution.executors.local_aggregate import LocalAggregate
from hag_plugin.parallel.execution.executors.node_layers import graphs_of
from hag_plugin.parallel.execution.executors.registry import Executor, executes
from hag_plugin.parallel.execution.executors.rows import HaloRows, fetching, own_first
from hag_plugin.parallel.execution.site import Site
from hag_plugin.parallel.layouts import COLUMNS, ROWS
from hag_plugin.parallel.ranks.transfer import (
    columns_to_rows,
    fan_out,
    gather_rows,
    rows_to_columns,
    scatter_columns,
    scatter_rows,
)
from hag_plugin.parallel.strategies.convolution import AGGREGATE, TRANSFORM


class _Features(Executor):
    """Each rank aggregates its features over the whole graph."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        graphs = graphs_of(site, site.group.size)
        form = form_of(site, graphs)
        self.aggregate = LocalAggregate(site, form, graphs.whole())
        self.form = form.bare


@executes("all-to-all around aggregation", "convolution")
class AllToAll(_Features):
    """Rows become columns for the sum and rows again."""

    def __call__(self, *inputs: Tensor) -> Tensor:
        form, config, x = self.form, self.site.config, inputs[0]
        split = [form.bias] if form.bias and config.target == COLUMNS else []
        copies = [n for n in (*form.weights, form.bias) if n and n not in split]
        names = [*copies, *split]
        values = [*self.site.locals(copies, copies=True), *self.site.locals(split)]
        value = dict(zip(names, values, strict=True))
        if config.order == TRANSFORM:
            out = self.turned(form.product(x, value[form.weight]))
        else:
            out = self.turned(x)
            if config.order == AGGREGATE:
                out = form.product(out, value[form.weight])
        if form.root:
            out = out + form.product(x, value[form.root])
        return out + value[form.bias] if form.bias else out

    def turned(self, x: Tensor) -> Tensor:
        """The sum, from the source's layout to the target's."""
        site, config, group = self.site, self.site.config, self.site.group
        width = site.op.width if config.order == TRANSFORM else site.op.input_width
        if config.source == ROWS:
            x = rows_to_columns(x, site.source_rows, group)
        x = self.aggregate(x)
        return columns_to_rows(x, site.rows, width, group) if config.target == ROWS else x


@executes("columns, row-split weights", "convolution")
class RowSplitWeights(_Features):
    """Each rank has the weights of its input features; partial outputs are summed."""

    def __call__(self, *inputs: Tensor) -> Tensor:
        form, site, x = self.form, self.site, inputs[0]
        weights = site.locals(form.weights)
        first = site.config.order == AGGREGATE
        out = partial_sum(form, x, self.aggregate(x) if first else x, weights)
        to_rows = site.config.target == ROWS
        if to_rows:
            out = scatter_rows(out, site.rows, site.group)
        else:
            out = scatter_columns(out, site.group)
        if not first:
            out = self.aggregate(out)
        return out + site.local(form.bias, copies=to_rows) if form.bias else out


def partial_sum(form: Form, x: Tensor, summed: Tensor, weights: list[Tensor]) -> Tensor:
    """What a block of input features adds to all outputs, `[N, G]`."""
    out = form.product(summed, weights[0])
    return out + form.product(x, weights[1]) if form.root else out


@executes("column-split weights", "convolution")
class ColumnSplitWeights(_Features):
    """Each rank has the weights of its output features."""

    def __call__(self, *inputs: Tensor) -> Tensor:
        form, site = self.form, self.site
        x = whole_input(site, inputs[0])
        weights = site.locals(form.weights)
        out = self.aggregate(form.product(x, weights[0]))
        if form.root:
            out = out + form.product(x, weights[1])
        return out + site.local(form.bias) if form.bias else out


def whole_input(site: Site, x: Tensor) -> Tensor:
    """The whole input on every rank; each makes a part of its gradient."""
    if site.config.source == ROWS:
        return gather_rows(x, site.source_rows, site.group)
    return fan_out(x, site.group)


@executes("2-D grid", "convolution")
class Grid(Executor):
    """Nodes are split over the rows of a grid of ranks, features over its columns."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.columns = site.config.target.columns
        graphs = graphs_of(site, self.columns)
        self.form: Form = form_of(site, graphs)
        self.neighbours = site.group.neighbours(self.columns)
        self.strided = site.group.strided(self.columns)
        halo = graphs.halo()
        self.fetch = fetching(site, partial(HaloRows, halo), self.strided)
        self.own_first = own_first(site, self.form, graphs, halo.apart, self.fetch.begin)
        if self.own_first is None:
            self.aggregate = LocalAggregate(site, self.form, halo.graph)
        self.form = self.form.bare

    def summed(self, x: Tensor) -> Tensor:
        """Over neighbours, `[n, w]`."""
        return self.aggregate(self.fetch(x)) if self.own_first is None else self.own_first(x)[0]

    def __call__(self, *inputs: Tensor) -> Tensor:
        form, order, x = self.form, self.site.config.order, inputs[0]
        names = [*form.weights, *([form.bias] if form.bias else [])]
        values = self.site.locals(names, copies=self.strided)
        out = x if order == TRANSFORM else self.summed(x)
        if order:
            out = scatter_columns(partial_sum(form, x, out, values), self.neighbours)
        if order == TRANSFORM:
            out = self.summed(out)
        return out + values[-1] if form.bias else out
