"""Equality of sums within rounding, and of extrema exactly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import reference


def assert_within(y: Tensor, expected: Tensor, bound: Tensor) -> None:
    """Within the bound, and for half types what rounding the result adds."""
    if y.dtype in (torch.float16, torch.bfloat16):
        info = torch.finfo(y.dtype)
        bound = bound + 2 * info.eps * expected.abs() + 2 * info.smallest_normal * info.eps
    assert y.shape == expected.shape
    wrong = ~((y.double() - expected).abs() <= bound)
    assert not wrong.any(), (wrong.nonzero()[:5], y[wrong][:5], expected[wrong][:5])


def assert_equal(
    y: Tensor,
    x: Tensor,
    edge_index: Tensor,
    num_dst: int,
    reduce: str = "sum",
    **how: Any,
) -> None:
    """Equal as DESIGN.md, section 4, has it; `x` is what went in, rounded as it was."""
    wide = {k: v.double() if isinstance(v, Tensor) else v for k, v in how.items()}
    expected = reference.aggregate(x.double(), edge_index, num_dst, reduce, **wide)
    if reduce in ("max", "min") and "source_scale" not in how and "target_scale" not in how:
        assert torch.equal(y, expected.to(y.dtype))
        return
    absolute = {k: v.abs() if isinstance(v, Tensor) else v for k, v in wide.items()}
    kind = "sum" if reduce in ("max", "min") else reduce
    size = reference.aggregate(x.double().abs(), edge_index, num_dst, kind, **absolute)
    ones = torch.ones(x.shape[-2], 1, dtype=torch.float64)
    terms = reference.aggregate(ones, edge_index, num_dst, self_loops=how.get("self_loops", False))
    bound = size * (1e-12 if y.dtype == torch.float64 else 1e-6 * terms.clamp(min=1).sqrt())
    assert_within(y, expected, bound)


def assert_weighted_equal(
    y: Tensor, x: Tensor, edges: Tensor, weight: Tensor, num_dst: int, *args: Any, **how: Any
) -> None:
    """Within rounding of a float64 reference, relative to the row's sum of absolute values."""
    wide = {k: v.double() if isinstance(v, Tensor) else v for k, v in how.items()}
    size = {k: v.abs() if isinstance(v, Tensor) else v for k, v in wide.items()}
    graph = edges, weight.double(), num_dst
    expected = reference.weighted_aggregate(x.double(), *graph, *args, **wide)
    absolute = edges, weight.double().abs(), num_dst
    bound = reference.weighted_aggregate(x.double().abs(), *absolute, *args, **size)
    terms = torch.bincount(edges[1], minlength=num_dst).add(2).sqrt().unsqueeze(-1)
    bound = bound * (1e-12 if y.dtype == torch.float64 else 1e-6 * terms)
    assert_within(y, expected, bound)


def assert_alike(functions: Sequence[Any], inputs: Sequence[Tensor], hag: Any) -> None:
    """All functions of the inputs and a HAG have the result and the gradients of the first."""
    results = []
    for function in functions:
        leaves = [v.clone().requires_grad_() for v in inputs]
        y = function(*leaves, hag)
        y.square().sum().backward()
        results.append([y.detach(), *(v.grad for v in leaves)])
    for eager, other in zip(*results, strict=True):
        torch.testing.assert_close(other, eager, rtol=1e-4, atol=1e-5)


def assert_same(
    ours: Sequence[Tensor | None], stock: Sequence[Tensor | None], bound: float
) -> None:
    """Equal results, some of which may be missing, by `bound` times the largest number of each."""
    for one, other in zip(ours, stock, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None and one.numel():
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            scale = max(1.0, other.double().abs().nan_to_num(0.0, 0.0, 0.0).max().item())
            torch.testing.assert_close(one, other, rtol=0, atol=bound * scale, equal_nan=True)


def with_gradients(y: Tensor, leaves: Iterable[Tensor]) -> list[Tensor | None]:
    """An output, then the gradients by leaves of numbers that differ from each other."""
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return [y.detach(), *(None if leaf.grad is None else leaf.grad.clone() for leaf in leaves)]
