"""The command line: results on stdout, progress on stderr, plain words for what is wrong."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import hag_plugin as hp
from hag_plugin import cli
from hag_plugin.cli import main


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], str]:
    """The document a command prints with --json, and what it says on stderr."""
    code = main([*arguments, "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    document = json.loads(captured.out)  # nothing else is on stdout
    assert {"machine", "versions", "date"} <= document.keys()
    assert document["versions"]["torch"] == torch.__version__
    return document, captured.err


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """What a command says on stderr when it refuses, in one paragraph without a traceback."""
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


# Help -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["demo", "stats", "build", "plot", "calibrate"])
def test_help_has_examples(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, "--help"]) == 0
    assert f"examples:\n  hag-plugin {command}" in capsys.readouterr().out


def test_examples_in_help_parse(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("demo", "stats", "build", "plot", "calibrate"):
        main([command, "--help"])
        examples = capsys.readouterr().out.partition("examples:\n")[2].split("\n")
        for line in filter(None, examples):
            words = line.partition(">")[0].split()[1:]
            assert cli._parser().parse_args(words).command == command


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert hp.__version__ in capsys.readouterr().out


# stats and build --------------------------------------------------------------------------------


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
    graph = hp.build_hag(torch.from_numpy(_edges("cliques")), num_nodes=1000)
    stats = graph.stats(cli.LOOPS[loops])
    assert document["stats"]["rows_read"] == stats.rows_read
    assert document["stats"]["aggregations_before"] == stats.aggregations_before
    assert document["profits"] is True


def _edges(name: str) -> np.ndarray:
    from hag_plugin import datasets

    return datasets.load(name).edge_index.numpy()


def test_stats_says_when_nothing_is_gained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "karate", "--method", "none"]) == 0
    assert "does not profit" in capsys.readouterr().out


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


def test_empty_graph(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "g.txt"
    path.write_text("")
    document, _ = run_json(capsys, "stats", str(path))
    assert document["profits"] is False


def test_build_writes_what_stats_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    built, _ = run_json(capsys, "build", "cliques", str(path), "--self-loops", "fill", "--check")
    assert built["file_bytes"] == path.stat().st_size
    hag = hp.HAG.load(path)
    hag.check(torch.from_numpy(_edges("cliques")))
    found, _ = run_json(capsys, "stats", str(path), "--self-loops", "fill", "--check")
    assert found["stats"] == built["stats"], "the file's program, not a new search"


def test_greedy_and_subtraction(capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--method", "greedy"], ["--allow-subtraction"]):
        document, _ = run_json(capsys, "stats", "karate", "--check", *options)
        assert document["checked"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stats", "nope"], "built-in graph (collaboration, digits"),
        (["stats", "nope.npz"], "nope.npz: no such file"),
        (["stats", "karate", "--method", "best"], "invalid choice: 'best'"),
        (["stats", "karate", "--width", "0"], "'0'; expected an integer, 1 or more"),
        (["stats", "karate", "--seed", "-1"], "expected an integer, 0 or more"),
        (["stats", "karate", "--threads", "x"], "'x'; expected an integer"),
        (["build", "karate", "out.bin"], "expected a name that ends in .npz"),
        (["build", "karate", "nowhere/out.npz"], "there is no folder nowhere"),
        (["demo", "--dataset", "cliques", "--quiet"], "no labels"),
        (["demo", "--dataset", "karate", "--plot", "a.doc"], "expected a name that ends in .png"),
        (["demo", "--graphs", "3", "--quiet"], "3 graphs; the demo needs 5 or more"),
        (["stats", "karate", "--graphs", "3"], '(--graphs) is for "collaboration" only'),
        (["stats", "karate", "--undirected"], "for edge lists only"),
        (["demo", "--epochs", "0"], "'0'; expected an integer, 1 or more"),
        (["nothing"], "invalid choice: 'nothing'"),
        ([], "COMMAND"),
    ],
)
def test_wrong_input_is_named(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert words in refuse(capsys, *arguments)


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
    hag = hp.build_hag(edges, num_nodes=6)
    hag._programs = hp.build_hag(edges.flip(0), num_nodes=6)._programs
    hag.save(tmp_path / "g.npz")
    said = refuse(capsys, "stats", str(tmp_path / "g.npz"), "--check", code=1)
    assert "row 0, source 1: expected 0 edges, found 1" in said


def test_interrupt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(io.RawIOBase):
        def readall(self) -> bytes:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Interrupted()))
    assert "interrupted" in refuse(capsys, "stats", "-", code=130)


# demo -------------------------------------------------------------------------------------------


def check_demo(document: dict[str, Any], epochs: int) -> None:
    for side in ("stock", "accelerated"):
        assert len(document[side]["losses"]) == len(document[side]["epoch_seconds"]) == epochs
        assert 0 <= document[side]["accuracy"] <= 1
    # The first loss is taken at, or close to, the same weights; later ones drift by rounding.
    assert document["accelerated"]["losses"][0] == pytest.approx(
        document["stock"]["losses"][0], rel=1e-3
    )
    assert document["differences"]["initial_float64"] < 1e-12
    assert document["differences"]["same_weights_float32"] < 1e-5
    assert document["search_seconds"] > 0
    assert document["stats"]["rows_read"] <= document["stats"]["rows_read_before"]


def test_demo_on_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch_geometric")
    arguments = ["demo", "--dataset", "karate", "--epochs", "3", "--hidden", "8", "--threads", "1"]
    document, progress = run_json(capsys, *arguments)
    check_demo(document, 3)
    assert document["dataset"]["task"] == "nodes"
    assert "searching" in progress  # a bar leaves out steps that pass within a tenth of a second
    assert document["settings"]["threads"] == 1


def test_demo_subprocess_on_graphs() -> None:
    pytest.importorskip("torch_geometric")
    command = [sys.executable, "-m", "hag_plugin", "demo", "--epochs", "2", "--graphs", "40"]
    done = subprocess.run(
        [*command, "--json", "--threads", "1"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    check_demo(document, 2)
    assert document["dataset"] | {"source": ""} == {
        "name": "collaboration", "source": "", "graphs": 40, "nodes": document["dataset"]["nodes"],
        "edges": document["dataset"]["edges"], "classes": 3, "task": "graphs",
    }  # fmt: skip
    assert "100%" in done.stderr or "epoch" in done.stderr


@pytest.mark.parametrize("dataset", [["--graphs", "40"], ["--dataset", "karate"]])
def test_demo_in_dgl(capsys: pytest.CaptureFixture[str], dataset: list[str]) -> None:
    pytest.importorskip("dgl", reason="DGL is not installed")
    arguments = ["demo", "--framework", "dgl", *dataset, "--epochs", "2", "--threads", "1"]
    document, _ = run_json(capsys, *arguments)
    check_demo(document, 2)
    assert document["settings"]["framework"] == "dgl"
    assert document["stats"]["rows_read"] <= document["stats"]["rows_read_before"]


def test_demo_of_a_failing_side_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch_geometric")
    monkeypatch.setenv("HAG_PLUGIN_ISA", "none")  # read where kernels first run: in the sides
    said = refuse(capsys, "demo", "--dataset", "karate", "--quiet", code=1)
    assert 'the accelerated run failed: ValueError: HAG_PLUGIN_ISA is "none"' in said


def a_comparison(stock: float, ours: float, search: float, read: int, apart: float = 0.0) -> Any:
    from hag_plugin import datasets, demo
    from hag_plugin.training import Settings

    stats = dict.fromkeys(("aggregations", "rows_read", "bytes"), 100.0)
    stats |= {f"{name}_before": 200.0 for name in stats} | {"rows_read": float(read)}
    run = {"losses": [1.0, 0.5], "accuracy": 0.9}
    return demo.Comparison(
        datasets.load("karate"),
        Settings(epochs=2),
        demo.Run([9.0, stock], [0.1, 0.1], peak_bytes=2**20, **run),
        demo.Run([9.0, ours], [0.2, 0.2], peak_bytes=None, **run),
        stats,
        search,
        dict.fromkeys(demo.DIFFERENCES, apart),
    )


@pytest.mark.parametrize(
    ("numbers", "words", "earned"),
    [
        ((1.0, 0.5, 0.1, 100), "An epoch is 2.0x faster, 2.0x fewer rows", 0.2),
        ((1.0, 0.5, 9.0, 100), "earned back only after 18 epochs", 18.0),
        ((1.0, 0.5, 0.1, 199), "shares next to nothing (1.01x fewer rows read)", 0.2),
        ((0.5, 1.0, 0.1, 100), "does not pay", None),
        ((1.0, 0.5, 0.1, 100, 0.1), "DIFFER by 1.0e-01", 0.2),
    ],
)
def test_the_conclusion_is_honest(numbers: Any, words: str, earned: float | None) -> None:
    pytest.importorskip("torch_geometric")
    from hag_plugin import demo

    result = a_comparison(*numbers)
    assert words in demo.conclusion(result)
    assert result.epochs_to_earn_back == pytest.approx(earned) if earned else not result.profits
    text = demo.table(result)
    for row in ("search, seconds", "aggregations", "rows read", "bytes, CSR and program",
                "seconds an epoch", "epochs that earn", "peak memory", "final loss",
                "test accuracy", "outputs differ"):  # fmt: skip
        assert row in text
    assert "never" in text or earned
    json.dumps(result.as_dict(), allow_nan=False)


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("torch_geometric")
    from hag_plugin import demo

    path = tmp_path / "p.png"
    demo.check_plot(str(path))
    demo.plot(a_comparison(1.0, 0.5, 0.1, 100), str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
