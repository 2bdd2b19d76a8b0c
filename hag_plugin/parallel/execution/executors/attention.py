"""The executor that splits the heads of attention: GATConv."""

from __future__ import annotations

from torch import Tensor

from hag_plugin.parallel.execution.executors.convolution import whole_input
from hag_plugin.parallel.execution.executors.node_attention import (
    BIAS,
    SOURCE,
    TARGET,
    WEIGHT,
    Heads,
    transformed,
)
from hag_plugin.parallel.execution.executors.node_layers import graphs_of
from hag_plugin.parallel.execution.executors.registry import Executor, executes
from hag_plugin.parallel.execution.site import Site
from hag_plugin.parallel.layouts import ROWS
from hag_plugin.parallel.ranks.transfer import scatter_rows


@executes("heads", "attention")
class SplitHeads(Executor):
    """Each rank has some heads, and runs them on the whole graph."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.count = site.op.heads // site.group.size
        whole = graphs_of(site, site.group.size).whole()
        self.heads = Heads(site, whole, site.group.rank * self.count)

    def __call__(self, *inputs: Tensor) -> Tensor:
        site, op = self.site, self.site.op
        x = whole_input(site, inputs[0])
        out = self.heads(*transformed(x, *site.locals([WEIGHT, SOURCE, TARGET])))
        to_rows = site.config.target == ROWS
        if to_rows:  # the mean of heads
            out = out.view(len(out), self.count, op.width).sum(dim=1) / op.heads
            out = scatter_rows(out, site.rows, site.group)
        return out + site.local(BIAS, copies=to_rows) if op.bias else out
