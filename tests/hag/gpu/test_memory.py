"""What a HAG is said to hold on a card is what one holds that was moved, tensor by tensor."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import hag_plugin as hp
from hag_plugin.hag.gpu.schedule import Schedule
from hag_plugin.hag.program import Options, Program
from hag_plugin.ops import gpu, gpu_attention


def priced(edges: Tensor, num_nodes: int, method: Any = "auto") -> hp.HAG:
    """As `build_hag(..., device="cuda")` makes it, before it is moved."""
    on_cpu = hp.build_hag(edges, num_nodes=num_nodes, method="none")
    options = Options(device="cuda", method=method)
    return hp.HAG(on_cpu.row_ptr, on_cpu.col, num_nodes, options=options)


def graph(name: str) -> hp.HAG:
    clique = torch.combinations(torch.arange(12)).T
    both = torch.cat([clique, clique.flip(0)], 1)
    cliques = torch.cat([both + 12 * i for i in range(5)], 1)
    if name in ("symmetric", "sharing nothing"):
        hag = priced(cliques, 60, "auto" if name == "symmetric" else "none")
        hag.prepare(["add"] if name == "symmetric" else [False])
        return hag
    hub = torch.stack([torch.arange(1, 300), torch.zeros(299, dtype=torch.long)])
    edges = torch.cat([cliques, hub], 1)
    hag = priced(edges, 300, "greedy")
    hag.prepare([False])
    if name == "with its reverse":
        hag.prepare([False, "add"], transpose=True)
    if name == "batch":
        other = priced(edges[:, 5:], 300)
        other.prepare([False])
        hag = hp.batch([hag, other])
    return hag


def tensors_in(thing: Any, met: set[int]) -> Iterator[Tensor]:
    """All that an object refers to, once each."""
    if id(thing) in met or inspect.isroutine(thing):
        return
    met.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from tensors_in(value, met)
    elif isinstance(thing, list | tuple):
        for value in thing:
            yield from tensors_in(value, met)
    elif isinstance(thing, hp.HAG | Program | Schedule):
        yield from tensors_in(vars(thing), met)


def held(hag: hp.HAG) -> int:
    # A number alone is the token, which stays with the host.
    return sum(t.nbytes for t in tensors_in(hag, set()) if t.dim())


@pytest.mark.parametrize(
    "name", ["symmetric", "sharing nothing", "one-way", "with its reverse", "batch"]
)
def test_is_what_a_moved_one_holds(name: str) -> None:
    hag = graph(name)
    said = hag.stats().gpu_bytes
    assert said is not None
    moved = hag._moved_to_launch(torch.clone)  # as `hag.cuda()`
    assert held(moved) == said.total
    gpu.targets(moved), gpu_attention.rows_of(moved, False)
    assert held(moved) == said.total + said.edges
    assert said.programs > 0
    assert hag.stats().gpu_bytes == said  # to ask for it adds nothing


def test_is_said_of_what_is_for_a_card_alone() -> None:
    edges = torch.tensor([[0, 1], [1, 0]])
    assert hp.build_hag(edges, num_nodes=2).stats().gpu_bytes is None
    empty = priced(edges[:, :0], 0).stats().gpu_bytes
    assert empty is not None
    assert empty.graph == 8
