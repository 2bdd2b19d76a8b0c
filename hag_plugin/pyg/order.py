"""Layers that multiply by a matrix and aggregate: which of the two comes first, by their cost.

Aggregation costs by the width of its rows, so the narrower side is aggregated; and what was
aggregated from features that do not change is known already. Results differ by rounding only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn.dense.linear import Linear

from hag_plugin.hag import HAG
from hag_plugin.pyg import constant
from hag_plugin.pyg.aggregators import REDUCERS
from hag_plugin.pyg.forwards import pair, with_bias


def gcn(conv: Any, x: Tensor, edge_index: HAG, edge_weight: None = None) -> Tensor:
    """gcn_conv.py: `A (X W) + b`, or `(A X) W + b` where that is less work.

    It is where X is narrower than X W, and where X does not change, so that A X is known.
    """
    if conv.lin.bias is not None or not _may_reorder(conv, x, conv.lin):
        out: Tensor = conv._hag_stock.forward(conv, x, edge_index)
        return out

    def aggregate_first() -> Tensor:
        aggregated: Tensor = conv.propagate(edge_index, x=x, edge_weight=None)
        return aggregated

    how = (type(conv.aggr_module), conv.flow, conv.normalize, conv.add_self_loops)
    if constant.is_constant(x) and constant.comes_back(conv, edge_index, x, how):
        out = constant.kept(conv, x, aggregate_first)
    elif conv.lin.in_channels < conv.out_channels:
        out = aggregate_first()
    else:
        return with_bias(conv, conv.propagate(edge_index, x=conv.lin(x), edge_weight=None))
    return torch.nn.functional.linear(out, conv.lin.weight, conv.bias)


def sage(conv: Any, x: Any, edge_index: HAG, size: Any = None) -> Tensor:
    """sage_conv.py: `A X W_l + X W_r + b`, or `A (X W_l)` where that is narrower."""
    source, target = pair(x)
    if conv.project or not _narrows(conv, source, edge_index, conv.lin_l):
        out: Tensor = conv._hag_stock.forward(conv, x, edge_index, size)
        return out
    out = _transform_first(conv, source, target, edge_index, size, conv.lin_l)
    if conv.root_weight and target is not None:
        out = out + conv.lin_r(target)
    return torch.nn.functional.normalize(out, p=2.0, dim=-1) if conv.normalize else out


def graph(conv: Any, x: Any, edge_index: HAG, edge_weight: None = None, size: Any = None) -> Tensor:
    """graph_conv.py, as `sage`."""
    source, target = pair(x)
    if not _narrows(conv, source, edge_index, conv.lin_rel):
        out: Tensor = conv._hag_stock.forward(conv, x, edge_index, None, size)
        return out
    out = _transform_first(conv, source, target, edge_index, size, conv.lin_rel)
    return out if target is None else out + conv.lin_root(target)


def _transform_first(
    conv: Any, source: Tensor, target: Tensor | None, hag: HAG, size: Any, lin: Linear
) -> Tensor:
    """`A (X W) + b`."""
    rows = torch.nn.functional.linear(source, lin.weight)
    weight = {"edge_weight": None} if "lin_rel" in conv._modules else {}
    out: Tensor = conv.propagate(hag, x=(rows, target), size=size, **weight)
    return out if lin.bias is None else out + lin.bias


def _narrows(conv: Any, x: Any, hag: HAG, lin: Any) -> bool:
    """Whether to transform first: where that narrows the rows, unless A X is known already."""
    if conv.flow != "source_to_target" or not _may_reorder(conv, x, lin):
        return False
    if lin.out_channels >= lin.in_channels:
        return False
    how = (REDUCERS[type(conv.aggr_module)], conv.node_dim % x.dim(), False, None)
    return not (constant.is_constant(x) and constant.comes_back(conv, hag, x, how))


def _may_reorder(conv: Any, x: Any, lin: Any) -> bool:
    """Whether the order makes no difference but rounding: not with other reductions than a sum,
    in half types, under autocast, or if somebody watches or replaced the linear map."""
    return (
        isinstance(x, Tensor)
        and x.dtype in (torch.float32, torch.float64)
        and REDUCERS.get(type(conv.aggr_module)) in ("sum", "mean")
        and type(lin) is Linear
        and not (lin._forward_hooks or lin._forward_pre_hooks)
        and not (lin._backward_hooks or lin._backward_pre_hooks)
        and "weight" in lin._parameters
        and "forward" not in lin.__dict__
        and not torch.is_autocast_enabled(x.device.type)
    )
