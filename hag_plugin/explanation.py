"""`Explanation`: what happens to each layer of a model, and why, as a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
        name: its qualified name in the model.
        layer: its class, before `accelerate`.
        accelerated: whether it aggregates over a HAG where it is given one.
        aggregates: reducer and matrix, as in "sum over A"; empty where there is no recipe.
        reason: why not, or what a call must not give.
    """

    name: str
    layer: str
    accelerated: bool
    aggregates: str
    reason: str


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

    def __str__(self) -> str:
        table = [("layer", "class", "HAG", "aggregates", "note")]
        table += [
            (
                r.name or "(itself)",
                r.layer,
                "yes" if r.accelerated else "no",
                r.aggregates,
                r.reason,
            )
            for r in self.rows
        ]
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(t, widths, strict=True)) for t in table]
        lines.insert(1, "  ".join("-" * w for w in widths))
        lines += ["", *self.notes] if self.notes else []
        return "\n".join(line.rstrip() for line in lines)
