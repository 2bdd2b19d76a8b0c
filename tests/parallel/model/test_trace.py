"""Models become graphs of operations: nothing lost, sizes and gradients right."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import nn as pyg
from torch_geometric.data import Data

from hag_plugin.parallel.graphs.stats import GraphStats
from hag_plugin.parallel.model.trace import trace

from ..models import CLASSES, FEATURES, MODELS, NODES, graph


@pytest.mark.parametrize("name", MODELS)
def test_every_trainable_value_is_in_some_operation(name: str) -> None:
    model = MODELS[name]()
    before = copy.deepcopy(model.state_dict())
    found = trace(model, graph(), hag=False)
    assert sum(op.weights + op.biases for op in found.ops) == sum(
        p.numel() for p in model.parameters()
    )
    assert found.ops[-1].kind == "loss"
    assert found.ops[-1].width == CLASSES
    assert found.nodes == NODES
    for key, value in model.state_dict().items():  # the model itself was not touched
        assert torch.equal(value, before[key])
    model(*[graph()[k] for k in ("x", "edge_index", "edge_type")][: 3 if name == "RGCN" else 2])


@pytest.mark.parametrize("name", MODELS)
def test_widths_are_those_of_a_real_run(name: str) -> None:
    model, data = MODELS[name](), graph()
    seen: dict[str, tuple[int, int]] = {}

    def note(path: str, out: Tensor) -> None:
        seen.setdefault(path, (out.shape[0], out.shape[-1]))

    hooked = copy.deepcopy(model)
    for path, module in hooked.named_modules():
        module.register_forward_hook(lambda m, a, out, path=path: note(path, out))
    arguments = {"x": data.x, "edge_index": data.edge_index}
    if name == "RGCN":
        arguments["edge_type"] = data.edge_type
    hooked(**arguments)
    checked = 0
    for op in trace(model, data, hag=False).ops:
        if op.name in seen and op.layer != "GINConv":  # GINConv's own output is that of its MLP
            assert (NODES, op.width) == seen[op.name]
            checked += 1
    assert checked >= 2


def test_gradients_start_behind_the_first_weights() -> None:
    found = trace(MODELS["GCN"](), graph(), hag=False)
    by_name = {op.name: op for op in found.ops}
    assert not by_name["convs.0"].input_grad
    assert all(op.input_grad for op in found.ops[2:])
    gin = {op.name: op for op in trace(MODELS["GIN"](), graph(), hag=False).ops}
    assert not gin["convs.0"].input_grad
    assert not gin["convs.0.nn.lins.0"].input_grad  # sums of fixed features are fixed
    assert gin["convs.0.nn.lins.1"].input_grad


def test_layers_say_which_graph_they_aggregate_over() -> None:
    data = graph()
    loops = int((data.edge_index[0] == data.edge_index[1]).sum())
    gcn = trace(MODELS["GCN"](), data, hag=False)
    assert list(gcn.graphs) == ["A+I"]
    assert gcn.graphs["A+I"].edges == data.num_edges - loops + NODES or loops == 0
    sage = trace(MODELS["SAGE"](), data, hag=False)
    assert {k: s.edges for k, s in sage.graphs.items()} == {"A": data.num_edges}
    rgcn = trace(MODELS["RGCN"](), data, hag=False)
    [stats] = rgcn.graphs.values()
    assert stats.relation_edges == tuple(torch.bincount(data.edge_type).tolist())


class Handmade(nn.Module):
    """Takes the data object; functions, in-place operations, products with parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = pyg.GATConv(FEATURES, 8, heads=4, residual=True)
        self.weight = nn.Parameter(torch.rand(32, 12))
        self.scale = nn.Parameter(torch.ones(12))

    def forward(self, data: Data) -> Tensor:
        h = F.dropout(data.x, 0.5, training=self.training)
        h = self.conv(h, data.edge_index).relu_()
        h = h @ self.weight
        h = torch.cat([h, h.clone()], dim=-1)
        return h.log_softmax(dim=-1)


def test_what_happens_between_layers_is_seen() -> None:
    found = trace(Handmade(), graph(), hag=False)
    kinds = [(op.name, op.kind, op.inputs, op.width) for op in found.ops]
    assert kinds == [
        ("x", "input", (), FEATURES),
        ("dropout", "elementwise", (0,), FEATURES),
        ("conv", "attention", (1,), 32),
        ("conv.residual", "linear", (1,), 32),
        ("conv.residual_sum", "sum", (2, 3), 32),
        ("relu_", "elementwise", (4,), 32),
        ("matmul", "linear", (5,), 12),
        ("cat", "concatenation", (6,), 24),
        ("log_softmax", "normalisation", (7,), 24),
        ("loss", "loss", (8,), 24),
    ]
    assert found.ops[8].over == "features"


