"""Every kernel compiles to machine code for sm_80 and sm_90 here, where there is no card.

What the kernels rely on is read off the compiled code. Within one launch a row that is written is
read by nobody (test_schedule.py proves that of the schedules), so no order of instances or threads
matters, as long as the compiler adds nothing: no store before the last load, no atomics, no
asynchronous copies that would have to be waited for.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from hag_plugin.kernels.triton import resources
from hag_plugin.kernels.triton.launch import MAX_WARPS
from hag_plugin.kernels.triton.resources import NAMES, WIDTHS, Compiled, Variant

TARGETS = (80, 90)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What another version of a kernel was compiled to must not answer for this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def sample() -> list[tuple[Variant, int]]:
    """All options and dtypes, on widths, warps and targets in turn.

    `python -m hag_plugin.kernels.triton.resources` compiles the whole product.
    """
    turns = itertools.cycle(itertools.product(WIDTHS, (1, MAX_WARPS), TARGETS))
    options = itertools.product(resources.flags(), NAMES)
    every_option = [
        (Variant(kernel, dtype, width, warps, on), target)
        for ((kernel, on), dtype), (width, warps, target) in zip(options, turns, strict=False)
    ]
    kernel, scaled = next(f for f in resources.flags() if f[1].get("SCALED") and f[1]["MIXED"])
    every_shape = [
        (Variant(kernel, dtype, width, MAX_WARPS, scaled), 90)
        for dtype, width in itertools.product(NAMES, WIDTHS)
    ]
    return every_option + every_shape


def check(compiled: Compiled) -> None:
    """Raises AssertionError where the code has what the kernels must not have."""
    ptx, ir = compiled.asm["ptx"], compiled.asm["ttgir"]
    name = f"{compiled.variant} sm_{compiled.target}"
    assert (compiled.stack, compiled.spills) == (0, 0), f"{name} spills"
    assert compiled.registers <= 128, name
    assert compiled.asm["cubin"][:4] == b"\x7fELF", name
    stores, loads = ptx.find("st.global"), ptx.rfind("ld.global")
    assert 0 < loads < stores, f"{name} loads after a store"
    assert not re.search(r"\b(atom|red)\.(global|shared)|\bcp\.async", ptx), name
    assert "async" not in ir, f"{name} is pipelined"
    # Features stay with the thread that loaded them; the compiler lets row numbers change hands
    # where many short rows share an instance, and arg_first's int64 results on their way out.
    if compiled.variant.width >= 16 and compiled.variant.kernel != "arg_first":
        assert compiled.shared == 0, f"{name} moves rows between threads"
        assert "bar.sync" not in ptx, name


def test_compiles_without_spills() -> None:
    for variant, target in sample():
        check(resources.compile_for(variant, target))


def test_check_can_fail(tmp_path: Path) -> None:
    variant, target = sample()[0]
    good = resources.compile_for(variant, target)
    ptx = good.asm["ptx"]
    cases = {
        "spills": {"stack": 8},
        "loads after a store": {"asm": {**good.asm, "ptx": ptx + "\nld.global.b32 %r1, [%rd1];"}},
        "pipelined": {"asm": {**good.asm, "ttgir": "ttg.async_wait"}},
    }
    for message, change in cases.items():
        with pytest.raises(AssertionError, match=message):
            check(Compiled(**{**vars(good), **change}))


def test_table() -> None:
    variant, target = sample()[0]
    text = resources.table([resources.compile_for(variant, target)])
    assert text.splitlines()[0].startswith("| kernel | dtype | target |")
    assert f"| combine | fp32 | sm_{target} | 1 |" in text.splitlines()[2]
