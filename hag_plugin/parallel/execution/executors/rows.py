"""Executors of strategies that split nodes, or nothing: what differs is how rows are fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.autograd.profiler import record_function

from hag_plugin.parallel.execution.executors.forms import Form
from hag_plugin.parallel.execution.executors.local_aggregate import LocalAggregate
from hag_plugin.parallel.execution.executors.node_attention import Attention
from hag_plugin.parallel.execution.executors.node_layers import (
    Begin,
    Convolution,
    Fetch,
    Messages,
    NodeLayer,
    Parts,
    Relational,
    graphs_of,
)
from hag_plugin.parallel.execution.executors.registry import (
    Executor,
    OperationExecutor,
    executes,
)
from hag_plugin.parallel.execution.executors.walked import Walked
from hag_plugin.parallel.execution.graphs.graph_parts import Halo, LocalGraph
from hag_plugin.parallel.execution.graphs.local_graphs import RankGraphs
from hag_plugin.parallel.execution.parameters import swapped
from hag_plugin.parallel.execution.site import Site
from hag_plugin.parallel.model import functions
from hag_plugin.parallel.model.calls import Call
from hag_plugin.parallel.ranks.comm import Group
from hag_plugin.parallel.ranks.transfer import (
    begin_exchange,
    begin_gather_rows,
    exchange,
    gather_rows,
)
from hag_plugin.parallel.strategies.convolution import AGGREGATE, is_kept
from hag_plugin.recall import Known
from hag_plugin.reducers import LINEAR


def layer_of(site: Site, graphs: RankGraphs, copies: bool) -> NodeLayer:
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
        graphs = graphs_of(site, site.group.size)
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
        self.first = int(site.source_rows[: site.group.rank].sum())
        self.fetch = fetching(site, self.among, site.group, site.config.order)
        graph, own = graphs.gathered(self.own_first), int(site.source_rows[site.group.rank])
        apart = partial(graph.apart, slice(self.first, self.first + own))
        begin = None if isinstance(self.fetch, Once) else self.begin
        place(self.layer, graph, apart, begin)

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

    def begin(self, x: Tensor) -> Callable[[], Tensor]:
        """Begins to gather; what it returns gives the rows of all."""
        return begin_gather_rows(x, self.site.source_rows, self.site.group)


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
        return torch.cat([x, self.others(x)])

    def others(self, x: Tensor) -> Tensor:
        """`[n, w]` to the rows of others, `[h, w]`."""
        return exchange(x.index_select(0, self.send), *self.counts, self.group)

    def begin(self, x: Tensor) -> Callable[[], Tensor]:
        """Begins to; what it returns gives the rows of others, `[h, w]`, when they are there."""
        return begin_exchange(x.index_select(0, self.send), *self.counts, self.group)


class OwnFirst:
    """Sums over neighbours: over the own rows while those of others come, then over these.

    Args:
        site: where; the layer's sums are of `LINEAR`, and run without a HAG.
        forms: of the layer; where it has relations, one of each.
        parts: the edges from the own rows, and those from others.
        begin: begins to fetch what the others' edges read.
    """

    def __init__(
        self, site: Site, forms: Sequence[tuple[Form, int | None]], parts: Parts, begin: Begin
    ) -> None:
        self.begin = begin
        self.own, self.others = (
            [LocalAggregate(site, form, part, relation) for form, relation in forms]
            for part in parts
        )

    def __call__(self, x: Tensor) -> list[Tensor]:
        """`[n, w]` to `[n, w]` of each relation."""
        end = self.begin(x)
        with record_function("sum over own rows"):
            own = [aggregate(x) for aggregate in self.own]
        rows = end()
        return [
            mine.add_(aggregate(rows)) for mine, aggregate in zip(own, self.others, strict=True)
        ]


def own_first(
    site: Site, form: Form, graphs: RankGraphs, apart: Callable[[], Parts], begin: Begin | None
) -> OwnFirst | None:
    """What sums the own rows first; None where that is not the layer's sum, or nothing comes.

    Args:
        site: where.
        form: of the layer.
        graphs: its graph.
        apart: gives the edges from the own rows, and those from others.
        begin: as of `OwnFirst`; None where rows are not fetched at every call.
    """
    op = site.op
    if begin is None or form.reduce not in LINEAR or site.config.hag != "off":
        return None
    relations = [*range(op.relations)] if op.relational else [None]
    forms = [(form.summed(graphs, relation), relation) for relation in relations]
    return OwnFirst(site, forms, apart(), begin)


@executes("rows, halo", "convolution", "attention")
class RowsHalo(Executor):
    """Rows go to those that read them."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        graphs = graphs_of(site)
        self.layer = layer_of(site, graphs, copies=True)
        halo = graphs.halo()
        self.fetch = fetching(site, partial(HaloRows, halo), site.group, site.config.order)
        begin = self.fetch.begin if isinstance(self.fetch, HaloRows) else None
        place(self.layer, halo.graph, halo.apart, begin)
        self.graphs = graphs
        self.walked: Walked | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        [x], layer = inputs, self.layer
        kept = isinstance(self.fetch, Once) and self.site.config.order == AGGREGATE
        if not (self.site.world.mapped and kept and isinstance(layer, Convolution)):
            return layer(x, self.fetch)
        if self.walked is None:  # the features stay in their file: only rows of others are kept
            halo = self.graphs.halo()
            self.fetch = Once(lambda group: HaloRows(halo, group).others, self.site.group)
            self.walked = Walked(layer, halo.graph, x.shape[1] * x.element_size())
            self.graphs.forget()
        return self.walked(x, self.fetch(x))


