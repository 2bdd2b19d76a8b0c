"""Graphs of operations: what is checked of them, and what tells them apart."""

from __future__ import annotations

import pytest
import torch

from hag_plugin.parallel.graphs.stats import GraphStats
from hag_plugin.parallel.model.opgraph import Op, OpGraph, convolution
from hag_plugin.parallel.model.trace import trace

from ..models import MODELS, graph


def test_operations_given_by_hand_are_checked() -> None:
    stats = GraphStats.assumed(10, 20)
    x = Op("x", "input", width=4)
    for ops, words in (
        ([x, Op("y", "magic", (0,), 4)], "'y' is of kind 'magic'"),
        ([x, Op("x", "sum", (0,), 4)], "'x' occurs twice"),
        ([x, Op("y", "sum", (1,), 4)], "operations before 1"),
        ([x, Op("y", "sum", (), 4)], "takes 0 inputs"),
        ([x, convolution("y", 0, 4, 4, graph="B")], "graph 'B'"),
        ([x, Op("y", "sum", (0,), 0)], "'y' has 0 features"),
    ):
        with pytest.raises(ValueError, match=words):
            OpGraph.of(ops, {"A": stats})
    with pytest.raises(ValueError, match=r"\[10, 11\] nodes"):
        OpGraph.of([x], {"A": stats, "B": GraphStats.assumed(11, 20)})


def test_fingerprints_tell_models_and_graphs_apart() -> None:
    one, two = (trace(MODELS["GCN"](), graph(seed), hag=False) for seed in (0, 1))
    assert one.fingerprint == two.fingerprint
    assert one.graphs["A+I"].fingerprint != two.graphs["A+I"].fingerprint
    assert trace(MODELS["GIN"](), graph(), hag=False).fingerprint != one.fingerprint
    shuffled = graph()
    shuffled.edge_index = shuffled.edge_index[:, torch.randperm(shuffled.num_edges)]
    again = trace(MODELS["GCN"](), shuffled, hag=False)
    assert again.graphs["A+I"].fingerprint == one.graphs["A+I"].fingerprint
