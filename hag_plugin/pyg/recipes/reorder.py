"""Layers that multiply by a matrix and aggregate: which of the two comes first, by their cost.

Aggregation costs by the width of its rows, so the narrower side is aggregated; and what was
aggregated from features that do not change is known already. Results differ by rounding only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn.dense.linear import Linear

from hag_plugin.hag.hag import HAG
from hag_plugin.modes import has_hooks
from hag_plugin.ops.registration import is_transformed
from hag_plugin.pyg.aggregation import constant
from hag_plugin.pyg.aggregation.aggregators import REDUCERS
from hag_plugin.pyg.recipes.forwards import pair


def gcn(conv: Any, x: Tensor, edge_index: HAG, edge_weight: Tensor | None = None) -> Tensor:
    """gcn_conv.py: `A (X W) + b`, or `(A X) W + b` where that is less work.

    It is where X is narrower than X W, and where X does not change, so that A X is known.
    """
    if not _may_reorder(conv, x, conv.lin) or conv.lin.bias is not None:
        out: Tensor = conv._hag_stock.forward(conv, x, edge_index, edge_weight)
        return out

    def aggregate_first() -> Tensor:
        aggregated: Tensor = conv.propagate(edge_index, x=x, edge_weight=None)
        return aggregated

    how = (type(conv.aggr_module), conv.flow, conv.normalize, conv.add_self_loops)
    known = constant.kept(conv, edge_index, x, how, aggregate_first)
    if known is not None:
        out = known
    elif conv.lin.in_channels < conv.out_channels:
        out = aggregate_first()
    else:
        out = conv.propagate(edge_index, x=conv.lin(x), edge_weight=None)
        return out if conv.bias is None else _added(out, conv.bias)
    return torch.nn.functional.linear(out, conv.lin.weight, conv.bias)


def sage(conv: Any, x: Any, edge_index: HAG, size: Any = None) -> Tensor:
    """sage_conv.py: `A X W_l + X W_r + b`, or `A (X W_l)` where that is narrower."""
    source, target = pair(x)
    if conv.project or not _may_reorder(conv, source, conv.lin_l):
        stock: Tensor = conv._hag_stock.forward(conv, x, edge_index, size)
        return stock
    root = conv.lin_r if conv.root_weight else None
    out = _transformed(conv, source, target, edge_index, size, conv.lin_l, root)
    return torch.nn.functional.normalize(out, p=2.0, dim=-1) if conv.normalize else out


def graph(conv: Any, x: Any, edge_index: HAG, edge_weight: None = None, size: Any = None) -> Tensor:
    """graph_conv.py, as `sage`."""
    source, target = pair(x)
    if not _may_reorder(conv, source, conv.lin_rel):
        stock: Tensor = conv._hag_stock.forward(conv, x, edge_index, None, size)
        return stock
    return _transformed(conv, source, target, edge_index, size, conv.lin_rel, conv.lin_root)


def gin(conv: Any, x: Any, edge_index: HAG, size: Any = None) -> Tensor:
    """gin_conv.py: `nn(A X + (1 + eps) X)`, the sum in one pass."""
    source, target = pair(x)
    out: Tensor = conv.propagate(edge_index, x=(source, target), size=size)
    if target is None:
        out = out if out.requires_grad else out.clone()  # it may be one that is kept
    else:
        scale = 1 + conv.eps
        if not out.dtype == target.dtype == scale.dtype:
            out = out + scale * target
        elif out.requires_grad and _sums(conv) and _may_write():
            out = out.addcmul_(target, scale)  # with a gradient it is none that is kept
        else:
            out = torch.addcmul(out, target, scale)
    y: Tensor = conv.nn(out)
    return y


def _transformed(
    conv: Any,
    source: Tensor,
    target: Tensor | None,
    hag: HAG,
    size: Any,
    lin: Linear,
    root: Any,
) -> Tensor:
    """`A X W + b + X' W'`, of which `A (X W)` first where that is narrower; `root` has W'."""
    weight = {"edge_weight": None} if "lin_rel" in conv._modules else {}
    if _narrows(conv, source, hag, lin):
        rows = torch.nn.functional.linear(source, lin.weight)
        out: Tensor = conv.propagate(hag, x=(rows, target), size=size, **weight)
        if lin.bias is not None:
            out = _added(out, lin.bias)
    else:
        aggregated = conv.propagate(hag, x=(source, target), size=size, **weight)
        out = torch.nn.functional.linear(aggregated, lin.weight, lin.bias)
    if root is None or target is None:
        return out
    is_plain = is_product(root) and out.dtype == target.dtype
    if is_plain and out.dim() == target.dim() == 2 and _may_write():
        return out.addmm_(target, root.weight.t())
    return _added(out, root(target))


def _added(out: Tensor, term: Tensor) -> Tensor:
    """`out + term`, in the memory of `out`, which nobody else has seen, where it can be.

    Memory of its own would cost a large graph more than its aggregation.
    """
    return out.add_(term) if out.dtype == term.dtype and _may_write() else out + term


def _may_write() -> bool:
    """Whether a sum may be made in place.

    Not where it is derived, when the term may be a batch and the sum none; not where a selective
    checkpoint may keep the sum; a compiler sees to its memory itself.
    """
    return (
        not torch.compiler.is_compiling()
        and not is_transformed()
        and torch._C._len_torch_dispatch_stack() == 0
    )


def _narrows(conv: Any, x: Any, hag: HAG, lin: Any) -> bool:
    """Whether to transform first: where that narrows the rows, unless A X is known already."""
    if conv.flow != "source_to_target" or lin.out_channels >= lin.in_channels:
        return False
    how = (REDUCERS[type(conv.aggr_module)], conv.node_dim % x.dim(), False, None)
    return not constant.comes_back(conv, hag, x, how)


def _may_reorder(conv: Any, x: Any, lin: Any) -> bool:
    """Whether the order makes no difference but rounding: not with other reductions than a sum,
    in half types, under autocast, or if somebody watches or replaced the linear map."""
    return (
        isinstance(x, Tensor)
        and x.dtype in (torch.float32, torch.float64)
        and _sums(conv)
        and is_bare(lin)
        and not torch.is_autocast_enabled(x.device.type)
    )


def _sums(conv: Any) -> bool:
    """Whether the aggregate is a sum, whose gradient does not need it: that of a maximum does."""
    return REDUCERS.get(type(conv.aggr_module)) in ("sum", "mean")


def is_bare(lin: Any) -> bool:
    """Whether nobody watches the linear map or put another in its place."""
    return (
        type(lin) is Linear
        and not has_hooks(lin)
        and "weight" in lin._parameters
        and "forward" not in lin.__dict__
    )


def is_product(lin: Any) -> bool:
    """Whether that is a product with its weight alone."""
    return is_bare(lin) and lin.bias is None
