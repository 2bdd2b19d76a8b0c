"""`hag-plugin stats`, and what it shares with `build` and `plot`: graphs, searches and checks."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

import hag_plugin as hp
from hag_plugin.cli import main
from hag_plugin.cli.search import LOOPS, CheckError, check
from hag_plugin.data import datasets
from hag_plugin.data.graph_data import GraphData

from .runs import refuse, run_json


def test_stats_counts_the_graph(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "g.txt"
    path.write_text("0 1\n0 1\n1 0\n2 2\n4 0\n")
    document, _ = run_json(capsys, "stats", str(path), "--check")
    assert document["graph"] == {
        "nodes": 5, "edges": 5, "graphs": 1, "duplicates": 1, "self_loops": 1, "isolated": 1,
        "symmetric": False,
    }  # fmt: skip
    assert document["checked"] is True


@pytest.mark.parametrize("loops", ["none", "add", "fill"])
def test_stats_agree_with_the_library(capsys: pytest.CaptureFixture[str], loops: str) -> None:
    document, _ = run_json(capsys, "stats", "cliques", "--self-loops", loops)
    graph = hp.build_hag(datasets.load("cliques").edge_index, num_nodes=1000)
    stats = graph.stats(LOOPS[loops])
    assert document["stats"]["rows_read"] == stats.rows_read
    assert document["stats"]["aggregations_before"] == stats.aggregations_before
    assert document["profits"] is True


def test_stats_says_when_nothing_is_gained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "karate", "--method", "none"]) == 0
    assert "does not profit" in capsys.readouterr().out


@pytest.mark.parametrize("choose", ["model", "hag", "plain"])
@pytest.mark.parametrize("graph", ["karate", "cliques"])
def test_what_stats_says_is_what_runs(
    capsys: pytest.CaptureFixture[str], choose: str, graph: str
) -> None:
    """A profit is claimed only where the HAG's program runs at that width."""
    arguments = ["stats", graph, "--choose", choose]
    document, _ = run_json(capsys, *arguments)
    assert main(arguments) == 0
    said = capsys.readouterr().out
    ran = document["stats"]["choice"]["name"] == "hag"
    assert document["profits"] == ("The HAG profits" in said)
    assert ran or ("plain graph runs" in said and not document["profits"])


def test_wrong_variables_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HAG_PLUGIN_CHOOSE", "fastest")
    said = refuse(capsys, "stats", "karate", "--quiet")
    assert "HAG_PLUGIN_CHOOSE is 'fastest'; expected one of" in said
    monkeypatch.delenv("HAG_PLUGIN_CHOOSE")
    monkeypatch.setenv("HAG_PLUGIN_COSTS", str(tmp_path / "none.json"))
    said = refuse(capsys, "stats", "karate", "--quiet")
    assert "HAG_PLUGIN_COSTS names a file that is not there" in said
    assert "none.json" in said


def test_stats_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "cliques", "--self-loops", "fill"]) == 0
    out = capsys.readouterr().out
    assert "aggregations" in out
    assert "The HAG profits" in out


def test_stats_of_a_plan_for_a_gpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = str(tmp_path / "c.npz")
    how = ("--self-loops", "add", "--method", "greedy", "--device", "cuda")
    built, _ = run_json(capsys, "build", "cliques", path, *how)
    assert built["settings"]["device"] == "cuda"
    gpu = built["stats"]["gpu"]
    assert gpu["serial_chain"] == sum(each["longest_op"] for each in gpu["launches"])
    assert len(gpu["launches"]) > 1
    assert run_json(capsys, "stats", path, "--self-loops", "add")[0]["stats"]["gpu"] == gpu
    assert run_json(capsys, "stats", "cliques")[0]["stats"]["gpu"] is None
    assert main(["stats", "cliques", *how]) == 0
    out = capsys.readouterr().out
    assert "occupancy" in out
    assert f"longest serial chain: {gpu['serial_chain']} rows" in out
    held = built["stats"]["gpu_bytes"]
    assert f"with edge weights or attention {held['edges']:,} more" in out
    assert f"{sum(held.values()) - held['edges']:,} bytes ({held['graph']:,} of the graph" in out


def test_what_is_said_of_sharing_is_said_of_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    said = {}
    for device in ("cpu", "cuda"):
        assert main(["stats", "cliques", "--device", device]) == 0
        said[device] = capsys.readouterr().out
    assert "The HAG profits" in said["cpu"]
    assert "nothing was found to share that pays on a GPU" in said["cuda"]


def test_empty_graph(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "g.txt"
    path.write_text("")
    document, _ = run_json(capsys, "stats", str(path))
    assert document["profits"] is False


def test_greedy_and_subtraction(capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--method", "greedy"], ["--allow-subtraction"]):
        document, _ = run_json(capsys, "stats", "karate", "--check", *options)
        assert document["checked"]


def test_bad_line_reaches_the_user(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "g.txt"
    path.write_text("0 1\n1 two\n")
    assert "g.txt, line 2: '1 two'; expected two node ids" in refuse(capsys, "stats", str(path))


def test_damaged_hag_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "g.npz"
    np.savez(path, header=np.frombuffer(b"{}", np.uint8))
    assert "g.npz" in refuse(capsys, "stats", str(path))


def test_failed_check_is_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    edges = torch.combinations(torch.arange(6)).T
    hag, other = (hp.build_hag(e, num_nodes=6) for e in (edges, edges.flip(0)))
    assert hag.program() is not other.program()  # made when they are first asked for
    hag._programs = other._programs
    hag.save(tmp_path / "g.npz")
    words = "row 0, source 1: expected 0 edges, found 1"
    assert words in refuse(capsys, "stats", str(tmp_path / "g.npz"))  # with --check or without
    data = GraphData("g", "here", edges, 6)
    with pytest.raises(CheckError, match=words):
        check(Namespace(check=True), data, hag, False)
