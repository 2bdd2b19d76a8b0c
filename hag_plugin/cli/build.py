"""`hag-plugin build`: the HAG of a graph in a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hag_plugin import files
from hag_plugin.cli.options import GRAPH_HELP, add_command, add_source, load
from hag_plugin.cli.search import LOOPS, add_search, search
from hag_plugin.cli.stats import report


def add(commands: Any) -> None:
    """Adds `build` to the commands."""
    parser = add_command(
        commands,
        "build",
        run,
        "Build the HAG of a graph and write it to a file. `hag_plugin.HAG.load` reads it.",
        ["edges.txt graph.hag.npz --self-loops fill", "graph.npz graph.hag.npz --check"],
    )
    parser.add_argument("graph", help=GRAPH_HELP)
    parser.add_argument("output", help="HAG file to write, .npz")
    add_source(parser)
    add_search(parser)


def run(args: argparse.Namespace) -> None:
    """Searches the HAG, writes it and reports on it."""
    mode = LOOPS[args.self_loops]
    output = Path(args.output)
    files.check_output(output, (".npz",))
    data = load(args, args.graph, features=False)
    hag = search(args, data, mode)
    hag.save(output)
    report(args, data, hag, mode, {"output": args.output, "file_bytes": output.stat().st_size})
