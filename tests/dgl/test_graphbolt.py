"""The stand-in for `dgl.graphbolt`, in processes of their own."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

pytest.importorskip("dgl", reason="DGL is not installed")
VERSION = importlib.metadata.version("dgl")

USE = """
import hag_plugin as hp
hp.dgl.graphbolt_stand_in()
hp.dgl.graphbolt_stand_in()
import dgl, pickle, torch
import dgl.function as fn
graph = hp.dgl.ToHAG()(dgl.add_self_loop(dgl.rand_graph(20, 60)))
graph = pickle.loads(pickle.dumps(hp.dgl.batch([graph, graph.clone()])))
conv = hp.accelerate(dgl.nn.GraphConv(3, 2))
x = torch.randn(40, 3)
torch.testing.assert_close(conv(graph, x), conv(dgl.batch(hp.dgl.unbatch(graph)), x))
conv(graph, x).sum().backward()
print(dgl.__version__, graph.hag.num_edges)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_with_the_stand_in() -> None:
    done = run(USE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [VERSION, "160"]


def test_too_late() -> None:
    if not VERSION.startswith("1."):
        pytest.skip(f"DGL {VERSION} cannot be imported without the stand-in")
    done = run("import dgl, hag_plugin as hp; hp.dgl.graphbolt_stand_in()")
    assert "was imported already" in done.stderr


def test_it_is_needed() -> None:
    if VERSION.startswith("1."):
        pytest.skip(f"DGL {VERSION} has no graphbolt")
    assert "graphbolt" in run("import dgl").stderr
