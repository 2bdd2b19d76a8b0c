"""The fuzz targets take their seeds, and whatever is near them; the fuzzers themselves are run by
`python tests/fuzz/run.py`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from . import corpus
from .native_doors import NoCompilerError, compiler
from .python_doors import DOORS

HERE = Path(__file__).parent


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DOORS)
def test_seeds_and_what_is_near(name: str) -> None:
    random, door = np.random.default_rng(0), DOORS[name]
    for seed in door.seeds():
        door.take(seed)
        for _ in range(5):
            content = bytearray(seed)
            at = random.integers(len(content) + 1)
            content[at : at + random.integers(3)] = random.bytes(random.integers(3))
            door.take(bytes(content))
            if door.changed is not None:
                door.take(door.changed(seed, int(random.integers(2**32))) or b"")


def test_every_native_target_has_seeds() -> None:
    sources = {p.stem for p in (HERE / "native").glob("*.cpp")} - {"driver"}
    assert corpus.SEEDS.keys() == sources
    assert all(len(make()) > 5 for make in corpus.SEEDS.values())


@pytest.mark.slow
@pytest.mark.skipif("CI" not in os.environ, reason="CI builds and runs the fuzzers (.ci/run)")
def test_the_driver_finds_what_is_planted(tmp_path: Path) -> None:
    """Where clang is missing: a target that fails at one byte, found from another."""
    try:
        name, _ = compiler()
    except NoCompilerError as e:
        pytest.skip(str(e))
    (tmp_path / "planted.cpp").write_text(
        "#include <cstdint>\n#include <cstdlib>\n"
        'extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {\n'
        "  if (size && data[0] == 77) std::abort();\n  return 0;\n}\n"
    )
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "a").write_bytes(b"\x01\x02")
    program = tmp_path / "planted"
    words = [name, "-std=c++17", str(HERE / "native" / "driver.cpp"), "planted.cpp", "-o", program]
    subprocess.run(words, check=True, cwd=tmp_path)
    done = subprocess.run([program, "-runs=100000", "seeds"], cwd=tmp_path, capture_output=True)
    assert done.returncode != 0
    assert (tmp_path / "crash-input").read_bytes()[0] == 77
