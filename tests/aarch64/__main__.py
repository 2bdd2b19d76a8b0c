"""Compiles the native module for aarch64, and runs tests of it under QEMU.

    python -m tests.aarch64 [--cpu MODEL] [--report FILE] [FILES]

From the root of the source, on Debian. What it needs is `TOOLS`; an arm64 Python comes by apt-get
from Debian, torch and the others by pip: into `build/aarch64`, nothing is installed over this
system. FILES are those of tests, `TESTS` without them. `--report` keeps a row for each, and those
of others; the last one is beside this file.

The build takes minutes, and tests more: QEMU takes ten to thirty times as long as a processor.
No time tells anything.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..kernels.test_instruction_sets import EVERY_ISA, FILES

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORK = ROOT / "build" / "aarch64"

TOOLS = {
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "qemu-aarch64-static": "qemu-user-static",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "cmake": "cmake",
    "ninja": "ninja-build",
}
# Debian's packages of a Python that can be run and compiled for; PYTHON is python3.11 and so on.
PACKAGES = (
    *("PYTHON-minimal", "libPYTHON-minimal", "libPYTHON-stdlib", "libPYTHON-dev"),
    *("libc6", "libgcc-s1", "libstdc++6", "libgomp1", "zlib1g", "libbz2-1.0", "liblzma5"),
    *("libffi8", "libsqlite3-0", "libssl3", "libexpat1", "libuuid1", "libcrypt1"),
)
# Newer wheels of torch for aarch64 want CUDA's libraries.
TORCH = "torch==2.10.0"
WHEELS = (
    *("numpy", "tqdm", "nanobind", "pytest", "hypothesis", "psutil", "networkx", "sympy"),
    *("mpmath", "jinja2", "markupsafe", "filelock", "fsspec", "typing_extensions", "pluggy"),
    *("iniconfig", "packaging", "pygments", "sortedcontainers"),
)
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
CPU = "neoverse-n1"  # torch does not run on much older ones

# As for every instruction set of this machine, without those that start processes.
TESTS = ("kernels/test_threads.py", *sorted({file for group in FILES.values() for file in group}))
SELECTED = ("-k", EVERY_ISA, "-m", "not slow")
COPIED = ("hag_plugin", "kernels", "tests", "examples", "setup.cfg", "pyproject.toml")


def run(*words: str | Path, cwd: Path = ROOT, **more: str) -> str:
    """What a command prints; where it fails, this ends with what it said."""
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=os.environ | more, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"{done.stdout[-10_000:]}\n{words[0]}: exit code {done.returncode}")
    return done.stdout


def check_tools() -> None:
    missing = {package for tool, package in TOOLS.items() if shutil.which(tool) is None}
    if missing:
        sys.exit(f"missing here: apt-get install {' '.join(sorted(missing))}")


def fetch_python() -> Path:
    """The folder of an arm64 Python and its libraries."""
    root, state = WORK / "root", WORK / "apt"
    if root.is_dir():
        return root
    archives, part = state / "archives", WORK / "root.part"
    for folder in (state / "lists" / "partial", archives / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    settings = state / "apt.conf"  # so that nothing of this system's is read or changed
    settings.write_text(
        'APT::Architecture "arm64"; APT::Architectures { "arm64"; }; APT::Sandbox::User "root";\n'
        f'Dir::State "{state}"; Dir::State::status "{state}/status"; Dir::Cache "{state}";\n'
    )
    run("apt-get", "update", APT_CONFIG=str(settings))
    said = run("apt-cache", "depends", "python3-minimal", APT_CONFIG=str(settings))
    found = re.search(r"python3\.\d+", said)
    if found is None:
        sys.exit(f"{said}\nno Python for arm64 among the packages that apt-get finds")
    names = [package.replace("PYTHON", found[0]) for package in PACKAGES]
    run("apt-get", "download", *names, cwd=archives, APT_CONFIG=str(settings))
    for path in sorted(archives.glob("*.deb")):
        run("dpkg-deb", "-x", path, part)
    part.rename(root)
    return root


def make_interpreter(root: Path, cpu: str) -> Path:
    """A file to be run as Python is, here and by what runs in it."""
    (binary,) = (root / "usr" / "bin").glob("python3.*")
    path = WORK / "bin" / "python"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        "#!/bin/sh\n"
        f'exec qemu-aarch64-static -L "{root}" -cpu {cpu} -E PYTHONHOME="{root}/usr" '
        f'-0 "$0" "{binary}" "$@"\n'
    )
    path.chmod(0o755)
    return path


def fetch_wheels(python: Path) -> Path:
    """The folder of torch and the others, for the Python there."""
    site, part = WORK / "site", WORK / "site.part"
    if site.is_dir():
        return site
    version = run(python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    for_it = [f"--platform={name}" for name in PLATFORMS]
    words = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary=:all:",
             *for_it, "--python-version", version, "--target", str(part)]  # fmt: skip
    run(*words, TORCH)
    run(*words, "-c", ROOT / "constraints.txt", *WHEELS)
    part.rename(site)
    return site


def compile_module(root: Path, python: Path) -> Path:
    objects, include = WORK / "objects", root / "usr" / "include"
    (python_include,) = include.glob("python3.*")
    run(
        "cmake", "-S", ROOT, "-B", objects, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_TOOLCHAIN_FILE={HERE / 'toolchain.cmake'}", f"-DPython_EXECUTABLE={python}",
        f"-DPython_INCLUDE_DIR={python_include}",
        f"-DCMAKE_CXX_FLAGS=-idirafter {include}",  # for Python's pyconfig.h
    )  # fmt: skip
    said = run("cmake", "--build", objects)
    warnings = [line for line in said.splitlines() if "warning:" in line]
    if warnings:
        sys.exit("\n".join(warnings))
    (module,) = objects.glob("_cpu.*.so")
    return module


def copy_package(module: Path) -> Path:
    """A folder with the package and its tests, in which the native module is that one."""
    tree = WORK / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    left = shutil.ignore_patterns("__pycache__", "*.so", ".work")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=left)
        else:
            shutil.copy(ROOT / name, tree)
    shutil.copytree(tree / "kernels", tree / "hag_plugin" / "kernels", dirs_exist_ok=True)
    shutil.copy(module, tree / "hag_plugin" / "kernels")
    return tree


def run_tests(python: Path, tree: Path, files: Sequence[str]) -> dict[str, Counter[str]]:
    """How many tests of each file passed, failed and were skipped."""
    results = WORK / "results.xml"
    results.unlink(missing_ok=True)
    subprocess.run(
        [python, "-m", "pytest", *SELECTED, "-p", "no:cacheprovider",
         f"--junitxml={results}", "-o", "junit_family=xunit1", "-o", "faulthandler_timeout=1800",
         *(f"tests/{file}" for file in files)],
        cwd=tree, check=False,
    )  # fmt: skip
    if not results.exists():
        sys.exit("the tests ended before their time")
    counts: dict[str, Counter[str]] = {file: Counter() for file in files}
    for case in ET.parse(results).iter("testcase"):
        file = case.get("file", "").removeprefix("tests/")
        outcome = {child.tag for child in case} & {"failure", "error", "skipped"}
        kind = "passed" if not outcome else "skipped" if outcome == {"skipped"} else "failed"
        counts.setdefault(file, Counter())[kind] += 1
    return counts


def versions(python: Path, cpu: str) -> str:
    code = """
