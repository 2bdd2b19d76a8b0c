"""The CPU kernels under each instruction set of this machine, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hag_plugin as hp
from hag_plugin.kernels import _cpu
from hag_plugin.reducers import Reduce

EVERY_ISA = "kernels"  # tests with this in their name run under each instruction set
FILES = {
    "aggregate": (
        "ops/test_aggregate_gradients.py",
        "hag/test_programs.py",
        f"kernels/{Path(__file__).name}",
    ),
    "weighted sum": ("ops/test_weighted_sum.py",),
    "attention": ("ops/test_attention.py",),
    "search": ("hag/test_search.py",),
}


@pytest.mark.skipif("HAG_PLUGIN_ISA" in os.environ, reason="runs under each instruction set")
@pytest.mark.parametrize("isa", _cpu.instruction_sets())
@pytest.mark.parametrize("operator", FILES)
def test_every_instruction_set(operator: str, isa: str) -> None:
    if isa == _cpu.instruction_set():
        pytest.skip("the tests themselves ran on it")
    files = [str(Path(__file__).parents[1] / name) for name in FILES[operator]]
    arguments = ["-q", "-x", "-k", EVERY_ISA, "-p", "no:cacheprovider", *files]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "--import-mode=importlib", *arguments],
        capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "HAG_PLUGIN_ISA": isa},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


def test_kernels_are_those_asked_for() -> None:
    forced = os.environ.get("HAG_PLUGIN_ISA")
    assert _cpu.instruction_set() == (forced or _cpu.instruction_sets()[-1])


SPECIAL = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0, -1.0, 1e-40)
INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduce", ["max", "min"])
def test_kernels_compare_as_one_by_one(dtype: torch.dtype, reduce: Reduce) -> None:
    """Row after row, a NaN before all else; of equal numbers, 0 and -0 too, the first stays."""
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(40, (2, 300), generator=generator)
    hag = hp.build_hag(edges, num_nodes=41, method="none")
    for width in range(1, 70):
        drawn = torch.randint(len(SPECIAL), (41, width), generator=generator)
        x = torch.tensor(SPECIAL, dtype=dtype)[drawn]
        expected = torch.zeros_like(x)
        for i in range(41):
            sources = hag.col[hag.row_ptr[i] : hag.row_ptr[i + 1]].tolist()
            for place, row in enumerate(x[sources]):
                held = expected[i]
                better = row > held if reduce == "max" else row < held
                expected[i] = row if place == 0 else torch.where(better | row.isnan(), row, held)
        found = hp.aggregate(x, hag, reduce)
        assert torch.equal(found.isnan(), expected.isnan())
        bits = [y.nan_to_num(nan=7.0).view(INTEGERS.get(dtype, torch.int16))
                for y in (found, expected)]  # fmt: skip
        assert torch.equal(*bits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_kernels_sum_what_comes_from_memory(dtype: torch.dtype, reduce: Reduce) -> None:
    """x and y outgrow every last-level cache, so that rows are asked for ahead. Hubs, too."""
    num_nodes, size = 20_000, 16
    generator = torch.Generator().manual_seed(0)
    teams = torch.randperm(num_nodes, generator=generator).view(-1, size)
    pairs = torch.cartesian_prod(torch.arange(size), torch.arange(size)).T
    whole = torch.stack([teams[:, pairs[0]].flatten(), teams[:, pairs[1]].flatten()])
    star = torch.stack([torch.arange(1, 6000), torch.zeros(5999, dtype=torch.long)])
    edge_index = torch.cat([whole, star], 1)
    hag = hp.build_hag(edge_index, num_nodes=num_nodes, choose="hag")
    assert hag.stats().intermediates > 0
    width = 1024 // dtype.itemsize
    x = torch.randint(-8, 9, (num_nodes, width), generator=generator).to(dtype)
    plain = hp.build_hag(edge_index, num_nodes=num_nodes, method="none")
    out = torch.full_like(x, float("nan"))
    hp.aggregate(x, hag, reduce, out=out)
    assert torch.equal(out, hp.aggregate(x, plain, reduce))


def test_every_instruction_set_finds_the_same() -> None:
    """In a tile of so many rows that bytes cannot hold a count of its bits, and in small ones."""
    code = """
import zlib
from dataclasses import asdict, replace
import numpy as np
import torch
from hag_plugin.hag import cost
from hag_plugin.hag.graph import canonical_graph
from hag_plugin.kernels import _cpu
random = np.random.default_rng(0)
dense = np.stack(np.nonzero(random.random((150, 2_200)) < 0.35))
csr = canonical_graph(torch.from_numpy(dense), 2_200, 2_200)
for rows in (4_096, 256, 64):
    prices = replace(cost.prices(64), cut_rows=rows, worth_it=float("inf"), work_per_edge=1 << 30)
    found, _ = _cpu.search_program(*csr, 2_200, "", False, True, **asdict(prices), threads=1)
    print(len(found[2]), [zlib.crc32(a.tobytes()) for a in found])
"""
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True,
            env={**os.environ, "HAG_PLUGIN_ISA": isa},
        ).stdout
        for isa in _cpu.instruction_sets()
    }  # fmt: skip
    assert len(printed) == 1


def test_unknown_instruction_set() -> None:
    code = """
from hag_plugin.kernels import _cpu
try:
    _cpu.instruction_set()
except ValueError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "HAG_PLUGIN_ISA": "mmx"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'HAG_PLUGIN_ISA is "mmx"' in done.stdout
