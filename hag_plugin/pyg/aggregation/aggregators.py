"""PyG's aggregation modules over a HAG: statistics of each node's sources, from few walks.

A module says which columns it needs summed, and how its result follows from the sums. Columns that
several modules share are summed once, and all sums are one walk over the program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import aggr

from hag_plugin.pyg.aggregation.neighbourhoods import Neighbourhoods, Offset
from hag_plugin.pyg.aggregation.statistics import STATISTICS, Columns, is_semi

REDUCERS: dict[type, Any] = {
    aggr.SumAggregation: "sum",
    aggr.MeanAggregation: "mean",
    aggr.MaxAggregation: "max",
    aggr.MinAggregation: "min",
}


def reduce(module: Any, z: Tensor, over: Neighbourhoods, offset: Offset | None = None) -> Tensor:
    """What an aggregation module makes of the messages `z_j + c_i`.

    Args:
        module: one that `why_stock` has nothing against.
        z: `[*, N_src, *]`, floating.
        over: the graph.
        offset: `c`.
    """
    if type(module) is aggr.DegreeScalerAggregation:
        return _scaled(module, reduce(module.aggr, z, over, offset), over)
    members = _members(module)
    columns: Columns = {}
    for member in members:
        columns |= STATISTICS[type(member)].columns(member, z, over)
    found = _walk(columns, over)
    outs = [STATISTICS[type(m)].result(m, z, found, over, offset) for m in members]
    return module.combine(outs) if type(module) is aggr.MultiAggregation else outs[0]


def _walk(columns: Columns, over: Neighbourhoods) -> dict[str, Tensor]:
    """One walk for all sums of a dtype, side by side, and one for each kind of extremum."""
    found = {}
    summed: dict[Any, dict[str, Tensor]] = {}
    for key, (monoid, values) in columns.items():
        if monoid != "sum" or over.dim == values.dim() - 1:  # nodes have no columns
            found[key] = over.reduce(monoid, values)
        else:
            summed.setdefault(values.dtype, {})[key] = values
    for side_by_side in summed.values():
        parts = list(side_by_side.values())
        together = over.reduce("sum", _concatenated(parts) if len(parts) > 1 else parts[0])
        sums = torch.split(together, [part.shape[-1] for part in parts], dim=-1)
        found |= dict(zip(side_by_side, sums, strict=True))
    return found


def _concatenated(parts: list[Tensor]) -> Tensor:
    """Side by side; not by autocast, which refuses the half type that is not its own."""
    device = parts[0].device.type
    if not torch.is_autocast_enabled(device):
        return torch.cat(parts, dim=-1)
    with torch.autocast(device, enabled=False):
        return torch.cat(parts, dim=-1)


def why_stock(module: Any) -> str | None:
    """Why an aggregation module cannot run over a HAG. None: it can."""
    if type(module) is aggr.DegreeScalerAggregation:
        known = all(isinstance(s, str) and s in SCALERS for s in module.scaler)
        return why_stock(module.aggr) if known else f"scaler={module.scaler!r} is not known"
    if type(module) is not aggr.MultiAggregation:
        if type(module) in STATISTICS:
            return None
        return f"{type(module).__name__} is no sum, mean, extremum or function of these"
    members = _members(module)
    kinds = [type(member) for member in members]
    unknown = [kind.__name__ for kind in kinds if kind not in STATISTICS]
    if unknown:
        return f"{', '.join(unknown)}: no sum, mean, extremum or function of these"
    if len(set(kinds)) < len(kinds):
        return "one aggregation twice, which PyG's fused code mixes up"
    if any(is_semi(member) for member in members):
        return "semi_grad among several aggregations"
    return None


def _members(module: Any) -> list[Any]:
    """What a module consists of; read past `Module.__getattr__`, which is slow."""
    several = type(module) is aggr.MultiAggregation
    return list(module._modules["aggrs"]._modules.values()) if several else [module]


def takes_offset(module: Any) -> bool:
    """Whether a term of the target alone can be added after the reduction."""
    if type(module) is aggr.DegreeScalerAggregation:
        return takes_offset(module.aggr)
    if type(module) is aggr.MultiAggregation:
        return all(takes_offset(member) for member in _members(module))
    return type(module) is not aggr.PowerMeanAggregation


# torch_geometric/nn/aggr/scaler.py: from the module and the degrees.
SCALERS: dict[str, Callable[[Any, Tensor], Any]] = {
    "identity": lambda module, degree: 1,
    "amplification": lambda module, degree: torch.log(degree + 1) / module.avg_deg_log,
    "attenuation": lambda module, degree: module.avg_deg_log / torch.log(degree.clamp(min=1) + 1),
    "linear": lambda module, degree: degree / module.avg_deg_lin,
    "inverse_linear": lambda module, degree: module.avg_deg_lin / degree.clamp(min=1),
}


def _scaled(module: Any, out: Tensor, over: Neighbourhoods) -> Tensor:
    degree = over.degree(1.0, out)
    outs = [
        out if scaler == "identity" else out * SCALERS[scaler](module, degree)
        for scaler in module.scaler
    ]
    return torch.cat(outs, dim=-1) if len(outs) > 1 else outs[0]
