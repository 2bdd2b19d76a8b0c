"""The operators of attention in torch: its transforms, compiler, modes and threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import hag_plugin as hp
from hag_plugin.hag.passing import plain_hag
from hag_plugin.ops.attention import attend, head_dot

from .. import derivatives, reference
from ..cases import random_graph
from ..equality import assert_alike

SCORES = ("given", "sum", "vector", "dot")

# torch.func.linearize says this of what it traces.
pytestmark = pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")


def unpacked(x: Tensor, score: str, nodes: int, num_edges: int) -> dict[str, Any]:
    """What a call is given, all of it made of one tensor."""
    flat = x.flatten()
    names: dict[str, tuple[int, ...]] = {"value": (nodes, 2, 2)}
    if score == "given":
        names |= {"bias": (num_edges, 2), "mask": (num_edges, 2)}
    elif score == "sum":
        names |= {"key": (nodes, 2), "query": (nodes, 2), "mask": (num_edges, 2)}
    else:
        names |= {"key": (nodes, 2, 2), "query": (nodes, 2, 2), "edges": (num_edges, 2)}
        if score == "vector":
            names |= {"weight": (2, 2), "projection": (2, 4)}
        else:
            names |= {"edge_query": (nodes, 2, 2)}
    found, at = {}, 0
    for name, shape in names.items():
        size = torch.Size(shape).numel()
        # Each is a piece of x that starts somewhere else; some come twice.
        index = torch.arange(at, at + size).remainder(flat.shape[-1])
        found[name] = flat[index].reshape(shape)
        at += size + 1
    return found


@pytest.mark.parametrize("transform", derivatives.EVERY, ids=lambda f: f.__name__)
@pytest.mark.parametrize("score", SCORES)
def test_transforms(score: str, transform: Any) -> None:
    edges = random_graph(4, 4, 6)
    hag = hp.build_hag(edges, num_nodes=4)
    edges = hag.edge_index
    x, v = torch.randn(2, 5, 3, dtype=torch.float64)
    how: dict[str, Any] = {"score": score, "slope": 0.2}

    def fused(x: Tensor) -> Tensor:
        return attend(hag, **unpacked(x, score, 4, edges.shape[1]), **how).sum(-1)

    def plain(x: Tensor) -> Tensor:
        given = unpacked(x, score, 4, edges.shape[1])
        return reference.attend(edge_index=edges, num_dst=4, **given, **how).sum(-1)

    torch.testing.assert_close(transform(fused, x, v), transform(plain, x, v))


def test_linear_operators_under_transforms() -> None:
    hag = hp.build_hag(random_graph(4, 4, 8), num_nodes=4)
    source, target = hag.edge_index
    x, v = torch.randn(2, 4, 6, dtype=torch.float64)

    def fused(x: Tensor) -> Tensor:
        a = x.reshape(4, 2, 3)
        return attend(hag, a, bias=head_dot(hag, a, a.sin()), normalise="none").sum(-1)

    def plain(x: Tensor) -> Tensor:
        a = x.reshape(4, 2, 3)
        weight = (a[source] * a.sin()[target]).sum(-1, keepdim=True)
        return a.new_zeros(4, 2, 3).index_add(0, target, a[source] * weight).sum(-1)

    for transform in derivatives.EVERY:
        torch.testing.assert_close(transform(fused, x, v), transform(plain, x, v))


@pytest.mark.slow
def test_opcheck() -> None:
    hag = hp.build_hag(random_graph(6, 4, 15), size=(6, 4))
    graph, num_edges = (hag.row_ptr, hag.col), hag.num_edges
    x = torch.randn(6, 2, 3, requires_grad=True)
    weight, other = torch.randn(num_edges, 2, requires_grad=True), torch.randn(4, 2, 3)
    order = torch.arange(num_edges)
    ops = torch.ops.hag_plugin
    torch.library.opcheck(ops.head_sum.default, (x, weight, None, *graph, 4, "", False))
    torch.library.opcheck(ops.head_sum.default, (other, weight, order, *graph, 6, "", True))
    torch.library.opcheck(ops.head_dot.default, (x, other, order, *graph, ""))
    given = (x, x, other, torch.randn(2, 3), None, None, None, None, weight, order)
    torch.library.opcheck(ops.attend.default, (*given, *graph, 4, "vector", 0.2, "softmax", ""))


@pytest.mark.parametrize("reverse", [False, True])
def test_compiles_whole(reverse: bool) -> None:
    torch._dynamo.reset()

    def layer(x: Tensor, key: Tensor, mask: Tensor, hag: hp.HAG) -> Tensor:
        hag = hag.transpose() if reverse else hag
        y = attend(hag, x, key=key, query=key.sin(), mask=mask, score="sum", slope=0.2)
        return attend(hag, y, key=y, query=y.relu(), score="dot")

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for seed, nodes in enumerate((20, 25)):
        edges = random_graph(nodes, nodes, 90 + nodes, seed)
        hag = hp.build_hag(edges, num_nodes=nodes)
        inputs = [torch.randn(nodes, 2, 5), torch.randn(nodes, 2), torch.rand(hag.num_edges, 2)]
        assert_alike((layer, compiled), inputs, hag)


def test_identity_lost_falls_back_to_the_arrays() -> None:
    hag = hp.build_hag(random_graph(40, 40, 200), num_nodes=40)
    x, key = torch.randn(40, 2, 8), torch.randn(40, 2)
    clone = hag.row_ptr.clone(), hag.col.clone()
    none = (None,) * 7
    results = [
        torch.ops.hag_plugin.attend(x, key, key, *none, *graph, 40, "sum", 0.2, "softmax", "")[0]
        for graph in (clone, (hag.row_ptr, hag.col))
    ]
    assert torch.equal(*results)
    assert torch.equal(results[0], attend(hag, x, key=key, query=key, score="sum", slope=0.2))


def test_inference_mode_autocast_and_checkpoints() -> None:
    hag = hp.build_hag(random_graph(9, 9, 30), num_nodes=9)
    x, key = torch.randn(9, 2, 4, requires_grad=True), torch.randn(9, 2)

    def layer(x: Tensor) -> Tensor:
        return attend(hag, x, key=key + x.sum(-1), score="sum", slope=0.2)

    y = layer(x)
    (expected,) = torch.autograd.grad(y.square().sum(), x)
    with torch.inference_mode():
        assert torch.equal(layer(x), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.float32
    again = checkpoint(layer, x, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(again.square().sum(), x)[0], expected)


class Reversed(torch.autograd.Function):
    """The same numbers in the same memory, whose gradient goes back with another sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (9, 9)])
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("score", ["dot", "vector"])
def test_values_and_keys_of_one_memory_get_their_own_gradients(
    score: str, same: bool, sizes: tuple[int, int]
) -> None:
    num_src, num_dst = sizes
    edges = random_graph(*sizes, 40 if all(sizes) else 0)
    hag = hp.build_hag(edges, size=sizes)
    key = torch.randn(num_src, 2, 3, dtype=torch.float64).requires_grad_()
    query = torch.randn(num_dst, 2, 3, dtype=torch.float64).requires_grad_()
    weight = torch.randn(2, 3, dtype=torch.float64) if score == "vector" else None
    how: dict[str, Any] = {"key": key, "query": query, "weight": weight, "score": score}
    value = key if same else Reversed.apply(key)
    y, expected = attend(hag, value, **how), reference.attend(value, edges, num_dst, **how)
    grad = torch.randn_like(expected)
    for a, b in zip(*(torch.autograd.grad(t, [key, query], grad) for t in (y, expected)),
                    strict=True):  # fmt: skip
        torch.testing.assert_close(a, b)


