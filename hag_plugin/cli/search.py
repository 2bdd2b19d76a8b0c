"""The HAG that stats, build and plot are about: how it is searched, and whether it is right."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import hag_plugin as hp
from hag_plugin.cli.options import positive
from hag_plugin.data.graph_data import GraphData
from hag_plugin.devices import KINDS
from hag_plugin.hag.candidates import CHOOSE
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import METHODS, SELF_LOOPS, SelfLoops

LOOPS: dict[str, SelfLoops] = {str(mode) if mode else "none": mode for mode in SELF_LOOPS}


class CheckError(RuntimeError):
    """A HAG does not compute its graph."""


def add_search(parser: Any) -> None:
    """Adds the options of a search."""
    parser.add_argument(
        "--self-loops",
        choices=sorted(LOOPS),
        default="none",
        help="none: the graph as given (default); add: A + I; fill: exactly one loop a node",
    )
    parser.add_argument("--method", choices=METHODS, default="auto", help="search (default auto)")
    parser.add_argument(
        "--allow-subtraction",
        action="store_true",
        help="aggregate A as A + I minus the node itself: cheaper, but a NaN, an Inf or a huge "
        "value in a node's own row then spoils its result",
    )
    parser.add_argument(
        "--width", type=positive, default=64, help="features that the price is for (default 64)"
    )
    parser.add_argument(
        "--device",
        choices=tuple(KINDS),
        default="cpu",
        help="that the price is for (default cpu); cuda needs no GPU here",
    )
    parser.add_argument(
        "--choose",
        choices=CHOOSE,
        help="how it is chosen, for each width, whether the HAG or the plain graph runs: by timing "
        "them now where the cost model cannot tell (measure, the default), by the model, or always "
        "one of them",
    )
    parser.add_argument("--check", action="store_true", help="expand the HAG and compare all edges")


def search(args: argparse.Namespace, data: GraphData, mode: SelfLoops) -> HAG:
    """Searches the HAG of a graph, and checks it if asked to."""
    hag = hp.build_hag(
        data.edge_index,
        num_nodes=data.num_nodes,
        ptr=data.graph_ptr,
        method=args.method,
        self_loops=(),  # the search is yet to come
        allow_subtraction=args.allow_subtraction,
        width=args.width,
        choose=args.choose,
    )
    options = replace(hag.options, device=args.device)
    hag = HAG(hag.row_ptr, hag.col, hag.num_src, options=options)
    hag.program(mode, progress=False if args.quiet else None)
    check(args, data, hag, mode)
    return hag


def check(args: argparse.Namespace, data: GraphData, hag: HAG, mode: SelfLoops) -> None:
    """With --check, expands the HAG.

    Raises:
        CheckError: it does not compute its graph.
    """
    if args.check:
        try:
            hag.check(data.edge_index, self_loops=mode)
        except ValueError as e:
            raise CheckError(f"the HAG does not compute its graph: {e}") from e
