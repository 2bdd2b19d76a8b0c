"""Binary aggregations and data transfers, for set and for sequential aggregates."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: the repository's root goes where its folder stood
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    __package__ = "examples.reproduce"

import torch
from torch import Tensor

import hag_plugin as hp
from examples.benchmark.results import Record
from examples.benchmark.tables import geometric_mean, markdown, times
from hag_plugin.data.graph_data import GraphData
from hag_plugin.hag.program import SelfLoops
from hag_plugin.sequence import Order, SequentialHAG, build_sequence

from . import hag_graphs, hag_paper
from .hag_run import Setup, Step

# name: (method, options, self-loops)
SETS: dict[str, tuple[str, dict[str, Any], SelfLoops]] = {
    "paper's greedy, capacity V/4, A": ("greedy", {}, False),
    "paper's greedy, no limit, A": ("greedy", {"capacity": 2**31 - 1}, False),
    "ours, A": ("auto", {}, False),
    "ours, A, allow_subtraction": ("auto", {"allow_subtraction": True}, False),
    "ours, A + I": ("auto", {}, "add"),
}
# name: (order, capacity over V or None, A + I)
SEQUENCES: dict[str, tuple[Order, float | None, bool]] = {
    "paper's greedy, capacity V/4, A": ("frequency", 0.25, False),
    "prefix tree, by id, A": ("id", None, False),
    "prefix tree, by frequency, A": ("frequency", None, False),
    "prefix tree, by frequency, A + I": ("frequency", None, True),
}
MEASURES = {"aggregations": "binary aggregations", "rows_read": "data transfers"}


def cells(setup: Setup) -> list[Record]:
    """Data sets x {set, sequential}."""
    return [{"graph": name, "kind": kind} for kind in ("set", "sequential")
            for name in hag_graphs.PAPER]  # fmt: skip


def measure(cell: Record, setup: Setup) -> Record:
    """Counts, for every variant, before and after."""
    found = setup.load(cell["graph"])
    count = _set_counts if cell["kind"] == "set" else _sequential_counts
    return {"facts": found.facts(), "counts": count(found.data)}


def _set_counts(data: GraphData) -> Record:
    counts = {}
    for name, (method, options, self_loops) in SETS.items():
        hag = hp.build_hag(
            data.edge_index,
            num_nodes=data.num_nodes,
            ptr=data.graph_ptr,
            method=method,
            self_loops=self_loops,
            progress=False,
            **options,
        )
        stats = hag.stats(self_loops)
        counts[name] = {key: [getattr(stats, f"{key}_before"), getattr(stats, key)]
                        for key in MEASURES}  # fmt: skip
    return counts


def _sequential_counts(data: GraphData) -> Record:
    counts = {}
    loops = torch.arange(data.num_nodes).expand(2, -1)
    for name, (order, capacity, closed) in SEQUENCES.items():
        edges = torch.cat([data.edge_index, loops], 1) if closed else data.edge_index
        tree = build_sequence(edges, num_nodes=data.num_nodes, order=order)
        stats = tree.stats()
        after = {key: getattr(stats, key) for key in MEASURES}
        if capacity is not None:
            after = greedy_counts(tree, int(capacity * data.num_nodes))
        counts[name] = {key: [getattr(stats, f"{key}_before"), after[key]] for key in MEASURES}
    return counts


def greedy_counts(tree: SequentialHAG, capacity: int) -> dict[str, int]:
    """What Algorithm 3 leaves when it may add `capacity` nodes for a sequential aggregate.

    It takes the pair that most lists begin with: the prefix of two or more that most targets share,
    and a longer one is never shared by more. So it takes the `capacity` most shared prefixes. One
    of redundancy r saves r - 1 aggregations and r - 2 transfers.
    """
    stats = tree.stats()
    redundancy = shared_by(tree)[int(tree.level_ptr[min(2, tree.longest + 1)]) :]
    taken = redundancy[redundancy > 1].sort(descending=True).values[:capacity]
    return {
        "aggregations": stats.aggregations_before - int((taken - 1).sum()),
        "rows_read": stats.rows_read_before - int((taken - 2).sum()),
    }


def shared_by(tree: SequentialHAG) -> Tensor:
    """How many targets' lists begin with each prefix, int64 `[P + 1]`."""
    count = torch.bincount(tree.end, minlength=tree.num_prefixes + 1)
    first = tree.level_ptr.tolist()
    for level in range(tree.longest, 0, -1):
        here = slice(first[level], first[level + 1])
        above = count[first[level - 1] : first[level]]
        above.index_add_(0, tree.parent[here], count[here])
    return count