def place(
    layer: NodeLayer, graph: LocalGraph, apart: Callable[[], Parts], begin: Begin | None
) -> None:
    """Says which edges a layer runs on: all at once, or where it may, those from own rows first.

    The last arguments are those of `own_first`.
    """
    if isinstance(layer, Attention) and begin is not None:
        layer.place_apart(apart(), begin)
        return
    if isinstance(layer, Convolution | Relational):
        layer.own_first = own_first(layer.site, layer.form, layer.graphs, apart, begin)
        if layer.own_first is not None:
            return
    layer.place(graph)


@executes("rows, vertex-cover halo", "convolution")
class RowsCover(Executor):
    """Rows go to those that read them, or sums of rows, whichever are fewer."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        graphs = graphs_of(site)
        self.layer = layer = Convolution(site, graphs, copies=True)
        cover, whole = graphs.cover(), layer.form.summed(graphs)
        self.send = LocalAggregate(site, whole.sent(), cover.send)
        self.counts = cover.send_counts, cover.receive_counts
        self.fetch = fetching(site, self.among, site.group, site.config.order)
        begin = None if isinstance(self.fetch, Once) else self.begin
        layer.own_first = own_first(site, whole, graphs, cover.apart, begin)
        if layer.own_first is None:
            layer.aggregate = LocalAggregate(site, whole, cover.graph)

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.layer(inputs[0], self.fetch)

    def among(self, group: Group) -> Fetch:
        """From `[n, w]` to the own rows and what was received."""
        return partial(self.received, group)

    def received(self, group: Group, x: Tensor) -> Tensor:
        """`[n, w]` to the own rows and what was received."""
        return torch.cat([x, exchange(self.send(x), *self.counts, group)])

    def begin(self, x: Tensor) -> Callable[[], Tensor]:
        """Begins to; what it returns gives what was received."""
        return begin_exchange(self.send(x), *self.counts, self.site.group)


@executes("rows, halo", "opaque")
class LayerHalo(OperationExecutor):
    """A layer or function as it is, given a pair: rows that its edges read, and the own rows."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.graphs = graphs_of(site)
        halo = self.graphs.halo()
        device = site.world.device
        self.index = torch.from_numpy(halo.graph.index).long().to(device)
        self.edges = halo.graph.edges
        self.fetch = fetching(site, partial(HaloRows, halo), site.group, "")

    def run(self, call: Call, *inputs: Tensor) -> Tensor:
        site, ends = self.site, call.args[0]
        source, target = (ends, ends) if isinstance(ends, Tensor) else ends
        used = [w.role for w in site.op.parameters if w.role in site.names]
        own = dict(zip(used, site.locals(used, copies=True), strict=True))
        own |= {role: site.local(role) for role in site.names if role not in used}
        by = {id(t): self.graphs.taken(t, self.edges).to(source.device)
              for t in functions.tensors([*call.args[2:], dict(call.kwargs)])}  # fmt: skip
        rest = functions.replaced(tuple(call.args[2:]), by)
        kwargs = functions.replaced(dict(call.kwargs), by)
        if site.op.drops:
            kwargs["mask"] = site.edge_mask(torch.from_numpy(self.edges))
        assert call.function is not None
        with nullcontext() if site.module is None else swapped(site.module, own):
            out: Tensor = call.function((self.fetch(source), target), self.index, *rest, **kwargs)
        return out
