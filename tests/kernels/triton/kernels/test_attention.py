"""Attention, and the sums and products that it is made of, against the reference."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import hag_plugin as hp
from hag_plugin.hag.gpu.schedule import schedule_of
from hag_plugin.ops.attention import attend, head_dot
from hag_plugin.ops.registration import call
from hag_plugin.testing import limits

from .... import reference
from ....attending import (
    FORMS,
    NORMALISATIONS,
    assert_equal,
    assert_parts_equal,
    how_of,
    order_of,
    tensors_of,
)
from ....cases import draw_graph, random_graph
from .conftest import in_turn
from .test_aggregate import DTYPES

SIZE = 7, 6
NO_WIDTHS = [(0, 3, 2, 2), (2, 0, 2, 2), (2, 3, 0, 2), (2, 3, 2, 0)]
OWN = ("given", "sum", "vector", "dot")  # whose scores the kernels make


def edges_with_long_rows() -> Tensor:
    """Rows of targets and of sources that are split twice; duplicates, a node without edges."""
    to = torch.stack([torch.randint(0, 6, (18,)), torch.full((18,), 2)])
    out = torch.stack([torch.full((18,), 3), torch.randint(0, 5, (18,))])
    return torch.cat([to, out], 1)[:, torch.randperm(36)]


@pytest.mark.parametrize(
    ("form", "normalise"),
    [(form, "softmax") for form in FORMS] + list(itertools.product(OWN, ("tanh", "none"))),
)
def test_every_form(form: str, normalise: str, kernel_device: str) -> None:
    edges = edges_with_long_rows()
    hag = hp.build_hag(edges, size=SIZE)
    for one in (hag, hag.transpose()):
        assert schedule_of(one.plain_program()).num_levels > 2
    tensors = tensors_of(form, (*SIZE, edges.shape[1]), (2, 3, 4, 2))
    assert_equal(edges, SIZE, tensors, normalise, how_of(form), kernel_device)


@pytest.mark.parametrize(
    ("form", "widths"),
    [(form, widths) for form in OWN for widths in ((1, 1, 1, 1), (3, 8, 2, 1), (1, 70, 3, 1))]
    + [(form, (1, 2, 70, 1)) for form in ("vector", "dot")],
)
def test_widths(form: str, widths: tuple[int, int, int, int], kernel_device: str) -> None:
    """One number, whole loads, heads of more features than an instance takes; of values or keys."""
    edges = torch.tensor([[0, 1, 2, 0, 1, 2, 2], [0, 0, 0, 0, 0, 1, 1]])
    tensors = tensors_of(form, (3, 3, edges.shape[1]), widths)
    assert_equal(edges, (3, 3), tensors, "softmax", how_of(form), kernel_device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["sum with edges", "dot"])
def test_dtypes(form: str, dtype: torch.dtype, kernel_device: str) -> None:
    edges = random_graph(*SIZE, 20)
    tensors = tensors_of(form, (*SIZE, edges.shape[1]), (2, 4, 4, 2), dtype)
    if dtype in (torch.float16, torch.bfloat16):
        tensors = {name: t / 4 for name, t in tensors.items()}
    assert_equal(edges, SIZE, tensors, "softmax", how_of(form), kernel_device)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_small_graph(data: st.DataObject, kernel_device: str) -> None:
    edges, num_src, num_dst = draw_graph(data)
    form = data.draw(st.sampled_from(list(FORMS)))
    number = st.integers(1, 9)
    widths = (data.draw(number), data.draw(number), data.draw(number), data.draw(number))
    tensors = tensors_of(form, (num_src, num_dst, edges.shape[1]), widths)
    how = how_of(form) | {"slope": data.draw(st.sampled_from([1.0, 0.2, 0.0, -0.5, 2.0]))}
    normalise = data.draw(st.sampled_from(NORMALISATIONS))
    assert_equal(edges, (num_src, num_dst), tensors, normalise, how, kernel_device)


@pytest.mark.parametrize("form", [*OWN, "sum with edges", "dot with edges"])
def test_each_gradient_alone(form: str, kernel_device: str) -> None:
    edges = random_graph(4, 3, 9)
    hag = hp.build_hag(edges, size=(4, 3)).to(kernel_device)
    tensors = tensors_of(form, (4, 3, edges.shape[1]), (2, 3, 4, 2))
    tensors = {name: t.to(kernel_device) for name, t in tensors.items()}
    every = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    how = how_of(form)
    y = attend(hag, **every, **how)
    grad = torch.randn_like(y)
    expected = torch.autograd.grad(y, list(every.values()), grad)
    for name, wanted in zip(tensors, expected, strict=True):
        one = tensors[name].clone().requires_grad_()
        (found,) = torch.autograd.grad(attend(hag, **tensors | {name: one}, **how), one, grad)
        assert torch.equal(found, wanted), name


@pytest.mark.parametrize("form", ["sum", "dot"])
def test_derivatives_of_any_order(form: str, kernel_device: str) -> None:
    """By the value, and by one of what scores are made of."""
    edges = torch.tensor([[0, 1, 1], [0, 0, 1]])
    hag = hp.build_hag(edges, num_nodes=2).to(kernel_device)
    tensors = {n: t.to(kernel_device) for n, t in tensors_of(form, (2, 2, 3), (1, 1, 1, 1)).items()}
    names = list(tensors)[:2]
    inputs = [tensors[name].requires_grad_() for name in names]

    def function(*some: Tensor) -> Tensor:
        return attend(hag, **tensors | dict(zip(names, some, strict=True)), **how_of(form))

    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("form", [*OWN, "sum with edges", "dot with edges"])
def test_no_array_of_edges_times_features(form: str, kernel_device: str) -> None:
    edges = torch.randint(0, 4, (2, 80))
    hag = hp.build_hag(edges, num_nodes=4).to(kernel_device)
    tensors = tensors_of(form, (4, 4, 80), (1, 8, 8, 8), torch.float32, kernel_device)
    leaves = {name: t.requires_grad_() for name, t in tensors.items() if name != "edges"}
    sizes = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            found = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in tree_leaves(found) if isinstance(t, Tensor))
            return found

    with limits(op_sources=128), Recorder():
        attend(hag, **tensors | leaves, **how_of(form)).sum().backward()
    own = sum(t.numel() for t in leaves.values())  # their gradients lie side by side
    assert max(sizes) <= own < 80 * 8


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("heads", "width"), [(1, 1), (3, 5), (1, 70), (2, 0)])
def test_sums_and_dot_products(heads: int, width: int, ordered: bool, kernel_device: str) -> None:
    edges = edges_with_long_rows()
    hag = hp.build_hag(edges, size=SIZE)
    order = order_of(edges, hag)
    source, target = edges if ordered else edges[:, order]
    order = order.to(kernel_device) if ordered else None
    hag = hag.to(kernel_device)
    a, b = torch.randn(7, heads, width).double(), torch.randn(6, heads, width).double()
    weight = torch.randn(edges.shape[1], heads, dtype=torch.float64)
    there = [t.to(kernel_device) for t in (a, b, weight)]
    dots = head_dot(hag, there[0], there[1], order)
    torch.testing.assert_close(dots.cpu(), (a[source] * b[target]).sum(-1))
    sums = call("head_sum", hag, (there[0], there[2], order), 6, "", False)
    back = call("head_sum", hag, (there[1], there[2], order), 7, "", True)
    messages = a[source] * weight.unsqueeze(-1), b[target] * weight.unsqueeze(-1)
    torch.testing.assert_close(sums.cpu(), torch.zeros_like(b).index_add(0, target, messages[0]))
    torch.testing.assert_close(back.cpu(), torch.zeros_like(a).index_add(0, source, messages[1]))


@pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")  # the interpreter's NumPy
@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_nan_and_inf_are_where_the_reference_has_them(normalise: str, kernel_device: str) -> None:
    edges, numbers = random_graph(9, 9, 40), [float("nan"), float("inf"), -float("inf")]
    first = NORMALISATIONS.index(normalise)
    hag = hp.build_hag(edges, num_nodes=9)
    order = order_of(edges, hag).to(kernel_device)
    places = "value", "key", "query", "bias", "mask"
    for where, number in in_turn(places, [*numbers[first:], *numbers[:first]]):
        tensors = tensors_of("sum with edges", (9, 9, edges.shape[1]), (1, 2, 1, 1))
        tensors[where][5] = number
        there = {name: t.to(kernel_device) for name, t in tensors.items()}
        how: dict[str, Any] = {"score": "sum", "normalise": normalise}
        y = attend(hag.to(kernel_device), order=order, **there, **how)
        expected = reference.attend(edge_index=edges, num_dst=9, **tensors, **how)
        torch.testing.assert_close(y.cpu(), expected, equal_nan=True, msg=where)


def test_scores_far_apart(kernel_device: str) -> None:
    edges = torch.stack([torch.arange(40), torch.zeros(40, dtype=torch.int64)])
    hag = hp.build_hag(edges, size=(40, 1)).to(kernel_device)
    scores = torch.linspace(-800.0, 0.0, 40)[torch.randperm(40)].unsqueeze(-1).to(kernel_device)
    value = torch.eye(40).unsqueeze(1).to(kernel_device)
    p = attend(hag, value, bias=scores).flatten()
    torch.testing.assert_close(p, scores.softmax(0).flatten(), rtol=1e-5, atol=1e-37)
    for dtype in (torch.float32, torch.float64):  # also where 1 - exp(-2 x) has no digits left
        small = (10.0 ** (scores.abs().to(dtype) / -50)) * scores.to(dtype).sign()
        y = attend(hag, value.to(dtype), bias=small, normalise="tanh").flatten()
        expected = small.double().tanh().flatten().to(dtype)
        torch.testing.assert_close(y, expected, rtol=8 * torch.finfo(dtype).eps, atol=0.0)


@pytest.mark.parametrize(
    ("form", "sizes"), in_turn(FORMS, [(0, 0), (1, 1), (0, 3), (3, 0), (1, 1)])
)
def test_no_edge(form: str, sizes: tuple[int, int], kernel_device: str) -> None:
    edges = torch.zeros(2, 0, dtype=torch.int64)
    tensors = tensors_of(form, (*sizes, 0), (2, 3, 4, 2))
    assert_equal(edges, sizes, tensors, "softmax", how_of(form), kernel_device)


@pytest.mark.parametrize(
    ("form", "widths"),
    [
        *itertools.product(("vector with edges", "dot with edges"), NO_WIDTHS),
        *in_turn([f for f in FORMS if f not in ("vector with edges", "dot with edges")], NO_WIDTHS),
    ],
)
def test_no_heads_and_no_features(
    form: str, widths: tuple[int, int, int, int], kernel_device: str
) -> None:
    edges = random_graph(3, 2, 5)
    tensors = tensors_of(form, (3, 2, edges.shape[1]), widths)
    assert_equal(edges, (3, 2), tensors, "softmax", how_of(form), kernel_device)


def test_an_order_out_of_range_is_seen_in_the_result(kernel_device: str) -> None:
    hag = hp.build_hag(torch.tensor([[0, 1, 1], [0, 0, 1]]), num_nodes=2).to(kernel_device)
    value, bias = torch.randn(2, 1, 2), torch.randn(3, 1)
    for wrong in (-1, 3):
        order = torch.tensor([0, wrong, 2])
        given = [t.to(kernel_device) for t in (value, bias, order)]
        y = attend(hag, given[0], bias=given[1], order=given[2])
        assert y[0].isnan().all()
        assert y[1].isfinite().all()


@pytest.mark.parametrize("form", OWN)
def test_edges_in_two_parts(form: str, kernel_device: str) -> None:
    """Targets with edges of both, of one of them and of neither; long rows in the first."""
    own, others = edges_with_long_rows(), torch.tensor([[0, 1, 1, 2, 0], [2, 2, 0, 6, 6]])
    assert_parts_equal([own, others], (7, 3), 8, form, (2, 3, 4, 1), device=kernel_device)
