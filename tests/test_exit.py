"""Leaving: programs go with what used them, and the end of a process is silent however it comes.

At exit torch does not release the Python objects of autograd graphs that are still there, nor does
a daemon thread release its frames. What they hold is no leak: it is gone once they are.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import hag_plugin as hp
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.program import Program
from hag_plugin.kernels import _cpu
from hag_plugin.ops import weights

pyg = pytest.importorskip("torch_geometric.nn")

NODES = 300


def edges() -> torch.Tensor:
    return torch.randint(0, NODES, (2, 3000), generator=torch.Generator().manual_seed(0))


# Nothing keeps a program ----------------------------------------------------------------------


def alive() -> set[int]:
    gc.collect()
    return {id(o) for o in gc.get_objects() if type(o) in (HAG, Program)}


def features(width: int = 16) -> torch.Tensor:
    return torch.randn(NODES, width, requires_grad=True)


def refuse(grad: torch.Tensor) -> torch.Tensor:
    raise LookupError("refused")


def trained(layer: torch.nn.Module, *, calls: int = 3) -> None:
    """The second call has the HAG."""
    graph = edges()
    for _ in range(calls):
        layer(features(), graph).sum().backward()


def error_in_forward() -> None:
    hag = hp.build_hag(edges(), num_nodes=NODES)
    hp.aggregate(features(), hag)
    with pytest.raises(ValueError, match="rows"):
        hp.aggregate(torch.randn(3, 16), hag)


def error_in_backward() -> None:
    x = features()
    y = hp.aggregate(x, hp.build_hag(edges(), num_nodes=NODES))
    x.register_hook(refuse)
    with pytest.raises(LookupError):
        y.sum().backward()


def error_in_a_layer() -> None:
    layer, graph = hp.accelerate(pyg.GCNConv(16, 16)), edges()
    for _ in range(3):
        y = layer(features(), graph)
    y.register_hook(refuse)
    with pytest.raises(LookupError):
        y.sum().backward()


def graph_without_a_backward() -> None:
    layer, graph = hp.accelerate(pyg.SAGEConv(16, 16, aggr="max")), edges()
    for _ in range(3):
        layer(features(), graph)


def twice_differentiated() -> None:
    x = features()
    y = hp.aggregate(x, hp.build_hag(edges(), num_nodes=NODES))
    (grad,) = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
    grad.pow(2).sum().backward()


def weighted() -> None:
    hag = hp.build_hag(edges(), num_nodes=NODES)
    weight = torch.rand(3000, requires_grad=True)
    weights.weighted_aggregate(features(), hag, weight).sum().backward()


def checkpointed(use_reentrant: bool) -> None:
    layer, graph = hp.accelerate(pyg.GCNConv(16, 16)), edges()
    for _ in range(3):
        checkpoint(layer, features(), graph, use_reentrant=use_reentrant).sum().backward()
    checkpoint(layer, features(), graph, use_reentrant=use_reentrant)  # with no backward


def reversible() -> None:
    trained(hp.accelerate(pyg.GroupAddRev(pyg.SAGEConv(8, 8), num_groups=2)))


def interrupted_search() -> None:
    def stop(share: float) -> None:
        raise KeyboardInterrupt

    graph = torch.randint(0, 60_000, (2, 1_200_000))
    plain = hp.build_hag(graph, method="none")
    arrays = plain.row_ptr.numpy(), plain.col.numpy(), plain.num_src
    with pytest.raises(KeyboardInterrupt):
        _cpu.greedy_program(*arrays, "", False, 10_000, 2, stop)


@pytest.mark.slow
@pytest.mark.parametrize(
    "use",
    [
        error_in_forward,
        error_in_backward,
        error_in_a_layer,
        graph_without_a_backward,
        twice_differentiated,
        weighted,
        lambda: checkpointed(True),
        lambda: checkpointed(False),
        reversible,
        interrupted_search,
    ],
    ids=lambda use: use.__name__,
)
def test_programs_go_with_what_used_them(use: Callable[[], Any]) -> None:
    before = alive()
    use()
    assert alive() <= before


# Exits ------------------------------------------------------------------------------------------

BASE = """
import os, sys, threading, time, torch
import hag_plugin as hp
edges = torch.randint(0, 3000, (2, 30_000))
x = torch.randn(3000, 16, requires_grad=True)
def refuse(grad): raise LookupError("refused")
def leave(grad): sys.exit(3)
"""
LAYER = """
from torch_geometric.nn import GCNConv, GroupAddRev, SAGEConv
layer = hp.accelerate(GCNConv(16, 16))
layer(x, edges)
y = layer(x, edges)
"""
HAG_OF = """
hag = hp.build_hag(edges, num_nodes=3000)
y = hp.aggregate(x, hag)
"""
LOOP = """
hag = hp.build_hag(edges, num_nodes=3000, method="none")
y = torch.empty(3000, 16)
run, address, out = hag.program().native.run, x.data_ptr(), y.data_ptr()
def work():
    while True: run(address, out, 1, 16, 16, 0, 3000, 3000, 0, 0, 0, 0, 2)
