"""Gradients of `aggregate`, and which source of several gets that of an extremum.

Tests with "kernels" in their name also run under each instruction set (test_instruction_sets.py).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hag_plugin as hp
from hag_plugin.reducers import REDUCES

from .. import reference
from ..cases import DTYPES, MODES, TIES, random_graph


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_gradients_of_sums(reduce: Any, mode: Any) -> None:
    num_dst = 6 if mode else 4
    hag = hp.build_hag(random_graph(6, num_dst, 15), size=(6, num_dst))
    x = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    s = torch.randn(6, dtype=torch.float64, requires_grad=True)
    t = torch.randn(num_dst, dtype=torch.float64, requires_grad=True)

    def scaled(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return hp.aggregate(x, hag, reduce, self_loops=mode, source_scale=s, target_scale=t)

    assert torch.autograd.gradcheck(scaled, (x, s, t))
    assert torch.autograd.gradgradcheck(scaled, (x, s, t))
    for needed in range(1, 8):  # every subset of what may need a gradient
        inputs = [v.detach().requires_grad_(bool(needed >> i & 1)) for i, v in enumerate((x, s, t))]
        assert torch.autograd.gradcheck(scaled, inputs)
    assert torch.autograd.gradcheck(lambda x: hp.aggregate(x, hag, reduce, self_loops=mode), x)


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("reduce", ["max", "min"])
@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_extrema(mode: Any, reduce: Any, ties: Any) -> None:
    hag = hp.build_hag(random_graph(6, 6, 15), num_nodes=6)
    x = torch.randperm(36).double().view(2, 6, 3).add(1).requires_grad_()
    s = torch.tensor([1.0, -1.1, 1.2, 1.3, -1.4, 1.5], dtype=torch.float64, requires_grad=True)
    t = torch.randn(6, dtype=torch.float64, requires_grad=True)

    def scaled(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return hp.aggregate(
            x, hag, reduce, self_loops=mode, source_scale=s, target_scale=t, ties=ties
        )

    assert torch.autograd.gradcheck(scaled, (x, s, t))
    assert torch.autograd.gradgradcheck(scaled, (x, s, t))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reduce", ["max", "min"])
def test_kernels_share_ties_as_torch_does(reduce: Any, mode: Any, dtype: torch.dtype) -> None:
    edges = random_graph(30, 30, 150)
    hag = hp.build_hag(edges, num_nodes=30)
    for width in (1, 3, 16, 33, 70):
        # Few distinct values: ties everywhere, and extrema of exactly 0. NaN, Inf and an
        # untouched gradient too.
        x = torch.randint(-2, 1 if reduce == "max" else 3, (2, 30, width)).to(dtype)
        x[0, 3, 0], x[1, 5, 0] = float("nan"), float("inf")
        grad = torch.randint(1, 9, (2, 30, width)).to(dtype)
        mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        y = hp.aggregate(mine, hag, reduce, self_loops=mode)
        expected = reference.aggregate(theirs, edges, 30, reduce, self_loops=mode)
        assert torch.equal(y.nan_to_num(7), expected.nan_to_num(7))
        y.backward(grad)
        expected.backward(grad)
        assert torch.equal(mine.grad.isnan(), theirs.grad.isnan())
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(
            mine.grad, theirs.grad, rtol=20 * eps, atol=60 * eps, equal_nan=True
        )


def test_first_of_tied_sources() -> None:
    edges = torch.tensor([[4, 1, 2, 3, 3], [0, 0, 0, 2, 2]])
    hag = hp.build_hag(edges, num_nodes=5)
    x = torch.tensor([[0.0], [1.0], [2.0], [float("nan")], [2.0]], requires_grad=True)
    y = hp.aggregate(x, hag, "max", ties="first")
    y.backward(torch.tensor([[5.0], [7.0], [11.0], [13.0], [17.0]]))
    assert x.grad.flatten().tolist() == [0, 0, 5, 11, 0]
    x.grad = None
    hp.aggregate(x, hag, "min", self_loops="fill", ties="first").sum().backward()
    assert x.grad.flatten().tolist() == [1, 1, 0, 2, 1]


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=60),
    st.sampled_from([False, "add", "fill"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(DTYPES),
    st.integers(1, 70),
    st.integers(0, 99),
)
def test_winners(
    pairs: Any, mode: Any, largest: bool, last: bool, dtype: torch.dtype, width: int, seed: int
) -> None:
    torch.manual_seed(seed)
    edges = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T
    hag = hp.build_hag(edges, num_nodes=9)
    x = torch.randint(-2, 3, (2, 9, width)).to(dtype)
    x[torch.rand(x.shape) < 0.05] = float("nan")
    loops = "" if mode is False else mode
    y, winner = torch.ops.hag_plugin.winners(x, hag.row_ptr, hag.col, loops, largest, last, 9)
    for b in range(2):
        whole = reference.with_self_loops(edges, 9, mode)
        value, source = reference.winners(x[b], whole, 9, largest=largest, last=last)
        assert torch.equal(y[b].nan_to_num(7), value.nan_to_num(7))
        assert torch.equal(winner[b], source)
    grad = torch.randint(1, 9, y.shape).to(dtype)
    expected = torch.zeros_like(x).scatter_add(
        1, winner.clamp(min=0), grad.masked_fill(winner < 0, 0)
    )
    csr = (hag.row_ptr, hag.col)
    assert torch.equal(torch.ops.hag_plugin.add_to_winners(grad, winner, *csr, 9, loops), expected)


@pytest.mark.slow
@pytest.mark.parametrize("reduce", ["max", "min"])
@pytest.mark.parametrize("ties", ["first", "last"])
def test_winners_on_a_hag_with_hubs(ties: Any, reduce: Any) -> None:
    edges = torch.stack([torch.randint(20_000, (15_000,)), torch.arange(15_000) % 2])
    hag = hp.build_hag(edges, size=(20_000, 3))
    assert hag.program(idempotent=True).hub_row.numel() > 0
    x = torch.randint(-3, 3, (20_000, 20)).double()
    value, source = reference.winners(x, edges, 3, largest=reduce == "max", last=ties == "last")
    y, winner = torch.ops.hag_plugin.winners(
        x, hag.row_ptr, hag.col, "", reduce == "max", ties == "last", 3
    )
    assert torch.equal(y, value)
    assert torch.equal(winner, source)


def test_a_winner_outside_is_passed_over() -> None:
    grad, winner = torch.ones(3, 2), torch.tensor([[7, -1], [1, 2], [-9, 0]])
    hag = hp.build_hag(torch.tensor([[1, 0, 0], [1, 1, 2]]), size=(2, 3))
    out = torch.ops.hag_plugin.add_to_winners(grad, winner, hag.row_ptr, hag.col, 2, "")
    assert out.tolist() == [[0, 1], [1, 0]]


def test_gradient_that_is_expanded() -> None:
    edges = random_graph(20, 20, 90)
    hag = hp.build_hag(edges, num_nodes=20)
    for reduce in REDUCES:
        mine = torch.randn(20, 6, dtype=torch.float64, requires_grad=True)
        theirs = mine.detach().clone().requires_grad_()
        hp.aggregate(mine, hag, reduce).sum().backward()
        reference.aggregate(theirs, edges, 20, reduce).sum().backward()
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-12, atol=1e-12)
