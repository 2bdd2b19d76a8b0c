"""Layers on the rows of one rank: what they compute is the same however rows are fetched.

A layer is given its own rows `[n, F]` and `fetch`, which makes of them (or of what was computed of
them) the rows that the rank's edges read. The weights are whole on every rank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from hag_plugin.parallel.execution.executors.forms import form_of, relational_product
from hag_plugin.parallel.execution.executors.local_aggregate import LocalAggregate
from hag_plugin.parallel.execution.graphs.graph_parts import LocalGraph
from hag_plugin.parallel.execution.graphs.local_graphs import LocalGraphs, RankGraphs
from hag_plugin.parallel.execution.parameters import swapped
from hag_plugin.parallel.execution.site import Site
from hag_plugin.parallel.strategies.convolution import AGGREGATE, TRANSFORM

Fetch = Callable[[Tensor], Tensor]
Begin = Callable[[Tensor], Callable[[], Tensor]]
"""Begins to fetch rows; what it returns gives them when they are there."""
Parts = tuple[LocalGraph, LocalGraph]
Sums = Callable[[Tensor], list[Tensor]]


def graphs_of(site: Site, merged: int = 1) -> RankGraphs:
    """The graph of an operation, cut for this rank; layers on the same graph share it.

    `merged`: so many neighbours' parts are one.
    """
    world, key = site.world, site.op.graph
    if key not in world.graphs:
        edges = world.edges[key]
        source, target = edges.types
        world.graphs[key] = LocalGraphs(
            edges.edge_index, world.nodes[target], world.group.rank,
            self_loops=edges.self_loops, edge_type=edges.edge_type,
            sources=None if source == target else world.nodes[source],
        )  # fmt: skip
    graphs: RankGraphs = world.graphs[key]
    return graphs.merged(merged)


class NodeLayer(ABC):
    """A layer with whole weights, on some rows.

    Args:
        site: where.
        graphs: its graph.
        copies: whether other ranks compute other rows, so that gradients of weights are summed.
    """

    def __init__(self, site: Site, graphs: RankGraphs, copies: bool) -> None:
        self.site, self.graphs, self.copies = site, graphs, copies

    @abstractmethod
    def place(self, graph: LocalGraph) -> None:
        """Says which edges it is to run on, its self-loops among them."""

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """Of the parameters that it computes with; "" for one that there is not."""

    @abstractmethod
    def run(self, x: Tensor, fetch: Fetch, values: Mapping[str, Tensor]) -> Tensor:
        """`[n, F]` to `[n, G]`, with the values of the parameters."""

    def __call__(self, x: Tensor, fetch: Fetch) -> Tensor:
        """`[n, F]` to `[n, G]`."""
        return self.run(x, fetch, self.values())

    def values(self) -> dict[str, Tensor]:
        """Of parameters by name, those that there are, with one sum of their gradients."""
        wanted = [name for name in self.names if name]
        return dict(zip(wanted, self.site.locals(wanted, self.copies), strict=True))


class Convolution(NodeLayer):
    """A sum over neighbours with a transform before or after it."""

    def __init__(self, site: Site, graphs: RankGraphs, copies: bool) -> None:
        super().__init__(site, graphs, copies)
        self.form = form_of(site, graphs)
        self.own_first: Sums | None = None  # the sum, where it does not wait for all rows

    def place(self, graph: LocalGraph) -> None:
        self.aggregate = LocalAggregate(self.site, self.form, graph)
        self.form = self.form.bare

    @property
    def names(self) -> list[str]:
        return [self.form.weight, self.form.root, self.form.bias]

    def run(self, x: Tensor, fetch: Fetch, values: Mapping[str, Tensor]) -> Tensor:
        form, order = self.form, self.site.config.order
        if order == TRANSFORM:
            out = self.summed(form.product(x, values[form.weight]), fetch)
        else:
            out = self.summed(x, fetch)
            if order == AGGREGATE:
                out = form.product(out, values[form.weight])
        if form.root:
            out = out + form.product(x, values[form.root])
        return out + values[form.bias] if form.bias else out

    def summed(self, x: Tensor, fetch: Fetch) -> Tensor:
        """Over neighbours, `[n, w]`."""
        return self.aggregate(fetch(x)) if self.own_first is None else self.own_first(x)[0]


class Relational(NodeLayer):
    """The same with weights for each relation: RGCNConv."""

    def __init__(self, site: Site, graphs: RankGraphs, copies: bool) -> None:
        super().__init__(site, graphs, copies)
        self.form = form_of(site, graphs)
        self.own_first: Sums | None = None  # of each relation, as above

    def place(self, graph: LocalGraph) -> None:
        self.aggregates = [
            LocalAggregate(self.site, self.form, graph, r) for r in range(self.site.op.relations)
        ]
        self.form = self.form.bare

    @property
    def names(self) -> list[str]:
        form = self.form
        return [form.weight, form.coefficients, form.root, form.bias]

    def run(self, x: Tensor, fetch: Fetch, values: Mapping[str, Tensor]) -> Tensor:
        form = self.form
        weights = form.of_relations(values)
        if self.own_first is None:
            out = relational_sum(self.site, self.aggregates, x, fetch, weights)
        else:
            out = relational_products(self.own_first(x), weights)
        if form.root:
            out = out + x @ values[form.root]
        return out + values[form.bias] if form.bias else out


def relational_sum(
    site: Site, aggregates: list[LocalAggregate], x: Tensor, fetch: Fetch, weight: Tensor
) -> Tensor:
    """The sum over relations, `[n, G]`; weights are those of `Form.of_relations`."""
    if site.config.order == TRANSFORM:
        pairs = zip(aggregates, weight, strict=True)
        return added([a(fetch(relational_product(x, w))) for a, w in pairs])
    rows = fetch(x)
    return relational_products((aggregate(rows) for aggregate in aggregates), weight)


def relational_products(sums: Iterable[Tensor], weight: Tensor) -> Tensor:
    """The sums of relations, each with its weights, as one: `[n, G]`."""
    return added([relational_product(x, w) for x, w in zip(sums, weight, strict=True)])


def added(parts: list[Tensor]) -> Tensor:
    """What relations give, as one."""
    return torch.stack(parts).sum(dim=0) if len(parts) > 1 else parts[0]


class Messages(NodeLayer):
    """A layer that makes its messages edge by edge from both ends: PNAConv, as it stands."""

    def place(self, graph: LocalGraph) -> None:
        self.index = graph.both_ends(self.site.world.device)
        self.size = (len(graph.sources), len(graph.targets))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in cast(Any, self.site.module).named_parameters()]

    def run(self, x: Tensor, fetch: Fetch, values: Mapping[str, Tensor]) -> Tensor:
        conv = cast(Any, self.site.module)
        with swapped(conv, values):
            return self.forward(conv, fetch(x), x)

    def forward(self, conv: Any, source: Tensor, target: Tensor) -> Tensor:
        """conv/pna_conv.py, with other rows for sources than for targets."""
        pair = self.towers(conv, source), self.towers(conv, target)
        out = conv.propagate(self.index, x=pair, edge_attr=None, size=self.size)
        out = torch.cat([pair[1], out], dim=-1)
        rows = [post(out[:, i]) for i, post in enumerate(conv.post_nns)]
        result: Tensor = conv.lin(torch.cat(rows, dim=1))
        return result

    def towers(self, conv: Any, x: Tensor) -> Tensor:
        """`[n, F]` to `[n, towers, F_in]`."""
        if conv.divide_input:
            return x.view(-1, conv.towers, conv.F_in)
        return x.view(-1, 1, conv.F_in).repeat(1, conv.towers, 1)
