"""What it takes to execute a strategy, beside simulating it: plans of a GCN on two ranks here.

    python -m torch.distributed.run --standalone --nproc-per-node 2 \\
        -m examples.reproduce.parallel_execute --json

A strategy is executed as one would to compare it with others: the model is split by it, one step
warms up, one is timed. The processes, the data and the partition are there already. Simulated, its
task graph is built and scheduled. Processor time for the simulations, wall-clock time for ranks.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import hag_plugin as hp
from examples.benchmark.results import Record
from examples.benchmark.tables import duration, markdown
from examples.multi_gpu import task
from hag_plugin.parallel.search.planner import space_of
from hag_plugin.parallel.simulation.plan_tasks import PlanModel
from hag_plugin.parallel.simulation.strategy_model import SimulatedStrategy, simulate_strategy

from .hag_run import Setup, Step

RANKS, STRATEGIES, PROPOSALS = 2, 3, 50
HERE = Path(__file__).resolve().parents[2]


def main() -> int:
    """One rank; the first one prints what was measured."""
    words = "Times executing strategies, and simulating them."
    args = task.parser(words, data="communities", topology="cpu2", dropout=0.0).parse_args()

    def choose(graph: hp.parallel.OpGraph, topology: Any) -> Any:
        chosen = {}
        for name in task.strategies():
            try:
                chosen[name] = task.plan_for(graph, topology, RANKS, name)
            except ValueError:  # not possible for this model
                continue
        names = sorted(chosen, key=lambda name: chosen[name].seconds)[:STRATEGIES]
        return {name: chosen[name] for name in names}, simulated(graph, topology, chosen[names[0]])

    with task.ranks(args.timeout) as group:
        start = task.start(args, group, choose)
        plans, costs = start.planned
        rows = []
        for name, plan in plans.items():
            began = time.perf_counter()
            model = start.parallelize(plan)
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            task.step(model, optimizer)
            warm = time.perf_counter()
            task.step(model, optimizer)
            done = time.perf_counter()
            rows.append({"strategy": name, "seconds": done - began, "step": done - warm})
        task.say_json(group, {"executed": rows, **costs, "nodes": start.data.num_nodes})
    return 0


def simulated(graph: hp.parallel.OpGraph, topology: Any, plan: hp.parallel.Plan) -> Record:
    """Seconds of a full and of a delta simulation, means over random proposals."""
    space = space_of(graph, topology, RANKS)
    model, choose = PlanModel(space), random.Random(0)
    strategy = model.numbers(plan)
    chain = SimulatedStrategy(model, strategy)
    full = delta = 0.0
    free = [node for node, count in enumerate(model.sizes) if count > 1]
    for _ in range(PROPOSALS):
        node = choose.choice(free)
        changed = list(strategy)
        changed[node] = choose.randrange(model.sizes[node])
        simulate_strategy(model, changed)  # blocks are made, and kept, before either is timed
        a = time.process_time()
        new = chain.propose(node, changed[node])
        b = time.process_time()
        assert new == simulate_strategy(model, changed).makespan
        full, delta = full + time.process_time() - b, delta + b - a
        chain.reject()
    return {"full_seconds": full / PROPOSALS, "delta_seconds": delta / PROPOSALS,
            "tasks": chain.simulator.graph.num_tasks}  # fmt: skip


# The page -----------------------------------------------------------------------------------------


def cells(setup: Setup) -> list[Record]:
    """One machine, one graph."""
    return [{"nodes": 2000 if setup.quick else 20_000, "ranks": RANKS}]


def measure(cell: Record, setup: Setup) -> Record:
    """Starts the ranks."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
               str(RANKS), "-m", "examples.reproduce.parallel_execute", "--nodes",
               str(cell["nodes"])]  # fmt: skip
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"the ranks failed:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout[done.stdout.index("{") :])
    return {"launch_seconds": time.perf_counter() - began, **found}


def section(records: list[Record]) -> str:
    """Markdown."""
    lines = []
    for record in records:
        whole = statistics.median(row["seconds"] for row in record["executed"])
        for row in record["executed"]:
            lines.append([
                f"{row['strategy']}, {record['nodes']:,} nodes", duration(row["step"]),
                duration(row["seconds"]), duration(record["full_seconds"]),
                duration(record["delta_seconds"]),
                f"{row['seconds'] / record['full_seconds']:,.0f}x",
                f"{record['launch_seconds'] / record['full_seconds']:,.0f}x",
            ])  # fmt: skip
        lines.append(["median", "", duration(whole), "", "",
                      f"{whole / record['full_seconds']:,.0f}x", ""])  # fmt: skip
    header = ["strategy of both layers", "a step, ms", "splitting and two steps, ms",
              "full simulation, ms", "delta simulation, ms", "executing / simulating",
              "with starting the processes / simulating"]  # fmt: skip
    return markdown(header, lines)


STEP = Step(
    name="parallel_execute",
    title="Simulating a strategy against executing it",
    published="the simulator is three orders of magnitude faster than executing strategies "
    "(FlexFlow, abstract)",
    departures=(
        "A 2-layer GCN on two processes of this machine in place of their networks on GPUs: what "
        "the planner simulates and the executor runs.",
        "The simulator is in Python; theirs is in C++.",
    ),
    timed=True,
    cells=cells,
    measure=measure,
    section=section,
)

if __name__ == "__main__":
    sys.exit(main())
