"""The CPU kernels on programs of every kind: results, threads, and what they refuse.

Tests with "kernels" in their name also run under each instruction set (test_instruction_sets.py).
"""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import hag_plugin as hp
from hag_plugin.kernels import _cpu
from hag_plugin.reducers import REDUCES

from .. import reference
from ..cases import random_graph
from ..native_programs import CODES, native, random_program, run_native


@pytest.mark.parametrize("seed", range(6))
def test_kernels_run_any_program(seed: int) -> None:
    program = random_program(seed, num_src=50, num_dst=80)
    compiled = native(program)
    for dtype in (torch.float64, torch.float32):
        for width in (1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 33, 64, 100, 129, 200):
            poison = torch.full((50, width), float("nan"), dtype=dtype)
            run_native(program, poison, compiled=compiled)  # scratch is NaN from here on
            x = torch.rand(50, width, dtype=dtype)
            for reduce in _cpu.reducers():
                y = run_native(program, x, reduce, compiled=compiled)
                expected = reference.run_program(program, x, reduce)
                if reduce in ("max", "min"):
                    assert torch.equal(y, expected)
                else:
                    rtol = 1e-12 if dtype == torch.float64 else 1e-5
                    torch.testing.assert_close(y, expected, rtol=rtol, atol=0)


@pytest.mark.parametrize("diagonal", [-1, 1])
def test_kernels_apply_the_diagonal_where_y_is_written(diagonal: int) -> None:
    program = random_program(3, num_src=80, num_dst=80, diagonal=diagonal)
    x = torch.randn(80, 37, dtype=torch.float64)
    expected = reference.run_program(program, x)
    torch.testing.assert_close(run_native(program, x), expected, rtol=1e-12, atol=1e-12)
    if diagonal == 1:
        for reduce in ("max", "min"):
            expected = reference.run_program(program, x, reduce)
            assert torch.equal(run_native(program, x, reduce), expected)
    else:
        with pytest.raises(ValueError, match="can only sum"):
            run_native(program, x, "max")
    s, t = torch.randn(80, dtype=torch.float64), torch.randn(80, dtype=torch.float64)
    y = torch.empty(80, 37, dtype=torch.float64)
    native(program).run(x.data_ptr(), y.data_ptr(), 1, 37, 37, 0, 80, 80, 1, 0, s.data_ptr(),
                        t.data_ptr(), 1)  # fmt: skip
    expected = t[:, None] * reference.run_program(program, x * s[:, None])
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-11)


def test_kernels_convert_half_types_exactly() -> None:
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    copy = random_program(0, num_src=1, num_dst=1)
    copy.tile_ptr, copy.op_ptr = torch.tensor([0, 1]), torch.tensor([0, 1])
    copy.source, copy.target = (torch.zeros(1, dtype=torch.int32) for _ in range(2))
    copy.hub_row, copy.hub_ptr = torch.zeros(0, dtype=torch.int32), torch.tensor([0])
    add = SimpleNamespace(**vars(copy))
    add.num_src, add.op_ptr = 2, torch.tensor([0, 2])
    add.source = torch.tensor([0, 1], dtype=torch.int32)
    for dtype in (torch.float16, torch.bfloat16):
        every = patterns.view(dtype)
        for width in (1, 2, 5, 9, 40, 2**16):
            x = every[torch.randint(0, 2**16, (1, width))] if width < 2**16 else every[None]
            y = run_native(copy, x)
            assert torch.equal(y.isnan(), x.isnan())
            assert torch.equal(y.view(torch.int16)[~x.isnan()], x.view(torch.int16)[~x.isnan()])
            pair = torch.cat([x, every[torch.randint(0, 2**16, (1, width))]])
            expected = pair.float().sum(0, keepdim=True).to(dtype)
            y = run_native(add, pair)
            assert torch.equal(y.isnan(), expected.isnan())
            assert torch.equal(y.nan_to_num(nan=1), expected.nan_to_num(nan=1))


