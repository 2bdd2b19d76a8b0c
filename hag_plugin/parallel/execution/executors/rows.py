"""Executors of strategies that split nodes, or nothing: what differs is how rows are fetched."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.autograd.profiler import record_function

from hag_plugin.parallel.execution.executors.forms import Form
from hag_plugin.parallel.execution.executors.local_aggregate import LocalAggregate
from hag_plugin.parallel.execution.executors.node_attention import Attention
from hag_plugin.parallel.execution.executors.node_layers import (
    Convolution,
    Fetch,
    Messages,
    NodeLayer,
    Relational,
    graphs_of,
)
from hag_plugin.parallel.execution.executors.registry import (
    Executor,
    OperationExecutor,
    executes,
)
from hag_plugin.parallel.execution.graphs.graph_parts import Halo
from hag_plugin.parallel.execution.graphs.local_graphs import LocalGraphs
from hag_plugin.parallel.execution.parameters import swapped
from hag_plugin.parallel.execution.site import Site
from hag_plugin.parallel.model import functions
from hag_plugin.parallel.model.calls import Call
from hag_plugin.parallel.ranks.comm import Group
from hag_plugin.parallel.ranks.transfer import begin_exchange, exchange, gather_rows
from hag_plugin.parallel.strategies.convolution import is_kept
from hag_plugin.recall import Known
from hag_plugin.reducers import LINEAR


def layer_of(site: Site, graphs: LocalGraphs, copies: bool) -> NodeLayer:
    """The layer of an operation."""
    op = site.op
    if op.kind == "attention":
        return Attention(site, graphs, copies)
    if op.edge_products:
        return Messages(site, graphs, copies)
    return (Relational if op.relational else Convolution)(site, graphs, copies)


@executes("replicate", "convolution", "attention")
class Replicate(Executor):
    """Every rank computes everything."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        graphs = graphs_of(site)
        self.layer = layer_of(site, graphs, copies=False)
        self.layer.place(graphs.whole(self.layer.listed))

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.layer(inputs[0], lambda x: x)


@executes("rows, all-gather", "convolution", "attention")
class RowsAllGather(Executor):
    """All rows go to all ranks."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        graphs = graphs_of(site)
        self.layer = layer_of(site, graphs, copies=True)
        # A HAG shares more where it knows which source is which target.
        self.own_first = site.config.hag == "part"
        self.layer.place(graphs.gathered(self.own_first))
        self.first = int(site.source_rows[: site.group.rank].sum())
        self.fetch = fetching(site, self.among, site.group, site.config.order)

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.layer(inputs[0], self.fetch)

    def among(self, group: Group) -> Fetch:
        """From `[n, w]` to `[N, w]`."""
        return partial(self.gathered, group)

    def gathered(self, group: Group, x: Tensor) -> Tensor:
        """`[n, w]` to `[N, w]`."""
        whole = gather_rows(x, self.site.source_rows, group)
        if not self.own_first:
            return whole
        return torch.cat([x, whole[: self.first], whole[self.first + len(x) :]])


class Once:
    """Fetches rows of features that are given, once for all calls; it is counted under "layout".

    They are fetched anew once torch has counted a write to them, as it does on every rank that
    calls the same function: whether to fetch is never a matter of one rank's values.

    Args:
        fetch: how, from a group.
        group: whose ranks exchange them.
    """

    def __init__(self, fetch: Callable[[Group], Fetch], group: Group) -> None:
        self.fetch = fetch(group.counted_as("layout"))
        self.known: Known | None = None
        self.kept = torch.empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        """`[n, w]` to what it was fetched to."""
        if self.known is None or not self.known.holds((x,)):
            with torch.inference_mode(False), torch.no_grad():  # it is used in training, too
                self.known, self.kept = Known.of((x,), contents=False), self.fetch(x)
        return self.kept


def fetching(site: Site, fetch: Callable[[Group], Fetch], group: Group, order: str) -> Fetch:
    """How a layer fetches rows, from a group: once, where they are given and not transformed."""
    return Once(fetch, group) if is_kept(site.op, site.fixed, order) else fetch(group)


class HaloRows:
    """Fetches the rows that a rank's edges read.

    Args:
        halo: which rows.
        group: whose ranks exchange them.
    """

    def __init__(self, halo: Halo, group: Group) -> None:
        self.group = group
        self.send = torch.from_numpy(halo.send).to(group.device)
        self.counts = halo.send_counts, halo.receive_counts

    def __call__(self, x: Tensor) -> Tensor:
        """`[n, w]` to `[n + h, w]`."""
        return torch.cat([x, exchange(x.index_select(0, self.send), *self.counts, self.group)])

    def begin(self, x: Tensor) -> Callable[[], Tensor]:
        """Begins to; what it returns gives the rows of others, `[h, w]`, when they are there."""
        return begin_exchange(x.index_select(0, self.send), *self.counts, self.group)


class OwnFirst:
    """A sum over neighbours: over the own rows while those of others come, then over these.

    Args:
        site: where; the layer's sum is one of `LINEAR`, and runs without a HAG.
        form: of the layer.
        graphs: the graph.
        halo: its own rows, and then those of others.
        fetch: fetches them.
    """

    def __init__(
        self, site: Site, form: Form, graphs: LocalGraphs, halo: Halo, fetch: HaloRows
    ) -> None:
        whole, (own, others) = form.summed(graphs), halo.apart()
        self.fetch = fetch
        self.own, self.others = (LocalAggregate(site, whole, part) for part in (own, others))

    @classmethod
    def of(
        cls, site: Site, form: Form, graphs: LocalGraphs, halo: Halo, fetch: HaloRows
    ) -> OwnFirst | None:
        """None where a layer's sum is not the sum of these two."""
        is_sum = form.reduce in LINEAR and site.config.hag == "off"
        return cls(site, form, graphs, halo, fetch) if is_sum else None

    def __call__(self, x: Tensor) -> Tensor:
        """`[n, w]` to `[n, w]`."""
        end = self.fetch.begin(x)
        with record_function("sum over own rows"):
            own = self.own(x)
        return own + self.others(end())


