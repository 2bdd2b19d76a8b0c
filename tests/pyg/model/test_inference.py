"""`inference`: a model's own forward over all nodes, with bounded messages."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch_geometric import nn as pyg
from torch_geometric.data import Data
from torch_geometric.nn import models
from torch_geometric.nn.models.attentive_fp import GATEConv
from torch_geometric.nn.models.schnet import CFConv

import hag_plugin as hp
from hag_plugin.pyg import ToHAG, accelerate, inference
from hag_plugin.pyg.model.inference import ONE_HOP, _cuts
from hag_plugin.pyg.model.session import Session

WIDTH, TYPES = 6, 3
SMALL = 4096  # bytes, so that every graph here takes several blocks


class Residual(nn.Module):
    """Layers of two kinds, one of them twice, and the norm of a whole graph between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = pyg.GATConv(WIDTH, WIDTH), pyg.SAGEConv(WIDTH, WIDTH)
        self.norm, self.last = pyg.GraphNorm(WIDTH), pyg.GCNConv(WIDTH, 3)

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        x = x + self.norm(self.first(x, edge_index))
        for _ in range(2):
            x = nn.functional.dropout(self.again(x, edge_index), 0.5, self.training)
        return self.last(x, edge_index)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "GCN": lambda: models.GCN(WIDTH, 8, 2, 3, dropout=0.5),
    "GraphSAGE": lambda: models.GraphSAGE(WIDTH, 8, 3, 3, jk="cat"),
    "GIN": lambda: models.GIN(WIDTH, 8, 2, 3, norm="batch_norm"),
    "GAT": lambda: models.GAT(WIDTH, 8, 2, 3, heads=2),
    "EdgeCNN": lambda: models.EdgeCNN(WIDTH, 8, 2, 3),
    "residual": Residual,
}


class Watching(TorchDispatchMode):
    """The largest tensor that anything makes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_floating_point():
            self.largest = max(self.largest, out.untyped_storage().nbytes())
        return out


def graph(nodes: int = 60, edges: int = 900) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    found = torch.randint(nodes, (2, edges), generator=generator)
    found[1, : edges // 4] = 7  # a hub, whose edges are more than a block's
    found[:, -1] = 2  # a loop
    return found[:, found[1] != 11]  # one without edges into it


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_forward(name: str) -> None:
    stock, edge_index = MODELS[name]().double(), graph()
    model = accelerate(copy.deepcopy(stock))
    x = torch.randn(60, WIDTH, dtype=torch.float64)
    stock.eval()
    expected = stock(x, edge_index)
    for edges in (edge_index, hp.build_hag(edge_index, num_nodes=60)):
        for memory in (SMALL, 1 << 30):
            for _ in range(2):
                found = inference(model, x, edges, memory=memory, progress=False)
                torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert not found.requires_grad
    assert all(part.training for part in model.modules())
    assert not any("forward" in part.__dict__ for part in model.modules())


class OneLayer(nn.Module):
    """A layer, with further arguments by name."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, edge_index: Any, **arguments: Any) -> Tensor:
        return self.conv(x=x, edge_index=edge_index, **arguments)


class TwoFeatures(OneLayer):
    def forward(self, x: Tensor, edge_index: Any, **arguments: Any) -> Tensor:
        return self.conv(x, x, edge_index)


