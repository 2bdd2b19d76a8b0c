"""How a model is called with its data: as the user says, or with what its forward requires."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import nn as pyg
from torch_geometric.data import Data

import hag_plugin as hp
from hag_plugin.parallel import OpGraph
from hag_plugin.parallel.graphs.stats import GraphStats
from hag_plugin.parallel.model.opgraph import Op
from hag_plugin.parallel.model.trace import trace

from ..models import CLASSES, FEATURES
from ..run_ranks import run_threads
from .test_models import data as plain_data


def data() -> Data:
    """With everything that a layer might take."""
    found, generator = plain_data(), torch.Generator().manual_seed(5)
    found.edge_weight = torch.rand(found.num_edges, generator=generator, dtype=torch.float64)
    found.edge_attr = torch.rand(found.num_edges, 3, generator=generator, dtype=torch.float64)
    found.batch = torch.zeros(found.num_nodes, dtype=torch.int64)
    found.scale = torch.tensor(3.0, dtype=torch.float64)
    return found


class Net(nn.Module):
    """It can be called in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = pyg.GCNConv(FEATURES, 6), nn.Linear(6, CLASSES)
        self.norm = pyg.GraphNorm(6)

    def encode(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        return F.relu(self.conv(x, edge_index, edge_weight))

    def again(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self(x, edge_index, times=2.0)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_weight: Tensor | None = None,
        batch: Tensor | None = None,
        times: float = 1.0,
    ) -> Tensor:
        return times * self.last(self.norm(self.encode(x, edge_index, edge_weight), batch))


Call = Callable[[Any, Any], Tensor]
CALLS: dict[str, Call | None] = {
    "required": None,
    "required, told": lambda m, d: m(d.x, d.edge_index),
    "by name": lambda m, d: m(x=d.x, edge_index=d.edge_index),
    "weighted": lambda m, d: m(d.x, d.edge_index, d.edge_weight),
    "other edges": lambda m, d: m(d.x, d.edge_index.flip(0)),
    "other features": lambda m, d: m(2 * d.x, d.edge_index),
    "part of it": lambda m, d: m.encode(d.x, d.edge_index),
    "parts of it": lambda m, d: m.last(m.encode(d.x, d.edge_index, d.edge_weight)),
    "it calls itself": lambda m, d: m.again(d.x, d.edge_index),
    "made of its output": lambda m, d: m(d.x, d.edge_index).log_softmax(dim=-1),
}


@pytest.mark.parametrize("name", CALLS)
def test_it_runs_as_it_is_called(name: str) -> None:
    torch.manual_seed(0)
    model, given, call = Net().double(), data(), CALLS[name]
    expected = (call or CALLS["required, told"])(model, given)  # type: ignore[misc]
    expected.square().mean().backward()
    plan = hp.parallel.plan(model, given, "cpu2", hag="off", call=call)

    def case(rank: int) -> tuple[Tensor, Tensor, list[Any]]:
        ours = hp.parallel.parallelize(model, given, plan, call=call)
        out = ours()
        ours.parallel.mean(out.square()).backward()
        grads = [None if p.grad is None else p.grad.full_tensor() for p in ours.parameters()]
        other = ours(ours.parallel.share(given))
        return ours.parallel.gather(out), ours.parallel.gather(other), grads

    for out, other, grads in run_threads(2, case):
        torch.testing.assert_close([out, other], [expected.detach()] * 2, rtol=1e-10, atol=1e-10)
        wanted = [p.grad for p in model.parameters()]
        torch.testing.assert_close(grads, wanted, rtol=1e-10, atol=1e-10)


def test_what_has_a_default_is_left_at_it() -> None:
    found = trace(Net().double(), data(), hag=False)
    assert list(found.graphs) == ["A+I"]  # without weights
    assert [op.kind for op in found.ops if op.name == "norm"] == ["normalisation"]  # no batch
    weighted = trace(Net().double(), data(), hag=False, call=CALLS["weighted"])
    assert "A+I with weights" in weighted.graphs
    assert weighted.fingerprint != found.fingerprint


def test_a_plan_for_another_call_is_refused() -> None:
    model, given = Net().double(), data()
    plan = hp.parallel.plan(model, given, "cpu2", hag="off", call=CALLS["part of it"])

    def case(rank: int) -> str:
        with pytest.raises(ValueError, match="another model: they differ in"):
            hp.parallel.parallelize(model, given, plan)
        hp.parallel.parallelize(model, given, plan, call=CALLS["part of it"])
        return "refused"

    assert run_threads(2, case) == ["refused"] * 2


def test_hooks_of_the_model_are_called_once() -> None:
    given, call = data(), CALLS["weighted"]
    model = Net().double()
    expected = model(given.x, given.edge_index, given.edge_weight)
    model.register_forward_hook(lambda module, args, out: 2 * out)
    plan = hp.parallel.plan(model, given, "cpu2", hag="off", call=call)

    def case(rank: int) -> Tensor:
        ours = hp.parallel.parallelize(model, given, plan, call=call)
        return ours.parallel.gather(ours())

    for out in run_threads(2, case):
        torch.testing.assert_close(out, 2 * expected.detach(), rtol=1e-10, atol=1e-10)


class Data_(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = pyg.SAGEConv(FEATURES, CLASSES)

    def forward(self, batch_of_graphs: Data, scaled: bool = False) -> Tensor:
        out = self.conv(batch_of_graphs.x, batch_of_graphs.edge_index)
        return out * batch_of_graphs.scale if scaled else out


class Positional(Data_):
    def forward(self, x: Tensor, edge_index: Tensor, /, *, scale: Tensor) -> Tensor:
        return self.conv(x, edge_index) * scale


class Anything(Data_):
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.conv(*args, **kwargs)


class Wants(Data_):
    def forward(self, x: Tensor, edge_index: Tensor, positions: Tensor) -> Tensor:
        return self.conv(x, edge_index) + positions


@pytest.mark.parametrize("make", [Data_, Positional])
def test_plain_signatures(make: type[nn.Module]) -> None:
    names = [op.name for op in trace(make().double(), data(), hag=False).ops]
    assert names == ["x", "conv", *(["mul"] if make is Positional else []), "loss"]


def test_a_layer_is_a_model() -> None:
    found = trace(pyg.GCNConv(FEATURES, CLASSES).double(), data(), hag=False)
    assert [(op.kind, op.graph) for op in found.ops[1:-1]] == [("convolution", "A+I")]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Wants, r"Wants.forward takes 'positions', which is not in the data; .* call=lambda"),
        (Anything, r"Anything.forward requires no argument by name; .* call=lambda"),
    ],
)
def test_what_a_forward_requires_is_in_the_data(make: type[nn.Module], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        trace(make().double(), data(), hag=False)
    found = trace(make().double(), data(), hag=False, call=lambda m, d: m.conv(d.x, d.edge_index))
    assert [op.name for op in found.ops] == ["x", "conv", "loss"]


def test_a_graph_known_by_its_size_is_called_too() -> None:
    stats = GraphStats.assumed(1000, 20_000)
    found = trace(Net(), stats, features=FEATURES, call=lambda m, d: m.encode(d.x, d.edge_index))
    assert [op.name for op in found.ops] == ["x", "conv", "relu", "loss"]


def test_calls_are_functions_of_models() -> None:
    for function in (trace, hp.parallel.plan):
        with pytest.raises(TypeError, match="call is 'encode'; expected a function"):
            function(Net(), data(), call="encode")  # type: ignore[arg-type]
    ops = [Op("x", "input", width=4), Op("loss", "loss", (0,), 4)]
    graph = OpGraph.of(ops, {"A": GraphStats.assumed(10, 10)})
    with pytest.raises(ValueError, match="call= is of a model"):
        hp.parallel.plan(graph, topology="cpu2", call=CALLS["weighted"])


def test_dgl() -> None:
    dgl = pytest.importorskip("dgl", reason="DGL is not installed")
    from dgl.nn.pytorch import GraphConv

    given = data()
    graph = dgl.graph(tuple(given.edge_index), num_nodes=given.num_nodes)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = GraphConv(FEATURES, CLASSES, allow_zero_in_degree=True)

        def encode(self, graph: Any, x: Tensor, times: float) -> Tensor:
            return times * self.conv(graph, x)

    found = trace(Two().double(), (graph, given.x), hag=False, call=lambda m, d: m.encode(*d, 2.0))
    assert [op.name for op in found.ops] == ["x", "conv", "mul", "loss"]
