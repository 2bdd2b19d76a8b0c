"""Compiles every kernel for cards that are not there, and says what the machine code takes.

    python -m hag_plugin.kernels.triton.resources --targets 80 90 100

Prints registers, spills and shared memory as a Markdown table. Needs Triton, no card and no driver.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hag_plugin.hag.gpu.launch_shape import (
    MAX_WARPS,
    UNROLL,
    WINNER_WARPS,
    cut,
    cut_heads,
)

from . import attention
from .combine import REDUCERS, combine
from .edges import edge_dot
from .launch import ACCUMULATORS
from .ties import add_to_winners, masked_sum, winner

KERNELS = {
    "combine": combine,
    "masked_sum": masked_sum,
    "winner": winner,
    "add_to_winners": add_to_winners,
    "edge_dot": edge_dot,
}
ATTENTION = {
    "attend": attention.attend,
    "merge": attention.merge,
    "head_dot": attention.head_dot,
    "attend_back": attention.attend_back,
    "vector_back": attention.vector_back,
}
# Warps of an instance, on small levels and on large ones.
WARPS = dict.fromkeys(KERNELS, (1, MAX_WARPS)) | {"winner": (WINNER_WARPS,)}
WARPS |= dict.fromkeys(ATTENTION, (1,))
KERNELS |= ATTENTION
NAMES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
}
# A width of each kind: one feature, rows that share a warp, rows that no wide load can take, rows
# of a warp and more than that.
WIDTHS = (1, 3, 16, 33, 64, 130, 256)
# Of attention: with heads that are whole in a warp, that are not, and more than it holds.
HEADS = {1: 1, 3: 3, 8: 8, 16: 4, 33: 3, 64: 1, 130: 2, 256: 8}
# Attention computes half types in float32.
DTYPES = dict.fromkeys(KERNELS, tuple(NAMES))
DTYPES |= dict.fromkeys(ATTENTION, (torch.float32, torch.float64))
INDICES = dict.fromkeys(("op_ptr", "edge", "order"), "*i64")
INDICES |= dict.fromkeys(("source", "target", "row", "won"), "*i32")
# What attention is given, and gives, of nodes and edges.
NUMBERS = (
    *(
        "key",
        "query",
        "bias",
        "mask",
        "sent",
        "grad",
        "kept",
        "part",
        "d_value",
        "d_key",
        "by_score",
    ),
    *("d_bias", "d_mask", "d_query", "d_weight"),
    *("part_value", "part_key", "part_query", "part_weight"),
)
SIZES = ("width", "key_width", "heads")


@dataclass(frozen=True)
class Variant:
    """A kernel as one launch asks for it."""

    kernel: str
    dtype: torch.dtype
    width: int
    warps: int
    flags: dict[str, Any] = field(default_factory=dict)

    @property
    def heads(self) -> int:
        """Heads of so many features; 0: the kernel knows no heads."""
        return HEADS.get(self.width, 1) if self.kernel in ATTENTION else 0

    def __str__(self) -> str:
        on = [str(v if isinstance(v, str) else k).lower() for k, v in self.flags.items() if v]
        size = f"H={self.heads} " if self.heads else ""
        name = f"{self.kernel} {' '.join(on)} {NAMES[self.dtype]}"
        return f"{name} {size}F={self.width} w={self.warps}"


@dataclass(frozen=True)
class Compiled:
    """What a variant was compiled to. Bytes are per thread, shared memory per instance."""

    variant: Variant
    target: int
    registers: int
    stack: int
    spills: int
    shared: int
    asm: dict[str, Any]


def flags() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every combination of options that launches ask for."""
    yes_no = (False, True)
    for scaled, target_scaled in itertools.product(yes_no, yes_no):
        scales = {"SCALED": scaled, "TARGET_SCALED": target_scaled}
        for diagonal, mixed in itertools.product((0, -1), yes_no):
            yield "combine", {"REDUCE": "sum", "MIXED": mixed, "DIAGONAL": diagonal} | scales
        weighted = {"REDUCE": "sum", "MIXED": False, "WEIGHTED": True, "DIAGONAL": 0}
        yield "combine", weighted | scales
        for fill in yes_no:
            yield "edge_dot", {"FILL": fill} | scales
    others = [reduce for reduce in REDUCERS if reduce != "sum"]
    for reduce, mixed, diagonal in itertools.product(others, yes_no, (0, 1)):
        scales = {"SCALED": False, "TARGET_SCALED": False}
        yield "combine", {"REDUCE": reduce, "MIXED": mixed, "DIAGONAL": diagonal} | scales
    for ones in yes_no:
        yield "masked_sum", {"ONES": ones}
    for parts, last in itertools.product(yes_no, yes_no):
        yield "winner", {"PARTS": parts, "LAST": last}
    yield "add_to_winners", {}
    yield from attention_flags()


