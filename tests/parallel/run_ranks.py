"""Ranks for tests: threads of this process, for many of them; or processes that use gloo.

A case is a function of the rank that torch.distributed is initialised for; what it returns comes
back in the order of ranks. One that fails, or takes too long, fails the test.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import pickle
import runpy
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[2]
LIMIT = 120.0  # seconds


# Threads --------------------------------------------------------------------------------------


def run_threads(size: int, case: Callable[[int], Any], limit: float = LIMIT) -> list[Any]:
    """Runs a case on `size` threads that torch takes for ranks.

    Collectives copy between the threads' tensors; DTensor and autograd work as with processes.
    Random numbers of `torch.rand` come from one generator for all: draw them before.
    """
    from torch.testing._internal.distributed.multi_threaded_pg import (
        ProcessLocalGroup,
    )

    results: list[Any] = [None] * size
    failures: list[tuple[int, BaseException]] = []

    def work(rank: int, store: Any) -> None:
        try:
            dist.init_process_group("threaded", rank=rank, world_size=size, store=store)
            results[rank] = case(rank)
        except BaseException as e:  # SystemExit is how others are ended
            if isinstance(e, Exception):
                failures.append((rank, e))
            ProcessLocalGroup.exception_handle(e)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    with _threaded_world():
        store = dist.HashStore()
        threads = [
            threading.Thread(target=work, args=(rank, store), daemon=True) for rank in range(size)
        ]
        for thread in threads:
            thread.start()
        end = time.monotonic() + limit
        while any(t.is_alive() for t in threads) and not failures and time.monotonic() < end:
            for thread in threads:
                thread.join(0.05)
        for thread in threads:
            thread.join(5 if failures else 0)
        late = [rank for rank, thread in enumerate(threads) if thread.is_alive()]
        if late:
            ProcessLocalGroup.exception_handle(TimeoutError())
            for thread in threads:
                thread.join(5)
        ProcessLocalGroup.reset()
    if failures:
        rank, error = failures[0]
        raise AssertionError(f"rank {rank} of {size} failed: {error!r}") from error
    if late:
        raise AssertionError(f"ranks {late} of {size} took longer than {limit} s")
    return results


@contextmanager
def _threaded_world() -> Iterator[None]:
    from torch.testing._internal.distributed import multi_threaded_pg

    isolate = torch._C._distributed_c10d._set_thread_isolation_mode
    isolate(True)
    multi_threaded_pg._install_threaded_pg()
    try:
        yield
    finally:
        multi_threaded_pg._uninstall_threaded_pg()
        isolate(False)


# Processes ------------------------------------------------------------------------------------

# What cases import: one process has, and the ranks of every test are forked from it.
PRELOADED = [
    "hag_plugin.parallel",
    "hag_plugin.pyg",
    "hypothesis",
    "pytest",
    "scipy.sparse",
    "torch.distributed.checkpoint",
]


def run_processes(
    size: int,
    case: Callable[..., Any],
    *args: Any,
    limit: float = LIMIT,
    timeout: float = 60.0,
) -> list[Any]:
    """Runs a case `case(rank, *args)` in `size` processes with gloo; put much into one.

    Args:
        size: processes; one thread each.
        case: of a test module's top level.
        args: can be pickled.
        limit: seconds until all are ended.
        timeout: seconds until a collective gives up.
    """
    outcomes = launch(size, case, *args, limit=limit, timeout=timeout)
    for rank, outcome in enumerate(outcomes):
        if outcome[0] != "returned":
            raise AssertionError(f"rank {rank} of {size} {outcome[0]}:\n{outcome[1]}")
    return [value for _, value in outcomes]


def launch(
    size: int,
    case: Callable[..., Any],
    *args: Any,
    limit: float = LIMIT,
    timeout: float = 60.0,
) -> list[tuple[str, Any]]:
    """As `run_processes`, but hands out how each ended: `("returned", value)`, `("raised", text)`,
    `("died", what it wrote to stderr)` or `("took too long", the same)`.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = sys.modules[case.__module__].__file__
        job = case.__module__, source, case.__qualname__, args, size, timeout
        (folder / "job").write_bytes(pickle.dumps(job))
        # This file by its path: pytest may have given it a name that nobody else can import.
        processes = [
            _server().Process(target=runpy.run_path, args=(__file__, {"JOB": (folder, rank)}))
            for rank in range(size)
        ]
        end = time.monotonic() + limit
        outcomes = []
        try:
            for process in processes:
                process.start()
            for rank, process in enumerate(processes):
                process.join(max(end - time.monotonic(), 0.1))
                how = "took too long" if process.is_alive() else "died"
                result = folder / f"result{rank}"
                if result.exists():
                    outcomes.append(pickle.loads(result.read_bytes()))
                else:
                    said = folder / f"stderr{rank}"
                    outcomes.append(
                        (how, said.read_text(errors="replace") if said.exists() else "")
                    )
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()
                    process.join()
    return outcomes


@cache
def _server() -> Any:
    """What forks processes; it has imported `PRELOADED`, and runs nothing itself."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    given = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if sys.platform == "linux":
        given["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    with mock.patch.dict(os.environ, given):
        forkserver.ensure_running()
    return context


def _work(folder: Path, rank: int) -> None:
    """One process of `launch`."""
    with (folder / f"stderr{rank}").open("wb") as stderr:
        os.dup2(stderr.fileno(), 2)
    module, source, name, args, size, timeout = pickle.loads((folder / "job").read_bytes())
    outcome: tuple[str, Any]
    try:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/meet",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout),
        )
        case = getattr(_load(module, source), name)
        warnings.simplefilter("error")  # as pytest has it; what was imported may warn
        outcome = ("returned", case(rank, *args))
    except Exception:
        outcome = ("raised", traceback.format_exc())
    written = folder / f"part{rank}"
    written.write_bytes(pickle.dumps(outcome))
    written.rename(folder / f"result{rank}")
    if outcome[0] == "returned":
        dist.destroy_process_group()


def _load(name: str, source: str) -> Any:
    """A test module, under the name that pytest gave it, after the packages that it is in."""
    *packages, _ = name.split(".")
    for depth in range(len(packages)):
        package = ".".join(packages[: depth + 1])
        folder = Path(source).parents[len(packages) - 1 - depth]
        if package not in sys.modules:
            _execute(package, folder / "__init__.py", [str(folder)])
    return _execute(name, Path(source))


def _execute(name: str, source: Path, folders: list[str] | None = None) -> Any:
    spec = importlib.util.spec_from_file_location(name, source, submodule_search_locations=folders)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if "JOB" in globals():
    _work(*globals()["JOB"])
