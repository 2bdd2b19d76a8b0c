"""Nothing is kept of sampled batches: memory does not grow over ten thousand, each met once."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch_geometric.nn import GATConv, GCNConv, SAGEConv

import hag_plugin as hp

WIDTH, NODES, EDGES = 16, (200, 300), (1000, 1500)
WARM_UP = 1000
# A batch's edges and programs are some 30,000 bytes.
MOST = 4 << 20


def resident() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells what is resident")
@pytest.mark.parametrize(
    ("make", "batches"),
    [
        (lambda: SAGEConv(WIDTH, WIDTH), 10_000),
        (lambda: nn.Sequential(GCNConv(WIDTH, WIDTH), GATConv(WIDTH, WIDTH)), 2500),
    ],
    ids=["one layer", "two layers"],
)
def test_memory_does_not_grow(make: Callable[[], nn.Module], batches: int) -> None:
    model = hp.accelerate(make())
    layers = list(model) if isinstance(model, nn.Sequential) else [model]
    generator = torch.Generator().manual_seed(0)

    def steps(count: int) -> None:
        for _ in range(count):
            nodes = int(torch.randint(*NODES, (1,), generator=generator))
            edges = int(torch.randint(*EDGES, (1,), generator=generator))
            edge_index = torch.randint(nodes, (2, edges), generator=generator)
            x = torch.randn(nodes, WIDTH, generator=generator).requires_grad_()
            for layer in layers:
                x = layer(x, edge_index)
            x.square().mean().backward()
            model.zero_grad()

    with hp.testing.limits(passing_gain=0, few_messages=0):
        with hp.testing.count_programs() as ran:
            steps(10)
        # Forward and backward, in the fused kernels.
        assert len(ran.programs) == 2 * 10 * len(layers)
        steps(WARM_UP)
        before = resident()
        steps(batches)
        grown = resident() - before
    assert grown < MOST, f"{grown / 2**20:.1f} MiB more after {batches:,} batches"
