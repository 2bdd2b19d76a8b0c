"""What commands share: how they are added, types of values, and which graph they are about."""

from __future__ import annotations

import argparse
import math
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from hag_plugin.data import datasets
from hag_plugin.data.graph_data import GraphData
from hag_plugin.data.source import KINDS

FILE_HELP = f"a file, or - for the standard input: {KINDS}; what it holds is told by its content"
GRAPH_HELP = (
    f"a built-in graph ({', '.join(datasets.BUILT_IN)}); {FILE_HELP}; with "
    "--root, a TU or Planetoid name (MUTAG, Cora, ...) or the name of an .npz in it"
)
EXIT_CODES = (
    "exit codes: 0 done; 1 a check or a run failed, or nobody reads the output any more; 2 the\n"
    "input was wrong, or a package is missing; 130 interrupted"
)
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def add_command(commands: Any, name: str, run: Any, words: str, examples: Sequence[str]) -> Any:
    """Adds a command, with the options that all have; its parser.

    Args:
        commands: the subcommands.
        name: of the command.
        run: what runs it, given the parsed arguments.
        words: what it does. The first sentence stands in the list of commands.
        examples: what may follow its name, a line each.
    """
    lines = [f"  hag-plugin {name} {e}".rstrip() for e in examples]
    epilog = "\n".join([EXIT_CODES, "", "examples:", *lines])
    parser = commands.add_parser(
        name,
        help=words.partition(".")[0],
        description=textwrap.fill(words, 90),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("--threads", type=positive, metavar="N", help="threads that torch may use")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", action="store_true", help="results as JSON on stdout")
    return parser


# Values ----------------------------------------------------------------------------------------


def positive(text: str) -> int:
    """An integer, 1 or more."""
    return _integer(text, 1)


def natural(text: str) -> int:
    """An integer, 0 or more."""
    return _integer(text, 0)


def _integer(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r}; expected an integer, {least} or more")
    return value


def amount(text: str) -> float:
    """A finite number, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text!r}; expected a finite number, 0 or more")
    return value


def size(text: str) -> int:
    """Bytes: a number with a unit, 70GiB or 512M; units are binary."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", text, re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}; expected bytes, such as 70GiB or 512M")
    return int(float(match[1]) * UNITS[match[2].upper()])


# Graphs ----------------------------------------------------------------------------------------


def add_ids(parser: Any) -> None:
    """Adds the options that say how a file's edges become a graph."""
    parser.add_argument(
        "--relabel",
        action="store_true",
        help="file of edges: number the ids that occur from 0, in order; they may be names. "
        "Without it ids are node numbers, and those that do not occur are isolated nodes",
    )
    parser.add_argument(
        "--undirected",
        action="store_true",
        help="file of edges: take every edge in both directions, once",
    )


def add_source(parser: Any) -> None:
    """Adds the options that say where a graph comes from."""
    parser.add_argument("--root", metavar="DIR", help="folder of TU, Planetoid or .npz datasets")
    parser.add_argument("--seed", type=natural, default=0, help="of all that is random (default 0)")
    parser.add_argument(
        "--graphs", type=positive, metavar="N", help="ego-networks to generate (default 1000)"
    )
    add_ids(parser)


def load(args: argparse.Namespace, name: str, features: bool) -> GraphData:
    """The graph that was asked for; says on stderr which it is."""
    data = datasets.load(
        name,
        args.root,
        num_graphs=args.graphs,
        seed=args.seed,
        features=features,
        relabel=args.relabel,
        undirected=args.undirected,
    )
    print(f"{data.name}: {data.source}", file=sys.stderr)
    return data