E = graph().shape[1]
NODE_TYPES = torch.arange(60) % 2
POSITIONS = nn.functional.normalize(torch.linspace(0, 9, 180).sin().view(60, 3).double())
LAYERS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "AGNNConv": (lambda: pyg.AGNNConv(), {}),
    "CGConv": (lambda: pyg.CGConv(WIDTH, 2), {"edge_attr": 2}),
    "FeaStConv": (lambda: pyg.FeaStConv(WIDTH, 4, 2), {}),
    "FiLMConv": (lambda: pyg.FiLMConv(WIDTH, 4), {}),
    "GATConv": (lambda: pyg.GATConv(WIDTH, 4, edge_dim=2), {"edge_attr": 2}),
    "GATv2Conv": (lambda: pyg.GATv2Conv(WIDTH, 4, heads=2), {}),
    "GENConv": (lambda: pyg.GENConv(WIDTH, 4, edge_dim=2, norm="layer"), {"edge_attr": 2}),
    "GINEConv": (lambda: pyg.GINEConv(nn.Linear(WIDTH, 4), edge_dim=2), {"edge_attr": 2}),
    "GMMConv": (lambda: pyg.GMMConv(WIDTH, 4, 2, 3), {"edge_attr": 2}),
    "GeneralConv": (lambda: pyg.GeneralConv(WIDTH, 4, attention=True), {}),
    "GraphConv": (lambda: pyg.GraphConv(WIDTH, 4, "max"), {"edge_weight": 0}),
    "LEConv": (lambda: pyg.LEConv(WIDTH, 4), {"edge_weight": 0}),
    "NNConv": (lambda: pyg.NNConv(WIDTH, 4, nn.Linear(2, 4 * WIDTH)), {"edge_attr": 2}),
    "PNAConv": (
        lambda: pyg.PNAConv(
            WIDTH, 4, ["mean", "std"], ["linear"], torch.ones(9).long(), edge_dim=2
        ),
        {"edge_attr": 2},
    ),
    "RGATConv": (lambda: pyg.RGATConv(WIDTH, 4, TYPES), {"edge_type": -1}),
    "RGCNConv": (lambda: pyg.RGCNConv(WIDTH, 4, TYPES, aggr="max"), {"edge_type": -1}),
    "ResGatedGraphConv": (lambda: pyg.ResGatedGraphConv(WIDTH, 4), {}),
    "SAGEConv": (lambda: pyg.SAGEConv(WIDTH, 4, "median"), {}),
    "SuperGATConv": (lambda: pyg.SuperGATConv(WIDTH, 4), {}),
    "TransformerConv": (lambda: pyg.TransformerConv(WIDTH, 4, edge_dim=2), {"edge_attr": 2}),
    "WLConvContinuous": (lambda: pyg.WLConvContinuous(), {"edge_weight": 0}),
    "GCNConv": (lambda: pyg.GCNConv(WIDTH, 4), {"edge_weight": 0}),
    "CFConv": (
        lambda: CFConv(WIDTH, 4, 5, nn.Linear(2, 5), 2.0),
        {"edge_weight": 0, "edge_attr": 2},
    ),
    "GATEConv": (lambda: GATEConv(WIDTH, WIDTH, 2), {"edge_attr": 2}),
    "HEATConv": (
        lambda: pyg.HEATConv(WIDTH, 4, 2, TYPES, 3, 2, 3, heads=2),
        {"edge_type": -1, "edge_attr": 2, "node_type": NODE_TYPES},
    ),
    "PPFConv": (
        lambda: pyg.PPFConv(nn.Linear(WIDTH + 4, 4)),
        {"pos": POSITIONS, "normal": POSITIONS},
    ),
    "PointGNNConv": (
        lambda: pyg.PointGNNConv(nn.Linear(WIDTH, 3), nn.Linear(3 + WIDTH, 4), nn.Linear(4, WIDTH)),
        {"pos": POSITIONS},
    ),
    "PointNetConv": (lambda: pyg.PointNetConv(nn.Linear(WIDTH + 3, 4)), {"pos": POSITIONS}),
    "PointTransformerConv": (lambda: pyg.PointTransformerConv(WIDTH, 4), {"pos": POSITIONS}),
}


def values(columns: int) -> Tensor:
    """For each edge: types, numbers, or rows of them."""
    generator = torch.Generator().manual_seed(1)
    if columns < 0:
        return torch.randint(TYPES, (E,), generator=generator)
    shape = (E, columns) if columns else (E,)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_with_values_of_edges(name: str) -> None:
    make, wanted = LAYERS[name]
    stock = OneLayer(make()).double().eval()
    model = accelerate(copy.deepcopy(stock))
    x = torch.randn(60, WIDTH, dtype=torch.float64)
    given = {k: values(v) if isinstance(v, int) else v for k, v in wanted.items()}
    with torch.no_grad():
        expected = stock(x, graph(), **given)
    found = inference(model, x, graph(), memory=SMALL, progress=False, **given)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_layers_that_run_in_blocks_are_tried() -> None:
    elsewhere = {"EdgeConv", "GINConv"}  # the models'
    assert {*LAYERS} | elsewhere >= ONE_HOP


