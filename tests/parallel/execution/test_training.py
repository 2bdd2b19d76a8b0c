"""Training with a plan: optimisers, clipping, mixed precision, dropout, features on disk."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import nn as pyg

import hag_plugin as hp
from hag_plugin.parallel.execution.dropout import keep
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.search.plan import Plan
from hag_plugin.parallel.search.planner import planned

from ..equality import Allow, check, compare, space_with, train_alone, train_together, whole
from ..run_ranks import run_threads
from .test_parallelize import KINDS, MLP, data

Adam = partial(torch.optim.Adam, lr=0.01)
OPTIMISERS = {
    "SGD, all at once": partial(torch.optim.SGD, lr=0.1, momentum=0.9, foreach=True),
    "Adam": Adam,
    "AdamW, all at once": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1, foreach=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("make", OPTIMISERS.values(), ids=OPTIMISERS.keys())
def test_optimisers_and_clipping(make: Any) -> None:
    torch.manual_seed(0)
    for kind in ("rows", "row-split", "column-split"):
        check(MLP().double(), data(), 2, KINDS[kind], make=make, clip=0.1)


def test_clipping_where_a_grid_splits_some_weights() -> None:
    torch.manual_seed(0)
    check(MLP().double(), data(), 4, KINDS["grid"], make=Adam, clip=0.1)
    check(pyg.GCN(12, 8, 2, 8).double(), data(), 4, make=Adam, clip=0.1, allow=lambda op, c: (
        op.kind != "convolution" or c.strategy == "2-D grid"))  # fmt: skip


@pytest.mark.slow
def test_single_precision() -> None:
    torch.manual_seed(0)
    for kind in KINDS:
        check(MLP(), data(dtype=torch.float32), 4, KINDS[kind], tolerance=2e-5)


@pytest.mark.parametrize("kind", ["rows", "columns", "row-split"])
def test_mixed_precision(kind: str) -> None:
    torch.manual_seed(0)
    model = pyg.GraphSAGE(12, 16, 2, 8)
    single = data(dtype=torch.float32)
    check(model, single, 2, KINDS[kind], tolerance=0.1, autocast=torch.bfloat16, count_bytes=False)


# Dropout --------------------------------------------------------------------------------------


class Dropping(nn.Module):
    """Dropout of features, between layers, and in a block that only training has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 16), nn.Linear(16, 8)
        self.dropout = nn.Dropout(0.5, inplace=True)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.first(F.dropout(x, 0.2, training=self.training))
        h = self.dropout(h.relu())
        if self.training:
            h = F.dropout(h, 0.1)
        return self.last(h)


def plan_for(model: nn.Module, given: Any, size: int, allow: Allow) -> Plan:
    space = space_with(trace(model, given, hag=False), size, allow)
    return planned(space, list(space.cheapest().configs))


