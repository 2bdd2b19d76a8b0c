"""DGL models that live on: see tests/states.py."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test
from torch import Tensor, nn

dgl = pytest.importorskip("dgl", reason="DGL is not installed")
import dgl.function as fn  # noqa: E402
from dgl.nn import pytorch as layers  # noqa: E402

import hag_plugin as hp  # noqa: E402

from ..states import SEEDS, WIDTH, ModelMachine, Place  # noqa: E402

TYPES = 3


@hp.dgl.hag_layer
class Tanh(nn.Module):
    """A user's own layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, graph: Any, x: Tensor) -> Tensor:
        with graph.local_scope():
            graph.srcdata["h"] = self.linear(x)
            graph.update_all(lambda edges: {"m": edges.src["h"].tanh()}, fn.mean("m", "y"))
            return graph.dstdata["y"]


class Stack(nn.Module):
    """Layers one after the other, with what some of them take besides a graph."""

    def __init__(self, *parts: nn.Module, takes: str = "", dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(parts)
        self.takes, self.dropout = takes, nn.Dropout(dropout)

    def forward(self, x: Tensor, graph: Any, more: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            args = () if more is None or self.takes == "weight" else (more,)
            given = {"edge_weight": more} if self.takes == "weight" else {}
            y = layer(graph, x, *args, **given)
            y = y.mean(1) if y.dim() == 3 else y  # heads
            x = self.dropout(y).tanh()
        return x


def two(layer: Any, *args: Any, takes: str = "", dropout: float = 0.0, **kwargs: Any) -> Any:
    return lambda: Stack(
        *(layer(WIDTH, WIDTH, *args, **kwargs) for _ in range(2)), takes=takes, dropout=dropout
    )


FREE = {"allow_zero_in_degree": True}
MODELS: dict[str, Any] = {
    "GraphConv": two(layers.GraphConv, dropout=0.3, **FREE),
    "GraphConv, weights": two(layers.GraphConv, takes="weight", norm="none", **FREE),
    "SAGE, mean": two(layers.SAGEConv, "mean"),
    "SAGE, gcn": two(layers.SAGEConv, "gcn", dropout=0.2),
    "SAGE, pool": two(layers.SAGEConv, "pool"),
    "SAGE, lstm": two(layers.SAGEConv, "lstm"),
    "SAGE, weights": two(layers.SAGEConv, "mean", takes="weight"),
    "GIN": lambda: Stack(
        layers.GINConv(nn.Linear(WIDTH, WIDTH), "max"), layers.GINConv(nn.Linear(WIDTH, WIDTH))
    ),
    "GAT": two(layers.GATConv, 2, feat_drop=0.2, attn_drop=0.2, **FREE),
    "GATv2": two(layers.GATv2Conv, 2, **FREE),
    "RelGraph": two(layers.RelGraphConv, TYPES, takes="type"),
    "TAG": two(layers.TAGConv, 2),
    "PNA": two(layers.PNAConv, ["mean", "max"], ["identity", "amplification"], 1.0),
    "own layer": lambda: Stack(Tanh(), layers.GINConv(), Tanh()),
}
# Of two kinds DGL's own code is slow; weights of edges have more that can change.
RUNS = {"SAGE, lstm": 3, "PNA": 3, "GraphConv, weights": 15, "SAGE, weights": 15}
VALUES = ("write", "leaf", "constant", "other")
FORMS = (
    "ToHAG",
    "ToHAG",
    "ToHAG",
    "plain",
    "clone",
    "pickled",
    "deepcopy",
    "int",
    "batch",
    "local",
    "formats",
)


class Graph(Place):
    """Cliques, random edges, duplicates and loops; every node has an edge."""

    def __init__(self, takes: str, dtype: torch.dtype, seed: int) -> None:
        super().__init__(takes, seed)
        edges = self.cliques(self.nodes)
        self.plain = dgl.graph((edges[0], edges[1]), num_nodes=self.nodes)
        self.given = hp.dgl.ToHAG()(self.plain) if self.random.random() < 0.75 else self.plain
        self.x = self.floats(self.nodes, dtype)
        self.new_values(dtype)

    def new_values(self, dtype: torch.dtype) -> None:
        count = self.plain.num_edges()
        self.type = torch.from_numpy(self.random.integers(0, TYPES, count))
        self.weight = self.floats(count, dtype)[:, 0].abs().contiguous()
        if self.random.random() < 0.75:  # products of node factors, which go into a HAG's sums
            factor = self.floats(self.nodes, dtype)[:, 0].abs()
            source, target = self.plain.edges()
            self.weight = factor[source] * factor[target]

    def values(self) -> dict[str, Tensor]:
        return {"weight": self.weight, "type": self.type}

    def arguments(self) -> tuple[list[Any], list[Any]]:
        return [self.x, self.given, *self.more()], [self.x, self.plain, *self.more()]

    def to(self, dtype: torch.dtype) -> None:
        self.x, self.weight = (t.detach().to(dtype) for t in (self.x, self.weight))

    def give(self, form: str) -> None:
        """What the accelerated model is given in place of the graph."""
        made = {
            "ToHAG": lambda g: hp.dgl.ToHAG()(self.plain),
            "plain": lambda g: self.plain,
            "clone": lambda g: g.clone(),
            "pickled": lambda g: pickle.loads(pickle.dumps(g)),
            "deepcopy": copy.deepcopy,
            "int": lambda g: g.clone().int().long(),  # which share the columns of the graph
            "batch": lambda g: hp.dgl.batch([hp.dgl.ToHAG()(self.plain)]),
            "local": lambda g: g.local_var(),
            "formats": lambda g: g.clone().formats(["coo", "csr", "csc"]),
        }
        self.given = made[form](self.given)

    def edit(self, kind: str, dtype: torch.dtype) -> None:
        """Changes edges where they stand, in what both are given."""
        both = [self.plain] if self.given is self.plain else [self.plain, self.given]
        at = int(self.random.integers(max(self.plain.num_edges() - 1, 1)))
        ends = self.random.integers(0, self.nodes, 4).tolist()
        for graph in both:
            if kind == "add":
                graph.add_edges(ends[:2], ends[2:])
            elif kind == "remove" and graph.num_edges() > self.nodes:
                graph.remove_edges([at])
            elif kind == "loops":
                graph.add_edges(torch.arange(self.nodes), torch.arange(self.nodes))
        self.new_values(dtype)


class DGLMachine(ModelMachine):
    """Models of DGL's layers."""

    MODELS = MODELS
    LAYER = nn.Module

    def new_place(self, seed: int) -> Graph:
        return Graph(self.stock.takes, self.dtype, seed)

    def arguments(self, place: Any) -> tuple[list[Any], list[Any]]:
        return place.arguments()  # a graph with a HAG goes to any model

    def for_a_thread(self, place: Any) -> tuple[list[Any], list[Any]]:
        """A graph of its own: DGL's scopes change the graph that they are of."""
        mine, theirs = place.arguments()
        return [mine[0], mine[1].clone(), *mine[2:]], theirs

    @rule()
    def explain(self) -> None:
        found = hp.explain(self.ours)
        assert len(found.rows) >= len(self.stock.layers)
        assert str(found)

    @rule(data=st.data(), kind=st.sampled_from(["add", "remove", *["loops"] * 4]))
    def edges_in_place(self, data: st.DataObject, kind: str) -> None:
        self.draw_place(data).edit(kind, self.dtype)

    @rule(data=st.data(), form=st.sampled_from(FORMS))
    def other_form(self, data: st.DataObject, form: str) -> None:
        self.draw_place(data).give(form)

    @rule(data=st.data(), whole=st.booleans())
    def data_of_nodes(self, data: st.DataObject, whole: bool) -> None:
        """Features may lie in the graph, and are changed there."""
        place = self.draw_place(data)
        with torch.no_grad():
            place.given.ndata["x"] = place.x if whole else place.x.clone()
            place.given.ndata["x"].mul_(1.25)

    @precondition(lambda self: self.stock.takes in ("weight", "type"))
    @rule(data=st.data(), how=st.sampled_from(VALUES))
    def values_of_edges(self, data: st.DataObject, how: str) -> None:
        place = self.draw_place(data)
        self.comes_back(place)
        (values,) = place.more()
        if how == "write":
            with torch.no_grad():
                values.copy_(values.roll(1, dims=0))
        elif how == "other":
            setattr(place, place.takes, values.detach().roll(2, dims=0))
        elif values.is_floating_point():
            values.requires_grad_(how == "leaf")
        self.compare(place, "backward")

    @precondition(lambda self: self.stock.takes == "weight")
    @rule(data=st.data())
    def weights_are_learned(self, data: st.DataObject) -> None:
        """Weights that came back as constants get gradients, by which they are changed in place."""
        place = self.draw_place(data)
        place.new_values(self.dtype)
        self.comes_back(place)
        place.weight.requires_grad_()
        for _ in range(2):
            for how in ("no_grad", "no_grad", "backward"):
                self.compare(place, how)
            with torch.no_grad():
                place.weight.sub_(place.weight.grad.clamp(-1, 1), alpha=0.1)
        self.compare(place, "no_grad")
        place.weight.requires_grad_(False)

    @precondition(lambda self: self.stock.takes in ("weight", "type"))
    @rule(data=st.data())
    def values_behind_torch(self, data: st.DataObject) -> None:
        """Constant values that came back are written to, which torch does not count."""
        place = self.draw_place(data)
        place.new_values(self.dtype)
        (values,) = place.more()
        self.comes_back(place)
        values.data.copy_(values.data.flip(0))
        self.compare(place, "backward")

    @rule(data=st.data(), seed=SEEDS)
    def a_block(self, data: st.DataObject, seed: int) -> None:
        """A subgraph, met once, of a graph with a HAG."""
        place = self.draw_place(data)
        nodes = torch.from_numpy(np.random.default_rng(seed).permutation(place.nodes)[:4])
        part = dgl.node_subgraph(place.given, nodes)
        if self.stock.takes or not part.num_edges() or (part.in_degrees() == 0).any():
            return
        other = dgl.node_subgraph(place.plain, nodes)
        x = place.x.detach()[part.ndata[dgl.NID]]
        self.calls += 1
        found = self.run(self.ours, [x, part], [], "no_grad")
        expected = self.run(self.stock, [x, other], [], "no_grad")
        torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("name", MODELS)
def test_models_live_on(name: str, bounded: Any) -> None:
    run_state_machine_as_test(partial(DGLMachine, name), settings=bounded(RUNS.get(name, 8), 25))
