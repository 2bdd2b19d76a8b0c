"""Instructions that search and kernel take on two small graphs: a figure that noise cannot touch.

    python examples/benchmark/instruction_counts.py            compare with the committed figures
    python examples/benchmark/instruction_counts.py --update   write them anew

Runs under valgrind's callgrind, which counts and does not time. Kernels run with AVX2 (valgrind has
no AVX-512), on one thread. Figures depend on the compiler: where it is another than the one they
were taken with, differences are shown and do not fail.

Exit codes: 0 within the tolerance; 1 more instructions than that; 2 valgrind is missing or failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).with_name("instruction_counts.json")
TOLERANCE = 0.02
GRAPHS = ("cliques", "power-law")
WIDTH = 64
ISA = "avx2"


def main(arguments: Sequence[str] | None = None) -> int:
    """Counts, compares, prints; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="instruction_counts", description=(__doc__ or "").partition("\n\n")[0]
    )
    parser.add_argument("--update", action="store_true", help="write the figures")
    parser.add_argument("--json", action="store_true", help="results as JSON on stdout")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.run:
        _work(*args.run)
        return 0
    if shutil.which("valgrind") is None:
        print("instruction_counts: valgrind is not installed; expected it on the PATH (Debian: "
              "apt-get install valgrind)", file=sys.stderr)  # fmt: skip
        return 2
    try:
        found = {}
        with tempfile.TemporaryDirectory() as folder:
            for graph in GRAPHS:
                found |= _count(graph, Path(folder))
    except subprocess.CalledProcessError as e:
        print(f"instruction_counts: valgrind failed:\n{e.stderr}", file=sys.stderr)
        return 2
    document = {"compiler": _compiler(), "isa": ISA, "width": WIDTH, "instructions": found}
    kept: dict[str, Any] = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    if args.update:
        part = FIGURES.with_suffix(".part")
        part.write_text(json.dumps(document, indent=2) + "\n")
        part.replace(FIGURES)
    same = kept.get("compiler") == document["compiler"]
    before = kept.get("instructions", {})
    more = [name for name, n in found.items() if n > before.get(name, n) * (1 + TOLERANCE)]
    if args.json:
        print(json.dumps({**document, "before": before, "more": more}, indent=2))
    else:
        print(_table(found, before))
        if kept and not same:
            print(f"\nThe figures are of {kept['compiler']}; this is {document['compiler']}: "
                  "differences do not fail.")  # fmt: skip
    return 1 if more and same and not args.update else 0


def _table(found: dict[str, int], before: dict[str, int]) -> str:
    lines = [f"{'':<20}{'instructions':>16}{'committed':>16}{'change':>9}"]
    for name, count in found.items():
        old = before.get(name)
        change = f"{count / old - 1:>+9.2%}" if old else f"{'-':>9}"
        lines.append(f"{name:<20}{count:>16,}{old or 0:>16,}{change}")
    return "\n".join(lines)


def _count(graph: str, folder: Path) -> dict[str, int]:
    """Instructions of a search, and of one aggregation over what it found."""
    from dataclasses import asdict

    import numpy as np
    import torch

    import hag_plugin as hp
    from hag_plugin.data import datasets
    from hag_plugin.hag import cost
    from hag_plugin.kernels import _cpu

    data = datasets.load(graph, features=False)
    hag = hp.build_hag(data.edge_index, num_nodes=data.num_nodes, method="none")
    task = folder / f"{graph}.npz"
    np.savez(task, row_ptr=hag.row_ptr, col=hag.col, prices=json.dumps(asdict(cost.prices(WIDTH))))
    libraries = str(Path(torch.__file__).parent / "lib")  # for libgomp, where there is no other
    search, both = (
        _callgrind([str(task), str(_cpu.__file__), calls], folder, libraries) for calls in "01"
    )
    return {f"{graph} search": search, f"{graph} kernel": both - search}


def _callgrind(task: list[str], folder: Path, libraries: str) -> int:
    out = folder / "callgrind.out"
    command = [
        "valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--compress-strings=no",
        sys.executable, __file__, "--run", *task,
    ]  # fmt: skip
    environment = {**os.environ, "HAG_PLUGIN_ISA": ISA, "LD_LIBRARY_PATH": libraries,
                   "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # fmt: skip
    subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return _native_instructions(out.read_text(errors="replace"))


def _native_instructions(text: str) -> int:
    """Own instructions of the functions of `_cpu`, from a callgrind file.

    In it `ob=` opens the functions of an object; a line of a position and a count is a cost of the
    function's own, unless it follows `calls=`, where it is that of the callee.
    """
    total, ours, called = 0, False, False
    for line in text.splitlines():
        if line.startswith("ob="):
            ours = "_cpu" in line
        elif line.startswith("calls="):
            called = True
        elif re.match(r"[+\-*\d]", line):
            if ours and not called:
                total += int(line.split()[-1])
            called = False
    return total


def _work(task: str, module: str, calls: str) -> None:
    """What runs under callgrind: a search, then so many aggregations. Without torch: it is slow."""
    import numpy as np

    spec = importlib.util.spec_from_file_location("_cpu", module)
    assert spec is not None
    assert spec.loader is not None
    _cpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(_cpu)
    with np.load(task) as arrays:
        row_ptr, col = arrays["row_ptr"], arrays["col"]
        prices = json.loads(str(arrays["prices"]))
    n = len(row_ptr) - 1
    matrix = (row_ptr, col, n, "add", False)
    found, _ = _cpu.search_program(*matrix, True, **prices, threads=1)
    if found is None:
        found = _cpu.plain_program(*matrix)
    program = _cpu.Program(*found, n, n, 0)
    x, y = np.zeros((n, WIDTH), np.float32), np.zeros((n, WIDTH), np.float32)
    for _ in range(int(calls)):
        program.run(x.ctypes.data, y.ctypes.data, 1, WIDTH, WIDTH, 0, n, n, 0, 0, 0, 0, 1)


def _compiler() -> str:
    """The compiler that the native module says it was made with."""
    from hag_plugin.kernels import _cpu

    made_with = rb"GCC: \([^)]*\) [\d.]+|clang version [\d.]+"
    found = re.findall(made_with, Path(str(_cpu.__file__)).read_bytes())
    return b", ".join(sorted(set(found))).decode() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
