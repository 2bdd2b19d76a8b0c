"""The script that stands plans beside CAGNET's and Plexus's formulas."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

if not (ROOT / "examples" / "reproduce" / "full_graph.py").is_file():
    pytest.skip("the scripts are part of the repository, not of the wheel", allow_module_level=True)

from examples.reproduce import full_graph_formulas as formulas  # noqa: E402  # no part of the wheel

GRAPHS = [
    formulas.Graph("narrow", 1_000_000, 20_000_000, (128, 64)),
    formulas.Graph("deep", 3_000_000, 40_000_000, (100, 128, 128, 47)),
    formulas.Graph("wide", 500_000, 90_000_000, (768, 256, 256, 256, 153)),
]


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
@pytest.mark.parametrize("devices", [4, 16, 64, 1024])
def test_what_the_papers_say_of_each_other(graph: formulas.Graph, devices: int) -> None:
    """Where the graph has as many edges as features, and these outweigh the weights, 2D moves
    5 / sqrt(P) of what 1D does; 1.5D never moves more than 1D; each is less on more devices."""
    width = 32
    even = formulas.Graph("even", 10**9, width * 10**9, (width, width, width))
    share = formulas.two_d(even, devices).nbytes / formulas.one_d(even, devices).nbytes
    exact = 5 / math.sqrt(devices) / ((1 + (devices - 1) / devices) / 2)
    assert share == pytest.approx(exact, rel=1e-5)
    one, copied = formulas.one_d(graph, devices), formulas.one_and_half_d(graph, devices)
    assert copied.nbytes <= one.nbytes + 4 * sum(f * graph.nodes / devices for f, _ in graph.layers)
    for name in ("CAGNET 2D", "CAGNET 3D", "Plexus"):
        formula = formulas.FORMULAS[name]
        assert formula(graph, 4 * devices).nbytes < formula(graph, devices).nbytes


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
def test_plexus_on_grids_of_one_axis(graph: formulas.Graph) -> None:
    """By hand: an axis has one part in a layer, and another in the next."""
    devices = 8
    ring = (devices - 1) / devices
    layers = [*graph.layers]
    for axis in range(3):
        grid = tuple(devices if each == axis else 1 for each in range(3))
        expected = 0.0
        for number, (f, g) in enumerate(layers):
            part = (axis + number) % 3  # X, then Y, then Z are those of the first layer
            if part == 0:  # sums over neighbours are reduced, forward and backward
                expected += 2 * 2 * ring * graph.nodes * f
            elif part == 1:  # products are reduced
                expected += 2 * ring * graph.nodes * g
            else:  # weights and the features of the first layer are in parts
                expected += 3 * ring * f * g + 2 * ring * graph.nodes * f
        assert formulas.plexus_words(graph, grid) == pytest.approx(expected)
    assert formulas.plexus_words(graph, (1, 1, 1)) == 0


def test_a_random_partition_reads_what_it_is_dealt() -> None:
    """The mean over drawn graphs is that of the formula."""
    import numpy as np

    graph, parts = formulas.Graph("", 6000, 60_000, (1,)), 8
    random = np.random.default_rng(0)
    source, owner = random.integers(0, 6000, 60_000), random.integers(0, parts, 6000)
    target = random.integers(0, 6000, 60_000)
    read = np.unique(np.stack([source, owner[target]]), axis=1)
    others = int((owner[read[0]] != read[1]).sum())
    assert others / 6000 == pytest.approx(formulas.random_halo(graph, parts), rel=0.05)


def test_the_page(tmp_path: Path) -> None:
    """Every size leaves a record, and both graphs a table; a second run measures nothing again."""
    command = [sys.executable, "-m", "examples.reproduce.full_graph", "--quick", "--quiet",
               "--threads", "1", "--out", str(tmp_path)]  # fmt: skip
    for _ in range(2):
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert "8 of 8 cells are measured" in done.stderr
    page = (tmp_path / "full_graph.md").read_text()
    assert "No GPU was run" in page
    lines = (tmp_path / "full_graph.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    cells = [record for record in records if record["kind"] == "cell"]
    assert len(cells) == 8
    for record in cells:
        assert record["ours"]["sent"] > 0
        assert {*record["formulas"]} == {*formulas.FORMULAS}
