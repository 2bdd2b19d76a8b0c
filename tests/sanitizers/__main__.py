"""Runs the native module under sanitizers: AddressSanitizer with UBSan, or ThreadSanitizer.

    python -m tests.sanitizers address|thread [--long] [--report FILE]

From the root of the source, on Linux, with GCC. Builds the module into `build/`, sees that errors
that are planted are reported, for every instruction set that it was built for, and then runs tests
and random calls, which must report nothing. Without `--long` it is built for the first instruction
sets alone (`ISAS`), and tests of kernels run with the widest of these. With it, for all, and all
tests of operators, graphs and kernels run, too (against races, those that start no process), and
random calls for minutes. `--report` keeps what was printed.

- Leaks are not looked for: the interpreter, torch and numpy keep memory until the process ends, and
  all of it would be reported. `tests/test_out_of_memory.py` and `tests/hag/test_own_memory.py` look
  for ours.
- For TSan the module makes its threads itself, without OpenMP, whose library is not compiled with
  TSan (`on_a_team` in `kernels/cpu/threads.h`). What TSan is to keep to itself about others is in
  `thread.supp`, with the reasons.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..kernels.test_instruction_sets import EVERY_ISA, FILES
from .planted import PLANTED

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SANITIZERS = {"address": "address,undefined", "thread": "thread"}
LIBRARIES = {"address": "libasan.so", "thread": "libtsan.so"}
OPTIONS = {
    "address": {
        # Tests ask for more memory than there is, and expect an error. What is allowed has a shadow
        # of an eighth of its size; what is freed is held for a while.
        "ASAN_OPTIONS": (
            "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=8192"
            ":quarantine_size_mb=64"
        ),
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # so that the ends of Python's objects are known, too
    },
    # A lock of torch's is taken in a library that `thread.supp` leaves out, and let go in another.
    "thread": {
        "TSAN_OPTIONS": f"halt_on_error=1:report_mutex_bugs=0:suppressions={HERE / 'thread.supp'}"
    },
}
# How many instruction sets the short forms have: kernels take minutes to compile. The baseline does
# not use what AVX2 and AVX-512 have in common; races are none of one of them.
ISAS = {"address": 2, "thread": 1}
EVERY = 3
SLOWLY = "faulthandler_timeout=3600"  # for a test: with a sanitizer code takes ten times as long
# The module does nothing in kernels for GPUs, and `on` runs each instruction set.
ELSEWHERE = [
    f"--ignore={HERE.parent / 'kernels' / name}" for name in ("triton", "test_instruction_sets.py")
]
# Races are within a process, and what measures the machine, or memory, measures TSan.
LEFT_OUT = {
    "address": ELSEWHERE,
    "thread": [*ELSEWHERE, "-m", "not slow", f"--ignore={HERE.parent / 'hag/test_constants.py'}"],
}
# What has threads, and needs no other process.
THREADED = (
    "kernels/test_threads.py",
    "hag/test_graph_set.py",
    "hag/test_check_program.py",
    "hag/test_build.py::test_graphs_that_are_cut",
)


class Machine:
    """Runs commands on the sanitized module, and keeps what there is to report."""

    def __init__(self, mode: str, folder: Path, isas: int) -> None:
        self.mode = mode
        self.lines: list[str] = []
        self.start = time.monotonic()
        self.module = build(mode, folder, isas)
        self.say(f"built in {self.seconds()} s")

    def seconds(self) -> int:
        return round(time.monotonic() - self.start)

    def say(self, line: str) -> None:
        print(line, flush=True)
        self.lines.append(line)

    def run(self, *arguments: str, isa: str = "", timeout: float = 4 * 3600) -> tuple[int, str]:
        """The exit code of Python with these arguments, and all that it printed."""
        preloaded = [library(LIBRARIES[self.mode]), library("libstdc++.so.6")]
        environment = {
            **os.environ,
            **OPTIONS[self.mode],
            "LD_PRELOAD": " ".join(preloaded),
            "PYTHONPATH": os.pathsep.join([str(HERE / "site"), os.environ.get("PYTHONPATH", "")]),
            "HAG_PLUGIN_SANITIZED": str(self.module),
            "HAG_PLUGIN_COSTS": "",
            "OMP_NUM_THREADS": "2",
        }
        if isa:
            environment["HAG_PLUGIN_ISA"] = isa
        with tempfile.TemporaryDirectory() as folder:
            # Not to where pytest keeps what is printed, and loses it when its process is ended.
            for name in OPTIONS[self.mode]:
                if name.endswith("SAN_OPTIONS"):
                    environment[name] += f":log_path={folder}/report"
            done = subprocess.run(
                [sys.executable, *arguments], cwd=ROOT, env=environment, text=True,
                timeout=timeout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
            reports = [file.read_text() for file in sorted(Path(folder).iterdir())]
        return done.returncode, "\n".join([done.stdout, *reports])

    def expect_quiet(self, what: str, *arguments: str, isa: str = "") -> None:
        start = time.monotonic()
        code, output = self.run(*arguments, isa=isa)
        if code != 0:
            sys.exit(f"{output[-20_000:]}\n{what}: exit code {code}")
        last = output.rstrip("\n").rpartition("\n")[2].strip("= ")
        self.say(f"{what}: {last} ({time.monotonic() - start:.0f} s)")

    def expect_reports(self, isa: str) -> None:
        """That errors that are planted are found."""
        for name, (_, mode, words) in PLANTED.items():
            if mode != self.mode:
                continue
            code, output = self.run("-m", "tests.sanitizers.planted", name, isa=isa)
            if code == 0 or words not in output:
                sys.exit(f"{output[-20_000:]}\n{isa}: the planted {name} was not reported")
            self.say(f"{isa}: the planted {name} is reported: {words}")

    def expect_no_error(
        self, what: str, files: Sequence[str], *options: str, isa: str = ""
    ) -> None:
        paths = [str(HERE.parent / file) for file in files]
        pytest = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-o", SLOWLY)
        self.expect_quiet(what, *pytest, *options, *paths, isa=isa)


def build(mode: str, folder: Path, isas: int) -> Path:
    """The module, compiled with a sanitizer for so many instruction sets."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT),
         "-C", f"build-dir={folder / f'objects-{isas}'}", "-C", "cmake.build-type=RelWithDebInfo",
         "-C", "install.strip=false", "-C", f"cmake.define.HAG_SANITIZE={SANITIZERS[mode]}",
         "-C", f"cmake.define.HAG_ISAS={isas}"],
        check=True,
    )  # fmt: skip
    newest = max(folder.glob("*.whl"), key=lambda path: path.stat().st_mtime)
    with zipfile.ZipFile(newest) as wheel:
        (name,) = (name for name in wheel.namelist() if Path(name).match("_cpu.*.so"))
        return Path(wheel.extract(name, folder))


