"""Errors that a sanitizer must report: calls of the native module that lie about what they pass.

    python -m tests.sanitizers.planted NAME

They reach the kernels of the instruction set in use: what finds these would find one of ours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from hag_plugin.kernels import _cpu

from ..native_programs import native, random_program

ROWS, WIDTH = 2000, 64


def run(x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """A program over ROWS rows of x, whatever x has."""
    compiled = native(random_program(0, num_src=ROWS, num_dst=ROWS))
    sizes = 1, WIDTH, WIDTH, 0, ROWS, ROWS, 0, 0, 0, 0, 1
    return lambda: compiled.run(x.data_ptr(), y.data_ptr(), *sizes)


def reads_beyond_x() -> None:
    run(torch.ones(ROWS - 1, WIDTH), torch.empty(ROWS, WIDTH))()


def writes_beyond_y() -> None:
    run(torch.ones(ROWS, WIDTH), torch.empty(ROWS - 1, WIDTH))()


def overflows() -> None:
    largest, ends = np.array([np.iinfo(np.int64).max]), np.array([0, 1])
    _cpu.add_to_stretches(largest.ctypes.data, 1, True, ends, np.array([1]))


def writes_at_once() -> None:
    """Two Python threads into one array, with no lock."""
    call = run(torch.ones(ROWS, WIDTH), torch.empty(ROWS, WIDTH))
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(lambda: [call() for _ in range(20)]) for _ in range(2)]:
            done.result()


# name: the error, the sanitizer, and what its report says
PLANTED: dict[str, tuple[Callable[[], None], str, str]] = {
    "read": (reads_beyond_x, "address", "heap-buffer-overflow"),
    "write": (writes_beyond_y, "address", "heap-buffer-overflow"),
    "overflow": (overflows, "address", "signed integer overflow"),
    "race": (writes_at_once, "thread", "data race"),
}

if __name__ == "__main__":
    PLANTED[sys.argv[1]][0]()
