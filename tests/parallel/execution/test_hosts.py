"""Ranks on two hosts: network namespaces of this machine with a cable between them, that may be
slow, and may be cut.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch_geometric.data import Data
from torch_geometric.nn import GCN

import hag_plugin as hp
from hag_plugin.parallel.graphs.stats import GraphStats
from hag_plugin.parallel.machine.levels import Level
from hag_plugin.parallel.machine.topology import Topology

ROOT = Path(__file__).parents[3]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
LIMIT, BOUND = 5, 60  # seconds: of a collective, and until all have ended
FEATURES, HIDDEN, CLASSES, STEPS = 6, 8, 4, 3


class Hosts:
    """Two hosts, each with one end of a cable."""

    count = itertools.count()

    def __init__(self) -> None:
        number = next(self.count)
        self.names = [f"hag-{os.getpid()}-{number}-{host}" for host in range(2)]
        self.processes: list[subprocess.Popen[str]] = []

    def set_up(self) -> None:
        """Makes them; skips the test where that is not possible."""
        if shutil.which("ip") is None or shutil.which("tc") is None:
            pytest.skip("there are no network namespaces without ip and tc (iproute2)")
        for name in self.names:
            self.command("ip", "netns", "add", name)
        first, second = self.names
        self.command("ip", "link", "add", "cable", "netns", first, "type", "veth",
                     "peer", "name", "cable", "netns", second)  # fmt: skip
        for name, address in zip(self.names, ADDRESSES, strict=True):
            self.command("ip", "-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for link in ("lo", "cable"):
                self.command("ip", "-n", name, "link", "set", link, "up")

    def command(self, *words: str) -> None:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"`{' '.join(words)}`: {done.stderr.strip()}")

    def slow_down(self, rate: str) -> None:
        """From here on the cable lets so much through, either way."""
        for name in self.names:
            self.command("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", "cable", "root",
                         "tbf", "rate", rate, "burst", "8kb", "limit", "1mb")  # fmt: skip

    def cut(self) -> None:
        """Nothing goes through the cable, and nobody is told."""
        self.command("ip", "-n", self.names[0], "link", "set", "cable", "down")

    def start(self, program: str, *words: str) -> None:
        """Runs Python code on both, a rank each."""
        for rank, name in enumerate(self.names):
            given = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": ADDRESSES[0],
                     "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": "cable", "OMP_NUM_THREADS": "1",
                     "PYTHONPATH": str(ROOT)}  # fmt: skip
            self.processes.append(subprocess.Popen(
                ["ip", "netns", "exec", name, sys.executable, "-c", program, *words],
                env={**os.environ, **given}, text=True, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            ))  # fmt: skip

    def wait_until_here(self) -> None:
        """Until both ranks wait for `go_on`."""
        for process in self.processes:
            assert process.stdout is not None
            said = process.stdout.readline()
            assert said == "here\n", said + process.communicate()[1]

    def go_on(self) -> None:
        for process in self.processes:
            if process.poll() is None and process.stdin is not None:
                process.stdin.write("\n")
                process.stdin.flush()

    def end(self) -> list[tuple[int, str, str]]:
        """How each ended, and what it said; a rank that does not end in time fails the test."""
        found = []
        for process in self.processes:
            out, err = process.communicate(timeout=BOUND)
            found.append((process.returncode, out, err))
        return found

    def tear_down(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    found = Hosts()
    try:
        found.set_up()
        yield found
    finally:
        found.tear_down()


TRAIN = f"""
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch_geometric.nn import GCN

import hag_plugin as hp

folder, steps, pause = sys.argv[1], int(sys.argv[2]), sys.argv[3]

def reached(place):
    if place == pause:
        print("here", flush=True)
        sys.stdin.readline()

dist.init_process_group("gloo", timeout=timedelta(seconds={LIMIT}))
reached("met")
torch.manual_seed(0)
model = GCN({FEATURES}, {HIDDEN}, 2, {CLASSES}).double()
model = hp.parallel.parallelize(model, hp.parallel.PartitionedData(folder), folder + ".json")
parallel, local = model.parallel, model.parallel.data
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for step in range(steps):
    optimizer.zero_grad()
    loss = parallel.mean(F.cross_entropy(model(), local.y, reduction="none"))
    loss.backward()
    optimizer.step()
    reached(f"step {{step}}")
    if pause == "nowhere":
        print(loss.item())
