"""What is saved of graphs and models names public places only, and a fresh process loads it."""

from __future__ import annotations

import importlib
import importlib.metadata
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("dgl", reason="DGL is not installed")
import dgl
from dgl.nn import GATConv, GatedGraphConv, GraphConv, PNAConv, RelGraphConv, SAGEConv

import hag_plugin as hp

from ..saving import assert_names_stay, modules_named, run_fresh

OWN_LAYER = '''
import dgl.function as fn
import torch
import hag_plugin as hp

@hp.dgl.hag_layer
class TanhConv(torch.nn.Module):
    """Sums the hyperbolic tangents of its sources."""

    def forward(self, graph, x):
        with graph.local_scope():
            graph.ndata["x"] = x
            graph.update_all(self.message, fn.sum("m", "y"))
            return graph.ndata["y"]

    def message(self, edges):
        return {"m": edges.src["x"].tanh()}
'''
LOAD = """
import torch
import hag_plugin as hp
if {newer}:
    hp.dgl.graphbolt_stand_in()
with torch.no_grad():
    for run, arguments, expected in torch.load("saved.pt", weights_only=False):
        torch.testing.assert_close(run(*arguments), expected)
print("equal")
"""


def _graph() -> Any:
    return dgl.add_self_loop(dgl.rand_graph(30, 300))


GRAPHS: dict[str, Callable[[], Any]] = {
    "graph": lambda: hp.dgl.ToHAG()(_graph()),
    "block": lambda: hp.dgl.ToHAG()(dgl.to_block(_graph())),
    "batch": lambda: hp.dgl.batch([hp.dgl.ToHAG()(_graph()) for _ in range(3)]),
    "reversed": lambda: hp.dgl.reverse(hp.dgl.ToHAG()(_graph())),
    "with loops": lambda: dgl.add_self_loop(hp.dgl.ToHAG()(dgl.rand_graph(30, 300))),
}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "GraphConv": lambda: GraphConv(5, 4),
    "SAGEConv lstm": lambda: SAGEConv(5, 4, "lstm"),
    "PNAConv": lambda: PNAConv(5, 4, ["mean", "max"], ["identity"], 2.5),
    "GatedGraphConv": lambda: GatedGraphConv(5, 5, 2, 2),
    "RelGraphConv": lambda: RelGraphConv(5, 4, 2),
    "GATConv": lambda: GATConv(5, 4, 2),
}


Saved = tuple[Any, tuple[Any, ...], Any]  # what is called, of what, and what it gives


def _saved(run: Any, *arguments: Any) -> Saved:
    with torch.no_grad():
        return run, arguments, run(*arguments)


def _graph_and_model(name: str) -> Saved:
    graph = GRAPHS[name]()
    conv = GraphConv(5, 4, allow_zero_in_degree=True)
    return _saved(conv, graph, torch.randn(graph.num_src_nodes(), 5))


def _accelerated(layer: nn.Module, calls: int) -> Saved:
    graph = _graph()
    types = torch.randint(2, (graph.num_edges(),))
    takes_types = isinstance(layer, GatedGraphConv | RelGraphConv)
    arguments = (graph, torch.randn(30, 5), *([types] if takes_types else []))
    model = hp.accelerate(layer.eval())
    for _ in range(calls):
        model(*arguments)
    return _saved(model, *arguments)


def test_names_stay_and_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that has imported nothing before, names alone must lead to the classes."""
    (tmp_path / "own_layer.py").write_text(OWN_LAYER)
    monkeypatch.syspath_prepend(str(tmp_path))
    own_layer = importlib.import_module("own_layer")
    layers = [*LAYERS.values(), own_layer.TanhConv]
    saved = [_graph_and_model(name) for name in GRAPHS]
    saved += [_accelerated(make(), calls) for make in layers for calls in (0, 3)]
    for each in saved:
        assert_names_stay(each)
    torch.save(saved, tmp_path / "saved.pt")
    named = modules_named((tmp_path / "saved.pt").read_bytes())
    assert named == {"hag_plugin", "hag_plugin.dgl"}
    newer = not importlib.metadata.version("dgl").startswith("1.")
    assert run_fresh(LOAD.format(newer=newer), tmp_path).strip() == "equal"
    monkeypatch.delitem(sys.modules, "own_layer")


def test_transforms_and_functions() -> None:
    values = [hp.dgl.ToHAG(width=16), hp.dgl.collate, hp.dgl.batch, hp.dgl.to_plain]
    for value in values:
        assert_names_stay(value)
        again = pickle.loads(pickle.dumps(value))
        assert again is value or repr(again) == repr(value)
