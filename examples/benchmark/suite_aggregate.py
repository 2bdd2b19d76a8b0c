"""Suite `aggregate`: one aggregation, all sides in one loop, with fresh and with reused outputs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from . import sides
from .graphs import LOOPS, Graph
from .plan import Cell, Plan
from .sides import AGAIN, AUTO, NONE, Problem
from .timing import interleave

NAME = "aggregate"
ROUNDS = 9  # at least; page faults of large outputs make single calls differ by a factor of two
SECONDS = 5.0


def cells(plan: Plan) -> Iterator[Cell]:
    """Graph by graph; in a graph by loops, then width, so that what was prepared serves again."""
    for graph in plan.graphs:
        for loops, width, reduce in itertools.product(plan.loops, plan.widths, plan.reduces):
            yield {"graph": graph, "loops": loops, "width": width, "reduce": reduce}


def measure(graph: Graph, cell: Cell, plan: Plan) -> dict[str, Any]:
    """Times a cell. `wrong` names the sides whose results differ; these are not timed."""
    with torch.no_grad():
        problem = new_problem(graph, cell, plan)
        taking_part, absent = sides.prepare(problem, plan.crashed)
        wrong = sides.unequal(problem, taking_part)
        for side in {text.partition(", ")[0] for text in wrong}:
            del taking_part[side]
        if not {AUTO, NONE} <= set(taking_part):
            return {"wrong": wrong, "absent": absent, "forms": {}}
        taking_part[AGAIN] = taking_part[AUTO]
        forms = {}
        for form in ("fresh", "reused"):
            calls = {name: getattr(c, form) for name, c in taking_part.items()}
            timed = {name: call for name, call in calls.items() if call is not None}
            rounds = interleave(timed, plan.budget(SECONDS, ROUNDS), together=(AUTO, AGAIN))
            forms[form] = {"sides": rounds.summary(), "control": rounds.control(AUTO, AGAIN)}
    return {"wrong": wrong, "absent": absent, "forms": forms, "saved": saved(graph, cell)}


def new_problem(graph: Graph, cell: Cell, plan: Plan) -> Problem:
    """Features and a buffer for a cell."""
    x = graph.features(cell["width"])
    return Problem(graph, cell["loops"], cell["reduce"], x, torch.empty_like(x), plan.memory_limit)


def saved(graph: Graph, cell: Cell) -> dict[str, Any]:
    """Rows that "auto" reads, and those that the plain graph reads."""
    hag = graph.hag("auto", cell["loops"], cell["width"])
    stats = hag.stats(LOOPS[cell["loops"]], idempotent=cell["reduce"] == "max")
    return {"rows_read": stats.rows_read, "rows_read_before": stats.rows_read_before}
