"""Results of several machines, side by side: a folder for each of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .tables import markdown, times

SUMMARY = "summary.json"
NOISE = re.compile(r"\((?:r|tm)\)|@.*$|\b(?:cpu|\d+-core|processor)\b", re.IGNORECASE)


def slug(machine: Mapping[str, Any]) -> str:
    """The name of a machine's folder: its processor and the instruction set in use."""
    name = NOISE.sub(" ", machine["processor"]) or "processor"
    used = machine.get("instruction_set") or machine["instruction_sets"][-1]
    return re.sub(r"[^a-z0-9]+", "-", f"{name} {used}".lower()).strip("-")


def table(folder: Path, here: Mapping[str, Any]) -> str:
    """A line for each machine that has results, and for this one.

    Args:
        folder: whose folders hold summaries.
        here: the summary that is about to be written.
    """
    found = {slug(here["environment"]["machine"]): here}
    for path in sorted(folder.glob(f"*/{SUMMARY}")):
        found.setdefault(path.parent.name, json.loads(path.read_text()))
    header = ["machine", "processor", "instruction set", "caches", "cores", "hag-plugin",
              "code", "written", "auto over best peer, reused", "auto over none, reused",
              "goals met"]  # fmt: skip
    return markdown(header, [_row(name, summary) for name, summary in found.items()])


def _row(name: str, summary: Mapping[str, Any]) -> list[str]:
    environment = summary["environment"]
    machine = environment["machine"]
    goals = [goal["met"] for goal in summary["goals"] if goal["met"] is not None]
    means = summary["geometric_means"]
    return [
        name,
        machine["processor"],
        machine.get("instruction_set") or machine["instruction_sets"][-1],
        ", ".join(f"{level} {size}" for level, size in machine["caches"].items()),
        str(machine["cores"]),
        str(environment["versions"]["hag-plugin"]),
        str(environment["git"] or environment["code"]),
        summary["written"][:10],
        times(means.get("auto over best peer, reused")),
        times(means.get("auto over none, reused")),
        f"{sum(goals)} of {len(goals)}",
    ]
