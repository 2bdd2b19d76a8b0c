"""Attention over edges in two parts against `reference.attend` over all of them.

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
from hag_plugin.ops.attention_in_parts import attend_first

from .. import reference
from ..attending import FORMS, how_of, order_of, tensors_of
from ..cases import random_graph

OF_NODES = [name for name, (_, names) in FORMS.items() if "edges" not in names]
OF_SOURCES, OF_EDGES = ("value", "key"), ("bias", "mask")
BOUNDS = {torch.float64: 1e-11, torch.float32: 2e-4, torch.bfloat16: 0.05}


def parts_of(
    edges: list[Tensor], sources: tuple[int, int], given: dict[str, Tensor]
) -> list[dict[str, Tensor]]:
    """What each part is given, of what is given of all: views, whose gradients go back there."""
    found: list[dict[str, Tensor]] = []
    for k in range(2):
        of_sources = slice(0, sources[0]) if k == 0 else slice(sources[0], None)
        of_edges = slice(0, edges[0].shape[1]) if k == 0 else slice(edges[0].shape[1], None)
        at = dict.fromkeys(OF_SOURCES, of_sources) | dict.fromkeys(OF_EDGES, of_edges)
        found.append({name: t[at.get(name, slice(None))] for name, t in given.items()})
    return found


def check(
    edges: list[Tensor],
    sources: tuple[int, int],
    num_dst: int,
    form: str,
    widths: tuple[int, int, int, int],
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> None:
    """Result and gradients are the reference's: `edges` of each part, from its own sources."""
    together = torch.cat([edges[0], edges[1] + torch.tensor([[sources[0]], [0]])], dim=1)
    sizes = (sum(sources), num_dst, together.shape[1])
    tensors = {name: t / 2 for name, t in tensors_of(form, sizes, widths, dtype).items()}
    mine = {name: t.to(device).requires_grad_() for name, t in tensors.items()}
    theirs = {name: t.detach().double().requires_grad_() for name, t in tensors.items()}
    hags = [hp.build_hag(e, size=(n, num_dst)) for e, n in zip(edges, sources, strict=True)]
    how = how_of(form)
    (one, other), (slope, score) = parts_of(edges, sources, mine), (how["slope"], how["score"])
    orders = [order_of(e, hag).to(device) for e, hag in zip(edges, hags, strict=True)]
    own, others = (hag.to(device) for hag in hags)
    rest = attend_first(own, **one, order=orders[0], score=score, slope=slope)
    y = rest(others, **other, order=orders[1], score=score)
    expected = reference.attend(edge_index=together, num_dst=num_dst, **theirs, **how)
    grad = torch.randn(expected.shape).to(dtype)
    ours = torch.autograd.grad(y, list(mine.values()), grad.to(device), retain_graph=True)
    again = torch.autograd.grad(y, list(mine.values()), grad.to(device))
    unused: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    wanted = torch.autograd.grad(expected, list(theirs.values()), grad.double(), **unused)
    assert y.dtype == dtype
    for name, a, b in zip(
        ("y", *mine), (y.detach(), *ours), (expected.detach(), *wanted), strict=True
    ):
        bound = BOUNDS[dtype] * (1.0 + float(b.abs().max()) if b.numel() else 1.0)
        torch.testing.assert_close(
            a.double().cpu(), b, rtol=0, atol=bound, msg=lambda text, name=name: f"{name}: {text}"
        )
    torch.testing.assert_close(again, ours, rtol=0, atol=0)


def two(sources: tuple[int, int], num_dst: int, num_edges: tuple[int, int]) -> list[Tensor]:
    return [random_graph(n, num_dst, e) for n, e in zip(sources, num_edges, strict=True)]


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("form", OF_NODES)
def test_kernels_equal_reference(form: str, dtype: torch.dtype) -> None:
    """Targets with edges of both parts, of one of them alone, and of neither."""
    sources, num_dst = (9, 5), 14
    edges = two(sources, num_dst, (20, 14))
    edges[0], edges[1] = edges[0][:, edges[0][1] > 2], edges[1][:, edges[1][1] < 11]
    edges = [e[:, e[1] != 7] for e in edges]
    for widths in ((1, 1, 1, 1), (4, 16, 16, 1), (3, 70, 33, 1)):
        check(edges, sources, num_dst, form, widths, dtype)


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
    check(edges, sources, num_dst, data.draw(st.sampled_from(OF_NODES)), widths)


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
    check(edges, sources, num_dst, form, (3, 5, 4, 1))


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
