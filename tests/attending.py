"""Calls of attention of every form, and their comparison with `reference.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import hag_plugin as hp
from hag_plugin.ops.attention import attend
from hag_plugin.ops.attention_in_parts import attend_first
from hag_plugin.ops.weights import edge_slots

from . import reference

NORMALISATIONS = ("softmax", "tanh", "none")
# What a call is given besides the value: each form with and without what is optional.
FORMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "given": ("given", ("bias",)),
    "given, masked": ("given", ("bias", "mask")),
    "sum": ("sum", ("key", "query")),
    "sum of sources": ("sum", ("key",)),
    "sum of targets": ("sum", ("query", "mask")),
    "sum with edges": ("sum", ("key", "query", "bias", "mask")),
    "vector": ("vector", ("key", "query", "weight")),
    "vector with edges": ("vector", ("key", "query", "weight", "bias", "edges", "mask")),
    "vector, projected": ("vector", ("key", "query", "weight", "edges", "projection")),
    "dot": ("dot", ("key", "query")),
    "dot, masked": ("dot", ("key", "query", "bias", "mask")),
    "dot with edges": ("dot", ("key", "query", "edges", "edge_query", "mask")),
}

OF_NODES = [name for name, (_, names) in FORMS.items() if "edges" not in names]
PART_BOUNDS = {torch.float64: 1e-11, torch.float32: 2e-4, torch.bfloat16: 0.05}


def order_of(edges: Tensor, hag: hp.HAG) -> Tensor:
    """Which edge each of the HAG's is."""
    slots = edge_slots(edges, hag)
    return torch.empty_like(slots).index_copy_(0, slots, torch.arange(len(slots)))


def tensors_of(
    form: str,
    sizes: tuple[int, int, int],
    widths: tuple[int, int, int, int],
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """What a call is given: N_src, N_dst, E, and heads, C, K and D."""
    (num_src, num_dst, num_edges), (heads, width, key_width, edge_width) = sizes, widths
    score, names = FORMS[form]
    keys = (heads,) if score == "sum" else (heads, key_width)
    own = score == "vector" and "projection" not in names
    shapes = {
        "value": (num_src, heads, width),
        "key": (num_src, *keys),
        "query": (num_dst, *keys),
        "weight": (heads, key_width),
        "bias": (num_edges, heads),
        "edges": (num_edges, heads * key_width if own else edge_width),
        "edge_query": (num_dst, heads, edge_width),
        "projection": (edge_width, heads * key_width),
        "mask": (num_edges, heads),
    }
    return {name: torch.randn(shapes[name], device=device).to(dtype) for name in ("value", *names)}


def how_of(form: str) -> dict[str, Any]:
    score = FORMS[form][0]
    return {"score": score, "slope": 1.0 if score == "dot" else 0.2}


def assert_equal(
    edges: Tensor,
    sizes: tuple[int, int],
    given: dict[str, Tensor],
    normalise: str,
    how: dict[str, Any],
    device: str = "cpu",
) -> None:
    """Result and gradients are the reference's, in float64, within rounding."""
    hag = hp.build_hag(edges, size=sizes)
    dtype = given["value"].dtype
    mine = {name: t.detach().clone().to(device).requires_grad_() for name, t in given.items()}
    theirs = {name: t.detach().double().requires_grad_() for name, t in given.items()}
    order = order_of(edges, hag).to(device)
    y = attend(hag.to(device), order=order, normalise=normalise, **mine, **how)
    expected = reference.attend(
        edge_index=edges, num_dst=sizes[1], normalise=normalise, **theirs, **how
    )
    assert y.dtype == dtype
    grad = torch.randn(expected.shape).to(dtype)
    ours = torch.autograd.grad(y, list(mine.values()), grad.to(device))
    unused: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    wanted = torch.autograd.grad(expected, list(theirs.values()), grad.double(), **unused)
    # A bound on the sum of magnitudes: that of a dot product, over the edges of the longest row.
    degree = int(torch.bincount(edges.flatten()).max()) if edges.numel() else 1
    most = [float(t.abs().max()) for t in (grad, *given.values()) if t.numel()]
    largest = max([1.0, *most]) ** 2 * max(degree, 1) * (1 + given["value"].shape[-1])
    eps = {torch.float64: 1e-13, torch.float32: 1e-6}.get(dtype, torch.finfo(dtype).eps)
    for name, a, b in zip(
        ("y", *given), (y.detach(), *ours), (expected.detach(), *wanted), strict=True
    ):
        bound = eps * (largest + 2 * float(b.abs().max()) if b.numel() else 1.0)
        assert a.shape == b.shape, name
        if dtype in (torch.float16, torch.bfloat16):
            bound = 4 * eps * (1.0 + float(b.abs().max()) if b.numel() else 1.0)
        torch.testing.assert_close(
            a.double().cpu(), b, rtol=0, atol=bound, msg=lambda text, name=name: f"{name}: {text}"
        )


def parts_of(
    edges: list[Tensor], sources: tuple[int, int], given: dict[str, Tensor]
) -> list[dict[str, Tensor]]:
    """What each part is given, of what is given of all: views, whose gradients go back there."""
    found: list[dict[str, Tensor]] = []
    for k in range(2):
        of_sources = slice(0, sources[0]) if k == 0 else slice(sources[0], None)
        of_edges = slice(0, edges[0].shape[1]) if k == 0 else slice(edges[0].shape[1], None)
        at = dict.fromkeys(("value", "key"), of_sources) | dict.fromkeys(("bias", "mask"), of_edges)
        found.append({name: t[at.get(name, slice(None))] for name, t in given.items()})
    return found


def assert_parts_equal(
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
        bound = PART_BOUNDS[dtype] * (1.0 + float(b.abs().max()) if b.numel() else 1.0)
        torch.testing.assert_close(
            a.double().cpu(), b, rtol=0, atol=bound, msg=lambda text, name=name: f"{name}: {text}"
        )
    torch.testing.assert_close(again, ours, rtol=0, atol=0)
