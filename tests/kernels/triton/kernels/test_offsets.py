"""Features that lie further apart than 32 bits can count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import hag_plugin as hp
from hag_plugin.ops.weights import weighted_aggregate

from .... import reference

STEP = 1_100_000_000  # twice this is more than 2 ** 31
BEFORE = 2**31  # an offset that wrapped around would find zeros here


@pytest.fixture
def memory(kernel_device: str, tmp_path: Path) -> Tensor:
    """Numbers by the billion, all 0: a sparse file, unless the card holds them."""
    size = BEFORE + 2 * STEP + 100
    if kernel_device == "cuda":
        return torch.zeros(size, dtype=torch.float16, device="cuda")
    return torch.from_numpy(np.memmap(tmp_path / "sparse", np.float16, "w+", shape=(size,)))


@pytest.mark.parametrize("apart", ["rows", "matrices"])
def test_far_apart(apart: str, memory: Tensor) -> None:
    strides = (15, STEP, 1) if apart == "rows" else (STEP, 5, 1)
    shape = (2, 3, 5) if apart == "rows" else (3, 3, 5)
    x = memory.as_strided(shape, strides, BEFORE)
    values = torch.randint(1, 9, shape).half()
    x.copy_(values)
    edges = torch.tensor([[0, 1, 2, 2, 2], [1, 1, 1, 0, 2]])
    hag = hp.build_hag(edges, num_nodes=3).to(x.device)
    for reduce in ("sum", "max"):
        expected = reference.aggregate(values, edges, 3, reduce)
        assert torch.equal(hp.aggregate(x, hag, reduce).cpu(), expected)
    weight = torch.ones(5, device=x.device)
    expected = reference.aggregate(values, edges, 3)
    assert torch.equal(weighted_aggregate(x, hag, weight).cpu(), expected)
