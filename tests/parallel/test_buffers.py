"""Collectives write into a tensor without torch's count: layers see it all the same."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, RGCNConv, SAGEConv

import hag_plugin as hp
from hag_plugin.testing import limits

from .run_ranks import run_processes

NODES, EDGES, TYPES = 30, 200, 3
COLLECTIVES = ("broadcast", "all_reduce", "send", "scatter")
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: GCNConv(6, 4),
    "max": lambda: SAGEConv(6, 9, "max"),
    "lstm": lambda: SAGEConv(6, 4, "lstm"),
    "weights": lambda: GCNConv(6, 4),
    "types": lambda: RGCNConv(6, 4, TYPES),
}


def _inputs(layer: str, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(NODES, (2, EDGES), generator=generator)
    inputs = [torch.rand(NODES, 6, generator=generator).double(), edges[:, edges[1].argsort()]]
    if layer == "weights":
        inputs.append(torch.rand(EDGES, generator=generator).double())
    if layer == "types":
        inputs.append(torch.randint(TYPES, (EDGES,), generator=generator))
    return inputs


def _receive(tensor: Tensor, value: Tensor, how: str, rank: int) -> None:
    """Rank 1 gets in `tensor`, by a collective, the value that rank 0 has."""
    if rank == 0:
        tensor.copy_(value)
    if how == "broadcast":
        dist.broadcast(tensor, 0)
    elif how == "all_reduce":
        if rank == 1:
            tensor.data.zero_()
        dist.all_reduce(tensor)
    elif how == "send":
        dist.send(tensor, 1) if rank == 0 else dist.recv(tensor, 0)
    else:
        dist.scatter(tensor, [value, value] if rank == 0 else None, 0)


def _agree(stock: nn.Module, fast: nn.Module, inputs: list[Tensor]) -> None:
    for model in (stock, fast):
        model.zero_grad()
    expected, got = stock(*inputs), fast(*inputs)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    expected.sin().sum().backward()
    got.sin().sum().backward()
    for p, q in zip(stock.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-9, atol=1e-9)


def receives(rank: int) -> int:
    """Each input changes every second step, in a buffer that stays."""
    with limits(few_messages=0):
        return _receives(rank)


def _receives(rank: int) -> int:
    hags = 0
    for name, make in LAYERS.items():
        for how in COLLECTIVES if name == "plain" else COLLECTIVES[:1]:
            torch.manual_seed(0)
            stock = make().double()
            fast = hp.accelerate(copy.deepcopy(stock))
            buffers = [each.clone() for each in _inputs(name, 0)]
            for step in range(1, 9):
                for tensor, value in zip(buffers, _inputs(name, step // 3), strict=True):
                    _receive(tensor, value, how, rank)
                _agree(stock, fast, buffers)
                hags += fast._hag_session.num_hags
    return hags


def test_one_buffer_for_all_steps() -> None:
    """The receiver builds HAGs too, as steps have the same edges in between."""
    assert run_processes(2, receives)[1] > 0
