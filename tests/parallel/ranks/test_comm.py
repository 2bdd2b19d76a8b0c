"""Groups of ranks: collectives, what they count, and errors that all ranks learn of."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import hag_plugin
from hag_plugin.parallel.ranks.comm import Group, Sent

from ..run_ranks import launch, run_processes, run_threads


def collectives(rank: int) -> dict[str, Any]:
    group = Group.world()
    n = group.size
    x = torch.arange(2 * n, dtype=torch.float32) + 10 * rank
    total = n * torch.arange(2 * n) + 10 * sum(range(n))
    gathered = group.all_gather(x, "forward")
    expected = torch.cat([torch.arange(2 * n) + 10 * r for r in range(n)]).float()
    assert torch.equal(gathered, expected)
    assert torch.equal(group.reduce_scatter(x, "forward"), total[2 * rank : 2 * rank + 2].float())
    assert torch.equal(group.all_reduce(x, "update"), total.float())
    assert torch.equal(x, torch.arange(2 * n) + 10.0 * rank)  # inputs are left alone
    assert group.all_reduce(x, "clock", "max")[0] == 10 * (n - 1)
    assert group.all_reduce(x, "clock", "min")[0] == 0
    assert group.broadcast({"rank": rank}) == {"rank": 0}
    assert group.collect(rank**2) == [r**2 for r in range(n)]
    group.counted_as("loss").all_reduce(x, "forward")
    group.barrier()
    return group.sent.phases


@pytest.mark.parametrize("size", [2, 4])
def test_collectives(size: int) -> None:
    nbytes = 2 * size * 4
    reduced = 2 * (size - 1) * nbytes // size
    expected = {
        "forward": (size - 1) * (nbytes + nbytes // size),
        "update": reduced,
        "clock": 2 * reduced,
        "loss": reduced,
    }
    assert run_threads(size, collectives) == [expected] * size
    assert run_processes(size, collectives) == [expected] * size


def test_one_rank_sends_nothing() -> None:
    def case(rank: int) -> int:
        group = Group.world()
        x = torch.ones(3, 2)
        for out in (
            group.all_gather(x, "forward"),
            group.reduce_scatter(x, "forward"),
            group.all_reduce(x, "forward"),
            group.all_to_all(x, [3], [3], "forward"),
        ):
            assert torch.equal(out, x)
            assert out.data_ptr() != x.data_ptr()
        return group.sent.total

    assert run_threads(1, case) == [0]


def test_counts_start_again() -> None:
    sent = Sent()
    sent.add("forward", "exchange", 3)
    sent.add("forward", "all_gather", 4)
    assert sent.phases == {"forward": 7}
    sent.reset()
    assert sent.total == 0


def test_nothing_is_initialised() -> None:
    with pytest.raises(RuntimeError, match=r"not initialised.*init_process_group.*torchrun"):
        Group.world()


def one_fails(rank: int) -> None:
    with Group.world().together("reading the graph"):
        if rank == 1:
            raise OSError("the disk is gone")


def one_ends(rank: int) -> None:
    if rank == 1:
        import os

        os._exit(3)
    Group.world().all_reduce(torch.ones(8), "forward")


def one_is_elsewhere(rank: int) -> None:
    group = Group.world()
    if rank == 1:
        import time

        time.sleep(600)
    group.all_reduce(torch.ones(8), "forward")


def test_errors_reach_all_ranks() -> None:
    (how0, said0), (how1, said1) = launch(2, one_fails)
    assert how0 == how1 == "raised"
    assert "reading the graph failed on rank 1: OSError: the disk is gone" in said0
    assert said1.rstrip().endswith("OSError: the disk is gone")


@pytest.mark.parametrize(("case", "limit"), [(one_ends, 60), (one_is_elsewhere, 20)])
def test_a_rank_that_is_missing(case: Any, limit: float) -> None:
    """The other ends within the time limit, and says what was to be done with whom."""
    (how0, said0), (how1, _) = launch(2, case, limit=limit, timeout=3)
    assert how0 == "raised"
    assert "rank 0: all_reduce among ranks [0, 1] failed; another rank has ended" in said0
    assert how1 == ("died" if case is one_ends else "took too long")


def test_only_this_file_communicates() -> None:
    """Others may use DTensor, meshes and torch's checkpoints, not collectives."""
    package = Path(hag_plugin.__file__).parent
    allowed = tuple(f"torch.distributed.{n}" for n in ("tensor", "device_mesh", "checkpoint"))
    for source in package.rglob("*.py"):
        if source.name == "comm.py":
            continue
        for node in ast.walk(ast.parse(source.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
                if node.module == "torch":
                    names += [f"torch.{alias.name}" for alias in node.names]
            odd = [n for n in names if n.startswith("torch.distributed")]
            odd = [n for n in odd if not n.startswith(allowed)]
            assert not odd, f"{source} imports {odd}"


LEAVING = """
import atexit, sys
threads = lambda: [Path(t, "comm").read_text().strip() for t in Path("/proc/self/task").iterdir()]
atexit.register(lambda: print("at exit", threads()))  # the first that is registered is run last
from pathlib import Path
import torch.distributed as dist
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
from torch.distributed.tensor import Shard, distribute_tensor
from hag_plugin.parallel.ranks.comm import Group
import torch
group = Group.world()
kept = distribute_tensor(torch.ones(4), group.mesh(), [Shard(0)])
group.all_reduce(kept.to_local(), "forward")
print("running", threads())
dist.destroy_process_group()
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_gloo_ends_before_the_interpreter(tmp_path: Path) -> None:
    """A thread of gloo that releases a tensor when the interpreter is gone aborts the process."""
    done = subprocess.run(
        [sys.executable, "-c", LEAVING, str(tmp_path / "meeting")],
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    running, at_exit = done.stdout.splitlines()
    assert "gloo" in running
    assert "gloo" not in at_exit
