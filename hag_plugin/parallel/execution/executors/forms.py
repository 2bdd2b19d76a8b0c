"""What a convolution of PyG or DGL computes, as numbers and names of parameters.

All of them are `y = t * REDUCE_j(w_e * s_j * x_j) W + x R + b`, where the weights `W` may go first
if the aggregation is a sum or a mean. What these are, the records of `hag_plugin.layers` tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hag_plugin.layers.record import held
from hag_plugin.layers.table import record_of
from hag_plugin.parallel.execution.graphs.local_graphs import RankGraphs, Weights, power
from hag_plugin.parallel.execution.site import Site
from hag_plugin.parallel.model.calls import named

Scale = Callable[[float], Tensor]  # of nodes, by the exponent of their degrees


@dataclass(frozen=True, eq=False)
class Form:
    """What a convolution computes. Scales are of all nodes that a rank knows, float64.

    Attributes:
        weight: name of `W`; "" for none.
        inputs: the dimension of `W` that goes over the input's features, -1 or -2.
        outputs: the other, over the output's.
        root: name of `R`, of the same form; "" for none.
        bias: name of `b`, `[G]`; "" for none.
        reduce: "sum", "mean", "max" or "min"; else the layer's own aggregation module runs.
        ties: where the gradient of max and min goes, as `aggregate` names it.
        source_scale: `s`, `[N]`, or None.
        target_scale: `t`, `[N]`, or None.
        edge_weight: `w`, by the numbers of edges; or None.
        coefficients: name of `[R, B]`, of which and `W` the weights of relations are sums; "" for
            none.
    """

    weight: str = ""
    inputs: int = -1
    outputs: int = -2
    root: str = ""
    bias: str = ""
    reduce: str = "sum"
    ties: Literal["even", "first"] = "even"
    source_scale: Tensor | None = None
    target_scale: Tensor | None = None
    edge_weight: Weights | None = None
    coefficients: str = ""

    def summed(self, graphs: RankGraphs, relation: int | None = None) -> Form:
        """The same with the division of a mean among the scales: partial sums add up.

        `relation`: of which the sum is.
        """
        if self.reduce == "sum":
            return self
        assert self.reduce == "mean"  # others are no sums
        scale = graphs.scale(-1.0, relation)
        if self.target_scale is not None:
            scale = scale * self.target_scale
        return replace(self, reduce="sum", target_scale=scale)

    def sent(self) -> Form:
        """The same for sums that go to another rank, whose scales are put there."""
        return replace(self, target_scale=None)

    @property
    def bare(self) -> Form:
        """The same without what it has for each node and edge."""
        return replace(self, source_scale=None, target_scale=None, edge_weight=None)

    @property
    def weights(self) -> list[str]:
        """Names of `W` and `R`, as far as there are any."""
        return [name for name in (self.weight, self.root) if name]

    def of_relations(self, values: Mapping[str, Tensor]) -> Tensor:
        """The weights of relations, `[R, F, G]` or in blocks, from the layer's parameters."""
        weight = values[self.weight]
        if not self.coefficients:
            return weight
        coefficients = values[self.coefficients]
        return (coefficients @ weight.flatten(1)).view(-1, *weight.shape[1:])

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """`[n, k]` times weights, or a block of them: `[n, g]`."""
        weight = weight.view(weight.shape[-2:])
        return F.linear(x, weight) if self.inputs == -1 else x @ weight


def relational_product(x: Tensor, weight: Tensor) -> Tensor:
    """`[n, F]` times the weights of a relation, `[F, G]` or its blocks `[B, F / B, G / B]`."""
    if weight.dim() == 2:
        return x @ weight
    blocks = x.view(len(x), len(weight), x.shape[1] // len(weight))
    return torch.einsum("nbf,bfg->nbg", blocks, weight).flatten(1)


def form_of(site: Site, graphs: RankGraphs) -> Form:
    """The form of a convolution, as the record of its layer tells it.

    Raises:
        TypeError: the layer has no record, or is set up in a way that is not covered.
        ValueError: the layer refuses its graph.
    """
    layer = cast(Any, site.module)
    record = record_of(type(layer))
    if record is None:
        raise TypeError(
            f"layer {site.op.name!r} ({type(layer).__name__}) cannot be split with strategy "
            f"{site.config.strategy!r}; expected a layer with a record"
        )
    flow = getattr(layer, "flow", "source_to_target")
    if flow != "source_to_target":
        raise TypeError(f"layer {site.op.name!r} has flow {flow!r}; expected 'source_to_target'")
    if len(site.op.reduce) != 1:
        raise TypeError(f"layer {site.op.name!r} aggregates by {site.op.reduce}; expected one "
                        "reducer")  # fmt: skip
    _refuse_empty(site, graphs)
    given, weights = _edge_weight(site), None
    # `improved` counts with weights alone: without them stock fills in loops of weight 1.
    loop = 2.0 if getattr(layer, "improved", False) else 1.0
    if given is not None:
        weights = graphs.weights(given, loop)
    is_dgl = record.library == "dgl"
    source, target = None, None
    normalised = site.world.edges[site.op.graph].normalised
    exponents = (0.0, 0.0) if normalised else record.exponents(layer)
    if any(exponents):
        if is_dgl:
            scales = _own_scales(graphs)
        elif given is None:  # PyG's, of its `gcn_norm`: by the targets' degrees on both sides
            scales = graphs.scale, graphs.scale
        else:
            scales = (partial(graphs.weighted_scale, given=given, loop=loop),) * 2
        source, target = (
            scale(exponent) if exponent else None
            for scale, exponent in zip(scales, exponents, strict=True)
        )
    return Form(
        weight=held(layer, record.weight),
        inputs=record.inputs,
        outputs=record.outputs,
        root=held(layer, record.root) if site.op.root else "",
        bias=held(layer, record.bias),
        reduce=site.op.reduce[0],
        ties="first" if is_dgl else "even",
        source_scale=source,
        target_scale=target,
        edge_weight=weights,
        coefficients=held(layer, record.coefficients),
    )


def _edge_weight(site: Site) -> Tensor | None:
    """The weights of edges that a call was given, `[E]` or `[E, 1]`."""
    given = site.world.edges[site.op.graph].weight
    if given is not None:
        return given
    called: Tensor | None = named(site.module, site.call.args, site.call.kwargs).get("edge_weight")
    return called


def _own_scales(graphs: RankGraphs) -> tuple[Scale, Scale]:
    """DGL's: by the degrees of sources and of targets, 1 at least."""
    degrees = graphs.out_degree().clamp(min=1), graphs.in_degree().clamp(min=1)
    return partial(power, degrees[0]), partial(power, degrees[1])


def _refuse_empty(site: Site, graphs: RankGraphs) -> None:
    """Raises ValueError as DGL's layers do, where a node has no edges into it."""
    if getattr(site.module, "_allow_zero_in_degree", True):
        return
    empty = int((graphs.in_degree() == 0).sum())
    if empty:
        raise ValueError(
            f"layer {site.op.name!r}: the graph has {empty} nodes without edges into them; add "
            "self-loops or set allow_zero_in_degree=True"
        )
