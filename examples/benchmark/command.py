"""The command: measures what is not measured yet, then writes the page and the plots."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tqdm import tqdm

from hag_plugin.files import DatasetError

from . import (
    environment,
    graphs,
    peers,
    report,
    suite_aggregate,
    suite_calls,
    suite_cost,
    suite_counts,
    suite_dgl,
    suite_epochs,
    suite_layers,
    suite_never_slower,
    suite_scale,
    suite_search,
)
from .graphs import Graph
from .plan import DGL_GRAPHS, EPOCH_GRAPHS, LAYER_GRAPHS, REDUCES, WIDTHS, Plan
from .results import Results

SUITES: dict[str, ModuleType] = {
    module.NAME: module
    for module in (
        suite_aggregate,
        suite_epochs,
        suite_layers,
        suite_calls,
        suite_dgl,
        suite_search,
        suite_scale,
        suite_never_slower,
        suite_cost,
        suite_counts,
    )
}
BOTH_LOOPS = ("search", "cost", "counts")
HERE = Path(__file__).resolve().parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code.

    0: done. 1: a side's result differs, or "auto" is slower than "none". 2: the input was wrong,
    or a peer is missing. 130: interrupted; the same command goes on from there.
    """
    args = _parser().parse_args(arguments)
    try:
        return _run(args)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except (DatasetError, OSError, peers.PeersMissing) as e:
        print(f"benchmark: {e}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmark",
        description="Times hag_plugin and its peers in one run, interleaved, and writes tables and "
        "plots. Goes on where an earlier run stopped. Without suites: all of them.",
    )
    parser.add_argument(
        "suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; or report, to make "
        "the page from what is measured"
    )  # fmt: skip
    parser.add_argument("--root", metavar="DIR", help="folder of .npz graphs; without it, "
                        "generated graphs")  # fmt: skip
    parser.add_argument("--graphs", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--widths", nargs="+", type=_positive, metavar="F", help="only these")
    parser.add_argument("--loops", nargs="+", choices=list(graphs.LOOPS), help="only these")
    parser.add_argument("--reduces", nargs="+", choices=REDUCES, help="only these")
    parser.add_argument("--full", action="store_true", help="aggregate: all widths, A and A+I, sum "
                        "and max, in place of width 64, A+I, sum")  # fmt: skip
    parser.add_argument("--seconds", type=float, metavar="S", help="for one form of a cell, in "
                        "place of the suite's own")  # fmt: skip
    parser.add_argument("--threads", type=_positive, metavar="N", help="threads that torch may use")
    parser.add_argument("--memory-limit", type=float, default=6.0, metavar="GB",
                        help="sides that hold one message an edge are left out above this size "
                        "(default 6)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of features, weights and labels")
    parser.add_argument("--quick", action="store_true", help="a tiny run, to see that all works; "
                        "its times mean nothing")  # fmt: skip
    parser.add_argument("--require-peers", action="store_true", help="fail where a peer is missing")
    parser.add_argument("--out", type=Path, default=HERE / "results", metavar="DIR",
                        help="folder of results, page and plots (default: results, beside the "
                        "benchmark)")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}; expected 1 or more")
    return value


def _run(args: argparse.Namespace) -> int:
    unknown = [name for name in args.suites if name not in (*SUITES, "report")]
    if unknown:
        raise DatasetError(f"{unknown[0]!r} is no suite; expected {', '.join(SUITES)}, report")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    # Beta notices of torch's sparse tensors say nothing about a measurement.
    warnings.filterwarnings("ignore", message=".*[Ss]parse.*")
    results = Results(args.out / "results.jsonl")
    if args.suites != ["report"]:
        if args.require_peers:
            peers.require()
        for line in peers.missing() + peers.other_versions():
            print(f"note: {line}", file=sys.stderr)
        _measure_all(args, results)
    if not results.environments():
        raise DatasetError(f"{results.path} holds no results; run a suite first")
    page = report.write(results, args.out)
    print(page.text)
    print(f"written to {args.out}: report.md, summary.json and plots", file=sys.stderr)
    return 1 if page.failures else 0


def plan_of(args: argparse.Namespace, suite: str) -> Plan:
    """The cells of a suite under the options given."""
    names = graphs.names(args.root, args.graphs)
    if args.quick and not args.graphs:
        names = names[:1]
    every = args.full or suite == "never-slower"
    widths: tuple[int, ...] = WIDTHS if every else (64,)
    if suite == "epochs":
        widths = (16, 64, 256)
        if args.root is not None and not args.graphs:
            names = [name for name in names if name in EPOCH_GRAPHS]
    if suite == "layers" and args.root is not None and not args.graphs:
        names = [name for name in names if name in LAYER_GRAPHS]
    if suite == "dgl-layers" and args.root is not None and not args.graphs:
        names = [name for name in names if name in DGL_GRAPHS]
    if suite == "cost":
        widths = suite_cost.WIDTHS
    if args.quick:
        widths = (16,)
    loops = ("A", "A+I") if every or suite in BOTH_LOOPS else ("A+I",)
    return Plan(
        graphs=tuple(names),
        widths=tuple(args.widths or widths),
        loops=tuple(args.loops or loops),
        reduces=tuple(args.reduces or (REDUCES if every else ("sum",))),
        seconds=args.seconds,
        quick=args.quick,
        memory_limit=args.memory_limit * 1e9,
        seed=args.seed,
    )


def _measure_all(args: argparse.Namespace, results: Results) -> None:
    todo: list[tuple[ModuleType, Plan, dict[str, Any]]] = []
    chosen = [name for name in args.suites if name in SUITES] or list(SUITES)
    plans = {name: plan_of(args, name) for name in chosen}
    here = environment.describe(next(iter(plans.values())).settings())
    results.add_environment(here)
    count = 0
    for name, plan in plans.items():
        for cell in SUITES[name].cells(plan):
            count += 1
            if results.find(name, cell, here["id"]) is None:
                todo.append((SUITES[name], plan, cell))
    if count > len(todo):
        print(f"{count - len(todo)} of {count} cells are measured already", file=sys.stderr)
    graph: Graph | None = None
    kept_for: Any = None
    with tqdm(todo, disable=args.quiet, file=sys.stderr, unit="cell", leave=False) as bar:
        for suite, plan, cell in bar:
            bar.set_description_str(f"{suite.NAME}: {' '.join(map(str, cell.values()))}"[:60])
            if graph is None or graph.name != cell["graph"]:
                graph = None  # frees the one before
                graph = Graph(cell["graph"], args.root, args.seed)
            # What was prepared for other loops or widths would fill the memory.
            needs = (suite.NAME, cell.get("loops"), cell.get("width", cell.get("hidden")))
            if needs != kept_for:
                graph.forget(hags_only=needs[:2] == (kept_for or ())[:2])
                kept_for = needs
            record = {
                "kind": "cell",
                "suite": suite.NAME,
                "cell": cell,
                "environment": here["id"],
                "date": environment.now(),
                "load": environment.load_average(),
                "graph": graph.facts(),
            }
            results.append(record | suite.measure(graph, cell, plan))
