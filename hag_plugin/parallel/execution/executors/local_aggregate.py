"""Aggregation over the edges of one rank, scaled and weighted as the layer wants it."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from hag_plugin.ops.aggregate import aggregate
from hag_plugin.ops.weights import weighted_aggregate
from hag_plugin.parallel.execution.executors.forms import Form
from hag_plugin.parallel.execution.graphs.graph_parts import LocalGraph
from hag_plugin.parallel.execution.site import Site
from hag_plugin.reducers import LINEAR, REDUCES, Reduce


class LocalAggregate:
    """`y_i = t_i * REDUCE_e(w_e * s_j * x_j)` over the edges of one rank.

    Args:
        site: where; with a HAG if its configuration says so and edges have no weights.
        form: of the layer.
        graph: the edges.
        relation: only the edges of this relation.
    """

    def __init__(
        self, site: Site, form: Form, graph: LocalGraph, relation: int | None = None
    ) -> None:
        device, dtype = site.world.device, site.world.dtype
        self.form = form.bare
        weighted = form.edge_weight is not None
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        self.stock = form.reduce not in REDUCES or (weighted and form.reduce not in LINEAR)
        searched = site.config.hag != "off" and not weighted
        self.hag = graph.hag("auto" if searched else "none", device, relation)
        self.source_scale = graph.scale(form.source_scale, "sources", exact, device)
        self.target_scale = graph.scale(form.target_scale, "targets", exact, device)
        self.weight: Tensor | None = None
        if form.edge_weight is not None:
            assert relation is None  # relational layers have no edge weights
            self.weight = graph.weights(form.edge_weight, exact, device)
        self.module = cast(Any, site.module)
        if self.stock and not hasattr(self.module, "aggr_module"):
            raise TypeError(
                f"layer {site.op.name!r} takes the {form.reduce} of weighted messages, which is "
                "not supported"
            )

    def __call__(self, x: Tensor) -> Tensor:
        """`[S, w]` to `[T, w]`."""
        if self.stock:
            return self._by_module(x)
        scales: dict[str, Any] = {"source_scale": self.source_scale}
        scales["target_scale"] = self.target_scale
        reduce = cast(Reduce, self.form.reduce)
        if self.weight is not None:
            return weighted_aggregate(x, self.hag, self.weight, cast(Any, reduce), **scales)
        ties = self.form.ties
        return aggregate(x, self.hag, reduce, ties=ties, **scales)

    def _by_module(self, x: Tensor) -> Tensor:
        """Messages edge by edge, aggregated as the layer does it."""
        source, target = self.hag.edge_index
        messages = x.index_select(0, source)
        if self.weight is not None:
            messages = messages * self.weight.to(x.dtype).unsqueeze(-1)
        out: Tensor = self.module.aggr_module(messages, target, dim_size=self.hag.num_dst, dim=0)
        return out
