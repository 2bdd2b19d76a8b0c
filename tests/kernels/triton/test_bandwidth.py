"""What is read off machine code: bytes under way, warps that fit, sectors; and that none spills."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from hag_plugin.hag.gpu.launch_shape import UNROLL, VECTOR_BYTES
from hag_plugin.kernels.triton import bandwidth, resources
from hag_plugin.kernels.triton.resources import Compiled, Variant

CODE = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E R2, [R4.64] ;
        /*0020*/              @!P0 LDG.E.128 R8, [R6.64] ;
        /*0030*/               @P1 LDG.E.64.CONSTANT R12, desc[UR4][R6.64] ;
        /*0040*/                   IMAD R3, R2, 0x4, RZ ;
        /*0050*/                   LDG.E.U16 R20, [R16.64] ;
        /*0060*/                   FADD R10, R11, R0 ;
        /*0070*/                   LDG.E.128 R24, [R12.64] ;
"""


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What another version of a kernel was compiled to must not answer for this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def test_a_load_is_under_way_until_one_of_its_registers_is_used() -> None:
    """4, then 16 and 8 more, less the 4 that the product uses, 2 more, less 16; and the address of
    the last one is what was loaded before."""
    lines = CODE.strip().splitlines()
    found = [bandwidth.bytes_under_way("\\n".join(lines[: n + 1])) for n in range(len(lines))]
    assert found == [0, 4, 20, 28, 28, 28, 28, 28]
    assert bandwidth.bytes_under_way("\\n".join(lines[:2] + lines[4:6])) == 4
    assert bandwidth.bytes_under_way("\\n".join(lines[2:4] + lines[5:])) == 26


@pytest.mark.parametrize(
    ("registers", "warps", "resident"),
    [(128, 4, 16), (128, 1, 16), (64, 4, 32), (65, 4, 28), (32, 4, 64), (32, 1, 32), (255, 4, 8)],
)
def test_warps_that_fit(registers: int, warps: int, resident: int) -> None:
    assert bandwidth.resident_warps(registers, warps) == resident


@pytest.mark.parametrize("row_bytes", [1, 4, 12, 32, 33, 64, 132, 256, 520])
def test_sectors_are_those_that_rows_touch(row_bytes: int) -> None:
    touched = [
        len({byte // bandwidth.SECTOR for byte in range(row * row_bytes, (row + 1) * row_bytes)})
        for row in range(bandwidth.SECTOR)
    ]
    assert bandwidth.sectors(row_bytes) == pytest.approx(sum(touched) / len(touched))


def test_the_share_is_of_what_is_under_way_and_of_sectors() -> None:
    card = bandwidth.CARDS[90]
    needed = card.bytes_per_second * bandwidth.LATENCY / card.multiprocessors

    def share(width: int, thread_bytes: int) -> float:
        variant = Variant("combine", torch.float32, width, 4)
        compiled = Compiled(variant, 90, 64, 0, 0, 0, {})
        return bandwidth.ceiling(compiled, thread_bytes).share

    assert share(64, 10_000) == 1.0
    assert share(64, 8) == pytest.approx(32 * 32 * 8 / needed)
    assert share(33, 10_000) == pytest.approx(132 / (5 * 32))


def test_every_kernel_is_there() -> None:
    found = bandwidth.variants()
    assert {variant.kernel for variant in found} == set(resources.KERNELS)
    scores = {v.flags["SCORE"] for v in found if v.kernel == "attend"}
    assert scores == set(resources.attention.SCORES)


def sample() -> list[tuple[Variant, int]]:
    """Each kernel on all cards, with its forms and widths in turn."""
    found = []
    cards, forms_of = list(bandwidth.CARDS), defaultdict(list)
    for variant in bandwidth.variants((64,)):
        forms_of[variant.kernel].append(variant)
    for kernel_number, forms in enumerate(forms_of.values()):
        for number in range(max(len(forms), len(cards))):
            form, width = forms[number % len(forms)], (16, 64)[(kernel_number + number) % 2]
            found.append((replace(form, width=width), cards[number % len(cards)]))
    return found


@pytest.mark.slow
def test_no_kernel_spills_on_any_card() -> None:
    """And sums have the rows of a whole turn of the loop under way."""
    found = sample()
    pairs = itertools.product(resources.KERNELS, bandwidth.CARDS)
    assert {(variant.kernel, target) for variant, target in found} == {*pairs}
    assert {variant.flags.get("SCORE") for variant, _ in found} > {*resources.attention.SCORES}
    for variant, target in found:
        compiled = resources.compile_for(variant, target)
        assert (compiled.stack, compiled.spills) == (0, 0), f"{variant} sm_{target} spills"
        thread_bytes = bandwidth.bytes_under_way(bandwidth.machine_code(compiled.asm["cubin"]))
        assert thread_bytes >= VECTOR_BYTES
        if variant.kernel == "combine":
            assert thread_bytes >= UNROLL * VECTOR_BYTES, f"{variant} sm_{target} waits row by row"


def test_the_table() -> None:
    variant, target = next(iter(itertools.product(bandwidth.variants((64,)), (90,))))
    lines = bandwidth.table([resources.compile_for(variant, target)]).splitlines()
    assert lines[0].startswith("| kernel | target | registers |")
    assert lines[2].startswith(f"| {variant} | sm_90 | ")
