"""What DGL layers remember: contents are compared, and checkpoints repeat decisions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

dgl = pytest.importorskip("dgl", reason="DGL is not installed")
from dgl.nn.pytorch import (  # noqa: E402
    GatedGraphConv,
    GINConv,
    GraphConv,
    PNAConv,
    RelGraphConv,
    SAGEConv,
)

import hag_plugin as hp  # noqa: E402
from hag_plugin.dgl import ToHAG  # noqa: E402

NODES, WIDTH, TYPES = 57, 5, 3

# A layer, and what it takes for each edge: nothing, weights, types, or types with norms.
LAYERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "GraphConv": (lambda: GraphConv(WIDTH, WIDTH, allow_zero_in_degree=True), ""),
    "SAGE mean": (lambda: SAGEConv(WIDTH, WIDTH, "mean"), ""),
    "SAGE pool": (lambda: SAGEConv(WIDTH, WIDTH, "pool"), ""),
    "SAGE lstm": (lambda: SAGEConv(WIDTH, WIDTH, "lstm"), ""),
    "GIN max": (lambda: GINConv(nn.Linear(WIDTH, WIDTH), "max"), ""),
    "PNA": (lambda: PNAConv(WIDTH, WIDTH, ["mean", "std"], ["identity"], 2.0), ""),
    "weights": (lambda: GraphConv(WIDTH, WIDTH, "none", allow_zero_in_degree=True), "weights"),
    "types": (lambda: RelGraphConv(WIDTH, WIDTH, TYPES, "basis", TYPES), "types"),
    "norms": (lambda: RelGraphConv(WIDTH, WIDTH, TYPES, "basis", TYPES), "types, norms"),
    "gated": (lambda: GatedGraphConv(WIDTH, WIDTH, 2, TYPES), "types"),
}


def _assign(tensor: Tensor, other: Tensor) -> None:
    tensor.data = other.clone()


WRITES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "numpy": lambda t, o: np.copyto(t.numpy(), o.numpy()),
    "data": lambda t, o: t.data.copy_(o),
    "one by data": lambda t, o: t.data[-1:].copy_(o[-1:]),
    "data is another": _assign,
    "set_": lambda t, o: t.set_(o.clone()),
    "storage": lambda t, o: t.untyped_storage().copy_(o.clone().untyped_storage()),
    "swap_tensors": lambda t, o: torch.utils.swap_tensors(t, o.clone()),
}


class Net(nn.Module):
    """Two layers, each run in one way or another."""

    def __init__(self, make: Callable[[], nn.Module], by_layer: Callable[..., Any]) -> None:
        super().__init__()
        self.first, self.second = make(), make()
        self.by_layer = by_layer

    def forward(self, graph: Any, x: Tensor, *values: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            x = self.by_layer(_call, layer, graph, x, *values).tanh()
        return x


def _call(layer: nn.Module, graph: Any, x: Tensor, *values: Tensor) -> Tensor:
    names = ("edge_weight",) if isinstance(layer, GraphConv) else ("etypes", "norm")
    names = names if not isinstance(layer, RelGraphConv) else ("etypes", "norm")
    out: Tensor = layer(graph, x, **dict(zip(names, values, strict=False)))
    return out


def run(function: Any, *args: Any) -> Any:
    return function(*args)


def not_reentrant(function: Any, *args: Any) -> Any:
    return checkpoint(function, *args, use_reentrant=False)


def values_of(graph: Any, kind: str, seed: int) -> list[Tensor]:
    """Weights are products of numbers of the nodes, norms one over a count."""
    generator = torch.Generator().manual_seed(seed)
    source, target = (ids.long() for ids in graph.edges())
    types = torch.randint(TYPES, (len(source),), generator=generator)
    if kind == "weights":
        scale = torch.rand(NODES, generator=generator).double() + 0.5
        return [scale[source] * scale[target]]
    if not kind:
        return []
    pair = types * NODES + target
    norm = 1 / pair.bincount(minlength=TYPES * NODES)[pair].double().unsqueeze(1)
    return [types, norm] if "norms" in kind else [types]


def gradients(model: nn.Module, whole: Any, inputs: list[list[Any]]) -> list[Tensor]:
    """Forwards of all inputs, then their backwards in turn."""
    model.zero_grad()
    losses = [whole(model, *each).sin().sum() for each in inputs]
    for loss in losses[1:] + losses[:1]:
        loss.backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [*(loss.detach() for loss in losses), *found]


def close(ours: list[Tensor], stock: list[Tensor]) -> None:
    assert len(ours) == len(stock)
    for a, b in zip(ours, stock, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def graphs(multigraph: Any, name: str) -> Iterator[Any]:
    """A plain graph, and one that has its HAGs."""
    plain = multigraph()
    if name == "PNA":
        plain = dgl.add_self_loop(plain)
    yield plain
    yield ToHAG()(plain)


@pytest.mark.mostly_slow("weights-*")
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("layer", [name for name, (_, kind) in LAYERS.items() if kind])
def test_edge_tensors_that_are_written_to(layer: str, write: str, multigraph: Any) -> None:
    make, kind = LAYERS[layer]
    for graph in graphs(multigraph, layer):
        stock = Net(make, run).double()
        fast = hp.accelerate(copy.deepcopy(stock))
        x = torch.randn(NODES, WIDTH, dtype=torch.float64)
        plain = multigraph()
        values = values_of(plain, kind, 0)
        for step in range(1, 4):
            for _ in range(3):
                expected = gradients(stock, run, [[plain, x, *values]])
                close(gradients(fast, run, [[graph, x, *values]]), expected)
            for tensor, other in zip(values, values_of(plain, kind, step), strict=True):
                WRITES[write](tensor, other)
            expected = gradients(stock, run, [[plain, x, *values]])
            close(gradients(fast, run, [[graph, x, *values]]), expected)


@pytest.mark.mostly_slow("GIN max-*", "GraphConv-*", "types-both")
@pytest.mark.parametrize("how", ["whole", "by layer", "both"])
@pytest.mark.parametrize("layer", LAYERS)
def test_checkpoints(layer: str, how: str, multigraph: Any) -> None:
    """Over several epochs, with several forwards before their backwards, forgotten or not."""
    make, kind = LAYERS[layer]
    by_layer = run if how == "whole" else not_reentrant
    whole = run if how == "by layer" else not_reentrant
    plain = next(graphs(multigraph, layer))
    for graph in graphs(multigraph, layer):
        stock = Net(make, run).double()
        x = torch.randn(NODES, WIDTH, dtype=torch.float64)
        inputs = [[graph, x, *values_of(graph, kind, seed % 2)] for seed in range(3)]
        try:
            for _ in range(3):
                stocks = [[plain, *each[1:]] for each in inputs]
                gradients(Net(make, by_layer).double(), whole, stocks)
        except RuntimeError as error:
            pytest.skip(f"stock fails: {error}")
        for forgets in (False, True):
            fast = hp.accelerate(Net(make, by_layer).double())
            fast.load_state_dict(stock.state_dict())
            for _ in range(3):
                expected = gradients(stock, run, inputs)
                fast.zero_grad()
                losses = [whole(fast, *each).sin().sum() for each in inputs]
                if forgets:
                    hp.forget(fast)
                for loss in losses[1:] + losses[:1]:
                    loss.backward()
                found = [p.grad for p in fast.parameters() if p.grad is not None]
                close([*(loss.detach() for loss in losses), *found], expected)


def test_swapped_and_forgotten(multigraph: Any) -> None:
    make, kind = LAYERS["weights"]
    model, plain = hp.accelerate(Net(make, run).double()), multigraph()
    graph, x = ToHAG()(plain), torch.randn(NODES, WIDTH, dtype=torch.float64)
    values = values_of(plain, kind, 0)
    for each in (plain, graph):
        for _ in range(3):
            model(each, x, *values)
    session = next(iter(model._forward_pre_hooks.values()))
    assert session.num_graphs == 1
    assert len(graph._hag_relations[0].memory) > 0
    torch.utils.swap_tensors(values[0], values[0].clone())
    hp.forget(model)
    assert session.num_graphs == 0
    assert len(graph._hag_relations[0].memory) == 0
