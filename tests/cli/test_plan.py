"""`hag-plugin plan`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.nn import GCN

import hag_plugin as hp
from hag_plugin.cli import main
from hag_plugin.data import datasets
from hag_plugin.parallel.graphs.store.streams import EdgeStream

from .runs import run_json

SIZES = ["--nodes", "240000", "--edges", "12000000", "--features", "100", "--halo-ratio", "2"]


def test_plan_of_a_file_and_a_built_in_graph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "net.py"
    script.write_text(
        "from torch_geometric.nn import GCN\n"
        "def make():\n    return GCN(12, 32, 2, 4)\n"
        "model = make()\n"
    )
    plans = []
    for name in ("make", "model"):
        arguments = ["plan", f"{script}:{name}", "cliques", "--features", "12", "--json"]
        assert main([*arguments, "--topology", "cpu2"]) == 0
        plans.append(json.loads(capsys.readouterr().out)["plan"]["layers"])
    assert plans[0] == plans[1]
    assert plans[0][1]["hag"] != "off"  # cliques share


def test_plan_of_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From its manifest alone, for as many devices as there are parts."""
    random, parts, out = np.random.default_rng(0), tmp_path / "parts", str(tmp_path / "plan.json")
    stream = EdgeStream.of(random.integers(0, 50, (2, 400)), 50, {"x": random.random((50, 12))})
    hp.parallel.write_partitions(stream, 3, parts)
    for folder in parts.glob("part-*"):
        shutil.rmtree(folder)
    found = {}
    for model in ("gcn", "sage", "gin", "gat"):
        said, _ = run_json(capsys, "plan", model, "--partitions", str(parts), "--classes", "4",
                           "--layers", "2", "--topology", "pcie4x4", "-o", out)  # fmt: skip
        found[model] = hp.parallel.Plan.load(out)
        assert said["plan"] == found[model].as_dict()
        assert (found[model].world_size, found[model].nodes) == (3, 50)
    data = hp.parallel.PartitionedData(parts)
    found["gcn"].check(hp.parallel.trace(GCN(12, 256, 2, 4), data), 3)
    wrong = ["plan", "gcn", "--partitions", str(parts), "--topology", "pcie4x4", "--devices", "4"]
    assert main(wrong) == 2
    assert "the graph cut into 4 parts" in capsys.readouterr().err


DGL_MODEL = """
from dgl.nn import GraphConv
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = GraphConv(6, 8)
        self.last = GraphConv(8, 3)

    def forward(self, graph, x):
        return self.last(graph, self.conv(graph, x).relu())

net = Net()
"""


def test_plan_of_a_dgl_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dgl = pytest.importorskip("dgl")
    script, out = tmp_path / "net.py", tmp_path / "plan.json"
    script.write_text(DGL_MODEL)
    words = [f"{script}:net", "cliques", "--features", "6", "--topology", "pcie4x4"]
    said, _ = run_json(capsys, "plan", *words, "-o", str(out))
    data = datasets.load("cliques")
    graph = dgl.graph(tuple(data.edge_index), num_nodes=data.num_nodes)
    namespace: dict[str, Any] = {}
    exec(DGL_MODEL, namespace)
    expected = hp.parallel.plan(namespace["net"], (graph, torch.ones(data.num_nodes, 6)), "pcie4x4")
    assert hp.parallel.Plan.load(out).configs == expected.configs
    assert said["plan"]["predicted"] == expected.as_dict()["predicted"]
    simulated, _ = run_json(capsys, "simulate", *words, "--plan", str(out))
    assert simulated["simulated_seconds"] <= simulated["additive_seconds"] + 1e-6
    counts = ["--nodes", "90", "--edges", "900", "--topology", "pcie4x4"]
    assert main(["plan", f"{script}:net", *counts]) == 2
    assert "is of DGL's layers; expected a graph to plan it for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["gcn"], 2, "expected one, --partitions, or --nodes and --edges"),
        (
            ["gcn", "cliques", "--partitions", "parts"],
            2,
            "and --partitions are given",
        ),
        (["gcn", "--partitions", "nowhere"], 2, "nowhere/manifest.json is missing"),
        (["gnc", *SIZES], 2, "model is 'gnc'; expected one of"),
        (["gcn", *SIZES, "--topology", "a1000"], 2, "topology is 'a1000'"),
        (["gcn", *SIZES, "--devices", "9"], 1, "expected 1 to 8"),
        (["gcn", *SIZES, "--memory", "1M"], 1, "no plan fits in"),
        (["gcn", *SIZES, "--memory", "lots"], 2, "expected bytes"),
        (["gcn", *SIZES, "--require", "convs.0=magic"], 1, "it can be split by"),
        (["gcn", *SIZES, "--require", "convs.0"], 2, "expected LAYER=STRATEGY"),
        (["gcn", *SIZES, "-o", "plan.txt"], 2, "ends in .json"),
        (["nowhere.py:model", *SIZES], 2, "there is no file 'nowhere.py'"),
    ],
)
def test_wrong_requests_are_answered_in_words(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *arguments]) == code
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("NAME = 3", "expected a module"),
        ("def NAME(): return 3", "expected a module"),
        ("def NAME(): raise KeyError('key')", "KeyError: 'key', line 1"),
        ("def NAME(a): return a", "missing 1 required positional argument"),
        ("def (", "SyntaxError"),
        ("import a_module_that_nobody_has", "a_module_that_nobody_has"),
        ("other = 3", "has no 'NAME'"),
    ],
)
def test_what_goes_wrong_in_a_models_own_file_is_told_in_a_line(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.py"
    path.write_text(text)
    assert main(["plan", f"{path}:NAME", *SIZES]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert str(path) in error
    assert "Traceback" not in error
