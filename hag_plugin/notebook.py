"""HTML: the tables that a notebook shows of printed things, and pages of such tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from hag_plugin.provenance import machine, package_versions

STYLE = """
body { font-family: system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { border-bottom: 1px solid #ccc; padding: 0.3rem 0.8rem; }
svg { max-width: 100%; height: auto; }
"""


def html_table(
    rows: Iterable[Sequence[str]], *, words: int = 1, above: str = "", below: Iterable[str] = ()
) -> str:
    """A table as HTML. All text is escaped.

    Args:
        rows: of cells, the head first.
        words: how many columns are words, to the left; those that follow are numbers.
        above: a line above the table.
        below: lines below it.
    """
    head, *body = rows

    def line(cells: Sequence[str], tag: str) -> str:
        places = ["left" if column < words else "right" for column in range(len(cells))]
        return "".join(
            f'<{tag} style="text-align: {place}">{escape(cell)}</{tag}>'
            for cell, place in zip(cells, places, strict=True)
        )

    lines = [f"<p>{escape(above)}</p>"] if above else []
    lines += ["<table>", f"<thead><tr>{line(head, 'th')}</tr></thead>", "<tbody>"]
    lines += [f"<tr>{line(cells, 'td')}</tr>" for cells in body]
    lines += ["</tbody>", "</table>"]
    notes = "<br>".join(escape(note) for note in below)
    return "\n".join([*lines, f"<p>{notes}</p>"] if notes else lines)


def html_page(title: str, heading: str, parts: Iterable[str]) -> str:
    """A page that fetches nothing when it is opened; below its parts, what they were made on.

    Args:
        title: as text, as is the heading.
        heading: above the parts.
        parts: HTML.
    """
    made = {**machine(), **{name: v for name, v in package_versions().items() if v}}
    lines = [
        "<!doctype html>",
        f'<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{STYLE}</style>",
        f"<h1>{escape(heading)}</h1>",
        *parts,
        f"<p>{escape(', '.join(f'{name} {value}' for name, value in made.items()))}</p>",
        "</html>",
    ]
    return "\n".join(lines)
