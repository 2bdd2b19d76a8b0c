"""Ranks for tests: threads of this process, for many of them; or processes that use gloo.

A case is a function of the rank that torch.distributed is initialised for; what it returns comes
back in the order of ranks. One that fails, or takes too long, fails the test.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

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
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job"
        source = sys.modules[case.__module__].__file__
        job.write_bytes(
            pickle.dumps((case.__module__, source, case.__qualname__, args, size, timeout))
        )
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        if sys.platform == "linux":
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
        command = [sys.executable, str(Path(__file__)), folder]
        processes = []
        for rank in range(size):
            with (Path(folder) / f"stderr{rank}").open("wb") as stderr:
                processes.append(
                    subprocess.Popen([*command, str(rank)], stderr=stderr, env=environment)
                )
        end = time.monotonic() + limit
        outcomes = []
        try:
            for rank, process in enumerate(processes):
                try:
                    process.wait(max(end - time.monotonic(), 0.1))
                    how = "died"
                except subprocess.TimeoutExpired:
                    how = "took too long"
                result = Path(folder) / f"result{rank}"
                if result.exists():
                    outcomes.append(pickle.loads(result.read_bytes()))
                else:
                    said = (Path(folder) / f"stderr{rank}").read_text(errors="replace")
                    outcomes.append((how, said))
        finally:
            for process in processes:
                process.kill()
                process.wait()
    return outcomes


def _work(folder: Path, rank: int) -> None:
    """One process of `launch`."""
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


if __name__ == "__main__":
    _work(Path(sys.argv[1]), int(sys.argv[2]))
