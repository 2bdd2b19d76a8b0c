"""Attention over products of features: equal to product by product, and in less memory.

Tests with "kernels" in their name also run under each instruction set (test_instruction_sets.py).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

import hag_plugin as hp
from examples.benchmark.memory import peak_bytes
from hag_plugin.ops.attention_products import Attention, Product, attend_products, may_join

from .. import reference
from ..attending import order_of
from ..cases import draw_graph, random_graph

SCORES = ("sum", "vector", "vector of its own keys", "dot")
IN, TOLERANCE = 5, {"rtol": 1e-9, "atol": 1e-10}


def attention_of(
    score: str, heads: int, width: int, num_edges: int, order: Tensor | None, full: bool
) -> Attention:
    """One with random weights; `full`: with all that is optional."""
    how: dict[str, Any] = {"dtype": torch.float64}

    def product(numbers: int) -> Product:
        bias = torch.randn(numbers, **how).requires_grad_() if full else None
        return Product(torch.randn(numbers, IN, **how).requires_grad_(), bias)

    kind, numbers = score.split()[0], heads * width
    ends = heads if kind == "sum" else numbers
    return Attention(
        heads,
        kind,
        product(numbers),
        None if score == "vector" else product(ends),
        product(ends),
        root=product(numbers) if full else None,
        weight=torch.randn(heads, width, **how).requires_grad_() if kind == "vector" else None,
        shift=torch.randn(numbers, **how).requires_grad_() if full else None,
        mask=torch.randn(num_edges, heads, **how) if full else None,
        order=order if full else None,
        slope=1.0 if kind == "dot" else 0.2,
    )


def by_reference(edges: Tensor, x: Tensor, target: Tensor, over: Attention) -> Tensor:
    """Product by product."""
    shape = (over.heads,) if over.score == "sum" else (over.heads, -1)
    value = linear(x, *over.value).view(len(x), over.heads, -1)
    key = value if over.key is None else linear(x, *over.key).view(len(x), *shape)
    query = linear(target, *over.query).view(len(target), *shape)
    given = {"key": key, "query": query, "weight": over.weight, "mask": over.mask}
    how: dict[str, Any] = {"score": over.score, "slope": over.slope, "normalise": "softmax"}
    y = reference.attend(value, edges, len(target), **given, **how).flatten(1)
    if over.root is not None:
        y = y + linear(target, *over.root)
    return y if over.shift is None else y + over.shift


def leaves(*tensors: Tensor | None) -> list[Tensor]:
    return list({id(t): t for t in tensors if t is not None and t.requires_grad}.values())


def assert_as_reference(
    edges: Tensor, source: Tensor, target: Tensor, over: Attention
) -> tuple[Tensor, list[Tensor]]:
    """Result and gradients; twice, which the second time nobody asks for again."""
    hag = hp.build_hag(edges, size=(len(source), len(target)))
    assert may_join(hag, source, target, over)
    expected = by_reference(edges, source, target, over)
    y = attend_products(hag, source, target, over)
    torch.testing.assert_close(y, expected, **TOLERANCE)
    wanted = leaves(source, target, *over.tensors)
    grad = torch.randn_like(expected)
    theirs = torch.autograd.grad(expected, wanted, grad)
    first = torch.autograd.grad(y, wanted, grad, retain_graph=True)
    last = torch.autograd.grad(y, wanted, grad)
    for a, b, c in zip(first, last, theirs, strict=True):
        torch.testing.assert_close(a, c, **TOLERANCE)
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)
    return y, wanted


@pytest.mark.parametrize("full", [False, True], ids=["bare", "full"])
@pytest.mark.parametrize("score", SCORES)
@settings(max_examples=25)
@given(data=st.data())
def test_any_small_graph(score: str, full: bool, data: st.DataObject) -> None:
    edges, num_src, num_dst = draw_graph(data)
    heads, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 20))
    hag = hp.build_hag(edges, size=(num_src, num_dst))
    over = attention_of(score, heads, width, edges.shape[1], order_of(edges, hag), full)
    source = torch.randn(num_src, IN, dtype=torch.float64, requires_grad=data.draw(st.booleans()))
    target = torch.randn(num_dst, IN, dtype=torch.float64).requires_grad_()
    if num_dst == num_src and data.draw(st.booleans()):
        target = source
    elif num_dst <= num_src and data.draw(st.booleans()):
        target = source[:num_dst]
    assert_as_reference(edges, source, target, over)


@pytest.mark.parametrize("score", SCORES)
def test_kernels_write_over_what_they_read(score: str) -> None:
    """Also of rows in several blocks, and of those that are summed in parts."""
    to = torch.stack([torch.randint(0, 30, (4500,)), torch.full((4500,), 7)])
    out = torch.stack([torch.full((4700,), 3), torch.randint(0, 25, (4700,))])
    of_blocks = torch.stack([torch.full((300,), 5), torch.randint(0, 25, (300,))])
    edges = torch.cat([random_graph(30, 25, 200), to, out, of_blocks], 1)
    over = attention_of(score, 3, 5, edges.shape[1], None, False)
    source = torch.randn(30, IN, dtype=torch.float64).requires_grad_()
    assert_as_reference(edges, source, source[:25], over)


@pytest.mark.parametrize("score", SCORES)
def test_second_derivatives(score: str) -> None:
    edges = random_graph(4, 4, 7)
    hag = hp.build_hag(edges, size=(4, 4))
    over = attention_of(score, 2, 2, edges.shape[1], order_of(edges, hag), True)
    x = torch.randn(4, IN, dtype=torch.float64).requires_grad_()
    inputs = leaves(x, *over.tensors)
    at = {id(t): k for k, t in enumerate(inputs)}

    def function(*some: Tensor) -> Tensor:
        tensors = [some[at[id(t)]] if id(t) in at else t for t in over.tensors]
        return attend_products(hag, some[0], some[0], over.with_tensors(tensors))

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("score", SCORES)
def test_its_result_may_be_written_to(score: str) -> None:
    edges = random_graph(9, 9, 40)
    hag = hp.build_hag(edges, num_nodes=9)
    over = attention_of(score, 2, 3, 40, None, False)
    x = torch.randn(9, IN, dtype=torch.float64).requires_grad_()
    wanted = leaves(x, *over.tensors)
    ours = torch.autograd.grad(attend_products(hag, x, x, over).relu_().sum(), wanted)
    theirs = torch.autograd.grad(by_reference(edges, x, x, over).relu().sum(), wanted)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("score", SCORES)
def test_checkpoints(score: str, reentrant: bool) -> None:
    edges = random_graph(9, 9, 40)
    hag = hp.build_hag(edges, num_nodes=9)
    over = attention_of(score, 2, 3, edges.shape[1], order_of(edges, hag), True)
    x = torch.randn(9, IN, dtype=torch.float64).requires_grad_()

    def function(x: Tensor) -> Tensor:
        return attend_products(hag, x, x, over)

    y = checkpoint(function, x, use_reentrant=reentrant)
    expected = by_reference(edges, x, x, over)
    grad = torch.randn_like(expected)
    wanted = leaves(x, *over.tensors)
    theirs = torch.autograd.grad(expected, wanted, grad)
    y.backward(grad)  # a reentrant one takes no autograd.grad
    for t, b in zip(wanted, theirs, strict=True):
        torch.testing.assert_close(t.grad, b, **TOLERANCE)


@pytest.mark.parametrize("score", SCORES)
def test_saved_tensors_are_asked_for_once(score: str) -> None:
    """As hooks that move them elsewhere expect; and they may be kept by those for the next time."""
    edges = random_graph(9, 9, 40)
    hag = hp.build_hag(edges, num_nodes=9)
    over = attention_of(score, 2, 3, edges.shape[1], order_of(edges, hag), True)
    x = torch.randn(9, IN, dtype=torch.float64).requires_grad_()
    asked: list[int] = []

    def unpack(packed: tuple[int, Tensor]) -> Tensor:
        asked.append(packed[0])
        return packed[1].clone()

    with torch.autograd.graph.saved_tensors_hooks(lambda t: (id(t), t), unpack):
        y = attend_products(hag, x, x, over)
    wanted = leaves(x, *over.tensors)
    ours = torch.autograd.grad(y.sum(), wanted)
    theirs = torch.autograd.grad(by_reference(edges, x, x, over).sum(), wanted)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)
    assert asked
    assert max(map(asked.count, asked)) <= 2  # `source` and `target` are one tensor


def test_what_it_does_not_take() -> None:
    edges = random_graph(9, 9, 40)
    hag = hp.build_hag(edges, num_nodes=9)
    over = attention_of("dot", 2, 3, 40, None, False)
    x = torch.randn(9, IN, dtype=torch.float64)
    assert may_join(hag, x, x, over)
    assert not may_join(hag, x[:8], x, over)
    assert not may_join(hag, x, x[:8], over)
    assert not may_join(hag, x.float(), x, over)
    assert not may_join(hag, x.half(), x.half(), over)
    mask = torch.ones(40, 2, dtype=torch.float64, requires_grad=True)
    assert not may_join(hag, x, x, over._replace(mask=mask))
    with torch.autocast("cpu", torch.bfloat16):
        assert not may_join(hag, x, x, over)
    torch.func.vmap(lambda t: _refused(hag, t, over))(x.expand(2, 9, IN))


def _refused(hag: hp.HAG, x: Tensor, over: Attention) -> Tensor:
    assert not may_join(hag, x, x, over)
    return x


# Memory ------------------------------------------------------------------------------------------

# A step's peak in rows of the result, that and its gradient included, where nothing is asked again.
PEAKS = {"sum": 4.5, "vector": 5.5, "vector of its own keys": 6.5, "dot": 6.5}


@pytest.mark.parametrize("score", SCORES)
def test_memory_of_a_step(score: str) -> None:
    nodes, heads, width = 2000, 4, 16
    edges = torch.randint(0, nodes, (2, 3 * nodes))
    hag = hp.build_hag(edges, num_nodes=nodes)
    hag.transpose()
    over = attention_of(score, heads, width, edges.shape[1], None, False)
    x = torch.randn(nodes, IN, dtype=torch.float64).requires_grad_()

    def step() -> None:
        y = attend_products(hag, x, x, over)
        y.backward(torch.ones_like(y))
        for t in leaves(x, *over.tensors):
            t.grad = None

    step()
    assert peak_bytes(step) <= PEAKS[score] * nodes * heads * width * 8
