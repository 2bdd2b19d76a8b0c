"""Executors of strategies that split nodes, or nothing: what differs is how rows are fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import copy
from functools import partial
from typing import Any, Protocol

import numpy as np
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
from hag_plugin.parallel.execution.executors.walked import Run, Walked, walks
from hag_plugin.parallel.execution.graphs.graph_parts import Cover, Halo, LocalGraph
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
from hag_plugin.parallel.strategies.convolution import is_apart, is_kept
from hag_plugin.recall import Known


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
        layer = layer_of(site, graphs, copies=False)
        if site.group.size == 1 and walks(site):
            self.run_on = by_block(layer, graphs.whole(), lambda x: lambda: x[:0])
        else:
            layer.place(graphs.whole())
            self.run_on = partial(layer, fetch=lambda x: x)

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.run_on(inputs[0])


@executes("rows, all-gather", "convolution", "attention")
class RowsAllGather(Executor):
    """All rows go to all ranks."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        graphs = graphs_of(site)
        self.layer = layer_of(site, graphs, copies=True)
        # A HAG shares more where it knows which source is which target.
        reordered = site.config.hag == "part"
        rank, rows = site.group.rank, site.source_rows
        first, last = (int(rows[:r].sum()) for r in (rank, rank + 1))
        self.fetch = fetching(
            site, partial(AllRows, rows, first if reordered else None), site.group
        )
        graph = graphs.gathered(reordered)
        place(self.layer, lambda: graph, partial(graph.apart, slice(first, last)), self.fetch)

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.layer(inputs[0], self.fetch)


class Rows(Protocol):
    """Fetches rows of others."""

    def __call__(self, x: Tensor) -> Tensor:
        """The own rows, `[n, w]`, to all that edges read."""

    def begin(self, x: Tensor) -> Callable[[], Tensor]:
        """Begins to; what it returns gives those that others' edges read, when they are there."""


class Once:
    """Fetches rows of features that are given, once for all calls; it is counted under "layout".

    They are fetched anew once torch has counted a write to them, as it does on every rank that
    calls the same function: whether to fetch is never a matter of one rank's values.

    Args:
        rows: fetches them, in one of its two ways, which is then the only one that is called.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.known: Known | None = None
        self.kept = torch.empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        return self._fetched(x, self.rows)

    def begin(self, x: Tensor) -> Callable[[], Tensor]:
        return partial(self._fetched, x, lambda x: self.rows.begin(x)())

    def _fetched(self, x: Tensor, fetch: Fetch) -> Tensor:
        if self.known is None or not self.known.holds((x,)):
            with torch.inference_mode(False), torch.no_grad():  # it is used in training, too
                self.known, self.kept = Known.of((x,), contents=False), fetch(x)
        return self.kept


def fetching(site: Site, rows: Callable[[Group], Rows], group: Group) -> Rows:
    """How a layer fetches rows, from a group: once, where they are given and not transformed."""
    if is_kept(site.op, site.fixed, site.config.order):
        return Once(rows(group.counted_as("layout")))
    return rows(group)


class AllRows:
    """Fetches the rows of all.

    Args:
        rows: of each rank, int64 `[P]`.
        first: the number of the first own row, where these are to come first; None: in order.
        group: all ranks.
    """

    def __init__(self, rows: np.ndarray, first: int | None, group: Group) -> None:
        self.rows, self.first, self.group = rows, first, group

    def __call__(self, x: Tensor) -> Tensor:
        whole = gather_rows(x, self.rows, self.group)
        if self.first is None:
            return whole
        return torch.cat([x, whole[: self.first], whole[self.first + len(x) :]])

    def begin(self, x: Tensor) -> Callable[[], Tensor]:
        return begin_gather_rows(x, self.rows, self.group)


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
        return torch.cat([x, exchange(self.sent(x), *self.counts, self.group)])

    def begin(self, x: Tensor) -> Callable[[], Tensor]:
        return begin_exchange(self.sent(x), *self.counts, self.group)

    def sent(self, x: Tensor) -> Tensor:
        """What of `[n, w]` goes to others."""
        return x.index_select(0, self.send)


class CoverRows(HaloRows):
    """Fetches rows, and sums of rows.

    Args:
        sums: makes of the own rows what goes to others.
        cover: what that is.
        group: whose ranks exchange it.
    """

    def __init__(self, sums: Fetch, cover: Cover, group: Group) -> None:
        self.sums, self.group = sums, group
        self.counts = cover.send_counts, cover.receive_counts

    def sent(self, x: Tensor) -> Tensor:
        return self.sums(x)


class OwnFirst:
    """Sums over neighbours: over the own rows while those of others come, then over these. The own
    rows are read where they lie: nothing has a copy of them beside the others'.

    Args:
        site: where the layer `is_apart`.
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
    site: Site, form: Form, graphs: RankGraphs, apart: Callable[[], Parts], begin: Begin
) -> OwnFirst | None:
    """What sums the own rows first; None where that is not the layer's sum.

    Args:
        site: where.
        form: of the layer.
        graphs: its graph.
        apart: gives the edges from the own rows, and those from others.
        begin: as of `OwnFirst`.
    """
    op = site.op
    if not is_apart(op, site.config.hag):
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
        layer, halo = layer_of(site, graphs, copies=True), graphs.halo()
        fetch = fetching(site, partial(HaloRows, halo), site.group)
        self.run_on = placed(layer, lambda: halo.graph, halo.apart, fetch)

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.run_on(inputs[0])


