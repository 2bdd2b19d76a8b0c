"""However a model is called, a graph that comes back gets its HAG, and a sampled batch does not."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch_geometric import nn as pyg
from torch_geometric.nn import models

from hag_plugin.limits import limits as in_force
from hag_plugin.pyg import accelerate
from hag_plugin.pyg.model.session import Session
from hag_plugin.testing import limits

NODES, WIDTH = 20, 6


@pytest.fixture(autouse=True)
def _every_call() -> Iterator[None]:
    with limits(few_messages=0):
        yield


class Model(nn.Module):
    """Layers, and ways to call them."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(WIDTH, WIDTH)
        self.convs = nn.ModuleList([pyg.SAGEConv(WIDTH, WIDTH), pyg.GCNConv(WIDTH, WIDTH)])
        self.last = pyg.LGConv()

    def embed(self, x: Tensor, edge_index: Any) -> Tensor:
        for conv in self.convs:
            x = conv(x, edge_index).relu()
        return x

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        return self.last(self.embed(x, edge_index), edge_index)

    def training_step(self, x: Tensor, edge_index: Any) -> Tensor:
        """The last layer has no parameters, nor the same features in each step."""
        return self.last(self.before(x).relu(), edge_index)


def edges(seed: int = 0) -> Tensor:
    return torch.randint(NODES, (2, 80), generator=torch.Generator().manual_seed(seed))


def features() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(NODES, WIDTH, dtype=torch.float64, generator=generator)


def sessions_of(model: nn.Module) -> list[Session]:
    found = (part.__dict__.get("_hag_session") for part in model.modules())
    return list({id(session): session for session in found if session is not None}.values())


def num_hags(model: nn.Module) -> int:
    return sum(session.num_hags for session in sessions_of(model))


