"""Sums made in the memory of an aggregate: the same as stock, and nobody else's memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, GINConv, GraphConv, SAGEConv, SignedConv

import hag_plugin as hp
from hag_plugin.testing import Ran, limits

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "GCNConv, narrower": lambda: GCNConv(6, 4),
    "GCNConv, wider": lambda: GCNConv(6, 9),
    "SAGEConv, narrower": lambda: SAGEConv(6, 4),
    "SAGEConv, wider": lambda: SAGEConv(6, 9, aggr="sum", normalize=True),
    "SAGEConv, no root": lambda: SAGEConv(6, 4, root_weight=False),
    "GraphConv, narrower": lambda: GraphConv(6, 4),
    "GraphConv, wider": lambda: GraphConv(6, 9, aggr="mean", bias=False),
    "GINConv": lambda: GINConv(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 4))),
    "GINConv, max": lambda: GINConv(nn.Linear(6, 4), aggr="max"),
    "GINConv, std": lambda: GINConv(nn.Linear(6, 4), aggr="std"),
    "GINConv, softmax": lambda: GINConv(nn.Linear(6, 4), aggr="softmax"),
    "GINConv, learned": lambda: GINConv(nn.Linear(6, 4), eps=0.5, train_eps=True),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def pair_of(name: str) -> tuple[Any, Any, Tensor, hp.HAG]:
    """A stock layer, its accelerated copy, edges and their HAG."""
    stock = LAYERS[name]().double()
    edge_index = torch.randint(30, (2, 200))
    hag = hp.build_hag(edge_index, num_nodes=30)
    return stock, hp.accelerate(copy.deepcopy(stock)), edge_index, hag


def features() -> Tensor:
    return torch.randn(30, 6, dtype=torch.float64)


@every_layer
def test_gradients_of_the_second_order(name: str) -> None:
    stock, fast, edge_index, hag = pair_of(name)
    x = features()
    found = []
    for layer, graph in ((stock, edge_index), (fast, hag)):
        given = x.clone().requires_grad_()
        out = layer(given * 1.0, graph)
        (first,) = torch.autograd.grad(out.sin().sum(), given, create_graph=True)
        first.square().sum().backward()
        found.append([out, first, given.grad, *(p.grad for p in layer.parameters())])
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@every_layer
def test_what_is_kept_is_not_written_to(name: str) -> None:
    """Constant features, in training, without gradients and with all but the bias frozen."""
    stock, fast, edge_index, hag = pair_of(name)
    x = features()
    before = x.clone()
    expected = stock(x, edge_index)
    for _ in range(3):
        torch.testing.assert_close(fast(x, hag), expected)
        with torch.no_grad():
            torch.testing.assert_close(fast(x, hag), expected)
    for key, parameter in fast.named_parameters():
        parameter.requires_grad_("bias" in key)
    for _ in range(3):
        torch.testing.assert_close(fast(x, hag), expected)
    assert torch.equal(x, before)


@every_layer
def test_a_batch_of_parameters(name: str) -> None:
    """torch.func.vmap over each parameter alone: the sum is then no batch, or its term is none."""
    stock, fast, edge_index, hag = pair_of(name)
    x = features()
    for key, parameter in stock.named_parameters():
        batch = torch.stack([parameter.detach(), parameter.detach() * 2.0, parameter.detach() - 1])

        def run(one: Tensor, layer: Any, graph: Any, key: str = key) -> Any:
            return torch.func.functional_call(layer, {key: one}, (x, graph))

        expected = torch.stack([run(one, stock, edge_index) for one in batch])
        found = torch.func.vmap(lambda one: run(one, fast, hag))(batch)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in LAYERS if not n.startswith("GCN")])
def test_two_sets_of_nodes(name: str) -> None:
    stock = LAYERS[name]().double()
    edge_index = torch.stack([torch.randint(30, (90,)), torch.randint(20, (90,))])
    hag = hp.build_hag(edge_index, size=(30, 20))
    fast = hp.accelerate(copy.deepcopy(stock))
    for target in (features()[:20], None):
        given = (features(), target)
        expected = stock(given, edge_index, size=(30, 20))
        torch.testing.assert_close(fast(given, hag), expected)


def test_a_watched_root_map_runs() -> None:
    stock, fast, edge_index, hag = pair_of("SAGEConv, wider")
    x = features()
    seen: list[Tensor] = []
    fast.lin_r.register_forward_hook(lambda module, given, out: seen.append(out.clone()))
    torch.testing.assert_close(fast(x, hag), stock(x, edge_index))
    torch.testing.assert_close(seen[0], stock.lin_r(x))


def test_the_bias_of_another_dtype_promotes() -> None:
    stock, fast, edge_index, hag = pair_of("GCNConv, narrower")
    for layer in (stock, fast):
        layer.bias.data = layer.bias.data.double()
        layer.lin.float()
    x = features().float()
    expected, found = stock(x, edge_index), fast(x, hag)
    assert found.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_two_graphs_of_few_messages(ran: Ran) -> None:
    """SignedConv takes two graphs: stock's code runs where both are small, as for one."""
    stock = SignedConv(6, 4, first_aggr=True).double()
    fast = hp.accelerate(copy.deepcopy(stock))
    edges = [torch.randint(30, (2, 90)), torch.randint(30, (2, 70))]
    hags = [hp.build_hag(e, num_nodes=30) for e in edges]
    x = features()
    expected = stock(x, *edges)
    with limits(few_messages=10**6):
        for given in (edges, hags, [hags[0], edges[1]]):
            torch.testing.assert_close(fast(x, *given), expected)
        assert not ran.programs
    with pytest.raises(ValueError, match="rows"):
        fast(x[:-1], *hags)


def test_few_messages_of_what_stock_cached(ran: Ran) -> None:
    """Stock is faster where it need not normalise again; a HAG is not the graph of its cache."""
    edge_index = torch.randint(30, (2, 90))
    hag = hp.build_hag(edge_index, num_nodes=30)
    stock = GCNConv(6, 4, cached=True).double()
    fast = hp.accelerate(copy.deepcopy(stock))
    x = features()
    expected = stock(x, edge_index)
    with limits(few_messages=10**6):
        for _ in range(4):
            torch.testing.assert_close(fast(x, edge_index), expected)
        assert not ran.programs
        torch.testing.assert_close(fast(x, hag), expected)
        with torch.no_grad():  # in inference the HAG that was found is as fast
            torch.testing.assert_close(fast(x, edge_index), expected)
    assert len(ran.programs) == 2


class Wrapped(nn.Module):
    """Somebody's wrapper of a linear map, as those of LoRA and of quantisation."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * self.inner(x)


@every_layer
def test_wrapped_maps(name: str) -> None:
    stock = LAYERS[name]().double()
    for part in list(stock.modules()):
        for attribute, child in list(part.named_children()):
            if type(child).__name__ == "Linear" and not isinstance(part, Wrapped):
                setattr(part, attribute, Wrapped(child))
    fast, edge_index = hp.accelerate(copy.deepcopy(stock)), torch.randint(30, (2, 200))
    x, hag = features(), hp.build_hag(edge_index, num_nodes=30)
    for graph in (edge_index, edge_index, edge_index, hag, hag, hag):
        torch.testing.assert_close(
            fast(x.clone(), graph), stock(x.clone(), edge_index), rtol=1e-9, atol=1e-9
        )
