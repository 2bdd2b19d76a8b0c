"""What is in a page: whether it is whole, and what it would fetch."""

from __future__ import annotations

import xml.dom.minidom
from html.parser import HTMLParser

VOID = {"meta", "br"}


class Page(HTMLParser):
    """A page that was read.

    Attributes:
        fetched: what it would fetch when it is opened.
        rows: the cells of all tables, row by row.
        open: tags that are not closed.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value and not value.startswith("#"):
                self.fetched.append(value)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def read_page(text: str) -> Page:
    """A page, with all its pictures whole, that fetches nothing."""
    page = Page(text)
    assert page.open == []
    assert page.fetched == []
    for picture in pictures(text):
        xml.dom.minidom.parseString(picture)
    return page


def pictures(text: str) -> list[str]:
    """The SVG in a page."""
    return ["<svg" + piece.partition("</svg>")[0] + "</svg>" for piece in text.split("<svg")[1:]]
