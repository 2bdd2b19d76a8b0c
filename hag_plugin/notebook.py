"""Tables as a notebook shows them: what `_repr_html_` of printed things is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


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
