"""PyG's aggregations over a HAG where numbers are awkward, and the memory they take."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch_geometric.nn import GENConv, PNAConv, SAGEConv, SimpleConv
from torch_geometric.nn.aggr import SoftmaxAggregation

import hag_plugin as hp
from hag_plugin.pyg import accelerate, explain


def compare(conv: nn.Module, x: Tensor, graph: Any, tolerance: float = 1e-10) -> Tensor:
    """The result over a HAG, and its gradient, against stock in float64. Returns the result."""
    hag = hp.build_hag(graph.edge_index, num_nodes=graph.num_src)
    accelerated = accelerate(copy.deepcopy(conv))
    assert explain(accelerated)[0].accelerated
    leaves = [x.clone().requires_grad_(), x.double().requires_grad_()]
    ours = accelerated(leaves[0], hag)
    stock = conv.double()(leaves[1], graph.edge_index)
    weight = torch.linspace(-1, 1, stock.numel(), dtype=torch.float64).view_as(stock)
    (ours * weight.to(ours.dtype)).sum().backward()
    (stock * weight).sum().backward()
    assert ours.dtype == x.dtype
    for a, b in ((ours, stock), (leaves[0].grad, leaves[1].grad)):
        scale = max(1.0, b.abs().max().item())
        assert (a.double() - b).abs().max().item() <= tolerance * scale
    return ours.detach()


@pytest.mark.parametrize("spread", [1.0, 100.0, 3000.0])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 0.05)],
)
def test_softmax_of_any_range(
    spread: float, dtype: torch.dtype, tolerance: float, awkward: Any
) -> None:
    """Beyond float32's exponentials float64 is taken, and beyond those stock's code."""
    x = (torch.randn(awkward.num_src, 5) * spread).to(dtype)
    out = compare(SimpleConv(SoftmaxAggregation()), x, awkward, tolerance * max(1.0, spread / 10))
    assert out.isfinite().all()


def test_softmax_compiled(awkward: Any) -> None:
    """Compiled code cannot look at values: where sums lost their digits there is no number."""
    torch._dynamo.reset()
    conv = SimpleConv(SoftmaxAggregation())
    accelerated = torch.compile(
        accelerate(copy.deepcopy(conv)), backend="aot_eager", fullgraph=True
    )
    hag = hp.build_hag(awkward.edge_index, num_nodes=awkward.num_src)
    x = torch.randn(awkward.num_src, 5)
    for spread in (1.0, 100.0):
        expected = conv(x * spread, awkward.edge_index)
        torch.testing.assert_close(accelerated(x * spread, hag), expected, rtol=1e-4, atol=1e-3)
    far = conv(x * 3000.0, awkward.edge_index)
    ours = accelerated(x * 3000.0, hag)
    assert ours.isnan().any()
    torch.testing.assert_close(ours[~ours.isnan()], far[~ours.isnan()], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["std", "var", "softmax", "powermean", ["mean", "std", "max"]])
def test_equal_sources_and_no_sources(kind: Any) -> None:
    """Variance 0, where the clamp decides, and nodes without edges."""

    class Graph:
        edge_index = torch.tensor([[0, 1, 2, 3, 0, 0], [4, 4, 4, 5, 5, 6]])
        num_src = 9

    x = torch.tensor([2.0, 2.0, 2.0, -1.0, 0, 0, 0, 0, 0], dtype=torch.float64).view(-1, 1)
    compare(SimpleConv(kind), x.repeat(1, 3), Graph)
    Graph.edge_index = torch.zeros(2, 0, dtype=torch.long)
    compare(SimpleConv(kind), x, Graph)


@pytest.mark.parametrize("kind", ["std", "softmax", "powermean", ["sum", "var", "min"]])
def test_other_node_dimensions(kind: Any, awkward: Any) -> None:
    for shape in ((), (2, 3)):
        x = torch.randn(awkward.num_src, *shape, dtype=torch.float64)
        if isinstance(kind, str) or shape:
            compare(SimpleConv(kind, node_dim=0), x, awkward)


@pytest.mark.parametrize("kind", ["std", "softmax", "powermean", ["mean", "var"]])
def test_half_types(kind: Any, awkward: Any) -> None:
    conv = SAGEConv(5, 3, aggr=kind).to(torch.bfloat16)
    hag = hp.build_hag(awkward.edge_index, num_nodes=awkward.num_src)
    x = torch.randn(awkward.num_src, 5).to(torch.bfloat16)
    exact = copy.deepcopy(conv).double()(x.double(), awkward.edge_index)
    ours = accelerate(conv)(x, hag)
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - exact).abs().max() <= 0.05 * exact.abs().max()


# Memory -----------------------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """Notes the largest number of elements that an operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


NODES, EDGES, WIDTH = 60, 9000, 16
LARGE = {
    "pna": lambda: PNAConv(
        WIDTH, WIDTH, ["mean", "max", "min", "std"], ["identity", "linear"], torch.ones(200)
    ),
    "gen": lambda: GENConv(WIDTH, WIDTH, learn_t=True),
    "gen-power": lambda: GENConv(WIDTH, WIDTH, aggr="power", learn_p=True),
    "sage-several": lambda: SAGEConv(WIDTH, WIDTH, aggr=["mean", "std", "softmax", "max"]),
}


@pytest.mark.parametrize("name", LARGE)
def test_no_tensor_of_edges_by_features(name: str) -> None:
    """Forward and backward, with many more edges than nodes."""
    edge_index = torch.randint(NODES, (2, EDGES))
    hag = hp.build_hag(edge_index, num_nodes=NODES)
    x = torch.randn(NODES, WIDTH, requires_grad=True)
    stock = LARGE[name]()
    largest = {}
    for kind, conv, edges in (
        ("stock", stock, edge_index),
        ("ours", accelerate(copy.deepcopy(stock)), hag),
    ):
        with LargestTensor() as seen:
            conv(x, edges).square().sum().backward()
        largest[kind] = seen.elements
    assert largest["stock"] >= EDGES * WIDTH
    assert largest["ours"] < EDGES
    assert all(p.grad is not None for p in stock.parameters())
