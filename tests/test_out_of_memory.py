"""Out of memory: an error says so, what was there is as it was, and the call succeeds once it can.

The address space is limited to what a process has and a little more, in steps from nothing to
enough, so that each of the large allocations of a call fails once. In a process of its own for each
call: what one aborts is no other's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs RLIMIT_AS and /proc/self/statm"
)

NODES = 20_000
# Python's and the native module's; of torch's allocator; of the system, say where a bar is shown.
REFUSALS = ("MemoryError", "RuntimeError: [enforce fail at alloc_cpu", "OSError: [Errno 12]")

BASE = f"""
import numpy as np, torch
import hag_plugin as hp
from hag_plugin.hag.build import build_hags
from hag_plugin.hag.hag import HAG
from hag_plugin.kernels import _cpu
from hag_plugin.ops.weights import edge_slots, factorise, weighted_aggregate
from hag_plugin.ops.attention import attend
N = {NODES}
rng = np.random.default_rng(0)
edges = torch.from_numpy(rng.integers(0, N, (2, 400_000)))
shared = torch.from_numpy(rng.integers(0, 500, (2, 200_000)))
"""
PLAIN = "hag = hp.build_hag(edges, num_nodes=N, method='none')\n"
SEARCHED = "hag = hp.build_hag(shared, num_nodes=N)\nassert not hag.program().is_plain\n"
X = "x = torch.randn(N, 64, requires_grad=True)\n"
BACKWARD = "y.sum().backward(); result = y.detach(), x.grad; x.grad = None"

# What is there before, and the call. It leaves a `result`, of tensors.
CALLS = {
    "build": ("", "result = hp.build_hag(edges, num_nodes=N, method='none').program().arrays"),
    "search": ("", "result = hp.build_hag(shared, num_nodes=N).program().arrays"),
    "greedy search": (
        "few = shared[:, :20_000]",
        "result = hp.build_hag(few, num_nodes=N, method='greedy').program().arrays",
    ),
    "small graphs": (
        "parts = [part.contiguous() % 50 for part in edges.split(500, 1)]",
        "result = hp.batch(build_hags(parts, [50] * len(parts))).program().arrays",
    ),
    "transpose": (PLAIN, "result = HAG(hag.row_ptr, hag.col, N).transpose().program().arrays"),
    "load": (PLAIN + "hag.save(path)", "result = HAG.load(path).program().arrays"),
    "save": (PLAIN, "hag.save(path); result = HAG.load(path).program().arrays"),
    "pickle": (
        PLAIN + "import pickle",
        "result = pickle.loads(pickle.dumps(hag)).program().arrays",
    ),
    "check": (SEARCHED, "hag.check(shared); result = hag.program().arrays"),
    "sum": (PLAIN + X, f"y = hp.aggregate(x, hag); {BACKWARD}"),
    "sum with scratch": (SEARCHED + X, f"y = hp.aggregate(x, hag); {BACKWARD}"),
    "wide sum with scratch": (
        SEARCHED + "x = torch.randn(N, 1500)",
        "result = (hp.aggregate(x, hag),)",
    ),
    "max": (SEARCHED + X, f"y = hp.aggregate(x, hag, 'max'); {BACKWARD}"),
    "weighted sum": (
        PLAIN + X + "w = torch.rand(400_000)[edge_slots(edges, hag)].requires_grad_()",
        f"y = weighted_aggregate(x, hag, w); {BACKWARD}; w.grad = None",
    ),
    "attention": (
        PLAIN + "x = torch.randn(N, 4, 16, requires_grad=True); a = torch.randn(4, 16)",
        "y = attend(hag, x, key=x, query=x, weight=a, score='vector', slope=0.2, "
        f"normalise='softmax'); {BACKWARD}",
    ),
    "factorise": (
        "ones = torch.ones(400_000)",
        "result = factorise(edges, ones, N, N)",
    ),
    "sequence": (
        "",
        "tree = hp.sequence.build_sequence(shared, num_nodes=N); result = tree.parent, tree.source",
    ),
}

# Forks of a process that has imported torch, not yet hag_plugin: its threads work in them.
SERVER = """
import ctypes, gc, json, os, resource, sys, tempfile, traceback, numpy, torch
base, calls, threads = json.load(sys.stdin)

def pages(which):
    return int(open("/proc/self/statm").read().split()[which]) * resource.getpagesize()

def attempt(before, call, path):
    names = {"path": path}
    trim = ctypes.CDLL(None).malloc_trim
    torch.set_num_threads(threads)
    exec(base + before, names)
    code = compile(call, "call", "exec")
    exec(code, names)  # whatever is made once is made here, threads too
    expected = [t.clone() for t in names.pop("result")]
    gc.collect(); trim(0)
    resident, failures, more = None, {}, 0
    while True:
        try:
            resource.setrlimit(resource.RLIMIT_AS, (pages(0) + more, -1))
            exec(code, names)
            break
        except BaseException as error:
            while error.__context__ is not None:  # torch.save fails once more while it closes
                error = error.__context__
            kind = f"{type(error).__name__}: {error}"[:60]
            failures[kind] = failures.get(kind, 0) + 1
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        more = more * 5 // 4 + 65536
        gc.collect(); trim(0)
        resident = resident or pages(1)  # what telling of an error takes is made at the first one
    exec(code, names)
    equal = list(map(torch.equal, expected, names.pop("result")))
    gc.collect(); trim(0)
    return {"failures": failures, "equal": equal, "grew": pages(1) - resident, "needed": more}

for name, (before, call) in calls.items():
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = attempt(before, call, folder + "/hag.npz")
            except BaseException:
                found = traceback.format_exc()
        os.write(write, json.dumps(found).encode())
        os._exit(0)
    os.close(write)
    said = b"".join(iter(lambda: os.read(read, 65536), b""))
    os.close(read)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([name, status, json.loads(said) if said else None]), flush=True)
"""


@pytest.fixture(scope="module")
def found() -> dict[str, tuple[int, Any]]:
    """Of each call, on two threads: how its process ended, and what it says."""
    # Large arrays are no part of the heap, where they would take the place of earlier ones.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SERVER], input=json.dumps([BASE, CALLS, 2]), env=environment,
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, done.stdout.splitlines())
    return {name: (status, said) for name, status, said in lines}


@pytest.mark.parametrize("name", CALLS)
def test_calls_say_that_memory_is_short(name: str, found: dict[str, tuple[int, Any]]) -> None:
    status, said = found[name]
    assert status == 0  # no abort
    assert isinstance(said, dict), said
    assert said["failures"]  # or nothing was tried
    assert [kind for kind in said["failures"] if not kind.startswith(REFUSALS)] == []
    assert all(said["equal"])


@pytest.mark.parametrize("name", CALLS)
def test_calls_that_fail_keep_nothing(name: str, found: dict[str, tuple[int, Any]]) -> None:
    """A dozen failures keep less than one call needs."""
    _, said = found[name]
    assert sum(said["failures"].values()) >= 4
    assert said["grew"] < said["needed"] / 2