WAYS: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor, Tensor], Tensor]]] = {
    "forward": (Model, lambda model, x, edges: model(x, edges)),
    "forward itself": (Model, lambda model, x, edges: model.forward(x, edges)),
    "method": (Model, lambda model, x, edges: model.embed(x, edges)),
    "step": (Model, lambda model, x, edges: model.training_step(x, edges)),
    "layer": (Model, lambda model, x, edges: model.convs[0](x, edges)),
    "GAE": (
        lambda: pyg.GAE(models.GCN(WIDTH, WIDTH, 2, 4)),
        lambda model, x, edges: model.encode(x, edges),
    ),
    "LightGCN": (
        lambda: models.LightGCN(NODES, WIDTH, 2),
        lambda model, x, edges: model.get_embedding(edges),
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_training_brings_a_graph_back(name: str) -> None:
    """Steps with the optimizer: as stock's, with a HAG from the second on."""
    make, call = WAYS[name]
    stock = make().double()
    ours = accelerate(copy.deepcopy(stock))
    outputs: list[list[Tensor]] = []
    for model in (stock, ours):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x, edge_index, found = features(), edges(), []
        for _ in range(3):
            optimizer.zero_grad()
            leaf = x.clone().requires_grad_()
            y = call(model, leaf, edge_index)
            y.square().sum().backward()
            optimizer.step()
            found.append(y)
            if model is ours and len(found) == 1:
                assert num_hags(model) == 0  # although several layers met it
        outputs.append(found)
    for a, b in zip(*outputs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert num_hags(ours) == 1


@pytest.mark.parametrize("name", sorted(WAYS.keys() - {"step"}))
def test_the_same_features_bring_a_graph_back(name: str) -> None:
    """Inference, where no parameter changes."""
    make, call = WAYS[name]
    model, x, edge_index = accelerate(make().double()).eval(), features(), edges()
    with torch.no_grad():
        first = call(model, x, edge_index)
        assert num_hags(model) == 0
        torch.testing.assert_close(call(model, x, edge_index), first)
    assert num_hags(model) == 1


def test_the_same_labels_bring_a_graph_back() -> None:
    """A layer without parameters, whose features have another name."""
    model = accelerate(nn.ModuleList([pyg.LabelPropagation(2, 0.5)]))
    y, edge_index = torch.arange(NODES) % 3, edges()
    first = model[0](y, edge_index)
    assert num_hags(model) == 0
    torch.testing.assert_close(model[0](y, edge_index), first)
    assert num_hags(model) == 1


@pytest.mark.parametrize("name", WAYS)
def test_sampled_batches_are_never_searched(name: str) -> None:
    make, call = WAYS[name]
    model = accelerate(make().double())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [edges(seed) for seed in range(in_force.loop_calls + 2)]
    for edge_index in batches:
        call(model, features(), edge_index).sum().backward()
        optimizer.step()
    assert num_hags(model) == 0


def test_a_loop_with_shared_weights_is_one_occasion() -> None:
    model = accelerate(Model().double())
    for seed in range(4):
        x, batch = features(), edges(seed)
        for _ in range(in_force.loop_calls):
            x = model.convs[0](x, batch)
    assert num_hags(model) == 0
    model.convs[0](x, batch)  # once more than loops are taken for
    assert num_hags(model) == 1


def test_a_loop_inside_the_forward_is_one_occasion() -> None:
    class Loop(Model):
        def forward(self, x: Tensor, edge_index: Any) -> Tensor:
            for _ in range(in_force.loop_calls + 1):
                x = self.last(x, edge_index)
            return x

    model = accelerate(Loop().double())
    model(features(), batch := edges())
    assert num_hags(model) == 0
    model(features(), batch)
    assert num_hags(model) == 1


def test_parts_of_one_step_do_not_bring_a_graph_back() -> None:
    """An encoder by the model's forward, a decoder's layer after it, on one sampled batch."""
    model = accelerate(Model().double())
    model.decoder = model.convs[1]
    for seed in range(3):
        batch = edges(seed)
        model.decoder(model(features(), batch), batch)
    assert num_hags(model) == 0


def test_a_forward_that_raises_has_ended() -> None:
    model, x, edge_index = accelerate(Model().double()), features(), edges()
    with pytest.raises(RuntimeError):
        model(x[:, :2], edge_index)
    for _ in range(2):
        model.embed(x, edge_index)
    assert num_hags(model) == 1


def test_a_recomputation_is_no_occasion() -> None:
    stock = Model().double()
    ours, edge_index = accelerate(copy.deepcopy(stock)), edges()
    gradients = []
    for model in (ours, stock):
        for step in range(3):
            x = features().requires_grad_()
            y = checkpoint(model.embed, x, edge_index, use_reentrant=False)
            y.square().sum().backward()
            gradients.append(x.grad)
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(0.9)
            assert num_hags(model) == (model is ours and step > 0)
    for a, b in zip(gradients[:3], gradients[3:], strict=True):
        torch.testing.assert_close(a, b)


def test_replicas_in_threads() -> None:
    """As torch.nn.DataParallel makes and runs them, each on a batch of its own."""
    stock = Model().double()
    ours, graphs = accelerate(copy.deepcopy(stock)), [edges(0), edges(1)]
    expected = [stock(features(), each) for each in graphs]

    def replica(module: Any) -> Any:
        twin = module._replicate_for_data_parallel()
        for name, part in module._modules.items():
            twin._modules[name] = replica(part)
        for name, parameter in module._parameters.items():
            twin._parameters[name] = parameter
        return twin

    for step in range(3):
        found: dict[int, Tensor] = {}

        def run(i: int, model: Any, found: dict[int, Tensor] = found) -> None:
            found[i] = model(features(), graphs[i])

        threads = [threading.Thread(target=run, args=(i, replica(ours))) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, y in enumerate(expected):
            torch.testing.assert_close(found[i], y)
        assert num_hags(ours) == (2 if step else 0)


# Models that are made of others -----------------------------------------------------------------

KINDS = [("a", "likes", "a"), ("a", "wrote", "b"), ("b", "by", "a")]


class Homogeneous(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = pyg.SAGEConv((WIDTH, WIDTH), 5)
        self.second = pyg.GraphConv((5, 5), 3)

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)


@pytest.mark.parametrize("first", ["accelerate", "to_hetero"])
def test_to_hetero(first: str) -> None:
    metadata = (["a", "b"], KINDS)
    x = {"a": features(), "b": features().flip(0)}
    graphs = {kind: edges(seed) for seed, kind in enumerate(KINDS)}
    stock = pyg.to_hetero(Homogeneous().double(), metadata)
    if first == "accelerate":
        ours = pyg.to_hetero(accelerate(Homogeneous().double()), metadata)
        ours.load_state_dict(stock.state_dict())
    else:
        ours = accelerate(copy.deepcopy(stock))
    expected = stock(x, graphs)
    for _ in range(3):
        for kind, y in ours(x, graphs).items():
            torch.testing.assert_close(y, expected[kind])
    assert num_hags(ours) >= len(KINDS)
    hags = {id(hag) for s in sessions_of(ours) for hag in s.graphs.values()}
    assert len(hags) == len(KINDS)  # one for all layers
    ran = [part._hag_calls.counts for part in ours.modules() if hasattr(part, "_hag_calls")]
    assert len(ran) == 2 * len(KINDS)
    assert all("stock" not in counts and sum(counts.values()) > 2 for counts in ran)


def test_sequential() -> None:
    names = "x, edge_index"
    parts = [
        (pyg.GCNConv(WIDTH, WIDTH), f"{names} -> x"), nn.ReLU(),
        (pyg.SAGEConv(WIDTH, 3), f"{names} -> x"),
    ]  # fmt: skip
    stock = pyg.Sequential(names, parts).double()
    ours, edge_index = accelerate(copy.deepcopy(stock)), edges()
    for _ in range(3):
        torch.testing.assert_close(ours(features(), edge_index), stock(features(), edge_index))
    assert num_hags(ours) == 1