def library(name: str) -> str:
    """Where GCC has one of its libraries."""
    done = subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def instruction_sets(machine: Machine) -> list[str]:
    words = "import torch, hag_plugin.kernels._cpu as cpu; print(*cpu.instruction_sets())"
    code, output = machine.run("-c", words)
    if code != 0:
        sys.exit(output)
    return output.split()


def check(machine: Machine, long: bool) -> None:
    sets = instruction_sets(machine)
    files = sorted({file for group in FILES.values() for file in group})
    seconds, seed = (300 if long else 10), int(time.time())

    def on(isa: str) -> None:
        machine.expect_reports(isa)
        if machine.mode == "address" and (long or isa == sets[-1]):
            machine.expect_no_error(f"{isa}: kernels", files, "-k", EVERY_ISA, isa=isa)
        random = "-m", "tests.sanitizers.random_calls", str(seconds), str(seed)
        machine.expect_quiet(f"{isa}: random calls", *random, isa=isa)

    with ThreadPoolExecutor(2) as pool:  # races are none of one instruction set
        list(pool.map(on, sets if machine.mode == "address" else sets[-1:]))
    if long:
        for folder in ("ops", "hag", "kernels"):  # one by one: memory of a process only grows
            left_out = LEFT_OUT[machine.mode]
            machine.expect_no_error(f"all of tests/{folder}", (folder,), "-n", "2", *left_out)
    elif machine.mode == "thread":
        machine.expect_no_error("threads", THREADED, "-m", "not slow")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sanitizers")
    parser.add_argument("sanitizer", choices=SANITIZERS)
    parser.add_argument("--long", action="store_true", help="all tests, and minutes of calls")
    parser.add_argument("--report", type=Path, help="a file for what was found")
    options = parser.parse_args()
    if options.report:
        options.report.touch()  # before the work
    folder = ROOT / "build" / f"sanitized-{options.sanitizer}"
    folder.mkdir(parents=True, exist_ok=True)
    isas = EVERY if options.long else ISAS[options.sanitizer]
    machine = Machine(options.sanitizer, folder, isas)
    check(machine, options.long)
    machine.say(f"nothing else reported; {machine.seconds()} s in all")
    if options.report:
        options.report.write_text("\n".join(heading(options.sanitizer) + machine.lines) + "\n")


def heading(mode: str) -> list[str]:
    gcc = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True).stdout
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return [
        f"`python -m tests.sanitizers {mode} --long`, at {head.stdout.strip() or 'no commit'},",
        f"Python {platform.python_version()}, {gcc.splitlines()[0]}.", "",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
