"""The benchmark on a GPU: aggregation and training epochs beside cuSPARSE and PyG.

    python examples/benchmark/gpu.py --root DIR
    python examples/benchmark/gpu.py --quick --tests

Every side's result is compared with the plain program's before it is timed. CUDA events time sides
in turns, in a new order each round; tables hold medians in milliseconds, and an A/A control.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

sys.path[0] = str(Path(__file__).resolve().parents[1])  # so that `benchmark` is a package

from benchmark.environment import PACKAGES, git_revision, now  # noqa: E402
from benchmark.gpu_cells import Cell, aggregation, epochs, interleave  # noqa: E402
from benchmark.graphs import Graph  # noqa: E402
from benchmark.models import KINDS  # noqa: E402
from benchmark.sides import COPY  # noqa: E402
from hag_plugin.provenance import package_versions  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
WIDTHS = (16, 64, 256)
# The data sets of the HAG paper and a few larger ones; without --root, generated graphs.
NAMED = ("BZR_MD", "IMDB-MULTI", "PPI_ohmnet_brain", "ogbl-ddi", "REDDIT-BINARY",
         "COLLAB_ego_recon")  # fmt: skip
GENERATED = ("cliques", "collaboration", "power-law", "reddit-sized")
TESTS = (
    "tests/kernels/triton/kernels",
    "tests/kernels/triton/test_card.py",
    "tests/hag/gpu/test_schedule.py",
)
# Few enough for a tool that slows every launch; between them they run every kernel.
MEMCHECK = ("long_rows", "one_winner", "test_second_derivative", "test_small")


def card() -> dict[str, Any]:
    """The card, its driver, and the rate of a copy inside its memory, bytes read and written."""
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True).stdout.split()[0]
    except (OSError, IndexError):
        driver = None
    source = torch.empty(1 << 28, dtype=torch.float32, device="cuda").fill_(1)
    target = torch.empty_like(source)
    seconds = interleave({COPY: lambda: target.copy_(source)}, 0.5)[COPY] / 1e3
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30),
        "multiprocessors": properties.multi_processor_count,
        "driver": driver,
        "cuda": torch.version.cuda,
        "copy_bytes_per_second": 2 * source.nbytes / seconds,
    }


def load(name: str, root: str | None) -> Graph:
    """A graph of the benchmark, or one with as many nodes and edges as the Reddit data set."""
    if name != "reddit-sized":
        return Graph(name, root)
    graph = Graph("cliques", None)
    nodes, edges = 232_965, 114_615_892
    generator = torch.Generator().manual_seed(0)
    # Ends drawn with density 1 / sqrt: a heavy tail, as in posts that many users comment on.
    ends = (torch.rand(2, edges // 2, generator=generator).square_() * nodes).long()
    graph.data = type(graph.data)("reddit-sized", "generated", torch.cat([ends, ends.flip(0)], 1),
                                  nodes)  # fmt: skip
    graph.name = name
    return graph


# Tests ------------------------------------------------------------------------------------------


def run_tests() -> bool:
    """The kernels' tests on the card, and some under compute-sanitizer. False: some failed."""
    # Other versions of torch and PyG warn of other things: here that is no failure.
    command = [sys.executable, "-m", "pytest", "-q", "-o", "filterwarnings=default"]
    if subprocess.run([*command, *TESTS], cwd=ROOT).returncode:
        return False
    tool = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    if tool is None:
        print("compute-sanitizer is not on the PATH: memory accesses were not checked")
        return True
    checked = [tool, "--tool", "memcheck", "--error-exitcode", "1", *command]
    # Without torch's cache each tensor is an allocation of its own, whose bounds the tool knows.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    some = [TESTS[0], "-k", " or ".join(MEMCHECK)]
    return subprocess.run([*checked, *some], cwd=ROOT, env=environment).returncode == 0


# The command ------------------------------------------------------------------------------------


def page(facts: dict[str, Any], cells: list[Cell]) -> str:
    """Markdown: the environment, and a table for aggregation and for each model."""
    where = facts["card"]
    rate = where["copy_bytes_per_second"] / 1e12
    lines = [
        "# Results on a GPU",
        "",
        f"{where['name']}, driver {where['driver']}, CUDA {where['cuda']}; a copy in its memory "
        f"moves {rate:.2f} TB/s. {facts['date']}, revision {facts['git']}.",
        "",
        ", ".join(f"{k} {v}" for k, v in facts["versions"].items() if v),
        "",
        "Medians in milliseconds. Bandwidth: rows read and written by ours, over the copy's rate;",
        "above 1 they come from the cache.",
    ]
    for what in dict.fromkeys(cell.what for cell in cells):
        rows = [cell for cell in cells if cell.what == what]
        sides = list(dict.fromkeys(side for cell in rows for side in cell.milliseconds))
        lines += ["", f"## {what}", "", f"| graph | width | {' | '.join(sides)} | bandwidth |",
                  "|---" * (len(sides) + 3) + "|"]  # fmt: skip
        for cell in rows:
            times = [f"{cell.milliseconds[s]:.4f}" if s in cell.milliseconds else "-"
                     for s in sides]  # fmt: skip
            share = ", ".join(f"{k}: {v:.2f}" for k, v in cell.bandwidth.items()) or "-"
            lines.append(f"| {cell.graph} | {cell.width} | {' | '.join(times)} | {share} |")
        lines += [f"\n{c.graph}, {c.width}: {s} left out: {why}"
                  for c in rows for s, why in c.absent.items()]  # fmt: skip
    return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    """The file appears whole or not at all."""
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text)
    os.replace(part, path)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="folder with .npz graphs; by default graphs are generated")
    parser.add_argument("--graphs", nargs="+", metavar="NAME")
    parser.add_argument("--widths", nargs="+", type=int, default=WIDTHS, metavar="F")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each side of a cell")
    parser.add_argument("--quick", action="store_true", help="two graphs, one width: minutes")
    parser.add_argument("--tests", action="store_true", help="run the tests on the card first")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("torch finds no GPU; expected a machine with a CUDA card and torch for CUDA")
    names = NAMED if args.root else GENERATED
    args.graphs = args.graphs or (names[:2] if args.quick else names)
    args.widths = (64,) if args.quick else args.widths
    return args


def main() -> int:
    """Measures, and writes gpu.json and gpu.md as it goes. 1: tests or a side of ours failed."""
    args = parse()
    if args.tests and not run_tests():
        return 1
    args.out.mkdir(parents=True, exist_ok=True)
    facts = {
        "card": card(),
        "versions": package_versions((*PACKAGES, "triton")),
        "git": git_revision(),
        "date": now(),
    }
    cells: list[Cell] = []
    for name in tqdm(args.graphs, desc="graphs", file=sys.stderr):
        graph = load(name, args.root)
        for width in args.widths:
            cells.append(
                aggregation(graph, width, args.seconds, facts["card"]["copy_bytes_per_second"])
            )
            cells += [epochs(graph, kind, width, args.seconds) for kind in KINDS]
            graph.forget(hags_only=True)
            document = facts | {"cells": [asdict(cell) for cell in cells]}
            write(args.out / "gpu.json", json.dumps(document, indent=1))
            write(args.out / "gpu.md", page(facts, cells))
    print(page(facts, cells))
    ours = {side for cell in cells for side in cell.absent if side.startswith("hag")}
    return 1 if ours else 0


if __name__ == "__main__":
    sys.exit(main())
