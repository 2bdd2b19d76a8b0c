"""What whole models survive: being saved, and the switch between training and inference."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric.nn import models

import hag_plugin as hp
from hag_plugin.pyg import accelerate, explain

WIDTH, CLASSES = 6, 3
MODELS: dict[str, Callable[..., nn.Module]] = {
    "GCN": models.GCN,
    "GraphSAGE": models.GraphSAGE,
    "GIN": models.GIN,
}


def make(name: str) -> nn.Module:
    """Three layers with all that training and inference do differently."""
    how = {"dropout": 0.5, "norm": "batch_norm"}
    return MODELS[name](WIDTH, 8, 3, CLASSES, **how).double()


def edges_for(given: str, graph: Any) -> Any:
    """The graph as a HAG, or as it is."""
    edges = graph.edge_index
    return hp.build_hag(edges, num_nodes=graph.num_src) if given == "hag" else edges


@pytest.mark.parametrize("given", ["hag", "edges"])
@pytest.mark.parametrize("name", MODELS)
def test_saved_whole(name: str, given: str, awkward: Any, tmp_path: Path) -> None:
    """A fresh process loads the model without importing anything of ours first."""
    x = torch.randn(awkward.num_src, WIDTH, dtype=torch.float64)
    stock, edges = make(name), edges_for(given, awkward)
    stock(x, awkward.edge_index)  # batch norm's statistics are no longer those of a new model
    ours = accelerate(copy.deepcopy(stock)).eval()
    for _ in range(3):
        expected = ours(x, edges)
    torch.testing.assert_close(expected, stock.eval()(x, awkward.edge_index), rtol=1e-10, atol=0)
    torch.save(ours, tmp_path / "model.pt")
    torch.save((x, edges, expected), tmp_path / "data.pt")
    code = """
import torch
model = torch.load("model.pt", weights_only=False)
x, edges, expected = torch.load("data.pt", weights_only=False)
from hag_plugin.pyg import explain
from hag_plugin.testing import limits
assert not model.training
assert [row.accelerated for row in explain(model)] == [True] * 3
with limits(few_messages=0):
    for _ in range(3):
        torch.testing.assert_close(model(x, edges), expected, rtol=1e-10, atol=1e-12)
print(next(iter(model._forward_pre_hooks.values())).num_hags)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == (given == "edges")  # found again, where none was handed in


@pytest.mark.parametrize("given", ["hag", "edges"])
@pytest.mark.parametrize("name", MODELS)
def test_training_and_inference_in_turns(name: str, given: str, awkward: Any) -> None:
    """Dropout draws the same numbers, and batch norm keeps the same statistics."""
    x = torch.randn(awkward.num_src, WIDTH, dtype=torch.float64)
    stock = make(name)
    ours = accelerate(copy.deepcopy(stock))
    assert all(row.accelerated for row in explain(ours))
    edges = edges_for(given, awkward)
    seen: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for step, training in enumerate([True, False, False, True, True, False, True, False]):
        results = []
        for model, graph in ((stock, awkward.edge_index), (ours, edges)):
            torch.manual_seed(step)
            model.train(training)
            model.zero_grad()
            y = model(x, graph)
            y.square().mean().backward()
            drawn = torch.rand(1)  # as many numbers were drawn
            gradients = [p.grad for p in model.parameters()]
            results.append([y.detach(), drawn, *model.buffers(), *gradients])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
        seen[training].append(results[1][0])
    assert torch.equal(seen[False][0], seen[False][1])  # nothing random, and no statistics kept
    assert not torch.allclose(seen[False][1], seen[False][2])  # after training they are others
    assert not torch.allclose(seen[True][1], seen[True][2])
