"""`Explanation`: what happens to each layer of a model, and why, as a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from hag_plugin.notebook import html_table
from hag_plugin.saved import set_module

# What a call of a layer ran on: a program that shares sums, the graph as it is in the same fused
# kernels, messages in blocks of edges, or the framework's own code.
Kind = Literal["HAG", "plain", "blocks", "stock"]


@set_module("hag_plugin")
class Calls:
    """The calls of one layer so far, by what they ran on. Copies and pickles start anew.

    Attributes:
        counts: how many ran on each.
        reasons: why the last of each did.
        known: what whoever counts need not find out at every call.
        strangers: of graphs that did not come back, what whoever decides need not find out.
    """

    __slots__ = ("counts", "known", "reasons", "strangers")

    def __init__(self) -> None:
        self.counts: dict[Kind, int] = {}
        self.reasons: dict[Kind, str] = {}
        self.known: Any = None
        self.strangers: Any = None

    def note(self, kind: Kind, reason: str) -> None:
        """Counts a call."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.reasons[kind] = reason

    def __reduce__(self) -> tuple[type[Calls], tuple[()]]:
        return Calls, ()

    def __str__(self) -> str:
        return "; ".join(
            f"{count} {kind}" + (f" ({self.reasons[kind]})" if self.reasons[kind] else "")
            for kind, count in self.counts.items()
        )


@set_module("hag_plugin")
@dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
        name: its qualified name in the model.
        layer: its class, before `accelerate`.
        accelerated: whether it aggregates over a HAG where it is given one.
        aggregates: reducer and matrix, as in "sum over A"; empty where there is no recipe.
        reason: why not, or what a call must not give.
        calls: what its calls ran on so far.
    """

    name: str
    layer: str
    accelerated: bool
    aggregates: str
    reason: str
    calls: Calls = field(default_factory=Calls)


@set_module("hag_plugin")
@dataclass(frozen=True)
class Explanation:
    """The rows of `explain`; prints as a table.

    Attributes:
        rows: one for each layer.
        notes: sentences about several rows, printed below the table.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def _table(self) -> list[tuple[str, ...]]:
        """The cells, the head first."""
        table: list[tuple[str, ...]] = [
            ("layer", "class", "HAG", "aggregates", "calls so far", "note")
        ]
        return table + [
            (
                r.name or "(itself)",
                r.layer,
                "yes" if r.accelerated else "no",
                r.aggregates,
                str(r.calls) or "none",
                r.reason,
            )
            for r in self.rows
        ]

    def _repr_html_(self) -> str:
        table = self._table()
        return html_table(table, words=len(table[0]), below=self.notes)

    def __str__(self) -> str:
        table = self._table()
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(t, widths, strict=True)) for t in table]
        lines.insert(1, "  ".join("-" * w for w in widths))
        lines += ["", *self.notes] if self.notes else []
        return "\n".join(line.rstrip() for line in lines)
