"""PyG's layers of attention, accelerated, over the kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hag_plugin.testing import count_programs, limits

pyg = pytest.importorskip("torch_geometric").nn

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "gat": lambda: pyg.GATConv(3, 2, heads=2, dropout=0.4, residual=True),
    "gat-edges": lambda: pyg.GATConv(3, 2, edge_dim=2),
    "gatv2": lambda: pyg.GATv2Conv(3, 2, heads=2, dropout=0.4),
    "gatv2-edges": lambda: pyg.GATv2Conv(3, 2, edge_dim=2),
    "transformer": lambda: pyg.TransformerConv(3, 2, heads=2, beta=True),
    "transformer-edges": lambda: pyg.TransformerConv(3, 2, edge_dim=2),
    "agnn": lambda: pyg.AGNNConv(),
    "supergat": lambda: pyg.SuperGATConv(3, 2, attention_type="SD", edge_sample_ratio=0.5),
    "rgat": lambda: pyg.RGATConv(3, 2, 2, heads=2),
    "general": lambda: pyg.GeneralConv(3, 2, attention=True, heads=2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_equals_stock(name: str, kernel_device: str) -> None:
    from hag_plugin.pyg import accelerate, explain

    nodes = torch.tensor([[0, 1, 2, 2, 0, 4, 4, 1, 3], [1, 0, 0, 1, 0, 0, 0, 0, 0]])
    edges = nodes.to(kernel_device)
    stock = LAYERS[name]().double().to(kernel_device)
    ours = accelerate(copy.deepcopy(stock))
    x = torch.randn(6, 3, dtype=torch.float64, device=kernel_device)
    of_edges = torch.randn(9, 2, dtype=torch.float64, device=kernel_device)
    given = (of_edges,) if name.endswith("-edges") else ()
    types = (torch.arange(9, device=kernel_device) % 2,) if name == "rgat" else ()
    grad: list[Tensor] = []

    def run(conv: nn.Module) -> list[Tensor]:
        torch.manual_seed(3)  # of dropout
        leaves = [x.clone().requires_grad_(), *(t.clone().requires_grad_() for t in given)]
        y = conv(leaves[0], edges, *types, *leaves[1:])
        if not grad:
            grad.append(torch.randn_like(y))
        unused: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
        return [y, *torch.autograd.grad(y, [*leaves, *conv.parameters()], grad[0], **unused)]

    expected = run(stock)
    with limits(few_messages=0, loop_calls=0):
        for _ in range(2):  # a graph on a card is met first
            with count_programs() as ran:
                found = run(ours)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    assert {"attend", "attend_backward"} <= {each.operator for each in ran.programs}
    assert explain(ours)[0].calls.counts["plain"] >= 1
