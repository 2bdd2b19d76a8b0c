"""What the torch operators run where features are on a GPU: schedules on Triton kernels."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from hag_plugin.hag import HAG
from hag_plugin.program import Program, SelfLoops


def launches() -> ModuleType:
    """The Triton kernels, imported when features on a GPU first need them.

    Raises:
        RuntimeError: Triton is not installed.
    """
    try:
        from hag_plugin.kernels.triton import launch
    except ImportError as e:
        raise RuntimeError(
            "features on a GPU need Triton, which could not be imported: expected the copy that "
            f"comes with torch's CUDA build, or `pip install triton` ({e})"
        ) from e
    module: ModuleType = launch
    return module


def as_matrices(x: Tensor) -> Tensor:
    """`[*, N, F]` as `[B, N, F]` whose features lie side by side, without a copy if they do."""
    x = x.unsqueeze(0) if x.dim() == 2 else x.flatten(0, -3)
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def run_program(
    program: Program,
    x: Tensor,
    y: Tensor,
    reduce: str,
    source_scale: Tensor | None = None,
    target_scale: Tensor | None = None,
) -> None:
    """Runs a program on `x` `[*, num_src, F]`; every row of a contiguous `y` is written."""
    y = as_matrices(y)
    scales = source_scale, target_scale
    launches().run_schedule(program.schedule, as_matrices(x), y, reduce, *scales)


def masked_sum(
    hag: HAG, self_loops: SelfLoops, value: Tensor | None, inner: Tensor, outer: Tensor
) -> Tensor:
    """`out_i = sum over j -> i of [inner_j == outer_i] * value_j`, contiguous arguments."""
    plain = hag.plain_program(self_loops).schedule
    value = None if value is None else as_matrices(value)
    out: Tensor = launches().masked_sum(plain, value, as_matrices(inner), as_matrices(outer))
    return out.view(outer.shape)


def arg_first(hag: HAG, self_loops: SelfLoops, x: Tensor, y: Tensor) -> Tensor:
    """The smallest source that holds the extremum `y`, int64, -1 where there is none."""
    plain = hag.plain_program(self_loops).schedule
    first: Tensor = launches().arg_first(plain, as_matrices(x), as_matrices(y))
    return first.view(y.shape)
