"""Full-graph training on 16 to 1,024 devices: `python -m examples.reproduce.full_graph`.

Plans found and simulated from what is known of papers100M and MAG240M, beside what CAGNET's and
Plexus's formulas say that a device sends.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch_geometric.nn import GCN

if not __package__:  # started as a file: the repository's root goes where its folder stood
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    __package__ = "examples.reproduce"

import hag_plugin as hp
from examples.benchmark.results import Record, Results
from examples.benchmark.tables import duration, markdown
from hag_plugin.parallel.machine.topology import preset
from hag_plugin.parallel.search.elimination import InfeasibleError
from hag_plugin.parallel.search.planner import space_of

from .full_graph_formulas import FORMULAS, Graph, random_halo, strategies_of
from .hag_page import Page
from .hag_run import Setup, Step, main

MACHINE = "4x8hdr"
DEVICES = (16, 64, 256, 1024)
HALOS = ("1", "random")  # rows of others over own ones: a good partition, and none
GRAPHS = {
    graph.name: graph
    for graph in (
        Graph("ogbn-papers100M", 111_059_956, 1_615_685_872, (128, 256, 256, 172)),
        Graph("MAG240M, citations", 121_751_666, 1_297_748_926, (768, 256, 256, 153)),
    )
}
GB = 1e9


def _cells(setup: Setup) -> list[Record]:
    return [
        {"graph": name, "devices": devices, "halo": halo}
        for name in GRAPHS
        for devices in (DEVICES[:2] if setup.quick else DEVICES)
        for halo in HALOS
    ]


def _measure(cell: Record, setup: Setup) -> Record:
    graph, devices = GRAPHS[cell["graph"]], cell["devices"]
    ratio = random_halo(graph, devices) if cell["halo"] == "random" else float(cell["halo"])
    sent = {name: vars(formula(graph, devices)) for name, formula in FORMULAS.items()}
    found: Record = {"halo_ratio": ratio, "formulas": sent, "ours": None}
    stats = hp.parallel.GraphStats.assumed(graph.nodes, graph.edges, halo_ratio=ratio)
    features, hidden, *_, classes = graph.widths
    model = GCN(features, hidden, len(graph.widths) - 1, classes)
    operations = hp.parallel.trace(model, stats, features=features, hag=False)
    machine = preset(MACHINE).resized(devices)
    try:
        plan = hp.parallel.plan(operations, topology=machine)
    except InfeasibleError as e:
        return found | {"refused": str(e)}
    schedule = hp.parallel.simulate_plan(plan, space_of(operations, machine))
    convolutions = [layer for layer in plan.layers if layer.kind == "convolution"]
    found["ours"] = {
        "seconds": schedule.makespan,
        "communication": sum(k.seconds.total - k.seconds.compute for k in plan.layers),
        "sent": sum(layer.sent for layer in plan.layers),
        "memory": plan.memory.total,
        "strategies": [layer.config.strategy for layer in convolutions],
    }
    return found


def _section(records: Sequence[Record]) -> str:
    rate = preset(MACHINE).levels[-1].rate()
    parts = []
    for name, graph in GRAPHS.items():
        lines = []
        for record in (r for r in records if r["cell"]["graph"] == name):
            ours, cell = record["ours"], record["cell"]
            mine = ["does not fit", "", "", ""]
            if ours is not None:
                mine = [duration(ours["seconds"]), duration(ours["communication"]),
                        f"{ours['sent'] / GB:.2f}", strategies_of(ours["strategies"])]  # fmt: skip
            lines.append([
                str(cell["devices"]), f"{record['halo_ratio']:.1f}", *mine,
                *(_sent(record["formulas"][each]) for each in FORMULAS),
            ])  # fmt: skip
        header = [
            "devices", "rows of others over own", "step, ms", "of it communication, ms", "GB sent",
            "strategies of the layers", *(f"{each}, GB" for each in FORMULAS),
        ]  # fmt: skip
        parts += [
            f"**{name}**: {graph.nodes:,} nodes, {graph.edges:,} edges, GCN of widths "
            f"{' > '.join(map(str, graph.widths))}",
            markdown(header, lines),
        ]
    parts.append(f"A GB that a device sends takes {1e3 * GB / rate:.0f} ms over the network.")
    return "\n\n".join(parts)


def _sent(found: dict[str, Any]) -> str:
    shape = f" ({found['shape']})" if found["shape"] else ""
    return f"{found['nbytes'] / GB:.2f}{shape}"


def _heading(results: Results) -> str:
    here = results.environments()[-1]
    machine = preset(MACHINE)
    lines = [
        "# Full-graph training on 16 to 1,024 devices, simulated",
        "CAGNET (Reducing Communication in Graph Neural Network Training, "
        "[arXiv 2005.03300](https://arxiv.org/abs/2005.03300)) and Plexus (Taming Billion-edge "
        "Graphs with 3D Parallel Full-graph GNN Training, "
        "[arXiv 2505.04083](https://arxiv.org/abs/2505.04083)) say in formulas what a device "
        "sends; here they stand beside our plans. **No GPU was run, and neither was their code**: "
        f"all is predicted, for groups of 8 {machine.device.name} with NVLink, joined by "
        f"{machine.levels[-1].name}; revision {here['git']}, {here['date']}.",
    ]
    if here["settings"].get("quick"):
        lines.append("**A quick run: fewer sizes.**")
    return "\n\n".join(lines)


STEP = Step(
    name="full_graph",
    title="What a device sends in a step",
    published="words that a process moves in an epoch (CAGNET, section IV), and the model by which "
    "Plexus chooses its grid",
    departures=(
        "Plans are made from the numbers of nodes and edges alone. How many rows of others a part "
        "reads is assumed: as many as it has, which is for a partitioner to reach; or as many as "
        "where nodes are dealt out at random, if all had the mean degree. The others' formulas do "
        "not depend on it.",
        "Ours is a step after the first: features are given, so they are sent once, and have no "
        "gradient. The others' formulas have both in every step.",
        "CAGNET's formulas have one mean width; here each layer has its own, half of a term for "
        "the width before it and half for the one behind. 1D broadcasts all rows, as its code "
        "does; of 1.5D we take the replication that sends least, counted from the algorithm; 3D is "
        "for cubes of devices, and is put down for other numbers, too. Latencies are left out. "
        "The formulas of 2D and 3D are quoted, not derived, and were not compared with the "
        "paper's text again.",
        "Plexus's is the one in its released code, with the grid that sends least, wherever "
        "devices are.",
        "Edges are as published, in one direction; both would double those of CAGNET's 2D and 3D.",
    ),
    timed=False,
    cells=_cells,
    measure=_measure,
    section=_section,
)
PAGE = Page(
    "full_graph", "reproduce.full_graph",
    "Simulates full-graph training on many devices, and writes a page.", _heading,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main((STEP,), None, PAGE))
