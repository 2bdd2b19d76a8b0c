"""Small versions of both papers' networks, trained as planned: the ranks' loss beside one process'.

    torchrun --nproc-per-node 4 examples/reproduce/networks_execute.py
    torchrun --nproc-per-node 2 examples/reproduce/networks_execute.py --network NMT --plan

AlexNet, VGG, ResNet, Inception (OptCNN, FlexFlow), RNNLM and NMT (FlexFlow), and a transformer, in
a few layers each. Every plan is found by the planner for a preset machine, then run by gloo on
processes of this one: that its results are right is what is shown, not how fast it is. Fails where
a loss differs by more than 1e-9.
"""

from __future__ import annotations

import argparse
import sys
from datetime import timedelta
from pathlib import Path

if not __package__:  # started as a file: the repository's root goes where its folder stood
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    __package__ = "examples.reproduce"

import os

import torch
from torch import nn

import hag_plugin as hp
from hag_plugin.parallel.ranks.comm import session

from .small_networks import NETWORKS, network

TOLERANCE = 1e-9


def train(model: nn.Module, inputs: tuple[torch.Tensor, ...], steps: int) -> list[float]:
    """The loss of each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss, _ = model(*inputs)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(words: list[str] | None = None) -> int:
    """One rank; the first one prints. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", choices=NETWORKS, action="append", help="by default all")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--topology", default="a100x8", help="that plans are made for")
    parser.add_argument("--plan", action="store_true", help="print the plans, too")
    args = parser.parse_args(words)
    rank, size = (int(os.environ[key]) for key in ("RANK", "WORLD_SIZE"))
    torch.set_num_threads(1)
    worst = 0.0
    with session("gloo", "env://", rank, size, timedelta(seconds=120)):
        for name in args.network or NETWORKS:
            model, inputs = network(name)
            plan = hp.parallel.plan(model, inputs, args.topology, world_size=size)
            together = hp.parallel.parallelize(model, inputs, plan)
            found, expected = train(together, inputs, args.steps), train(model, inputs, args.steps)
            gap = max(abs(a - b) for a, b in zip(found, expected, strict=True))
            worst = max(worst, gap)
            if rank == 0:
                ways = {words for op in plan.operations for words, _ in op.split.parts}
                print(
                    f"{name:12} {size} processes, split by {', '.join(sorted(ways)) or 'nothing'}"
                )
                print(f"{'':12} loss {' '.join(f'{x:.12f}' for x in found)}")
                print(f"{'':12} alone {' '.join(f'{x:.12f}' for x in expected)}  gap {gap:.1e}")
                if args.plan:
                    print(plan)
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
