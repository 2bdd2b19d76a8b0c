"""Markdown tables of the suite `never-slower`."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .results import Record
from .suite_never_slower import LARGEST_REGRET, RULE
from .tables import geometric_mean, markdown, times
from .verdict import FAILED, PASSED, SAME, UNDECIDED

SETTING = ("instruction_set", "constants")
LOWEST, MOST_UNDECIDED = 10, 20


def judged(records: Iterable[Record]) -> list[Record]:
    """Those with a verdict: earlier versions of the suite gave none."""
    return [record for record in records if "verdict" in record]


def counts(records: Iterable[Record]) -> Counter[str]:
    """Cells by verdict."""
    return Counter(record["verdict"] for record in records)


def sentence(records: Sequence[Record]) -> str:
    """What was found, in a sentence that may be quoted: a cell that was not timed did not pass."""
    count = counts(records)
    timed = sum(count[verdict] for verdict in (PASSED, FAILED, UNDECIDED))
    ratios = [r["ratio"] for r in records if r["verdict"] == PASSED]
    words = (
        f"Of {len(records):,} cells {count[SAME]:,} run the plain program and were not timed "
        f"against it; of the {timed:,} timed, {count[PASSED]:,} passed, {count[FAILED]:,} failed "
        f"and {count[UNDECIDED]:,} stayed undecided."
    )
    if count["wrong"]:
        words += f" In {count['wrong']:,} a result differs."
    if ratios:
        words += (
            f" Where it passed, auto is {times(statistics.median(ratios))} as fast as none in the "
            f"median, {times(min(ratios))} at least and {times(max(ratios))} at most."
        )
    return words


def regrets(records: Iterable[Record]) -> list[float]:
    """Of all cells in which there was something to choose and the spread said something."""
    return [
        record["regret"]
        for record in records
        if "regret" in record and record.get("regret_verdict", record["verdict"]) != UNDECIDED
    ]


def page(records: Sequence[Record]) -> str:
    """Verdicts by setting, regret by setting and width, and the cells to look at."""
    records = judged(records)
    if not records:
        return ""
    return "\n".join([
        sentence(records) + "\n",
        f"A cell fails below {RULE.least} by more than the A/A spread twice running. One whose "
        f"spread exceeds {RULE.largest_spread:.0%}, or which takes longer on all threads than on "
        f"one, says nothing and is measured again for longer, up to {RULE.attempts} times; then it "
        "is undecided. Outputs are reused. Transposed: over the reversed edges; of a symmetric "
        "graph, of its edges to a node with a larger id. Constants: of the cost model, this "
        "machine's own or those of another one.\n",
        _verdicts(records),
        _choices(records),
        _regret_table(records),
        _cells("Failures", [r for r in records if r["verdict"] == FAILED]),
        _cells(f"Undecided, at most {MOST_UNDECIDED} of them",
               [r for r in records if r["verdict"] == UNDECIDED][:MOST_UNDECIDED]),
        _cells(f"The {LOWEST} lowest", _lowest(records, lambda r: r["ratio"])),
        _cells(f"The {LOWEST} largest regrets", _lowest(records, _less_regret)),
    ])  # fmt: skip


def _verdicts(records: Sequence[Record]) -> str:
    header = ["instruction set", "constants", "cells", "same program", "timed", "passed",
              "undecided", "failed", "none / auto: smallest", "median", "geometric mean",
              "largest"]  # fmt: skip
    rows = []
    for setting, group in _groups(records, SETTING).items():
        count = counts(group)
        found = [r["ratio"] for r in group if r["verdict"] in (PASSED, FAILED)]
        shown = [min(found), statistics.median(found), geometric_mean(found), max(found)] if (
            found
        ) else [None] * 4  # fmt: skip
        rows.append([
            *setting, *(f"{n:,}" for n in (
                len(group), count[SAME], sum(count[v] for v in (PASSED, FAILED, UNDECIDED)),
                count[PASSED], count[UNDECIDED], count[FAILED])),
            *map(times, shown),
        ])  # fmt: skip
    return markdown(header, rows) + "\n"


def _choices(records: Sequence[Record]) -> str:
    header = ["instruction set", "constants", "chosen", "by", "cells"]
    found = Counter(
        (*_setting(record, SETTING), record["chosen"], record["by"])
        for record in records
        if "chosen" in record
    )
    rows = [[*key, f"{number:,}"] for key, number in sorted(found.items())]
    return "What was chosen:\n\n" + markdown(header, rows) + "\n"


def _regret_table(records: Sequence[Record]) -> str:
    header = ["instruction set", "constants", "width", "cells", "regret: median", "mean", "largest"]
    rows = []
    for setting, group in _groups(records, SETTING).items():
        widths = sorted({record["cell"]["width"] for record in group})
        parts = {str(w): [r for r in group if r["cell"]["width"] == w] for w in widths}
        for width, part in {**parts, "all": group}.items():
            found = regrets(part)
            shown = [statistics.median(found), statistics.mean(found), max(found)] if found else []
            rows.append([*setting, width, str(len(found)),
                         *([f"{value:.1%}" for value in shown] or ["-"] * 3)])  # fmt: skip
    note = (
        "Regret: what the choice takes beyond the fastest candidate, timed in the same rounds, "
        "over cells with more than one candidate and a spread that says something; 0 where it is "
        f"within the A/A spread. One above {LARGEST_REGRET:.0%} is measured once more, and the "
        "smaller counts."
    )
    return note + "\n\n" + markdown(header, rows) + "\n"


def _cells(title: str, records: Sequence[Record]) -> str:
    if not records:
        return f"{title}: none.\n"
    header = [*records[0]["cell"], "chosen", "by", "fastest", "none / auto", "A/A spread", "regret",
              "attempts"]  # fmt: skip
    rows = [
        [*map(str, r["cell"].values()), r["chosen"], r["by"], r.get("fastest", "-"),
         "-" if r["ratio"] is None else f"{r['ratio']:.3f}", f"{r['spread']:.3f}",
         f"{r['regret']:.1%}" if "regret" in r else "-", str(r["attempts"])]
        for r in records
    ]  # fmt: skip
    return f"{title}:\n\n{markdown(header, rows)}\n"


def _lowest(records: Sequence[Record], key: Callable[[Record], float | None]) -> list[Record]:
    found = [(value, at) for at, r in enumerate(records)
             if "ratio" in r and (value := key(r)) is not None]  # fmt: skip
    return [records[at] for _, at in sorted(found)[:LOWEST]]


def _less_regret(record: Record) -> float | None:
    return -record["regret"] if record.get("regret") and regrets([record]) else None


def _groups(records: Sequence[Record], keys: Sequence[str]) -> dict[tuple[str, ...], list[Record]]:
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(_setting(record, keys), []).append(record)
    return groups


def _setting(record: Record, keys: Sequence[str]) -> tuple[Any, ...]:
    return tuple(record["cell"][key] for key in keys)
