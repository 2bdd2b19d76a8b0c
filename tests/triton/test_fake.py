"""What `torch.compile` asks of the operators on a card, from tensors that have no memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import hag_plugin.weights  # noqa: F401  (registers the operators)

OPS = torch.ops.hag_plugin


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_shapes_and_devices(dtype: torch.dtype) -> None:
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    with FakeTensorMode():
        on: dict[str, Any] = {"device": "cuda"}
        x, y = torch.empty(2, 7, 5, dtype=dtype, **on), torch.empty(2, 4, 5, dtype=dtype, **on)
        graph = torch.empty(5, dtype=torch.long, **on), torch.empty(9, dtype=torch.int, **on)
        s, t = torch.empty(7, dtype=exact, **on), torch.empty(4, dtype=exact, **on)
        weight, won = torch.empty(9, dtype=exact, **on), torch.empty(y.shape, dtype=int, **on)
        like_y, like_x = (y.shape, dtype), (x.shape, dtype)
        # what is called, and what it gives
        cases: tuple[tuple[Any, list[tuple[torch.Size, torch.dtype]]], ...] = (
            (OPS.aggregate(x, *graph, s, t, 4, "", False, "mean"), [like_y]),
            (OPS.aggregate(y, *graph, t, s, 7, "", True, "sum"), [like_x]),
            (OPS.extremum(x, *graph, "", True), [like_y]),
            (OPS.masked_sum(None, x, y, *graph, "", False), [like_y]),
            (OPS.masked_sum(y, x, y, *graph, "", True), [like_x]),
            (OPS.winners(x, *graph, "", True, True), [like_y, (y.shape, torch.int64)]),
            (OPS.add_to_winners(y, won, *graph, 7, ""), [like_x]),
            (OPS.weighted_sum(x, weight, *graph, s, t, 4, "", False, "sum"), [like_y]),
            (OPS.edge_dot(x, y, *graph, s, t, "", "sum"), [(weight.shape, exact)]),
            (OPS.edge_dot(x, y, *graph, s, t, "add", "sum"), [(torch.Size([13]), exact)]),
        )
    for result, expected in cases:
        found = result if isinstance(result, tuple) else (result,)
        assert [(r.shape, r.dtype) for r in found] == expected
        assert {r.device.type for r in found} == {"cuda"}


def test_every_operator_has_kernels_for_both_devices() -> None:
    names = ("aggregate", "extremum", "masked_sum", "winners", "add_to_winners", "weighted_sum")
    for name in (*names, "edge_dot"):
        for key in ("CPU", "CUDA"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"hag_plugin::{name}", key), name
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("hag_plugin::aggregate", "XPU")
