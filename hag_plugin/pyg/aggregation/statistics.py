"""What PyG's aggregation modules compute, told as sums and extrema of columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import aggr

from hag_plugin.ops.registration import number
from hag_plugin.pyg.aggregation.neighbourhoods import Neighbourhoods, Offset

Columns = dict[str, tuple[str, Tensor]]  # what: (monoid, values at the sources)
Found = Mapping[str, Tensor]  # what: its values at the targets

# exp of a smaller number is denormal, and loses digits.
LOWEST_EXPONENT = {torch.float64: -690.0, torch.float32: -80.0}


@dataclass(frozen=True)
class Statistic:
    """How an aggregation follows from sums and extrema.

    Attributes:
        columns: from the module and the sources' rows, what to reduce.
        result: from the module, the sources' rows, what was found, the graph and the offset.
    """

    columns: Callable[[Any, Tensor, Neighbourhoods], Columns]
    result: Callable[[Any, Tensor, Found, Neighbourhoods, Offset | None], Tensor]


def _sum_of(module: Any, z: Tensor, over: Neighbourhoods) -> Columns:
    return {"sum": ("sum", z)}


def _sum(
    module: Any, z: Tensor, found: Found, over: Neighbourhoods, offset: Offset | None
) -> Tensor:
    total = found["sum"]
    return total if offset is None else total + offset.summed


def _per_root_degree(
    module: Any, z: Tensor, found: Found, over: Neighbourhoods, offset: Offset | None
) -> Tensor:
    """torch_geometric/nn/aggr/variance_preserving.py: the sum by the root of the degree."""
    total = _sum(module, z, found, over, offset)
    return total * over.degree(-0.5, total)


def _shifted(out: Tensor, offset: Offset | None) -> Tensor:
    """An offset moves what lies between the messages along, where there are any."""
    return out if offset is None else out + offset.present


def _mean_of(found: Found, over: Neighbourhoods) -> Tensor:
    return found["sum"] * over.degree(-1.0, found["sum"])


def _mean(
    module: Any, z: Tensor, found: Found, over: Neighbourhoods, offset: Offset | None
) -> Tensor:
    return _shifted(_mean_of(found, over), offset)


def is_semi(module: Any) -> bool:
    """Whether squares, or weights, are constants to the gradient."""
    squared = module._modules.get("var_aggr", module)  # of StdAggregation
    return bool(squared.__dict__.get("semi_grad"))


def _moments(module: Any, z: Tensor, over: Neighbourhoods) -> Columns:
    with torch.set_grad_enabled(torch.is_grad_enabled() and not is_semi(module)):
        squares = z * z  # forward-mode AD goes through it, as in stock
    return {"sum": ("sum", z), "squares": ("sum", squares)}


def variance(found: Found, over: Neighbourhoods) -> Tensor:
    """The mean of squares less the square of the mean, as PyG has it."""
    mean = _mean_of(found, over)
    return found["squares"] * over.degree(-1.0, mean) - mean * mean


def _var(
    module: Any, z: Tensor, found: Found, over: Neighbourhoods, offset: Offset | None
) -> Tensor:
    return variance(found, over)  # an offset changes no variance


def _std(
    module: Any, z: Tensor, found: Found, over: Neighbourhoods, offset: Offset | None
) -> Tensor:
    """torch_geometric/nn/aggr/basic.py, StdAggregation: 0, with no gradient, below the clamp."""
    out = variance(found, over).clamp(min=1e-5).sqrt()
    return out.masked_fill(out <= math.sqrt(1e-5), 0.0)


def _extremum(monoid: str) -> Statistic:
    return Statistic(
        lambda module, z, over: {monoid: (monoid, z)},
        lambda module, z, found, over, offset: _shifted(found[monoid], offset),
    )


# Softmax ----------------------------------------------------------------------------------------


def _logits(module: Any, z: Tensor) -> Tensor:
    t = module.t
    if module.channels != 1:
        t = t.view(-1, module.channels)
    is_constant = module.semi_grad and not module.learn
    with torch.set_grad_enabled(torch.is_grad_enabled() and not is_constant):
        # a tensor of its own where it is constant: z itself has a gradient
        return z * t if is_constant or not isinstance(t, (int, float)) or t != 1 else z


def _softmax_columns(module: Any, z: Tensor, over: Neighbourhoods) -> Columns:
    """`exp(t z - m)` and its product with `z`, where `m` is each channel's largest of all.

    Stock subtracts the largest of each neighbourhood. One number for all gives the same ratio,
    as long as no exponential is denormal. Where float32 would be too small, float64 is taken;
    beyond its range nothing is summed here, and the result is that of stock's code.
    """
    logits = _logits(module, z)
    if logits.shape[over.dim] == 0:
        return {}
    least, largest = torch.aminmax(logits.detach(), dim=over.dim, keepdim=True)
    dtype = _softmax_dtype(logits.dtype, least - largest)
    if dtype is None:
        return {}
    weight = (logits.to(dtype) - largest.to(dtype)).exp()
    return {"weight": ("sum", weight), "weighted": ("sum", weight * z.to(dtype))}


def _softmax_dtype(dtype: torch.dtype, lowest: Tensor) -> torch.dtype | None:
    """The dtype whose exponentials of `lowest` and more keep their digits."""
    if torch.compiler.is_compiling():  # values are not known here: see `_softmax`
        return torch.float64
    if not lowest.numel():
        return dtype
    exponent = number(lowest.min())
    if exponent is None:
        return None
    if dtype in LOWEST_EXPONENT and exponent >= LOWEST_EXPONENT[dtype]:
        return dtype
    return torch.float64 if exponent >= LOWEST_EXPONENT[torch.float64] else None


def _softmax(
    module: Any, z: Tensor, found: Found, over: Neighbourhoods, offset: Offset | None
) -> Tensor:
    weight = found.get("weight")
    if weight is None:
        source, target = over.hag.own_edge_index
        lifted = z.index_select(over.dim, source)
        out: Tensor = module(lifted, target, dim_size=over.hag.num_dst, dim=over.dim)
        return _shifted(out, offset)
    empty = over.degree(0.0, weight) == 0
    if torch.compiler.is_compiling():  # a sum that lost its digits must not look like a result
        tiny = math.exp(LOWEST_EXPONENT[torch.float64])
        weight = weight.masked_fill((weight < tiny) & ~empty, math.nan)
    out = found["weighted"] / weight.masked_fill(empty, 1.0)
    t = module.t  # learned, it takes part in the dtype
    dtype = torch.promote_types(z.dtype, t.dtype) if isinstance(t, Tensor) else z.dtype
    return _shifted(out.to(dtype), offset)


# Means of powers --------------------------------------------------------------------------------


def _has_power(module: Any) -> bool:
    return not isinstance(module.p, (int, float)) or module.p != 1


def _power(module: Any) -> Any:
    return module.p.view(-1, module.channels) if module.channels != 1 else module.p


def _bounds(module: Any) -> dict[str, Any]:
    """What values are clamped to: numbers of its own from PyG 2.7 on."""
    return {"min": getattr(module, "min_value", 0), "max": getattr(module, "max_value", 100)}


def _power_columns(module: Any, z: Tensor, over: Neighbourhoods) -> Columns:
    if _has_power(module):
        z = z.clamp(**_bounds(module)).pow(_power(module))
    return {"powers": ("sum", z)}


def _power_mean(
    module: Any, z: Tensor, found: Found, over: Neighbourhoods, offset: Offset | None
) -> Tensor:
    # There is no offset here: see `takes_offset`.
    total = found["powers"]
    out = total * over.degree(-1.0, total)
    if _has_power(module):
        out = out.clamp(**_bounds(module))
        out = out.pow(1.0 / _power(module))
    return out


STATISTICS: dict[type, Statistic] = {
    aggr.SumAggregation: Statistic(_sum_of, _sum),
    aggr.MeanAggregation: Statistic(_sum_of, _mean),
    aggr.MaxAggregation: _extremum("max"),
    aggr.MinAggregation: _extremum("min"),
    aggr.VarAggregation: Statistic(_moments, _var),
    aggr.StdAggregation: Statistic(_moments, _std),
    aggr.VariancePreservingAggregation: Statistic(_sum_of, _per_root_degree),
    aggr.SoftmaxAggregation: Statistic(_softmax_columns, _softmax),
    aggr.PowerMeanAggregation: Statistic(_power_columns, _power_mean),
}
