"""Threads: shared with torch, balanced on graphs with hubs, safe in forks and in Python threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

import hag_plugin as hp
from hag_plugin.data import generators
from hag_plugin.hag.program import Program

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def run_python(code: str, settings: dict[str, str] | None = None) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | (settings or {}),
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@linux
def test_torch_and_hag_plugin_take_turns() -> None:
    """A thousand times, on two threads, without a wrong result and with one OpenMP runtime."""
    code = """
import torch, hag_plugin as hp
torch.set_num_threads(2)
hag = hp.build_hag(torch.randint(0, 3000, (2, 60_000)), num_nodes=3000)
x, a = torch.randn(3000, 32), torch.randn(200, 200)
y, b = hp.aggregate(x, hag), a @ a
wrong = 0
for _ in range(1000):
    wrong += not torch.equal(a @ a, b)
    wrong += not torch.equal(hp.aggregate(x, hag), y)
words = open("/proc/self/maps").read().split()
runtimes = {w for w in words if any(n in w for n in ("libgomp", "libiomp", "libomp"))}
print(wrong, len(runtimes), torch.get_num_threads())
"""
    assert run_python(code) == ["0", "1", "2"]


@linux
def test_one_openmp_runtime() -> None:
    code = """
import hag_plugin as hp, torch
hag = hp.build_hag(torch.randint(0, 2000, (2, 40000)), num_nodes=2000)
hp.aggregate(torch.randn(2000, 64), hag)
lines = open("/proc/self/maps").read().split()
print(len({w for w in lines if any(n in w for n in ("libgomp", "libiomp", "libomp"))}))
"""
    assert run_python(code) == ["1"]


@pytest.mark.parametrize("setting", ["OMP_THREAD_LIMIT=2", "OMP_DYNAMIC=true"])
def test_fewer_threads_than_asked_for_do_all_the_work(setting: str) -> None:
    code = """
import torch, hag_plugin as hp
edges = torch.randint(0, 1000, (2, 1_000_000))
def results(threads):
    torch.set_num_threads(threads)
    hag = hp.build_hag(edges, num_nodes=1000, method="none")
    hag.check(edges)
    return *hag.transpose().program().arrays, hp.aggregate(torch.ones(1000, 64), hag)
print(all(map(torch.equal, results(1), results(5))))
"""
    name, _, value = setting.partition("=")
    assert run_python(code, {name: value}) == ["True"]


# Balance ----------------------------------------------------------------------------------------


def tile_work(program: Program) -> np.ndarray:
    """Rows that each tile reads and writes."""
    ends = program.op_ptr[program.tile_ptr].numpy()
    work: np.ndarray = np.diff(ends) + np.diff(program.tile_ptr.numpy())
    return work


def share_of_busiest(work: np.ndarray, threads: int) -> float:
    """The most work of a thread, in all work, where tiles go longest first to who is free."""
    load = np.zeros(threads)
    for each in np.sort(work)[::-1]:
        load[load.argmin()] += each
    return float(load.max() / load.sum())


def star(n: int) -> Tensor:
    return torch.stack([torch.arange(1, n), torch.zeros(n - 1, dtype=torch.long)])


def power_law() -> Tensor:
    return torch.from_numpy(generators.power_law(20_000, degree=20, exponent=1.9))


@pytest.mark.parametrize("method", ["auto", "none"])
@pytest.mark.parametrize("graph", [star(50_000), power_law()], ids=["star", "power law"])
def test_hubs_leave_work_for_every_thread(graph: Tensor, method: str) -> None:
    n = int(graph.max()) + 1
    hag = hp.build_hag(graph, num_nodes=n, method=method)
    hag.check(graph)
    program = hag.program()
    degree = hag.degree()
    hubs = program.hub_row.long()
    # Exactly the long rows are split, into parts of bounded length, tiles of their own.
    assert hubs.tolist() == (degree > 4096).nonzero().flatten().tolist()
    assert len(hubs) > 0
    partial = (program.target >= n).nonzero().flatten()
    assert len(partial) == int(program.hub_ptr[-1])
    assert program.op_ptr.diff()[partial].max() <= 2048
    assert int(program.op_ptr.diff()[partial].sum()) == int(degree[hubs].sum())
    assert set(partial.tolist()) <= set(program.tile_ptr.tolist())
    assert share_of_busiest(tile_work(program), 2) < 0.55


def test_plans_do_not_depend_on_threads() -> None:
    graph = power_law()
    programs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        programs.append(hp.build_hag(graph, num_nodes=20_000).program("add"))
    assert all(map(torch.equal, programs[0].arrays, programs[1].arrays))


# Forks ------------------------------------------------------------------------------------------


@forks
def test_forked_workers_build_and_aggregate() -> None:
    """A loader whose workers are forked after the pool of threads was there, two at a time."""
    code = """