import platform, numpy, torch
print(f"Python {platform.python_version()}, torch {torch.__version__}, NumPy {numpy.__version__}")
"""
    qemu = re.search(r"version ([\d.]+)", run("qemu-aarch64-static", "--version"))
    compiler = run("aarch64-linux-gnu-g++", "-dumpfullversion").strip()
    inside = run(python, "-c", code).strip()
    return f"QEMU {qemu[1] if qemu else '?'} ({cpu}), GCC {compiler}, {inside}"


def write_report(path: Path, counts: dict[str, Counter[str]], machine: str) -> None:
    """A row for each file; those of files that were not run stay."""
    commit = run("git", "rev-parse", "--short", "HEAD").strip()
    rows: dict[str, dict[str, object]] = {}
    if path.exists():
        with path.open(newline="") as file:
            rows = {row["tests"]: dict(row) for row in csv.DictReader(file)}
    for name, count in counts.items():
        found = {kind: count[kind] for kind in ("passed", "failed", "skipped")}
        rows[name] = {"tests": name, **found, "machine": machine, "commit": commit}
    with path.open("w", newline="") as file:
        fields = ("tests", "passed", "failed", "skipped", "machine", "commit")
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in sorted(rows))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.aarch64")
    parser.add_argument("files", nargs="*", default=TESTS, help="of tests, as ops/test_NAME.py")
    parser.add_argument("--cpu", default=CPU, help=f"what QEMU is to be ({CPU})")
    parser.add_argument("--report", type=Path, help="a CSV file for what there was")
    options = parser.parse_args()
    check_tools()
    WORK.mkdir(parents=True, exist_ok=True)
    root = fetch_python()
    python = make_interpreter(root, options.cpu)
    site = fetch_wheels(python)
    os.environ |= {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    tree = copy_package(compile_module(root, python))
    counts = run_tests(python, tree, options.files)
    for name, count in counts.items():
        print(f"{name}: " + ", ".join(f"{n} {kind}" for kind, n in sorted(count.items())))
    if options.report:
        write_report(options.report, counts, versions(python, options.cpu))
    sys.exit(any(count["failed"] for count in counts.values()))


if __name__ == "__main__":
    main()
