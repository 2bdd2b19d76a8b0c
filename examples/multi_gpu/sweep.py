"""Runs every strategy on real processes, and prints what was predicted beside what was measured.

torchrun --nproc-per-node 2 examples/multi_gpu/sweep.py

The ranks measure their machine first; it is that topology plans are priced with, and neither this
graph nor these widths were part of it. Then all plans take turns, in an order that changes from
round to round, and a step counts as long as its slowest rank takes. Each plan is timed twice (odd
and even rounds): the difference is the noise, and where it is too large nothing is said of the
predictions. A machine must be otherwise idle, and have a core or a GPU for each rank.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import task
import torch
from accuracy import NOISE, PLANNED, Accuracy, noise_floor, table
from tqdm.auto import tqdm

import hag_plugin as hp
from hag_plugin.files import check_output, write_whole
from hag_plugin.parallel.ranks.comm import Group
from hag_plugin.parallel.strategies.registry import REGISTRY, Problem, configs_of


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = task.parser(
        "Measure every strategy on real processes beside its prediction.",
        data="communities",
        partition="contiguous",
        dropout=0.0,
    )
    add = parser.add_argument
    add("--rounds", type=int, default=20, help="steps that are timed of each plan; even")
    add("--output", metavar="FILE.json", help="write the results")
    return parser.parse_args()


def plans_for(graph: hp.parallel.OpGraph, topology: Any, size: int) -> dict[str, Any]:
    """The planned mix, and each strategy for all layers; why not, where one is refused."""
    layers = [op for op in graph.ops if op.kind in task.LAYERS]
    known = {op.kind: [n for k, n in REGISTRY if k == op.kind] for op in layers}
    found: dict[str, Any] = {PLANNED: task.plan_for(graph, topology, size, PLANNED)}
    for name in task.strategies():
        if any(name not in names for names in known.values()):
            continue  # for other models
        reasons = [configs_of(Problem(graph, op, size))[1].get(name) for op in layers]
        refused = [f"{op.name}: {why}" for op, why in zip(layers, reasons, strict=True) if why]
        if refused:
            found[name] = refused[0]
        else:
            found[name] = task.plan_for(graph, topology, size, name)
    return found


def time_plans(
    group: Group, models: dict[str, Any], rounds: int, seed: int, quiet: bool
) -> dict[str, list[float]]:
    """Seconds of steps on the slowest rank, by plan; all plans in each round."""
    optimizers = {name: torch.optim.Adam(m.parameters()) for name, m in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    order, shuffle = list(models), random.Random(seed)  # the same on every rank
    for turn in tqdm(range(-2, rounds), disable=quiet, file=sys.stderr, leave=False):
        shuffle.shuffle(order)
        for name in order:
            group.barrier()
            start = time.perf_counter()
            task.step(models[name], optimizers[name])
            if group.device.type == "cuda":
                torch.cuda.synchronize()
            taken = torch.tensor([time.perf_counter() - start], device=group.device)
            slowest = group.all_reduce(taken, "clock", "max").item()
            if turn >= 0:  # two rounds of warm-up
                seconds[name].append(slowest)
    return seconds


def sent_by_step(group: Group, model: Any) -> int:
    """Bytes that the busiest rank sends in a step, counted."""
    model.parallel.sent.reset()
    task.step(model, torch.optim.SGD(model.parameters(), 0.0))
    sent = model.parallel.sent
    return max(group.collect(sent["forward"] + sent["backward"] + sent["update"]))


def sweep(args: argparse.Namespace, group: Group) -> dict[str, Any]:
    """Plans, predictions, measurements, and how far the first two are from the third."""
    begun = task.start(args, group, lambda graph, machine: plans_for(graph, machine, group.size))
    plans, data, topology = begun.planned, begun.data, begun.topology
    legal = {name: plan for name, plan in plans.items() if isinstance(plan, hp.parallel.Plan)}
    models = {name: begun.parallelize(plan) for name, plan in legal.items()}
    sent = {name: sent_by_step(group, m) for name, m in models.items()}
    quiet = group.rank > 0 or args.json
    seconds = time_plans(group, models, args.rounds, args.seed, quiet)
    measured = {name: statistics.median(s) for name, s in seconds.items()}
    predicted = {name: plan.seconds for name, plan in legal.items()}
    noise = noise_floor(seconds)
    accuracy = Accuracy.of(predicted, measured, noise) if noise <= NOISE else None
    return {
        "ranks": group.size,
        "device": topology.device.name if isinstance(topology, hp.parallel.Topology) else topology,
        "model": f"{args.model}, {args.layers} layers, {args.hidden} hidden",
        "graph": f"{args.data}: {data.num_nodes} nodes, {data.num_edges} edges, "
        f"{data.num_features} features, {begun.partition.method} parts",
        "rounds": args.rounds,
        "noise": noise,
        "predicted_seconds": predicted,
        "measured_seconds": measured,
        "sent_bytes": sent,
        "plans": {
            name: {layer.name: str(layer.config) for layer in plan.layers}
            for name, plan in legal.items()
        },
        "refused": {name: why for name, why in plans.items() if name not in legal},
        "accuracy": None if accuracy is None else vars(accuracy),
        "regret": measured[PLANNED] / min(measured.values()) - 1,
    }


def main() -> None:
    args = arguments()
    if args.rounds < 4 or args.rounds % 2:
        raise SystemExit(f"--rounds is {args.rounds}; expected an even number, 4 or more")
    if args.output:
        check_output(args.output)
    with task.ranks(args.timeout) as group:
        if group.size < 2:
            raise SystemExit("there is one rank; expected 2 or more: --nproc-per-node 2")
        result = sweep(args, group)
        if args.output and group.rank == 0:
            write_whole(Path(args.output), (json.dumps(result, indent=2) + "\n").encode())
        if args.json:
            task.say_json(group, result)
        else:
            task.say(group, table(result))


if __name__ == "__main__":
    main()
