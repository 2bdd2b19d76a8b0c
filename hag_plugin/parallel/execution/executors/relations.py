"""The executor that splits the relations of a relational layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hag_plugin.parallel.execution.executors.convolution import whole_input
from hag_plugin.parallel.execution.executors.forms import form_of
from hag_plugin.parallel.execution.executors.local_aggregate import LocalAggregate
from hag_plugin.parallel.execution.executors.node_layers import graphs_of, relational_sum
from hag_plugin.parallel.execution.executors.registry import Executor, executes
from hag_plugin.parallel.execution.site import Site
from hag_plugin.parallel.layouts import ROWS, chunk_sizes
from hag_plugin.parallel.ranks.transfer import scatter_rows, sum_parts


@executes("relations", "convolution")
class Relations(Executor):
    """Each rank has the edges and weights of a block of relations; their outputs are summed."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        graphs = graphs_of(site, site.group.size)
        self.form = form_of(site, graphs)
        graph, rank = graphs.whole(), site.group.rank
        sizes = chunk_sizes(site.op.relations, site.group.size)
        first = int(sizes[:rank].sum())
        self.aggregates = [
            LocalAggregate(site, self.form, graph, r) for r in range(first, first + sizes[rank])
        ]
        self.form = self.form.bare
        start = int(site.rows[:rank].sum())
        self.own = slice(start, start + int(site.rows[rank]))

    def __call__(self, *inputs: Tensor) -> Tensor:
        site, form, x = self.site, self.form, inputs[0]
        to_rows = site.config.target == ROWS
        whole = whole_input(site, x)
        values = self.parameters(to_rows)
        weight = form.of_relations(values)
        if self.aggregates:
            out = relational_sum(site, self.aggregates, whole, lambda z: z, weight)
        else:  # nothing, but with gradients: every rank takes part in what is sent
            nothing = whole[:0].sum() + weight.sum()
            out = nothing.expand(len(whole), site.op.width)
        out = scatter_rows(out, site.rows, site.group) if to_rows else sum_parts(out, site.group)
        if form.root:
            out = out + self.root_rows(x, whole) @ values[form.root]
        return out + values[form.bias] if form.bias else out

    def parameters(self, to_rows: bool) -> dict[str, Tensor]:
        """Own blocks, and copies: bases are used by all; the root and the bias by row."""
        form, own = self.form, self.form.coefficients or self.form.weight
        copied = [form.weight] if form.coefficients else []
        last = [name for name in (form.root, form.bias) if name]
        plain, copied = ([own], copied + last) if to_rows else ([own, *last], copied)
        values = dict(zip(plain, self.site.locals(plain), strict=True))
        return values | dict(zip(copied, self.site.locals(copied, copies=True), strict=True))

    def root_rows(self, x: Tensor, whole: Tensor) -> Tensor:
        """The rows that the output is wanted for; their gradient goes to each node's row once."""
        source, target = self.site.config.source, self.site.config.target
        if source == target:
            return x
        if target == ROWS:
            return whole[self.own]
        own: Tensor = _OwnGradient.apply(whole, self.own)  # type: ignore[no-untyped-call]
        return own


class _OwnGradient(torch.autograd.Function):
    """All rows, of which every rank has the same gradient: each keeps that of its own rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, own: slice) -> Tensor:
        ctx.own = own
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        kept = torch.zeros_like(grad)
        kept[ctx.own] = grad[ctx.own]
        return kept, None
