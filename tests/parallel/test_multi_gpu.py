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
    done = torchrun(1, "train.py", "--data", "karate", option, "8", "--topology", "pcie4x4")
    assert done.returncode != 0
    assert f"{option} is of --data communities; got karate" in done.stderr


def test_accuracy_examples() -> None:
    spec = importlib.util.spec_from_file_location("accuracy", FOLDER / "accuracy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["accuracy"] = module  # dataclasses look there
    try:
        spec.loader.exec_module(module)
        failed, tried = doctest.testmod(module)
    finally:
        del sys.modules["accuracy"]
    assert (failed, tried) == (0, 4)
