"""End-to-end training: a 2-layer GCN with 16 hidden units, in PyG, in DGL, and here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: the repository's root goes where its folder stood
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    __package__ = "examples.reproduce"

import torch

import hag_plugin as hp
from examples.benchmark import models, suite_epochs
from examples.benchmark.models import CLASSES, FEATURES, Side
from examples.benchmark.plan import Plan
from examples.benchmark.results import Record
from examples.benchmark.sides import AUTO, NONE, Absent
from examples.benchmark.tables import duration, geometric_mean, markdown, times
from examples.benchmark.timing import interleave

from . import hag_graphs, hag_paper
from .hag_aggregations import axis_label, label
from .hag_run import Setup, Step

HIDDEN = 16
SECONDS = 15.0  # for all sides of a data set together; slow sides may exceed it
MEMORY_LIMIT = 6e9  # bytes that one layer's messages may take on a side that makes them
TOLERANCE = 1e-3  # of the largest score, in float32
GREEDY = "hag greedy, capacity V/4"
TITLES = {
    suite_epochs.STOCK: "PyG, edge_index",
    "PyG torch CSR": "PyG, torch CSR",
    "DGL": "DGL",
    NONE: "ours, no HAG",
    GREEDY: "ours, paper's greedy HAG",
    AUTO: "ours, HAG",
}


def _greedy(graph: Any, kind: str, hidden: int, plan: Plan) -> tuple[models.Net, hp.HAG]:
    hag = graph.hag("greedy", "A+I", hidden)
    return hp.accelerate(models.pyg_net(kind, hidden, plan.seed)), hag


def cells(setup: Setup) -> list[Record]:
    """One a data set."""
    return [{"graph": name} for name in hag_graphs.PAPER]


def measure(cell: Record, setup: Setup) -> Record:
    """Times a training epoch on every side whose scores agree with the plain graph's."""
    found = setup.load(cell["graph"])
    graph = hag_graphs.Given(found.data, setup.seed)
    plan = Plan(widths=(HIDDEN,), quick=setup.quick, seed=setup.seed, memory_limit=MEMORY_LIMIT)
    x = graph.features(FEATURES)
    generator = torch.Generator().manual_seed(setup.seed)
    labels = torch.randint(CLASSES, (graph.num_nodes,), generator=generator)
    sides, absent = {}, {}
    for name, make in {**suite_epochs.SIDES, GREEDY: _greedy}.items():
        try:
            net, structure = make(graph, "GCN", HIDDEN, plan)
        except Absent as e:
            absent[name] = str(e)
            continue
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        sides[name] = Side(net, structure, x, labels, optimizer)
    expected = sides[NONE].infer()
    wrong = {}
    for name, side in list(sides.items()):
        off = float((side.infer() - expected).abs().max() / expected.abs().max())
        if not off <= TOLERANCE:
            wrong[name] = f"scores differ by {off:.3g} of the largest"
            del sides[name]
    rounds = interleave({name: s.train for name, s in sides.items()}, plan.budget(SECONDS))
    return {"facts": found.facts(), "sides": rounds.summary(), "absent": absent, "wrong": wrong}


# The page ---------------------------------------------------------------------------------------


def section(records: Sequence[Record]) -> str:
    """Milliseconds an epoch, and how many times faster the HAG is."""
    ratios = {
        "HAG over no HAG": NONE,
        "HAG over DGL": "DGL",
        "HAG over PyG": suite_epochs.STOCK,
    }
    rows = [
        [label(r), *(duration(seconds(r, side)) for side in TITLES),
         *(times(faster(r, side)) for side in ratios.values())]
        for r in records
    ]  # fmt: skip
    means = []
    for side in ratios.values():
        known = [f for f in (faster(r, side) for r in records) if f is not None]
        means.append(times(geometric_mean(known)))
    rows.append(["geometric mean", *[""] * len(TITLES), *means])
    lines = ["Milliseconds an epoch, medians, sides interleaved; the last columns are ratios.", "",
             markdown(["data set", *TITLES.values(), *ratios], rows), ""]  # fmt: skip
    for record in records:
        for side, words in {**record["absent"], **record["wrong"]}.items():
            lines.append(f"- {label(record)}, {TITLES[side]}: left out, {words}")
    return "\n".join(lines)


def seconds(record: Record, side: str) -> float | None:
    """Median of an epoch; None where the side took no part."""
    found = record["sides"].get(side)
    return None if found is None else float(found["median"])


def faster(record: Record, side: str) -> float | None:
    """How many times faster than `side` an epoch with HAG is."""
    theirs, ours = seconds(record, side), seconds(record, AUTO)
    return None if theirs is None or ours is None else theirs / ours


def draw(records: Sequence[Record], path: Path) -> bool:
    """Bars by data set as in the paper: throughput, the engine without HAG is 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes, wide = figure.subplots(), 0.84 / len(TITLES)
    for number, (side, title) in enumerate(TITLES.items()):
        pairs = []
        for place, record in enumerate(records):
            theirs, plain = seconds(record, side), seconds(record, NONE)
            if theirs is not None and plain is not None:
                shift = (number - len(TITLES) / 2 + 0.5) * wide
                pairs.append((place + shift, plain / theirs))
        if pairs:
            axes.bar(*zip(*pairs, strict=True), wide, label=title)
    axes.set_xticks(range(len(records)), [axis_label(r) for r in records])
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set(yscale="log", ylabel="epochs a second, ours without HAG = 1 (log)")
    axes.set_title("training, 2-layer GCN, 16 hidden units")
    axes.figure.legend(ncols=6, fontsize=8, loc="outside lower center")
    figure.savefig(path, dpi=110)
    return True


STEP = Step(
    name="hag_training",
    title="End-to-end training",
    published=f"HAGs {hag_paper.END_TO_END}; the engine {hag_paper.ENGINE}",
    departures=(
        "A CPU in place of a V100: caches and kernels differ, and 16 features make short rows, so "
        "a saved row is worth less than on a GPU that waits for memory.",
        "TensorFlow 1.12 does not run on current Pythons; PyG, which the paper does not have, "
        "takes its place, with `edge_index` and with torch's CSR matrices.",
        f"All data sets get {FEATURES} random features and {CLASSES} random classes: times depend "
        "on the shapes alone, and input features of five kinds would hide the graphs' part.",
        "An epoch is one full-batch step of Adam over all graphs side by side.",
    ),
    timed=True,
    cells=cells,
    measure=measure,
    section=section,
    draw=draw,
)

if __name__ == "__main__":
    from .hag_steps import run

    sys.exit(run(["hag_training", *sys.argv[1:]]))
