"""`hag-plugin report`: the page is whole, alone, and says what the other commands say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hag_plugin.cli import main
from hag_plugin.pages.sections import WIDTHS
from hag_plugin.units import milliseconds

from ..html_pages import pictures, read_page

pytest.importorskip("matplotlib")


def test_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    assert main(["report", "karate", "-o", str(out), "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == str(out)
    page = out.read_text()
    read_page(page)
    assert main(["stats", "karate", "--quiet"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert f"<p>{said[-1]}</p>" in page
    for width in WIDTHS:
        assert f'<td style="text-align: left">{width}</td>' in page


@pytest.mark.parametrize("name", ["page.txt", "absent/page.html"])
def test_what_cannot_be_written_is_refused_first(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "karate", "-o", str(tmp_path / name)]) == 2
    assert name.rpartition("/")[0] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_on_the_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch_geometric")
    out, plan = tmp_path / "page.html", tmp_path / "plan.json"
    sizes = ["--layers", "2", "--hidden", "8"]
    words = ["plan", "gcn", "karate", "--topology", "pcie4x4", "-o", str(plan), *sizes]
    assert main(words) == 0
    capsys.readouterr()
    words = ["report", "karate", "--model", "gcn", *sizes, "--plan", str(plan), "-o", str(out)]
    assert main([*words, "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["model"]
    assert [layer["name"] for layer in found["layers"]] == ["convs.0", "convs.1"]
    page = out.read_text()
    read_page(page)
    assert len(pictures(page)) == 3  # the graph and its HAG, seconds, the timeline
    for seconds in (found["stock_seconds"], found["accelerated_seconds"]):
        assert f'<td style="text-align: right">{milliseconds(seconds)}</td>' in page


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--plan", "plan.json"], "--plan is for a model; expected --model, too"),
        (["--model", "gnc"], "model is 'gnc'; expected one of"),
        (["--model", "gcn", "--plan", "absent.json"], "No such file or directory: absent.json"),
    ],
)
def test_wrong_models_are_named(
    more: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch_geometric")
    assert main(["report", "karate", "-o", str(tmp_path / "page.html"), *more]) == 2
    assert words in capsys.readouterr().err
