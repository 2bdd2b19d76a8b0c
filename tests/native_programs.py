"""Programs for the CPU kernels, made at random, and a way to run them past torch's operators."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hag_plugin.kernels import _cpu

CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def native(program: Any) -> Any:
    arrays = [a.numpy() for a in (program.tile_ptr, program.op_ptr, program.source, program.target,
                                  program.hub_row, program.hub_ptr)]  # fmt: skip
    return _cpu.Program(*arrays, program.num_src, program.num_dst, program.diagonal)


def run_native(
    program: Any, x: Tensor, reduce: str = "sum", threads: int = 1, compiled: Any = None
) -> Tensor:
    y = torch.empty(program.num_dst, x.shape[1], dtype=x.dtype)
    (compiled or native(program)).run(
        x.data_ptr(), y.data_ptr(), 1, x.shape[1], x.stride(0), 0, x.shape[0], program.num_dst,
        CODES[x.dtype], _cpu.reducers().index(reduce), 0, 0, threads,
    )  # fmt: skip
    return y


def random_program(seed: int, *, num_src: int, num_dst: int, diagonal: int = 0) -> SimpleNamespace:
    """Tiles with several levels of scratch, copies of scratch rows, empty rows and hubs."""
    rng = np.random.default_rng(seed)
    is_hub = rng.random(num_dst) < 0.1
    hub_row = np.flatnonzero(is_hub)
    hub_ptr = np.concatenate([[0], np.cumsum(rng.integers(1, 5, len(hub_row)))])
    targets = np.concatenate([np.flatnonzero(~is_hub), num_dst + np.arange(hub_ptr[-1])])
    rng.shuffle(targets)
    tile_ptr, op_ptr, source, target = [0], [0], [], []
    while len(targets):
        mine, targets = np.split(targets, [min(len(targets), int(rng.integers(1, 20)))])
        written = 0

        def sources(least: int, written_: int) -> list[int]:
            count = int(rng.integers(least, 7))
            from_scratch = rng.random(count) < 0.5 if written_ else np.zeros(count, bool)
            rows = np.where(
                from_scratch, ~rng.integers(0, max(written_, 1), count),
                rng.integers(0, num_src, count),
            )  # fmt: skip
            return rows.tolist()

        for row in mine.tolist():
            for _ in range(int(rng.integers(0, 3))):
                source.append(sources(1, written))
                target.append(~written)
                written += 1
            if written and rng.random() < 0.4:  # a copy of the row just written
                source.append([~(written - 1)])
            else:
                source.append(sources(0 if row < num_dst else 1, written))
            target.append(row)
        tile_ptr.append(len(target))
    op_ptr = np.concatenate([[0], np.cumsum([len(s) for s in source])])
    return SimpleNamespace(
        tile_ptr=torch.tensor(tile_ptr),
        op_ptr=torch.tensor(op_ptr),
        source=torch.tensor([s for row in source for s in row], dtype=torch.int32),
        target=torch.tensor(target, dtype=torch.int32),
        hub_row=torch.tensor(hub_row, dtype=torch.int32),
        hub_ptr=torch.tensor(hub_ptr),
        num_src=num_src,
        num_dst=num_dst,
        diagonal=diagonal,
    )
