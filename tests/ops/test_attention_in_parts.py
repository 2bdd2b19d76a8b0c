"""Attention over edges in two parts against `reference.attend` over all of them.

Tests with "kernels" in their name also run under each instruction set (test_instruction_sets.py).
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hag_plugin as hp
from hag_plugin.ops.attention_in_parts import attend_first

from .. import reference
from ..attending import OF_NODES, PART_BOUNDS, assert_parts_equal
from ..cases import random_graph


def two(sources: tuple[int, int], num_dst: int, num_edges: tuple[int, int]) -> list[Tensor]:
    return [random_graph(n, num_dst, e) for n, e in zip(sources, num_edges, strict=True)]


@pytest.mark.parametrize("dtype", PART_BOUNDS, ids=str)
@pytest.mark.parametrize("form", OF_NODES)
def test_kernels_equal_reference(form: str, dtype: torch.dtype) -> None:
    """Targets with edges of both parts, of one of them alone, and of neither."""
    sources, num_dst = (9, 5), 14
    edges = two(sources, num_dst, (20, 14))
    edges[0], edges[1] = edges[0][:, edges[0][1] > 2], edges[1][:, edges[1][1] < 11]
    edges = [e[:, e[1] != 7] for e in edges]
    for widths in ((1, 1, 1, 1), (4, 16, 16, 1), (3, 70, 33, 1)):
        assert_parts_equal(edges, sources, num_dst, form, widths, dtype)


@settings(max_examples=60)
@given(data=st.data())
def test_any_small_parts(data: st.DataObject) -> None:
    number, width = st.integers(1, 9), st.integers(1, 20)
    sources, num_dst = (data.draw(number), data.draw(number)), data.draw(number)
    edges = [
        torch.tensor(
            data.draw(
                st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, num_dst - 1)), max_size=30)
            ),
            dtype=torch.long,
        )
        .view(-1, 2)
        .t()
        for n in sources
    ]
    widths = (data.draw(number), data.draw(width), data.draw(width), 1)
    assert_parts_equal(edges, sources, num_dst, data.draw(st.sampled_from(OF_NODES)), widths)


@pytest.mark.parametrize("long", [0, 1])
@pytest.mark.parametrize("form", OF_NODES)
def test_kernels_take_long_rows_in_parts(form: str, long: int) -> None:
    """A target with more edges of one part than are worked on at once, and a source."""
    sources, num_dst = (30, 20), 25
    edges = two(sources, num_dst, (200, 150))
    to = torch.stack([torch.randint(0, sources[long], (4500,)), torch.full((4500,), 7)])
    out = torch.stack([torch.full((4200,), 3), torch.randint(0, num_dst, (4200,))])
    edges[long] = torch.cat([edges[long], to, out], 1)
    edges[long] = edges[long][:, torch.randperm(edges[long].shape[1])]
    assert_parts_equal(edges, sources, num_dst, form, (3, 5, 4, 1))


@pytest.mark.parametrize("shift", [-800.0, 800.0])
def test_scores_may_be_far_apart(shift: float) -> None:
    """Of a target's edges, and of the parts' largest."""
    edges = [torch.tensor([[0, 1, 1], [0, 0, 1]]), torch.tensor([[0, 0], [0, 2]])]
    value = torch.randn(3, 1, 4, dtype=torch.float64, requires_grad=True)
    key = torch.tensor([[0.0], [1.0], [shift]], dtype=torch.float64, requires_grad=True)
    own, others = (hp.build_hag(e, size=(n, 3)) for e, n in zip(edges, (2, 1), strict=True))
    rest = attend_first(own, value[:2], key=key[:2], score="sum")
    y = rest(others, value[2:], key=key[2:], score="sum")
    together = torch.cat([edges[0], edges[1] + torch.tensor([[2], [0]])], dim=1)
    expected = reference.attend(value, together, 3, key=key, score="sum")
    torch.testing.assert_close(y, expected)
    ours, wanted = (torch.autograd.grad(t.square().sum(), [value, key]) for t in (y, expected))
    torch.testing.assert_close(ours, wanted)


def test_what_cannot_be_joined_is_refused() -> None:
    own, others = (hp.build_hag(torch.tensor([[0], [0]]), size=(1, n)) for n in (2, 3))
    value, key = torch.ones(1, 1, 1), torch.ones(1, 1)
    rest = attend_first(own, value, key=key, score="sum")
    with pytest.raises(ValueError, match=r"the parts are Form\(num_dst=2.*expected the same"):
        rest(others, value, key=key, score="sum")
    with pytest.raises(TypeError, match="edges have features"):
        attend_first(own, value, key=value, score="dot", edges=torch.ones(1, 1))
    with pytest.raises(ValueError, match="key is None"):
        attend_first(own, value, score="sum")