"""
LARGE = """
import numpy as np
large = torch.from_numpy(np.random.default_rng(0).integers(0, 100_000, (2, 1_500_000)))
large = hp.build_hag(large, num_nodes=100_000, method="none")
def work():
    hp.HAG.from_csr(large.row_ptr, large.col, 100_000, "METHOD").program(progress=False)
"""
MEASURING = """
import tempfile
from hag_plugin.hag import constants
from hag_plugin.testing import limits
folder = tempfile.TemporaryDirectory()
os.environ["HAG_PLUGIN_CACHE"] = os.environ["XDG_CONFIG_HOME"] = folder.name
del os.environ["HAG_PLUGIN_COSTS"]
def work():
    with limits(calibration_seconds=60.0): constants.found()
"""
DAEMON = """
threading.Thread(target=work, daemon=True).start()
time.sleep(0.3)
"""
WORKERS = """
class Graphs(torch.utils.data.Dataset):
    def __len__(self): return 8
    def __getitem__(self, i): return hp.build_hag(edges, num_nodes=3000, self_loops="add")
loader = torch.utils.data.DataLoader(Graphs(), batch_size=None, num_workers=2,
                                     multiprocessing_context="fork")
"""

# name: what is run, its exit code, the exception that stderr ends with
EXITS: dict[str, tuple[str, int, str]] = {
    "uncaught exception": (HAG_OF + "raise LookupError('gone')", 1, "LookupError: gone"),
    "exception in a backward": (
        LAYER + "y.register_hook(refuse); y.sum().backward()", 1, "LookupError: refused"
    ),
    "exit in a backward": (LAYER + "x.register_hook(leave); y.sum().backward()", 3, ""),
    "reversible layers": (
        LAYER + "m = hp.accelerate(GroupAddRev(SAGEConv(8, 8), num_groups=2))\n"
        "for _ in range(3): y = m(x, edges); y.sum().backward()", 0, ""
    ),
    "checkpoint": (
        LAYER + "from torch.utils.checkpoint import checkpoint as c\n"
        "y = c(layer, x, edges, use_reentrant=True); z = c(layer, x, edges, use_reentrant=False)",
        0, "",
    ),
    "daemon in a kernel": (LOOP + DAEMON, 0, ""),
    "daemon in a search": (LARGE.replace("METHOD", "auto") + DAEMON, 0, ""),
    "daemon in a greedy search": (LARGE.replace("METHOD", "greedy") + DAEMON, 0, ""),
    "daemon that measures": (MEASURING + DAEMON, 0, ""),
    "exception beside a daemon": (
        LARGE.replace("METHOD", "greedy") + DAEMON + "raise LookupError('gone')", 1,
        "LookupError: gone",
    ),
    "workers of a loader": (WORKERS + "hags = list(loader)", 0, ""),
    "workers of a loader that is left": (WORKERS + "hag = next(iter(loader))", 0, ""),
    "fork": (HAG_OF + "pid = os.fork()\nif pid: os.waitpid(pid, 0)", 0, ""),
    "os._exit": (LAYER + "os._exit(5)", 5, ""),
}  # fmt: skip


# Threads do not survive a fork: these have a process of their own from the start.
ALONE = [name for name in EXITS if "daemon" in name]
# The others are forks of one process, which has imported everything once.
FORKED = [name for name in EXITS if name not in ALONE]

SERVER = """
import json, os, sys, torch, torch_geometric.nn
import hag_plugin.pyg
statuses = []
for number, code in enumerate(json.load(sys.stdin)):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(f"{sys.argv[1]}/{number}", os.O_WRONLY | os.O_CREAT), 2)
        break
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    print(json.dumps(statuses))
    sys.exit()
exec(code)
"""


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Exit code and stderr of each."""
    folder = tmp_path_factory.mktemp("stderr")
    codes = [BASE + EXITS[name][0] for name in FORKED]
    done = subprocess.run(
        [sys.executable, "-c", SERVER, str(folder)], input=json.dumps(codes), capture_output=True,
        text=True, timeout=600, check=True,
    )  # fmt: skip
    said = [(folder / str(number)).read_text() for number in range(len(FORKED))]
    return dict(zip(FORKED, zip(json.loads(done.stdout), said, strict=True), strict=True))


def check_exit(name: str, found: int, stderr: str) -> None:
    _, status, error = EXITS[name]
    assert found == status, stderr
    if error:  # the traceback, and nothing after it
        assert stderr.startswith("Traceback")
        assert stderr.rstrip("\n").rpartition("\n")[2].startswith(error)
    else:
        assert stderr == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("name", FORKED)
def test_a_process_ends_in_silence(name: str, forked: dict[str, tuple[int, str]]) -> None:
    check_exit(name, *forked[name])


@pytest.mark.parametrize("name", ALONE)
def test_a_process_ends_in_silence_beside_a_daemon_thread(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BASE + EXITS[name][0]], capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    check_exit(name, done.returncode, done.stderr)
