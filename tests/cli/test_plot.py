"""`hag-plugin plot`: the picture is whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hag_plugin.cli import main, picture
from hag_plugin.files import DatasetError

pytest.importorskip("matplotlib")


@pytest.mark.mostly_slow("cliques-.png")
@pytest.mark.parametrize(("name", "suffix"), [("collaboration", ".svg"), ("cliques", ".png")])
def test_the_command_writes_a_whole_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, suffix: str
) -> None:
    out = tmp_path / f"graph{suffix}"
    assert main(["plot", name, "-o", str(out), "--self-loops", "fill", "--json", "--quiet"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["shared_sums"] > 0
    assert document["mean_uses"] > 1
    costs = document["cost_by_capacity"]
    assert costs[0]["intermediates"] == 0
    assert costs[-1]["seconds"] < costs[0]["seconds"]
    start = out.read_bytes()[:8]
    assert start == b"\x89PNG\r\n\x1a\n" if suffix == ".png" else start.startswith(b"<?xml")
    if suffix == ".svg":
        assert out.read_text().rstrip().endswith("</svg>")
        first = out.read_bytes()
        assert main(["plot", name, "-o", str(out), "--self-loops", "fill", "--quiet"]) == 0
        assert out.read_bytes() == first  # the same picture is the same bytes


@pytest.mark.parametrize(
    ("options", "shared", "said"),
    [((), True, True), (("--method", "greedy"), True, False), (("--method", "none"), False, False)],
    ids=["auto", "greedy", "none"],
)
def test_where_nothing_pays_the_paper_s_search_is_drawn(
    options: tuple[str, ...],
    shared: bool,
    said: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = str(tmp_path / "karate.svg")
    assert main(["plot", "karate", "-o", out, "--quiet", *options, "--json"]) == 0
    assert (json.loads(capsys.readouterr().out)["shared_sums"] > 0) is shared
    assert main(["plot", "karate", "-o", out, "--quiet", *options]) == 0
    assert ("None of them pays here" in capsys.readouterr().out) is said


def test_what_cannot_be_drawn_to_is_named_before_any_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DatasetError, match=r"expected a name that ends in \.svg or \.png"):
        picture.check_output(str(tmp_path / "graph.jpg"))
    assert main(["plot", "karate", "-o", str(tmp_path / "no" / "x.svg")]) == 2
    assert "folder that exists" in capsys.readouterr().err
