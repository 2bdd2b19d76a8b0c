"""The command: measures what is not measured yet, then writes the page and the plots."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tqdm.auto import tqdm

from hag_plugin.files import DatasetError
from hag_plugin.kernels import _cpu

from . import (
    crashes,
    environment,
    foreign_constants,
    graphs,
    machines,
    peers,
    report,
    sample,
    suite_aggregate,
    suite_attention,
    suite_batches,
    suite_blocks,
    suite_calls,
    suite_cost,
    suite_counts,
    suite_dgl,
    suite_epochs,
    suite_layers,
    suite_never_slower,
    suite_sampled,
    suite_scale,
    suite_search,
)
from .graphs import Graph
from .plan import (
    ATTENTION_GRAPHS,
    BATCH_GRAPHS,
    DGL_GRAPHS,
    DIRECTIONS,
    DTYPES,
    EPOCH_GRAPHS,
    LAYER_GRAPHS,
    REDUCES,
    SAMPLED_GRAPHS,
    WIDTHS,
    Cell,
    Plan,
)
from .results import Results
from .sides import is_ours
from .verdict import is_settled

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
        suite_sampled,
        suite_blocks,
        suite_cost,
        suite_counts,
        suite_batches,
        suite_attention,
    )
}
BOTH_LOOPS = ("search", "cost", "counts")
HERE = Path(__file__).resolve().parent
CONSTANTS = (foreign_constants.OWN, *foreign_constants.FOREIGN)
Todo = list[tuple[str, Cell]]  # suites and cells


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code.

    0: done. 1: a result of ours differs, one of our sides crashed, or "auto" is slower than "none".
    2: the input was wrong, or a peer is missing. 130: interrupted; the same command goes on from
    there.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    args = _parser().parse_args(words)
    try:
        return _measure(args) if args.cells else _run(args, words)
    except crashes.ChildFailed as e:
        return e.code
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
    only = "never-slower: only these"
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help=only)
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, help=only)
    parser.add_argument("--instruction-sets", nargs="+", choices=_cpu.instruction_sets(), help=only)
    parser.add_argument("--constants", nargs="+", choices=CONSTANTS, help=f"{only}; own: those in "
                        "force, the others: as if this machine were another")  # fmt: skip
    parser.add_argument("--sample", type=_positive, metavar="N", help="of each suite only so many "
                        "cells, spread over all that they differ in; the same ones each time"
                        )  # fmt: skip
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
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of results, page and plots "
                        "(default: this machine's, in results beside the benchmark)")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    # What a child process measures: a file with cells, written by its parent.
    parser.add_argument("--cells", type=Path, help=argparse.SUPPRESS)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}; expected 1 or more")
    return value


def _run(args: argparse.Namespace, words: Sequence[str]) -> int:
    unknown = [name for name in args.suites if name not in (*SUITES, "report")]
    if unknown:
        raise DatasetError(f"{unknown[0]!r} is no suite; expected {', '.join(SUITES)}, report")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.out is None:
        args.out = HERE / "results" / machines.slug(environment.machine())
    results = Results(args.out / "results.jsonl")
    if args.suites != ["report"]:
        if args.require_peers:
            peers.require()
        for line in peers.missing() + peers.other_versions():
            print(f"note: {line}", file=sys.stderr)
        results = _measure_all(args, [*words, "--out", str(args.out)], results)
    if not results.environments():
        raise DatasetError(f"{results.path} holds no results; run a suite first")
    page = report.write(results, args.out, HERE / "results")
    print(page.text)
    print(f"written to {args.out}: report.md, summary.json and plots", file=sys.stderr)
    return 1 if page.failures else 0


def plan_of(args: argparse.Namespace, suite: str) -> Plan:
    """The cells of a suite under the options given."""
    names = graphs.names(args.root, args.graphs)
    if args.quick and not args.graphs:
        names = names[:1]
    every = args.full or suite == suite_never_slower.NAME
    widths: tuple[int, ...] = WIDTHS if every else (64,)
    if suite == suite_never_slower.NAME:
        widths = suite_never_slower.WIDTHS
    if suite == "epochs":
        widths = (16, 64, 256)
        if args.root is not None and not args.graphs:
            names = [name for name in names if name in EPOCH_GRAPHS]
    if suite == "layers" and args.root is not None and not args.graphs:
        names = [name for name in names if name in LAYER_GRAPHS]
    if suite == "dgl-layers" and args.root is not None and not args.graphs:
        names = [name for name in names if name in DGL_GRAPHS]
    if suite == suite_batches.NAME and args.root is not None and not args.graphs:
        names = [name for name in names if name in BATCH_GRAPHS]
    if suite == suite_attention.NAME:
        widths = (8, 16, 64)
        if args.root is not None and not args.graphs:
            names = [name for name in names if name in ATTENTION_GRAPHS]
    if suite == "cost":
        widths = suite_cost.WIDTHS
    if suite in (suite_sampled.NAME, suite_blocks.NAME):
        widths = (64, 256)
        if args.root is not None and not args.graphs:
            names = [name for name in names if name in SAMPLED_GRAPHS]
    if args.quick:
        widths = (16,)
    loops = ("A", "A+I") if every or suite in BOTH_LOOPS else ("A+I",)
    return Plan(
        graphs=tuple(names),
        widths=tuple(args.widths or widths),
        loops=tuple(args.loops or loops),
        reduces=tuple(args.reduces or (REDUCES if every else ("sum",))),
        dtypes=tuple(args.dtypes or DTYPES[: 1 if args.quick else None]),
        directions=tuple(args.directions or DIRECTIONS),
        instruction_sets=tuple(args.instruction_sets or _instruction_sets(args.quick)),
        constants=tuple(args.constants or CONSTANTS[: 1 if args.quick else None]),
        seconds=args.seconds,
        quick=args.quick,
        memory_limit=args.memory_limit * 1e9,
        seed=args.seed,
    )


def _instruction_sets(quick: bool) -> tuple[str, ...]:
    """The one in use, and AVX2 where that is another and can run here."""
    used = _cpu.instruction_set()
    more = "avx2" in _cpu.instruction_sets() and used != "avx2" and not quick
    return (used, "avx2") if more else (used,)


def _measure_all(args: argparse.Namespace, words: list[str], results: Results) -> Results:
    """Measures in child processes what is not measured yet; the results with what came to them."""
    chosen = [name for name in args.suites if name in SUITES] or list(SUITES)
    plans = {name: plan_of(args, name) for name in chosen}
    here = environment.describe(next(iter(plans.values())).settings())
    results.add_environment(here)
    wanted: Todo = []
    for name, plan in plans.items():
        cells = list(SUITES[name].cells(plan))
        if args.sample is not None:
            cells = sample.spread(cells, args.sample)
        wanted += [(name, cell) for cell in cells]
    todo = []
    for each in wanted:
        record = results.find(*each, here["id"])
        if record is None or not (args.quick or is_settled(record)):
            todo.append(each)
    if len(wanted) > len(todo):
        print(f"{len(wanted) - len(todo)} of {len(wanted)} cells are measured already",
              file=sys.stderr)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for setting, group in itertools.groupby(todo, lambda each: _setting(*each, Path(folder))):
            results = _in_children(words, setting, list(group), here["id"], results, Path(folder))
    return results


def _setting(suite: str, cell: Cell, folder: Path) -> dict[str, str]:
    """The environment variables that a cell needs: those of a suite that has settings."""
    if suite != suite_never_slower.NAME:
        return {}
    return suite_never_slower.environment(cell, folder)


def _in_children(
    words: list[str],
    setting: dict[str, str],
    todo: Todo,
    here: str,
    results: Results,
    folder: Path,
) -> Results:
    """Measures cells of one setting in a child, and in another one after each crash.

    A peer that crashed is left out of its cell; a cell in which one of ours crashed, or nobody
    knows who, is given up.
    """
    cells, note = folder / "cells.json", folder / "side"
    while todo:
        cells.write_text(json.dumps({"environment": here, "todo": todo}))
        note.unlink(missing_ok=True)
        command = [sys.executable, sys.argv[0], *words, "--cells", str(cells)]
        why = crashes.died(command, setting)
        before, results = len(results.records), Results(results.path)
        todo = todo[len(results.records) - before :]  # in their order, a record each
        if why is None:
            break
        suite, cell = todo[0]
        side = crashes.last_entered(note)
        print(f"{suite}, {' '.join(map(str, cell.values()))}: {side or '?'} {why}", file=sys.stderr)
        known = side in results.crashed(suite, cell, here)
        results.append({"kind": "crash", "suite": suite, "cell": cell, "environment": here,
                        "date": environment.now(), "side": side, "why": why})  # fmt: skip
        if known or not side or is_ours(side):
            todo = todo[1:]
    return results


def _measure(args: argparse.Namespace) -> int:
    """What a child does: measures the cells of a file, one after the other."""
    given = json.loads(args.cells.read_text())
    todo: Todo = given["todo"]
    crashes.watch(args.cells.with_name("side"))
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    # Beta notices of torch's sparse tensors say nothing about a measurement.
    warnings.filterwarnings("ignore", message=".*[Ss]parse.*")
    results = Results(args.out / "results.jsonl")
    plans = {name: plan_of(args, name) for name in dict.fromkeys(name for name, _ in todo)}
    graph: Graph | None = None
    kept_for: Any = None
    with tqdm(todo, disable=args.quiet, file=sys.stderr, unit="cell", leave=False) as bar:
        for name, cell in bar:
            suite = SUITES[name]
            bar.set_description_str(f"{name}: {' '.join(map(str, cell.values()))}"[:60])
            if graph is None or graph.name != cell["graph"]:
                graph = None  # frees the one before
                graph = Graph(cell["graph"], args.root, args.seed)
            # What was prepared for other loops or widths would fill the memory.
            needs = _needs(name, cell)
            if needs != kept_for:
                graph.forget(hags_only=needs[:2] == (kept_for or ())[:2])
                kept_for = needs
            crashes.entering("")
            crashed = results.crashed(name, cell, given["environment"])
            record = {
                "kind": "cell",
                "suite": name,
                "cell": cell,
                "environment": given["environment"],
                "date": environment.now(),
                "load": environment.load_average(),
                "graph": graph.facts(),
            }
            found = suite.measure(graph, cell, replace(plans[name], crashed=crashed))
            results.append(record | found)
    return 0


def _needs(suite: str, cell: Cell) -> tuple[Any, ...]:
    """What decides which of the things that were prepared for a graph serve a cell."""
    if suite == suite_never_slower.NAME:  # one HAG for all widths and dtypes
        return (suite, cell["loops"], cell["direction"])
    return (suite, cell.get("loops"), cell.get("width", cell.get("hidden")))
