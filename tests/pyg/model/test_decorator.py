"""hag_layer: users' own layers."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, MessagePassing, SAGEConv
from torch_geometric.utils import add_self_loops

import hag_plugin as hp
from hag_plugin.pyg import accelerate, explain, hag_layer, restore


@hag_layer
class Gate(MessagePassing):
    """Weights each source by a gate of its own; updates with the node's features."""

    def __init__(self, aggr: Any = "mean", **kwargs: Any) -> None:
        super().__init__(aggr=aggr, **kwargs)
        self.lin = nn.Linear(4, 4)
        self.gate = nn.Linear(4, 1)
        self.messages = 0

    def forward(self, x: Any, edge_index: Any) -> Tensor:
        pair = x if isinstance(x, tuple) else (x, x)
        gate = tuple(self.gate(f) for f in pair)
        return self.propagate(edge_index, x=pair, gate=gate, root=self.lin(pair[1]))

    def message(self, x_j: Tensor, gate_j: Tensor) -> Tensor:
        self.messages = x_j.shape[0]
        return gate_j.sigmoid() * self.lin(x_j).relu()

    def update(self, inputs: Tensor, root: Tensor) -> Tensor:
        return inputs + root


class Wider(Gate):
    """A subclass of a decorated class, with a message of its own."""

    def message(self, x_j: Tensor) -> Tensor:
        self.messages = x_j.shape[0]
        return torch.cat([x_j, x_j.square()], dim=-1)

    def update(self, inputs: Tensor) -> Tensor:
        return inputs


class Plain(Gate):
    """A subclass that changes nothing."""


@hag_layer
class Inherited(MessagePassing):
    """Takes message, aggregate and update as they are; adds loops in its forward."""

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        if isinstance(edge_index, Tensor):
            edge_index, _ = add_self_loops(edge_index, num_nodes=len(x))
        return self.propagate(edge_index, x=x)


def problem(graph: Any) -> tuple[Tensor, Tensor, hp.HAG]:
    x = torch.randn(graph.num_src, 4, dtype=torch.float64)
    return x, graph.edge_index, hp.build_hag(graph.edge_index, num_nodes=graph.num_src)


@pytest.mark.parametrize("cls", [Gate, Wider, Plain])
@pytest.mark.parametrize("aggr", ["sum", "mean", "max"])
@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
def test_equals_stock(cls: Any, aggr: str, flow: str, awkward: Any) -> None:
    x, edge_index, hag = problem(awkward)
    conv = cls(aggr, flow=flow).double()
    results = []
    for edges in (edge_index, hag):
        conv.zero_grad()
        leaf = x.clone().requires_grad_()
        y = conv(leaf, edges)
        y.square().sum().backward()
        results.append([y, leaf.grad, *(p.grad for p in conv.parameters() if p.grad is not None)])
    for stock, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, stock, rtol=1e-11, atol=1e-11)
    assert conv.messages == len(x)


def test_message_runs_once_a_node(awkward: Any) -> None:
    x, edge_index, hag = problem(awkward)
    conv = Gate().double()
    conv(x, edge_index)
    assert conv.messages == edge_index.shape[1]
    conv(x, hag)
    assert conv.messages == len(x)


def test_bipartite() -> None:
    edge_index = torch.stack([torch.randint(9, (30,)), torch.randint(5, (30,))])
    x = (torch.randn(9, 4).double(), torch.randn(5, 4).double())
    conv = Gate().double()
    hag = hp.build_hag(edge_index, size=(9, 5))
    torch.testing.assert_close(conv(x, hag), conv(x, edge_index))


def test_tensors_under_accelerate(awkward: Any) -> None:
    x, edge_index, _ = problem(awkward)
    conv = Gate().double()
    model = accelerate(nn.ModuleDict({"conv": conv}))
    assert model["conv"] is conv
    assert type(conv) is Gate
    model.forward = conv.forward
    expected = conv(x, edge_index)
    for _ in range(2):
        torch.testing.assert_close(model(x, edge_index), expected)
    assert conv._hag_session.num_hags == 1
    assert conv.messages == len(x)
    restore(model)
    conv(x, edge_index)
    assert conv.messages == edge_index.shape[1]


def test_forward_that_changes_edges(awkward: Any) -> None:
    """Each forward makes a new edge index: it never comes back, and stock runs."""
    x, edge_index, _hag = problem(awkward)
    conv = accelerate(Inherited())
    results = [conv(x, edge_index) for _ in range(3)]
    torch.testing.assert_close(results[0], results[2])
    loops = add_self_loops(edge_index, num_nodes=len(x))[0]
    torch.testing.assert_close(conv(x, hp.build_hag(loops, num_nodes=len(x))), results[0])


def test_other_aggregations_and_explain(awkward: Any) -> None:
    x, edge_index, hag = problem(awkward)
    conv = Gate("median").double()
    torch.testing.assert_close(conv(x, hag), conv(x, edge_index))
    assert not explain(conv)[0].accelerated
    assert explain(Gate())[0].accelerated
    assert explain(Wider("max"))[0].aggregates == "max over A"


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(clone: Any, awkward: Any) -> None:
    x, edge_index, hag = problem(awkward)
    conv = Plain().double()
    expected = conv(x, edge_index)
    twin = clone(conv)
    torch.testing.assert_close(twin(x, hag), expected)
    torch.testing.assert_close(twin(x, edge_index), expected)


