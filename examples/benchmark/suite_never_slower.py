"""Suite `never-slower`: "auto" against "none" on every graph, width, matrix and reducer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from . import sides, suite_aggregate
from .graphs import Graph, same_program
from .plan import Cell, Plan
from .sides import AUTO, NONE, Problem
from .timing import interleave

NAME = "never-slower"
SECONDS = 1.0
LEAST = 0.97  # a ratio below this by more than the control's spread is a failure
NONE_AGAIN = "hag none again"


def cells(plan: Plan) -> Iterator[Cell]:
    """The same grid as `aggregate`."""
    return suite_aggregate.cells(plan)


def measure(graph: Graph, cell: Cell, plan: Plan) -> dict[str, Any]:
    """The ratio of "none" to "auto", in both forms; measured again where it is too low."""
    if same_program(graph, cell["loops"], cell["width"], cell["reduce"]):
        return {"same": True, "wrong": {}, "forms": {}, "failed": False}
    with torch.no_grad():
        problem = suite_aggregate.new_problem(graph, cell, plan)
        pair = {AUTO: sides.SIDES[AUTO](problem), NONE: sides.SIDES[NONE](problem)}
        wrong = sides.unequal(problem, pair)
        forms = {} if wrong else {f: _twice(problem, pair, f, plan) for f in ("fresh", "reused")}
    return {
        "same": False,
        "wrong": wrong,
        "forms": forms,
        "failed": bool(wrong) or any(form["failed"] for form in forms.values()),
        "saved": suite_aggregate.saved(graph, cell),
    }


def _twice(problem: Problem, pair: dict[str, sides.Calls], form: str, plan: Plan) -> dict[str, Any]:
    """Measures; where that fails, once more: only twice running is a failure."""
    attempts: list[dict[str, Any]] = []
    while len(attempts) < 2 and all(too_slow(a) for a in attempts):
        calls = {name: getattr(c, form) for name, c in pair.items()}
        calls[NONE_AGAIN] = calls[NONE]
        rounds = interleave(calls, plan.budget(SECONDS), together=tuple(calls), seed=len(attempts))
        control = rounds.control(NONE, NONE_AGAIN)
        ratio = {"ratio": rounds.ratio(NONE, AUTO), "spread": control["spread"]}
        attempts.append(ratio | {"control": control["ratio"], "sides": rounds.summary()})
    last = attempts[-1]
    return {**last, "attempts": len(attempts), "failed": too_slow(last)}


def too_slow(measured: dict[str, Any]) -> bool:
    """Whether "auto" is below 0.97 of "none" by more than the spread of the control."""
    ratio: float = measured["ratio"]
    return bool(ratio < LEAST - measured["spread"])
