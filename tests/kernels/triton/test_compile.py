"""Every kernel compiles to machine code for sm_80, sm_90 and sm_100 here, without a card.

What the kernels rely on is read off the compiled code. Within one launch a row that is written is
read by nobody (test_schedule.py proves that of the schedules), so no order of instances or threads
matters, as long as the compiler adds nothing: no store before the last load, no atomics, no
asynchronous copies that would have to be waited for.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest

from hag_plugin.hag.gpu.launch_shape import MAX_REGISTERS
from hag_plugin.kernels.triton import attention, resources
from hag_plugin.kernels.triton.resources import (
    DTYPES,
    WARPS,
    WIDTHS,
    Compiled,
    Variant,
)
from hag_plugin.ops import attention_pieces

TARGETS = (80, 90, 100)
# The bits of the offsets of each block of rows and features.
OFFSETS = r"tt\.addptr .*: tensor<(?:\d+x){2,3}!tt\.ptr<\w+>.*>, tensor<(?:\d+x){2,3}i(\d+)>"


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What another version of a kernel was compiled to must not answer for this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def sample() -> list[tuple[Variant, int]]:
    """All options, on dtypes, widths, warps and targets in turn; and the widths that a kernel with
    few options did not meet.

    `python -m hag_plugin.kernels.triton.resources` compiles the whole product.
    """
    target, width, turn = (itertools.cycle(each) for each in (TARGETS, WIDTHS, (0, -1)))
    dtypes = {kernel: itertools.cycle(each) for kernel, each in DTYPES.items()}
    last: dict[str, dict[str, Any]] = {}
    left = {kernel: {*WIDTHS} for kernel in resources.KERNELS}
    found: list[Variant] = []

    def take(kernel: str, width: int, on: dict[str, Any]) -> None:
        left[kernel].discard(width)
        last[kernel] = on
        found.append(Variant(kernel, next(dtypes[kernel]), width, WARPS[kernel][next(turn)], on))

    for kernel, on in resources.flags():
        take(kernel, next(width), on)
    for kernel, widths in left.items():
        for missing in sorted(widths):
            take(kernel, missing, last[kernel])
    return [(variant, next(target)) for variant in found]


def check(compiled: Compiled) -> None:
    """Raises AssertionError where the code has what the kernels must not have."""
    ptx, ir = compiled.asm["ptx"], compiled.asm["ttgir"]
    variant = compiled.variant
    name = f"{variant} sm_{compiled.target}"
    assert compiled.spills == 0, f"{name} spills"
    assert compiled.stack == 0, f"{name} spills"
    assert compiled.registers <= MAX_REGISTERS, name
    assert compiled.asm["cubin"][:4] == b"\x7fELF", name
    stores, loads = ptx.find("st.global"), ptx.rfind("ld.global")
    if variant.kernel != "attend_back":  # whose numbers of edges no instance reads
        assert 0 < loads < stores, f"{name} loads after a store"
    assert not re.search(r"\b(atom|red)\.", ptx), f"{name} has atomics"
    assert "async" not in ir, f"{name} is pipelined"
    assert "cp.async" not in ptx, f"{name} is pipelined"
    offsets = re.findall(OFFSETS, compiled.asm["ttir"])
    assert offsets, name
    assert set(offsets) == {"64"}, f"{name} computes places of features in {set(offsets)} bits"
    # Features stay with the thread that loaded them; the compiler lets row numbers change hands
    # where many short rows share an instance, and edge_dot's sums on their way out.
    if variant.width >= 16 and (variant.kernel != "edge_dot" or variant.warps == 1):
        assert compiled.shared == 0, f"{name} moves rows between threads"
        assert "bar.sync" not in ptx, f"{name} waits"


@pytest.mark.slow
def test_compiles_without_spills() -> None:
    found = sample()
    met = {(variant.kernel, variant.width) for variant, _ in found}
    assert met == {*itertools.product(resources.KERNELS, WIDTHS)}
    for variant, target in found:
        check(resources.compile_for(variant, target))


def test_every_form_of_attention_is_compiled() -> None:
    assert attention.SCORES == attention_pieces.SCORES
    assert attention.NORMALISATIONS == attention_pieces.NORMALISATIONS


def test_check_can_fail() -> None:
    variant, target = next(s for s in sample() if s[0].width == 64 and s[0].kernel == "combine")
    good = resources.compile_for(variant, target)
    ptx, ttir = good.asm["ptx"], good.asm["ttir"]
    cases: dict[str, dict[str, Any]] = {
        "spills": {"stack": 4},
        "loads after a store": {"ptx": ptx + "\nld.global.b32 %r1, [%rd1];"},
        "has atomics": {"ptx": "atom.relaxed.gpu.global.add.f32\n" + ptx},
        "is pipelined": {"ttgir": "ttg.async_wait"},
        "in .*'32'": {"ttir": re.sub(r"(tensor<\d+x\d+x)i64", r"\1i32", ttir)},
        "moves rows": {"shared": 128},
        "waits": {"ptx": "bar.sync 0;\n" + ptx},
    }
    for message, change in cases.items():
        texts = {k: v for k, v in change.items() if k in good.asm}
        numbers = {k: v for k, v in change.items() if k not in good.asm}
        bad = replace(good, asm={**good.asm, **texts}, **numbers)
        with pytest.raises(AssertionError, match=message):
            check(bad)


def test_table() -> None:
    variant, target = sample()[0]
    text = resources.table([resources.compile_for(variant, target)])
    assert text.splitlines()[0].startswith("| kernel | dtype | target |")
    assert f"| combine | fp32 | sm_{target} | 1 |" in text.splitlines()[2]
