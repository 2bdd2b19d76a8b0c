"""Pages of results: the papers' figures beside ours, Markdown with pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from examples.benchmark.results import Record, Results

from . import hag_paper

if TYPE_CHECKING:
    from .hag_run import Step


@dataclass(frozen=True)
class Page:
    """What a page of results is about.

    Attributes:
        name: of the files, `NAME.md` and `NAME.jsonl`.
        command: as it is called.
        words: what the command does.
        heading: the beginning of the page.
    """

    name: str
    command: str
    words: str
    heading: Callable[[Results], str]


def write(page: Page, steps: Sequence[Step], results: Results, folder: Path) -> str:
    """Writes the page and its pictures from the newest record of each cell; returns the text."""
    parts = [page.heading(results)]
    for step in steps:
        records = _of_newest_setup(results, step.name)
        if not records:
            continue
        parts += [f"## {step.title}", f"Script: `{step.name}.py`. The paper: {step.published}."]
        if step.timed:
            parts.append(_load(records, results.environments()[-1]["threads"]))
        if step.departures:
            parts.append("Where this departs from the paper:\n\n" + "\n".join(
                f"- {words}" for words in step.departures))  # fmt: skip
        parts.append(step.section(records))
        picture = folder / f"{step.name}.png"
        if step.draw is not None and step.draw(records, picture):
            parts.append(f"![{step.title}]({picture.name})")
    text = "\n\n".join(part.strip() for part in parts) + "\n"
    temporary = folder / f"{page.name}.md.part"
    temporary.write_text(text)
    temporary.replace(folder / f"{page.name}.md")
    return text


def _of_newest_setup(results: Results, name: str) -> list[Record]:
    """The newest record of each cell, of those measured with the newest record's settings."""
    settings = {e["id"]: e["settings"] for e in results.environments()}
    records = results.cells(name)
    if not records:
        return []
    newest = max(records, key=lambda record: record["date"])
    wanted = settings[newest["environment"]]
    alike = [e for e in settings if settings[e] == wanted]
    return [r for r in records if r["environment"] in alike]


def _heading(results: Results) -> str:
    here = results.environments()[-1]
    machine = here["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in here["versions"].items() if v)
    lines = [
        "# The HAG paper, reproduced",
        f"Redundancy-Free Computation for Graph Neural Networks, {hag_paper.SOURCE}. Measured "
        f"there on {hag_paper.MACHINE}; here on {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, {here['threads']} threads, {machine['system']}; {versions}; "
        f"revision {here['git']}, {here['date']}.",
        "Numbers of the paper and numbers of this machine stand side by side; times of a GPU in "
        "2019 and of this machine do not compare, ratios may. A is the graph as given, A + I has a "
        "self-loop at each node, which is what a GCN aggregates.",
    ]
    if here["settings"].get("quick"):
        lines.append("**A quick run on small generated graphs: its numbers mean nothing.**")
    return "\n\n".join(lines)


def _load(records: Sequence[Record], threads: int) -> str:
    """How busy the machine was before each cell, and whether that spoils the times."""
    loads = [r["load"] for r in records if r["load"] is not None]
    if not loads:
        return ""
    words = f"Taken at load averages of {min(loads):.1f} to {max(loads):.1f}."
    if max(loads) > threads + 1:
        words += " **The machine was busy with other work: these times mean little.**"
    return words


HAG = Page(
    "hag",
    "reproduce",
    "Reproduces the HAG paper's figures and tables, and writes a page.",
    _heading,
)
