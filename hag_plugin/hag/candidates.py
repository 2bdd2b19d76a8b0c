"""The candidates for one matrix of a graph, all exact, and which of them runs: by seconds.

Three programs compute the same: the plain one in the graph's own order of rows, the plain one in
the order that the search chose, and the HAG's. Which is fastest depends on how long a row is, on
the machine and on the graph: a `Table` says it for every width, and travels with the HAG.
"""

from __future__ import annotations

import bisect
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hag_plugin.saved import set_module

PLAIN, REORDERED, SHARED = "plain", "plain, reordered", "hag"
NAMES = (PLAIN, REORDERED, SHARED)
CHOOSE = ("measure", "model", "hag", "plain")
VARIABLE = "HAG_PLUGIN_CHOOSE"

# Bytes of a row in the dtype that sums accumulate in, for which the seconds of the candidates are
# kept; rows of another length are taken as the next of these, by ratio.
ROW_BYTES = (32, 64, 128, 256, 384, 512, 1024, 2048)
_LIMITS = tuple(math.sqrt(a * b) for a, b in itertools.pairwise(ROW_BYTES))

UNSEEN = 5e-7  # seconds; no call shows so little: then the HAG's program runs
CLEARLY = 0.97  # of the seconds of the plain graph: by less than this a HAG wins by chance


class ChooseError(ValueError):
    """HAG_PLUGIN_CHOOSE is none of `CHOOSE`."""


def how_to_choose(choose: str | None, method: str) -> str:
    """How a HAG is to choose: as it was told, as the environment says, or by its method.

    Args:
        choose: one of `CHOOSE`; None: it was not told.
        method: of the search. "greedy", the paper's, runs what it finds unless it was told.

    Raises:
        ChooseError: HAG_PLUGIN_CHOOSE is none of `CHOOSE`.
    """
    if choose is not None:
        return choose
    if method == "greedy":
        return "hag"
    choose = os.environ.get(VARIABLE) or "measure"
    if choose not in CHOOSE:
        raise ChooseError(f"{VARIABLE} is {choose!r}; expected one of {CHOOSE}")
    return choose


@set_module("hag_plugin")
@dataclass(frozen=True)
class Choice:
    """Which candidate runs.

    Attributes:
        name: "plain" (the graph as it is), "plain, reordered" (its rows in the order that the
            search chose) or "hag" (the program that shares sums).
        by: "measure" (candidates were timed when the HAG was built), "model" (the cost model),
            "search" (nothing that pays was found), or, where the HAG was told, "hag" or "plain".
        seconds: of one aggregation by each candidate on one thread, measured or predicted; empty
            where nobody had to ask.
    """

    name: str
    by: str
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """As in "hag by measure: hag 1.2 ms, plain 1.9 ms"."""
        each = sorted(self.seconds.items(), key=lambda item: item[1])
        times = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in each)
        return f"{self.name} by {self.by}" + (f": {times}" if times else "")


@dataclass(frozen=True)
class Table:
    """The seconds of each candidate, for rows of each of `ROW_BYTES`.

    Attributes:
        by: "measure" or "model".
        seconds: by candidate, "plain" and "hag" at least, in the order of `ROW_BYTES`.
    """

    by: str
    seconds: Mapping[str, Sequence[float]]

    def choose(self, row_bytes: float) -> Choice:
        """The fastest candidate for rows of so many bytes, the HAG's if it wins clearly."""
        at = bisect.bisect(_LIMITS, row_bytes)
        seconds = {name: each[at] for name, each in self.seconds.items()}
        best = min(seconds.keys() - {SHARED}, key=lambda name: (seconds[name], name))
        if seconds[SHARED] <= max(CLEARLY * seconds[best], seconds[best] + UNSEEN):
            best = SHARED
        return Choice(best, self.by, seconds)

    @property
    def names(self) -> set[str]:
        """The candidates that are the fastest for some row."""
        return {self.choose(row_bytes).name for row_bytes in ROW_BYTES}

    def state(self) -> dict[str, Any]:
        """Names and numbers, for files."""
        return {"by": self.by, "seconds": {k: list(v) for k, v in self.seconds.items()}}

    @classmethod
    def of(cls, state: Any) -> Table:
        """The table of a state, of which nothing is trusted.

        Raises:
            ValueError: it is none.
        """
        by, seconds = state["by"], state["seconds"]
        if by not in ("measure", "model") or not isinstance(seconds, dict):
            raise ValueError(f"a table of seconds is {state!r}; expected `by` and `seconds`")
        if not {PLAIN, SHARED} <= seconds.keys():
            raise ValueError(f"a table is of {sorted(seconds)}; expected {PLAIN} and {SHARED}")
        for name, each in seconds.items():
            if name not in NAMES or len(each) != len(ROW_BYTES):
                raise ValueError(f"a table holds {name!r} with {len(each)} values; expected "
                                 f"{len(ROW_BYTES)} for some of {NAMES}")  # fmt: skip
            if not all(isinstance(s, float) and 0 <= s < math.inf for s in each):
                raise ValueError(f"a table holds {each!r}; expected finite numbers, 0 or more")
        return cls(by, {name: tuple(each) for name, each in seconds.items()})


def bytes_of_a_row(width: int, dtype: torch.dtype) -> int:
    """The bytes of the float32 row that is read at about the same price.

    A row of a half type is converted to float32, which takes about as long as to add it.
    """
    return width * (4 if dtype == torch.float32 else 8)


def total(tables: Sequence[Table]) -> Table:
    """The table of graphs side by side, which have two candidates: plain and shared."""
    sums = {
        name: tuple(map(sum, zip(*(table.seconds[name] for table in tables), strict=True)))
        for name in (SHARED, PLAIN)
    }
    return Table("model", sums)