import torch, hag_plugin as hp
torch.set_num_threads(2)
x = torch.randn(3000, 8)
graphs = [torch.randint(0, 3000, (2, 50_000)) for _ in range(4)]
class Graphs(torch.utils.data.Dataset):
    def __len__(self): return len(graphs)
    def __getitem__(self, i):
        hag = hp.build_hag(graphs[i], num_nodes=3000, self_loops="add")
        return hag, hp.aggregate(x, hag, self_loops="add")
expected = [Graphs()[i] for i in range(4)]  # in this process, on two threads
loader = torch.utils.data.DataLoader(
    Graphs(), batch_size=None, num_workers=2, multiprocessing_context="fork")
for (hag, y), (want, z) in zip(loader, expected):
    pairs = zip(hag.program("add").arrays, want.program("add").arrays)
    print(all(torch.equal(a, b) for a, b in pairs) and torch.equal(y, z))
print(torch.equal(hp.aggregate(x, expected[0][0], self_loops="add"), expected[0][1]))
"""
    assert run_python(code) == ["True"] * 5


@forks
def test_a_forked_child_aggregates_alone() -> None:
    code = """
import os, torch, hag_plugin as hp
torch.set_num_threads(2)
edges = torch.randint(0, 2000, (2, 40000))
hag = hp.build_hag(edges, num_nodes=2000)
x = torch.randn(2000, 64)
y = hp.aggregate(x, hag)
child = os.fork()
if child == 0:  # torch's own parallel operators would hang here, so numpy compares
    os._exit(0 if (hp.aggregate(x, hag).numpy() == y.numpy()).all() else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), torch.equal(hp.aggregate(x, hag), y))
"""
    assert run_python(code) == ["0", "True"]


@forks
def test_a_forked_child_sums_weighted_alone() -> None:
    code = """
import os, torch, hag_plugin as hp
from hag_plugin.ops.weights import weighted_aggregate
torch.set_num_threads(2)
hag = hp.build_hag(torch.randint(0, 2000, (2, 40000)), num_nodes=2000, method="none")
x, weight = torch.randn(2000, 64), torch.randn(40000)
y = weighted_aggregate(x, hag, weight)
child = os.fork()
if child == 0:  # torch's own parallel operators would hang here, so numpy compares
    os._exit(0 if (weighted_aggregate(x, hag, weight).numpy() == y.numpy()).all() else 3)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(status, torch.equal(weighted_aggregate(x, hag, weight), y))
"""
    assert run_python(code) == ["0", "True"]


# Python threads ---------------------------------------------------------------------------------


@pytest.fixture
def patient_interpreter() -> Iterator[None]:
    """Who holds the interpreter's lock keeps it until he gives it up."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60.0)
    yield
    sys.setswitchinterval(interval)


def test_the_lock_of_the_interpreter_is_released(patient_interpreter: None) -> None:
    """Others run while a kernel does: they could not before it ends, if it kept the lock."""
    torch.set_num_threads(1)
    program = hp.build_hag(power_law(), num_nodes=20_000, method="none").program()
    x, y = torch.randn(20_000, 64), torch.zeros(20_000, 64)
    arguments = (x.data_ptr(), y.data_ptr(), 1, 64, 64, 0, 20_000, 20_000, 0, 0, 0, 0, 1)
    compiled = program.native
    ticks, seen, done = [0], [], threading.Event()

    def work() -> None:
        before = ticks[0]
        for _ in range(10):
            compiled.run(*arguments)
        seen.append(ticks[0] - before)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not done.is_set():
        ticks[0] += 1
        time.sleep(0)  # gives the lock up
    thread.join()
    assert seen[0] > 0


def test_python_threads_search_and_aggregate_at_once() -> None:
    """Different graphs, and one HAG whose programs several threads ask for first."""
    torch.set_num_threads(2)
    graphs = [torch.randint(0, 2000, (2, 30_000 + 1000 * i)) for i in range(4)]
    shared = hp.build_hag(graphs[0], num_nodes=2000, method="none")
    shared = hp.HAG(shared.row_ptr, shared.col, 2000)  # no program yet
    x = torch.randn(2000, 33)

    def work(i: int) -> list[Tensor]:
        hag = hp.build_hag(graphs[i % 4], num_nodes=2000)
        found = [hp.aggregate(x, hag) for _ in range(5)]
        found.append(hp.aggregate(x, shared, self_loops="add"))
        return [*found, *shared.program("add").arrays]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(work, range(8)))
    for i, found in enumerate(together):
        assert all(map(torch.equal, found, work(i)))
        assert found[-1] is together[0][-1]  # searched once
