"""Suite `scale`: the search on one kind of generated graph, of 1 to 115 million edges."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from .graphs import LOOPS, SCALED, Graph
from .plan import Cell, Plan
from .results import Record
from .suite_search import WIDTH, build_watched
from .tables import markdown, times

NAME = "scale"
SECONDS = 2.0
MOST_BUILDS = 5
LARGEST = tuple(SCALED)[-1]


def cells(plan: Plan) -> Iterator[Cell]:
    """Sizes x {A + I}, or those of `SCALED` that were asked for."""
    wanted = [name for name in plan.graphs if name in SCALED]
    names = wanted or (tuple(SCALED)[:1] if plan.quick else tuple(SCALED))
    for graph in names:
        yield {"graph": graph, "loops": "A+I"}


def measure(graph: Graph, cell: Cell, plan: Plan) -> dict[str, Any]:
    """Builds the HAG, at least once; memory is what the process grew by, and its edges."""
    budget = plan.budget(SECONDS)
    loops = cell["loops"]
    hag, growth, first = build_watched(graph, loops)
    stats = hag.stats(LOOPS[loops])
    del hag
    seconds = [first]
    while sum(seconds) < budget.seconds and len(seconds) < MOST_BUILDS:
        seconds.append(graph.build("auto", loops, WIDTH)[1])
    median = statistics.median(seconds)
    return {
        "wrong": {},
        "forms": {},
        "seconds": median,
        "builds": len(seconds),
        "edges_per_second": graph.edge_index.shape[1] / median,
        "memory": None if growth is None else growth + graph.edge_index.nbytes,
        "rows_read": stats.rows_read,
        "rows_read_before": stats.rows_read_before,
    }


def table(records: Sequence[Record]) -> str:
    """A line a size."""
    header = ["graph", "nodes", "edges", "seconds", "ns an edge", "rows read", "memory, GiB"]
    rows = [
        [record["cell"]["graph"], f"{record['graph']['nodes']:,}", f"{record['graph']['edges']:,}",
         f"{record['seconds']:#.3g}", f"{1e9 / record['edges_per_second']:.0f}",
         times(record["rows_read_before"] / record["rows_read"]) + " fewer",
         "-" if record["memory"] is None else f"{record['memory'] / 2**30:.1f}"]
        for record in records
    ]  # fmt: skip
    note = (
        "Communities with heavy-tailed degrees (`hag_plugin.data.generators.communities`), 400 to "
        "480 neighbours a node; the largest has as many nodes and edges as the Reddit data set. "
        "A + I. Memory: the edges as given, and what building added."
    )
    return markdown(header, rows) + "\n\n" + note + "\n"


def spread(records: Sequence[Record]) -> float | None:
    """Seconds an edge of the slowest size over those of the fastest; None until all are there."""
    rates = [record["edges_per_second"] for record in records]
    return max(rates) / min(rates) if len(rates) == len(SCALED) else None
