"""`hag-plugin plan`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hag_plugin.cli import main

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
