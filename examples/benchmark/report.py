"""From the results to a page: Markdown with tables, goals and plots, and a JSON summary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import (
    environment,
    goals,
    machines,
    plots,
    suite_attention,
    suite_batches,
    suite_blocks,
    suite_calls,
    suite_dgl,
    suite_sampled,
    suite_scale,
    tables,
    tables_cost,
    tables_never_slower,
)
from .results import Record, Results
from .sides import is_ours
from .verdict import FAILED

SUITES = (
    "aggregate", "epochs", "layers", "calls", "dgl-layers", "search", "scale", "never-slower",
    "cost", "counts", "sampled", "blocks", "batches", "attention",
)  # fmt: skip


@dataclass(frozen=True)
class Page:
    """What was written.

    Attributes:
        text: the Markdown.
        failures: lines: results that differ, and cells where "auto" is slower than "none".
    """

    text: str
    failures: tuple[str, ...]


def write(results: Results, folder: Path, every_machine: Path) -> Page:
    """Writes `report.md`, `summary.json` and the plots.

    Each cell's newest result counts, of the machine and the versions measured last; the page says
    which code each suite ran.

    Args:
        results: what was measured.
        folder: where to write.
        every_machine: whose folders hold the results of other machines, for a table of them.
    """
    here = newest_environment(results)
    same = alike(results, here)
    suites: dict[str, Sequence[Record]] = {s: results.cells(s, same) for s in SUITES}
    found = goals.all_goals(dict(suites), here["threads"])
    suites["never-slower"] = tables_never_slower.judged(suites["never-slower"])
    failures = tables.wrong(suites, ours=True) + _crashes(results, same) + [
        f"{suite}, {' '.join(map(str, r['cell'].values()))}: {words}"
        for suite, words, key in (
            ("never-slower", "auto is slower than none", None),
            ("epochs", "auto is slower than the better of its HAG and none", "choice"),
        )
        for r in suites[suite]
        if (r if key is None else r.get(key, {})).get("verdict") == FAILED
    ]  # fmt: skip
    drawn = plots.draw(dict(suites), folder)
    means = goals.headline(suites["aggregate"])
    codes = {suite: _codes(suites[suite], same) for suite in SUITES if suites[suite]}
    measured = [goal for goal in found if goal.met is not None]
    parts = [_heading(here, codes, suites), "## Goals\n"]
    parts += [goals.table(measured) + "\n"] if measured else []
    if left := len(found) - len(measured):
        parts.append(f"{left} {'other ' * bool(measured)}goals are of what is not measured here.\n")
    if failures:
        parts += ["## Failures\n", "\n".join(f"- {line}" for line in failures) + "\n"]
    differing = tables.wrong(suites, ours=False)
    if differing:
        parts += ["## Peers whose result differs, not timed there\n",
                  "\n".join(f"- {line}" for line in differing) + "\n"]  # fmt: skip
    if any(value is not None for value in means.values()):
        rows = [[name, tables.times(value)] for name, value in means.items() if value is not None]
        parts += ["## Geometric means over all aggregation cells\n",
                  tables.markdown(["ratio", "mean"], rows) + "\n"]  # fmt: skip
    for name, (title, text) in _sections(suites).items():
        if suites[name]:
            parts += [f"## {title}\n", text]
            picture = f"{name.replace('-', '_')}.svg"
            if picture in drawn:
                parts.append(f"![{title}]({picture})\n")
    summary = {
        "environment": here,
        "code": codes,
        "written": environment.now(),
        "goals": [asdict(goal) for goal in found],
        "geometric_means": means,
        "failures": failures,
        "peers_that_differ": differing,
        # Those of never-slower are many, and in results.jsonl.
        "cells": {name: list(r) for name, r in suites.items() if name != "never-slower"},
    }
    parts += ["## Machines\n", machines.table(every_machine, summary) + "\n"]
    parts += ["## Published by others\n", tables.cbm()]
    text = "\n".join(parts)
    (folder / "report.md").write_text(text)
    (folder / machines.SUMMARY).write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
    return Page(text, tuple(failures))


def _crashes(results: Results, alike: dict[str, Record]) -> list[str]:
    """A line for each cell that one of ours took the process down in, and that has no newer result.

    A peer that did is named where it is left out.
    """
    lines = {}
    for suite in SUITES:
        measured = {json.dumps(r["cell"]): r["date"] for r in results.cells(suite, alike)}
        for crash in results.crashes(suite, alike):
            side, key = crash["side"], json.dumps(crash["cell"])
            if measured.get(key, "") < crash["date"] and (not side or is_ours(side)):
                cell = " ".join(map(str, crash["cell"].values()))
                lines[suite, key] = f"{suite}, {cell}: {side or 'an unknown side'} {crash['why']}"
    return list(lines.values())


def newest_environment(results: Results) -> Record:
    """The environment that a cell was measured in last; the newest one where none was."""
    known = {record["id"]: record for record in results.environments()}
    for record in reversed(results.records):
        if record["kind"] == "cell" and record["environment"] in known:
            return known[record["environment"]]
    return results.environments()[-1]


def alike(results: Results, here: Record) -> dict[str, Record]:
    """The environments, by id, that differ from one in the code that ran alone."""
    return {
        record["id"]: record
        for record in results.environments()
        if all(record[key] == here[key] for key in here if key not in ("id", "code", "git", "date"))
    }


def _sections(suites: dict[str, Sequence[Record]]) -> dict[str, tuple[str, str]]:
    never_slower = tables_never_slower.page(suites["never-slower"])
    return {
        "aggregate": ("Aggregation", tables.aggregate(suites["aggregate"])),
        "epochs": ("Epochs", tables.epochs(suites["epochs"])),
        "layers": ("Layers", tables.layers(suites["layers"])),
        "calls": ("The cost of a call", suite_calls.table(suites["calls"])),
        "dgl-layers": ("DGL's layers", suite_dgl.table(suites["dgl-layers"])),
        "search": ("Search", tables.search(suites["search"], suites["epochs"])),
        "scale": ("Search by size", suite_scale.table(suites["scale"])),
        "never-slower": ("Never slower than plain", never_slower),
        "sampled": ("Sampled batches", suite_sampled.table(suites["sampled"])),
        "blocks": ("DGL's blocks", suite_blocks.table(suites["blocks"])),
        "cost": ("Cost model", tables_cost.cost(suites["cost"]) if suites["cost"] else ""),
        "counts": ("Rows saved", tables_cost.counts(suites["counts"])),
        "batches": ("Mini-batches", suite_batches.table(suites["batches"])),
        "attention": ("Attention", suite_attention.table(suites["attention"])),
    }


def _heading(
    here: Record, codes: dict[str, dict[str, int]], suites: dict[str, Sequence[Record]]
) -> str:
    machine: dict[str, Any] = here["machine"]
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    versions = ", ".join(f"{name} {v}" for name, v in here["versions"].items() if v)
    records = [r for found in suites.values() for r in found]
    dates = sorted(r["date"] for r in records) or [here["date"]]
    # Of cells that were timed: equal arrays are not.
    timed = [r for r in records if r.get("forms", True)]
    loads = [r["load"] for r in timed if r["load"] is not None]
    lines = [
        f"# {_title(suites)}, on {machine['processor']}\n",
        f"Measured {dates[0]} to {dates[-1]} (UTC), float32, {here['threads']} threads.\n",
        f"- Machine: {machine['processor']}, {machine['cores']} cores, {caches}, "
        f"{machine['memory_gib']} GiB; {machine['system']}; transparent huge pages: "
        f"{machine['huge_pages']}",
        f"- Versions: {versions}",
        f"- Code: {_suites_by_code(codes)}",
        f"- Settings: {json.dumps(here['settings'])}",
    ]
    if here["settings"]["quick"]:
        lines.append("- **A quick run: its times mean nothing.**")
    if loads and machine["cores"] and max(loads) > machine["cores"] + 1:
        lines.append(
            f"- **The machine was busy**: up to {max(loads):.1f} processes ran at a time on "
            f"{machine['cores']} cores. Do not quote these times."
        )
    lines.append(
        "\nAll sides of a cell take turns in one loop, in a new order each round, warm; medians. "
        "The fastest peer is bold. A/A: one side measured twice in the same loop, ratio ± spread. "
        "Ratios are speeds: 2x is half the time.\n"
    )
    return "\n".join(lines)


def _title(suites: dict[str, Sequence[Record]]) -> str:
    """What a page is about, which tells it from the other pages of its machine."""
    names = [name for name, records in suites.items() if records]
    graphs = {r["cell"].get("graph") for records in suites.values() for r in records}
    (graph,) = graphs if len(graphs) == 1 else (None,)
    what = names[0] if len(names) == 1 else f"{len(names)} suites"
    return f"Benchmark: {what}{f' of {graph}' if graph else ''}"


def _codes(records: Sequence[Record], environments: dict[str, Record]) -> dict[str, int]:
    """The revisions and fingerprints that ran, each with its number of cells."""
    count: dict[str, int] = {}
    for record in records:
        where = environments[record["environment"]]
        words = f"{where['git'] or 'no git revision'} (fingerprint {where['code']})"
        count[words] = count.get(words, 0) + 1
    return count


def _suites_by_code(codes: dict[str, dict[str, int]]) -> str:
    """The code that ran, with its suites where there are several."""
    names: dict[str, list[str]] = {}
    for suite, count in codes.items():
        for words, cells in count.items():
            part = "" if len(count) == 1 else f" ({cells} of {sum(count.values())} cells)"
            names.setdefault(words, []).append(suite + part)
    if len(names) == 1:
        return next(iter(names))
    return "; ".join(f"{words}: {', '.join(suites)}" for words, suites in names.items())
