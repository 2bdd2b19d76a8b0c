"""Which modules, functions and aggregations treat each row alone: their rows may come in blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules import module as _modules
from torch.nn.parameter import UninitializedParameter
from torch_geometric import nn as pyg
from torch_geometric.nn import aggr
from torch_geometric.nn.dense.linear import Linear

from hag_plugin.modes import has_hooks

ACTIVATIONS = {
    *(nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh),
    *(nn.LeakyReLU, nn.LogSigmoid, nn.Mish, nn.PReLU, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU),
    *(nn.Sigmoid, nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Threshold),
}
ROWWISE = {
    *ACTIVATIONS,
    *(nn.Identity, nn.Linear, nn.LayerNorm, nn.ModuleList, nn.Sequential),
    *(Linear, pyg.MLP),
}
NORMS = {nn.BatchNorm1d, pyg.BatchNorm}  # in evaluation they use what they have counted
DROPOUTS = {nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout}
FUNCTIONS = {
    *(torch.relu, torch.sigmoid, torch.tanh, torch.nn.functional.relu, functional.elu),
    *(functional.leaky_relu, functional.gelu, functional.silu, functional.softplus),
    *(functional.sigmoid, functional.tanh),
}
AGGREGATIONS = {
    *(aggr.SumAggregation, aggr.MeanAggregation, aggr.MaxAggregation, aggr.MinAggregation),
    *(aggr.MulAggregation, aggr.VarAggregation, aggr.StdAggregation, aggr.SoftmaxAggregation),
    *(aggr.PowerMeanAggregation, aggr.VariancePreservingAggregation),
}


def why_not_rowwise(module: Any, name: str) -> str | None:
    """Why a module, or function, may look at several rows at once, or at chance. None: it cannot.

    Args:
        module: of a layer.
        name: under which the layer has it.
    """
    if module is None or is_known(module):
        return None
    if not isinstance(module, nn.Module):
        return f"{name} is a function that may see several edges at once"
    for inner, part in module.named_modules():
        where = f"{name}.{inner}" if inner else name
        reason = _why_not(part)
        if reason is None and inner in ("", "0") and getattr(part, "inplace", False):
            reason = "writes to what it is given"
        if reason is not None:
            return f"{where} ({type(part).__name__}) {reason}"
    return None


def _why_not(part: Any) -> str | None:
    kind, own = type(part), part.__dict__
    if has_hooks(part):
        return "has hooks"
    if "forward" in own:
        return "has a forward of its own"
    if any(isinstance(value, torch.Tensor) for value in own.values()):
        return "has a tensor that is no parameter"
    if any(isinstance(p, UninitializedParameter) for p in own["_parameters"].values()):
        return "has parameters whose shapes are not known yet"
    if kind is pyg.MLP:
        dropout = part.dropout if isinstance(part.dropout, list) else [part.dropout]
        if part.training and any(dropout):
            return "draws its dropout for all edges at once"
        act = own.get("act")
        return None if act is None or is_known(act) else "has an activation that is not known"
    if kind in ROWWISE:
        return None
    if kind in DROPOUTS:
        return "draws for all edges at once" if part.training and part.p > 0 else None
    if kind in NORMS:
        norm = part.module if kind is pyg.BatchNorm else part
        is_counted = not norm.training and norm.running_mean is not None
        return None if is_counted else "is normalised over all edges at once"
    return "may see several edges at once"


def is_known(function: Any) -> bool:
    """Whether it is a function that treats each number alone."""
    return any(function is known for known in FUNCTIONS)


def are_watched() -> bool:
    """Whether anybody looks on when any module is called."""
    return bool(
        _modules._global_forward_hooks
        or _modules._global_forward_pre_hooks
        or _modules._global_backward_hooks
        or _modules._global_backward_pre_hooks
    )


def why_not_by_rows(module: Any) -> str | None:
    """Why an aggregation must see all targets at once, or an order of edges. None: it need not."""
    for _, part in module.named_modules():
        if has_hooks(part):
            return "hooks on its aggregation see the stock computation"
        if any(isinstance(value, torch.Tensor) for value in part.__dict__.values()):
            return "its aggregation has a tensor that is no parameter"
    if type(module) is aggr.DegreeScalerAggregation:
        return why_not_by_rows(module.aggr)
    if type(module) is aggr.MultiAggregation:
        if module.mode not in ("cat", "sum", "mean", "max", "min"):
            return f"MultiAggregation with mode={module.mode!r}"
        reasons = (why_not_by_rows(part) for part in module.aggrs)
        return next((reason for reason in reasons if reason is not None), None)
    return None if type(module) in AGGREGATIONS else f"{type(module).__name__} is left to stock"
