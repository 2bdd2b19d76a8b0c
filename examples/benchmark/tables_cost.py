"""Markdown tables of the suites `cost` and `counts`."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from .results import Record
from .tables import markdown

WORST = 10
SEARCHES = ("auto", "tiles", "unbounded", "free", "whole")


def cost(records: Sequence[Record]) -> str:
    """Errors of predictions and regret of choices, in all and by width, and the worst cells."""
    header = ["width", "cells", "programs", "error: median", "mean", "largest", "regret: median",
              "mean", "largest"]  # fmt: skip
    widths = sorted({record["cell"]["width"] for record in records})
    rows = [_cost_row(str(w), [r for r in records if r["cell"]["width"] == w]) for w in widths] + [
        _cost_row("all", records)
    ]
    worst = sorted(records, key=lambda r: -r["regret"])[:WORST]
    worst_rows = [
        [r["cell"]["graph"], r["cell"]["loops"].replace("+", " + "), str(r["cell"]["width"]),
         r["fastest"], f"{r['regret']:.1%}"] for r in worst
    ]  # fmt: skip
    return "\n".join([
        'Error: |predicted - measured| / measured, over "auto", "none" and the forced variants. '
        'Regret: seconds of "auto" over those of the fastest variant, less 1. '
        f"Constants {', '.join(sorted({r['constants'] for r in records}))}.\n",
        markdown(header, rows) + "\n",
        "The largest regrets:\n",
        markdown(["graph", "matrix", "width", "fastest", "regret"], worst_rows) + "\n",
    ])  # fmt: skip


def errors(record: Record) -> list[float]:
    """The relative error of each prediction of a cell."""
    measured: dict[str, float] = record["measured"]
    return [abs(record["predicted"][name] / seconds - 1.0) for name, seconds in measured.items()]


def _cost_row(name: str, records: Iterable[Record]) -> list[str]:
    records = list(records)
    found = [error for record in records for error in errors(record)]
    regrets = [record["regret"] for record in records]
    return [name, str(len(records)), str(len(found)),
            *(f"{value:.0%}" for value in median_mean_largest(found)),
            *(f"{value:.1%}" for value in median_mean_largest(regrets))]  # fmt: skip


def median_mean_largest(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), statistics.mean(values), max(values)


def counts(records: Sequence[Record]) -> str:
    """Rows saved by the search, with and without its bounds, a line a cell."""
    header = ["graph", "matrix", "rows read, plain", "auto saves", "tiles save",
              "without a work bound", "the bound loses", "free intermediates",
              "greedy over the whole graph", "tiles lose"]  # fmt: skip
    rows = []
    for record in records:
        saved = {
            key: _saved(record, key) for key in ("auto", "tiles", "unbounded", "free", "whole")
        }
        rows.append([
            record["cell"]["graph"], record["cell"]["loops"].replace("+", " + "),
            f"{record['plain']:,}", *[_share(record, saved[k]) for k in ("auto", "tiles")],
            _share(record, saved["unbounded"]), _loss(saved["tiles"], saved["unbounded"]),
            *[_share(record, saved[k]) for k in ("free", "whole")],
            _loss(saved["free"], saved["whole"]),
        ])  # fmt: skip
    note = (
        "Saved: rows that are not read, of those that the plain graph reads. Tiles: the search, "
        "even where the plain program is then taken. The bound loses: what merging without a bound "
        "in the same tiles saves, less what is saved. Tiles lose: what Algorithm 3 saves without a "
        "capacity over the whole graph, less what tiles save with neither a bound nor a price for "
        "intermediates (- where it takes too long; a negative loss is a gain)."
    )
    return markdown(header, rows) + "\n\n" + note + "\n"


def _saved(record: Record, key: str) -> int | None:
    found: dict[str, Any] | None = record[key]
    return None if found is None else int(record["plain"]) - int(found["rows_read"])


def lost_by_bound(record: Record) -> float | None:
    """The share of the rows that merging without a work bound saves in the same tiles."""
    saved, most = _saved(record, "tiles"), _saved(record, "unbounded")
    return None if saved is None or not most else 1.0 - saved / most


def _share(record: Record, saved: int | None) -> str:
    return "-" if saved is None else f"{saved / max(record['plain'], 1):.1%}"


def _loss(saved: int | None, most: int | None) -> str:
    return "-" if saved is None or not most else f"{1.0 - saved / most:.1%}"