@executes("rows, halo", "convolution", "attention")
class RowsHalo(Executor):
    """Rows go to those that read them."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        graphs = graphs_of(site)
        self.layer = layer_of(site, graphs, copies=True)
        halo = graphs.halo()
        self.fetch = fetching(site, partial(HaloRows, halo), site.group, site.config.order)
        layer, fetch = self.layer, self.fetch
        own_first = None
        if isinstance(layer, Convolution) and isinstance(fetch, HaloRows):
            own_first = layer.own_first = OwnFirst.of(site, layer.form, graphs, halo, fetch)
        if own_first is None:
            layer.place(halo.graph)

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.layer(inputs[0], self.fetch)


@executes("rows, vertex-cover halo", "convolution")
class RowsCover(Executor):
    """Rows go to those that read them, or sums of rows, whichever are fewer."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        graphs = graphs_of(site)
        self.layer = Convolution(site, graphs, copies=True)
        cover = graphs.cover()
        self.send = self.layer.cover(cover)
        self.counts = cover.send_counts, cover.receive_counts
        self.fetch = fetching(site, self.among, site.group, site.config.order)

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.layer(inputs[0], self.fetch)

    def among(self, group: Group) -> Fetch:
        """From `[n, w]` to the own rows and what was received."""
        return partial(self.received, group)

    def received(self, group: Group, x: Tensor) -> Tensor:
        """`[n, w]` to the own rows and what was received."""
        return torch.cat([x, exchange(self.send(x), *self.counts, group)])


@executes("rows, halo", "opaque")
class LayerHalo(OperationExecutor):
    """A layer as it is, given a pair: the rows that its edges read, and the own rows."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        halo = graphs_of(site).halo()
        device = site.world.device
        self.index = torch.from_numpy(halo.graph.index).to(device)
        self.edges = torch.from_numpy(halo.graph.edges)
        self.fetch = fetching(site, partial(HaloRows, halo), site.group, "")

    def run(self, call: Call, *inputs: Tensor) -> Tensor:
        site, ends = self.site, call.args[0]
        source, target = (ends, ends) if isinstance(ends, Tensor) else ends
        used = [w.role for w in site.op.parameters if w.role in site.names]
        own = dict(zip(used, site.locals(used, copies=True), strict=True))
        own |= {role: site.local(role) for role in site.names if role not in used}
        by = {id(t): t[self.edges.to(t.device)].to(source.device)
              for t in functions.tensors([*call.args[2:], dict(call.kwargs)])}  # fmt: skip
        rest = functions.replaced(tuple(call.args[2:]), by)
        kwargs = functions.replaced(dict(call.kwargs), by)
        assert site.module is not None
        assert call.function is not None
        with swapped(site.module, own):
            out: Tensor = call.function((self.fetch(source), target), self.index, *rest, **kwargs)
        return out
