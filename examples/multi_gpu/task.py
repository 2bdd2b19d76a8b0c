"""What train.py and sweep.py share: a graph, a model, plans, and ranks that work together."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch_geometric import nn as pyg
from torch_geometric.data import Data

import hag_plugin as hp
from hag_plugin.data import datasets, generators
from hag_plugin.parallel.ranks.comm import Group, session
from hag_plugin.parallel.strategies.registry import REGISTRY

MODELS = {"gcn": pyg.GCN, "sage": pyg.GraphSAGE, "gin": pyg.GIN, "gat": pyg.GAT}
LAYERS = ("convolution", "attention")  # kinds of operations that have edges
CLASSES, COMMUNITY = 16, 500  # of the generated graph
# What else may be said of it: the default, and words.
COMMUNITIES = {
    "nodes": (20_000, ""),
    "degree": (20.0, ", neighbours a node"),
    "features": (128, ""),
}
PROBED = tuple(1 << k for k in range(10, 23, 3))  # bytes, of a probe that takes seconds


def parser(words: str, **defaults: Any) -> argparse.ArgumentParser:
    """Options that both scripts have."""
    made = argparse.ArgumentParser(
        description=words, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = made.add_argument
    add("--data", default="digits", help='"communities", generated, or as for hag-plugin stats')
    add("--root", help="folder of datasets")
    for name, (default, words_of) in COMMUNITIES.items():
        add(f"--{name}", type=type(default), default=argparse.SUPPRESS,
            help=f"of communities{words_of} (default: {default})")  # fmt: skip
    add("--model", choices=MODELS, default="gcn")
    add("--hidden", type=int, default=64)
    add("--layers", type=int, default=2)
    add("--dropout", type=float, default=0.5)
    add("--topology", help="a preset or a file; by default the ranks measure their machine")
    add("--partition", choices=("auto", "contiguous", "metis", "labels"), default="auto",
        help="how nodes are assigned to ranks")  # fmt: skip
    add("--seed", type=int, default=0)
    add("--timeout", type=float, default=120, help="seconds until a rank gives up on another")
    add("--json", action="store_true", help="results as JSON on stdout")
    made.set_defaults(**defaults)
    return made


@contextmanager
def ranks(timeout: float) -> Iterator[Group]:
    """All ranks that torchrun started: NCCL where each has a GPU, else gloo."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        if name not in os.environ:
            raise SystemExit(f"{name} is not set; run this under torchrun --nproc-per-node N")
    gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    limit = timedelta(seconds=timeout)
    with session("nccl" if gpus else "gloo", "env://", rank, size, limit) as group:
        yield group


def load(args: argparse.Namespace, size: int) -> tuple[Data, hp.parallel.Partition]:
    """A graph with features, labels and masks, its nodes numbered by rank."""
    generator = torch.Generator().manual_seed(args.seed)
    given = {name: vars(args)[name] for name in COMMUNITIES if name in args}
    if args.data == "communities":
        nodes, degree, features = (given.get(n, d) for n, (d, _) in COMMUNITIES.items())
        edges = torch.from_numpy(generators.communities(nodes, degree, COMMUNITY, seed=args.seed))
        y = torch.arange(nodes) // COMMUNITY % CLASSES
        x = torch.randn(nodes, features, generator=generator)
        data = Data(x=x + torch.nn.functional.one_hot(y, features), edge_index=edges, y=y)
    else:
        if given:
            raise SystemExit(f"--{next(iter(given))} is of --data communities; got {args.data}")
        graph = datasets.with_features(datasets.load(args.data, args.root, seed=args.seed))
        if graph.y is None or graph.graph_ptr is not None:
            raise SystemExit(f"{args.data} has no labels of nodes")
        data = Data(x=graph.x, edge_index=graph.edge_index, y=graph.y)
        if graph.train_mask is not None:
            data.train_mask, data.test_mask = graph.train_mask, graph.test_mask
    if "train_mask" not in data:
        data.test_mask = torch.rand(data.num_nodes, generator=generator) < 0.2
        data.train_mask = ~data.test_mask
    found = hp.parallel.partition(data.edge_index, data.num_nodes, size, args.partition)
    return found.apply(data), found


