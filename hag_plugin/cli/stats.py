"""`hag-plugin stats`: what a graph is, and what its HAG saves."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hag_plugin.cli.options import GRAPH_HELP, add_command, add_source, load
from hag_plugin.cli.output import print_result
from hag_plugin.cli.search import LOOPS, add_search, check, search
from hag_plugin.data import graph_files
from hag_plugin.data.graph_data import GraphData
from hag_plugin.hag.candidates import PLAIN, REORDERED, SHARED
from hag_plugin.hag.gpu.memory import DeviceBytes
from hag_plugin.hag.gpu.occupancy import Occupancy
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import SelfLoops
from hag_plugin.hag.stats import Stats, rows_of_counts

MATRICES = {"none": "A", "add": "A + I", "fill": "A with one loop a node"}  # by --self-loops


def add(commands: Any) -> None:
    """Adds `stats` to the commands."""
    parser = add_command(
        commands,
        "stats",
        run,
        "What a graph is, and what a HAG saves on it. Counts are for one aggregation over one "
        "feature row a node, beside the plain graph.",
        [
            "cliques",
            "edges.txt --undirected --self-loops fill",
            "graph.npz --json",
            "graph.hag.npz",
        ],
    )
    parser.add_argument("graph", help=GRAPH_HELP)
    add_source(parser)
    add_search(parser)


def run(args: argparse.Namespace) -> None:
    """Searches the HAG, or loads it, and reports on both."""
    mode = LOOPS[args.self_loops]
    data = load(args, args.graph, features=False)
    if graph_files.is_hag_file(args.graph):
        hag = HAG.load(args.graph)  # as it was searched: --method and the like have no say
        check(args, data, hag, mode)
    else:
        hag = search(args, data, mode)
    report(args, data, hag, mode, {})


def report(
    args: argparse.Namespace, data: GraphData, hag: HAG, mode: SelfLoops, extra: dict[str, Any]
) -> None:
    """Prints what a graph is and what its HAG costs."""
    facts, stats = facts_of(data, hag), hag.stats(mode)
    what = MATRICES[args.self_loops]
    words = in_words(stats, hag)
    if args.check:
        words += " Checked: it computes exactly this graph."
    if extra:
        words += f" Written to {extra['output']} ({extra['file_bytes']:,} bytes)."
    result = {
        "dataset": {"name": data.name, "source": data.source},
        "graph": asdict(facts),
        "settings": {"self_loops": args.self_loops, "method": args.method, "width": args.width,
                     "allow_subtraction": args.allow_subtraction,
                     "device": hag.options.device},
        "stats": asdict(stats),
        "predicted_ratio": _ratio(stats),
        "profits": _gain(stats) > 1.0,
        "checked": bool(args.check),
        **extra,
    }  # fmt: skip
    lines = [f"{name:<12}{value}" for name, value in rows_of_facts(facts)]
    text = "\n".join([*lines, "", _stats_text(stats, what), "", words])
    print_result(args, result, text)


def _ratio(stats: Stats) -> float:
    """How many times less an aggregation takes than on the plain graph, by the cost model."""
    return stats.predicted_seconds_before / stats.predicted_seconds


def _gain(stats: Stats) -> float:
    """The same by the seconds that the choice went by, if it did; 1 where the plain graph runs."""
    choice = stats.choice
    if choice.name != SHARED:
        return 1.0
    if not choice.seconds:
        return _ratio(stats)
    return choice.seconds.get(PLAIN, 0.0) / max(choice.seconds[SHARED], 1e-12)


def in_words(stats: Stats, hag: HAG) -> str:
    """Which program runs at the width of the search, why, and what each takes."""
    choice, width, device = stats.choice, hag.options.width, hag.options.device
    gain = _gain(stats)
    name = {SHARED: "HAG", PLAIN: "plain graph", REORDERED: "reordered plain graph"}
    if not choice.seconds:
        if choice.by == "search" and choice.name == PLAIN:
            why = "nothing was found to share that pays"
            if device == "cuda":  # a CPU may gain by the same graph
                why += " on a GPU, by its cost model"
            return f"The HAG does not profit at width {width}: {why}, and the plain graph runs."
        asked = "" if choice.by == "search" else ", as asked for"
        start = f"At width {width} the {name[choice.name]} runs{asked}. "
        if gain > 1.0:
            words = f"The HAG profits: by the cost model, one aggregation takes {gain:.2f}x less."
        else:
            words = "The HAG does not profit."
        return start + words
    each = sorted(choice.seconds.items(), key=lambda item: item[1])
    how = "Timed" if choice.by == "measure" else "By the cost model"
    times = "; ".join(f"{name[who]} {1e3 * seconds:.3g} ms" for who, seconds in each)
    times = f"{how}, on one thread: {times}."
    if choice.name != SHARED:
        return f"The HAG does not profit at width {width}: the {name[choice.name]} runs. {times}"
    if gain <= 1.0:
        return f"At width {width} the HAG runs, no slower than the plain graph to speak of. {times}"
    return f"The HAG profits: at width {width} one aggregation takes {gain:.2f}x less. {times}"


@dataclass(frozen=True)
class Facts:
    """What a graph is: edges are directed, duplicates counted."""

    nodes: int
    edges: int
    graphs: int
    duplicates: int
    self_loops: int
    isolated: int
    symmetric: bool


def facts_of(data: GraphData, hag: HAG) -> Facts:
    """What a graph is."""
    source, target = hag.edge_index  # by target, then by source: duplicates are neighbours
    touched = torch.zeros(data.num_nodes, dtype=torch.bool)
    touched[source] = True
    touched[target] = True
    again = (source[1:] == source[:-1]) & (target[1:] == target[:-1])
    return Facts(
        nodes=data.num_nodes,
        edges=data.num_edges,
        graphs=data.num_graphs,
        duplicates=int(again.sum()),
        self_loops=int((source == target).sum()),
        isolated=int((~touched).sum()),
        symmetric=hag.is_symmetric,
    )


def rows_of_facts(facts: Facts) -> list[tuple[str, str]]:
    """The name and the value of each, in words."""
    return [
        (
            key.replace("_", "-"),
            ("yes" if value else "no") if isinstance(value, bool) else format(value, ","),
        )
        for key, value in asdict(facts).items()
    ]


def _stats_text(stats: Stats, what: str) -> str:
    values = asdict(stats)
    lines = [f"{what:<24}{'plain graph':>16}{'HAG':>16}{'ratio':>10}"]
    lines += [f"{name:<24}{plain:>16}{here:>16}{ratio:>10}"
              for name, plain, here, ratio in rows_of_counts(stats)]  # fmt: skip
    for key in ("intermediates", "tiles"):
        lines.append(f"{key:<24}{'-':>16}{values[key]:>16,}")
    lines.append(f"{'search, seconds':<24}{'-':>16}{stats.search_seconds:>16.3f}")
    return "\n".join(lines + _gpu_lines(stats.gpu, stats.gpu_bytes))


def _gpu_lines(gpu: Occupancy | None, held: DeviceBytes | None) -> list[str]:
    if gpu is None or held is None:
        return []
    lines = [
        "",
        f"On a GPU of {gpu.multiprocessors} multiprocessors, in this order:",
        f"{'launch':<8}{'ops':>12}{'rows':>12}{'longest op':>12}{'width blocks':>14}"
        f"{'instances':>12}{'warps':>8}{'occupancy':>11}",
    ]
    for number, each in enumerate(gpu.launches):
        lines.append(
            f"{number:<8}{each.ops:>12,}{each.rows:>12,}{each.longest_op:>12,}"
            f"{each.width_blocks:>14,}{each.instances:>12,}{each.warps:>8}{each.occupancy:>11.1%}"
        )
    return [
        *lines,
        f"longest serial chain: {gpu.serial_chain:,} rows; scratch: {gpu.scratch_bytes:,} bytes",
        f"held there: {held.total:,} bytes ({held.graph:,} of the graph, {held.programs:,} of "
        f"programs, {held.schedules:,} of schedules); with edge weights or attention "
        f"{held.edges:,} more",
    ]
