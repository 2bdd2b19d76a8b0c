"""Gradients of the kernels' operators against those of the CPU kernels and of torch."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import hag_plugin as hp
from hag_plugin.hag.gpu.schedule import schedule_of
from hag_plugin.ops.registration import REVERSED
from hag_plugin.testing import limits

from .... import reference
from .conftest import NODES, in_turn
from .test_aggregate import MODES


def gradients(y: Tensor, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(y, inputs, grad.to(y.device))
    return [g.cpu() for g in found]


@pytest.mark.parametrize("mode", [False, "add", "fill"])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_sum(reduce: str, mode: hp.hag.SelfLoops, graph: Tensor, kernel_device: str) -> None:
    hag = hp.build_hag(graph, num_nodes=NODES).to(kernel_device)
    x, grad = torch.randn(2, NODES, 3, dtype=torch.float64)
    scales = torch.randn(2, NODES, dtype=torch.float64)
    found, expected = [], []
    for device, run in ((kernel_device, hp.aggregate), ("cpu", reference.aggregate)):
        inputs = [t.to(device).requires_grad_() for t in (x, *scales)]
        how: dict[str, Any] = {"source_scale": inputs[1], "target_scale": inputs[2]}
        where = (hag,) if run is hp.aggregate else (graph, NODES)
        y = run(inputs[0], *where, reduce, self_loops=mode, **how)
        (expected if found else found).extend(gradients(y, inputs, grad))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize(
    ("mode", "reduce", "dtype"),
    in_turn(
        [*itertools.product(MODES, ("max", "min"))],
        (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    ),
)
def test_extremum(
    mode: hp.hag.SelfLoops, reduce: str, dtype: torch.dtype, graph: Tensor, kernel_device: str
) -> None:
    """Few values, so that many sources tie, over rows that are split."""
    x = torch.randint(-1, 2, (2, NODES, 5)).to(dtype)
    grad = torch.randn(2, NODES, 5).to(dtype)
    mine = x.to(kernel_device).requires_grad_()
    hag = hp.build_hag(graph, num_nodes=NODES)
    y = hp.aggregate(mine, hag.to(kernel_device), reduce, self_loops=mode)
    (found,) = gradients(y, [mine], grad)
    theirs = x.double().requires_grad_()
    edge_index = reference.with_self_loops(graph, NODES, mode)
    index = edge_index[1][:, None].expand(2, -1, 5)
    z = torch.zeros(2, NODES, 5, dtype=torch.float64)
    z = z.scatter_reduce(1, index, theirs[:, edge_index[0]], f"a{reduce}")
    # torch counts the zeros that it starts from, where no value replaced them.
    (expected,) = gradients(z, [theirs], grad.double()) if (z == y.cpu()).all() else (None,)
    on_cpu = _on_cpu(x, hag, reduce, mode, "even", grad)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 0.2)
    torch.testing.assert_close(found, on_cpu, rtol=tolerance, atol=tolerance)
    if expected is not None:
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("mode", "ties", "reduce"),
    in_turn([*itertools.product(MODES, ("first", "last"))], ("max", "min", "min", "max")),
)
def test_one_winner(
    mode: hp.hag.SelfLoops, ties: str, reduce: str, graph: Tensor, kernel_device: str
) -> None:
    """Few values, NaN and infinities among them, over rows that are split."""
    x, grad = torch.randint(-1, 2, (NODES, 5)).float(), torch.randn(NODES, 5)
    x[5, 2] = x[7, 2] = math.nan
    x[:, 3], x[9, 4] = math.inf if reduce == "min" else -math.inf, math.inf
    mine = x.to(kernel_device).requires_grad_()
    hag = hp.build_hag(graph, num_nodes=NODES)
    on_device = hag.to(kernel_device)
    y = hp.aggregate(mine, on_device, reduce, self_loops=mode, ties=ties)
    (found,) = gradients(y, [mine], grad)
    torch.testing.assert_close(found, _on_cpu(x, hag, reduce, mode, ties, grad))
    csr, largest, last = (on_device.row_ptr, on_device.col), reduce == "max", ties == "last"
    _, won = torch.ops.hag_plugin.winners(mine.detach(), *csr, mode or "", largest, last, NODES)
    edge_index = reference.with_self_loops(graph, NODES, mode)
    values, winner = reference.winners(x, edge_index, NODES, largest=largest, last=last)
    assert torch.equal(won.cpu(), winner)
    torch.testing.assert_close(y.detach().cpu(), values, rtol=0, atol=0, equal_nan=True)
    other = reference.winners(x, edge_index, NODES, largest=largest, last=not last)[1]
    assert not torch.equal(winner, other)  # ties there are


@pytest.mark.parametrize(
    ("width", "dtype"), in_turn([1, 33, 130], (torch.float64, torch.float16, torch.bfloat16))
)
def test_winners_of_every_dtype(width: int, dtype: torch.dtype, kernel_device: str) -> None:
    edge_index = torch.tensor([[0, 1, 2, 3, 4, 5, 5, 0], [1, 1, 1, 1, 1, 1, 1, 2]])
    hag = hp.build_hag(edge_index, num_nodes=6).to(kernel_device)
    x = torch.randint(0, 2, (2, 6, width)).to(dtype)
    for last in (False, True):
        call = (hag.row_ptr, hag.col, "", True, last, 6)
        y, won = torch.ops.hag_plugin.winners(x.to(kernel_device), *call)
        for matrix in range(2):
            how = {"largest": True, "last": last}
            values, winner = reference.winners(x[matrix].float(), edge_index, 6, **how)
            assert torch.equal(y[matrix].cpu().float(), values)
            assert torch.equal(won[matrix].cpu(), winner)


@pytest.mark.parametrize(
    ("width", "dtype"),
    in_turn([1, 16, 33, 130, 1, 33], (torch.float32, torch.float64, torch.float16)),
)
def test_gradients_go_to_their_winners(width: int, dtype: torch.dtype, kernel_device: str) -> None:
    """A source with more targets than others, duplicates and a loop; integers sum exactly."""
    source = torch.cat([torch.zeros(12, dtype=torch.long), torch.randint(0, 9, (40,))])
    edges = torch.stack([source, torch.cat([torch.arange(12), torch.randint(0, 15, (40,))])])
    edges = torch.cat([edges, edges[:, ::3], torch.tensor([[3], [3]])], dim=1)
    hag = hp.build_hag(edges, size=(9, 15)).to(kernel_device)
    assert schedule_of(hag.transpose().plain_program(idempotent=True)).num_levels > 1
    x, grad = torch.randint(0, 2, (2, 9, width)).to(dtype), torch.randint(-9, 9, (2, 15, width))
    grad = grad.to(dtype)
    for last in (False, True):
        how = {"largest": True, "last": last}
        won = torch.stack([reference.winners(m.float(), edges, 15, **how)[1] for m in x])
        assert (won < 0).any()
        expected = torch.zeros(2, 9, width, dtype=torch.float64)
        expected.scatter_add_(1, won.clamp(min=0), grad.double().masked_fill(won < 0, 0))
        given = grad.to(kernel_device), won.to(kernel_device), hag.row_ptr, hag.col
        found = torch.ops.hag_plugin.add_to_winners(*given, 9, "")
        assert found.dtype == dtype
        assert torch.equal(found.cpu().double(), expected)
        of_reverse = *given[:2], hag.transpose().row_ptr, hag.transpose().col
        again = torch.ops.hag_plugin.add_to_winners(*of_reverse, 9, REVERSED)
        assert torch.equal(again, found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_of_winners_sum_in_float32(dtype: torch.dtype, kernel_device: str) -> None:
    """One by one, ones would be lost beside a number whose last place counts twos or more."""
    hag = hp.build_hag(torch.stack([torch.zeros(19), torch.arange(1, 20)]).long(), num_nodes=20)
    x = torch.zeros(20, 3, dtype=dtype, device=kernel_device, requires_grad=True)
    y = hp.aggregate(x, hag.to(kernel_device), "max", ties="first")
    large = 2 / torch.finfo(dtype).eps
    grad = torch.ones(20, 3)
    grad[1] = large
    (found,) = gradients(y, [x], grad.to(dtype))
    assert found[0].tolist() == [large + 18] * 3
    assert not found[1:].any()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's NumPy
def test_infinite_gradient_of_a_winner(graph: Tensor, kernel_device: str) -> None:
    """Others do not notice it: the winner's number decides, not a product."""
    hag = hp.build_hag(graph, num_nodes=NODES).to(kernel_device)
    x = torch.arange(1.0, NODES + 1)[:, None].to(kernel_device).requires_grad_()
    grad = torch.zeros(NODES, 1)
    grad[17] = math.inf
    (found,) = gradients(hp.aggregate(x, hag, "max", ties="last"), [x], grad)
    assert found[16].isposinf()
    assert found.isfinite().sum() == NODES - 1


