"""Verdicts: what measurements of a cell say, and when it is measured again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PASSED, FAILED, UNDECIDED, SAME = "passed", "failed", "undecided", "same"

# What several threads take at most, beside one thread's time for the same work, and to start them.
AT_MOST, STARTING = 1.1, 5e-5
AT_LEAST = 1 / 3  # of their even share of it: more caches help, but not so much


def implausible(seconds: Mapping[str, float], alone: Mapping[str, float], threads: int) -> str:
    """Why times cannot be those of the work itself; empty where they can.

    Threads that wait for one that the system has set aside all wait for the same time, whichever
    side they run: a ratio of 1 with no spread, which says nothing.

    Args:
        seconds: of a call, by side.
        alone: of the same sides, what one thread runs itself.
        threads: that a call may use.
    """
    for side, took in seconds.items():
        one = alone[side]
        if not (math.isfinite(took) and took > 0.0):
            return f"{side} took {took} s"
        times = f"{side} took {1e3 * took:.3g} ms on {threads} threads, {1e3 * one:.3g} ms on one"
        if took > AT_MOST * one + STARTING:
            return f"{times}: it waited"
        if took < AT_LEAST * one / threads:
            return f"{times}: no clock of such a machine says so"
    return ""


@dataclass(frozen=True)
class Rule:
    """When a ratio of speeds fails. A measurement that is `implausible` says nothing.

    Attributes:
        least: a ratio below this by more than the control's spread is too low.
        largest_spread: of the control; a measurement with a larger one says nothing.
        attempts: measurements of a cell at most.
        far_ahead: whether a ratio that no such spread brings down to `least` says enough.
    """

    least: float
    largest_spread: float = 0.05
    attempts: int = 6
    far_ahead: bool = False

    def says(self, measured: Mapping[str, Any]) -> bool:
        """Whether a measurement says anything."""
        is_quiet = measured["spread"] <= self.largest_spread
        if self.far_ahead and measured["ratio"] - 2 * measured["spread"] > self.least:
            is_quiet = True
        return bool(is_quiet and not measured.get("implausible"))

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
        measure: measures for the n-th time, from 0: `ratio`, `spread` and more, `implausible` among
            it where the times were looked at.

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
