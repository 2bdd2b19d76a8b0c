"""A model over a graph that is met once: ours beside stock, whose calls make it anew each time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .plan import Plan
from .sides import AGAIN, AUTO
from .timing import interleave
from .verdict import Rule, judge

TOLERANCE = 1e-3  # of the largest value, in float32
RULE = Rule(least=0.97, far_ahead=True)
Calls = Mapping[str, Callable[[], tuple[Tensor, Tensor]]]  # which give an output and a gradient


def compared(calls: Calls, stock: str, plan: Plan, seconds: float) -> dict[str, Any]:
    """The record of a cell: what differs, and the times until there is a verdict.

    Args:
        calls: of `stock`, the same again, and ours.
        stock: whose times ours are held against.
        plan: how long is measured.
        seconds: where the plan does not say.
    """
    expected, found, wrong = calls[stock](), calls[AUTO](), {}
    for name, ours, theirs in zip(("output", "gradient"), found, expected, strict=True):
        if not (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max():
            wrong[AUTO] = f"its {name} differs"

    def attempt(number: int) -> dict[str, Any]:
        budget = plan.budget(seconds, longer=number + 1)
        rounds = interleave(calls, budget, together=tuple(calls), seed=number)
        control = rounds.control(stock, AGAIN)
        forms = {"fresh": {"sides": rounds.summary(), "control": control}}
        return {"forms": forms, "ratio": rounds.ratio(stock, AUTO), "spread": control["spread"]}

    return {"wrong": wrong, "absent": {}, **judge(RULE, attempt)}
