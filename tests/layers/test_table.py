"""Records name classes, arguments and parameters that there are."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric import nn as pyg

from hag_plugin.layers.pyg import reducers
from hag_plugin.layers.record import Record, held
from hag_plugin.layers.table import RECORDS, record_of


def class_of(record: Record) -> Any:
    if record.library == "dgl":
        pytest.importorskip("dgl", reason="DGL is not installed")
    module, _, name = record.name.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", RECORDS)
def test_names_are_those_of_the_class(name: str) -> None:
    record = RECORDS[name]
    cls = class_of(record)
    assert record_of(cls) is record
    assert record_of(type("Derived", (cls,), {})) is record
    told = {*record.graphs, *record.edge_values, *([record.features] if record.features else [])}
    assert told <= {*inspect.signature(cls.forward).parameters}


def test_neither_library_is_imported() -> None:
    code = "import sys, hag_plugin.layers.table\nprint({'dgl', 'torch_geometric'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_no_record_of_other_classes() -> None:
    assert record_of(nn.Linear) is None


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[str, str, str]]] = {
    "GCNConv": (lambda: pyg.GCNConv(3, 4), ("lin.weight", "", "bias")),
    "SAGEConv": (lambda: pyg.SAGEConv(3, 4), ("lin_l.weight", "lin_r.weight", "lin_l.bias")),
    "SAGEConv alone": (
        lambda: pyg.SAGEConv(3, 4, root_weight=False, bias=False),
        ("lin_l.weight", "", ""),
    ),
    "RGCNConv": (lambda: pyg.RGCNConv(3, 4, 2, bias=False), ("weight", "root", "")),
    "GINConv": (lambda: pyg.GINConv(nn.Linear(3, 4)), ("", "", "")),
}


@pytest.mark.parametrize("name", LAYERS)
def test_parameters_that_a_layer_has(name: str) -> None:
    make, expected = LAYERS[name]
    layer = make()
    record = record_of(type(layer))
    assert record is not None
    assert tuple(held(layer, n) for n in (record.weight, record.root, record.bias)) == expected


def test_the_first_name_that_there_is() -> None:
    layer = nn.Linear(2, 3)
    assert held(layer, "fc.bias bias") == "bias"
    layer.bias = None
    assert held(layer, "fc.bias bias") == ""


WORDS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "plain": (lambda: pyg.GINConv(nn.Linear(2, 2)), "sum over A"),
    "several": (lambda: pyg.SAGEConv(2, 2, ["mean", "max"]), "mean, max over A"),
    "own": (lambda: pyg.EGConv(4, 4, ["symnorm", "std"], num_heads=2, add_self_loops=False),
            "symnorm, std over A"),
    "scaled": (lambda: pyg.PNAConv(2, 2, ["min", "var"], ["identity"], torch.ones(3).long()),
               "min, var over A"),
    "loops": (lambda: pyg.SimpleConv(combine_root="self_loop"), "sum over A + I"),
    "no loops": (lambda: pyg.LGConv(), "sum over D^-1/2 A D^-1/2"),
    "normalised": (
        lambda: pyg.GCNConv(2, 2), "sum over D^-1/2 (A with one loop a node) D^-1/2"
    ),
    "unnormalised": (lambda: pyg.GCNConv(2, 2, normalize=False), "sum over A"),
    "one side": (lambda: pyg.ClusterGCNConv(2, 2), "sum over D^-1 (A with one loop a node)"),
    "relations": (lambda: pyg.RGCNConv(2, 2, 3), "mean over each relation's A"),
    "scored relations": (lambda: pyg.RGATConv(2, 2, 3), "attention over each relation's A"),
    "one relation": (lambda: pyg.FiLMConv(2, 2), "mean over A"),
    "in words": (lambda: pyg.ChebConv(2, 2, 2), "sum over the scaled Laplacian"),
}  # fmt: skip


@pytest.mark.parametrize("name", WORDS)
def test_words(name: str) -> None:
    make, words = WORDS[name]
    layer = make()
    record = record_of(type(layer))
    assert record is not None
    assert record.aggregates(layer) == words


def test_other_exponents_in_words() -> None:
    record = Record("", exponents=lambda layer: (0.5, -2.0))
    assert record.aggregates(None) == "sum over D^-2 A D^0.5"


def test_reducers_of_a_module() -> None:
    assert reducers(pyg.SimpleConv(pyg.aggr.SoftmaxAggregation())) == ("softmax",)
