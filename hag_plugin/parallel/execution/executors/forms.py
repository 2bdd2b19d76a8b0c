"""One table: what a convolution of PyG or DGL computes, as numbers and names of parameters.

All of them are `y = t * REDUCE_j(w_e * s_j * x_j) W + x R + b`, where the weights `W` may go first
if the aggregation is a sum or a mean. Neither library is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hag_plugin.parallel.execution.graphs.local_graphs import LocalGraphs
from hag_plugin.parallel.execution.site import Site
from hag_plugin.parallel.layouts import Split
from hag_plugin.reducers import REDUCES


@dataclass(frozen=True, eq=False)
class Form:
    """What a convolution computes. Scales and weights are of the whole graph, float64.

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
        edge_weight: `w`, `[E + N]`: of the edges as they were given, then of each node's loop; or
            None. The layer's loops are then listed among the edges.
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
    edge_weight: Tensor | None = None
    coefficients: str = ""

    @property
    def listed(self) -> bool:
        """Whether the layer's loops have to be among the edges."""
        return self.edge_weight is not None or self.reduce not in REDUCES

    def summed(self, graphs: LocalGraphs) -> Form:
        """The same with the division of a mean among the scales: partial sums add up."""
        if self.reduce == "sum":
            return self
        assert self.reduce == "mean"  # others are no sums
        scale = _power(graphs.in_degree(), -1.0)
        if self.target_scale is not None:
            scale = scale * self.target_scale
        return replace(self, reduce="sum", target_scale=scale)

    def sent(self) -> Form:
        """The same for sums that go to another rank, whose scales are put there."""
        return replace(self, target_scale=None)

    @property
    def weights(self) -> list[str]:
        """Names of `W` and `R`, as far as there are any."""
        return [name for name in (self.weight, self.root) if name]

    def split(self, site: Site, dimension: int, columns: int = 0) -> dict[str, Split]:
        """`W` and `R` in blocks along `inputs` or `outputs`."""
        assert site.module is not None  # it is a layer
        sizes = {name: site.module.get_parameter(name).dim() for name in self.weights}
        return {name: Split(dimension % dims, columns) for name, dims in sizes.items()}

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
    blocks = x.view(len(x), len(weight), -1)
    return torch.einsum("nbf,bfg->nbg", blocks, weight).flatten(1)


def form_of(site: Site, graphs: LocalGraphs) -> Form:
    """The form of a convolution.

    Raises:
        TypeError: the layer has none, or is set up in a way that is not covered.
    """
    layer = cast(Any, site.module)
    for base in type(layer).__mro__:
        form = FORMS.get(f"{base.__module__}.{base.__qualname__}")
        if form is not None:
            flow = getattr(layer, "flow", "source_to_target")
            if flow != "source_to_target":
                raise TypeError(
                    f"layer {site.op.name!r} has flow {flow!r}; expected 'source_to_target'"
                )
            return form(site, graphs)
    raise TypeError(
        f"layer {site.op.name!r} ({type(layer).__name__}) cannot be split with strategy "
        f"{site.config.strategy!r}; expected one of {sorted(FORMS)}"
    )


def _power(degree: Tensor, exponent: float) -> Tensor:
    """Powers of degrees; 0 where the degree is 0."""
    degree = degree.double()
    return degree.pow(exponent).masked_fill(degree == 0, 0.0)


def _edge_weight(site: Site, graphs: LocalGraphs, position: int, loop: float) -> Tensor | None:
    """The weights of a call, with those of loops; PyG fills in with that of a loop given."""
    call = site.call
    given = call.args[position] if len(call.args) > position else call.kwargs.get("edge_weight")
    if given is None:
        return None
    given = given.detach().cpu().double().view(-1)
    loops = torch.full((graphs.nodes,), loop, dtype=torch.float64)
    if graphs.self_loops == "fill":
        source, target = graphs.edge_index
        own = (source == target).nonzero().view(-1)
        loops[source[own]] = given[own]
    return torch.cat([given, loops])


# PyG ------------------------------------------------------------------------------------------


def _gcn(site: Site, graphs: LocalGraphs) -> Form:
    """conv/gcn_conv.py, `gcn_norm`."""
    conv = cast(Any, site.module)
    form = Form("lin.weight", bias="bias" if conv.bias is not None else "")
    # Without weights stock fills in loops of weight 1, `improved` or not.
    weight = _edge_weight(site, graphs, 2, 2.0 if conv.improved else 1.0)
    if not conv.normalize:
        return replace(form, edge_weight=weight)
    if weight is None:
        scale = _power(graphs.in_degree(), -0.5)
        return replace(form, source_scale=scale, target_scale=scale)
    (_, target), number = graphs.listed()
    degree = torch.zeros(graphs.nodes, dtype=torch.float64)
    scale = _power(degree.index_add(0, target, weight[number]), -0.5)
    return replace(form, source_scale=scale, target_scale=scale, edge_weight=weight)


