"""Predicts links as a plan says: every rank encodes its nodes, and decodes pairs of its own.

torchrun --nproc-per-node 2 examples/multi_gpu/link_prediction.py --plan auto
"""

from __future__ import annotations

import argparse
from typing import Any

import task
import torch
import torch.nn.functional as F
from torch import Tensor

import hag_plugin as hp
from hag_plugin.parallel.ranks.comm import Group

HELD_OUT = 0.1  # of the edges
BEST = 20  # of hits@20


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = task.parser("Predict links as a plan says.", dropout=0.0)
    add = parser.add_argument
    add("--plan", default="auto", help="auto, a plan's file, or a strategy for all layers")
    add("--epochs", type=int, default=50)
    add("--learning-rate", type=float, default=0.01)
    return parser.parse_args()


def hold_out(edge_index: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Edges to train with, both ways, and pairs to test with, `[2, k]` each."""
    edges = edge_index[:, edge_index[0] < edge_index[1]]
    order = torch.randperm(edges.shape[1], generator=torch.Generator().manual_seed(seed))
    test, train = edges[:, order].tensor_split([int(HELD_OUT * len(order))], dim=1)
    return torch.cat([train, train.flip(0)], dim=1), test


def scores_of(model: Any, h: Tensor, pairs: Tensor) -> Tensor:
    """The product of what the two ends of each pair were encoded as; ranks have other pairs."""
    source, target = model.parallel.rows(h, pairs.flatten()).view(2, -1, h.shape[1])
    return (source * target).sum(dim=-1)


def step(model: Any, optimizer: torch.optim.Optimizer, edges: Tensor) -> Tensor:
    """One step, on this rank's share of the edges and as many pairs without one."""
    parallel = model.parallel
    mine = edges[:, parallel.group.rank :: parallel.group.size]
    none = parallel.negatives(edges, mine.shape[1])
    optimizer.zero_grad()
    scores = scores_of(model, model(), torch.cat([mine.to(none.device), none], dim=1))
    labels = (torch.arange(len(scores), device=scores.device) < mine.shape[1]).to(scores.dtype)
    losses = F.binary_cross_entropy_with_logits(scores, labels, reduction="none")
    loss = parallel.mean(losses, apart=True)
    loss.backward()
    optimizer.step()
    detached: Tensor = loss.detach()
    return detached


def metrics(model: Any, edges: Tensor, test: Tensor) -> dict[str, float]:
    """Area under the ROC curve, and the share of pairs above all but 20 of those without an edge;
    of the scores of all ranks.
    """
    parallel = model.parallel
    mine = test[:, parallel.group.rank :: parallel.group.size]
    none = parallel.negatives(edges, mine.shape[1])
    model.eval()
    with torch.no_grad():
        h = model()
        found, others = (
            parallel.concatenate(scores_of(model, h, pairs.to(h.device))) for pairs in (mine, none)
        )
    others = others.sort().values
    below = [torch.searchsorted(others, found, right=side) for side in (False, True)]
    best = others[-min(BEST, len(others))]
    return {
        "auc": ((below[0] + below[1]).double().mean() / (2 * len(others))).item(),
        f"hits_at_{BEST}": (found > best).double().mean().item(),
    }


def train(args: argparse.Namespace, group: Group) -> dict[str, Any]:
    """From nothing to a trained model."""
    with group.together("loading the data"):
        data, partition = task.load(args, group.size)
        data.edge_index, test = hold_out(data.edge_index, args.seed)
        torch.manual_seed(args.seed)
        sizes = (data.num_features, args.hidden, args.layers, args.hidden, args.dropout)
        model: Any = task.MODELS[args.model](*sizes)
    topology, plan = task.topology_for(args, group), None
    with group.together("planning"):
        if group.rank == 0:
            traced = hp.parallel.trace(model, data, part=partition)
            plan = task.plan_for(traced, topology, group.size, args.plan)
    model = hp.parallel.parallelize(model, data, group.broadcast(plan), part=partition)
    optimizer = torch.optim.Adam(model.parameters(), args.learning_rate)
    loss = torch.tensor(torch.nan)
    for _ in range(args.epochs):
        loss = step(model, optimizer, data.edge_index)
    found = metrics(model, data.edge_index, test)
    return {"ranks": group.size, "epochs": args.epochs, "loss": loss.item(), **found}


def words_of(result: dict[str, Any]) -> str:
    """The results, for a person."""
    return ", ".join(f"{name} {value:.4g}" for name, value in result.items())


if __name__ == "__main__":
    task.run(arguments(), train, words_of)
