"""Runs the fuzz targets one after the other, and says how many executions each had.

`python tests/fuzz/run.py --seconds 600 --runs 1000000`, or with names of targets. What a target
found lies in .work/fuzz/found/NAME; `.work/fuzz/corpus/NAME` grows from run to run. `--report
FILE` keeps a row for each target; those of targets that were not run stay. The last one is beside
this file.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import corpus  # noqa: E402
import native_doors  # noqa: E402
import python_doors  # noqa: E402

WORK = HERE.parents[1] / ".work" / "fuzz"
NO_ATHERIS = "atheris is not installed (pip install atheris; it has wheels for some Pythons only)"


def commands() -> tuple[dict[str, list[str]], dict[str, str]]:
    """What runs each target, and why others do not."""
    found, left = {}, {}
    try:
        found |= {name: [str(path)] for name, path in native_doors.build(WORK).items()}
    except native_doors.NoCompilerError as e:
        left |= dict.fromkeys(native_doors.TARGETS, str(e))
    if importlib.util.find_spec("atheris") is None:
        left |= dict.fromkeys(python_doors.DOORS, NO_ATHERIS)
    else:
        script = [sys.executable, str(HERE / "python_doors.py")]
        found |= {name: [*script, name] for name in python_doors.DOORS}
    return found, left


def run(name: str, command: list[str], seconds: int, runs: int, seed: int) -> tuple[int, str]:
    """How many executions there were; and what was found, empty if nothing."""
    folder, found = WORK / "corpus" / name, WORK / "found" / name
    for each in (folder, found):
        each.mkdir(parents=True, exist_ok=True)
    made = corpus.SEEDS.get(name) or python_doors.DOORS[name].seeds
    for i, content in enumerate(made()):
        (folder / f"seed{i}").write_bytes(content)
    options = [f"-max_total_time={seconds}", f"-runs={runs}", f"-seed={seed}", "-max_len=16384",
               "-timeout=30", "-rss_limit_mb=4096", f"-artifact_prefix={found}/"]  # fmt: skip
    environment = {**os.environ, **native_doors.ENVIRONMENT, "HAG_PLUGIN_COSTS": ""}
    done = subprocess.run(
        [*command, *options, str(folder)], env=environment, cwd=found, capture_output=True
    )
    said = done.stderr.decode(errors="replace") + done.stdout.decode(errors="replace")
    counts = re.findall(r"^(?:Done |#)(\d+)", said, re.MULTILINE)
    if done.returncode == 0:
        return int(counts[-1]), ""
    words = [line for line in said.splitlines() if not re.match(r"#\d+\t", line)]
    return int(counts[-1]) if counts else 0, "\n".join(words[-40:])


def tool(name: str) -> str:
    """What runs a target, with its version."""
    if name in python_doors.DOORS:
        return (
            f"atheris {importlib.metadata.version('atheris')}, Python {platform.python_version()}"
        )
    compiler, has_fuzzer = native_doors.compiler()
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    return f"{'libFuzzer' if has_fuzzer else 'driver.cpp'}, {said.stdout.splitlines()[0]}"


def commit() -> str:
    words = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(words, cwd=HERE, capture_output=True, text=True, check=False)
    return done.stdout.strip()


class Report:
    """A row for each target that was ever run into a file, written anew with each."""

    FIELDS = ("target", "executions", "seconds", "findings", "tool", "commit")

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: dict[str, dict[str, str]] = {}
        if path is not None and path.exists():
            with path.open(newline="") as file:
                self.rows = {row["target"]: row for row in csv.DictReader(file)}

    def add(self, name: str, count: int, seconds: float, findings: int) -> None:
        if self.path is None:
            return
        values = name, str(count), f"{seconds:.0f}", str(findings), tool(name), commit()
        self.rows[name] = dict(zip(self.FIELDS, values, strict=True))
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows[name] for name in sorted(self.rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="of targets; all of them by default")
    parser.add_argument("--seconds", type=int, default=60, help="of each target (60)")
    parser.add_argument("--runs", type=int, default=-1, help="of each target, at most")
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn (1)")
    parser.add_argument("--report", type=Path, help="a CSV file for what there was")
    args = parser.parse_args()
    found, left = commands()
    report, failed = Report(args.report), False
    for name in args.names or [*found, *left]:
        if name in left:
            print(f"{name}: not run: {left[name]}", flush=True)
            continue
        start = time.monotonic()
        count, what = run(name, found[name], args.seconds, args.runs, args.seed)
        report.add(name, count, time.monotonic() - start, int(bool(what)))
        print(f"{name}: {count:,} executions, {'FAILED' if what else 'nothing found'}", flush=True)
        failed |= bool(what)
        if what:
            print(what, flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
