"""Writes that torch does not count: layers give stock's results all the same."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GCNConv, GraphConv, RGATConv, RGCNConv, SAGEConv

import hag_plugin as hp
from hag_plugin.pyg import ToHAG

NODES, EDGES = 30, 200

Write = Callable[[Tensor, Tensor], Any]


def _assign(tensor: Tensor, other: Tensor) -> None:
    tensor.data = other.clone()


# Of another's contents, without a count.
WRITES: dict[str, Write] = {
    "numpy": lambda t, o: np.copyto(t.numpy(), o.numpy()),
    "data": lambda t, o: t.data.copy_(o),
    "one by data": lambda t, o: t.data.flatten()[-1:].copy_(o.flatten()[-1:]),
    "data is another": _assign,
    "set_": lambda t, o: t.set_(o.clone()),
    "storage": lambda t, o: t.untyped_storage().copy_(o.clone().untyped_storage()),
    "swap_tensors": lambda t, o: torch.utils.swap_tensors(t, o.clone()),
    "dlpack": lambda t, o: torch.from_dlpack(t.__dlpack__()).copy_(o),
}
FEATURE_WRITES = (
    "numpy",
    "data is another",
    "set_",
    "swap_tensors",
)  # others: documented


def edge_index(seed: int = 0) -> Tensor:
    edges = torch.randint(NODES, (2, EDGES), generator=torch.Generator().manual_seed(seed))
    return edges[:, edges[1].argsort(stable=True)]


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def types(seed: int) -> Tensor:
    return torch.randint(3, (EDGES,), generator=torch.Generator().manual_seed(seed))


# A layer, and which of x, edge_index and a third argument it takes; all may be written to.
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], list[Tensor]]]] = {
    "GCN": (lambda: GCNConv(6, 4), lambda s: [numbers(s, NODES, 6), edge_index(s)]),
    "SAGE": (lambda: SAGEConv(6, 4), lambda s: [numbers(s, NODES, 6), edge_index(s)]),
    "SAGE max": (lambda: SAGEConv(6, 9, "max"), lambda s: [numbers(s, NODES, 6), edge_index(s)]),
    "LSTM": (lambda: SAGEConv(6, 4, "lstm"), lambda s: [numbers(s, NODES, 6), edge_index(s)]),
    "weights": (
        lambda: GCNConv(6, 4),
        lambda s: [numbers(s, NODES, 6), edge_index(s), numbers(s, EDGES)],
    ),
    "factors": (
        lambda: GraphConv(6, 4),
        lambda s: [numbers(s, NODES, 6), edge_index(s), torch.full((EDGES,), s + 2.0).double()],
    ),
    "types": (
        lambda: RGCNConv(6, 4, 3),
        lambda s: [numbers(s, NODES, 6), edge_index(s), types(s)],
    ),
    "scored types": (
        lambda: RGATConv(6, 4, 3),
        lambda s: [numbers(s, NODES, 6), edge_index(s), types(s)],
    ),
}


def pair_of(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    stock = make().double()
    return stock, hp.accelerate(copy.deepcopy(stock))


def agree(stock: nn.Module, fast: nn.Module, inputs: list[Tensor]) -> None:
    for model in (stock, fast):
        model.zero_grad()
    expected, got = stock(*inputs), fast(*inputs)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    expected.sin().sum().backward()
    got.sin().sum().backward()
    for p, q in zip(stock.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.mostly_slow("SAGE-*")
@pytest.mark.parametrize("source", ["torch", "numpy", "shared"])
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("layer", LAYERS)
def test_inputs_that_are_written_to(layer: str, write: str, source: str) -> None:
    make, inputs_of = LAYERS[layer]
    for which in range(len(inputs_of(0))):
        if which == 0 and write not in FEATURE_WRITES:
            continue
        stock, fast = pair_of(make)
        inputs = inputs_of(0)
        if source == "numpy":
            inputs = [torch.from_numpy(each.numpy().copy()) for each in inputs]
        elif source == "shared":
            inputs = [each.share_memory_() for each in inputs]
        for step in range(1, 4):
            for _ in range(3):
                agree(stock, fast, inputs)
            value = inputs_of(step)[which]
            if write == "one by data" and which == 1:
                value = value.clamp(max=int(inputs[1][1, -1]))  # stays sorted
            WRITES[write](inputs[which], value)
            agree(stock, fast, inputs)


@pytest.mark.parametrize("write", WRITES)
def test_a_layer_that_is_called_outside_of_its_model(write: str) -> None:
    """The count of forwards stands still there."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = SAGEConv(6, 6), SAGEConv(6, 6)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return self.second(self.first(x, edges).relu(), edges)

    stock, fast = pair_of(Net)
    x, edges = numbers(0, NODES, 6), edge_index()
    for step in range(1, 4):
        for _ in range(3):
            agree(stock, fast, [x, edges])
        WRITES[write](edges, edge_index(step))
        for name in ("first", "second", "first"):
            agree(getattr(stock, name), getattr(fast, name), [x, edges])