@pytest.mark.parametrize("name", ["GCN", "GraphSAGE", "GIN", "GAT"])
def test_messages_are_bounded(name: str) -> None:
    """No tensor of a number for each edge and feature, but for what a hub needs."""
    edge_index = torch.randint(500, (2, 20_000))
    model, x = accelerate(MODELS[name]()), torch.randn(500, WIDTH)
    memory = 64 << 10
    with Watching() as seen:
        inference(model, x, edge_index, memory=memory, progress=False)
    rows = 500 * 3 * 8 * 4  # all nodes, as many features as jk="cat" joins
    assert seen.largest <= max(memory, rows, 8 * 20_000)  # the last: indices, as floats never are


def test_data_and_its_hag() -> None:
    data = Data(x=torch.randn(60, WIDTH), edge_index=graph())
    model = accelerate(models.GraphSAGE(WIDTH, 8, 2, 3))
    expected = copy.deepcopy(model).eval()(data.x, data.edge_index)
    for given in (data, ToHAG()(data), ToHAG(remove_edge_index=True)(data)):
        torch.testing.assert_close(inference(model, given, progress=False), expected)


def test_a_graph_that_was_trained_on_keeps_its_hag() -> None:
    model, x, edge_index = accelerate(models.GraphSAGE(WIDTH, 8, 2, 3)), torch.ones(60, 6), graph()
    with torch.no_grad():
        model(x, edge_index), model(x, edge_index)
    (session,) = [h for h in model._forward_pre_hooks.values() if isinstance(h, Session)]
    assert session.num_hags == 1
    inference(model, x, edge_index, progress=False)
    assert session.num_hags == 1


def test_what_is_refused() -> None:
    x, edge_index = torch.randn(60, WIDTH), graph()
    with pytest.raises(TypeError, match="call accelerate"):
        inference(models.GCN(WIDTH, 8, 2, 3), x, edge_index)
    with pytest.raises(TypeError, match="given twice"):
        inference(accelerate(models.GCN(WIDTH, 8, 2, 3)), Data(x=x), edge_index)
    with pytest.raises(TypeError, match="features and edges"):
        inference(accelerate(models.GCN(WIDTH, 8, 2, 3)), x)
    with pytest.raises(TypeError, match="layout"):
        inference(accelerate(models.GCN(WIDTH, 8, 2, 3)), x, torch.ones(60, 60).to_sparse_coo())
    model = accelerate(TwoFeatures(type("Mine", (pyg.FAConv,), {})(WIDTH)))
    with pytest.raises(ValueError, match="Mine makes messages of about"):
        inference(model, x, edge_index, memory=SMALL, progress=False)
    assert inference(model, x, edge_index, progress=False).shape == x.shape
    model = accelerate(OneLayer(pyg.SAGEConv(WIDTH, 3, "lstm")))
    edge_index = edge_index[:, edge_index[1].argsort(stable=True)]
    with pytest.raises(ValueError, match="the neighbours of other nodes"):
        inference(model, x, edge_index, memory=SMALL, progress=False)
    expected = copy.deepcopy(model)(x, edge_index)
    torch.testing.assert_close(inference(model, x, edge_index, progress=False), expected)


@pytest.mark.parametrize("bad", [-1, -60, 60, 2**31, 2**40])
@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("name", ["GCN", "GAT"])
def test_ids_of_no_node_are_refused(name: str, row: int, bad: int) -> None:
    edge_index = graph()
    edge_index[row, 3] = bad
    model = accelerate(getattr(models, name)(WIDTH, 8, 2, 3))
    for memory in (1, 1 << 30):
        with pytest.raises(ValueError, match=f"edge_index holds id {bad}; expected 0 to 59"):
            inference(model, torch.randn(60, WIDTH), edge_index, memory=memory, progress=False)


def test_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    model = accelerate(models.GAT(WIDTH, 8, 2, 3))
    inference(model, torch.randn(60, WIDTH), graph(), memory=SMALL, progress=True)
    assert "2 layers over 60 nodes:" in capsys.readouterr().err


def test_cuts() -> None:
    begin = torch.tensor([0, 2, 2, 12, 13, 14])
    assert [*_cuts(begin, 4)] == [(0, 2), (2, 3), (3, 5)]
    assert [*_cuts(begin, 100)] == [(0, 5)]
    assert [*_cuts(torch.zeros(1, dtype=torch.long), 4)] == []
