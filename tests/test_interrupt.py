"""Ctrl-C: every long call ends early, leaves nothing half done, and then succeeds when repeated.

A signal's handler may raise only where Python runs. Here a timer sends one while native code does.
"""

from __future__ import annotations

import dis
import itertools
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tqdm import tqdm

import hag_plugin as hp
from hag_plugin import files
from hag_plugin.data import generators
from hag_plugin.hag import calibration, cost
from hag_plugin.hag.gpu.schedule import make_schedule
from hag_plugin.hag.graph import canonical_graph
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import METHODS, Options
from hag_plugin.kernels import _cpu
from hag_plugin.ops import weights
from hag_plugin.parallel.graphs.store import folder as folders

pytestmark = [
    pytest.mark.slow,  # they wait for signals
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs signal.setitimer"),
    # A signal that comes in a __del__, or in what a weak reference calls, is reported as this.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

# What runs for longer than this after a signal was not listening. Work that is not interrupted is
# asked for again after 0.05 s, so that machines under load do not matter.
LONG = 1.0


@pytest.fixture
def interrupt() -> Iterator[Callable[[float], None]]:
    """Sends a signal after so many seconds, whose handler is that of Ctrl-C."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield partial(signal.setitimer, signal.ITIMER_REAL)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


# Native calls ---------------------------------------------------------------------------------


class Graph:
    """A graph that no native function is done with in no time, and what they take."""

    def __init__(self) -> None:
        nodes, rng = 60_000, np.random.default_rng(0)
        self.nodes = nodes
        self.edges = rng.integers(0, nodes, (2, 1_200_000))
        self.csr = canonical_graph(torch.from_numpy(self.edges), nodes, nodes)
        self.graph = (*self.csr, nodes)
        targets = np.repeat(np.arange(nodes), np.diff(self.csr[0]))
        self.sorted = np.stack([self.csr[1].astype(np.int64), targets])
        self.plain = _cpu.plain_program(*self.graph, "", False)
        self.program = _cpu.Program(*self.plain, nodes, nodes, 0)
        both = np.concatenate([self.edges, self.edges[::-1]], axis=1)
        self.symmetric = canonical_graph(torch.from_numpy(both), nodes, nodes)
        # Nothing is shared here: the search must not see that at once.
        self.prices = asdict(replace(cost.prices(64), worth_it=math.inf))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return Graph()


def star(nodes: int = 2_000_000) -> np.ndarray:
    """One row, which is sorted at once."""
    leaves = np.random.default_rng(0).permutation(nodes)
    return np.stack([leaves, np.zeros_like(leaves)])


def _one(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """Where the edges of the only graph of a set start and end, and its nodes."""
    return np.array([0, graph.edges.shape[1]]), np.array([graph.nodes])


def _set(graph: Graph) -> _cpu.GraphSet:
    graphs = _cpu.GraphSet(*graph.edges, *_one(graph), 1)
    graphs.search("", False, False, **graph.prices, threads=1)
    return graphs


# All that takes a graph. The others are kernels, or count nothing.
CALLS: dict[str, Callable[[Graph], Any]] = {
    "build_csr": lambda g: partial(_cpu.build_csr, *g.edges, g.nodes, g.nodes),
    "build_csr with loops": lambda g: partial(
        _cpu.build_csr, *g.edges, g.nodes, g.nodes, True, 1, g.nodes
    ),
    "build_csr of a star": lambda g: partial(_cpu.build_csr, *star(), 2_000_000, 1),
    "transpose_csr": lambda g: partial(_cpu.transpose_csr, *g.graph),
    "reversed_order": lambda g: partial(_cpu.reversed_order, *g.graph),
    "edge_hash": lambda g: partial(_cpu.edge_hash, *g.edges),
    "is_in_order": lambda g: partial(_cpu.is_in_order, *g.sorted, *g.csr),
    "write_edges": lambda g: partial(_cpu.write_edges, *g.csr, *(e.ctypes.data for e in g.sorted)),
    "add_to_stretches": lambda g: partial(
        _cpu.add_to_stretches, g.edges.ctypes.data, 0, True, g.csr[0], np.zeros(g.nodes, np.int64)
    ),
    "is_symmetric": lambda g: partial(_cpu.is_symmetric, *g.symmetric),
    "has_duplicates": lambda g: partial(_cpu.has_duplicates, *g.csr),
    "count_self_loops": lambda g: partial(_cpu.count_self_loops, *g.csr),
    "check_csr": lambda g: partial(_cpu.check_csr, *g.graph),
    "plain_program": lambda g: partial(_cpu.plain_program, *g.graph, "", False),
    "search_program": lambda g: partial(
        _cpu.search_program, *g.graph, "", False, True, **g.prices, threads=1
    ),
    "search_program on two threads": lambda g: partial(
        _cpu.search_program, *g.graph, "", False, True, **g.prices, threads=2
    ),
    "greedy_program": lambda g: partial(_cpu.greedy_program, *g.graph, "", False, 10_000, 1),
    "greedy_program on two threads": lambda g: partial(
        _cpu.greedy_program, *g.graph, "", False, 10_000, 2
    ),
    "count_reads": lambda g: g.program.count_reads,
    "check_program": lambda g: partial(_cpu.check_program, g.program, *g.csr, "", False, 1),
    "check_program on two threads": lambda g: partial(
        _cpu.check_program, g.program, *g.csr, "", False, 2
    ),
    "factorise": lambda g: partial(
        _cpu.factorise, *g.edges, np.ones(g.edges.shape[1]), g.nodes, g.nodes
    ),
    "edge_slots": lambda g: partial(_cpu.edge_slots, *g.edges, *g.graph),
    "concatenate": lambda g: partial(_cpu.concatenate, [g.program] * 4),
    "Program": lambda g: partial(_cpu.Program, *g.plain, g.nodes, g.nodes, 0),
    "csr_hash": lambda g: partial(_cpu.csr_hash, *g.graph),
    "GraphSet": lambda g: partial(_cpu.GraphSet, *g.edges, *_one(g), 1),
    "gather": lambda g: partial(_cpu.gather, [_set(g)], [0, 0]),
    "batch_graphs": lambda g: partial(_cpu.batch_graphs, [_set(g)], [0] * 4),
    "batch_programs": lambda g: partial(_cpu.batch_programs, [_set(g)], [0] * 4, "", False),
}
KERNELS = {
    *("masked_sum", "add_to_winners", "weighted_sum", "edge_dot", "advise_huge_pages"),
    *("attend", "attend_backward", "head_dot"),
    *("instruction_set", "instruction_sets", "checksum", "reducers", "rows_alike"),
    *("second_cache_bytes", "last_cache_bytes"),
}


def test_every_native_function_is_here() -> None:
    names = {n for n in dir(_cpu) if not n.startswith("_") and callable(getattr(_cpu, n))}
    assert names | {"count_reads"} == {name.split()[0] for name in CALLS} | KERNELS  # a method


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("after", [0.01, 0.15])
def test_native_calls_listen(
    name: str, after: float, graph: Graph, interrupt: Callable[[float], None]
) -> None:
    call = CALLS[name](graph)
    finished: list[Any] = []
    start = time.perf_counter()
    try:
        interrupt(after)
        # No bytecode runs in between, where a handler that had to wait for the call would run.
        finished.extend(itertools.starmap(call, [()]))
        interrupt(0)
    except KeyboardInterrupt:
        pass
    seconds = time.perf_counter() - start - after
    assert not finished or seconds < LONG, f"ran on for {seconds} s"
    if name.startswith(("search", "greedy")):
        assert not finished  # these take many times as long


def test_handlers_that_do_not_raise_are_called_and_change_nothing(graph: Graph) -> None:
    calls = []
    before = signal.signal(signal.SIGALRM, lambda *_: calls.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        found: list[Any] = []
        seen = []
        search = CALLS["search_program on two threads"](graph)
        found.extend(itertools.starmap(search, [()]))
        seen.append(len(calls))
        signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen[0] > 3  # during the search, not once after it
    assert all(map(np.array_equal, found[0][0], search()[0]))


def test_a_signal_is_handled_in_the_main_thread_only(
    graph: Graph, interrupt: Callable[[float], None]
) -> None:
    """A search in another thread goes on, and comes to the same."""
    search = CALLS["search_program on two threads"](graph)
    found: list[Any] = []
    done = threading.Event()

    def work() -> None:
        found.append(search())
        done.set()

    threading.Thread(target=work).start()
    interrupted(interrupt, 0.05, lambda: done.wait(60))  # well before the search ends, mostly
    assert done.wait(60)
    assert all(map(np.array_equal, found[0][0], search()[0]))


def test_what_a_bar_raises_comes_out(graph: Graph) -> None:
    shares: list[float] = []

    def report(share: float) -> None:
        shares.append(share)
        if len(shares) == 3:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        CALLS["search_program on two threads"](graph)(progress=report)
    assert len(shares) == 3
    assert all(0.0 <= share <= 1.0 for share in shares)


# What people call -----------------------------------------------------------------------------


NODES = 30_000


@pytest.fixture(scope="module")
def edges() -> torch.Tensor:
    """Cliques that overlap: a search is not given up, and takes a good part of a second."""
    groups = np.random.default_rng(0).integers(0, NODES, (1_500, 24))
    pairs = np.stack([np.repeat(groups, 24, axis=1).ravel(), np.tile(groups, (1, 24)).ravel()])
    return torch.from_numpy(np.concatenate([pairs, [[NODES - 1], [0]]], 1))


def interrupted(
    interrupt: Callable[[float], None], seconds: float, call: Callable[[], Any]
) -> None:
    """Makes a call again and again, until it is interrupted.

    What a handler raises while Python collects garbage is lost, as Python says: then another
    signal is sent.
    """
    while True:
        try:
            interrupt(seconds)
            until = time.perf_counter() + seconds + LONG
            while time.perf_counter() < until:
                call()
        except KeyboardInterrupt:
            return


def bare(hag: HAG, method: str) -> HAG:
    """A HAG without a program yet."""
    return HAG(hag.row_ptr, hag.col, hag.num_src, options=Options(method=method))


MOMENTS = (0.003, 0.03, 0.2)


@pytest.mark.parametrize("seconds", MOMENTS)
@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_build_can_be_interrupted_and_made_again(
    method: str,
    progress: bool | None,
    seconds: float,
    edges: torch.Tensor,
    interrupt: Callable[[float], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    hag = bare(hp.build_hag(edges, method="none"), method)
    interrupted(interrupt, seconds, lambda: hag.program(progress=progress))
    assert not tqdm._instances  # no bar is left
    with ThreadPoolExecutor(1) as pool:  # nobody else's lock is held
        pool.submit(lambda: hag.program("add") if method == "none" else None).result(timeout=60)
    if method != "greedy" and progress is False:
        hag.check(edges)


def test_a_build_of_every_phase_leaves_nothing_half_done(
    edges: torch.Tensor, interrupt: Callable[[float], None]
) -> None:
    """One HAG, interrupted at twenty moments of its search: then it is searched as ever."""
    hag = bare(hp.build_hag(edges, method="none"), "auto")
    start = time.perf_counter()
    expected = bare(hag, "auto").program()
    whole = time.perf_counter() - start

    def search() -> None:
        hag._programs.clear()
        hag.program(progress=False)

    for moment in np.linspace(0.05, 0.8, 4):
        interrupted(interrupt, moment * whole, search)
    hag._programs.clear()
    assert all(map(torch.equal, hag.program().arrays, expected.arrays))
    hag.check(edges)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("interrupt")


@pytest.fixture(scope="module")
def built(edges: torch.Tensor, folder: Path) -> HAG:
    hag = hp.build_hag(edges)
    hag.save(folder / "kept.npz")
    return hag


# What is called, with the edges, their HAG and a folder that holds it as "kept.npz".
ENTRIES: dict[str, Callable[[torch.Tensor, HAG, Path], Any]] = {
    "check": lambda edges, hag, folder: hag.check(edges),
    "save": lambda edges, hag, folder: hag.save(folder / "written.npz"),
    "load": lambda edges, hag, folder: HAG.load(folder / "kept.npz"),
    "transpose": lambda edges, hag, folder: bare(hag, "none").transpose(),
    "batch": lambda edges, hag, folder: hp.batch([hag, hag]).program(),
    "stats": lambda edges, hag, folder: hag.stats(),
    "matches": lambda edges, hag, folder: hag.matches(edges),
    "pickle": lambda edges, hag, folder: pickle.loads(pickle.dumps(hag)),
    "schedule": lambda edges, hag, folder: make_schedule(hag.program()),
    "factorise": lambda edges, hag, folder: weights.factorise(
        edges, torch.ones(edges.shape[1]), NODES, NODES
    ),
    "edge_slots": lambda edges, hag, folder: weights.edge_slots(edges, hag),
    "sequence": lambda edges, hag, folder: hp.sequence.build_sequence(edges, num_nodes=NODES),
    "generators": lambda edges, hag, folder: generators.power_law(NODES),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_every_call_can_be_interrupted_and_made_again(
    name: str,
    edges: torch.Tensor,
    built: HAG,
    folder: Path,
    interrupt: Callable[[float], None],
) -> None:
    call = partial(ENTRIES[name], edges, built, folder)
    for seconds in MOMENTS:
        interrupted(interrupt, seconds, call)
    call()
    for path in folder.iterdir():  # whole, or not there
        assert path.name in ("kept.npz", "written.npz")
        HAG.load(path)


def test_calibration_can_be_interrupted(interrupt: Callable[[float], None]) -> None:
    for seconds in MOMENTS:
        interrupted(interrupt, seconds, lambda: calibration.calibrate(rounds=1))


def test_a_file_is_replaced_or_left_as_it_was(
    tmp_path: Path, interrupt: Callable[[float], None]
) -> None:
    """At a hundred moments, down to the one after the new file took its place."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    content = b"x" * 1_000_000
    for i in range(100):
        interrupted(interrupt, 0.0005 + i * 0.0001, lambda: files.write_whole(path, content))
        assert [p.name for p in tmp_path.iterdir()] == ["file"]
        assert path.read_bytes() in (b"old", content)


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_a_file_is_whole_or_absent_at_every_instruction(
    first: bool, there: bool, tmp_path: Path
) -> None:
    """Timers meet few moments: here an interrupt comes before each instruction of `files`."""
    path = tmp_path / "file"

    def write() -> None:
        try:
            with files.whole_file(path, first=first) as file:
                file.write(b"new")
        except FileExistsError:
            assert first

    def kept() -> list[bytes]:
        return [p.read_bytes() for p in tmp_path.iterdir()]

    moment = 0
    while True:
        path.unlink(missing_ok=True)
        if there:
            path.write_bytes(b"old")
        before = kept()
        if not interrupted_before_instruction(moment, files.__file__, write):
            break
        assert kept() in (before, [b"new"]), moment
        moment += 1
    assert moment > 100
    assert kept() == [b"old" if first and there else b"new"]


@pytest.mark.parametrize("module", [files, folders], ids=["files", "folders"])
@pytest.mark.parametrize("there", [False, True])
def test_a_folder_is_whole_or_absent(module: ModuleType, there: bool, tmp_path: Path) -> None:
    """Interrupted before any instruction; one that was empty stays so."""
    path = tmp_path / "folder"

    def write() -> None:
        with folders.whole_folder(path) as made:
            (made / "new").write_bytes(b"new")

    def kept() -> list[str]:
        return sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))

    whole, moment = ["folder", "folder/new"], 0
    while True:
        shutil.rmtree(path, ignore_errors=True)
        if there:
            path.mkdir()
        before = kept()
        if not interrupted_before_instruction(moment, str(module.__file__), write):
            break
        assert kept() in (before, whole), moment
        moment += 1
    assert moment > (100 if module is folders else 10)
    assert kept() == whole


