"""The paper's table of data sets, beside what is measured here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the repository's root goes where its folder stood
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    __package__ = "examples.reproduce"

from examples.benchmark.results import Record
from examples.benchmark.tables import markdown

from . import hag_graphs
from .hag_run import Setup, Step


def cells(setup: Setup) -> list[Record]:
    """One a data set."""
    return [{"graph": name} for name in hag_graphs.PAPER]


def measure(cell: Record, setup: Setup) -> Record:
    """Loads the graph."""
    return {"facts": setup.load(cell["graph"]).facts()}


def section(records: Sequence[Record]) -> str:
    """The table, and a note for each data set."""
    rows, notes = [], []
    for record in records:
        facts = record["facts"]
        paper = hag_graphs.PAPER[facts["paper"]]
        edges = facts["directed_edges"] * paper.directions // 2
        rows.append([
            f"{paper.name}: {paper.real_name}", f"{paper.nodes:,}", f"{facts['nodes']:,}",
            f"{paper.edges:,}", f"{edges:,}", f"{facts['directed_edges']:,}",
            "exactly that" if facts["exact"] else facts["words"],
        ])  # fmt: skip
        notes.append(f"- **{paper.name}**: {paper.note}")
    names = ["the paper's name: its real name", "nodes, paper", "nodes, here", "edges, paper",
             "edges, here, counted alike", "directed edges, here", "measured on"]  # fmt: skip
    return "\n".join([markdown(names, rows), "", *notes])


STEP = Step(
    name="hag_datasets",
    title="Data sets",
    published="five data sets, in the first columns",
    departures=(
        "The paper's names are not the collections', and it counts edges in two ways. Ours are "
        "counted as the paper's, then as directed edges, which are what an aggregation reads.",
    ),
    timed=False,
    cells=cells,
    measure=measure,
    section=section,
)

if __name__ == "__main__":
    from .hag_steps import run

    sys.exit(run(["hag_datasets", *sys.argv[1:]]))