def test_explain_mode(awkward: Any) -> None:
    x, edge_index, hag = problem(awkward)
    conv = Gate().double()
    expected = conv(x, edge_index)
    conv.explain = True
    conv._edge_mask = torch.full((edge_index.shape[1],), 40.0, dtype=torch.float64)
    torch.testing.assert_close(conv(x, edge_index), expected)
    assert conv.messages == edge_index.shape[1]
    conv.explain = False
    conv(x, hag)
    assert conv.messages == len(x)


def test_subclass_of_gcn_keeps_its_recipe(awkward: Any) -> None:
    @hag_layer
    class Doubled(GCNConv):
        def forward(self, x: Tensor, edge_index: Any) -> Tensor:
            return 2 * super().forward(x, edge_index)

    x, edge_index, hag = problem(awkward)
    conv = Doubled(4, 2).double()
    torch.testing.assert_close(conv(x, hag), conv(x, edge_index))


def test_compile(awkward: Any) -> None:
    x, edge_index, hag = problem(awkward)
    conv = Gate().double()
    expected = conv(x, edge_index)
    torch._dynamo.reset()
    compiled = torch.compile(conv, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, hag), expected)
    torch.testing.assert_close(compiled(x, edge_index), expected)


def declared(**methods: Any) -> type:
    return type("Declared", (MessagePassing,), methods)


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ({"message": lambda self, x_i, x_j: x_j - x_i}, "takes 'x_i'"),
        ({"message": lambda self, x_j, edge_weight: x_j * edge_weight}, "takes 'edge_weight'"),
        ({"message": lambda self, x_j, index: x_j}, "takes 'index'"),
        ({"message": lambda self, x_j, norm: x_j}, "takes 'norm'"),
        ({"message": lambda self, x_j, size_j: x_j}, "takes 'size_j'"),
        ({"aggregate": lambda self, inputs, index: inputs}, "own aggregate"),
        ({"propagate": lambda self, edge_index, x: x}, "own propagate"),
        ({"update": lambda self, inputs, x_i: inputs}, "takes 'x_i'"),
    ],
)
def test_what_is_refused(methods: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        hag_layer(declared(**methods))


def test_what_is_no_layer_of_ones_own() -> None:
    with pytest.raises(TypeError, match="subclass of MessagePassing"):
        hag_layer(nn.Linear)
    with pytest.raises(TypeError, match="accelerate knows it"):
        hag_layer(SAGEConv)


def test_subclass_that_breaks_the_declaration() -> None:
    class Broken(Gate):
        def message(self, x_i: Tensor, x_j: Tensor) -> Tensor:
            return x_j - x_i

    with pytest.raises(TypeError, match=r"Broken\.message takes 'x_i'"):
        Broken()


def test_self_check_finds_a_false_declaration(awkward: Any) -> None:
    @hag_layer
    class Mixes(MessagePassing):
        def forward(self, x: Tensor, edge_index: Any) -> Tensor:
            return self.propagate(edge_index, x=x)

        def message(self, x_j: Tensor) -> Tensor:
            return x_j - x_j.mean(dim=0)

    x, edge_index, hag = problem(awkward)
    conv = Mixes()
    conv(x, edge_index)
    with pytest.raises(ValueError, match="differs from the stock computation"):
        conv(x, hag)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_self_check_takes_any_number(value: float, awkward: Any) -> None:
    x, edge_index, hag = problem(awkward)
    x[0, 0] = value
    conv = Gate().double()
    torch.testing.assert_close(conv(x, hag), conv(x, edge_index), equal_nan=True)


def test_self_check_takes_rows_without_numbers(awkward: Any) -> None:
    _, edge_index, hag = problem(awkward)
    x = torch.empty(awkward.num_src, 0)
    assert Inherited()(x, hag).shape == Inherited()(x, edge_index).shape


def test_self_check_leaves_the_random_state(awkward: Any) -> None:
    @hag_layer
    class Noisy(MessagePassing):
        def forward(self, x: Tensor, edge_index: Any) -> Tensor:
            return self.propagate(edge_index, x=x)

        def message(self, x_j: Tensor) -> Tensor:
            return nn.functional.dropout(x_j, training=self.training)

    x, _, hag = problem(awkward)
    state = torch.get_rng_state()
    conv = Noisy().eval()
    conv(x, hag)
    assert torch.equal(torch.get_rng_state(), state)
    assert Noisy().train()(x, hag).shape == x.shape


def test_declared_with_loops_and_a_foreign_aggregation_runs_stock(awkward: Any) -> None:
    """An `edge_index` that came back is no HAG that somebody passed."""

    @hag_layer
    class Mine(GCNConv):
        pass

    conv = accelerate(Mine(4, 3, aggr="median"))
    x = torch.randn(awkward.num_src, 4)
    first = conv(x, awkward.edge_index)
    for _ in range(2):
        torch.testing.assert_close(conv(x, awkward.edge_index), first)
    assert set(explain(conv)[0].calls.counts) == {"stock"}
    with pytest.raises(ValueError, match="a HAG cannot be used here"):
        conv(x, hp.build_hag(awkward.edge_index, num_nodes=awkward.num_src))
