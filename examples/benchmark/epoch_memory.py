"""What training in batches holds of memory: by how much a process grows that does nothing else."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from hag_plugin.demo import peak_memory

Call = Callable[[], object]


def growth(make: Callable[..., tuple[Call, Call]], *arguments: Any) -> int | None:
    """Bytes by which a new process grows; None where the system does not tell.

    Args:
        make: gives what loads all code first, and what is measured; found by name in the process.
        arguments: what `make` takes.

    Raises:
        RuntimeError: the process ended without an answer.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(
        target=_measure, args=(theirs, torch.get_num_threads(), make, *arguments)
    )
    child.start()
    theirs.close()
    try:
        found: int | None = ours.recv()
    except EOFError:
        child.join()
        raise RuntimeError(f"what was measured ended with {child.exitcode}") from None
    child.join()
    return found


def _measure(
    connection: Connection, threads: int, make: Callable[..., tuple[Call, Call]], *arguments: Any
) -> None:
    torch.set_num_threads(threads)
    warm_up, call = make(*arguments)
    warm_up()
    gc.collect()
    if sys.platform == "linux":  # what was freed is given back, and not there to be used again
        ctypes.CDLL(None).malloc_trim(0)
    before = peak_memory.reset()
    call()
    most = peak_memory.peak()
    connection.send(None if before is None or most is None else most - before)
