"""Attention over a `LoopedHAG` equals that over the edges that it stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import hag_plugin as hp
from hag_plugin.hag.graph import with_own_loops
from hag_plugin.hag.hag import LoopedHAG
from hag_plugin.ops.attention import OF_EDGES, attend, head_dot
from hag_plugin.ops.registration import LOOPED, call

from ..attending import FORMS, NORMALISATIONS, how_of, order_of, tensors_of

SIZES = [(9, 9), (9, 6), (6, 9)]


def looped(edges: Tensor, size: tuple[int, int], known: bool) -> tuple[LoopedHAG, Tensor, Any]:
    """What stands for a graph, the row of each of its edges among those that there may be, and the
    graph; its token is given out, or it is made where it is needed."""
    loops = min(size)
    own = with_own_loops(edges, loops)
    hag = hp.build_hag(own, size=size, method="none")
    unknown = torch.tensor(0)
    token = hag.arrays.token if known else unknown
    assert token is not None
    given = edges.shape[1]
    rows = torch.cat([(edges[0] != edges[1]).nonzero().view(-1), given + torch.arange(loops)])
    return LoopedHAG(edges, torch.empty(size[1] + 1), token, size[0]), rows, hag


def edges_of(size: tuple[int, int]) -> Tensor:
    edges = torch.randint(min(size), (2, 20))
    edges[:, 3:6] = torch.tensor([[1, 1, 2], [1, 1, 0]])
    edges[:, 6] = edges[:, 5]
    return edges


def pair(form: str, size: tuple[int, int], known: bool) -> Callable[..., tuple[Any, Any, Any]]:
    """What gives the results of both, of the same tensors."""
    edges = edges_of(size)
    stands, rows, hag = looped(edges, size, known)
    given = tensors_of(form, (*size, stands.num_edges), (2, 3, 4, 5))
    own_order = order_of(with_own_loops(edges, min(size)), hag)
    order = torch.zeros(stands.num_edges, dtype=torch.int64)
    order[: len(rows)] = rows[own_order]
    leaves = {name: t.requires_grad_() for name, t in given.items()}

    def both(normalise: Any) -> tuple[Tensor, Tensor, Any]:
        how = {**how_of(form), "normalise": normalise}
        mine = attend(stands, order=order, **leaves, **how)
        counting = {n: t[rows] if n in OF_EDGES else t for n, t in leaves.items()}
        return mine, attend(hag, order=own_order, **counting, **how), list(leaves.values())

    return both


@pytest.mark.parametrize("known", [True, False], ids=["known", "made"])
@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_edges_it_stands_for(form: str, normalise: str, known: bool) -> None:
    """With gradients, which are 0 in rows of no edge; those of gradients, too."""
    for size in SIZES:
        mine, theirs, leaves = pair(form, size, known)(normalise)
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
        grad = torch.randn_like(theirs)
        found = [torch.autograd.grad(y, leaves, grad, create_graph=True) for y in (mine, theirs)]
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        unused: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
        again = [
            torch.autograd.grad(sum(g.square().sum() for g in each), leaves, **unused)
            for each in found
        ]
        for a, b in zip(*again, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
        mine, theirs, leaves = pair(form, size, known)(normalise)
        for a, b in zip(
            torch.autograd.grad(mine.square().sum(), leaves),
            torch.autograd.grad(theirs.square().sum(), leaves),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_rows_without_an_order() -> None:
    """They are the first, in the graph's order."""
    size = (9, 9)
    stands, _, hag = looped(edges_of(size), size, known=True)
    a, b = torch.randn(9, 2, 3), torch.randn(9, 2, 3)
    products = head_dot(stands, a, b)
    torch.testing.assert_close(products[: hag.num_edges], head_dot(hag, a, b))
    assert products.shape[0] == stands.num_edges
    assert not products[hag.num_edges :].any()
    weight = torch.randn(stands.num_edges, 2)
    counting = weight[: hag.num_edges]
    y = attend(stands, a, bias=weight, normalise="none")
    torch.testing.assert_close(y, attend(hag, a, bias=counting, normalise="none"))
    back = call("head_sum", stands, (b, weight, None), 9, LOOPED, True)
    torch.testing.assert_close(back, call("head_sum", hag, (b, counting, None), 9, "", True))


def test_it_is_the_graph_where_it_is_asked() -> None:
    size = (9, 9)
    stands, _, hag = looped(edges_of(size), size, known=False)
    assert stands.transpose().num_edges == hag.num_edges < stands.num_edges
    assert stands.is_symmetric == hag.is_symmetric
    assert "<= 29 edges" in repr(stands)