def _on_cpu(x: Tensor, hag: Any, reduce: Any, mode: Any, ties: Any, grad: Tensor) -> Tensor:
    with limits(kernels_anywhere=False):
        x = x.clone().requires_grad_()
        return gradients(hp.aggregate(x, hag, reduce, self_loops=mode, ties=ties), [x], grad)[0]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's NumPy
def test_infinite_gradient_of_a_loser(graph: Tensor, kernel_device: str) -> None:
    """0 * Inf is NaN in torch's backward of `scatter_reduce`, so it is here."""
    hag = hp.build_hag(graph, num_nodes=NODES).to(kernel_device)
    x = torch.arange(1.0, NODES + 1)[:, None].to(kernel_device).requires_grad_()
    y = hp.aggregate(x, hag, "max")
    grad = torch.zeros(NODES, 1)
    grad[17] = math.inf
    (found,) = gradients(y, [x], grad)
    assert found[16].isposinf()
    assert found[:16].isnan().all()


def test_second_derivative(kernel_device: str) -> None:
    edge_index = torch.tensor([[0, 1, 2, 2, 0], [1, 0, 0, 1, 0]])
    hag = hp.build_hag(edge_index, num_nodes=3).to(kernel_device)
    x = torch.randn(3, 1, dtype=torch.float64, device=kernel_device, requires_grad=True)
    scale = torch.rand(3, dtype=torch.float64, device=kernel_device, requires_grad=True)

    def run(x: Tensor, scale: Tensor) -> Tensor:
        return hp.aggregate(x, hag, "max", source_scale=scale).square()

    assert torch.autograd.gradgradcheck(run, (x, scale))
