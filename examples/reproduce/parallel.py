"""OptCNN's and FlexFlow's tables: `python -m examples.reproduce.parallel`, from the root."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: the repository's root goes where its folder stood
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    __package__ = "examples.reproduce"

from examples.benchmark.results import Record, Results
from examples.benchmark.tables import duration, geometric_mean, markdown, times

from . import flexflow, flexflow_space, optcnn, parallel_execute
from .flexflow_command import Evaluation, Setting
from .flexflow_published import FLEXFLOW, OPTCNN, Figure
from .hag_page import Page
from .hag_run import Setup, Step, main

PROPOSALS, FEW = 1200, 300
SINGLE = ("data parallel", "model parallel", "one weird trick", "expert")


def _cells(
    networks: Sequence[str], machines: Sequence[tuple[str, str]], proposals: int
) -> Callable[[Setup], list[Record]]:
    def cells(setup: Setup) -> list[Record]:
        sizes = (4,) if setup.quick else (4, 16)
        return [
            asdict(Setting(network, machine, devices, links, "server",
                           min(proposals, 40) if setup.quick else proposals, setup.seed))
            for machine, links in machines
            for devices in sizes
            for network in (networks[:1] if setup.quick else networks)
        ]  # fmt: skip

    return cells


def _sampled_cells(setup: Setup) -> list[Record]:
    """P100 and K80; figure 8's NMT on 64 K80, with fewer proposals."""
    networks = tuple(flexflow.NETWORKS)
    found = _cells(networks, (("P100", "published"), ("K80", "published")), PROPOSALS)(setup)
    if not setup.quick:
        found.append(asdict(Setting("NMT", "K80", 64, proposals=FEW, seed=setup.seed)))
    return found


def _measured(evaluate: Callable[[Setting], Evaluation]) -> Callable[[Record, Setup], Record]:
    def measure(cell: Record, setup: Setup) -> Record:
        return asdict(evaluate(Setting(**cell)))

    return measure


# The tables ---------------------------------------------------------------------------------------


def _rows(record: Record) -> dict[str, Any]:
    return {row["name"]: row for row in record["rows"]}


def _single(record: Record) -> float:
    """Seconds of the fastest of the strategies that people use."""
    return min(row["simulated"] for row in record["rows"] if row["name"] in SINGLE)