def test_the_backward_operator_has_no_derivative() -> None:
    hag = hp.build_hag(random_graph(5, 5, 9), num_nodes=5)
    x, key = torch.randn(5, 1, 2, requires_grad=True), torch.randn(5, 1)
    none = (None,) * 8
    graph = hag.row_ptr, hag.col
    how = 5, "sum", 1.0, "softmax", ""
    y, kept = torch.ops.hag_plugin.attend(x, key, *none, *graph, *how)
    flat = torch.ops.hag_plugin.attend_backward(y.detach(), y, kept, x, key, *none, *graph, 1, *how)
    assert flat.shape == (10,)
    with pytest.raises(NotImplementedError, match="attend_backward"):
        flat.sum().backward()


def test_threads_agree_bitwise() -> None:
    edges = random_graph(2000, 2000, 30_000)
    hub = torch.stack([torch.arange(2000).repeat(5), torch.full((10_000,), 3)])
    hag = plain_hag(torch.cat([edges, hub, hub.flip(0)], 1), (2000, 2000))
    order = torch.randperm(hag.num_edges)
    on_nodes = {"key": torch.randn(2000, 3, 5), "query": torch.randn(2000, 3, 5)}
    forms: dict[str, dict[str, Tensor]] = {
        "sum": {"key": torch.randn(2000, 3), "query": torch.randn(2000, 3)},
        "vector": on_nodes
        | {"weight": torch.randn(3, 5), "edges": torch.randn(hag.num_edges, 2),
           "projection": torch.randn(2, 15)},
        "dot": on_nodes
        | {"edges": torch.randn(hag.num_edges, 2), "edge_query": torch.randn(2000, 3, 2)},
    }  # fmt: skip
    for score, given in forms.items():
        given |= {"value": torch.randn(2000, 3, 7), "mask": torch.rand(hag.num_edges, 3)}
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaves = {name: t.clone().requires_grad_() for name, t in given.items()}
            y = attend(hag, score=score, slope=0.2, order=order, **leaves)  # type: ignore[arg-type]
            grad = torch.sin(torch.arange(y.numel())).view(y.shape)
            results.append((y.detach(), *torch.autograd.grad(y, list(leaves.values()), grad)))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True)), score
