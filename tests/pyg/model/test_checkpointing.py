"""Checkpoints run a forward again: what is remembered by then makes no difference."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import (
    checkpoint,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)
from torch_geometric.nn import (
    FastRGCNConv,
    GCNConv,
    GINConv,
    GraphConv,
    PNAConv,
    RGATConv,
    RGCNConv,
    SAGEConv,
    SGConv,
    TAGConv,
)

import hag_plugin as hp
from hag_plugin.testing import limits

NODES, EDGES, WIDTH, TYPES = 40, 300, 5, 3
DEGREES = torch.tensor([0, 10, 20, 10])

PLAIN: dict[str, Callable[[int, int], nn.Module]] = {
    "GCN": GCNConv,
    "GCN cached": lambda i, o: GCNConv(i, o, cached=True),
    "SAGE": SAGEConv,
    "SAGE max": lambda i, o: SAGEConv(i, o, "max"),
    "SAGE lstm": lambda i, o: SAGEConv(i, o, "lstm"),
    "GIN": lambda i, o: GINConv(nn.Linear(i, o), train_eps=True),
    "GraphConv": GraphConv,
    "SG cached": lambda i, o: SGConv(i, o, K=2, cached=True),
    "TAG": lambda i, o: TAGConv(i, o, K=2),
    "PNA": lambda i, o: PNAConv(i, o, ["mean", "max", "std"], ["identity"], DEGREES),
}
WEIGHTED: dict[str, Callable[[int, int], nn.Module]] = {
    "GCN": GCNConv,
    "GCN cached": lambda i, o: GCNConv(i, o, cached=True),
    "GraphConv": GraphConv,
    "TAG": lambda i, o: TAGConv(i, o, K=2),
}
TYPED: dict[str, Callable[[int, int], nn.Module]] = {
    "RGCN": lambda i, o: RGCNConv(i, o, TYPES),
    "RGAT": lambda i, o: RGATConv(i, o, TYPES, dropout=0.5),
    "FastRGCN": lambda i, o: FastRGCNConv(i, o, TYPES),
}
CASES = [
    *((name, make, "plain") for name, make in PLAIN.items()),
    *((name, make, "weights") for name, make in WEIGHTED.items()),
    *((name, make, "learned weights") for name, make in WEIGHTED.items() if "cached" not in name),
    *((name, make, "types") for name, make in TYPED.items()),
]
IDS = [f"{name}, {kind}" for name, _, kind in CASES]


class Net(nn.Module):
    """Layers with dropout in between; each under a checkpoint of its own, or none."""

    def __init__(self, make: Callable[[int, int], nn.Module], by_layer: Callable[..., Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([make(WIDTH, 4), make(4, 6), make(6, 3)])
        self.by_layer = by_layer

    def forward(self, x: Tensor, *edges: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.by_layer(layer, x, *edges)
            x = nn.functional.dropout(x.relu(), 0.3)
        return x


def run(function: Any, *args: Any) -> Any:
    return function(*args)


def not_reentrant(function: Any, *args: Any) -> Any:
    return checkpoint(function, *args, use_reentrant=False)


def reentrant(function: Any, *args: Any) -> Any:
    return checkpoint(function, *args, use_reentrant=True)


def selective(function: Any, *args: Any) -> Any:
    kept = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]
    contexts = lambda: create_selective_checkpoint_contexts(kept)  # noqa: E731
    return checkpoint(function, *args, use_reentrant=False, context_fn=contexts)


def offloaded(function: Any, *args: Any) -> Any:
    """What the checkpoint saves is copied: its recomputation gets other tensors."""
    with save_on_cpu():
        return checkpoint(function, *args, use_reentrant=False)


def offloading(function: Any, *args: Any) -> Any:
    def inside(*args: Any) -> Any:
        with save_on_cpu():
            return function(*args)

    return checkpoint(inside, *args, use_reentrant=False)


HOW = {
    "whole": (not_reentrant, run),
    "by layer": (run, not_reentrant),
    "nested": (not_reentrant, not_reentrant),
    "reentrant": (run, reentrant),
    "selective": (run, selective),
    "offloaded": (offloaded, run),
    "offloading": (run, offloading),
    "to the end": (not_reentrant, run),
}


def inputs_of(kind: str, seed: int, learned_features: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(NODES, (2, EDGES), generator=generator)
    edges = edges[:, edges[1].argsort(stable=True)]
    x = torch.rand(NODES, WIDTH, generator=generator, dtype=torch.float64)
    inputs = [x.requires_grad_(learned_features), edges]
    if "weights" in kind:
        weight = torch.rand(EDGES, generator=generator, dtype=torch.float64)
        inputs.append(weight.requires_grad_("learned" in kind))
    if kind == "types":
        inputs.append(torch.randint(TYPES, (EDGES,), generator=generator))
    return inputs


def train(
    model: nn.Module,
    whole: Any,
    batches: list[list[Tensor]],
    between: Any = lambda model: None,
    twice: bool = True,
) -> list[Tensor]:
    """The losses and gradients of epochs: forwards of all batches, then their backwards.

    Once `twice` through the same graph.
    """
    found = []
    for epoch in range(3):
        for p in [*model.parameters(), *itertools.chain(*batches)]:
            p.grad = None
        torch.manual_seed(epoch)
        losses = [whole(model, *batch).sin().sum() for batch in [*batches, *batches[:1]]]
        between(model)
        for loss in losses[epoch % 2 :] + losses[: epoch % 2]:
            loss.backward(retain_graph=twice and epoch == 2)
        if twice and epoch == 2:
            torch.stack(losses).sum().backward()
        found += [loss.detach() for loss in losses]
        tensors = [*model.parameters(), *itertools.chain(*batches)]
        found += [t.grad.clone() for t in tensors if t.grad is not None]
    return found


def combinations() -> Iterator[Any]:
    """Every way for a few layers, two for the others."""
    for (name, make, kind), text in zip(CASES, IDS, strict=True):
        several = kind == "plain" and name in ("GCN", "GCN cached", "SAGE")
        for how in HOW if several else ("whole", "by layer"):
            for learned in (False, True):
                if several or learned == (how == "by layer"):
                    features = "learned" if learned else "constant"
                    yield pytest.param(
                        name, make, kind, how, learned, id=f"{text}, {how}, {features}"
                    )


@pytest.mark.mostly_slow("SAGE, plain, *")
@pytest.mark.parametrize(("name", "make", "kind", "how", "learned_features"), [*combinations()])
def test_gradients_are_stocks(
    name: str, make: Any, kind: str, how: str, learned_features: bool
) -> None:
    """Also if models forget in between, and with small graphs left to stock or not."""
    whole, by_layer = HOW[how]
    if "reentrant" in how and not learned_features:
        whole = run  # needs an input with gradients
        by_layer = run
    stock = Net(make, by_layer).double()
    seeds = (0,) if "cached" in name else (0, 1)  # stock keeps the first graph
    batches = [inputs_of(kind, seed, learned_features) for seed in seeds]
    twice = how != "selective"  # which torch refuses
    with set_checkpoint_early_stop(how != "to the end"):
        try:
            expected = train(copy.deepcopy(stock), whole, batches, twice=twice)
        except RuntimeError as error:
            pytest.skip(f"stock fails: {error}")
        for between in (lambda model: None, hp.forget):
            fast = hp.accelerate(copy.deepcopy(stock))
            got = train(fast, whole, batches, between, twice)
            assert len(got) == len(expected)
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("how", ["whole", "by layer"])
def test_models_that_come_back_meet_hags_under_checkpoints(how: str) -> None:
    whole, by_layer = HOW[how]
    fast = hp.accelerate(Net(SAGEConv, by_layer).double())
    batches = [inputs_of("plain", 0, True)]
    train(fast, whole, batches)
    (hook,) = fast._forward_pre_hooks.values()
    assert hook.num_hags == 1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["whole", "by layer", "nested"])
def test_small_graphs(how: str) -> None:
    with limits(few_messages=EDGES * WIDTH):  # some layers of a net, others not
        for name in ("GCN", "GCN cached", "SAGE", "GIN"):
            test_gradients_are_stocks(name, PLAIN[name], "plain", how, False)


@pytest.mark.parametrize("how", ["whole", "by layer"])
@pytest.mark.parametrize("name", ["GCN", "SAGE"])
def test_evictions_in_between(name: str, how: str) -> None:
    with limits(pyg_graphs=1):
        test_gradients_are_stocks(name, PLAIN[name], "plain", how, False)


def test_features_that_come_back_within_a_step() -> None:
    """Gradient accumulation: the first forward meets features that the second knows."""
    conv = GCNConv(WIDTH, 3).double()
    fast = hp.accelerate(copy.deepcopy(conv))
    x, edges = inputs_of("plain", 0, False)
    hag = hp.build_hag(edges, num_nodes=NODES)
    for graph in (edges, hag):
        for _ in range(3):
            conv.zero_grad()
            fast.zero_grad()
            sum(conv(x, edges).sin().sum() for _ in range(3)).backward()
            outs = [not_reentrant(fast, x, graph) for _ in range(3)]
            sum(out.sin().sum() for out in outs).backward()
            for p, q in zip(conv.parameters(), fast.parameters(), strict=True):
                torch.testing.assert_close(q.grad, p.grad, rtol=1e-9, atol=1e-9)
