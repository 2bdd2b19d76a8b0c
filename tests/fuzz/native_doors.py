"""Builds the native fuzz targets: with libFuzzer where clang has it, otherwise with a driver.

Both with AddressSanitizer and UndefinedBehaviorSanitizer. Kernels run with the baseline instruction
set, which is compiled in seconds: what an instruction set does with a program that was let through
is for the tests under the sanitizers, what is let through is looked at here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KERNELS = ROOT / "kernels" / "cpu"
TARGETS = ("program", "csr", "concatenate", "graph_set")
FLAGS = ("-std=c++17", "-O1", "-g", "-fopenmp", "-fno-omit-frame-pointer",
         "-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{KERNELS}")  # fmt: skip
# Kernels are long to compile: for addresses only, and those that are not run for nothing.
ISAS = {"isa_baseline": ("-fsanitize=address",),
        "isa_avx2": ("-mavx2", "-mfma", "-mf16c"),
        "isa_avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma",
                       "-mf16c")}  # fmt: skip
ENVIRONMENT = {"HAG_PLUGIN_ISA": "baseline", "OMP_NUM_THREADS": "1"}


class NoCompilerError(Exception):
    """There is nothing to build the targets with."""


def compiler() -> tuple[str, bool]:
    """A C++ compiler that has the sanitizers, and whether it has libFuzzer.

    Raises:
        NoCompilerError: there is none.
    """
    named = [os.environ["CXX"]] if "CXX" in os.environ else []
    clangs = ["clang++", *(f"clang++-{v}" for v in range(22, 13, -1))]
    for name, flags in (
        *((name, ("-fsanitize=fuzzer",)) for name in [*named, *clangs]),
        *((name, ()) for name in [*named, "g++", *clangs]),
    ):
        if shutil.which(name) is not None and _builds(name, flags):
            return name, bool(flags)
    raise NoCompilerError("no C++ compiler that has AddressSanitizer and OpenMP")


def _builds(name: str, flags: tuple[str, ...]) -> bool:
    code = "#include <omp.h>\n#include <cstdint>\n#include <cstddef>\n"
    code += 'extern "C" int LLVMFuzzerTestOneInput(const uint8_t *, size_t) { return 0; }\n'
    code += "" if flags else "int main() { return omp_get_max_threads() < 1; }\n"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "try.cpp"
        source.write_text(code)
        words = [name, *FLAGS, *flags, str(source), "-o", str(source.with_suffix(""))]
        return subprocess.run(words, capture_output=True).returncode == 0


def build(folder: Path) -> dict[str, Path]:
    """The programs by target; objects that are newer than their sources are taken as they are.

    Raises:
        NoCompilerError: there is no compiler for it.
        RuntimeError: something does not compile; has what the compiler said.
    """
    name, has_fuzzer = compiler()
    folder = folder / (Path(name).name + ("-libfuzzer" if has_fuzzer else ""))
    folder.mkdir(parents=True, exist_ok=True)
    kernels = [p for p in sorted(KERNELS.rglob("*.cpp")) if p.parent.name not in ("bind", "attend")]
    headers = max(p.stat().st_mtime for p in KERNELS.rglob("*.h"))
    own_headers = max(p.stat().st_mtime for p in (HERE / "native").glob("*.h"))
    own = [HERE / "native" / f"{target}.cpp" for target in TARGETS]
    driver = [] if has_fuzzer else [HERE / "native" / "driver.cpp"]

    def compiled(source: Path) -> Path:
        made = folder / f"{source.parent.name}-{source.stem}.o"
        newest = max(source.stat().st_mtime, headers)
        newest = max(newest, own_headers) if source.parent.name == "native" else newest
        if not made.exists() or made.stat().st_mtime < newest:
            flags = [*FLAGS, *(["-fsanitize=fuzzer-no-link"] if has_fuzzer else [])]
            if source.stem in ISAS:
                flags = ["-std=c++17", "-O0", f"-I{KERNELS}", *ISAS[source.stem]]
            _run(name, *flags, "-c", source, "-o", made)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, kernels))
        mains = list(pool.map(compiled, [*own, *driver]))
    entry = ("-fsanitize=fuzzer",) if has_fuzzer else (mains[-1],)
    programs = {}
    for target, main in zip(TARGETS, mains, strict=False):
        programs[target] = folder / target
        _run(name, *FLAGS, main, *objects, *entry, "-o", programs[target])
    return programs


def _run(*words: str | Path) -> None:
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[:2000])
