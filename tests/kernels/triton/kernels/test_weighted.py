"""Weighted sums, and the gradients of their weights, against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hag_plugin as hp
from hag_plugin.hag.gpu.schedule import schedule_of
from hag_plugin.ops.weights import edge_slots, weighted_aggregate

from .... import reference
from .conftest import NODES, in_turn
from .test_aggregate import DTYPES, MODES, WIDTHS


def run(x: Tensor, edges: Tensor, weight: Tensor, hag: hp.HAG, *args: Any, **how: Any) -> Tensor:
    """`weighted_aggregate` with weights in the order of `edges`, on the HAG's device."""
    slots = edge_slots(edges, hag).to(hag.device)
    ordered = weight.new_empty(len(weight)).index_put((slots,), weight)
    return weighted_aggregate(x, hag, ordered, *args, **how)


def both(
    x: Tensor, edges: Tensor, weight: Tensor, num_dst: int, device: str, reduce: Any, **how: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """The result and the gradients of all that is given: the kernels', and in float64."""
    grad = torch.randn(*x.shape[:-2], num_dst, x.shape[-1]).to(x.dtype)
    size = (x.shape[-2], num_dst)
    results = []
    for where in (device, "reference"):
        there = (lambda t: t.to(device)) if where == device else (lambda t: t.cpu().double())
        inputs = [there(t).detach().requires_grad_() for t in (x, weight)]
        tensors = {
            k: there(v).detach().requires_grad_() for k, v in how.items() if isinstance(v, Tensor)
        }
        words = {k: v for k, v in how.items() if isinstance(v, str)}
        if where == device:
            targets_first = size[0] != size[1]
            hag = hp.build_hag(edges, size=size, targets_first=targets_first).to(device)
            y = run(inputs[0], edges, inputs[1], hag, reduce, **tensors, **words)
            assert y.dtype == x.dtype
        else:
            y = reference.weighted_aggregate(
                inputs[0], edges, inputs[1], num_dst, reduce, **tensors, **words
            )
        found = torch.autograd.grad(y, inputs + list(tensors.values()), there(grad))
        results.append([t.detach().cpu().double() for t in (y, *found)])
    return results[0], results[1]


def assert_close(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    steps = {torch.float64: 1e-12, torch.float32: 1e-5}
    rtol = steps.get(dtype, 20 * torch.finfo(dtype).eps)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(
            mine, theirs, rtol=rtol, atol=rtol * float(theirs.abs().max() if theirs.numel() else 0)
        )


@pytest.mark.parametrize(("width", "dtype"), in_turn([*WIDTHS, *WIDTHS], DTYPES))
def test_every_width_and_dtype(width: int, dtype: torch.dtype, kernel_device: str) -> None:
    edges = torch.tensor([[0, 1, 2, 3, 1, 1, 5, 4, 0], [1, 0, 1, 1, 1, 4, 1, 1, 1]])
    x = torch.randn(6, width).to(dtype)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    weight = torch.randn(9, dtype=exact)
    s, t = torch.randn(2, 6, dtype=exact)
    found = both(x, edges, weight, 6, kernel_device, "sum", source_scale=s, target_scale=t)
    assert_close(*found, dtype)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_loops_long_rows_and_batches(
    reduce: str, mode: Any, graph: Tensor, kernel_device: str
) -> None:
    """Loops among the edges, duplicates, rows that are split twice; the transpose, too."""
    exact = torch.float64
    x, weight = torch.randn(2, NODES, 5, dtype=exact), torch.randn(graph.shape[1], dtype=exact)
    hag = hp.build_hag(graph, num_nodes=NODES)
    assert schedule_of(hag.plain_program(mode)).num_levels > 2
    assert not hag.is_symmetric
    how: dict[str, Any] = {}
    if mode:
        how = {"self_loops": mode, "loop_weight": torch.randn(NODES, dtype=exact)}
    assert_close(*both(x, graph, weight, NODES, kernel_device, reduce, **how), exact)
    if reduce == "mean":
        how["target_scale"] = torch.randn(NODES, dtype=exact)
        assert_close(*both(x, graph, weight, NODES, kernel_device, reduce, **how), exact)


@pytest.mark.parametrize("mode", MODES)
def test_targets_that_are_the_first_sources(mode: Any, kernel_device: str) -> None:
    edges = torch.stack([torch.randint(0, 15, (60,)), torch.randint(0, 6, (60,))])
    x, weight = torch.randn(15, 3, dtype=torch.float64), torch.randn(60, dtype=torch.float64)
    how = {"self_loops": mode} if mode else {}
    assert_close(*both(x, edges, weight, 6, kernel_device, "mean", **how), torch.float64)


def test_symmetric_graph_with_one_way_weights(kernel_device: str) -> None:
    one = torch.combinations(torch.arange(6)).T
    edges = torch.cat([one, one.flip(0)], 1)[:, torch.randperm(30)]
    x, weight = torch.randn(6, 3, dtype=torch.float64), torch.randn(30, dtype=torch.float64)
    assert_close(*both(x, edges, weight, 6, kernel_device, "sum"), torch.float64)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's NumPy
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity(value: float, graph: Tensor, kernel_device: str) -> None:
    hag = hp.build_hag(graph, num_nodes=NODES).to(kernel_device)
    for where in ("x", "weight"):
        x, weight = torch.randn(NODES, 3), torch.randn(graph.shape[1])
        weight[::5] = 0.0
        (x if where == "x" else weight)[7] = value
        for mode in MODES:
            device = kernel_device
            y = run(x.to(device), graph, weight.to(device), hag, self_loops=mode).cpu()
            expected = reference.weighted_aggregate(x, graph, weight, NODES, self_loops=mode)
            torch.testing.assert_close(y, expected, equal_nan=True)


@pytest.mark.parametrize(("num_src", "num_dst", "width"), [(0, 0, 3), (3, 3, 2), (5, 2, 3)])
def test_no_edge(num_src: int, num_dst: int, width: int, kernel_device: str) -> None:
    edges = torch.zeros(2, 0, dtype=torch.long)
    x, weight = torch.randn(num_src, width), torch.randn(0)
    found, expected = both(x, edges, weight, num_dst, kernel_device, "sum")
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


def test_zero_width(graph: Tensor, kernel_device: str) -> None:
    x, weight = torch.randn(NODES, 0), torch.randn(graph.shape[1])
    found, _ = both(x, graph, weight, NODES, kernel_device, "sum")
    assert [t.shape for t in found] == [(NODES, 0), (NODES, 0), (graph.shape[1],)]
    assert not found[2].any()


def test_second_derivative(kernel_device: str) -> None:
    edges = torch.tensor([[0, 1, 2, 2, 0], [1, 0, 0, 1, 0]])
    hag = hp.build_hag(edges, num_nodes=3).to(kernel_device)
    exact: dict[str, Any] = {"dtype": torch.float64, "device": kernel_device}
    x, weight = torch.randn(3, 2, **exact), torch.randn(5, **exact)
    scale = torch.rand(3, **exact)
    inputs = [t.requires_grad_() for t in (x, weight, scale)]

    def mean(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        return weighted_aggregate(x, hag, weight, "mean", source_scale=scale)

    assert torch.autograd.gradgradcheck(mean, inputs)
