"""Interleaved timing: every side takes its turn in every round, so that drift hits all alike."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hag_plugin.hag.calibration import shortest

from .crashes import entering

Call = Callable[[], Any]

REWARMED = 20e-3  # seconds; a call shorter than this runs once, untimed, before it is measured
SLOW = 1.0  # seconds; what a first call costs beyond the others is small against this
ALONE, MOST_CALLS = 5e-4, 1024  # seconds that are timed at once, and calls in them
ENDLESS = 4.0  # seconds; a call that takes longer is measured once, after its first call


@dataclass(frozen=True)
class Budget:
    """How long to measure.

    Attributes:
        seconds: for all sides of one cell together; slow sides may exceed it.
        least_rounds: measurements of each side, however slow; one, if a call exceeds `ENDLESS`.
        most_rounds: measurements of each side, however fast.
        least_seconds: one measurement repeats the call until it lasts this long.
    """

    seconds: float
    least_rounds: int = 3
    most_rounds: int = 101
    least_seconds: float = 2e-3

    def shared(self, parts: int) -> Budget:
        """That of each of several parts, rounds rounded up."""
        least, most = -(-self.least_rounds // parts), -(-self.most_rounds // parts)
        return replace(self, seconds=self.seconds / parts, least_rounds=least, most_rounds=most)


@dataclass(frozen=True)
class Rounds:
    """Seconds a call, by side and round; None where a slow side sat a round out.

    Attributes:
        seconds: by side, one entry a round.
        calls: by side, calls in one measurement, at most.
    """

    seconds: Mapping[str, Sequence[float | None]]
    calls: Mapping[str, int]

    @classmethod
    def joined(cls, parts: Sequence[Rounds]) -> Rounds:
        """The rounds of several measurements of the same sides, one after the other."""
        sides = parts[0].seconds
        seconds = {side: [t for part in parts for t in part.seconds[side]] for side in sides}
        calls = {side: max(part.calls[side] for part in parts) for side in sides}
        return cls(seconds, calls)

    def summary(self) -> dict[str, dict[str, float]]:
        """By side: median, quartiles, smallest, number of rounds, calls in a measurement."""
        table = {}
        for side, measured in self.seconds.items():
            times = sorted(t for t in measured if t is not None)
            low, high = _quartiles(times)
            table[side] = {
                "median": statistics.median(times),
                "low": low,
                "high": high,
                "least": times[0],
                "rounds": len(times),
                "calls": self.calls[side],
            }
        return table

    def ratio(self, slower: str, faster: str) -> float:
        """The median, over the rounds that both took part in, of one's time over the other's."""
        return statistics.median(self._ratios(slower, faster))

    def control(self, side: str, again: str) -> dict[str, float]:
        """What one thing measured twice shows: `ratio` of its times and their `spread`.

        The spread is the larger of the ratio's distance from 1 and the notch of a box plot,
        1.57 x (quartile range) / sqrt(rounds): about a 95 % interval of a median.
        """
        ratios = self._ratios(side, again)
        low, high = _quartiles(sorted(ratios))
        notch = 1.57 * (high - low) / math.sqrt(len(ratios))
        ratio = statistics.median(ratios)
        return {"ratio": ratio, "spread": max(abs(ratio - 1.0), notch)}

    def _ratios(self, a: str, b: str) -> list[float]:
        pairs = zip(self.seconds[a], self.seconds[b], strict=True)
        return [s / t for s, t in pairs if s is not None and t is not None]


def interleave(
    sides: Mapping[str, Call], budget: Budget, together: Sequence[str] = (), seed: int = 0
) -> Rounds:
    """Times all sides in rounds, in a new random order each round.

    Every side is warmed up, repeats its call to fill `budget.least_seconds`, and gets an equal
    share of the time. A side too slow for all rounds is spread evenly over them.

    Args:
        sides: by name, what to call.
        budget: how long.
        together: sides whose ratios are asked for: they take part in the same rounds, with the
            same number of calls in a measurement (the first ones are colder).
        seed: of the order.
    """
    once, calls, turns = {}, {}, {}
    for side, call in sides.items():
        entering(side)
        once[side] = _warm_up(call)
        calls[side] = max(1, math.ceil(budget.least_seconds / once[side]))
    most_calls = max((calls[side] for side in together), default=1)
    calls.update(dict.fromkeys(together, most_calls))
    for side, seconds in once.items():
        share = budget.seconds / len(sides)
        fitting = int(share / (seconds * (calls[side] + (seconds < REWARMED))))
        least = 1 if seconds > ENDLESS else budget.least_rounds
        turns[side] = min(max(fitting, least), budget.most_rounds)
    fewest_turns = min((turns[side] for side in together), default=1)
    turns.update(dict.fromkeys(together, fewest_turns))
    num_rounds = max(turns.values())
    order = random.Random(seed)
    measured: dict[str, list[float | None]] = {side: [] for side in sides}
    for number in range(num_rounds):
        for side in order.sample(list(sides), len(sides)):
            due = (number + 1) * turns[side] // num_rounds > number * turns[side] // num_rounds
            entering(side)
            measured[side].append(_measure(sides[side], calls[side]) if due else None)
    entering("")
    return Rounds(measured, calls)


def alone(call: Call, clock: Callable[[], float] = time.thread_time) -> float:
    """Seconds that this thread runs itself in a warm call that uses no other."""
    call()
    calls, taken = 1, list[float]()
    while len(taken) < 3:
        start = clock()
        for _ in range(calls):
            call()
        took = clock() - start
        if took < ALONE and calls < MOST_CALLS:
            calls *= 4
        else:
            taken.append(took / calls)
    return shortest(taken)


def _warm_up(call: Call) -> float:
    """Seconds of one warm call: short ones are called for longer, long ones only once."""
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    if first > SLOW:
        return first
    least = math.inf
    start = time.perf_counter()
    for _ in range(5):
        begin = time.perf_counter()
        call()
        end = time.perf_counter()
        least = min(least, end - begin)
        if end - start > REWARMED:
            break
    return max(least, 1e-7)


def _measure(call: Call, calls: int) -> float:
    """Seconds a call, of so many in a row."""
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    if calls == 1 and once >= REWARMED:
        return once  # long enough to be warm for all but its first moments
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def _quartiles(times: Sequence[float]) -> tuple[float, float]:
    if len(times) < 2:
        return times[0], times[0]
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, high
