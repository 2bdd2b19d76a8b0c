"""Layers with code of their own in plans: they run as they are written, or are refused by name."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize, spectral_norm
from torch_geometric import nn as pyg
from torch_geometric.nn.conv import gcn_conv
from torch_geometric.utils import dropout_edge, to_undirected

import hag_plugin as hp
from hag_plugin.parallel import UnknownLayerError
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.search.planner import planned

from ..equality import check, space_with
from ..models import CLASSES, FEATURES
from ..run_ranks import run_threads
from .test_models import data


def own_forward(stock: type) -> Callable[..., Tensor]:
    def forward(self: Any, x: Tensor, edge_index: Tensor) -> Tensor:
        return 2 * stock.forward(self, x, edge_index) + 1

    return forward


class Message(pyg.GCNConv):
    def message(self, x_j: Tensor, edge_weight: Any = None) -> Tensor:
        return 2 * x_j


class Update(pyg.SAGEConv):
    def update(self, inputs: Tensor) -> Tensor:
        return 3 * inputs


class Aggregate(pyg.GraphConv):
    def aggregate(self, inputs: Tensor, index: Tensor, dim_size: int) -> Tensor:
        out = inputs.new_zeros(dim_size, inputs.shape[1])
        return out.index_add(0, index, 5 * inputs)


class Forward(pyg.GCNConv):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return 2 * super().forward(x, edge_index) + 1


class Attention(pyg.GATConv):
    def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:
        return 2 * alpha.unsqueeze(-1) * x_j


class Renamed(pyg.SAGEConv):
    """It only sets itself up in its own way."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)


def on_the_instance(inputs: int, outputs: int) -> nn.Module:
    conv = pyg.SAGEConv(inputs, outputs)
    conv.forward = types.MethodType(own_forward(pyg.SAGEConv), conv)
    return conv


OWN: dict[str, Callable[[int, int], nn.Module]] = {
    "message": Message,
    "update": Update,
    "aggregate": Aggregate,
    "forward": Forward,
    "attention": lambda i, o: Attention(i, o, heads=1),
    "on the instance": on_the_instance,
}


class Model(nn.Module):
    """One layer with code of its own between two that have none."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.first, self.conv = pyg.GCNConv(FEATURES, 6), conv
        self.last = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = F.relu(self.first(x, edge_index))
        return self.last(self.conv(h, edge_index).relu())


@pytest.mark.parametrize("name", OWN)
def test_they_run_as_they_are_written(name: str) -> None:
    torch.manual_seed(0)
    model = Model(OWN[name](6, 6)).double()
    kinds = {op.name: op.kind for op in trace(model, data(), hag=False).ops}
    assert kinds["conv"] == "opaque"
    assert kinds["first"] == "convolution"
    check(model, data(), 2)


def test_a_class_whose_method_was_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = gcn_conv.GCNConv.forward
    monkeypatch.setattr(gcn_conv.GCNConv, "forward", lambda *args: 2 * stock(*args))
    found = trace(Model(pyg.SAGEConv(6, 6)).double(), data(), hag=False)
    assert {op.name: op.kind for op in found.ops}["first"] == "opaque"


def test_what_is_only_set_up_otherwise_is_known() -> None:
    found = trace(Model(Renamed(6, 6)).double(), data(), hag=False)
    assert "opaque" not in [op.kind for op in found.ops]


def hooked(inputs: int, outputs: int) -> nn.Module:
    conv = pyg.GCNConv(inputs, outputs)
    conv.register_forward_hook(lambda module, args, out: 2 * out)
    return conv


def hooked_inside(inputs: int, outputs: int) -> nn.Module:
    conv = pyg.GCNConv(inputs, outputs)
    conv.register_message_forward_hook(lambda module, args, out: 2 * out)
    return conv


def parametrized(inputs: int, outputs: int) -> nn.Module:
    conv = pyg.GraphConv(inputs, outputs)
    conv.weight = nn.Parameter(torch.rand(outputs, inputs))
    parametrize.register_parametrization(conv, "weight", nn.Tanh())
    return conv


def normed(inputs: int, outputs: int) -> nn.Module:
    """A hook makes its weight."""
    conv = pyg.GraphConv(inputs, outputs)
    conv.weight = nn.Parameter(torch.rand(outputs, inputs))
    return spectral_norm(conv, "weight")


REFUSED: dict[str, tuple[Callable[[int, int], nn.Module], str]] = {
    "hook": (hooked, r"'conv' \(GCNConv\) has hooks"),
    "hook of PyG's": (hooked_inside, r"'conv' \(GCNConv\) has hooks"),
    "spectral norm": (normed, r"'conv' \(GraphConv\) has hooks"),
    "parametrized": (parametrized, r"'conv' \(ParametrizedGraphConv\) has parametrized weights"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_refused_by_name(name: str) -> None:
    make, words = REFUSED[name]
    with pytest.raises(UnknownLayerError, match=words):
        trace(Model(make(6, 6)).double(), data(), hag=False)


# Edges that a model makes ------------------------------------------------------------------------


class Makes(nn.Module):
    """It runs its layers on edges that it makes of those that it is given."""

    def __init__(self, make: Callable[[Tensor, bool], Tensor], conv: nn.Module) -> None:
        super().__init__()
        self.make, self.conv, self.last = make, conv, nn.Linear(6, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.last(self.conv(x, self.make(edge_index, self.training)).relu())


def dropped(edge_index: Tensor, training: bool) -> Tensor:
    return dropout_edge(edge_index, 0.5, training=training)[0]


CONVS: dict[str, Callable[[], nn.Module]] = {
    "in the table": lambda: pyg.SAGEConv(FEATURES, 6),
    "attention": lambda: pyg.GATConv(FEATURES, 6),
    "whole": lambda: pyg.TAGConv(FEATURES, 6),
}


@pytest.mark.parametrize("name", CONVS)
def test_edges_that_differ_in_each_forward_are_refused(name: str) -> None:
    model = Makes(dropped, CONVS[name]()).double()
    with pytest.raises(UnknownLayerError, match=r"layer 'conv' runs on edges .* anew"):
        trace(model, data(), hag=False)
    check(model.eval(), data(), 2)  # without dropout they are the same


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("make", [lambda e, _: e.flip(0), lambda e, _: to_undirected(e)])
def test_edges_that_are_made_alike_are_followed(name: str, make: Any) -> None:
    check(Makes(make, CONVS[name]()).double(), data(), 2)


@pytest.mark.parametrize("name", CONVS)
def test_edges_that_differ_later_are_refused(name: str) -> None:
    """Planned in the mode in which they do not."""
    model, given = Makes(dropped, CONVS[name]()).double().eval(), data()
    space = space_with(trace(model, given, hag=False), 2, lambda op, config: True)
    plan = planned(space, list(space.cheapest().configs))

    def train(rank: int) -> str:
        found = hp.parallel.parallelize(model, given, plan)
        found()
        with pytest.raises(RuntimeError, match=r"layer 'conv' runs on edges that are in no plan"):
            found.train()()
        return "refused"

    assert run_threads(2, train) == ["refused"] * 2


class Both(nn.Module):
    """One layer on two graphs that its model makes."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv, self.last = conv, nn.Linear(6, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        one, other = self.conv(x, edge_index.flip(0)), self.conv(x, to_undirected(edge_index))
        return self.last((one + other).relu())


@pytest.mark.parametrize("name", CONVS)
def test_one_layer_on_several_graphs(name: str) -> None:
    check(Both(CONVS[name]()).double(), data(), 2, lambda op, config: config.strategy != "heads")