# The page ---------------------------------------------------------------------------------------


def section(records: Sequence[Record]) -> str:
    """A table for each kind and measure: how many times fewer."""
    parts = []
    for kind in ("set", "sequential"):
        chosen = [r for r in records if r["cell"]["kind"] == kind]
        for key, words in MEASURES.items():
            published = hag_paper.AGGREGATIONS if key == "aggregations" else hag_paper.TRANSFERS
            parts += [
                f"**{words.capitalize()}, {kind} aggregate** (times fewer than the plain graph). "
                f"The paper: {published[kind]}.",
                _table(chosen, key),
            ]
    return "\n\n".join(parts)


def _table(records: Sequence[Record], key: str) -> str:
    variants = list(records[0]["counts"]) if records else []
    rows = [[label(r), *(times(ratio(r, v, key)) for v in variants)] for r in records]
    means = [geometric_mean([ratio(r, v, key) for r in records]) for v in variants]
    rows.append(["geometric mean", *map(times, means)])
    return markdown(["data set", *variants], rows)


def label(record: Record) -> str:
    """The paper's name and what was measured on."""
    facts = record["facts"]
    name = facts["measured_on"]
    return f"{facts['paper']}: {name}" + ("" if facts["exact"] else " (stand-in)")


def axis_label(record: Record) -> str:
    """The same in lines, for an axis."""
    return label(record).replace(": ", "\n").replace(" (", "\n(")


def ratio(record: Record, variant: str, key: str) -> float:
    """Plain over HAG; 1 where there is nothing to count."""
    before, after = record["counts"][variant][key]
    return float(before / after) if after else 1.0


def draw(records: Sequence[Record], path: Path) -> bool:
    """Bars by data set as in the paper: kinds in columns, measures in rows, the mean last."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 8), layout="constrained")
    grid = figure.subplots(2, 2)
    for column, kind in enumerate(("set", "sequential")):
        chosen = [r for r in records if r["cell"]["kind"] == kind]
        variants = list(chosen[0]["counts"]) if chosen else []
        for row, (key, words) in enumerate(MEASURES.items()):
            axes, wide = grid[row][column], 0.84 / max(len(variants), 1)
            for number, variant in enumerate(variants):
                values = [ratio(r, variant, key) for r in chosen]
                values.append(geometric_mean(values) or 1.0)
                places = [i + (number - len(variants) / 2 + 0.5) * wide for i in range(len(values))]
                axes.bar(places, values, wide, label=variant)
            names = [axis_label(r) for r in chosen] + ["geometric\nmean"]
            axes.set_xticks(range(len(names)), names, fontsize=7)
            axes.axhline(1.0, color="black", linewidth=0.8)
            axes.set(yscale="log", ylabel="times fewer (log)", title=f"{words}, {kind} aggregate")
            axes.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
            axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    return True


STEP = Step(
    name="hag_aggregations",
    title="Aggregations and data transfers",
    published="bars by data set, printed only as a picture; the text gives the ranges below",
    departures=(
        "Counted as in the paper: an aggregation adds two values; a transfer reads one row. A HAG "
        "also writes its intermediates, which the paper does not count: `HAG.stats()` has them.",
        "The paper's capacity of V/4 nodes gives far less than its figures on BZR_MD and "
        "IMDB-MULTI; without a limit its greedy search gives more. Both have a column.",
        "Ours keeps an intermediate only where it pays in time, so without a limit the greedy "
        "search counts fewer aggregations in A; it writes more rows for them.",
        "BZR's large figures come from complete graphs. Their rows differ in A only because a node "
        "leaves itself out: in A + I, which a GCN aggregates, they are equal.",
        "A by default never touches a node's own row. `allow_subtraction=True` may compute it as "
        "(A + I) x - x.",
        "Sequential: the lists need an order, which the paper does not state. By id, or with the "
        "source of most edges first. The prefix tree is the optimum for a given order. In a "
        "complete graph's A no fixed order saves more than 2x: list v goes its own way from v on.",
        "Sequential transfers: a row for each prefix of two or more, and for a prefix that has "
        "several uses, its state once a use.",
    ),
    timed=False,
    cells=cells,
    measure=measure,
    section=section,
    draw=draw,
)

if __name__ == "__main__":
    from .hag_steps import run

    sys.exit(run(["hag_aggregations", *sys.argv[1:]]))
