"""Operations that share a weight are one choice: in the search, in samples, in edited plans."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import nn as pyg

import hag_plugin as hp
from hag_plugin.parallel import InfeasibleError, OpGraph
from hag_plugin.parallel.layouts import REPLICATED
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.search.planner import alternatives, plan, recost, space_of
from hag_plugin.parallel.strategies.registry import STATES, splits_of

from ..models import CLASSES, FEATURES, graph


class Again(nn.Module):
    """One layer three times, and a product that shares its matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = pyg.GCNConv(FEATURES, 8), pyg.GCNConv(8, 8)
        self.last = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.first(x, edge_index).relu()
        for _ in range(3):
            h = self.conv(h, edge_index).relu()
        return self.last(F.linear(h, self.conv.lin.weight))


class Tied(nn.Module):
    """Two layers of one matrix; a product goes through it the other way."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = pyg.SAGEConv(FEATURES, FEATURES), pyg.GCNConv(FEATURES, FEATURES)
        self.two.lin.weight = self.one.lin_l.weight
        self.last = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.two(self.one(x, edge_index).relu(), edge_index)
        return self.last(h @ self.one.lin_l.weight)


USERS = {
    Again: {"conv.lin.weight": ["conv", "conv:2", "conv:3", "linear"],
            "conv.bias": ["conv", "conv:2", "conv:3"]},
    Tied: {"one.lin_l.weight": ["one", "two", "matmul"]},
}  # fmt: skip
Make = Callable[[], nn.Module]


def traced(make: Make) -> OpGraph:
    torch.manual_seed(0)
    return trace(make(), graph(), hag=False)


@pytest.mark.parametrize("make", USERS)
def test_who_shares_what(make: Make) -> None:
    found = traced(make)
    users = {name: [found.ops[i].name for i in ops] for name, ops in found.users.items()}
    assert users == USERS[make]  # type: ignore[index]


@pytest.mark.parametrize("make", USERS)
@pytest.mark.parametrize("machine", ["cpu2", "pcie4x4", "a100x8"])
def test_every_way_to_split_one_of_them(make: Make, machine: str) -> None:
    """With each strategy required of the first user, the others split the weight alike."""
    found = traced(make)
    name, ops = next(iter(found.users.items()))
    tried = 0
    for strategy in {c.strategy for c in space_of(found, machine).configs[ops[0]]}:
        try:
            chosen = plan(found, topology=machine, require={found.ops[ops[0]].name: strategy})
        except InfeasibleError as e:
            words = str(e)
            assert "cannot split it in two ways" in words
            continue
        splits = []
        for op in (found.ops[i] for i in ops):
            of_roles = splits_of(op, chosen.layer(op.name).config)
            splits += [of_roles[weight.role] for weight in op.parameters if weight.name == name]
        assert len(splits) == len(ops)
        assert len(set(splits)) == 1
        tried += 1
    assert tried >= 3


def test_what_cannot_be_met_is_said() -> None:
    wanted = {"conv": "column-split weights", "conv:2": "rows, halo"}
    with pytest.raises(InfeasibleError, match=r"'conv' and 'conv:2' share .* cannot split it in"):
        plan(traced(Again), topology="cpu2", require=wanted)
    found = plan(traced(Again), topology="cpu2")
    listed = alternatives(found, traced(Again), "cpu2")
    assert listed["conv"]["column-split weights"]


def test_edited_plans(tmp_path: Path) -> None:
    found = traced(Again)
    rows = dict.fromkeys(("conv", "conv:2", "conv:3"), "rows, halo")
    chosen = plan(found, topology="cpu2", require=rows | {"linear": "rows"})
    document = chosen.as_dict()
    entry = next(k for k in document["layers"] if k["name"] == "conv:2")
    entry.update(strategy="column-split weights", target="columns", order="transform-first")
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))
    edited = hp.parallel.Plan.load(path)
    with pytest.raises(ValueError, match=r"'conv' \(rows, halo.*'conv:2' \(column.*share 'conv\."):
        recost(edited, found, "cpu2")


def test_samples_are_legal() -> None:
    found = traced(Again)
    space = space_of(found, "pcie4x4")
    best = plan(found, topology="pcie4x4")
    refined = hp.parallel.refine(best, space, hp.parallel.Budget(proposals=150), randoms=20)
    refined.plan.check(found, 4)
    assert refined.sampled <= refined.simulated


def test_a_plan_of_one_that_does_not_share_is_the_same_file() -> None:
    """What is shared is no part of what a plan is for: plans made before stay good."""
    found = traced(Again)
    bare = replace(found, ops=tuple(replace(op, parameters=()) for op in found.ops))
    assert bare.fingerprint == found.fingerprint


UNSHARED: dict[str, Make] = {
    "GIN": lambda: pyg.GIN(FEATURES, 8, 2, CLASSES, train_eps=True),
    "SAGE": lambda: pyg.GraphSAGE(FEATURES, 8, 2, CLASSES, norm="batch", jk="cat"),
    "PNA": lambda: pyg.PNAConv(FEATURES, CLASSES, ["mean"], ["identity"], torch.ones(9).long()),
    "GCN": lambda: pyg.GCNConv(FEATURES, CLASSES),
    "GAT": lambda: pyg.GATConv(FEATURES, CLASSES),
    "Graph": lambda: pyg.GraphConv(FEATURES, CLASSES),
    "SG": lambda: pyg.SGConv(FEATURES, CLASSES, K=2),
    "TAG": lambda: pyg.TAGConv(FEATURES, CLASSES, K=2),
    "SSG": lambda: pyg.SSGConv(FEATURES, CLASSES, 0.1),
}


@pytest.mark.parametrize("name", UNSHARED)
def test_a_weight_that_is_used_once_has_one_user(name: str) -> None:
    """A layer whose parts are operations of their own does not claim their weights."""
    users: dict[str, list[str]] = {}
    for op in trace(UNSHARED[name](), graph()).ops:
        for weight in op.parameters:
            users.setdefault(weight.name, []).append(op.name)
    assert users
    assert {name: found for name, found in users.items() if len(found) > 1} == {}


@pytest.mark.parametrize("make", [*USERS, lambda: pyg.GatedGraphConv(FEATURES, 3)])
def test_a_shared_weight_is_held_once(make: Make) -> None:
    """With its gradient and moments, where every device has all of it."""
    found, values = traced(make), sum(p.numel() for p in make().parameters())
    space = space_of(found, "cpu2")
    whole = [next(t for t, c in zip(terms, configs, strict=True) if c.source == REPLICATED)
             for terms, configs in zip(space.terms, space.configs, strict=True)]  # fmt: skip
    assert sum(terms.states for terms in whole[:-1]) == STATES * values  # without the output


@pytest.mark.parametrize("make", USERS)
@pytest.mark.parametrize("strategy", ["rows, halo", "column-split weights", "replicate"])
def test_a_split_weight_is_held_once(make: Make, strategy: str) -> None:
    """Against each of its users holding its block of it."""
    found = traced(make)
    bare = replace(found, ops=tuple(replace(op, parameters=()) for op in found.ops))
    [first, *others] = next(iter(found.users.values()))
    chosen = plan(found, topology="pcie4x4", require={found.ops[first].name: strategy})
    states = [
        sum(space.terms[i][space.configs[i].index(layer.config)].states
            for i, layer in enumerate(chosen.layers))
        for space in (space_of(g, "pcie4x4") for g in (bare, found))
    ]  # fmt: skip
    weights = dict(make().named_parameters())
    twice = 0
    for name, users in found.users.items():
        op = found.ops[users[0]]
        role = next(w.role for w in op.parameters if w.name == name)
        split = splits_of(op, chosen.layers[users[0]].config)[role]
        block = weights[name]
        if split is not None:
            block = block.chunk(split.columns or 4, split.dim)[0]
        twice += STATES * block.numel() * (len(users) - 1)
    assert others
    assert states[0] - states[1] == twice
