"""Ranks that have other data than each other are told so, before a step is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch_geometric.data import Data

import hag_plugin as hp
from hag_plugin.parallel.execution import share
from hag_plugin.testing import limits

from ..models import CLASSES
from ..run_ranks import run_threads
from .test_failure import data, network, plan_of


def other(value: torch.Tensor, at: int) -> torch.Tensor:
    """It with one number changed."""
    changed = value.clone()
    flat = changed.view(-1)
    flat[at] = ~flat[at] if value.dtype == torch.bool else flat[at] + 1
    return changed


def unseeded_split(given: Data, rank: int) -> None:
    given.train_mask = torch.rand(37, generator=torch.Generator().manual_seed(rank)) < 0.5


CHANGES: dict[str, tuple[Callable[[Data, int], None], str]] = {
    "x": (lambda d, _: setattr(d, "x", other(d.x, -1)), "x"),
    "labels": (lambda d, _: setattr(d, "y", (d.y + 1) % CLASSES), "y"),
    "one label": (lambda d, _: setattr(d, "y", other(d.y, 0)), "y"),
    "mask": (lambda d, _: setattr(d, "train_mask", other(d.train_mask, 17)), "train_mask"),
    "split": (unseeded_split, "train_mask"),
    "more": (lambda d, _: setattr(d, "val_mask", d.train_mask), "val_mask"),
    "a number": (lambda d, _: setattr(d, "share", 0.25), "share"),
    "rows of NaN": (lambda d, _: setattr(d, "x", torch.full_like(d.x, float("nan"))), "x"),
    "two": (lambda d, _: d.update({"x": other(d.x, 5), "y": other(d.y, 9)}), "x, y"),
}


def refused(given: Callable[[int], Any], words: str) -> None:
    model, plan = network(), plan_of(network(), data(), 2)

    def run(rank: int) -> str:
        with pytest.raises(ValueError, match=rf"rank [01] has other data than .*, in {words};"):
            hp.parallel.parallelize(model, given(rank), plan)
        found = hp.parallel.parallelize(model, data(), plan)  # they are still together
        with pytest.raises(ValueError, match=rf"other data than .*, in {words};"):
            found.parallel.share(given(rank))
        found()
        return "refused"

    assert run_threads(2, run) == ["refused"] * 2


@pytest.mark.parametrize("name", CHANGES)
def test_ranks_with_other_data(name: str) -> None:
    change, words = CHANGES[name]

    def given(rank: int) -> Data:
        found = data()
        if rank == 1:
            change(found, rank)
        return found

    refused(given, words)


@pytest.mark.parametrize("read", [1, 40])
def test_large_tensors_are_read_here_and_there(read: int) -> None:
    with limits(compared_bytes=read):
        refused(lambda rank: data() if rank == 0 else data().update({"x": -data().x}), "x")


def test_the_same_data_is_alike() -> None:
    one, two = data(), data()
    two.x = two.x.t().contiguous().t()  # it lies otherwise
    two.edge_index = two.edge_index.clone()
    assert share.told_apart(one) == share.told_apart(two)
