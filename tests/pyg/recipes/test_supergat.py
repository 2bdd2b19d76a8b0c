"""SuperGATConv's self-supervised loss is stock's, and makes no rows of edges."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch_geometric import nn as pyg

from hag_plugin.pyg import accelerate, explain
from hag_plugin.testing import limits

from ...cases import draw_graph
from ...equality import assert_same, with_gradients

WIDTH, OUT, NODES = 6, 4, 20


def supergat(**options: Any) -> Any:
    return pyg.SuperGATConv(WIDTH, OUT, **options).double()


def trained(conv: Any, *args: Any) -> list[Tensor | None]:
    """The output, the loss and what it compares; then the gradients of both together."""
    conv.zero_grad()
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(5)
    x, *others = args
    x = x.detach().requires_grad_()
    y = conv(x, *others)
    loss = conv.get_attention_loss()
    whole = torch.cat([y.flatten(), 10.0 * loss.view(1)])
    found = [y.detach(), loss.detach(), conv.att_x.detach(), conv.att_y]
    return [*found, *with_gradients(whole, [x, *conv.parameters()])]


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "attention_type": draw(st.sampled_from(["MX", "SD"])),
        "heads": draw(st.integers(1, 4)),
        "concat": draw(st.booleans()),
        "add_self_loops": draw(st.booleans()),
        "is_undirected": draw(st.booleans()),
        "dropout": draw(st.sampled_from([0.0, 0.5])),
        "edge_sample_ratio": draw(st.sampled_from([1.0, 0.6, 0.1])),
        "neg_sample_ratio": draw(st.sampled_from([0.5, 2.0])),
    }


@settings(max_examples=50)
@given(data=st.data(), options=options())
def test_any_setting(data: st.DataObject, options: dict[str, Any]) -> None:
    edge_index, num_nodes, _ = draw_graph(data, square=True)
    torch.manual_seed(0)
    stock, x = supergat(**options), torch.randn(num_nodes, WIDTH, dtype=torch.float64)
    ours, others = accelerate(copy.deepcopy(stock)), []
    if data.draw(st.booleans()) and num_nodes:
        dtype = data.draw(st.sampled_from([torch.int64, torch.int32]))
        others = [torch.randint(num_nodes, (2, data.draw(st.integers(0, 30))), dtype=dtype)]
    with limits(few_messages=0, passing_gain=0.0):
        for _ in range(2):
            try:
                expected = trained(stock, x, edge_index, *others)
            except IndexError:  # no edge left to draw: PyG gives it no integers
                with pytest.raises(IndexError):
                    trained(ours, x, edge_index, *others)
                return
            assert_same(trained(ours, x, edge_index, *others), expected, 1e-11)
    assert explain(ours)[0].calls.counts == {"plain": 2}


def graph() -> tuple[Tensor, Tensor]:
    return torch.randn(NODES, WIDTH, dtype=torch.float64), torch.randint(NODES, (2, 150))


def test_edges_drawn_within_graphs_of_a_batch() -> None:
    stock, (x, edge_index) = supergat(heads=2), graph()
    ours = accelerate(copy.deepcopy(stock))
    edge_index = edge_index % 10 + torch.tensor([0, 10]).repeat_interleave(75)
    batch = torch.arange(NODES) // 10
    given = (x, edge_index, None, batch)
    assert_same(trained(ours, *given), trained(stock, *given), 1e-12)


TAKEN = {
    "negative ids": torch.tensor([[-1, 0], [3, -NODES]]),
    "more rows": torch.tensor([[1, 0], [3, 4], [5, 5]]),
}
REFUSED = {
    "an id beyond": torch.tensor([[1, NODES], [2, 3]]),
    "floats": torch.zeros(2, 3),
    "one row": torch.zeros(1, 3, dtype=torch.int64),
}


@pytest.mark.parametrize("name", TAKEN | REFUSED)
def test_negative_edges_are_taken_and_refused_as_by_stock(name: str) -> None:
    stock, (x, edge_index) = supergat(), graph()
    ours = accelerate(copy.deepcopy(stock))
    if name in TAKEN:
        given = (x, edge_index, TAKEN[name])
        assert_same(trained(ours, *given), trained(stock, *given), 1e-12)
        return
    for conv in (stock, ours):
        with pytest.raises(IndexError):
            conv(x, edge_index, REFUSED[name])


class Recorder(TorchDispatchMode):
    """How many numbers each tensor has that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        leaves = torch.utils._pytree.tree_leaves(found)
        self.sizes.extend(t.numel() for t in leaves if isinstance(t, Tensor))
        return found


@pytest.mark.parametrize("ratio", [1.0, 0.7])
@pytest.mark.parametrize("kind", ["MX", "SD"])
def test_no_rows_of_edges(kind: str, ratio: float) -> None:
    nodes, edges, heads, width = 60, 20_000, 2, 16
    conv = pyg.SuperGATConv(8, width, heads, attention_type=kind, edge_sample_ratio=ratio)
    conv = accelerate(nn.Sequential(conv))[0]
    x, edge_index = torch.randn(nodes, 8, requires_grad=True), torch.randint(nodes, (2, edges))
    negative = torch.randint(nodes, (2, edges))
    with Recorder() as seen:
        (conv(x, edge_index, negative).sum() + conv.get_attention_loss()).backward()
    assert explain(conv)[0].calls.counts == {"plain": 1}
    assert max(seen.sizes) <= 2 * edges * heads + 4 * nodes < edges * heads * width // 4


def test_in_evaluation_there_is_no_loss() -> None:
    conv, (x, edge_index) = accelerate(supergat()).eval(), graph()
    conv(x, edge_index)
    assert conv.att_x is None
    assert torch.equal(conv.get_attention_loss(), torch.tensor([0]))
