"""PyG models that live on: see tests/states.py."""

from __future__ import annotations

import copy
import io
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test
from torch import Tensor, nn
from torch_geometric import nn as pyg
from torch_geometric.data import Batch, Data
from torch_geometric.nn import MessagePassing

import hag_plugin as hp

from ..states import SEEDS, WIDTH, ModelMachine, Place

TYPES = 3


@hp.pyg.hag_layer
class Tanh(MessagePassing):
    """A user's own layer."""

    def __init__(self) -> None:
        super().__init__(aggr="mean")
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        return self.propagate(edge_index, x=self.linear(x))

    def message(self, x_j: Tensor) -> Tensor:
        return x_j.tanh()


class Stack(nn.Module):
    """Layers one after the other, with what some of them take besides edges."""

    takes = ""

    def __init__(self, *layers: nn.Module, takes: str = "", dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.takes, self.dropout = takes, nn.Dropout(dropout)

    def forward(self, x: Tensor, edge_index: Any, more: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            args = () if more is None else (more,)
            x = self.dropout(layer(x, edge_index, *args)).tanh()
        return x


def two(layer: Any, *args: Any, takes: str = "", dropout: float = 0.0, **kwargs: Any) -> Any:
    return lambda: Stack(
        layer(WIDTH, WIDTH, *args, **kwargs),
        layer(WIDTH, WIDTH, *args, **kwargs),
        takes=takes,
        dropout=dropout,
    )


def deg() -> Tensor:
    return torch.ones(8, dtype=torch.long)


MODELS: dict[str, Any] = {
    "GCN": lambda: pyg.GCN(WIDTH, WIDTH, 2, WIDTH, dropout=0.3),
    "GCN, batch norm": lambda: pyg.GCN(WIDTH, WIDTH, 2, WIDTH, norm="batch_norm"),
    "GIN": lambda: pyg.GIN(WIDTH, WIDTH, 2, WIDTH),
    "SAGE, mean": two(pyg.SAGEConv, dropout=0.2),
    "SAGE, max": two(pyg.SAGEConv, aggr="max"),
    "SAGE, several": two(pyg.SAGEConv, aggr=["mean", "min", "std"]),
    "SAGE, lstm": two(pyg.SAGEConv, aggr="lstm", takes="sorted"),
    "GCN, weights": two(pyg.GCNConv, takes="weight"),
    "GraphConv, weights": two(pyg.GraphConv, takes="weight"),
    "GAT": two(pyg.GATConv, heads=2, concat=False, dropout=0.2),
    "GATv2, edges": two(pyg.GATv2Conv, heads=2, concat=False, edge_dim=WIDTH, takes="edges"),
    "Transformer": two(pyg.TransformerConv, heads=2, concat=False),
    "RGCN": two(pyg.RGCNConv, TYPES, takes="type"),
    "GINE": lambda: Stack(
        pyg.GINEConv(nn.Linear(WIDTH, WIDTH), edge_dim=WIDTH),
        pyg.ResGatedGraphConv(WIDTH, WIDTH, edge_dim=WIDTH),
        takes="edges",
    ),
    "GEN": two(pyg.GENConv, learn_t=True),
    "PNA": two(
        pyg.PNAConv, aggregators=["mean", "max"], scalers=["identity", "amplification"], deg=deg()
    ),
    "own layer": lambda: Stack(Tanh(), pyg.APPNP(3, 0.1), Tanh()),
}
VALUES = ("write", "data", "leaf", "constant", "other")
WAYS = ("index", "numpy", "data", "copy_", "swap")


class Graph(Place):
    """Cliques, random edges, duplicates, loops and nodes without any edge."""

    def __init__(self, takes: str, dtype: torch.dtype, seed: int) -> None:
        super().__init__(takes, seed)
        self.edges = self.cliques(max(self.nodes - 2, 1))
        self.form, self.hag = "tensor", None
        count = self.edges.shape[1]
        self.x = self.floats(self.nodes, dtype)
        self.type = torch.from_numpy(self.random.integers(0, TYPES, count))
        self.weight = self.floats(count, dtype)[:, 0].abs().contiguous()
        self.features = self.floats(count, dtype)
        self.put_in_order()

    def put_in_order(self) -> None:
        """By target, where the order of edges counts."""
        if self.takes == "sorted":
            self.edges.copy_(self.edges[:, self.edges[1].argsort(stable=True)])

    def values(self) -> dict[str, Tensor]:
        return {"weight": self.weight, "type": self.type, "edges": self.features}

    def arguments(self) -> tuple[list[Any], list[Any]]:
        given = self.edges if self.hag is None else self.hag
        return [self.x, given, *self.more()], [self.x, self.edges, *self.more()]

    def to(self, dtype: torch.dtype) -> None:
        self.x, self.weight, self.features = (
            t.detach().to(dtype) for t in (self.x, self.weight, self.features)
        )

    def write(self, way: str) -> None:
        """Changes some edges where they stand."""
        at = int(self.random.integers(self.edges.shape[1]))
        new = int(self.random.integers(self.nodes))
        row = int(self.random.integers(2))
        if way == "index":
            self.edges[row, at] = new
        elif way == "numpy":
            self.edges.numpy()[row, at] = new
        elif way == "data":
            self.edges.data[row, at] = new
        elif way == "copy_":
            self.edges.copy_(self.edges.flip(0))
        else:
            self.edges.copy_(self.edges.roll(1, dims=1))  # the same graph; other edge values
        self.put_in_order()

    def give(self, form: str) -> None:
        """What the accelerated model is given in place of the edges."""
        self.hag = None
        if form == "hag":
            self.hag = hp.build_hag(self.edges, num_nodes=self.nodes)
        elif form == "ToHAG":
            self.hag = hp.pyg.ToHAG()(Data(edge_index=self.edges, num_nodes=self.nodes)).hag
        elif form == "batch":
            data = hp.pyg.ToHAG()(Data(edge_index=self.edges.clone(), num_nodes=self.nodes))
            self.hag = Batch.from_data_list([data]).hag
        elif form == "clone":
            self.edges = self.edges.clone()
        elif form == "view":
            self.edges = self.edges.t().contiguous().t()
        elif form == "part" and not self.takes:
            self.edges = self.edges[:, : max(self.edges.shape[1] // 2, 1)]
        elif form == "pickled":
            hag = hp.build_hag(self.edges, num_nodes=self.nodes)
            self.hag = copy.deepcopy(pickle.loads(pickle.dumps(hag)))
        elif form == "saved":
            file = io.BytesIO()
            torch.save(hp.build_hag(self.edges, num_nodes=self.nodes), file)
            self.hag = torch.load(io.BytesIO(file.getvalue()), weights_only=False)


class PyGMachine(ModelMachine):
    """Models of PyG's layers."""

    MODELS = MODELS
    LAYER = MessagePassing

    def new_place(self, seed: int) -> Graph:
        return Graph(getattr(self.stock, "takes", ""), self.dtype, seed)

    @rule(data=st.data(), way=st.sampled_from(WAYS))
    def edges_in_place(self, data: st.DataObject, way: str) -> None:
        place = self.draw_place(data)
        place.give("tensor")
        self.comes_back(place)
        place.write(way)
        self.compare(place, "backward")

    @rule(
        data=st.data(),
        form=st.sampled_from(
            ["tensor", "hag", "ToHAG", "batch", "clone", "view", "part", "pickled", "saved"]
        ),
    )
    def other_form(self, data: st.DataObject, form: str) -> None:
        place = self.draw_place(data)
        # What is of edges goes with their order, which a HAG does not keep.
        keeps = place.takes and form in ("hag", "ToHAG", "batch", "pickled", "saved")
        place.give("tensor" if keeps else form)

    @precondition(lambda self: getattr(self.stock, "takes", "") in ("weight", "type", "edges"))
    @rule(data=st.data(), seed=SEEDS, how=st.sampled_from(VALUES))
    def values_of_edges(self, data: st.DataObject, seed: int, how: str) -> None:
        place = self.draw_place(data)
        self.comes_back(place)
        (values,) = place.more()
        if how == "write":
            with torch.no_grad():
                values.copy_(values.roll(1, dims=0))
        elif how == "data":
            values.data.copy_(values.data.flip(0))
        elif how == "other":
            with torch.no_grad():
                name = {"weight": "weight", "type": "type", "edges": "features"}[place.takes]
                setattr(place, name, values.detach().roll(2, dims=0))
        elif values.is_floating_point():
            values.requires_grad_(how == "leaf")
        self.compare(place, "backward")


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("name", MODELS)
def test_models_live_on(name: str, bounded: Any) -> None:
    run_state_machine_as_test(partial(PyGMachine, name), settings=bounded(6, 20))
