"""`hag-plugin plan`, `simulate` and `explain-plan` of models without a graph, with --inputs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

import hag_plugin as hp
from hag_plugin.cli import main
from hag_plugin.cli.models import shape

from .runs import refuse, run_json

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.dense = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x, y):
        out = self.dense(self.conv(x).relu().mean((2, 3)))
        return nn.functional.cross_entropy(out, y)

net = Net()
"""
INPUTS = ["--inputs", "16x3x12x12", "16:int64"]


@pytest.fixture
def net(tmp_path: Path) -> str:
    """The model, as it is named."""
    (tmp_path / "net.py").write_text(MODEL)
    return f"{tmp_path / 'net.py'}:net"


@pytest.mark.parametrize(
    ("text", "sizes", "dtype"),
    [
        ("64x3x32x32", [64, 3, 32, 32], torch.float32),
        ("7", [7], torch.float32),
        ("64x20:int64", [64, 20], torch.int64),
        ("1:bfloat16", [1], torch.bfloat16),
    ],
)
def test_shapes_are_read(text: str, sizes: list[int], dtype: torch.dtype) -> None:
    assert shape(text) == (sizes, dtype)


@pytest.mark.parametrize(
    "text", ["", "x", "64x", "0x3", "-1", "3.5", "64:int65", "64:Tensor", "3 x 4", ":int64", "6_4"]
)
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected a shape, such as 64x3x32x32"):
        shape(text)


def test_plan_simulate_and_explain(
    net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, trace, picture = (str(tmp_path / name) for name in ("plan.json", "t.json", "t.svg"))
    machine = ["--topology", "pcie4x4"]
    said, _ = run_json(capsys, "plan", net, *INPUTS, *machine, "-o", path)
    found = hp.parallel.NetworkPlan.load(path)
    assert said["plan"] == found.as_dict()
    assert (found.model, found.world_size) == ("Net", 4)

    pytest.importorskip("matplotlib")
    of_file, _ = run_json(capsys, "simulate", net, *INPUTS, *machine, "--plan", path,
                          "--trace", trace, "--plot", picture)  # fmt: skip
    assert of_file["written"] == [trace, picture]
    assert of_file["additive_seconds"] == found.seconds
    assert of_file["critical_path_seconds"] <= of_file["simulated_seconds"] <= found.seconds + 1e-6
    labels = {event["name"] for event in json.loads(Path(trace).read_text())["traceEvents"]}
    assert {"conv.conv2d forward 0", "dense.linear forward 1"} <= labels
    planned, _ = run_json(capsys, "simulate", net, *INPUTS, *machine)
    assert planned["simulated_seconds"] == of_file["simulated_seconds"]

    assert main(["explain-plan", path]) == 0
    table = capsys.readouterr().out
    assert table.strip() == str(found).strip()
    assert main(["explain-plan", path, net, *INPUTS]) == 0
    explained = capsys.readouterr().out
    assert explained.startswith(table.strip())
    assert "No other plan is predicted to take less." in explained
    others, _ = run_json(capsys, "explain-plan", path, net, *INPUTS)
    assert {"whole", "sample", "channel"} <= others["alternatives"]["conv.conv2d"].keys()


def test_required_splits_and_words(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    split = "sample 2 x channel 2 on 3 1 0 2"
    words = ["--topology", "pcie4x4", "--require", f"conv.conv2d={split}"]
    assert main(["plan", net, *INPUTS, *words]) == 0
    assert split in capsys.readouterr().out
    assert main(["simulate", net, *INPUTS, "--topology", "cpu2"]) == 0
    out = capsys.readouterr().out
    assert "Net on cpu2, one training step (predicted)" in out
    assert "of all devices together" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["cliques", *INPUTS], "graph and inputs are given; expected a graph, or the inputs"),
        (["--nodes", "9", "--edges", "9", *INPUTS], "nodes and edges and inputs are given"),
        (["--partitions", "parts", *INPUTS], "partitions and inputs are given"),
        (["--inputs", "16x3x12x12"], "data is 1 tensors, with which Net.forward cannot be called"),
        (["--inputs", "16x3x12", "16"], "cannot be followed by torch.export"),
        (["--inputs", "16x3by12"], "argument --inputs: '16x3by12'; expected a shape"),
        ([*INPUTS, "--costs", "measured"], "costs= is of a model on a graph"),
        ([*INPUTS, "--hag", "off"], "hag= is of a model on a graph"),
        ([*INPUTS, "--require", "conv.conv2d=depth 2 on 0 1"], "has no axis 'depth'"),
        ([], "of a model without a graph --inputs"),
    ],
)
def test_wrong_requests_are_answered_in_words(
    words: list[str], expected: str, net: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refuse(capsys, "plan", net, *words)


def test_plans_of_the_two_kinds_are_told_apart(
    net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_net, of_graph = (str(tmp_path / name) for name in ("net.json", "graph.json"))
    gcn = ["gcn", "--nodes", "1000", "--edges", "20000", "--hidden", "8"]
    small = ["--topology", "pcie4x4"]
    assert main(["plan", net, *INPUTS, *small, "-o", of_net]) == 0
    assert main(["plan", *gcn, *small, "-o", of_graph]) == 0
    capsys.readouterr()
    for command in (["simulate", *gcn, *small, "--plan", of_net], ["explain-plan", of_net, *gcn]):
        assert "a model without a graph; expected its --inputs" in refuse(capsys, *command)
    for command in (["simulate", net, *INPUTS, *small, "--plan", of_graph],
                    ["explain-plan", of_graph, net, *INPUTS]):  # fmt: skip
        assert "a model on a graph; expected that, not --inputs" in refuse(capsys, *command)
    named = refuse(capsys, "plan", "gcn", *INPUTS)
    assert "model is 'gcn', which takes a graph" in named
    sampled = refuse(capsys, "simulate", net, *INPUTS, *small, "--proposals", "9")
    assert "expected one on a graph for --proposals or --seconds" in sampled
