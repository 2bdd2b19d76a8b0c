"""Runs the fuzz targets one after the other, and says how many executions each had.

`python tests/fuzz/run.py --seconds 600 --runs 1000000`, or with names of targets. What a target
found lies in .work/fuzz/found/NAME; `.work/fuzz/corpus/NAME` grows from run to run.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="of targets; all of them by default")
    parser.add_argument("--seconds", type=int, default=60, help="of each target (60)")
    parser.add_argument("--runs", type=int, default=-1, help="of each target, at most")
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn (1)")
    args = parser.parse_args()
    found, left = commands()
    failed = False
    for name in args.names or [*found, *left]:
        if name in left:
            print(f"{name}: not run: {left[name]}", flush=True)
            continue
        count, what = run(name, found[name], args.seconds, args.runs, args.seed)
        print(f"{name}: {count:,} executions, {'FAILED' if what else 'nothing found'}", flush=True)
        failed |= bool(what)
        if what:
            print(what, flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
