"""Sorting edges by target, then by source, within a memory limit: ours beside libraries'.

python examples/multi_gpu/sorting.py
python examples/multi_gpu/sorting.py --edges 10e6 --memory 256MiB --output results

Each sorts the same Parquet file in a process of its own, on one thread, and writes what it found;
all must find the same. What is not installed is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from hag_plugin import provenance
from hag_plugin.cli.options import size
from hag_plugin.data.edge_stream import open_edges
from hag_plugin.files import write_whole
from hag_plugin.parallel.graphs.store.sorting import Numbering, Spool, sorted_rows
from hag_plugin.version import __version__

DEGREE, BLOCK, MIB = 20, 1 << 20, 1 << 20


def generate(path: Path, edges: int) -> None:
    """Writes edges between nodes of any numbers, `DEGREE` for each node."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    random, nodes = np.random.default_rng(0), max(edges // DEGREE, 1)
    schema = pa.schema([("source", pa.int32()), ("target", pa.int32())])
    with parquet.ParquetWriter(path, schema, compression="none") as file:
        for first in range(0, edges, BLOCK):
            count = min(BLOCK, edges - first)
            ends = [random.integers(0, nodes, count, np.int32) for _ in range(2)]
            file.write_table(pa.table(ends, schema=schema))


# Who sorts ----------------------------------------------------------------------------------------


def ours(given: Path, out: Path, memory: int) -> None:
    """What `hag-plugin partition` does, but for what comes before and behind."""
    folder = out.parent
    stream = open_edges(given)
    spool = Spool(stream, folder / "spool", None, BLOCK)
    numbering = Numbering(np.array([0, spool.largest + 1]))
    with open(out, "wb") as file:
        for rows in sorted_rows(spool, numbering, False, memory, folder):
            rows.sources.tofile(file)
    spool.unlink()


def duckdb(given: Path, out: Path, memory: int) -> None:
    """In SQL; it keeps what does not fit in files."""
    import duckdb

    with duckdb.connect() as database:
        database.execute(f"SET memory_limit='{memory // MIB}MiB'; SET threads=1")
        database.execute(f"SET temp_directory='{out.parent / 'spilled'}'")
        database.execute(
            f"COPY (SELECT * FROM '{given}' ORDER BY target, source) TO '{out}' "
            "(FORMAT parquet, COMPRESSION uncompressed)"
        )


def polars(given: Path, out: Path, memory: int) -> None:
    """By its streaming engine, which takes no limit."""
    import polars

    rows = polars.scan_parquet(given).sort("target", "source")
    rows.sink_parquet(out, compression="uncompressed", engine="streaming")


def pyarrow(given: Path, out: Path, memory: int) -> None:
    """In memory, which takes no limit."""
    import pyarrow.parquet as parquet

    rows = parquet.read_table(given).sort_by([("target", "ascending"), ("source", "ascending")])
    parquet.write_table(rows, out, compression="none")


SORTERS: dict[str, Callable[[Path, Path, int], None]] = {
    "ours": ours, "duckdb": duckdb, "polars": polars, "pyarrow": pyarrow,
}  # fmt: skip


# Measuring ----------------------------------------------------------------------------------------


def sources_in(out: Path, by: str) -> np.ndarray:
    """int32, as they were written."""
    if by == "ours":
        return np.fromfile(out, np.int32)
    import pyarrow.parquet as parquet

    return np.asarray(parquet.read_table(out, columns=["source"])["source"])


def kept(what: str) -> int:
    """Bytes of this process, as Linux says: "VmRSS", or at the peak "VmHWM"."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(what))


def with_use(sort: Callable[[Path, Path, int], None], given: Path, out: Path, memory: int) -> None:
    """Sorts, and writes beside what it wrote what that took besides what was there before."""

    there, start, cpu = kept("VmRSS"), time.perf_counter(), time.process_time()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
    sort(given, out, memory)
    found = {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": kept("VmHWM") - there,
    }
    (out.parent / "used.json").write_text(json.dumps(found))


def measured(by: str, given: Path, folder: Path, memory: int) -> tuple[dict[str, Any], np.ndarray]:
    """Seconds and bytes of one that sorts, and the sources as it orders them."""
    folder.mkdir()
    out = folder / "sorted"
    one = {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--run", by, str(given), str(out), str(memory)]
    subprocess.run(command, env=os.environ | one, check=True)
    used = json.loads((folder / "used.json").read_text())
    row = {"by": by, "version": __version__ if by == "ours" else version(by), **used}
    return row, sources_in(out, by)


def page(setting: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The table, with what it is of."""
    here = setting["machine"]
    lines = [
        "# Sorting edges by target, then by source",
        "",
        f"{setting['edges']:,} edges of int32, from a Parquet file, one thread, "
        f"{setting['memory'] // MIB} MiB for those that take a limit. By `python "
        f"examples/multi_gpu/sorting.py`, {setting['date']}: {here['processor']}, {here['cores']} "
        f"cores, {here['system']}. All wrote the same order."
        f"{setting.get('note', '')}",
        "",
        "| by | processor seconds | seconds | memory, besides what was there |",
        "| --- | --: | --: | --: |",
    ]
    for row in rows:
        lines.append(
            f"| {row['by']} {row['version']} | {row['cpu_seconds']:.1f} | {row['seconds']:.1f} | "
            f"{row['peak_bytes'] / MIB:,.0f} MiB |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs all that are installed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edges", type=float, default=10e6, help="default 10e6")
    parser.add_argument("--memory", type=size, default=256 * MIB, help="default 256MiB")
    parser.add_argument("--by", nargs="+", choices=SORTERS, default=[*SORTERS])
    parser.add_argument("--output", metavar="DIR", help="write sorting.jsonl and sorting.md there")
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        by, given, out, memory = args.run
        with_use(SORTERS[by], Path(given), Path(out), int(memory))
        return
    if args.output:
        Path(args.output).mkdir(parents=True, exist_ok=True)  # before the work
    setting = {
        "edges": int(args.edges), "memory": args.memory, "date": date.today().isoformat(),
        "machine": provenance.machine(),
    }  # fmt: skip
    rows, orders = [], []
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "edges.parquet"
        generate(given, setting["edges"])
        for by in args.by:
            if by == "ours" or find_spec(by) is not None:
                row, order = measured(by, given, Path(folder) / by, args.memory)
                print(row, file=sys.stderr, flush=True)
                rows.append(row)
                orders.append(order)
    if any(not np.array_equal(order, orders[0]) for order in orders):
        raise SystemExit("they have other orders; expected the same of all")
    found = page(setting, rows)
    print(found)
    if args.output:
        lines = "".join(json.dumps(row) + "\n" for row in [setting, *rows])
        write_whole(Path(args.output) / "sorting.jsonl", lines.encode())
        write_whole(Path(args.output) / "sorting.md", found.encode())


if __name__ == "__main__":
    main()
