"""Runs the scripts of this folder: what is not measured yet is measured, then a page is written."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from examples.benchmark import environment
from examples.benchmark.results import Record, Results
from hag_plugin.files import DatasetError

from . import hag_graphs, hag_page
from .hag_page import Page

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Setup:
    """What results depend on beside their cell.

    Attributes:
        root: folder of data sets, or None.
        offline: do not try to download.
        quick: a tiny run, to see that all works; its numbers mean nothing.
        seed: of all that is random.
    """

    root: str | None = None
    offline: bool = False
    quick: bool = False
    seed: int = 0

    def load(self, name: str) -> hag_graphs.Found:
        """A graph, by the paper's name."""
        return hag_graphs.load(
            name, self.root, offline=self.offline, quick=self.quick, seed=self.seed
        )

    def settings(self) -> dict[str, Any]:
        """For a record: all but where the data is."""
        return {key: value for key, value in asdict(self).items() if key not in ("root", "offline")}


@dataclass(frozen=True)
class Step:
    """One figure or table of the paper.

    Attributes:
        name: of the script.
        title: of its section.
        published: what the paper says.
        departures: where this differs from the paper, and why.
        timed: whether its numbers depend on the machine.
        cells: what is to be measured, each a dictionary for JSON.
        measure: measures one of them.
        section: Markdown of the records.
        draw: draws the records to a file; False where there is nothing to draw. None: no picture.
    """

    name: str
    title: str
    published: str
    departures: Sequence[str]
    timed: bool
    cells: Callable[[Setup], list[Record]]
    measure: Callable[[Record, Setup], Record]
    section: Callable[[Sequence[Record]], str]
    draw: Callable[[Sequence[Record], Path], bool] | None = None


def main(
    steps: Sequence[Step], arguments: Sequence[str] | None = None, page: Page = hag_page.HAG
) -> int:
    """The command; returns the exit code.

    0: done. 2: the input was wrong. 130: interrupted; the same command goes on from there.
    """
    args = _parser(steps, page).parse_args(arguments)
    try:
        return _run(steps, args, page)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except (DatasetError, OSError) as e:
        print(f"reproduce: {e}", file=sys.stderr)
        return 2


def _parser(steps: Sequence[Step], page: Page) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=page.command,
        description=f"{page.words} Goes on where an earlier run stopped. Without steps: all of "
        "them.",
    )
    names = ", ".join(step.name for step in steps)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {names}; or report, to make "
                        "the page from what is measured")  # fmt: skip
    parser.add_argument("--root", metavar="DIR", help="folder of data sets, which PyG may download "
                        "into; without it, generated stand-ins")  # fmt: skip
    parser.add_argument("--offline", action="store_true", help="do not try to download")
    parser.add_argument("--quick", action="store_true", help="a tiny run on small generated "
                        "graphs, to see that all works; its numbers mean nothing")  # fmt: skip
    parser.add_argument("--again", action="store_true", help="measure anew what is there already")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default 0)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads that torch may use")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR",
                        help="folder of results, page and pictures (default: results, beside the "
                        "scripts)")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _run(steps: Sequence[Step], args: argparse.Namespace, page: Page) -> int:
    known = {step.name: step for step in steps}
    unknown = [name for name in args.steps if name not in (*known, "report")]
    if unknown:
        raise DatasetError(f"{unknown[0]!r} is no step; expected {', '.join(known)}, report")
    if args.root is not None and not Path(args.root).is_dir():
        raise DatasetError(f"--root is {args.root}; expected a folder")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    # Beta notices of torch's sparse tensors say nothing about a measurement.
    warnings.filterwarnings("ignore", message=".*[Ss]parse.*")
    results = Results(args.out / f"{page.name}.jsonl")
    if args.steps != ["report"]:
        chosen = [known[name] for name in args.steps if name in known] or list(steps)
        _measure(chosen, args, results)
    if not results.environments():
        raise DatasetError(f"{results.path} holds no results; run a step first")
    print(hag_page.write(page, steps, results, args.out))
    print(f"written to {args.out}: {page.name}.md, {page.name}.jsonl, pictures", file=sys.stderr)
    return 0


def _measure(steps: Sequence[Step], args: argparse.Namespace, results: Results) -> None:
    setup = Setup(args.root, args.offline, args.quick, args.seed)
    here = environment.describe(setup.settings())
    results.add_environment(here)
    cells = [(step, cell) for step in steps for cell in step.cells(setup)]
    todo = [
        (step, cell)
        for step, cell in cells
        if args.again or results.find(step.name, cell, here["id"]) is None
    ]
    if len(cells) > len(todo):
        print(f"{len(cells) - len(todo)} of {len(cells)} cells are measured", file=sys.stderr)
    with tqdm(todo, disable=args.quiet, file=sys.stderr, unit="cell", leave=False) as bar:
        for step, cell in bar:
            bar.set_description_str(f"{step.name}: {' '.join(map(str, cell.values()))}"[:60])
            results.append(
                {
                    "kind": "cell",
                    "suite": step.name,
                    "cell": cell,
                    "environment": here["id"],
                    "date": environment.now(),
                    "load": environment.load_average(),
                    "timed": step.timed,
                    **step.measure(cell, setup),
                }
            )
