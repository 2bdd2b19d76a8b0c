"""Suite `cost`: what the cost model predicts against what is measured, and what choosing costs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from hag_plugin.hag import constants
from hag_plugin.hag.cost import Work

from . import variants
from .graphs import Graph
from .plan import Cell, Plan
from .timing import interleave

NAME = "cost"
SECONDS = 3.0
WIDTHS = (16, 64, 256)


def cells(plan: Plan) -> Iterator[Cell]:
    """Graphs x {A, A + I} x widths."""
    for graph, loops, width in itertools.product(plan.graphs, plan.loops, plan.widths):
        yield {"graph": graph, "loops": loops, "width": width}


def measure(graph: Graph, cell: Cell, plan: Plan) -> dict[str, Any]:
    """Times all variants in one loop, into one buffer. `regret`: "auto" over the fastest, less 1.

    Where "auto" is the plain program, the two are measured as one and "none" stands for both.
    """
    width = cell["width"]
    programs = variants.distinct(graph, cell["loops"], width)
    if all(map(torch.equal, *(programs[n].arrays for n in (variants.AUTO, variants.NONE)))):
        del programs[variants.AUTO]
    x = graph.features(width)
    y = torch.zeros_like(x)
    threads, costs = torch.get_num_threads(), constants.in_force()
    calls = {name: variants.run(program, x, y, "sum") for name, program in programs.items()}
    wrong = _unequal(calls, y)
    rounds = interleave(calls, plan.budget(SECONDS), together=tuple(calls)).summary()
    medians = {name: rounds[name]["median"] for name in calls}
    chosen = medians.get(variants.AUTO, medians[variants.NONE])
    return {
        "wrong": wrong,
        "forms": {},
        "constants": costs.digest,
        "threads": threads,
        "measured": medians,
        "predicted": {
            name: Work.of(program).seconds(4 * width, threads, constants=costs)
            for name, program in programs.items()
        },
        "regret": chosen / min(medians.values()) - 1.0,
        "fastest": min(medians, key=medians.__getitem__),
    }


def _unequal(calls: dict[str, Callable[[], None]], y: torch.Tensor) -> dict[str, str]:
    """The variants whose result is not that of the plain program."""
    calls[variants.NONE]()
    expected = y.clone()
    bound = 1e-4 * expected.abs().max().clamp(min=1.0)
    wrong = {}
    for name, call in calls.items():
        y.fill_(float("nan"))
        call()
        error = (y - expected).abs().max() if y.numel() else torch.zeros(())
        if not error <= bound:
            wrong[f"hag {name}"] = f"differs by {float(error):.2g}"
    return wrong
