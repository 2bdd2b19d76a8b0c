"""`hag-plugin report`: the page is whole, alone, and says what the other commands say."""

from __future__ import annotations

import json
import xml.dom.minidom
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hag_plugin.cli import main
from hag_plugin.cli.report import WIDTHS

pytest.importorskip("matplotlib")


class Sources(HTMLParser):
    """What a page would fetch."""

    found: tuple[str, ...] = ()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value and not value.startswith("#"):
                self.found = (*self.found, value)


def test_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    assert main(["report", "karate", "-o", str(out), "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == str(out)
    page = out.read_text()
    sources = Sources()
    sources.feed(page)
    assert sources.found == ()
    xml.dom.minidom.parseString(page[page.index("<svg") : page.index("</svg>") + 6])
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
