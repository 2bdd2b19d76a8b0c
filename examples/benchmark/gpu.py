"""The benchmark on a GPU: aggregation and training beside cuSPARSE and PyG.

    python examples/benchmark/gpu.py --root DIR
    python examples/benchmark/gpu.py --quick --tests --deadline 420
    python examples/benchmark/gpu.py --rehearse

Cells run in the order of what they decide, in a process of their own, and each row is written as it
ends: a call that is stopped, or whose time is up, is taken up by the next one (`--resume`). Every
side's result is compared with the plain program's before it is timed. CUDA events time sides in
turns, in a new order each round; tables hold medians in milliseconds, and an A/A control.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

sys.path[0] = str(Path(__file__).resolve().parents[1])  # so that `benchmark` is a package

from benchmark.environment import PACKAGES, git_revision, now  # noqa: E402
from benchmark.gpu_cells import (  # noqa: E402
    KINDS,
    Cell,
    aggregation,
    batches,
    epochs,
    interleave,
    is_ours,
    ranked,
    steps,
)
from benchmark.gpu_place import Card, Rehearsal  # noqa: E402
from benchmark.graphs import TEN_NODES, Graph  # noqa: E402
from benchmark.sides import AGAIN, AUTO, COPY  # noqa: E402
from hag_plugin.provenance import package_versions  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
WIDTHS = (64, 16, 256)  # the first of them for all cells, the others for sums alone
# The data sets of the HAG paper and a few larger ones; without --root, generated graphs. The first
# of them for all cells.
NAMED = ("COLLAB_ego_recon", "IMDB-MULTI", "BZR_MD", "PPI_ohmnet_brain", "ogbl-ddi",
         "REDDIT-BINARY")  # fmt: skip
LARGEST = "reddit-sized"
GENERATED = ("collaboration", "communities-1M", "communities-10M", "cliques", "power-law", LARGEST)
MORE_PACKAGES = (*PACKAGES, "triton")
# By name of the run.
TESTS = {
    "card": ("tests/kernels/triton/test_card.py", "tests/hag/gpu/test_schedule.py"),
    "kernels": ("tests/kernels/triton/kernels",),
}
# Few enough for a tool that slows every launch; between them they run every kernel.
MEMCHECK = ("long_rows", "one_winner", "test_second_derivative", "test_small",
            "rows_of_no_edge")  # fmt: skip
SHARE_OF_TESTS = 0.16  # of the time, that each run of tests may take
PROCESSES = 8  # of tests, which wait for compilers
LEAST = 20.0  # seconds that must be left to begin a cell
RESULTS, PAGE = "gpu.jsonl", "gpu.md"
HEAD = (
    "Medians in milliseconds. Ratio: the fastest of the others over the fastest of ours. A/A: ours",
    "over ours again. Bandwidth: bytes of rows read and written by ours, over the rate of a copy;",
    "above 1 they come from the cache.",
)


def load(name: str, root: str | None) -> Graph:
    """A graph of the benchmark, or one with as many nodes and edges as the Reddit data set."""
    if name != LARGEST:
        return Graph(name, root)
    graph = Graph("cliques", None)
    nodes, edges = 232_965, 114_615_892
    generator = torch.Generator().manual_seed(0)
    # Ends drawn with density 1 / sqrt: a heavy tail, as in posts that many users comment on.
    ends = (torch.rand(2, edges // 2, generator=generator).square_() * nodes).long()
    graph.data = type(graph.data)(LARGEST, "generated", torch.cat([ends, ends.flip(0)], 1), nodes)
    graph.name = name
    return graph


# What is there already ----------------------------------------------------------------------------


class Rows:
    """A file of rows, one a line, each there as soon as it is known."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, kind: str, **row: Any) -> None:
        """Appends a row, and sees that it is on the disk."""
        with open(self.path, "a") as file:
            file.write(json.dumps({"kind": kind, **row}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def all(self) -> Iterator[dict[str, Any]]:
        """The rows. A line that was cut off is none."""
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            with suppress(ValueError):
                yield json.loads(line)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The rows of a kind."""
        return [row for row in self.all() if row["kind"] == kind]

    def done(self) -> set[str]:
        """The keys of what need not run again: it has ended, or its process did."""
        return {row["key"] for kind in ("cell", "tests", "crash") for row in self.of(kind)}

    def open_key(self) -> str | None:
        """The key of the cell that was begun last and has not ended."""
        begun = [row["key"] for row in self.of("begun")]
        return begun[-1] if begun and begun[-1] not in self.done() else None

    def take(self, folder: Path) -> None:
        """Takes what an earlier call left, if nothing is here yet."""
        if self.path.exists():
            return
        for row in Rows(folder / RESULTS).all():
            self.add(**row)


# Tests ------------------------------------------------------------------------------------------


def run_tests(rows: Rows, seconds: float, rehearses: bool) -> bool:
    """The kernels' tests on the card, and some under compute-sanitizer. False: some failed.

    Those that were not done in time neither failed nor passed.
    """
    # Other versions of torch and PyG warn of other things: here that is no failure.
    command = [sys.executable, "-m", "pytest", "-v", "-o", "filterwarnings=default"]
    processes = 2 if rehearses else PROCESSES
    several = [] if importlib.util.find_spec("xdist") is None else ["-n", str(processes)]
    interpreted = {"TRITON_INTERPRET": "1"} if rehearses else {}
    for key, tests in TESTS.items():
        if not _tested(rows, key, [*command, *several, *tests], seconds, interpreted):
            return False
    tool = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    if tool is None or rehearses:
        print("compute-sanitizer is not on the PATH: memory accesses were not checked")
        return True
    checked = [tool, "--tool", "memcheck", "--error-exitcode", "1", *command]
    # Without torch's cache each tensor is an allocation of its own, whose bounds the tool knows.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    some = [*TESTS["kernels"], "-k", " or ".join(MEMCHECK)]
    return _tested(rows, "memcheck", [*checked, *some], seconds, environment)


def _tested(
    rows: Rows,
    key: str,
    command: Sequence[str],
    seconds: float,
    environment: dict[str, str] | None = None,
) -> bool:
    """Runs tests, whose output goes to a file. Of those that were stopped, failures count."""
    known = [row for row in rows.of("tests") if row["key"] == key]
    if known:
        return known[-1]["passed"] is not False
    start, log = time.monotonic(), rows.path.with_name(f"{key}.log")
    passed: bool | None = None
    with open(log, "w") as file:
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=os.environ | (environment or {}), timeout=seconds,
                stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
            passed = done.returncode == 0
        except subprocess.TimeoutExpired:
            print(f"{key}: not done after {seconds:.0f} s")
    text = log.read_text()
    counts = {word.lower(): text.count(f" {word}") for word in ("PASSED", "FAILED", "SKIPPED")}
    passed = False if counts["failed"] else passed
    print(text[-3000:] if passed is False else f"{key}: {counts}")
    took = round(time.monotonic() - start, 1)
    rows.add("tests", key=key, passed=passed, seconds=took, counts=counts)
    return passed is not False


# Cells ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A cell that is to be measured: what tells it from others, and what measures it."""

    key: str
    run: Callable[[Graph, float, float], Cell]  # of the graph, seconds, the copy's rate
    graph: str


def plan(
    graphs: Sequence[str], widths: Sequence[int], kinds: Sequence[str], place: Callable[[], Any]
) -> Iterator[Step]:
    """The cells in the order of what they decide."""

    def step(what: str, graph: str, width: int, run: Callable[..., Cell]) -> Step:
        return Step(f"{what}, {graph}, {width}", run, graph)

    where, width, first = place(), widths[0], graphs[0]

    def summed(graph: str, width: int, reduce: Any = "sum") -> Step:
        return step(
            *(reduce, graph, width),
            lambda g, seconds, rate: aggregation(
                *(where, g, width, seconds, rate, reduce),
                compiles=(graph, reduce) == (first, "sum"),
            ),
        )

    def trained(what: str, kind: str, graph: str, cell: Callable[..., Cell]) -> Step:
        return step(
            *(f"{kind} {what}", graph, width),
            lambda g, seconds, rate: cell(where, g, kind, width, seconds),
        )

    early = [name for name in graphs if name != LARGEST]
    yield from (summed(graph, width) for graph in early)
    yield from (trained("epoch", kind, first, epochs) for kind in kinds)
    yield from (trained("batches", kind, graphs[:2][-1], batches) for kind in kinds)
    yield from (trained("step", kind, first, steps) for kind in kinds)  # compilers take a while
    yield from (summed(graph, width, "max") for graph in early)
    yield trained("step of one rank", kinds[0], first, ranked)
    yield from (trained("epoch", kind, graph, epochs) for graph in early[1:] for kind in kinds)
    yield from (summed(graph, other) for other in widths[1:] for graph in early)
    yield from (summed(graph, width) for graph in graphs if graph == LARGEST)


def measure(args: argparse.Namespace, rows: Rows) -> None:
    """Measures the cells that are left, until the time is up; in a process of its own."""
    end = time.monotonic() + args.deadline
    place = args.place()
    facts = place.facts(lambda call: interleave(place, {COPY: call}, 0.5)[COPY])
    versions = package_versions(MORE_PACKAGES)
    rows.add("card", card=facts, versions=versions, git=git_revision(), date=now())
    loaded: dict[str, Graph] = {}
    done = rows.done()
    every = plan(args.graphs, args.widths, args.kinds, lambda: place)
    todo = [step for step in every if step.key not in done]
    for step in tqdm(todo, desc="cells", file=sys.stderr):
        if time.monotonic() + LEAST > end:
            return
        rows.add("begun", key=step.key)
        start = time.monotonic()
        if step.graph not in loaded:
            loaded[step.graph] = load(step.graph, args.root)
        cell = step.run(loaded[step.graph], args.seconds, facts["copy_bytes_per_second"])
        rows.add("cell", key=step.key, took=round(time.monotonic() - start, 1), **asdict(cell))
        write(args.out / PAGE, page(rows, left(args, rows)))  # a machine may go away at any time


def measure_apart(args: argparse.Namespace, rows: Rows, given: Sequence[str], end: float) -> None:
    """Measures in processes, one after the other where they end in the middle of a cell: a fault of
    the card takes a process with it."""
    while time.monotonic() + LEAST < end and left(args, rows):
        seconds = end - time.monotonic()
        command = [sys.executable, __file__, *given, "--worker", "--deadline", f"{seconds:.1f}"]
        interpreted = {"TRITON_INTERPRET": "1"} if args.rehearse else {}
        try:
            code = subprocess.run(command, env=os.environ | interpreted, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            return
        key = rows.open_key()
        if key is None:
            return
        rows.add("crash", key=key, how=f"its process ended with exit code {code}")


def left(args: argparse.Namespace, rows: Rows) -> list[str]:
    """The keys of the cells that are to be measured yet."""
    done = rows.done()
    every = plan(args.graphs, args.widths, args.kinds, lambda: None)
    return [step.key for step in every if step.key not in done]


# The page ---------------------------------------------------------------------------------------


def page(rows: Rows, left: Sequence[str] = ()) -> str:
    """Markdown: the environment, the tests, and a table for each kind of cell."""
    cards = rows.of("card")
    lines = ["# Results on a GPU", ""]
    if cards:
        lines += _environment(cards[-1])
    for row in rows.of("tests"):
        how = {True: "passed", False: "FAILED", None: "not done in time"}[row["passed"]]
        counts = ", ".join(f"{count} {word}" for word, count in row["counts"].items())
        lines += ["", f"Tests, {row['key']}: {how} ({counts}), {row['seconds']:.0f} s."]
    lines += ["", *HEAD]
    cells = [Cell(**{k: v for k, v in row.items() if k in Cell.__dataclass_fields__})
             for row in rows.of("cell")]  # fmt: skip
    for what in dict.fromkeys(cell.what for cell in cells):
        lines += _table(what, [cell for cell in cells if cell.what == what])
    lines += ["", *(f"{row['key']}: {row['how']}" for row in rows.of("crash"))]
    if left:
        lines += ["", "Not measured yet:", "", *(f"- {key}" for key in left)]
    return "\n".join(lines).rstrip() + "\n"


def _environment(facts: dict[str, Any]) -> list[str]:
    where = facts["card"]
    if where["driver"] is None and where["cuda"] is None:
        lines = ["**A rehearsal: no card was there, and no figure on this page counts.**"]
    else:
        rate = where["copy_bytes_per_second"] / 1e12
        lines = [
            f"{where['name']}, driver {where['driver']}, CUDA {where['cuda']}; a copy in its "
            f"memory moves {rate:.2f} TB/s. {facts['date']}, revision {facts['git']}."
        ]
    return [*lines, "", ", ".join(f"{k} {v}" for k, v in facts["versions"].items() if v)]


def _table(what: str, cells: Sequence[Cell]) -> list[str]:
    sides = list(dict.fromkeys(side for cell in cells for side in cell.milliseconds))
    shown = [side for side in sides if side != AGAIN]
    head = ["graph", "width", *shown, "ratio", "A/A", "bandwidth"]
    lines = ["", f"## {what}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for cell in cells:
        times = cell.milliseconds
        each = [f"{times[side]:.4f}" if side in times else "-" for side in shown]
        share = ", ".join(f"{k}: {v:.2f}" for k, v in cell.bandwidth.items()) or "-"
        again = f"{times[AUTO] / times[AGAIN]:.3f}" if AGAIN in times else "-"
        words = [cell.graph, str(cell.width), *each, ratio(cell), again, share]
        lines.append(f"| {' | '.join(words)} |")
    lines += [f"\n{c.graph}, {c.width}: {asked}: {answer}"
              for c in cells for asked, answer in c.checks.items()]  # fmt: skip
    lines += [f"\n{c.graph}, {c.width}: {s} left out: {why}"
              for c in cells for s, why in c.absent.items()]  # fmt: skip
    return lines


def ratio(cell: Cell) -> str:
    """How many times as long the fastest of the others takes as the fastest of ours."""
    times = {side: t for side, t in cell.milliseconds.items() if side not in (COPY, AGAIN)}
    ours = [t for side, t in times.items() if is_ours(side)]
    others = [t for side, t in times.items() if not is_ours(side)]
    return f"{min(others) / min(ours):.2f}" if ours and others else "-"


def write(path: Path, text: str) -> None:
    """The file appears whole or not at all."""
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text)
    os.replace(part, path)


# The command ------------------------------------------------------------------------------------


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--root", help="folder with .npz graphs; by default graphs are generated")
    add("--graphs", nargs="+", metavar="NAME")
    add("--widths", nargs="+", type=int, metavar="F")
    add("--kinds", nargs="+", metavar="MODEL", choices=KINDS, default=KINDS)
    add("--seconds", type=float, default=0.5, help="for each side of a cell")
    add("--quick", action="store_true", help="two graphs, one width: minutes")
    add("--tests", action="store_true", help="run the tests on the card first")
    words = "stop after so long, and list what is left"
    add("--deadline", type=float, default=86_400.0, metavar="SECONDS", help=words)
    words = "of an earlier call: what it measured is not measured again"
    add("--resume", type=Path, metavar="FOLDER", help=words)
    words = "without a card, in Triton's interpreter: no figure counts"
    add("--rehearse", action="store_true", help=words)
    add("--out", type=Path, default=Path(__file__).parent / "results")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if not args.rehearse and not torch.cuda.is_available():
        parser.error("torch finds no GPU; expected a machine with a CUDA card and torch for CUDA, "
                     "or --rehearse")  # fmt: skip
    if args.rehearse and args.out == parser.get_default("out"):
        parser.error("--rehearse needs --out FOLDER: its figures are no results")
    args.place = Rehearsal if args.rehearse else Card
    names = (TEN_NODES,) if args.rehearse else NAMED if args.root else GENERATED
    args.graphs = args.graphs or (names[:2] if args.quick else names)
    widths = (8,) if args.rehearse else WIDTHS
    args.widths = args.widths or (widths[:1] if args.quick else widths)
    return args


def main(arguments: Sequence[str]) -> int:
    """Measures, and writes gpu.jsonl and gpu.md as it goes. 1: tests or a side of ours failed."""
    args = parse(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = Rows(args.out / RESULTS)
    if args.worker:
        measure(args, rows)
        return 0
    end = time.monotonic() + args.deadline
    if args.resume is not None:
        rows.take(args.resume)
    passed = not args.tests or run_tests(rows, SHARE_OF_TESTS * args.deadline, args.rehearse)
    if passed:
        measure_apart(args, rows, arguments, end)
    text = page(rows, left(args, rows))
    write(args.out / PAGE, text)
    print(text)
    failed = {side for row in rows.of("cell") for side in row["absent"] if is_ours(side)}
    return 1 if failed or not passed or rows.of("crash") else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
