"""The number of aggregation nodes against the epoch time, on COLLAB, with what models predict."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the repository's root goes where its folder stood
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    __package__ = "examples.reproduce"

import torch

import hag_plugin as hp
from examples.benchmark import models
from examples.benchmark.models import CLASSES, FEATURES, Side
from examples.benchmark.plan import Plan
from examples.benchmark.results import Record
from examples.benchmark.tables import duration, markdown
from examples.benchmark.timing import interleave

from . import hag_graphs, hag_paper
from .hag_aggregations import label
from .hag_run import Setup, Step

SHARES = (0.0, 1 / 64, 1 / 16, 1 / 8, 1 / 4, 0.4, 1.0, None)  # of V; None: no limit
HIDDEN = 16
SECONDS = 6.0
AGGREGATIONS = 4  # of rows of HIDDEN values in an epoch: two layers, forward and backward


def cells(setup: Setup) -> list[Record]:
    """Capacities of the paper's greedy search, and the default search."""
    shares = SHARES[::3] if setup.quick else SHARES
    return [{"share": share, "method": "greedy"} for share in shares] + [
        {"share": None, "method": "auto"}
    ]


def measure(cell: Record, setup: Setup) -> Record:
    """Searches, counts, predicts and times a training epoch."""
    found = setup.load("COLLAB")
    data = found.data
    capacity = None
    if cell["method"] == "greedy":
        capacity = 2**31 - 1 if cell["share"] is None else int(cell["share"] * data.num_nodes)
    hag = hp.build_hag(
        data.edge_index,
        num_nodes=data.num_nodes,
        ptr=data.graph_ptr,
        method=cell["method"],
        capacity=capacity,
        self_loops="add",
        width=HIDDEN,
        progress=False,
    )
    stats = hag.stats("add")
    graph = hag_graphs.Given(data, setup.seed)
    net = hp.accelerate(models.pyg_net("GCN", HIDDEN, setup.seed))
    generator = torch.Generator().manual_seed(setup.seed)
    labels = torch.randint(CLASSES, (data.num_nodes,), generator=generator)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    side = Side(net, hag, graph.features(FEATURES), labels, optimizer)
    plan = Plan(widths=(HIDDEN,), quick=setup.quick, seed=setup.seed)
    return {
        "facts": found.facts(),
        "intermediates": stats.intermediates,
        "aggregations": stats.aggregations,
        "rows_read": stats.rows_read,
        "rows_written": stats.rows_written,
        "search_seconds": stats.search_seconds,
        "predicted_seconds": AGGREGATIONS * stats.predicted_seconds,
        "epoch": interleave({"epoch": side.train}, plan.budget(SECONDS)).summary()["epoch"],
    }


# The page ---------------------------------------------------------------------------------------


def section(records: Sequence[Record]) -> str:
    """A row for each capacity."""
    names = ["capacity", "aggregation nodes", "aggregations", "rows read", "rows written",
             "search, s", "epoch, ms", "aggregations of an epoch, predicted, ms"]  # fmt: skip
    rows = [
        [_title(r), *(f"{r[key]:,}" for key in ("intermediates", "aggregations", "rows_read",
                                                "rows_written")),
         f"{r['search_seconds']:.2f}", duration(r["epoch"]["median"]),
         duration(r["predicted_seconds"])]
        for r in records
    ]  # fmt: skip
    where = label(records[0])
    words = (
        "The prediction is for one thread and for aggregating alone: the epoch's other work, the "
        "same for every capacity, comes on top."
    )
    return f"On {where}, A + I. {words}\n\n{markdown(names, rows)}"


def _title(record: Record) -> str:
    cell = record["cell"]
    if cell["method"] != "greedy":
        return "default search"
    return "no limit" if cell["share"] is None else f"{cell['share']:.3g} V"


def draw(records: Sequence[Record], path: Path) -> bool:
    """Epoch time by aggregation nodes, as in the paper, and predictions, without a HAG = 1."""
    from matplotlib.figure import Figure

    greedy = [r for r in records if r["cell"]["method"] == "greedy"]
    greedy.sort(key=lambda r: r["intermediates"])
    if not greedy:
        return False
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes, plain = figure.subplots(), greedy[0]
    places = [r["intermediates"] for r in greedy]
    base = plain["epoch"]["median"]
    axes.plot(places, [r["epoch"]["median"] / base for r in greedy], "o-", label="epoch, measured")
    for key, words in (("predicted_seconds", "aggregating, by the cost model"),
                       ("aggregations", "aggregations, the paper's cost")):  # fmt: skip
        axes.plot(places, [r[key] / plain[key] for r in greedy], "s--", label=words, alpha=0.7)
    for record in records:
        if record["cell"]["method"] == "auto":
            axes.plot(record["intermediates"], record["epoch"]["median"] / base, "*",
                      markersize=14, label="epoch, default search")  # fmt: skip
    axes.set(xlabel="aggregation nodes", ylabel="no HAG = 1", ylim=(0, None))
    axes.set_title(label(greedy[0]))
    axes.legend()
    figure.savefig(path, dpi=110)
    return True


STEP = Step(
    name="hag_capacity",
    title="Capacity against epoch time",
    published=hag_paper.CAPACITY,
    departures=(
        "The paper's cost counts aggregations alone: alpha (|E^| - |V_A|) + (beta - alpha) |V|. "
        "`hag_plugin.hag.cost` prices rows read and rows written, so an intermediate that saves "
        "little costs more than it saves, and more capacity is not always better.",
        "The search is the paper's greedy one, on each graph of the collection by itself.",
    ),
    timed=True,
    cells=cells,
    measure=measure,
    section=section,
    draw=draw,
)

if __name__ == "__main__":
    from .hag_steps import run

    sys.exit(run(["hag_capacity", *sys.argv[1:]]))
