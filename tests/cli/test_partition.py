"""`hag-plugin partition`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import hag_plugin as hp
from hag_plugin.cli import main
from hag_plugin.parallel.graphs.store.assign import METHODS

from .runs import refuse, run_json

EDGES = np.random.default_rng(0).integers(0, 50, (2, 400))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    np.save(tmp_path / "edges.npy", EDGES)
    np.save(tmp_path / "x.npy", np.arange(100.0).reshape(50, 2))
    np.save(tmp_path / "few.npy", np.ones(3))
    np.save(tmp_path / "owner.npy", np.arange(50) % 3)
    (tmp_path / "owner.txt").write_text("".join(f"{i % 3}\n" for i in range(50)))
    return tmp_path


@pytest.mark.parametrize("method", METHODS)
def test_what_is_said_is_there(
    method: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if method == "metis":
        pytest.importorskip("pymetis")
    out, rows = str(files / "parts"), f"x={files / 'x.npy'}"
    said, words = run_json(
        capsys, "partition", str(files / "edges.npy"), "--ranks", "3", "-o", out,
        "--method", method, "--rows", rows,
    )  # fmt: skip
    assert "read as: the array [2, E]" in words
    counts = said["partition"]
    assert (counts["nodes"], counts["edges"], counts["ranks"]) == (50, 400, 3)
    assert counts["names"] == ["x"]
    assert method in ("auto", counts["method"])
    for rank, part in enumerate(counts["parts"]):
        found = hp.parallel.PartitionedData(out, rank)
        assert part == {
            "rows": found.num_nodes, "edges": found.num_edges, "halo": len(found.halo), "hags": {}
        }  # fmt: skip
        assert found.x[:, 0].tolist() == (2 * found.nodes).tolist()


def test_values_of_edges(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(files / "w.npy", np.arange(400.0))
    command = ["partition", str(files / "edges.npy"), "--ranks", "3", "-o", str(files / "parts")]
    said, _ = run_json(capsys, *command, "--edge-values", f"w={files / 'w.npy'}")
    assert said["partition"]["edge_names"] == ["w"]
    parts = [hp.parallel.PartitionedData(files / "parts", rank) for rank in range(3)]
    nodes = np.concatenate([part.nodes.numpy() for part in parts])
    for part in parts:
        assert np.array_equal(nodes[part.edge_index.numpy()], EDGES[:, part.w.long().numpy()])


def test_hags(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["partition", str(files / "edges.npy"), "--ranks", "2", "-o", str(files / "parts")]
    assert main([*command, "--hag"]) == 0
    said = capsys.readouterr().out
    parts = [hp.parallel.PartitionedData(files / "parts", rank) for rank in range(2)]
    read = sum(part.search(False)[0].rows_read for part in parts)
    assert f"with HAGs, the parts read {read:,} rows for these edges" in said


@pytest.mark.parametrize("name", ["owner.npy", "owner.txt"])
def test_an_assignment_from_elsewhere(
    name: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["partition", str(files / "edges.npy"), "--ranks", "3", "--undirected"]
    out = files / "parts"
    assert main([*arguments, "-o", str(out), "--assignment", str(files / name)]) == 0
    said = capsys.readouterr().out
    assert "50 nodes" in said
    assert "assignment: " in said
    assert hp.parallel.PartitionedData(out, 1).nodes.tolist() == [*range(1, 50, 3)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rows", "x"], "--rows 'x'; expected NAME=FILE.npy"),
        (["--edge-values", "=w.npy"], "--edge-values '=w.npy'; expected NAME=FILE.npy"),
        (["--edge-values", "w={}/few.npy"], "w has 3 rows; expected 400, one an edge"),
        (["--nodes", "50", "--rows", "x={}/few.npy"], "x has 3 rows; expected 50, one a node"),
        (["--rows", "x={}/absent.npy"], "absent.npy: no such file"),
        (["--nodes", "7"], "expected ids from 0 to 6"),
        (["--memory", "1M"], "memory is 1,048,576 bytes; expected"),
        (["--assignment", "{}/few.npy"], "assignment is float64 [3]; expected whole numbers"),
        (["--assignment", "{}/absent"], "absent"),
        (["--assignment", "{}/words"], "words, line 2: 'x'; expected"),
    ],
)
def test_what_is_refused(
    options: list[str], words: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "words").write_text("0\nx\n")
    before = sorted(files.iterdir())
    given = [option.format(files) for option in options]
    command = ["partition", str(files / "edges.npy"), "--ranks", "3", "-o", str(files / "parts")]
    assert words in refuse(capsys, *command, *given)
    assert sorted(files.iterdir()) == before


def test_it_refuses_before_the_work(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["partition", "absent.npz", "--ranks", "3", "-o"]
    assert "it is there" in refuse(capsys, *command, str(files))
    assert "it is a file" in refuse(capsys, *command, str(files / "x.npy"))
    assert "there is no folder" in refuse(capsys, *command, str(files / "no" / "parts"))
    assert "absent.npz: no such file" in refuse(capsys, *command, str(files / "parts"))