dist.destroy_process_group()
"""


@pytest.fixture
def store(tmp_path: Path) -> tuple[Path, Data]:
    """A store of two parts and a plan for it; and the whole graph."""
    generator = torch.Generator().manual_seed(0)
    data = Data(
        torch.randn(40, FEATURES, generator=generator).double(),
        torch.randint(40, (2, 200), generator=generator),
        y=torch.randint(CLASSES, (40,), generator=generator),
    )
    folder = tmp_path / "parts"
    hp.parallel.write_partitions(data, 2, folder, method="contiguous")
    convolutions = dict.fromkeys(("convs.0", "convs.1"), "rows, halo")
    model = GCN(FEATURES, HIDDEN, 2, CLASSES).double()
    plan = hp.parallel.plan(
        model, hp.parallel.PartitionedData(folder), "cpu2", require=convolutions
    )
    plan.save(f"{folder}.json")
    return folder, data


def test_training_on_two_hosts(hosts: Hosts, store: tuple[Path, Data]) -> None:
    folder, data = store
    hosts.start(TRAIN, str(folder), str(STEPS), "nowhere")
    torch.manual_seed(0)
    model = GCN(FEATURES, HIDDEN, 2, CLASSES).double()
    optimizer, alone = torch.optim.SGD(model.parameters(), 0.1), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(data.x, data.edge_index), data.y)
        loss.backward()
        optimizer.step()
        alone.append(loss.item())
    for code, out, err in hosts.end():
        assert code == 0, err
        assert [float(line) for line in out.split()] == pytest.approx(alone, rel=1e-10)


@pytest.mark.parametrize("place", ["met", "step 0"])
@pytest.mark.parametrize("how", ["cut off", "frozen", "dead"])
def test_a_host_that_is_lost(how: str, place: str, hosts: Hosts, store: tuple[Path, Data]) -> None:
    """Whoever is still there ends with an error that says so; nothing waits for ever."""
    hosts.start(TRAIN, str(store[0]), "1000", place)
    hosts.wait_until_here()
    lost = hosts.processes[1]
    if how == "cut off":
        hosts.cut()
    elif how == "frozen":
        lost.send_signal(signal.SIGSTOP)
    else:
        lost.kill()
        lost.wait()
    hosts.go_on()
    left = hosts.processes if how == "cut off" else hosts.processes[:1]
    for process in left:
        _, err = process.communicate(timeout=BOUND)
        assert process.returncode > 0, process.returncode
        last = err.strip().splitlines()
        assert any("among ranks [0, 1] failed; another rank has ended" in line for line in last)


PROBE = """
import json
import sys
from datetime import timedelta

import torch.distributed as dist

import hag_plugin as hp

dist.init_process_group("gloo", timeout=timedelta(seconds=60))
found = hp.parallel.probe_ranks(sizes=(1 << 10, 1 << 14, 1 << 17))
print(json.dumps(found.as_dict()))
dist.destroy_process_group()
"""


def probed(hosts: Hosts) -> Topology:
    hosts.start(PROBE)
    (code, out, err), (other, again, _) = hosts.end()
    hosts.processes.clear()
    assert code == other == 0, err
    assert out == again  # both ranks know the same
    return Topology.from_dict(json.loads(out.splitlines()[-1]))


def test_the_plan_for_a_slow_link(hosts: Hosts) -> None:
    """Measured by the ranks: over a slow cable each computes what it would have to be sent in every
    step, where over a fast one, as written down, they share the work."""
    hosts.slow_down("10mbit")
    slow = probed(hosts)
    assert slow.fits
    for fit in slow.fits:  # however busy both are, bytes come no faster than the cable lets them
        assert fit.world_size == 2
        assert fit.beta > 0.1 * 8 / 10e6
    cable = Level("cable", 2, bandwidth=10e9, latency=1e-5)
    fast = dataclasses.replace(slow, levels=(cable,), fits=())
    stats = GraphStats.assumed(20_000, 200_000)
    graph: Any = hp.parallel.trace(GCN(256, 256, 3, 256), stats, features=256, hag=False)
    shared, alone = (hp.parallel.plan(graph, topology=topology) for topology in (fast, slow))
    assert shared.layer("convs.1").config.strategy != "replicate"
    assert alone.layer("convs.1").config.strategy == "replicate"
    sent = [sum(layer.sent for layer in plan.layers) for plan in (shared, alone)]
    assert sent[0] > 2 * sent[1]
    assert hp.parallel.recost(shared, graph, slow).seconds > alone.seconds