def _sage(site: Site, graphs: LocalGraphs) -> Form:
    """conv/sage_conv.py; `normalize` is an operation of its own."""
    conv = cast(Any, site.module)
    bias = "lin_l.bias" if conv.lin_l.bias is not None else ""
    root = "lin_r.weight" if conv.root_weight else ""
    return Form("lin_l.weight", root=root, bias=bias, reduce=_reducer(site))


def _graph_conv(site: Site, graphs: LocalGraphs) -> Form:
    """conv/graph_conv.py."""
    conv = cast(Any, site.module)
    bias = "lin_rel.bias" if conv.lin_rel.bias is not None else ""
    weight = _edge_weight(site, graphs, 2, 1.0)
    return Form(
        "lin_rel.weight", root="lin_root.weight", bias=bias, reduce=_reducer(site),
        edge_weight=weight,
    )  # fmt: skip


def _sum_only(site: Site, graphs: LocalGraphs) -> Form:
    """conv/gin_conv.py and conv/simple_conv.py: what follows are operations of their own."""
    return Form(reduce=_reducer(site), edge_weight=_edge_weight(site, graphs, 2, 1.0))


def _rgcn(site: Site, graphs: LocalGraphs) -> Form:
    """conv/rgcn_conv.py: `W` `[R, F, G]`, bases `[B, F, G]`, or blocks `[R, B, F / B, G / B]`."""
    conv = cast(Any, site.module)
    root, bias = ("root", conv.root), ("bias", conv.bias)
    names = [name if value is not None else "" for name, value in (root, bias)]
    coefficients = "comp" if conv.comp is not None else ""
    return Form("weight", -2, -1, names[0], names[1], _reducer(site), coefficients=coefficients)


def _reducer(site: Site) -> str:
    if len(site.op.reduce) != 1:
        raise TypeError(f"layer {site.op.name!r} aggregates by {site.op.reduce}; expected one "
                        "reducer")  # fmt: skip
    return site.op.reduce[0]


# DGL ------------------------------------------------------------------------------------------


def _dgl_gcn(site: Site, graphs: LocalGraphs) -> Form:
    """nn/pytorch/conv/graphconv.py: degrees are counted on both sides, and are 1 at least."""
    conv = cast(Any, site.module)
    inside, outside = graphs.in_degree(), graphs.out_degree()
    if not conv._allow_zero_in_degree and (inside == 0).any():
        raise ValueError(
            f"layer {site.op.name!r}: the graph has {int((inside == 0).sum())} nodes without "
            "edges into them; add self-loops or set allow_zero_in_degree=True"
        )
    power = -0.5 if conv._norm == "both" else -1.0
    left, right = conv._norm in ("left", "both"), conv._norm in ("right", "both")
    return Form(
        "weight" if conv.weight is not None else "", -2, -1,
        bias="bias" if conv.bias is not None else "",
        source_scale=_power(outside.clamp(min=1), power) if left else None,
        target_scale=_power(inside.clamp(min=1), power) if right else None,
        edge_weight=_edge_weight(site, graphs, 3, 1.0),
    )  # fmt: skip


def _dgl_sage(site: Site, graphs: LocalGraphs) -> Form:
    """nn/pytorch/conv/sageconv.py."""
    conv = cast(Any, site.module)
    gcn = conv._aggre_type == "gcn"
    bias = conv.bias if gcn else conv.fc_self.bias
    name = "bias" if gcn else "fc_self.bias"
    return Form(
        "fc_neigh.weight", root="" if gcn else "fc_self.weight", reduce="mean",
        bias=name if bias is not None else "", edge_weight=_edge_weight(site, graphs, 2, 1.0),
    )  # fmt: skip


def _dgl_gin(site: Site, graphs: LocalGraphs) -> Form:
    """nn/pytorch/conv/ginconv.py."""
    weight = _edge_weight(site, graphs, 2, 1.0)
    return Form(reduce=_reducer(site), ties="first", edge_weight=weight)


PYG, DGL = "torch_geometric.nn.conv.", "dgl.nn.pytorch.conv."
FORMS: dict[str, Callable[[Site, LocalGraphs], Form]] = {
    f"{PYG}gcn_conv.GCNConv": _gcn,
    f"{PYG}sage_conv.SAGEConv": _sage,
    f"{PYG}graph_conv.GraphConv": _graph_conv,
    f"{PYG}gin_conv.GINConv": _sum_only,
    f"{PYG}simple_conv.SimpleConv": _sum_only,
    f"{PYG}rgcn_conv.RGCNConv": _rgcn,
    f"{DGL}graphconv.GraphConv": _dgl_gcn,
    f"{DGL}sageconv.SAGEConv": _dgl_sage,
    f"{DGL}ginconv.GINConv": _dgl_gin,
}
