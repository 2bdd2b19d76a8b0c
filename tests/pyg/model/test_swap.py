"""What accelerate does to a module, and that restore undoes it."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch_geometric.nn import (
    DirGNNConv,
    GATConv,
    GCNConv,
    GINConv,
    HeteroConv,
    SAGEConv,
    Sequential,
)
from torch_geometric.nn.models import GIN, GraphSAGE

import hag_plugin as hp
from hag_plugin.pyg import accelerate, explain, restore
from hag_plugin.testing import limits


class Net(nn.Module):
    """Two layers of different kinds and one without a recipe."""

    def __init__(self) -> None:
        super().__init__()
        self.first = GCNConv(4, 8)
        self.second = SAGEConv(8, 8, aggr="max")
        self.third = GATConv(8, 3)

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        x = self.first(x, edge_index).relu()
        x = self.second(x, edge_index).relu()
        return self.third(x, edge_index)


@pytest.fixture
def setup(awkward: Any) -> tuple[nn.Module, Tensor, Tensor, hp.HAG]:
    net = Net().double()
    x = torch.randn(awkward.num_src, 4, dtype=torch.float64)
    hag = hp.build_hag(awkward.edge_index, num_nodes=awkward.num_src)
    return net, x, awkward.edge_index, hag


def test_module_stays_itself(setup: Any) -> None:
    net, x, edge_index, hag = setup
    keys, expected = list(net.state_dict()), net(x, edge_index)
    assert accelerate(net) is net
    assert list(net.state_dict()) == keys
    assert isinstance(net.first, GCNConv)
    assert type(net.first) is not GCNConv
    assert type(net.first) is type(accelerate(GCNConv(4, 8)))
    torch.testing.assert_close(net(x, hag), expected)
    assert GCNConv.propagate is not type(net.first).propagate


def test_restore_leaves_nothing(setup: Any) -> None:
    net, x, edge_index, hag = setup
    before = {name: set(module.__dict__) for name, module in net.named_modules()}
    expected = net(x, edge_index)
    accelerate(accelerate(net))
    for _ in range(3):
        net(x, edge_index)
    net.first.explain = True
    net.first.explain = False
    assert restore(net) is net
    assert [type(m) for m in (net.first, net.second, net.third)] == [GCNConv, SAGEConv, GATConv]
    assert {name: set(module.__dict__) for name, module in net.named_modules()} == before
    assert not net._forward_pre_hooks
    assert torch.equal(net(x, edge_index), expected)
    with pytest.raises(Exception):  # noqa: B017, PT011  (stock's own words)
        net(x, hag)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(setup: Any, clone: Any) -> None:
    net, x, edge_index, hag = setup
    expected = net(x, edge_index)
    accelerate(net)
    net(x, edge_index), net(x, edge_index)
    twin = clone(net)
    assert type(twin.first) is type(net.first)
    session = twin.first._hag_session
    assert session is twin.second._hag_session is next(iter(twin._forward_pre_hooks.values()))
    assert session is not net.first._hag_session
    assert session.num_hags == 0
    for edges in (hag, edge_index, edge_index):
        torch.testing.assert_close(twin(x, edges), expected)
    assert session.num_hags == 1
    assert torch.equal(restore(twin)(x, edge_index), expected)


def test_unpickles_in_a_fresh_process(setup: Any, tmp_path: Path) -> None:
    """Where PyG has not generated any code for the stock class yet."""
    _, x, edge_index, hag = setup
    conv = accelerate(SAGEConv(4, 3).double())
    torch.save((conv, x, edge_index, hag, conv(x, hag)), tmp_path / "all.pt")
    code = f"""
import torch
conv, x, edge_index, hag, y = torch.load({str(tmp_path / "all.pt")!r}, weights_only=False)
assert torch.allclose(conv(x, hag), y)
for _ in range(2):
    assert torch.allclose(conv(x, edge_index), y)
assert type(conv).__mro__[1].__name__ == "SAGEConv"
assert "propagate" in type(conv).__mro__[1].__dict__  # the generated one
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_explain_reaches_stock(setup: Any) -> None:
    _, x, edge_index, hag = setup
    stock = SAGEConv(4, 2).double()
    conv = accelerate(copy.deepcopy(stock))
    mask = torch.rand(edge_index.shape[1], dtype=torch.float64)
    outputs = []
    for layer in (stock, conv):
        layer(x, edge_index)
        layer.explain = True
        layer._edge_mask = mask
        outputs.append([layer(x, edge_index) for _ in range(3)][-1])
        layer.explain = False
        outputs.append(layer(x, edge_index))
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.allclose(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[1], outputs[3])
    calls = count_stock_calls(conv)
    torch.testing.assert_close(conv(x, hag), outputs[1])
    assert calls == []


def count_stock_calls(conv: nn.Module) -> list[int]:
    """Grows by one with each call of stock's aggregation module."""
    calls: list[int] = []
    forward = conv.aggr_module.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return forward(*args, **kwargs)

    conv.aggr_module.forward = counted  # a hook would have stock run
    return calls


@pytest.mark.parametrize("where", ["propagate", "message", "aggregate"])
def test_users_hooks_fire(setup: Any, where: str) -> None:
    _, x, edge_index, hag = setup
    stock = SAGEConv(4, 3).double()
    conv = accelerate(copy.deepcopy(stock))
    conv(x, edge_index), conv(x, edge_index)
    calls: list[int] = []
    pre = getattr(conv, f"register_{where}_forward_pre_hook")(lambda *_: calls.append(1))
    handle = getattr(conv, f"register_{where}_forward_hook")(lambda *_: calls.append(2))
    for edges in (edge_index, hag):
        torch.testing.assert_close(conv(x, edges), stock(x, edge_index))
    assert calls == [1, 2, 1, 2]
    assert "hooks" in explain(conv)[0].reason
    pre.remove(), handle.remove()
    conv(x, hag)
    assert len(calls) == 4
    assert explain(conv)[0].accelerated


