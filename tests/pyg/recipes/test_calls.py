"""Calls of their own kind: two sets of nodes, relations, look-ups, eigenvalues."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric import nn as pyg

import hag_plugin as hp
from hag_plugin.pyg import accelerate, relation_hags

WIDTH, OUT, RELATIONS = 6, 4, 3


def run(conv: nn.Module, x: Any, *edges: Any) -> list[Tensor]:
    """The output, then the gradients of the inputs and of all parameters."""
    leaves = [*x, *conv.parameters()]
    for leaf in leaves:
        leaf.grad = None
    y = conv(x, *edges)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return [y.detach(), *(torch.zeros(0) if p.grad is None else p.grad.clone() for p in leaves)]


# Two sets of nodes ------------------------------------------------------------------------------

PAIRS: dict[str, Callable[[], nn.Module]] = {
    "mf": lambda: pyg.MFConv((WIDTH, 3), OUT, max_degree=4),
    "wl": lambda: pyg.WLConvContinuous(),
    "le": lambda: pyg.LEConv((WIDTH, 3), OUT),
    "film": lambda: pyg.FiLMConv((WIDTH, 3), OUT, act=None),
    "film-relations": lambda: pyg.FiLMConv((WIDTH, 3), OUT, RELATIONS, act=None),
    "rgcn": lambda: pyg.RGCNConv((WIDTH, 3), OUT, RELATIONS),
    "rgcn-blocks": lambda: pyg.RGCNConv((WIDTH, 3), OUT, RELATIONS, num_blocks=2),
    "fast": lambda: pyg.FastRGCNConv((WIDTH, 3), OUT, RELATIONS),
    "general": lambda: pyg.GeneralConv((WIDTH, 3), OUT),
    "gen": lambda: pyg.GENConv((WIDTH, 3), OUT, norm="layer"),
    "simple": lambda: pyg.SimpleConv(["std", "max"]),
}


@pytest.mark.parametrize("graph", ["bipartite"], indirect=True)
@pytest.mark.parametrize("name", PAIRS)
def test_bipartite_equals_stock(name: str, graph: Any) -> None:
    stock = PAIRS[name]().double()
    ours = accelerate(copy.deepcopy(stock))
    size = (graph.num_src, graph.num_dst)
    columns = (WIDTH, WIDTH if name == "wl" else 3)
    x = tuple(
        torch.randn(n, f).double().requires_grad_() for n, f in zip(size, columns, strict=True)
    )
    plain, hag = [graph.edge_index], hp.build_hag(graph.edge_index, size=size)
    wrong = hp.build_hag(graph.edge_index.flip(0), size=size[::-1])
    if getattr(stock, "num_relations", 1) > 1:
        plain.append(torch.randint(RELATIONS, (graph.edge_index.shape[1],)))
        hag = relation_hags(*plain, RELATIONS, size)
        wrong = [wrong] * RELATIONS
    expected = run(stock, x, *plain)
    for arguments in ([hag], plain, plain):
        for a, b in zip(run(ours, x, *arguments), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="the HAG has"):  # the other direction
        ours(x, wrong)


def test_relations(awkward: Any) -> None:
    n = awkward.num_src
    hag = hp.build_hag(awkward.edge_index, num_nodes=n)
    x = torch.randn(n, WIDTH)
    conv = accelerate(pyg.RGCNConv(WIDTH, OUT, RELATIONS))
    with pytest.raises(ValueError, match="got one HAG; expected a list of 3 HAGs"):
        conv(x, hag)
    with pytest.raises(ValueError, match="got 2; expected a list of 3 HAGs"):
        conv(x, [hag, hag])
    with pytest.raises(ValueError, match="pass edge_index instead"):
        conv(x, [hag] * 3, torch.zeros(awkward.edge_index.shape[1]).long())
    with pytest.raises(ValueError, match="got 2 HAGs; expected one HAG"):
        accelerate(pyg.FiLMConv(WIDTH, OUT, act=None))(x, [hag, hag])
    with pytest.raises(ValueError, match="num_edges is 9; the HAG has"):
        accelerate(pyg.HypergraphConv(WIDTH, OUT))(x, hag, num_edges=9)


def test_embeddings_by_relation(awkward: Any) -> None:
    """RGCN without features, and with integers that look up rows."""
    n = awkward.num_src
    types = torch.randint(RELATIONS, (awkward.edge_index.shape[1],))
    for cls in (pyg.RGCNConv, pyg.FastRGCNConv):
        stock = cls(n, OUT, RELATIONS, num_bases=2)
        ours = accelerate(copy.deepcopy(stock))
        hags = relation_hags(awkward.edge_index, types, RELATIONS, (n, n))
        for x in (None, torch.randperm(n)):
            expected = stock(x, awkward.edge_index, types)
            for arguments in ([hags], [awkward.edge_index, types], [awkward.edge_index, types]):
                torch.testing.assert_close(ours(x, *arguments), expected, rtol=1e-5, atol=1e-5)


def test_chebyshev_eigenvalues(awkward: Any) -> None:
    """lambda_max as a number, a tensor, and one for each graph of a batch."""
    n = awkward.num_src
    batch = (torch.arange(n) >= 25).long()
    edges = awkward.edge_index[:, (awkward.edge_index >= 25).sum(0) != 1]
    hag = hp.build_hag(edges, num_nodes=n)
    x = torch.randn(n, WIDTH, dtype=torch.float64)
    for normalization in ("sym", "rw", None):
        stock = pyg.ChebConv(WIDTH, OUT, K=3, normalization=normalization).double()
        ours = accelerate(copy.deepcopy(stock))
        for eigenvalue, each in (
            (1.7, None),
            (torch.tensor(1.3).double(), batch),
            (torch.tensor([1.2, 1.9]).double(), batch),
        ):
            expected = stock(x, edges, batch=each, lambda_max=eigenvalue)
            found = ours(x, hag, batch=each, lambda_max=eigenvalue)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
