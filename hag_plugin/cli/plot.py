"""`hag-plugin plot`: a graph beside its HAG, as a picture."""

from __future__ import annotations

import argparse
from typing import Any

from hag_plugin.cli.options import GRAPH_HELP, add_command, add_source, load
from hag_plugin.cli.output import print_result
from hag_plugin.cli.search import LOOPS, add_search, search
from hag_plugin.data.graph_data import GraphData
from hag_plugin.hag.hag import HAG
from hag_plugin.progress import shares


def add(commands: Any) -> None:
    """Adds `plot` to the commands."""
    parser = add_command(
        commands,
        "plot",
        run,
        "Draw a small graph beside its HAG, with the shared sums in colour; how often sums are "
        "shared; and what the cost model says for more and more of them. Where none pays, those of "
        "the paper's greedy search are drawn. Of a large graph a small part is drawn. Needs "
        "matplotlib.",
        ["karate -o karate.svg --self-loops fill", "graph.npz -o graph.png --method greedy"],
    )
    parser.add_argument("graph", help=GRAPH_HELP)
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="picture to write, .svg or .png"
    )
    add_source(parser)
    add_search(parser)


def run(args: argparse.Namespace) -> None:
    """Searches the HAG and draws it."""
    from hag_plugin.cli import picture  # only for this

    picture.check_output(args.output)
    mode = LOOPS[args.self_loops]
    data = load(args, args.graph, features=False)
    hag = search(args, data, mode)
    nothing_pays = args.method == "auto" and not hag.stats(mode).intermediates
    if nothing_pays:
        args.method = "greedy"
        hag = search(args, data, mode)
    drawn = draw_with_bar(args, data, hag, args.output)
    words = (
        f"{drawn['drawn_nodes']} nodes and {drawn['drawn_shared_sums']} shared sums drawn to "
        f"{args.output}; the whole graph has {drawn['shared_sums']:,} shared sums, each used "
        f"{drawn['mean_uses']:.1f} times on average."
    )
    if nothing_pays:
        words += " None of them pays here, and the plain graph runs: these are the greedy search's."
    print_result(args, {"dataset": {"name": data.name, "source": data.source}, **drawn}, words)


def draw_with_bar(
    args: argparse.Namespace, data: GraphData, hag: HAG, output: str
) -> dict[str, Any]:
    """Draws a graph and its HAG to a file, and returns what is in the picture."""
    from hag_plugin.cli import picture

    with shares("trying capacities", False if args.quiet else None) as report:
        return picture.draw(data, hag, output, LOOPS[args.self_loops], report)
