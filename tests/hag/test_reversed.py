"""The reverse of a HAG as compiled code sees it is the reverse."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hag_plugin as hp
from hag_plugin.hag.hag import ReversedHAG
from hag_plugin.ops.registration import REVERSED

SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))


def edges_of(num_src: int, num_dst: int, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    ends = [torch.randint(n, (count,), generator=generator) for n in (num_src, num_dst)]
    return torch.stack(ends)


@pytest.mark.slow
@given(
    SIDES, st.integers(0, 40), st.integers(0, 99), st.sampled_from(["sum", "mean", "max", "min"])
)
def test_it_aggregates_over_the_reverse(
    sides: tuple[int, int], count: int, seed: int, reduce: Any
) -> None:
    edges = edges_of(*sides, count, seed)
    hag = hp.build_hag(edges, size=sides)
    expected = hp.build_hag(edges.flip(0), size=sides[::-1])
    back = ReversedHAG(hag)
    modes = (False, "add", "fill") if hag.is_square else (False,)
    for mode in modes:
        results = []
        for graph in (back, expected):
            torch.manual_seed(seed)
            x = torch.randint(-3, 4, (2, sides[1], 3)).double().requires_grad_()
            y = hp.aggregate(x, graph, reduce, self_loops=mode)
            (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
            results.append((y, x.grad))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert torch.equal(back.degree(mode), expected.degree(mode))
        assert torch.equal(back.degree_scale(-0.5, mode), expected.degree_scale(-0.5, mode))


def test_it_has_what_a_hag_has() -> None:
    edges = edges_of(6, 4, 15, 0)
    hag = hp.build_hag(edges, size=(6, 4))
    back = ReversedHAG(hag)
    assert (back.num_src, back.num_dst, back.num_edges) == (4, 6, 15)
    assert back.transpose() is hag
    assert back.flip([0]) is hag
    assert back.matches(edges.flip(0))
    assert not back.matches(edges)
    assert not back.is_symmetric
    assert back.program() is hag.transpose().program()
    assert back.plain_program() is hag.transpose().plain_program()
    back.check(edges.flip(0))
    with pytest.raises(ValueError, match="expected 1 edges"):
        back.check(torch.zeros(2, 1).long())
    twin = pickle.loads(pickle.dumps(back))
    assert type(twin) is hp.HAG
    assert twin.matches(edges.flip(0))
    assert "6 -> 4 nodes" in repr(back)


@pytest.mark.parametrize("square", [True, False])
def test_arrays_that_lost_their_hag(square: bool) -> None:
    """As when a tracer clones its inputs: the plain graph, turned round."""
    sides = (5, 5) if square else (6, 4)
    edges = edges_of(*sides, 15, 1)
    hag = hp.build_hag(edges, size=sides)
    lost = hag.row_ptr.clone(), hag.col.clone()
    x = torch.randn(sides[1], 3)
    expected = hp.aggregate(x, hag.transpose())
    ops = torch.ops.hag_plugin
    found = ops.aggregate(x, *lost, None, None, sides[0], REVERSED, False, "sum")
    torch.testing.assert_close(found, expected)
    grad = ops.aggregate(expected, *lost, None, None, sides[1], REVERSED, True, "sum")
    torch.testing.assert_close(grad, hp.aggregate(expected, hag))
    found = ops.extremum(x, *lost, REVERSED, True, sides[0])
    torch.testing.assert_close(found, hp.aggregate(x, hag.transpose(), "max"))


@pytest.mark.slow
def test_opcheck() -> None:
    hag = hp.build_hag(edges_of(6, 4, 15, 2), size=(6, 4))
    graph, x = (hag.row_ptr, hag.col), torch.randn(4, 3, requires_grad=True)
    ops = torch.ops.hag_plugin
    how = (None, None, 6, REVERSED, False, "mean")
    torch.library.opcheck(ops.aggregate.default, (x, *graph, *how))
    torch.library.opcheck(ops.extremum.default, (x, *graph, REVERSED, True, 6))
    torch.library.opcheck(ops.winners.default, (x, *graph, REVERSED, True, False, 6))
    weight = torch.rand(15, requires_grad=True)
    torch.library.opcheck(ops.weighted_sum.default, (x, weight, *graph, *how))
    y = torch.randn(6, 3)
    how = (None, None, REVERSED, "sum")
    torch.library.opcheck(ops.edge_dot.default, (x, y, *graph, *how))