def placed(
    layer: NodeLayer, graph: Callable[[], LocalGraph], apart: Callable[[], Parts], rows: Rows
) -> Callable[[Tensor], Tensor]:
    """A layer of the own rows, on edges from these and then from those of others; arguments as of
    `place`.
    """
    if walks(layer.site):
        return by_block(layer, graph(), rows.begin)
    place(layer, graph, apart, rows)
    return partial(layer, fetch=rows)


def by_block(layer: NodeLayer, graph: LocalGraph, begin: Begin) -> Callable[[Tensor], Tensor]:
    """The same where the own rows stay in their file; `begin` as of `Walked`."""
    layers: list[NodeLayer] = []

    def run_on(part: LocalGraph) -> Run:
        each = copy(layer)
        each.place(part)
        layers.append(each)
        return lambda sources, own, values: each.run(own, lambda x: sources, values)

    walked = Walked(layer.site, graph, begin, run_on)
    return lambda x: walked(x, layers[0].values())


def place(
    layer: NodeLayer, graph: Callable[[], LocalGraph], apart: Callable[[], Parts], rows: Rows
) -> None:
    """Says which edges a layer runs on: all at once, or where it may, those from own rows first.

    Args:
        layer: the layer.
        graph: gives all edges.
        apart: gives those from the own rows, and those from others.
        rows: fetches what they read.
    """
    if isinstance(layer, Attention):
        layer.place_apart(apart(), rows.begin)
        return
    if isinstance(layer, (Convolution, Relational)):
        layer.own_first = own_first(layer.site, layer.form, layer.graphs, apart, rows.begin)
        if layer.own_first is not None:
            layer.form = layer.form.bare
            return
    layer.place(graph())


@executes("rows, vertex-cover halo", "convolution")
class RowsCover(Executor):
    """Rows go to those that read them, or sums of rows, whichever are fewer."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        graphs = graphs_of(site)
        layer = Convolution(site, graphs, copies=True)
        layer.form = layer.form.summed(graphs)
        cover = graphs.cover()
        sums = LocalAggregate(site, layer.form.sent(), cover.send)
        fetch = fetching(site, partial(CoverRows, sums, cover), site.group)
        self.run_on = placed(layer, lambda: cover.graph, cover.apart, fetch)

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.run_on(inputs[0])


@executes("rows, halo", "opaque")
class LayerHalo(OperationExecutor):
    """A layer or function as it is, given a pair: rows that its edges read, and the own rows."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.graphs = graphs_of(site)
        halo = self.graphs.halo()
        self.fetch = fetching(site, partial(HaloRows, halo), site.group)
        self.walked: Walked | None = None
        if walks(site):
            self.walked = Walked(site, halo.graph, self.fetch.begin, self._on)
        else:
            self.on_all = self._on(halo.graph)

    def run(self, call: Call, *inputs: Tensor) -> Tensor:
        site, ends = self.site, call.args[0]
        source, target = (ends, ends) if isinstance(ends, Tensor) else ends
        used = [w.role for w in site.op.parameters if w.role in site.names]
        own = dict(zip(used, site.locals(used, copies=True), strict=True))
        own |= {role: site.local(role) for role in site.names if role not in used}
        given = own, call, site.world.step
        if self.walked is not None:
            return self.walked(target, *given)
        return self.on_all(self.fetch(source), target, *given)

    def _on(self, graph: LocalGraph) -> Run:
        """What runs the layer on some edges."""
        site, edges, index = self.site, graph.edges, graph.both_ends(self.site.world.device)

        def run(sources: Tensor, target: Tensor, own: Any, call: Call, step: int) -> Tensor:
            by = {id(t): self.graphs.taken(t, edges).to(sources.device)
                  for t in functions.tensors([*call.args[2:], dict(call.kwargs)])}  # fmt: skip
            rest = functions.replaced(tuple(call.args[2:]), by)
            kwargs = functions.replaced(dict(call.kwargs), by)
            if site.op.drops:
                kwargs["mask"] = site.edge_mask(torch.from_numpy(edges), step)
            assert call.function is not None
            with nullcontext() if site.module is None else swapped(site.module, own):
                out: Tensor = call.function((sources, target), index, *rest, **kwargs)
            return out

        return run