@pytest.mark.parametrize("write", WRITES)
def test_layers_that_keep_their_graph(write: str) -> None:
    """With cached=True stock goes on with the edges of the first call, whatever is written."""
    stock, fast = pair_of(lambda: GCNConv(6, 4, cached=True))
    x, edges = numbers(0, NODES, 6), edge_index()
    for step in range(1, 4):
        for _ in range(3):
            agree(stock, fast, [x, edges])
        WRITES[write](edges, edge_index(step))
    for model in (stock, fast):
        model._cached_edge_index = None
    for _ in range(3):
        agree(stock, fast, [x, edges])


@pytest.mark.parametrize("write", WRITES)
def test_data_and_the_transform(write: str) -> None:
    transform = ToHAG()
    data = transform(Data(x=numbers(0, NODES, 6), edge_index=edge_index()))
    conv = hp.accelerate(SAGEConv(6, 4).double())
    for _ in range(2):
        assert data.hag.num_edges == EDGES
    WRITES[write](data.edge_index, edge_index(1))
    stock = SAGEConv(6, 4).double()
    stock.load_state_dict(conv.state_dict())
    expected = stock(data.x, data.edge_index)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the HAG is not of these edges
        torch.testing.assert_close(conv(data.x, data.hag), expected)
        torch.testing.assert_close(conv(data.x, data.hag), expected)
        again = transform(Data(x=data.x, edge_index=data.edge_index))
        torch.testing.assert_close(conv(data.x, again.hag), expected)


def test_swapped_once_met() -> None:
    for layer in LAYERS:
        make, inputs_of = LAYERS[layer]
        _, fast = pair_of(make)
        inputs = inputs_of(0)
        for _ in range(3):
            fast(*inputs)
        for each in inputs:
            torch.utils.swap_tensors(each, each.clone())


def test_forget() -> None:
    """What stays unseen of constant features, and how they are forgotten."""
    for make, inputs_of in (LAYERS["GCN"], LAYERS["SAGE"], LAYERS["weights"]):
        stock, fast = pair_of(make)
        inputs = inputs_of(0)
        for _ in range(3):
            agree(stock, fast, inputs)
        inputs[0].data.mul_(2)
        assert hp.forget(fast) is fast
        for _ in range(3):
            agree(stock, fast, inputs)
        session = fast._hag_session
        assert session.num_hags == 1
        hp.forget(fast)
        assert session.num_hags == 0
    plain = GCNConv(6, 4)
    assert hp.forget(plain) is plain
    with pytest.raises(TypeError, match="Module"):
        hp.forget(edge_index())  # type: ignore[type-var]


class Rewriting(nn.Module):
    """Two layers, and writes to what both take in between; or one of them alone."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first, self.second = make(), make()

    def forward(
        self, x: Tensor, edges: list[Tensor], between: Callable[[], Any] | None = None
    ) -> Tensor:
        out = self.first(x, *edges).sum()
        if between is not None:
            between()
        return out + self.second(x, *edges)


@pytest.mark.parametrize("write", ["numpy", "data", "one by data", "storage"])
@pytest.mark.parametrize("layer", [name for name in LAYERS if name != "SAGE max"])
def test_writes_between_the_layers_of_a_forward(layer: str, write: str) -> None:
    make, inputs_of = LAYERS[layer]
    for which in range(1, len(inputs_of(0))):
        stock, fast = pair_of(lambda make=make: Rewriting(make))
        for alone in (False, True):
            outputs = []
            for model in (stock, fast):
                x, *edges = inputs_of(0)
                value = inputs_of(1)[which]
                write_to = partial(WRITES[write], edges[which - 1], value)
                for _ in range(4):
                    model(x, edges)
                if alone:  # a layer that is called by hand, after the forward
                    write_to()
                    outputs.append(model.second(x, *edges))
                else:
                    outputs.append(model(x, edges, write_to))
            torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("write", ["numpy", "data", "one by data", "storage"])
def test_the_edge_index_of_a_hag(write: str) -> None:
    """Layers that look into their edges have those of the HAG, not of what it hands out."""
    x, edges = numbers(0, NODES, 6), edge_index()
    for make in (lambda: GATConv(6, 4), lambda: SAGEConv(6, 4, "median")):
        stock, fast = pair_of(make)
        hag = hp.build_hag(edges, num_nodes=NODES)
        for _ in range(2):
            torch.testing.assert_close(fast(x, hag), stock(x, edges), rtol=1e-10, atol=1e-10)
            WRITES[write](hag.edge_index, torch.zeros_like(hag.edge_index))
