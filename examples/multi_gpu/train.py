"""Trains a model on several GPUs, or on the cores of one machine, as a plan says.

torchrun --nproc-per-node 2 examples/multi_gpu/train.py --plan auto
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import task
import torch
from tqdm.auto import tqdm

import hag_plugin as hp
from hag_plugin.parallel.ranks.comm import Group


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = task.parser("Train a model as a plan says, every rank a part of the work.")
    add = parser.add_argument
    add("--plan", default="auto", help="auto, a plan's file, or a strategy for all layers, such as "
        '"rows, halo"')  # fmt: skip
    add("--save-plan", metavar="FILE.json", help="write the plan")
    add("--epochs", type=int, default=100)
    add("--learning-rate", type=float, default=0.01)
    add("--checkpoint", metavar="DIR", help="go on from it if it is there; written at the end")
    return parser.parse_args()


def accuracy(model: Any, mask: str) -> float:
    """The share of right answers among the nodes of a mask, on all ranks."""
    model.eval()
    local = model.parallel.data
    with torch.no_grad():
        right = model().argmax(-1) == local.y
    chosen = vars(local)[mask]
    count = model.parallel.total(int(chosen.sum()))
    return float(model.parallel.total(int(right[chosen].sum())) / max(count, 1))


def train(args: argparse.Namespace, group: Group) -> dict[str, Any]:
    """From nothing to a trained model."""

    def choose(graph: hp.parallel.OpGraph, topology: Any) -> hp.parallel.Plan:
        plan = task.plan_for(graph, topology, group.size, args.plan)
        if args.save_plan:
            plan.save(args.save_plan)
        return plan

    begun = task.start(args, group, choose)
    plan, nodes, method = begun.planned, begun.data.num_nodes, begun.partition.method
    if not args.json:
        task.say(group, f"{nodes} nodes in {method} parts\n{plan}\n")
    model = begun.parallelize(plan)
    optimizer = torch.optim.Adam(model.parameters(), args.learning_rate)
    if args.checkpoint and Path(args.checkpoint).exists():
        hp.parallel.load_checkpoint(args.checkpoint, model, optimizer)
    first = model.parallel.step
    model.parallel.sent.reset()
    model.train()
    start, loss = time.perf_counter(), torch.tensor(torch.nan)
    hidden = group.rank > 0 or args.json
    for _ in tqdm(range(first, args.epochs), disable=hidden, file=sys.stderr, leave=False):
        loss = task.step(model, optimizer)
    seconds, sent = time.perf_counter() - start, model.parallel.sent.total
    if args.checkpoint:
        hp.parallel.save_checkpoint(args.checkpoint, model, optimizer)
    epochs = max(args.epochs - first, 1)
    return {
        "ranks": group.size,
        "device": str(group.device),
        "plan": {layer.name: str(layer.config) for layer in plan.layers},
        "epochs": args.epochs - first,
        "loss": loss.item(),
        "train_accuracy": accuracy(model, "train_mask"),
        "test_accuracy": accuracy(model, "test_mask"),
        "seconds_per_epoch": seconds / epochs,
        "most_bytes_sent_per_epoch": max(group.collect(sent)) // epochs,
    }


def words_of(result: dict[str, Any]) -> str:
    """The results, for a person."""
    return (
        f"{result['epochs']} epochs on {result['ranks']} ranks: loss {result['loss']:.4f}, "
        f"test accuracy {result['test_accuracy']:.1%}, "
        f"{result['seconds_per_epoch'] * 1e3:.1f} ms and "
        f"{result['most_bytes_sent_per_epoch'] / 1e6:.2f} MB sent per epoch"
    )


if __name__ == "__main__":
    task.run(arguments(), train, words_of)
