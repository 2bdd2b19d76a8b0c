"""The example for several GPUs, launched with torchrun on the cores of this machine."""

from __future__ import annotations

import doctest
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.nn import GCN

import hag_plugin.parallel as hpp
from hag_plugin.parallel import Plan

FOLDER = Path(__file__).parents[2] / "examples" / "multi_gpu"


def torchrun(size: int, script: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER.parents[1])}
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
         str(size), str(FOLDER / script), *words],
        capture_output=True, text=True, timeout=150, env=environment, check=False,
    )  # fmt: skip


def result_of(size: int, script: str, *words: str) -> dict[str, Any]:
    done = torchrun(size, script, "--json", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_train_from_nothing(tmp_path: Path) -> None:
    """Planned, trained, saved; then on from the checkpoint with the plan's file."""
    plan, checkpoint = tmp_path / "plan.json", tmp_path / "checkpoint"
    words = ["--save-plan", str(plan), "--checkpoint", str(checkpoint), "--epochs", "20"]
    found = result_of(2, "train.py", "--plan", "auto", *words)
    assert found["ranks"] == 2
    assert found["epochs"] == 20
    assert found["test_accuracy"] > 0.85
    assert {n: str(c) for n, c in Plan.load(plan).configs.items()} == found["plan"]
    done = torchrun(2, "train.py", "--plan", str(plan), "--checkpoint", str(checkpoint),
                    "--epochs", "25")  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "predicted: " in done.stdout
    assert "5 epochs on 2 ranks: loss " in done.stdout
    assert done.stdout.count("epochs on") == 1  # one rank speaks


def test_ranks_train_the_same_model() -> None:
    """Dropout included: its masks do not depend on the number of ranks."""
    words = ["--topology", "pcie4x4", "--partition", "contiguous", "--epochs", "5"]
    words += ["--data", "communities", "--nodes", "601", "--features", "24", "--hidden", "8"]
    alone = result_of(1, "train.py", *words)
    halo = result_of(2, "train.py", "--plan", "rows, halo", *words)
    assert halo["most_bytes_sent_per_epoch"] > 0 == alone["most_bytes_sent_per_epoch"]
    assert halo["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    assert halo["test_accuracy"] == pytest.approx(alone["test_accuracy"], abs=0.02)


def test_sweep(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    done = torchrun(2, "sweep.py", "--nodes", "2000", "--rounds", "4", "--output", str(path))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(path.read_text())
    assert set(found["measured_seconds"]) == set(found["predicted_seconds"])
    assert {"auto", "replicate", "rows, halo", "column-split weights"} < set(found["plans"])
    assert set(found["refused"]) == {"2-D grid", "relations"}
    assert (found["accuracy"] is None) == (found["noise"] > 0.05)
    assert found["regret"] >= 0
    assert found["sent_bytes"]["replicate"] == 0 < found["sent_bytes"]["rows, all-gather"]
    assert f"noise: the same plans measured twice differ by up to {found['noise']:.1%}" in (
        done.stdout
    )


def test_links_are_predicted() -> None:
    words = ["--data", "communities", "--nodes", "600", "--features", "24", "--hidden", "16"]
    words += ["--topology", "cpu2", "--epochs", "40"]
    found = result_of(2, "link_prediction.py", "--plan", "rows, halo", *words)
    assert found["ranks"] == 2
    assert found["auc"] > 0.6
    assert 0 <= found["hits_at_20"] <= 1


def test_wrong_arguments_end_all_ranks() -> None:
    done = torchrun(2, "train.py", "--data", "karate", "--plan", "rows, best", "--epochs", "1",
                    "--topology", "pcie4x4")  # fmt: skip
    assert done.returncode != 0
    assert "--plan is 'rows, best'; expected auto, a file, or one of" in done.stderr
    assert "planning failed on rank 0" in done.stderr


@pytest.mark.parametrize("option", ["--nodes", "--degree", "--features"])
def test_sizes_of_a_graph_that_is_not_generated_are_refused(option: str) -> None:
    task = example("task")
    given = task.parser("").parse_args(["--data", "karate", option, "8"])
    with pytest.raises(SystemExit, match=f"{option} is of --data communities; got karate"):
        task.load(given, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and RLIMIT_DATA")
def test_a_graph_that_is_cut(tmp_path: Path) -> None:
    """Generated, cut and trained on two ranks under a limit; a copy has one process's losses."""
    command = [sys.executable, str(FOLDER / "large_graph.py"), "--edges", "60e3", "--ranks", "2",
               "--topology", "cpu2", "--output", str(tmp_path / "new")]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER.parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (tmp_path / "new" / "large_graph.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    of = {row["kind"]: row for row in rows}
    assert [row["kind"] for row in rows] == [
        "setting", "tenth", "partition", "training", "equal"
    ]  # fmt: skip
    assert of["partition"]["edges"] == 60_000
    trained, ranks = of["training"], of["training"]["found"]["ranks"]
    assert sum(rank["edges"] for rank in ranks) == 60_000
    assert max(rank["sent_bytes"] for rank in ranks) == trained["planned_sent_bytes"] > 0
    assert trained["found"]["limit"] < of["tenth"]["whole_bytes"]
    assert of["equal"]["apart"] <= 1e-10
    assert (tmp_path / "new" / "large_graph.md").read_text() == done.stdout


def test_a_graph_that_is_cut_alone(tmp_path: Path) -> None:
    """What is left on the disk is what was told of it before, but for what edges are sorted in."""
    made = tmp_path / "made"
    words = ["--edges", "60e3", "--ranks", "2", "3", "--features", "8", "--cut-only"]
    words += ["--method", "contiguous", "--folder", str(made), "--output", str(tmp_path / "new")]
    done = subprocess.run(
        [sys.executable, str(FOLDER / "large_graph.py"), *words], capture_output=True, text=True,
        timeout=300, check=False, env=os.environ | {"PYTHONPATH": str(FOLDER.parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "new" / "large_graph_cut.md").read_text() == done.stdout
    large = example("large_graph")
    needed = large.disk_bytes(60_000, 2000, large.options().parse_args(words))
    left = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
    assert 0.9 <= left / (needed - 16 * 60_000) <= 1.1
    with pytest.raises(SystemExit, match=r"GB free; expected 1000000\.0 GB"):
        large.check_disk(tmp_path, 10**15)


def test_sorting_beside_what_is_installed(tmp_path: Path) -> None:
    """All find the same order, or it ends with an error."""
    pytest.importorskip("pyarrow")
    command = [sys.executable, str(FOLDER / "sorting.py"), "--edges", "30e3", "--by", "ours",
               "pyarrow", "--output", str(tmp_path / "new")]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"PYTHONPATH": str(FOLDER.parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (tmp_path / "new" / "sorting.jsonl").read_text().splitlines()
    assert [json.loads(line).get("by") for line in lines] == [None, "ours", "pyarrow"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_DATA")
def test_a_rank_without_the_memory_for_its_part(tmp_path: Path) -> None:
    """The limit holds: where it is too low, all ranks end with an error."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 64, generator=random)
    edges = torch.randint(20_000, (2, 200_000), generator=random)
    mask = torch.ones(20_000, dtype=torch.bool)
    data = Data(x, edges, y=torch.zeros(20_000, dtype=torch.int64), train_mask=mask)
    hpp.write_partitions(data, 2, tmp_path / "parts", method="contiguous")
    torch.manual_seed(0)
    plan = hpp.plan(GCN(64, 64, 2, 8), hpp.PartitionedData(tmp_path / "parts"), "cpu2")
    plan.save(tmp_path / "plan.json")
    job = {
        "parts": str(tmp_path / "parts"), "plan": str(tmp_path / "plan.json"), "model": "gcn",
        "sizes": [64, 64, 2, 8], "steps": 1, "limit": None,
    }  # fmt: skip
    for limit, enough in ((1 << 30, True), (1 << 20, False)):
        (tmp_path / "jobs.json").write_text(json.dumps([job | {"limit": limit}]))
        words = str(tmp_path / "jobs.json"), str(tmp_path / "found.json")
        done = torchrun(2, "large_graph_rank.py", *words)
        assert (done.returncode == 0) == enough, done.stderr[-3000:]
    assert "memory" in done.stderr.lower()


def example(name: str) -> Any:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    sys.path.append(str(FOLDER))  # for those beside it
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def test_accuracy_examples() -> None:
    module = example("accuracy")
    failed, tried = doctest.testmod(module)
    del sys.modules["accuracy"]
    assert (failed, tried) == (0, 4)
