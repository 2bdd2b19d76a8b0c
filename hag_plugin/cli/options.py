"""What every command's help says about graphs from files, and the options for their ids."""

from __future__ import annotations

from typing import Any

from hag_plugin.data.source import KINDS

FILE_HELP = f"a file, or - for the standard input: {KINDS}; what it holds is told by its content"


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
