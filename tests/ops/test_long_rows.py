"""Rounding of long rows: the same row added again and again, as sorted duplicates are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hag_plugin as hp
from hag_plugin.hag.program import METHODS
from hag_plugin.ops.attention import attend
from hag_plugin.ops.weights import edge_slots, weighted_aggregate

from .. import reference
from ..equality import assert_equal, assert_weighted_equal, assert_within

LENGTHS = (255, 256, 257, 300, 1000, 4000, 4097, 20_000)
COPIES = (1, 7, 600, 20_000)  # of each source, one after the other
WIDTHS = (1, 3, 16, 70)


def row_of(length: int, copies: int) -> Tensor:
    """Edges `[2, 2 * length]`: so many into row 1, from sources that repeat, and back from it."""
    source = torch.arange(length) // copies % 40 + 2
    there = torch.stack([source, torch.ones_like(source)])
    return torch.cat([there, there.flip(0)], dim=1)


def features(width: int) -> Tensor:
    """No number is exact in fewer digits, and all signs of a column agree."""
    return torch.rand(42, width) + 0.1


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("method", METHODS)
def test_sums_and_gradients(method: str, length: int, copies: int) -> None:
    edges = row_of(length, copies)
    hag = hp.build_hag(edges, num_nodes=42, method=method)
    for width in WIDTHS:
        for how in ({}, {"source_scale": torch.rand(42)}, {"self_loops": "add"}):
            x, grad = features(width).requires_grad_(), features(width)
            y = hp.aggregate(x, hag, **how)
            assert_equal(y.detach(), x.detach(), edges, 42, **how)
            y.backward(grad)
            back: dict[str, Any] = dict(how)
            if "source_scale" in how:
                back = {"target_scale": back["source_scale"]}
            assert x.grad is not None
            assert_equal(x.grad, grad, edges.flip(0), 42, **back)


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("length", LENGTHS)
def test_weighted_sums(length: int, copies: int) -> None:
    edges = row_of(length, copies)
    hag = hp.build_hag(edges, num_nodes=42)
    weight = torch.rand(2 * length // copies + 1).repeat_interleave(copies)[: 2 * length]
    ordered = torch.zeros_like(weight)
    ordered[edge_slots(edges, hag)] = weight
    for width in WIDTHS:
        x = features(width)
        y = weighted_aggregate(x, hag, ordered)
        assert_weighted_equal(y, x, edges, weight, 42)


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("length", LENGTHS)
def test_gradients_of_ties(length: int, copies: int) -> None:
    """All rows are equal, so each edge passes a share of the gradient on."""
    edges = row_of(length, copies)
    hag = hp.build_hag(edges, num_nodes=42)
    for width in WIDTHS:
        x, grad = torch.ones(42, width).requires_grad_(), features(width)
        hp.aggregate(x, hag, "max", ties="even").backward(grad)
        degree = torch.bincount(edges[1], minlength=42).clamp(min=1).unsqueeze(-1)
        share = grad.double() / degree
        expected = reference.aggregate(share, edges.flip(0), 42)
        terms = torch.bincount(edges[0], minlength=42).clamp(min=1).sqrt().unsqueeze(-1)
        assert x.grad is not None
        assert_within(x.grad, expected, 1e-6 * expected.abs() * terms)


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("length", LENGTHS)
def test_attention(length: int, copies: int) -> None:
    """Equal scores: a mean."""
    edges = row_of(length, copies)
    hag = hp.build_hag(edges, num_nodes=42)
    for heads, width in ((1, 1), (1, 16), (3, 5), (8, 8)):
        value = torch.rand(42, heads, width) + 0.1
        zeros = torch.zeros(42, heads)
        y = attend(hag, value, key=zeros, query=zeros, score="sum")
        assert_equal(y.flatten(1), value.flatten(1), edges, 42, "mean")
