"""Attention against `reference.py`: results, gradients, memory, and what it refuses.

Tests with "kernels" in their name also run under each instruction set (test_instruction_sets.py).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import hag_plugin as hp
from hag_plugin.kernels import _cpu
from hag_plugin.ops.attention import attend, head_dot
from hag_plugin.testing import count_programs

from .. import reference
from ..attending import FORMS, NORMALISATIONS, assert_equal, how_of, order_of, tensors_of
from ..cases import DTYPES, draw_graph, random_graph

SIZES = ((1, 1, 1, 1), (8, 8, 8, 3), (4, 16, 16, 16), (2, 32, 5, 1), (3, 70, 33, 4), (9, 7, 2, 2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("form", FORMS)
def test_kernels_equal_reference(form: str, normalise: str, dtype: torch.dtype) -> None:
    edges = random_graph(12, 10, 40)
    half = dtype in (torch.float16, torch.bfloat16)
    for widths in SIZES if dtype == torch.float64 else SIZES[1:4:2]:
        sizes = 12, 10, edges.shape[1]
        given = tensors_of(form, sizes, widths, dtype)
        given = {name: t / 4 for name, t in given.items()} if half else given
        assert_equal(edges, (12, 10), given, normalise, how_of(form))


@settings(max_examples=80)
@given(data=st.data())
def test_any_small_graph(data: st.DataObject) -> None:
    edges, num_src, num_dst = draw_graph(data)
    form = data.draw(st.sampled_from(list(FORMS)))
    number = st.integers(1, 70)
    widths = (data.draw(st.integers(1, 9)), data.draw(number), data.draw(number), data.draw(number))
    given = tensors_of(form, (num_src, num_dst, edges.shape[1]), widths)
    how = how_of(form) | {"slope": data.draw(st.sampled_from([1.0, 0.2, 0.0, -0.5, 2.0]))}
    normalise = data.draw(st.sampled_from(NORMALISATIONS))
    assert_equal(edges, (num_src, num_dst), given, normalise, how)


@pytest.mark.parametrize("form", FORMS)
def test_kernels_sum_long_rows_in_parts(form: str) -> None:
    """Of targets and of sources."""
    edges = random_graph(30, 25, 200)
    to = torch.stack([torch.randint(0, 30, (4500,)), torch.full((4500,), 7)])
    out = torch.stack([torch.full((4200,), 3), torch.randint(0, 25, (4200,))])
    edges = torch.cat([edges, to, out], 1)
    edges = edges[:, torch.randperm(edges.shape[1])]
    given = tensors_of(form, (30, 25, edges.shape[1]), (3, 5, 4, 2))
    assert_equal(edges, (30, 25), given, "softmax", how_of(form))


@pytest.mark.parametrize("form", FORMS)
def test_gradients(form: str) -> None:
    edges = random_graph(4, 4, 7)
    hag = hp.build_hag(edges, size=(4, 4))
    given = tensors_of(form, (4, 4, edges.shape[1]), (2, 2, 2, 2))
    inputs = [t.requires_grad_() for t in given.values()]
    for normalise in NORMALISATIONS:

        def function(*some: Tensor, normalise: str = normalise) -> Tensor:
            named = dict(zip(given, some, strict=True))
            return attend(hag, normalise=normalise, **named, **how_of(form))

        assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("form", FORMS)
def test_each_gradient_alone(form: str) -> None:
    edges = random_graph(6, 5, 20)
    hag = hp.build_hag(edges, size=(6, 5))
    given = tensors_of(form, (6, 5, edges.shape[1]), (2, 3, 4, 2))
    every = {name: t.clone().requires_grad_() for name, t in given.items()}
    how = how_of(form)
    y = attend(hag, **every, **how)
    grad = torch.randn_like(y)
    expected = torch.autograd.grad(y, list(every.values()), grad)
    for name, wanted in zip(given, expected, strict=True):
        one = given[name].clone().requires_grad_()
        (found,) = torch.autograd.grad(attend(hag, **given | {name: one}, **how), one, grad)
        assert torch.equal(found, wanted), name


def test_a_key_that_is_the_value() -> None:
    edges = random_graph(9, 9, 40)
    hag = hp.build_hag(edges, num_nodes=9)
    x, query = torch.randn(2, 9, 2, 3, dtype=torch.float64)
    weight = torch.randn(2, 3, dtype=torch.float64)
    x.requires_grad_()
    how: dict[str, Any] = {"query": query, "weight": weight, "score": "vector", "slope": 0.2}
    y = attend(hag, x, key=x, **how)
    expected = reference.attend(x, edges, 9, key=x, **how)
    torch.testing.assert_close(y, expected)
    grads = [torch.autograd.grad(each.square().sum(), x)[0] for each in (y, expected)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernels_of_dot_products_and_sums(dtype: torch.dtype) -> None:
    edges = random_graph(20, 15, 90)
    hag = hp.build_hag(edges, size=(20, 15))
    order = order_of(edges, hag)
    for heads, width in ((1, 1), (8, 8), (3, 5), (4, 32), (1, 130), (2, 0)):
        a, b = torch.randn(20, heads, width).to(dtype), torch.randn(15, heads, width).to(dtype)
        expected = (a.double()[edges[0]] * b.double()[edges[1]]).sum(-1)
        found = head_dot(hag, a, b, order)
        assert found.dtype == dtype
        tolerance = {"rtol": 0.0, "atol": 30 * max(width, 1) * torch.finfo(dtype).eps}
        torch.testing.assert_close(found.double(), expected, **tolerance)
        torch.testing.assert_close(head_dot(hag, a, b).double(), expected[order], **tolerance)


def test_derivatives_of_dot_products() -> None:
    edges = random_graph(4, 4, 9)
    hag = hp.build_hag(edges, num_nodes=4)
    order = torch.randperm(edges.shape[1])
    inputs = [torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def function(a: Tensor, b: Tensor) -> Tensor:
        return head_dot(hag, a, b, order)

    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_tensors_that_are_not_contiguous() -> None:
    edges = random_graph(12, 12, 50)
    hag = hp.build_hag(edges, num_nodes=12)
    value = torch.randn(12, 7, 3, dtype=torch.float64).transpose(1, 2)
    key = torch.randn(12, 6, dtype=torch.float64)[:, ::2]
    query = torch.randn(3, dtype=torch.float64).expand(12, 3)
    mask = torch.randn(3, edges.shape[1], dtype=torch.float64).t()
    wide = torch.randn(12, 14, 3, dtype=torch.float64)
    given = {"key": key, "query": query, "mask": mask, "score": "sum"}
    y = attend(hag, value.requires_grad_(), **given)
    copies = {k: v if k == "score" else v.contiguous() for k, v in given.items()}
    assert torch.equal(y, attend(hag, value.contiguous(), **copies))
    grad = wide[:, ::2].transpose(1, 2)
    found = torch.autograd.grad(y, value, grad, retain_graph=True)
    assert torch.equal(*found, *torch.autograd.grad(y, value, grad.contiguous()))


@pytest.mark.parametrize("where", ["value", "key", "query", "bias", "mask"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_kernels_leave_nan_and_inf_where_the_reference_has_them(number: float, where: str) -> None:
    edges = random_graph(30, 30, 150)
    for score, normalise in (("sum", "softmax"), ("sum", "tanh"), ("sum", "none")):
        given = tensors_of("sum with edges", (30, 30, edges.shape[1]), (2, 17, 1, 1))
        given[where][5] = number
        hag = hp.build_hag(edges, num_nodes=30)
        how: dict[str, Any] = {"score": score, "normalise": normalise}
        y = attend(hag, order=order_of(edges, hag), **given, **how)
        expected = reference.attend(edge_index=edges, num_dst=30, **given, **how)
        torch.testing.assert_close(y, expected, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_of_scores_far_apart(dtype: torch.dtype) -> None:
    """Where exponentials go to 0, by way of numbers that are not normal."""
    edges = torch.stack([torch.arange(400), torch.zeros(400, dtype=torch.int64)])
    hag = hp.build_hag(edges, size=(400, 1))
    scores = torch.linspace(-800.0, 0.0, 400, dtype=dtype).unsqueeze(-1)
    value = torch.eye(400, dtype=dtype).unsqueeze(1)
    p = attend(hag, value, bias=scores).flatten()
    expected = scores.double().softmax(0).flatten()
    tiny = torch.finfo(dtype).tiny
    torch.testing.assert_close(p.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=tiny)
    p = attend(hag, value, bias=scores / 100, normalise="tanh").flatten()
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        p.double(), (scores / 100).double().tanh().flatten(), rtol=tolerance, atol=0.0
    )


@pytest.mark.parametrize("sizes", [(0, 0), (1, 1), (0, 3), (3, 0), (5, 2)])
@pytest.mark.parametrize("form", FORMS)
def test_graphs_with_no_edge(form: str, sizes: tuple[int, int]) -> None:
    edges = torch.zeros(2, 0, dtype=torch.int64)
    given = tensors_of(form, (*sizes, 0), (2, 3, 4, 2))
    assert_equal(edges, sizes, given, "softmax", how_of(form))


@pytest.mark.parametrize("widths", [(0, 3, 2, 2), (2, 0, 2, 2), (2, 3, 0, 2), (2, 3, 2, 0)])
@pytest.mark.parametrize("form", FORMS)
def test_no_heads_and_no_features(form: str, widths: tuple[int, int, int, int]) -> None:
    edges = random_graph(6, 5, 12)
    given = tensors_of(form, (6, 5, edges.shape[1]), widths)
    assert_equal(edges, (6, 5), given, "softmax", how_of(form))


def test_no_array_of_edges_times_features() -> None:
    edges = torch.randint(0, 20, (2, 2000))
    hag = hp.build_hag(edges, num_nodes=20)
    sizes = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
            found = func(*args, **(kwargs or {}))
            sizes.extend(
                t.numel() for t in torch.utils._pytree.tree_leaves(found) if isinstance(t, Tensor)
            )
            return found

    for form in FORMS:
        sizes.clear()
        given = tensors_of(form, (20, 20, 2000), (2, 24, 16, 3), torch.float32)
        leaves = {name: t.requires_grad_() for name, t in given.items() if name != "edges"}
        with Recorder():
            attend(hag, **given | leaves, **how_of(form)).sum().backward()
        own = sum(t.numel() for t in leaves.values())  # their gradients lie side by side
        assert max(sizes) <= max(own, 2000 * 2), form
        assert own < 2000 * 24


def test_what_ran_is_told() -> None:
    hag = hp.build_hag(random_graph(9, 9, 30), num_nodes=9)
    value = torch.randn(9, 2, 3, requires_grad=True)
    with count_programs() as ran:
        attend(hag, value, key=value[..., 0], score="sum").sum().backward()
    told = [(run.operator, run.reduce, run.direction) for run in ran.programs]
    assert told == [("attend", "softmax", "forward"), ("attend_backward", "softmax", "backward")]
    assert all(run.is_plain for run in ran.programs)


# What is refused ---------------------------------------------------------------------------------


WRONG: dict[str, tuple[type[Exception], dict[str, Any]]] = {
    "score is 'cosine'": (ValueError, {"score": "cosine"}),
    "normalise is 'max'": (ValueError, {"normalise": "max"}),
    "bias is None": (ValueError, {"bias": None}),
    "key is of no use": (ValueError, {"key": torch.randn(5, 2)}),
    "query is of no use": (ValueError, {"query": torch.randn(4, 2)}),
    "bias has shape": (ValueError, {"bias": torch.randn(8)}),
    "mask has shape": (ValueError, {"mask": torch.randn(7, 2)}),
    "mask has dtype": (TypeError, {"mask": torch.ones(8, 2, dtype=torch.int64)}),
    "mask is a float": (TypeError, {"mask": 0.5}),
    "value has shape": (ValueError, {"value": torch.randn(5, 2)}),
    "order has dtype": (TypeError, {"order": torch.arange(8, dtype=torch.int32)}),
    "order has shape": (ValueError, {"order": torch.arange(7)}),
    r"order\[7\] is 8": (ValueError, {"order": torch.arange(1, 9)}),
    r"order\[0\] is -1": (ValueError, {"order": torch.arange(-1, 7)}),
    "slope is nan": (ValueError, {"slope": float("nan")}),
    "weight is None": (
        ValueError,
        {"score": "vector", "key": torch.randn(5, 2, 3), "query": torch.randn(4, 2, 3)},
    ),
    "edge_query is None": (
        ValueError,
        {
            "score": "dot",
            "key": torch.randn(5, 2, 3),
            "query": torch.randn(4, 2, 3),
            "edges": torch.randn(8, 3),
        },
    ),
    "projection has shape": (
        ValueError,
        {
            "score": "vector",
            "key": torch.randn(5, 2, 3),
            "query": torch.randn(4, 2, 3),
            "weight": torch.randn(2, 3),
            "edges": torch.randn(8, 2),
            "projection": torch.randn(2, 5),
        },
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_calls_say_what_they_got(message: str) -> None:
    error, wrong = WRONG[message]
    hag = hp.build_hag(random_graph(5, 4, 8)[:, :8], size=(5, 4))
    right = {"value": torch.randn(5, 2, 3), "bias": torch.randn(8, 2)}
    with pytest.raises(error, match=message):
        attend(hag, **right | wrong)


@pytest.mark.parametrize("at", range(9))
def test_the_native_door_counts(at: int) -> None:
    """A tensor of one number too few is refused, whatever Python thought of it."""
    hag = hp.build_hag(random_graph(5, 4, 8)[:, :8], size=(5, 4))
    shapes = [(5, 2, 3), (5, 2, 3), (4, 2, 3), (2, 3), (8, 2), (8, 2), (4, 2, 2), (2, 6), (8, 2)]
    score = {5: 3, 6: 3}.get(at, 2)  # edges without a projection are of "dot"
    used = [0, 1, 2, 4, 5, 6, 8] if score == 3 else [0, 1, 2, 3, 4, 5, 7, 8]
    tensors = [torch.randn(shape) for shape in shapes]
    places = [(t.data_ptr(), t.numel()) if i in used else (0, 0) for i, t in enumerate(tensors)]
    y, kept = torch.empty(4, 2, 5 if score == 3 else 3), torch.empty(4, 2, 2)
    ends = (y.data_ptr(), y.numel()), (kept.data_ptr(), kept.numel())
    sizes, rest = (4, 5, 8, 2, 3, 3, 2), (score, 0, 0.2, 0, 1)
    graph = (*hag.addresses, 0, 0)
    _cpu.attend(graph, sizes, places, *ends, *rest)
    address, count = places[at]
    with pytest.raises(ValueError, match="expected"):
        _cpu.attend(graph, sizes, [*places[:at], (address, count - 1), *places[at + 1 :]],
                    *ends, *rest)  # fmt: skip


def test_the_native_door_knows_its_forms() -> None:
    hag = hp.build_hag(random_graph(5, 4, 8)[:, :8], size=(5, 4))
    value, bias, y = torch.randn(5, 2, 3), torch.randn(8, 2), torch.empty(4, 2, 3)
    places = [(0, 0)] * 9
    places[0], places[4] = (value.data_ptr(), 30), (bias.data_ptr(), 16)
    rest = ((*hag.addresses, 0, 0), (4, 5, 8, 2, 3, 0, 0), places, (y.data_ptr(), 24), (0, 0))
    for score, normalise, dtype, threads in (
        (4, 0, 0, 1),
        (0, 3, 0, 1),
        (0, 0, 2, 1),
        (0, 0, 0, 0),
    ):
        with pytest.raises(ValueError, match="is"):
            _cpu.attend(*rest, score, normalise, 1.0, dtype, threads)
    with pytest.raises(ValueError, match="edges"):
        _cpu.attend(rest[0], (4, 5, 7, 2, 3, 0, 0), *rest[2:], 0, 0, 1.0, 0, 1)
    with pytest.raises(ValueError, match="too large"):
        _cpu.attend(rest[0], (4, 5, 8, 1 << 40, 1 << 40, 0, 0), *rest[2:], 0, 0, 1.0, 0, 1)
