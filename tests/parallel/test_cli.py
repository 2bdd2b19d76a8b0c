"""`hag-plugin plan`, `explain-plan` and `probe`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hag_plugin.cli import main
from hag_plugin.cli.options import size
from hag_plugin.parallel.planner import Plan
from hag_plugin.parallel.topology import COLLECTIVES, load

SIZES = ["--nodes", "240000", "--edges", "12000000", "--features", "100", "--halo-ratio", "2"]


def test_plan_writes_a_file_that_explain_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "plan.json")
    assert main(["plan", "gcn", *SIZES, "--topology", "pcie4x4", "-o", path]) == 0
    out = capsys.readouterr().out
    assert "All figures are predicted" in out
    assert "predicted, all-gather" in out
    assert Plan.load(path).world_size == 4
    assert main(["explain-plan", path]) == 0
    assert out.startswith(capsys.readouterr().out.strip())
    assert main(["explain-plan", path, "gcn", *SIZES, "--topology", "pcie4x4", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    refused = document["alternatives"]["convs.0"]["relations"]
    assert refused == "refused: it has 1 relations, fewer than 4 devices"


def test_explain_refuses_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "plan.json")
    assert main(["plan", "gcn", *SIZES, "-o", path]) == 0
    assert main(["explain-plan", path, "gcn", *SIZES, "--layers", "2"]) == 2
    assert "the plan is for another model" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["gcn"], 2, "expected one, or --nodes and --edges"),
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


def test_sizes_are_binary() -> None:
    assert [size(t) for t in ("70GiB", "1.5G", "512m", "1024")] == [
        70 << 30, 3 << 29, 512 << 20, 1024,
    ]  # fmt: skip


def test_probe_measures_a_machine_that_plan_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "machine.json")
    assert main(["probe", "--largest", "64K", "-o", path, "--quiet"]) == 0
    assert "reduce_scatter" in capsys.readouterr().out
    machine = load(path)
    assert (machine.num_devices, machine.backend) == (2, "gloo")
    assert {(f.collective, f.world_size) for f in machine.fits} == {(c, 2) for c in COLLECTIVES}
    for line in machine.fits:
        assert line.alpha >= 0
        assert line.beta >= 0
        assert machine.seconds(line.collective, 1e5) == line.alpha + line.beta * 1e5
    assert machine.device.flops > 1e6
    assert main(["plan", "gcn", *SIZES, "--topology", path]) == 0


def test_probe_refuses_what_it_cannot_measure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--world-sizes", "1"]) == 2
    assert "expected numbers of 2 or more" in capsys.readouterr().err