def _groups(records: Sequence[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record["machine"], []).append(record)
    return found


def _published(figures: Sequence[Figure]) -> str:
    return "Published, not measured here:\n\n" + "\n".join(
        f"- {figure.what}: {figure.value} ({figure.where})" for figure in figures
    )


def _strategies(records: Sequence[Record], over: Sequence[str]) -> str:
    """Simulated milliseconds of all strategies, and the last one beside the others."""
    parts = []
    for machine, group in _groups(records).items():
        names = [row["name"] for row in group[0]["rows"]]
        header = ["network", "batch", *names, "best of people's / ours",
                  *(f"{name} / ours" for name in over)]  # fmt: skip
        room = "computing_seconds" in group[0]["facts"]
        header += ["best of people's / computing alone"] * room
        lines = []
        for record in group:
            rows, ours = _rows(record), record["rows"][-1]["simulated"]
            lines.append([
                record["network"], str(record["batch"]),
                *(duration(rows[name]["simulated"]) for name in names),
                times(_single(record) / ours),
                *(times(rows[name]["simulated"] / ours) for name in over),
                *([times(_single(record) / record["facts"]["computing_seconds"])] if room else []),
            ])  # fmt: skip
        parts.append(f"**{machine}**, simulated milliseconds an iteration\n\n"
                     + markdown(header, lines))  # fmt: skip
    return "\n\n".join(parts)


def _optcnn(records: Sequence[Record]) -> str:
    lines = []
    for record in records:
        rows, ours = _rows(record), record["rows"][-1]
        best = min(record["rows"][:-1], key=lambda row: row["simulated"])
        lines.append([
            f"{record['network']}, {record['machine']}",
            times(min(row["additive"] for row in record["rows"][:-1]) / ours["additive"]),
            times(rows["data parallel"]["additive"] / ours["additive"]),
            times(best["simulated"] / ours["simulated"]),
            times(rows["data parallel"]["simulated"] / ours["simulated"]),
            f"{rows['data parallel']['gigabytes']:.2f}",
            f"{min(row['gigabytes'] for row in record['rows'][:-1]):.2f}",
            f"{ours['gigabytes']:.2f}",
            f"{record['facts']['search_seconds'] * 1e3:.1f}",
        ])  # fmt: skip
    header = [
        "network", "best single / ours, additive", "data parallel / ours, additive",
        "best single / ours, simulated", "data parallel / ours, simulated",
        "GB, data parallel", "GB, least", "GB, ours", "search, ms",
    ]  # fmt: skip
    return "\n\n".join([markdown(header, lines), _strategies(records, ()), _published(OPTCNN)])


def _flexflow(records: Sequence[Record]) -> str:
    spread = []
    for machine, group in _groups(records).items():
        ours = [r["rows"][-1]["simulated"] for r in group]
        ratios = (
            [_single(r) / best for r, best in zip(group, ours, strict=True)],
            [_rows(r)["layer-wise"]["simulated"] / b for r, b in zip(group, ours, strict=True)],
            [_single(r) / r["facts"]["computing_seconds"] for r in group],
        )
        spread.append([
            machine,
            *(f"{times(min(v))} to {times(max(v))}, mean {times(geometric_mean(v))}"
              for v in ratios),
        ])  # fmt: skip
    header = ["machine", "best of people's / MCMC", "layer-wise / MCMC",
              "best of people's / computing alone"]  # fmt: skip
    return "\n\n".join([
        markdown(header, spread), ROOM,
        _strategies(records, ("data parallel", "layer-wise", "MCMC, no placement")),
        _bytes(records), _search(records), _published(FLEXFLOW),
    ])  # fmt: skip


ROOM = (
    "The last column is the room there is. With so many samples computing is bound by arithmetic, "
    "so what data parallelism takes if nothing is sent is, but for a few percent, what no strategy "
    "beats, in any space. Where it is 1.0x there is nothing to find, however many proposals: on "
    "four GPUs of a node with all convolutional networks, and with Inception-v3 on more, because "
    "the sums of its gradients are done while the backward pass goes on. The papers' systems, "
    "whose transfers and kernels were slower than published peaks, had more room. With fewer "
    "samples there is room on four GPUs, too: see the section on the space below, which also says "
    "what uneven degrees and any devices would add."
)


def _bytes(records: Sequence[Record]) -> str:
    """GB that all devices send in an iteration, on more than one node."""
    names = [row["name"] for row in records[0]["rows"]]
    lines = [
        [f"{record['network']}, {record['machine']}",
         *(f"{_rows(record)[name]['gigabytes']:.2f}" for name in names)]
        for record in records if record["cell"]["devices"] > 4
    ]  # fmt: skip
    return "**GB sent** by all devices in an iteration\n\n" + markdown(["network", *names], lines)


def _search(records: Sequence[Record]) -> str:
    """How far the search had come, and what a simulation costs."""
    lines = []
    for record in records:
        facts, ours = record["facts"], record["rows"][-1]["simulated"]
        reached = []
        for most in (100, 1000):
            costs = [cost for tried, cost in facts["history"] if tried <= most]
            starts = [row["simulated"] for row in record["rows"] if row["name"] in (*SINGLE,
                      "layer-wise")]  # fmt: skip
            reached.append(times(min([*starts, *costs]) / ours))
        lines.append([
            f"{record['network']}, {record['machine']}", str(facts["proposals"]),
            str(facts["accepted"]), facts["best_start"], *reached,
            str(facts["tasks"]), duration(facts["full_seconds"]), duration(facts["delta_seconds"]),
            times(facts["full_seconds"] / facts["delta_seconds"]),
            f"{facts['delta_scheduled_share']:.0%}",
        ])  # fmt: skip
    header = [
        "network", "proposals", "accepted", "start that led to it", "after 100 / at the end",
        "after 1,000 / at the end", "tasks", "full simulation, ms", "delta, ms", "full / delta",
        "tasks that delta schedules",
    ]  # fmt: skip
    return "**The search**, processor time of one core\n\n" + markdown(header, lines)


def _heading(results: Results) -> str:
    here = results.environments()[-1]
    lines = [
        "# OptCNN and FlexFlow, reproduced in simulation",
        "Exploring Hidden Dimensions in Parallelizing Convolutional Neural Networks (OptCNN), "
        "[arXiv 1802.04924](https://arxiv.org/abs/1802.04924), and Beyond Data and Model "
        "Parallelism for Deep Neural Networks (FlexFlow), "
        "[arXiv 1807.05358](https://arxiv.org/abs/1807.05358). **No GPU was run**: every time here "
        "is simulated, from published peaks of P100 and K80 and of their links. The papers' times "
        "are measured. Searches and simulations themselves were timed on "
        f"{here['machine']['processor']}; revision {here['git']}, {here['date']}.",
    ]
    if here["settings"].get("quick"):
        lines.append("**A quick run: its numbers mean nothing.**")
    return "\n\n".join(lines)


LAYERWISE = Step(
    name="optcnn",
    title="OptCNN: layer-wise against single strategies",
    published="layer-wise beats every single strategy on 16 P100",
    departures=(
        "The papers' times are measured, with cuDNN's kernels and Legion's transfers; ours are a "
        "roofline and latency plus bytes over bandwidth.",
        "Additive is the paper's own cost (equation 1), which the search minimises: nothing "
        "overlaps. Simulated lets gradients be summed while the backward pass goes on, which helps "
        "data parallelism most; there the additive optimum need not be the best.",
        "With published links a node has one adapter that its four GPUs share. With released "
        "links, those of FlexFlow's released simulator, 4 and 1 GiB/s, each pair of GPUs has its "
        "own.",
    ),
    timed=False,
    cells=_cells(tuple(optcnn.NETWORKS), (("P100", "published"), ("P100", "released")), 0),
    measure=_measured(optcnn.evaluate),
    section=_optcnn,
)
SAMPLED = Step(
    name="flexflow",
    title="FlexFlow: SOAP search against people's strategies and layer-wise",
    published="1.3x to 3.3x over the better of data parallelism and experts, 1.2x to 1.6x over "
    "layer-wise on Inception-v3 and the recurrent networks",
    departures=(
        "As for OptCNN, with published links. The space is the released simulator's: each block of "
        "time steps of a layer has a configuration of its own, degrees are powers of two; parts go "
        "to aligned grids of devices, where theirs go to any.",
        f"{PROPOSALS:,} proposals, where theirs has 250,000: a third of them without placement, a "
        "third for whole layers, a third for single operations. On 64 GPUs "
        f"{FEW}.",
        "Weights that unrolled operations share travel from one block of time steps to the next.",
    ),
    timed=False,
    cells=_sampled_cells,
    measure=_measured(flexflow.evaluate),
    section=_flexflow,
)  # fmt: skip
PAGE = Page(
    "parallel", "reproduce.parallel",
    "Reproduces OptCNN's and FlexFlow's tables in simulation, and writes a page.", _heading,
)  # fmt: skip
STEPS = (LAYERWISE, SAMPLED, flexflow_space.STEP, parallel_execute.STEP)

if __name__ == "__main__":
    sys.exit(main(STEPS, None, PAGE))