def attention_flags() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every score of attention with all that a call may ask for; softmax with as little, too."""
    for of_edges in (False, True):
        yield "head_dot", {"ORDERED": True, "OF_EDGES": of_edges}
    yield "merge", {}
    yield "vector_back", {"SLOPE": 0.2}
    bare = dict.fromkeys(("MASKED", "ORDERED"), False)
    sums = {"SCORE": "given", "NORMALISE": "none", "SLOPE": 1.0, "BIASED": True, "KEPT": False}
    for of_edges in (False, True):
        yield "attend", sums | bare | {"OF_EDGES": of_edges}
    for score, normalise in itertools.product(attention.SCORES, attention.NORMALISATIONS):
        what = {"SCORE": score, "NORMALISE": normalise, "SLOPE": 0.2}
        for full in (False, True) if normalise == "softmax" else (True,):
            extra = dict.fromkeys(("MASKED", "ORDERED"), full) | {
                "BIASED": full or score == "given"
            }
            yield "attend", what | extra | {"KEPT": True, "OF_EDGES": full and score == "given"}
            keys = score != "given"
            asked = {"D_VALUE": True, "D_KEY": keys, "BY_SCORE": keys, "D_MASK": full}
            sent = {"SENT": full and score == "given"}
            yield "attend_back", what | extra | asked | sent | {"D_BIAS": full or not keys}


def variants(widths: tuple[int, ...] = WIDTHS) -> Iterator[Variant]:
    """Every kernel with every option, dtype and kind of width, for large and small levels."""
    for kernel, on in flags():
        for dtype, width in itertools.product(DTYPES[kernel], widths):
            for warps in WARPS[kernel]:
                yield Variant(kernel, dtype, width, warps, on)


def source_of(variant: Variant) -> tuple[ASTSource, dict[str, int]]:
    """The kernel specialised as Triton does at a launch, and the options of the launch."""
    kernel = KERNELS[variant.kernel]
    many = 10**6 if variant.warps > 1 else 1
    how = cut(many, variant.width, 1, variant.dtype.itemsize)
    accumulator = ACCUMULATORS[variant.dtype]
    fixed = {"UNROLL": UNROLL, "ACC": accumulator, "WEIGHTED": False}
    if variant.heads:
        how = cut_heads(many, variant.heads, (variant.width,), variant.dtype.itemsize)
        fixed |= {"UNROLL": how.unroll, "WHOLE": variant.width <= how.cols}
    fixed |= variant.flags
    options = how.options
    fixed |= {k: options.pop(k) for k in ("ROWS", "COLS", "HEADS", "STEP") if k in options}
    fixed = {name: value for name, value in fixed.items() if name in kernel.arg_names}
    scratch = "i32" if variant.kernel == "winner" else str(accumulator)
    types = INDICES | {"scratch": f"*{scratch}"}
    types |= dict.fromkeys(("source_scale", "target_scale", "weight"), f"*{accumulator}")
    rows = ("x", "y", "value", "inner", "outer", "a", "b")
    types |= dict.fromkeys((*rows, *NUMBERS), f"*{NAMES[variant.dtype]}")
    results = {"winner": "*i32", "edge_dot": f"*{accumulator}"}
    types["out"] = results.get(variant.kernel, types["x"])
    types |= dict.fromkeys(("first_op", "last_op", "num_edges", "total", "matrices"), "i32")
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        number = variant.heads if name == "heads" else variant.width
        if name in SIZES and number == 1:
            fixed[name] = 1  # Triton takes an integer argument of 1 for a constant
        signature[name] = "constexpr" if name in fixed else types.get(name, "i32")
        divisible = signature[name][0] == "*" or (name not in types and number % 16 == 0)
        if divisible and name not in fixed:
            attributes[index,] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, fixed, attributes), options


def compile_for(variant: Variant, target: int) -> Compiled:
    """Compiles to machine code for compute capability `target` (80, 90, 100).

    Raises:
        RuntimeError: ptxas or cuobjdump failed.
    """
    source, options = source_of(variant)
    kernel = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    usage = _usage(kernel.asm["cubin"])
    return Compiled(
        variant,
        target,
        usage["REG"],
        usage["STACK"],
        usage["LOCAL"],
        kernel.metadata.shared,
        dict(kernel.asm),
    )


def _usage(cubin: bytes) -> dict[str, int]:
    """What cuobjdump says of the code's resources. LOCAL and STACK hold what was spilled."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name], capture_output=True, text=True
        )
    found = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", done.stdout))
    if done.returncode or len(found) < 3:
        raise RuntimeError(f"cuobjdump failed with {done.returncode}: {done.stdout}{done.stderr}")
    return {key: int(value) for key, value in found.items()}


def table(compiled: list[Compiled]) -> str:
    """For each kernel, dtype and target the largest of each figure, in Markdown."""
    lines = [
        "| kernel | dtype | target | variants | registers | stack | spills | shared memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    key = lambda c: (c.variant.kernel, NAMES[c.variant.dtype], c.target)  # noqa: E731
    for (kernel, dtype, target), group in itertools.groupby(sorted(compiled, key=key), key):
        found = list(group)
        most = [max(getattr(c, f) for c in found) for f in ("registers", "stack", "spills")]
        shared = max(c.shared for c in found)
        lines.append(
            f"| {kernel} | {dtype} | sm_{target} | {len(found)} | "
            + " | ".join(f"{value}" for value in (*most, shared))
            + " |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", type=int, nargs="+", default=[80, 90, 100], metavar="CC")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, metavar="F")
    args = parser.parse_args()
    todo = list(itertools.product(variants(tuple(args.widths)), args.targets))
    bar = tqdm(todo, desc="compiling", file=sys.stderr)
    print(table([compile_for(*item) for item in bar]))
    print(f"\nTriton {triton.__version__}; {UNROLL} rows under way a thread.")


if __name__ == "__main__":
    main()
