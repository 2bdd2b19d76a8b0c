"""The candidates for one matrix of a graph, all exact, and which of them runs: by seconds.

Three programs compute the same: the plain one in the graph's own order of rows, the plain one in
the order that the search chose, and the HAG's. Which is fastest depends on how long a row is, on
the machine, on what is done to the rows and on the graph: a `Table` says it for every width, and
travels with the HAG.
"""

from __future__ import annotations

import bisect
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hag_plugin.hag.rates import ARITHMETICS, Arithmetic
from hag_plugin.modes import Array
from hag_plugin.saved import set_module

PLAIN, REORDERED, SHARED = "plain", "plain, reordered", "hag"
NAMES = (PLAIN, REORDERED, SHARED)
CHOOSE = ("measure", "model", "hag", "plain")
VARIABLE = "HAG_PLUGIN_CHOOSE"

# Bytes of a row in the dtype that sums accumulate in, for which the seconds of the candidates are
# kept; rows of another length are taken as the next of these, by ratio.
ROW_BYTES = (32, 64, 128, 256, 384, 512, 1024, 2048)
SHAPE = len(ARITHMETICS), len(ROW_BYTES)
_LIMITS = tuple(math.sqrt(a * b) for a, b in itertools.pairwise(ROW_BYTES))

# Beside what a call costs, so little does not show: then the HAG's program runs.
UNSEEN = 5e-7  # seconds that it loses
SHORT = 1e-5  # seconds of the fastest, at most
CLEARLY = 0.95  # of the seconds of the plain graph: by less than this a HAG wins by chance
# How many standard deviations another program must be ahead of the plain graph. That takes no
# longer than itself, so that the less is known, the more must be promised.
CAUTION = 0.5
# What the plain graph in another order must take of its time at most. A sample does not show what
# an order does to all rows together; over real graphs that gained by it, the HAG gained as much.
IN_ORDER = 0.85


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
        if times and self.seconds[self.name] > each[0][1]:
            times += ", too near to tell"
        return f"{self.name} by {self.by}" + (f": {times}" if times else "")


@dataclass(frozen=True, eq=False)
class Table:
    """The seconds of each candidate, by what is done to the rows and by their length.

    Attributes:
        by: "measure" or "model".
        names: of the candidates, "plain" and "hag" at least.
        seconds: float64 `[len(names), len(ARITHMETICS), len(ROW_BYTES)]`.
        error: the standard deviation of the logarithm of the HAG's seconds over the plain graph's,
            float64 `[len(ARITHMETICS), len(ROW_BYTES)]`.
    """

    by: str
    names: tuple[str, ...]
    seconds: Array
    error: Array

    def choose(self, arithmetic: Arithmetic, row_bytes: float) -> Choice:
        """The fastest candidate for rows of so many bytes, the HAG's if it wins clearly."""
        kind, at = ARITHMETICS.index(arithmetic), bisect.bisect(_LIMITS, row_bytes)
        seconds = dict(zip(self.names, self.seconds[:, kind, at].tolist(), strict=True))
        return Choice(_winner(seconds, float(self.error[kind, at])), self.by, seconds)

    def fastest(self, is_extremum: bool) -> set[str]:
        """The candidates that are the fastest for some row, for sums or for extrema."""
        kinds = [each for each in ARITHMETICS if each.is_extremum == is_extremum]
        return {self.choose(*point).name for point in itertools.product(kinds, ROW_BYTES)}

    def state(self) -> dict[str, Any]:
        """Names and numbers, for files."""
        numbers = {"seconds": self.seconds.tolist(), "error": self.error.tolist()}
        return {"by": self.by, "names": list(self.names), **numbers}

    @classmethod
    def of(cls, state: Any) -> Table:
        """The table of a state, of which nothing is trusted. Earlier ones knew no error.

        Raises:
            ValueError: it is none.
        """
        try:
            by, names = state["by"], tuple(state["names"])
            known = state.get("error", np.zeros(SHAPE))
            seconds, error = np.array(state["seconds"]), np.array(known)
            named = set(names)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as e:
            raise ValueError(f"this is no table: {e!r}") from e
        if by not in ("measure", "model"):
            raise ValueError(f"a table is by {by!r}; expected 'measure' or 'model'")
        if not {PLAIN, SHARED} <= named <= set(NAMES) or len(named) < len(names):
            raise ValueError(f"a table is of {names}; expected {PLAIN!r}, {SHARED!r} and none but "
                             f"{NAMES}, each once")  # fmt: skip
        for numbers, shape in ((seconds, (len(names), *SHAPE)), (error, SHAPE)):
            if numbers.dtype != np.float64 or numbers.shape != shape:
                raise ValueError(f"a table holds {numbers.dtype} {list(numbers.shape)}; expected "
                                 f"float64 {list(shape)}")  # fmt: skip
            if not (np.isfinite(numbers) & (numbers >= 0)).all():
                raise ValueError(f"a table holds {numbers}; expected finite numbers, 0 or more")
        return cls(by, names, seconds, error)


def _winner(seconds: Mapping[str, float], error: float) -> str:
    """The candidate that runs, of seconds by name: the HAG's if it wins clearly.

    Floats and no arrays: a batch that is met once asks for a point or two.
    """
    ahead, best = math.exp(-CAUTION * error), PLAIN
    if seconds.get(REORDERED, math.inf) < min(IN_ORDER, ahead) * seconds[PLAIN]:
        best = REORDERED
    least = seconds[best]
    shown = least + UNSEEN if least <= SHORT else 0.0
    return SHARED if seconds[SHARED] <= max(min(CLEARLY, ahead) * least, shown) else best


def arithmetic_of(dtype: torch.dtype, is_extremum: bool) -> Arithmetic:
    """What is done to rows of a dtype."""
    return Arithmetic(dtype not in (torch.float32, torch.float64), is_extremum)


def bytes_of_a_row(width: int, dtype: torch.dtype) -> int:
    """Bytes of a row in the dtype that sums accumulate in."""
    return width * (8 if dtype == torch.float64 else 4)


def total(tables: Sequence[Table]) -> Table:
    """The table of graphs side by side, which have two candidates: plain and shared."""
    names = (PLAIN, SHARED)
    of_each = [table.seconds[[table.names.index(name) for name in names]] for table in tables]
    error = np.max([table.error for table in tables], axis=0)
    return Table("model", names, np.sum(of_each, axis=0), error)
