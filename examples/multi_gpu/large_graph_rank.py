"""One rank of large_graph.py: trains on its part of a store and says what that took.

torchrun --nproc-per-node 2 examples/multi_gpu/large_graph_rank.py jobs.json found.json
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import task
import torch

import hag_plugin as hp
from hag_plugin.files import write_whole
from hag_plugin.parallel.ranks.comm import Group


@dataclass(frozen=True)
class Job:
    """What is trained, on which store.

    Attributes:
        parts: the store.
        plan: its file.
        model: one of `task.MODELS`.
        sizes: features, hidden, layers, classes.
        steps: of training.
        double: in float64, else in float32.
        limit: bytes of data that a rank may have besides what it had before it opened its part;
            None: as many as there are.
    """

    parts: str
    plan: str
    model: str
    sizes: tuple[int, int, int, int]
    steps: int
    double: bool = False
    limit: int | None = None


def model_of(kind: str, sizes: tuple[int, int, int, int], double: bool) -> torch.nn.Module:
    """The model, the same in every process."""
    torch.manual_seed(0)
    model = task.MODELS[kind](*sizes)
    return model.double() if double else model


def memory(name: str) -> int:
    """Bytes that Linux says of this process: `VmRSS`, its peak `VmHWM`, or `VmData`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(found) << 10


def forget_peak() -> None:
    """From here on `VmHWM` counts anew."""
    Path("/proc/self/clear_refs").write_text("5")


def train(job: Job, group: Group) -> dict[str, Any]:
    """This rank's work, and what all ranks say of it."""
    forget_peak()
    before = memory("VmRSS")
    if job.limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory("VmData") + job.limit, -1))
    start = time.perf_counter()
    part = hp.parallel.PartitionedData(job.parts)
    model = hp.parallel.parallelize(
        model_of(job.model, tuple(job.sizes), job.double), part, job.plan
    )
    setting_up, in_setup = time.perf_counter() - start, memory("VmHWM")
    forget_peak()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sent, losses, seconds = model.parallel.sent, [], []
    for _ in range(job.steps):
        sent.reset()
        group.barrier()
        start = time.perf_counter()
        losses.append(task.step(model, optimizer).item())
        slowest = group.all_reduce(torch.tensor([time.perf_counter() - start]), "clock", "max")
        seconds.append(slowest.item())
    mine = {
        "rank": group.rank,
        "nodes": part.num_nodes,
        "edges": part.num_edges,
        "halo": len(part.halo),
        "before_bytes": before,
        "setup_bytes": in_setup,
        "step_bytes": memory("VmHWM"),
        "setup_seconds": setting_up,
        "sent_bytes": sent["forward"] + sent["backward"] + sent["update"],
    }
    return {
        "limit": job.limit,
        "losses": losses,
        "step_seconds": statistics.median(seconds[1:] or seconds),  # the first fetches features
        "ranks": group.collect(mine),
    }


def main() -> None:
    jobs = [Job(**job) for job in json.loads(Path(sys.argv[1]).read_text())]
    with task.ranks(timeout=1800) as group:
        found = [train(job, group) for job in jobs]
        if group.rank == 0:
            write_whole(Path(sys.argv[2]), json.dumps(found, indent=2).encode())


if __name__ == "__main__":
    main()