def test_recipe_is_used(setup: Any) -> None:
    net, x, edge_index, hag = setup
    accelerate(net)
    calls = [count_stock_calls(net.first), count_stock_calls(net.second)]
    net(x, hag)
    assert calls == [[], []]
    with limits(passing_gain=float("inf")):  # stock, when it is met first
        net(x, edge_index)
    assert calls == [[1], [1]]
    net(x, edge_index), net(x, edge_index.clone())
    assert calls == [[1], [1]]


def test_explain_table(setup: Any) -> None:
    net, *_ = setup
    assert [row.accelerated for row in explain(net)] == [False, False, False]
    assert "call accelerate" in explain(net)[0].reason
    rows = explain(accelerate(net))
    assert [(r.name, r.layer, r.accelerated) for r in rows] == [
        ("first", "GCNConv", True),
        ("second", "SAGEConv", True),
        ("third", "GATConv", True),
    ]
    assert rows[0].aggregates == "sum over D^-1/2 (A with one loop a node) D^-1/2"
    assert rows[1].aggregates == "max over A"
    assert "edge_weight" in rows[0].reason
    head = "layer class HAG aggregates calls so far note"
    assert " ".join(str(rows).splitlines()[0].split()) == head


def test_subclasses_of_known_layers_run_stock(setup: Any) -> None:
    class Mine(SAGEConv):
        def message(self, x_j: Tensor) -> Tensor:
            return 2 * x_j

    _, x, edge_index, hag = setup
    stock = Mine(4, 3).double()
    conv = accelerate(copy.deepcopy(stock))
    assert "subclass of SAGEConv" in explain(conv)[0].reason
    for edges in (edge_index, edge_index, hag):
        torch.testing.assert_close(conv(x, edges), stock(x, edge_index))


def test_message_replaced_on_the_instance(setup: Any) -> None:
    _, x, edge_index, hag = setup
    conv = accelerate(SAGEConv(4, 3).double())
    expected = conv(x, edge_index)
    conv.message = lambda x_j: 2 * x_j
    assert not explain(conv)[0].accelerated
    assert not torch.allclose(conv(x, edge_index), expected)
    torch.testing.assert_close(conv(x, hag), conv(x, edge_index))


def test_models_and_wrappers(setup: Any) -> None:
    _, x, edge_index, hag = setup
    n = len(x)
    models = [
        GIN(4, 8, 2),
        GraphSAGE(4, 8, 2, aggr="mean"),
        DirGNNConv(GCNConv(4, 8)),
        DirGNNConv(SAGEConv(4, 8)),
        Sequential(
            "x, e", [(GCNConv(4, 8), "x, e -> x"), nn.ReLU(), (SAGEConv(8, 2), "x, e -> x")]
        ),
    ]
    for model in models:
        model = model.double().eval()
        expected = model(x, edge_index)
        accelerate(model)
        for edges in (hag, edge_index, edge_index):
            torch.testing.assert_close(model(x, edges), expected)
    hetero = HeteroConv({("a", "to", "a"): GCNConv(4, 3), ("a", "to", "b"): SAGEConv(4, 3)})
    hetero = hetero.double()
    edges = {("a", "to", "a"): edge_index, ("a", "to", "b"): edge_index[:, :50]}
    features = {"a": x, "b": torch.randn(n, 4, dtype=torch.float64)}
    expected = hetero(features, edges)
    handles = {kind: hp.build_hag(e, num_nodes=n) for kind, e in edges.items()}
    accelerate(hetero)
    for given in (handles, edges, edges):
        torch.testing.assert_close(hetero(features, given), expected)


def test_lazy_layers(setup: Any) -> None:
    _, x, edge_index, hag = setup
    conv = accelerate(SAGEConv((-1, -1), 3)).double()
    y = conv(x, hag)
    torch.testing.assert_close(restore(conv)(x, edge_index), y)


def test_what_is_not_a_module() -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, got a int"):
        accelerate(3)  # type: ignore[type-var]
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        restore("net")  # type: ignore[type-var]
    with pytest.warns(UserWarning, match="no PyG message passing layer"):
        accelerate(nn.Linear(2, 2))


@pytest.mark.slow
def test_compile_fullgraph() -> None:
    """One graph, and few compilations for HAGs of many sizes."""
    torch._dynamo.reset()
    net = nn.ModuleList([GCNConv(4, 8), SAGEConv(8, 8), GINConv(nn.Linear(8, 3))])

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = net

        def forward(self, x: Tensor, edges: Any) -> Tensor:
            for layer in self.layers:
                x = layer(x, edges)
            return x

    stock = Stack().double()
    accelerated = accelerate(copy.deepcopy(stock))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(accelerated, backend=counter, fullgraph=True)
    for size in (40, 55, 70, 31, 90):
        edge_index = torch.randint(size, (2, 4 * size))
        hag = hp.build_hag(edge_index, num_nodes=size)
        x = torch.randn(size, 4, dtype=torch.float64)
        ours = compiled(x, hag)
        torch.testing.assert_close(ours, stock(x, edge_index))
        ours.sum().backward()
    assert counter.frame_count <= 2
    edge_index = torch.randint(20, (2, 90))  # plain tensors run stock inside compiled code
    x = torch.randn(20, 4, dtype=torch.float64)
    plain = torch.compile(accelerated, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(plain(x, edge_index), stock(x, edge_index))
    assert accelerated.layers[0]._hag_session.num_hags == 0