class Stacked(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv(x, edge_index)


class Pair(Stacked):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv(x, edge_index, return_attention_weights=True)[0]


def test_layers_that_are_not_in_the_table_run_as_they_are() -> None:
    for conv, by_edges in (
        (pyg.MixHopConv(FEATURES, 6), False),
        (pyg.GATv2Conv(FEATURES, 6), True),
    ):
        found = trace(Stacked(conv), graph(), hag=False)
        assert [op.kind for op in found.ops] == ["input", "opaque", "loss"]
        assert found.ops[1].weights == sum(p.numel() for p in conv.parameters())
        assert found.ops[1].by_edges == by_edges


def test_layers_of_one_type_of_nodes_are_refused_where_there_are_several() -> None:
    from torch_geometric.data import HeteroData

    data = HeteroData()
    data["paper"].x = torch.rand(4, FEATURES)
    data["paper", "cites", "paper"].edge_index = torch.zeros(2, 3, dtype=torch.int64)
    match = r"'conv' \(GCNConv\) .* by type of node.* a HeteroConv or .* data.to_homogeneous\(\)"
    with pytest.raises(TypeError, match=match):
        trace(Stacked(pyg.GCNConv(FEATURES, 4)), data)
    with pytest.raises(ValueError, match="part is given with a HeteroData"):
        trace(Stacked(pyg.GCNConv(FEATURES, 4)), data, part=lambda parts: [0, 0, 1, 1])


def test_what_cannot_be_traced_is_named() -> None:
    with pytest.raises(TypeError, match=r"'conv' \(GATConv\) .* returns a tuple; .* module around"):
        trace(Pair(pyg.GATConv(FEATURES, 6)), graph())
    with pytest.raises(TypeError, match="run the model once"):
        trace(Stacked(pyg.GCNConv(-1, 4)), graph())
    with pytest.raises(TypeError, match="takes 'edge_type', which is not in the data"):
        trace(
            MODELS["RGCN"](), Data(x=torch.rand(4, FEATURES), edge_index=torch.zeros(2, 1).long())
        )
    with pytest.raises(TypeError, match="pass features="):
        trace(MODELS["GCN"](), GraphStats.assumed(10, 10))


@pytest.mark.slow
def test_a_graph_known_by_its_size_is_enough() -> None:
    stats = GraphStats.assumed(100_000_000, 1_000_000_000)
    found = trace(MODELS["GCN"](), stats, features=FEATURES)
    assert found.nodes == 100_000_000
    assert found.graphs["A+I"] is stats


def test_pooling_makes_one_row_a_graph() -> None:
    class Readout(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = pyg.GCNConv(FEATURES, 12)
            self.lin = nn.Linear(12, 3)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.lin(self.conv(x, edge_index).mean(dim=0, keepdim=True))

    found = trace(Readout(), graph(), hag=False)
    assert [(op.kind, op.rows) for op in found.ops] == [
        ("input", None), ("convolution", None), ("pooling", 1), ("linear", 1), ("loss", 1),
    ]  # fmt: skip


def test_dgl_models() -> None:
    dgl = pytest.importorskip("dgl", reason="DGL is not installed")
    from dgl.nn.pytorch import GraphConv, SAGEConv

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = GraphConv(FEATURES, 32, activation=F.relu)
            self.second = SAGEConv(32, CLASSES, "mean")

        def forward(self, g: object, x: Tensor) -> Tensor:
            return self.second(g, self.first(g, x))

    data = graph()
    model = Net()
    found = trace(model, (dgl.graph(tuple(data.edge_index), num_nodes=NODES), data.x), hag=False)
    assert [op.kind for op in found.ops] == [
        "input", "convolution", "elementwise", "convolution", "loss",
    ]  # fmt: skip
    assert sum(op.weights + op.biases for op in found.ops) == sum(
        p.numel() for p in model.parameters()
    )


def test_accelerated_models_are_traced_alike() -> None:
    import hag_plugin as hp

    model = MODELS["GCN"]()
    plain = trace(model, graph(), hag=False)
    assert trace(hp.accelerate(model), graph(), hag=False).fingerprint == plain.fingerprint


def test_a_real_graph(shared_data: Path) -> None:
    from hag_plugin.data import datasets

    data = datasets.load("Cora", shared_data / "npz")
    assert data.x is not None
    found = trace(pyg.GCN(data.x.shape[1], 64, 2, data.num_classes), data)
    [stats] = found.graphs.values()
    assert (stats.nodes, stats.edges) == (2708, 13264)  # 10,556 edges and a loop a node
    assert stats.hag is not None
