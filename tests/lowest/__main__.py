"""Installs the oldest versions that `pyproject.toml` allows, and runs tests with them.

    python -m tests.lowest [--wheel FILE] [TEST, or option of pytest ...]

From the root of the source, on Linux, with Python 3.11 or newer, GCC and binutils. Installs into
`build/lowest`, and then the wheel, or one that it makes. Without tests it runs `TESTS`, a few of
each part.

There torch's wheel is made for CUDA, and would bring 4 GB of CUDA's libraries. In their place stand
libraries that have their names and find no device.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import tomllib

ROOT = Path(__file__).parents[2]
NOT_INSTALLED = ("docs", "lint")  # what the package is made with, not what it runs with
# Of each part a few, and what older versions are known to do otherwise: torch 2.8 compiles less of
# Python, PyG 2.6 has other aggregations.
TESTS = (
    "-m", "not slow",
    "tests/ops/test_aggregate_torch.py",
    "tests/hag/test_reversed.py",
    "tests/pyg/aggregation/test_aggregators.py",
    "tests/pyg/model/test_compile.py::test_compiled_equals_stock",
    "tests/pyg/model/test_tracing.py::test_export",
    "tests/pyg/recipes/test_table.py::test_layer_equals_stock",
    "--deselect",  # NaN in PyG 2.6
    "tests/pyg/recipes/test_table.py::test_layer_equals_stock[aggr-powermean-channels-multigraph]",
    "tests/dgl/recipes/test_layers.py::test_multigraph",
    "tests/dgl/recipes/test_attention.py",
    "--deselect",  # torch 2.8 does not trace DGL's own code
    "tests/dgl/recipes/test_attention.py::test_autocast_and_compiled_code",
    "tests/parallel/search/test_plan.py",
)  # fmt: skip
CUDA = r"lib(?:cu|nccl|nv)[\w.]+"
NO_DEVICE = 100  # cudaErrorNoDevice


def lowest() -> dict[str, str]:
    """Each package that the package or its tests may use, as what pip is to install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: dict[str, str] = {}
    extras = project["optional-dependencies"]
    groups = [extras[name] for name in extras if name not in NOT_INSTALLED]
    for words in [each for group in (project["dependencies"], *groups) for each in group]:
        requirement, _, marker = words.partition(";")
        match = re.fullmatch(r"([\w-]+)>=([\d.]+)(,<\d+)?", requirement.strip())
        if match is None:
            sys.exit(f"{words!r}: expected NAME>=VERSION")
        pinned = f"{match[1]}=={match[2]}" + (f"; {marker.strip()}" if marker else "")
        if found.setdefault(match[1], pinned) != pinned:
            sys.exit(f"{found[match[1]]!r} and {pinned!r}: expected one lowest version")
    return found


def run(*words: str | Path, text: str = "") -> str:
    """What a command prints. One that fails ends this."""
    done = subprocess.run(
        words, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{done.stdout[-20_000:]}\n{words[0]}: exit code {done.returncode}")
    return done.stdout


def without_cuda(libraries: Path) -> None:
    """Makes what torch's libraries want of CUDA's: functions that all say `NO_DEVICE`."""
    made = [*libraries.glob("lib*.so")]
    symbols = run("readelf", "-W", "--dyn-syms", *made)
    plain = {*re.findall(r" UND ((?:nccl|cusparseLt|cuFile)\w+)\s", symbols)}  # of no version
    version = libraries / "version.map"
    for name in sorted({*re.findall(rf"\[({CUDA})\]", run("readelf", "-W", "-d", *made))}):
        if (libraries / name).exists():
            continue
        functions = plain | {*re.findall(rf" UND (\w+)@{re.escape(name)}\s", symbols)}
        plain = set()
        version.write_text(f"{name} {{ *; }};")
        run(
            "gcc", "-shared", "-fPIC", "-w", "-fno-builtin", "-x", "c", "-",
            f"-Wl,--version-script={version},-soname,{name}", "-o", libraries / name,
            text="".join(f"int {each}(void) {{ return {NO_DEVICE}; }}\n" for each in functions),
        )  # fmt: skip


def environment(folder: Path) -> Path:
    """The Python of an environment with these versions."""
    python = folder / "venv/bin/python"
    if not python.exists():
        venv.create(folder / "venv", with_pip=True)
    pip = python, "-m", "pip", "install", "-q", "--no-cache-dir"
    packages = lowest()
    torch = packages.pop("torch")
    run(*pip, "--no-deps", torch)
    names = "import importlib.metadata as m; print(*m.requires('torch'), sep=chr(10))"
    wanted = run(python, "-c", names).splitlines()
    others = [each for each in wanted if not each.startswith("nvidia-") and "extra ==" not in each]
    run(*pip, *packages.values(), *others)
    if sys.platform == "linux":
        (libraries,) = (folder / "venv").glob("lib/python*/site-packages/torch/lib")
        without_cuda(libraries)
    return python


def wheel(folder: Path) -> Path:
    """One made of this source, for the first instruction set alone."""
    run(
        sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder / "wheel", ROOT,
        "-C", f"build-dir={folder / 'objects'}", "-C", "cmake.define.HAG_ISAS=1",
    )  # fmt: skip
    return max((folder / "wheel").glob("*.whl"), key=lambda path: path.stat().st_mtime)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lowest")
    parser.add_argument("--wheel", type=Path, help="what is tested; made where none is given")
    options, tests = parser.parse_known_args()
    folder = ROOT / "build" / "lowest"
    folder.mkdir(parents=True, exist_ok=True)
    python = environment(folder)
    tested = (options.wheel or wheel(folder)).resolve()
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", tested)
    print(*run(python, "-m", "pip", "list", "--format=freeze").split(), flush=True)
    with tempfile.TemporaryDirectory() as outside:  # where the source does not stand for the wheel
        shutil.copytree(ROOT / "tests", Path(outside, "tests"))
        shutil.copy(ROOT / "setup.cfg", outside)
        command = python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(tests or TESTS)
        return subprocess.run(command, cwd=outside, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