def test_masks_are_the_same_in_every_layout() -> None:
    torch.manual_seed(0)
    model = Dropping().double()

    def train(kind: str, size: int) -> Any:
        plan = plan_for(model, data(), size, KINDS[kind])
        return run_threads(size, lambda rank: train_together(model, data(), plan, Adam))

    [alone] = train("cheapest", 1)
    for kind, size in (("rows", 2), ("columns", 2), ("row-split", 4), ("grid", 4)):
        for found in train(kind, size):
            for ours, theirs in zip(found[:4], alone[:4], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    losses = [loss.item() for loss in alone[0]]
    assert len(set(losses)) == 3


def test_masks_change_from_step_to_step_and_drop_as_many_as_asked() -> None:
    rows, columns = torch.arange(400), torch.arange(300)
    masks = [keep((7, step, 0), rows, columns, 0.3) for step in (1, 2)]
    assert not torch.equal(*masks)
    both = (masks[0] & masks[1]).double().mean().item()
    assert abs(both - 0.49) < 0.01
    for mask in masks:
        assert abs(mask.double().mean().item() - 0.7) < 0.005
        assert mask.double().mean(dim=0).std() < 1.3 * (0.21 / 400) ** 0.5
        assert mask.double().mean(dim=1).std() < 1.3 * (0.21 / 300) ** 0.5
    assert keep((1,), rows, columns, 0.0).all()


class Attending(nn.Module):
    """Attention that drops edges: heads side by side, then averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.first = pyg.GATConv(12, 4, heads=4, dropout=0.4)
        self.second = pyg.GATConv(16, 8, heads=4, dropout=0.6, concat=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h: Tensor = self.second(torch.tanh(self.first(x, edge_index)), edge_index)
        return h


class Masks:
    """Dropout of the layers of one process, with the masks that ranks have."""

    def __init__(self, given: Any, names: list[str], layers: tuple[str, ...]) -> None:
        own = given.edge_index[0] == given.edge_index[1]
        loops = given.num_edges + torch.arange(given.num_nodes)
        self.edges = torch.cat([(~own).nonzero().view(-1), loops])  # as GATConv lists them
        self.layers = [names.index(name) for name in layers]
        self.calls = 0

    def __call__(self, alpha: Tensor, p: float, training: bool) -> Tensor:
        if not training:
            return alpha
        step, layer = divmod(self.calls, len(self.layers))
        self.calls += 1
        key = (torch.initial_seed(), step + 1, self.layers[layer])
        kept = keep(key, self.edges, torch.arange(alpha.shape[1]), p)
        assert 0.5 * p < 1 - kept.double().mean() < 1.5 * p
        return torch.where(kept, alpha / (1 - p), 0)


ATTENTION = ("replicate", "rows, all-gather", "rows, halo", "heads")


@pytest.mark.mostly_slow("*-1", "*-2")
@pytest.mark.parametrize(
    ("strategy", "size"), [("replicate", 1), *((s, k) for s in ATTENTION for k in (2, 4))]
)
def test_attention_drops_the_edges_of_one_process(
    strategy: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, given = Attending().double(), data()
    plan = plan_for(
        model, given, size, lambda op, c: op.kind != "attention" or c.strategy == strategy
    )
    found = run_threads(size, lambda rank: train_together(model, given, plan, Adam))
    masks = Masks(given, [layer.name for layer in plan.layers], ("first", "second"))
    functional = SimpleNamespace(**vars(F) | {"dropout": masks})
    with monkeypatch.context() as patch:
        patch.setattr(pyg.conv.gat_conv, "F", functional)
        expected = train_alone(model, given, Adam)
    assert masks.calls == 6  # two layers, three steps
    compare([(*rank[:4], {}) for rank in found], expected, None, 1e-10)


# Losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rows", "replicated"])
def test_weighted_means(kind: str) -> None:
    """Weights of classes, masks, rows that are left out: as torch takes the mean of them."""
    torch.manual_seed(0)
    model, given = MLP().double(), data()
    given.y[::5] = -100  # as cross_entropy leaves out
    classes = torch.rand(8, dtype=torch.float64)
    plan = plan_for(model, given, 4, KINDS[kind])

    def weights(name: str, local: Any) -> Tensor:
        of_row = classes[local.y.clamp(min=0)] * (local.y >= 0)
        return {"classes": of_row, "mask": local.train_mask, "left out": local.y >= 0}[name]

    def alone(name: str) -> Tensor:
        out = model(given.x, given.edge_index)
        if name == "mask":
            chosen = given.train_mask
            losses = F.cross_entropy(out[chosen], given.y[chosen], reduction="none")
            return losses.mean()
        return F.cross_entropy(out, given.y, weight=classes if name == "classes" else None)

    def case(rank: int) -> dict[str, Any]:
        ours, found = hp.parallel.parallelize(model, given, plan), {}
        local = ours.parallel.data
        for name in ("classes", "mask", "left out"):
            ours.zero_grad()
            losses = F.cross_entropy(ours(), local.y, reduction="none")
            loss = ours.parallel.mean(losses, weights(name, local))
            loss.backward()
            found[name] = loss.detach(), [whole(p.grad) for p in ours.parameters()]
        with pytest.raises(ValueError, match=r"weights has shape \[2\]; expected \[\d+\]"):
            ours.parallel.mean(losses, torch.ones(2))
        return found

    ranks = run_threads(4, case)
    for name in ("classes", "mask", "left out"):
        model.zero_grad()
        loss = alone(name)
        loss.backward()
        expected = loss.detach(), [p.grad for p in model.parameters()]
        for found in ranks:
            torch.testing.assert_close(found[name], expected, rtol=1e-10, atol=1e-10)


# Data -----------------------------------------------------------------------------------------


class OnDisk:
    """Features that note what is read of them."""

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self.array = np.load(path, mmap_mode="r")
        self.shape, self.read = shape, 0

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    def __getitem__(self, key: Any) -> np.ndarray:
        found: np.ndarray = self.array[key]
        self.read += found.size
        return found


def test_a_rank_reads_its_share_of_features_only(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, given = pyg.GCN(12, 8, 2, 8).double(), data()
    np.save(tmp_path / "x.npy", given.x.numpy())
    plan = plan_for(model, given, 2, KINDS["rows"])
    expected = model(given.x, given.edge_index)

    def case(rank: int) -> tuple[Tensor, int]:
        mine = data()
        mine.num_nodes = mine.x.shape[0]
        mine.x = OnDisk(tmp_path / "x.npy", (mine.num_nodes, 12))
        ours = hp.parallel.parallelize(model, mine, plan)
        return ours.parallel.gather(ours()), mine.x.read

    for rank, (out, read) in enumerate(run_threads(2, case)):
        torch.testing.assert_close(out, expected.detach(), rtol=1e-10, atol=1e-10)
        assert read == (19, 18)[rank] * 12
