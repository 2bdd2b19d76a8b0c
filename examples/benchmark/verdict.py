"""Verdicts: what measurements of a cell say, and when it is measured again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PASSED, FAILED, UNDECIDED, SAME = "passed", "failed", "undecided", "same"


@dataclass(frozen=True)
class Rule:
    """When a ratio of speeds fails.

    Attributes:
        least: a ratio below this by more than the control's spread is too low.
        largest_spread: of the control; a measurement with a larger one says nothing.
        attempts: measurements of a cell at most.
    """

    least: float
    largest_spread: float = 0.05
    attempts: int = 6

    def says(self, measured: Mapping[str, Any]) -> bool:
        """Whether a measurement says anything."""
        return bool(measured["spread"] <= self.largest_spread)

    def too_low(self, measured: Mapping[str, Any]) -> bool:
        """Whether its ratio is too low."""
        return bool(measured["ratio"] < self.least - measured["spread"])

    def verdict(self, attempts: Sequence[Mapping[str, Any]]) -> str | None:
        """What all measurements of a cell say together; None: it is to be measured again.

        Too low twice running is a failure; those that say nothing do not count. A cell that has
        had its attempts is undecided, and never passes for that.
        """
        deciding = [measured for measured in attempts if self.says(measured)]
        if deciding and not self.too_low(deciding[-1]):
            return PASSED
        if len(deciding) > 1 and self.too_low(deciding[-2]):
            return FAILED
        return UNDECIDED if len(attempts) >= self.attempts else None


def judge(rule: Rule, measure: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """Measures a cell until there is a verdict.

    Args:
        rule: what to judge by.
        measure: measures for the n-th time, from 0: `ratio`, `spread` and more.

    Returns:
        The last measurement that says something, or else the last one, with its `verdict` and
        the number of `attempts`.
    """
    attempts: list[dict[str, Any]] = []
    while (verdict := rule.verdict(attempts)) is None:
        attempts.append(measure(len(attempts)))
    kept = next((a for a in reversed(attempts) if rule.says(a)), attempts[-1])
    return {**kept, "verdict": verdict, "attempts": len(attempts)}


def is_settled(record: Mapping[str, Any]) -> bool:
    """Whether a record of a cell says what was asked: an undecided one does not."""
    judged: Mapping[str, Any] = record.get("choice", record)
    return judged.get("verdict") != UNDECIDED