def interrupted_before_instruction(number: int, file: str, call: Callable[[], None]) -> bool:
    """Whether a call runs so many instructions of a file; it is interrupted before the next."""
    left = number

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != file:
            return None
        frame.f_trace_opcodes = True
        # Between NOP, where a try begins, and what is tried, Python handles no signal.
        if event == "opcode" and frame.f_code.co_code[frame.f_lasti] != dis.opmap["NOP"]:
            left -= 1
            if left == -1:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


# The command line and other processes -----------------------------------------------------------


def run_and_interrupt(
    arguments: list[str], seconds: float, *, group: bool = True
) -> tuple[int, str, float]:
    """Starts a process, sends SIGINT as a terminal does; its exit code, stderr and seconds."""
    with subprocess.Popen(
        arguments,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        time.sleep(seconds)
        assert process.poll() is None, process.communicate()[1]
        start = time.perf_counter()
        (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr, time.perf_counter() - start


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.npz"
    edges = np.random.default_rng(0).integers(0, 300_000, (2, 8_000_000))
    np.savez(path, edge_index=edges)
    return path


COMMANDS = {
    "build": ["build", "{large}", "{folder}/out.npz", "--method", "greedy", "--check"],
    "stats": ["stats", "{large}", "--method", "greedy", "--json"],
    "calibrate": ["calibrate", "--rounds", "100000", "--output", "{folder}/costs.json"],
    "demo": ["demo", "--epochs", "100000", "--plot", "{folder}/demo.png"],
}


def command(words: list[str], **names: Any) -> list[str]:
    return [sys.executable, "-m", "hag_plugin", *(word.format(**names) for word in words)]


@pytest.mark.parametrize("seconds", [1.0, 6.0])
@pytest.mark.parametrize("name", ["build", "stats", "calibrate", "demo"])
def test_the_command_ends_with_130_and_one_line(
    name: str, seconds: float, large: Path, tmp_path: Path
) -> None:
    """While torch is imported, and in the middle of the work."""
    words = command(COMMANDS[name], large=large, folder=tmp_path)
    code, stderr, taken = run_and_interrupt(words, seconds)
    last = stderr.replace("\r", "\n").rstrip("\n").rpartition("\n")[2]
    assert (code, last) == (130, "interrupted"), stderr
    assert "Traceback" not in stderr
    assert taken < 20
    assert not list(tmp_path.iterdir())


def test_a_loader_with_workers_can_be_interrupted() -> None:
    code = """
import numpy as np, torch, hag_plugin as hp
edges = torch.from_numpy(np.random.default_rng(0).integers(0, 100_000, (2, 2_000_000)))
class Graphs(torch.utils.data.Dataset):
    def __len__(self): return 1000
    def __getitem__(self, i): return hp.build_hag(edges, num_nodes=100_000, method="greedy")
loader = torch.utils.data.DataLoader(Graphs(), batch_size=None, num_workers=2,
                                     multiprocessing_context="fork")
try:
    for hag in loader: pass
except KeyboardInterrupt:
    raise SystemExit(7)
"""
    exit_code, stderr, taken = run_and_interrupt([sys.executable, "-c", code], 6.0)
    assert exit_code == 7, stderr
    assert taken < 20


def test_a_worker_that_dies_is_reported_and_the_process_goes_on() -> None:
    """Killed in the middle of a search, as a machine without memory does it."""
    code = """
import os, signal, threading
import numpy as np, torch, hag_plugin as hp
torch.set_num_threads(2)
edges = torch.from_numpy(np.random.default_rng(0).integers(0, 3000, (2, 60_000)))
class Graphs(torch.utils.data.Dataset):
    def __init__(self, dies): self.dies = dies
    def __len__(self): return 4
    def __getitem__(self, i):
        if self.dies and i == 2:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()
            while True: hp.build_hag(edges, num_nodes=3000, method="greedy")
        return hp.build_hag(edges, num_nodes=3000)
def load(dies):
    return list(torch.utils.data.DataLoader(
        Graphs(dies), batch_size=None, num_workers=2, multiprocessing_context="fork"))
x = torch.randn(3000, 16)
expected = hp.aggregate(x, hp.build_hag(edges, num_nodes=3000))
try:
    load(True)
except RuntimeError as error:
    print(error)
print(all(torch.equal(hp.aggregate(x, hag), expected) for hag in load(False)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    report, fine = done.stdout.splitlines()
    assert "DataLoader worker" in report
    assert fine == "True"


TERMINATED = """
import signal, sys
import numpy as np, torch, hag_plugin as hp
edges = torch.from_numpy(np.random.default_rng(0).integers(0, 100_000, (2, 1_000_000)))
hag = hp.build_hag(edges, num_nodes=100_000, method="none")
def leave(*_): sys.exit(9)
if sys.argv[1] == "handled": signal.signal(signal.SIGTERM, leave)
path = sys.argv[3]
hag.save(path)
print("ready", flush=True)
if sys.argv[2] == "search": hp.build_hag(edges, num_nodes=100_000, method="greedy")
while True: hag.save(path)
"""


@pytest.mark.parametrize("work", ["search", "save"])
@pytest.mark.parametrize("handler", ["handled", "default"])
def test_sigterm_ends_a_process_whose_file_is_whole(
    handler: str, work: str, tmp_path: Path
) -> None:
    path = tmp_path / "hag.npz"
    arguments = [sys.executable, "-c", TERMINATED, handler, work, str(path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        start = time.perf_counter()
        process.terminate()
        code = process.wait(timeout=60)
    assert time.perf_counter() - start < 20
    assert code == (9 if handler == "handled" else -signal.SIGTERM)
    assert HAG.load(path).num_edges == 1_000_000
    if handler == "handled":
        assert [file.name for file in tmp_path.iterdir()] == ["hag.npz"]
