"""What share of a card's bandwidth the machine code of the kernels allows, read off without a card.

    python -m hag_plugin.kernels.triton.bandwidth --targets 80 90 100

A row of a table is a kernel on float32 rows of a width. By Little's law as many bytes must be under
way as the memory moves in the time that one fetch takes; under way are what a thread has asked for
and not used yet, times the threads that a multiprocessor holds at a time. Of what is moved, a row
uses the part of its sectors that it covers.
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from tqdm import tqdm

from hag_plugin.devices import KINDS

from .resources import WARPS, Compiled, Variant, compile_for, flags

SECTOR = 32  # bytes that a card's memory moves at least
REGISTERS, ALLOCATED = 65_536, 8  # of a multiprocessor, and how many a thread gets at a time
MOST_WARPS, MOST_INSTANCES = 64, 32  # that a multiprocessor holds
WIDTHS = (16, 33, 64, 256)


@dataclass(frozen=True)
class Card:
    """A card, by its data sheet.

    Attributes:
        name: of the card.
        multiprocessors: how many it has.
        bytes_per_second: of its memory.
    """

    name: str
    multiprocessors: int
    bytes_per_second: float


CARDS = {
    80: Card("A100 80 GB", 108, 2.0e12),
    90: Card("H200", 132, 4.8e12),
    100: Card("B200", 148, 8.0e12),
}
_launches = KINDS["cuda"].launches
assert _launches is not None
LATENCY = _launches.seconds_per_wait

_SIZES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")


def machine_code(cubin: bytes) -> str:
    """The instructions of a compiled kernel, as text."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def bytes_under_way(code: str) -> int:
    """The most bytes that a thread has asked of global memory and not used yet, in straight-line
    order."""
    waiting: dict[int, int] = {}  # by the first register of a load, its bytes
    most = 0
    for name, operands in _INSTRUCTION.findall(code):
        parts = [part.strip() for part in operands.split(",")]
        is_load = name.startswith("LDG")
        for register in _registers(parts[1:] if is_load else parts):
            for first, size in list(waiting.items()):
                if first <= register < first + max(size // 4, 1):
                    del waiting[first]
        if is_load:
            for register in _registers(parts[:1]):
                size = next((_SIZES[word] for word in name.split(".") if word in _SIZES), 4)
                waiting[register] = size
            most = max(most, sum(waiting.values()))
    return most


def _registers(operands: list[str]) -> list[int]:
    return [int(number) for part in operands for number in re.findall(r"\bR(\d+)\b", part)]


def resident_warps(registers: int, warps: int) -> int:
    """Warps that a multiprocessor holds at a time, of instances of so many.

    Example:
        >>> resident_warps(registers=128, warps=4), resident_warps(registers=40, warps=1)
        (16, 32)
    """
    of_thread = -(-registers // ALLOCATED) * ALLOCATED
    instances = REGISTERS // (of_thread * 32 * warps)
    return min(instances, MOST_INSTANCES, MOST_WARPS // warps) * warps


def sectors(row_bytes: int) -> float:
    """Sectors that a row touches, in the mean over rows that lie one behind the other.

    Example:
        >>> sectors(256), sectors(132)
        (8.0, 5.0)
    """
    starts = range(SECTOR // math.gcd(row_bytes, SECTOR))
    each = [-(-(start * row_bytes % SECTOR + row_bytes) // SECTOR) for start in starts]
    return sum(each) / len(each)


@dataclass(frozen=True)
class Ceiling:
    """What a compiled kernel allows on a card.

    Attributes:
        warps: that a multiprocessor holds.
        under_way: bytes of a multiprocessor.
        sectors: of a row.
        share: of the card's bandwidth, at most.
    """

    warps: int
    under_way: int
    sectors: float
    share: float


def ceiling(compiled: Compiled, thread_bytes: int) -> Ceiling:
    """What a compiled kernel allows, whose threads have so many bytes under way."""
    card, variant = CARDS[compiled.target], compiled.variant
    warps = resident_warps(compiled.registers, variant.warps)
    under_way = warps * 32 * thread_bytes
    needed = card.bytes_per_second * LATENCY / card.multiprocessors
    row_bytes = variant.width * variant.dtype.itemsize * max(variant.heads, 1)
    touched = sectors(row_bytes)
    share = min(1.0, under_way / needed) * row_bytes / (touched * SECTOR)
    return Ceiling(warps, under_way, touched, share)


def variants(widths: tuple[int, ...] = WIDTHS) -> list[Variant]:
    """Every kernel as large levels launch it, with as few options as there are, on float32."""
    least: dict[Any, dict[str, Any]] = {}
    for kernel, on in flags():
        key = kernel, on.get("SCORE") if on.get("NORMALISE") == "softmax" else None
        if kernel not in ("attend", "attend_back") or key[1] is not None:
            least.setdefault(key, on)
    return [
        Variant(kernel, torch.float32, width, WARPS[kernel][-1], on)
        for ((kernel, _), on), width in itertools.product(least.items(), widths)
    ]


def table(compiled: list[Compiled]) -> str:
    """A row for each, in Markdown."""
    lines = [
        "| kernel | target | registers | stack | warps | KiB under way | sectors a row | share |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in compiled:
        found = ceiling(each, bytes_under_way(machine_code(each.asm["cubin"])))
        lines.append(
            f"| {each.variant} | sm_{each.target} | {each.registers} | {each.stack} | "
            f"{found.warps} | {found.under_way / 1024:.1f} | {found.sectors:.1f} | "
            f"{found.share:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", type=int, nargs="+", default=sorted(CARDS), metavar="CC",
                        choices=sorted(CARDS))  # fmt: skip
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, metavar="F")
    args = parser.parse_args()
    todo = list(itertools.product(variants(tuple(args.widths)), args.targets))
    print(table([compile_for(*item) for item in tqdm(todo, desc="compiling", file=sys.stderr)]))
    print(
        f"\nTriton {triton.__version__}, {LATENCY * 1e9:.0f} ns a fetch.", *map(_said, args.targets)
    )


def _said(target: int) -> str:
    card = CARDS[target]
    needed = card.bytes_per_second * LATENCY / card.multiprocessors / 1024
    return (
        f"sm_{target}: {card.name}, {card.multiprocessors} multiprocessors, "
        f"{card.bytes_per_second / 1e12:.1f} TB/s, {needed:.1f} KiB to be under way."
    )


if __name__ == "__main__":
    main()