def model_for(args: argparse.Namespace, data: Data) -> torch.nn.Module:
    """Of PyG's own."""
    torch.manual_seed(args.seed)
    classes = int(data.y.max()) + 1
    more = {"heads": 4} if args.model == "gat" else {}
    make = MODELS[args.model]
    return make(data.num_features, args.hidden, args.layers, classes, args.dropout, **more)


def topology_for(args: argparse.Namespace, group: Group) -> Any:
    """The machine that was named, or the one at hand."""
    if args.topology or group.size == 1:
        return args.topology or "a100x8"
    return hp.parallel.probe_ranks(group, sizes=PROBED)


@dataclass(frozen=True)
class Start:
    """What ranks have before they train; the same on each.

    Attributes:
        data: nodes numbered by rank.
        partition: how they are assigned to ranks.
        model: not yet parallel.
        topology: the machine.
        planned: what was asked for.
    """

    data: Data
    partition: hp.parallel.Partition
    model: torch.nn.Module
    topology: Any
    planned: Any

    def parallelize(self, plan: hp.parallel.Plan) -> Any:
        """The model, run as a plan says."""
        return hp.parallel.parallelize(self.model, self.data, plan, part=self.partition)


def start(
    args: argparse.Namespace, group: Group, choose: Callable[[hp.parallel.OpGraph, Any], Any]
) -> Start:
    """Data, a model and plans for it, from nothing.

    Args:
        args: as `parser` has them.
        group: all ranks.
        choose: makes the plans, for a graph of operations and a machine; on the first rank.
    """
    with group.together("loading the data"):
        data, partition = load(args, group.size)
        model = model_for(args, data)
    topology = topology_for(args, group)
    with group.together("planning"):
        planned = None
        if group.rank == 0:
            planned = choose(hp.parallel.trace(model, data, part=partition), topology)
    return Start(data, partition, model, topology, group.broadcast(planned))


def strategies() -> list[str]:
    """Names of what all layers with edges can be given."""
    return list(dict.fromkeys(name for kind, name in REGISTRY if kind in LAYERS))


def plan_for(graph: hp.parallel.OpGraph, topology: Any, size: int, words: str) -> hp.parallel.Plan:
    """The cheapest plan ("auto"), or the cheapest that gives all layers with edges one strategy."""
    if words == "auto":
        return hp.parallel.plan(graph, topology=topology, world_size=size)
    if words in strategies():
        names = [op.name for op in graph.ops if op.kind in LAYERS]
        wanted = dict.fromkeys(names, words)
        return hp.parallel.plan(graph, topology=topology, world_size=size, require=wanted)
    if Path(words).is_file():
        return hp.parallel.Plan.load(words)
    raise ValueError(f"--plan is {words!r}; expected auto, a file, or one of {strategies()}")


def step(model: Any, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """One step of full-batch training; the loss is the same on every rank."""
    local = model.parallel.data
    optimizer.zero_grad()
    scores = model()[local.train_mask]
    losses = torch.nn.functional.cross_entropy(scores, local.y[local.train_mask], reduction="none")
    loss = model.parallel.mean(losses)
    loss.backward()
    optimizer.step()
    return loss.detach()


def run(
    args: argparse.Namespace,
    train: Callable[[argparse.Namespace, Group], dict[str, Any]],
    words_of: Callable[[dict[str, Any]], str],
) -> None:
    """Trains on all ranks and says the results, in words or, where that was asked for, as JSON."""
    with ranks(args.timeout) as group:
        result = train(args, group)
        if args.json:
            say_json(group, result)
        else:
            say(group, words_of(result))


def say(group: Group, words: str) -> None:
    """Printed once."""
    if group.rank == 0:
        print(words, flush=True)


def say_json(group: Group, values: dict[str, Any]) -> None:
    """Printed once."""
    say(group, json.dumps(values, indent=2))