def test_kernels_split_wide_scratch_into_blocks() -> None:
    # A chain of 20,000 intermediates does not fit half of L2 at any width.
    rows = 20_000
    target = torch.arange(rows, dtype=torch.int32)
    program = SimpleNamespace(
        tile_ptr=torch.tensor([0, 2 * rows]),
        op_ptr=torch.cat([torch.tensor([0, 1]), 1 + torch.arange(1, rows) * 2,
                          2 * rows - 1 + torch.arange(1, rows + 1)]),
        source=torch.cat([torch.tensor([0]), torch.stack([~torch.arange(rows - 1),
                          torch.arange(1, rows) % 7], 1).flatten(), ~torch.arange(rows)]).int(),
        target=torch.cat([~target, target]),
        hub_row=torch.zeros(0, dtype=torch.int32), hub_ptr=torch.tensor([0]),
        num_src=7, num_dst=rows, diagonal=0,
    )  # fmt: skip
    for width in (5, 200):
        x = torch.randint(-3, 4, (7, width)).float()
        y = run_native(program, x)
        assert torch.equal(y, x[torch.arange(rows) % 7].cumsum(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [16, 48, 80, 112, 256, 20])
def test_kernels_write_outputs_of_any_size_alike(width: int, dtype: torch.dtype) -> None:
    # Large outputs that have been written before go past the caches, others through them.
    program = random_program(width, num_src=90, num_dst=80, diagonal=1)
    compiled = native(program)
    x = torch.randn(90, width).to(dtype)
    batch = (33 << 20) // (80 * width * dtype.itemsize) + 1
    many = torch.full((batch, 80, width), float("nan"), dtype=dtype)
    for code, reduce in enumerate(_cpu.reducers()):
        expected = run_native(program, x, reduce, compiled=compiled)
        for threads in (1, 2):
            many.fill_(float("nan"))
            compiled.run(x.data_ptr(), many.data_ptr(), batch, width, width, 0, 90, 80,
                         CODES[dtype], code, 0, 0, threads)  # fmt: skip
            assert bool((many == expected).all())


def test_kernels_write_where_lines_do_not_begin() -> None:
    program = random_program(5, num_src=90, num_dst=80)
    compiled = native(program)
    x = torch.randn(90, 64)
    batch = (33 << 20) // (80 * 64 * 4) + 1
    memory = torch.zeros(batch * 80 * 64 + 3)
    compiled.run(x.data_ptr(), memory[3:].data_ptr(), batch, 64, 64, 0, 90, 80, 0, 0, 0, 0, 1)
    expected = run_native(program, x, compiled=compiled)
    assert bool((memory[3:].view(batch, 80, 64) == expected).all())


@pytest.mark.slow
def test_threads_agree_bitwise() -> None:
    if torch.get_num_threads() < 2:
        torch.set_num_threads(2)
    for seed in range(3):
        program = random_program(seed, num_src=500, num_dst=3000)
        x = torch.randn(500, 65)
        one = run_native(program, x)
        for _ in range(5):
            assert torch.equal(run_native(program, x, threads=2), one)
    edges = random_graph(2000, 2000, 30_000)
    hag = hp.build_hag(edges, num_nodes=2000)
    for reduce in REDUCES:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            x = torch.randn(2000, 32, generator=torch.Generator().manual_seed(1)).round(decimals=1)
            y = hp.aggregate(x.requires_grad_(), hag, reduce)
            results.append((y.detach(), *torch.autograd.grad(y.square().sum(), x)))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_python_threads_do_not_disturb_each_other() -> None:
    torch.set_num_threads(2)
    programs = [random_program(seed, num_src=300, num_dst=2000) for seed in (0, 1)]
    inputs = [torch.randn(300, width) for width in (64, 200)]
    expected = [run_native(p, x) for p, x in zip(programs, inputs, strict=True)]
    wrong = []

    def work(i: int) -> None:
        for _ in range(20):
            if not torch.equal(run_native(programs[i], inputs[i], threads=2), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile_ptr": [0, 4]}, "tile_ptr ends with 4, expected 3"),
        ({"tile_ptr": [1, 3]}, r"tile_ptr\[0\] is 1, expected 0"),
        ({"tile_ptr": []}, "tile_ptr is empty"),
        ({"op_ptr": [0, 3, 2, 4]}, r"op_ptr\[2\] is 2, expected at least 3"),
        ({"op_ptr": [0, 2, 4]}, "op_ptr has 3 elements, expected 4"),
        ({"op_ptr": [0, 2, 4, 5]}, "op_ptr ends with 5, expected 4"),
        ({"source": [0, 5, -1, -1]}, r"source\[1\] is row 5 of x"),
        ({"source": [0, -1, -1, -1]}, r"source\[1\] reads scratch row 0"),
        ({"source": [0, 1, -2, -1]}, r"source\[2\] reads scratch row 1"),
        ({"target": [-1, 0, 0]}, "row 0 of y, which was written before"),
        ({"target": [-1, 0, 2]}, r"target\[2\] is 2, expected below"),
        ({"target": [-1, 0, -2]}, "row 1 of y is never written"),
        ({"target": [-9, 0, 1]}, r"target\[0\] is scratch row 8"),
        ({"op_ptr": [0, 0, 3, 4]}, "op 0 has no source"),
        ({"hub_row": [1], "hub_ptr": [0, 1], "target": [-1, 0, 1]}, "written before"),
        ({"hub_row": [2], "hub_ptr": [0, 1], "target": [-1, 0, 2]}, r"hub_row\[0\] is 2"),
        ({"hub_row": [1], "hub_ptr": [0, 0]}, "hub_row|hub 0 has no partial sums"),
        ({"hub_row": [1], "hub_ptr": [0, 2], "target": [-1, 0, 2]}, "partial sum 1 is never"),
        ({"hub_row": [1], "hub_ptr": [0, 9], "target": [-1, 0, 2]}, "9 partial sums"),
        ({"hub_ptr": [0, 1]}, "hub_ptr has 2 elements, expected 1"),
        ({"diagonal": -1, "num_src": 1, "source": [0, 0, -1, -1]}, "diagonal is -1"),
        ({"num_dst": -1}, "num_dst is -1"),
        ({"source": np.zeros(4, np.int64)}, "source has another dtype"),
        ({"tile_ptr": np.zeros((1, 2), np.int64)}, "tile_ptr has 2 dimensions"),
        ({"tile_ptr": np.array([0, 0, 3, 0])[::2]}, "tile_ptr has stride 2"),
    ],
)
def test_a_wrong_program_is_refused(change: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {
        "tile_ptr": [0, 3], "op_ptr": [0, 2, 3, 4], "source": [0, 1, -1, -1],
        "target": [-1, 0, 1], "hub_row": [], "hub_ptr": [0],
    }  # fmt: skip
    numbers = {"num_src": 5, "num_dst": 2, "diagonal": 0}
    _cpu.Program(**as_arrays(fields), **numbers)
    numbers.update({k: v for k, v in change.items() if k in numbers})
    fields.update({k: v for k, v in change.items() if k in fields})
    with pytest.raises(ValueError, match=message):
        _cpu.Program(**as_arrays(fields), **numbers)


def as_arrays(fields: dict[str, Any]) -> dict[str, np.ndarray]:
    wide = ("tile_ptr", "op_ptr", "hub_ptr")
    return {
        k: v if isinstance(v, np.ndarray) else np.array(v, np.int64 if k in wide else np.int32)
        for k, v in fields.items()
    }


def test_run_checks_sizes_at_its_door() -> None:
    program = random_program(0, num_src=5, num_dst=7)
    compiled = native(program)
    x, y = torch.randn(5, 3), torch.empty(7, 3)
    good = [x.data_ptr(), y.data_ptr(), 1, 3, 3, 0, 5, 7, 0, 0, 0, 0, 1]
    compiled.run(*good)
    for position, value, message in (
        (0, 0, "null pointer"),
        (2, -1, "batch -1"),
        (3, -1, "width -1"),
        (4, -1, "strides"),
        (6, 6, "x has 6 rows, expected 5"),
        (7, 6, "y has 6 rows, expected 7"),
        (8, 9, "dtype_code is 9"),
        (9, 9, "reduce_code is 9"),
        (12, 0, "threads is 0"),
    ):
        bad = list(good)
        bad[position] = value
        with pytest.raises(ValueError, match=message):
            compiled.run(*bad)
