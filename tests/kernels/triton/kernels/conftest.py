"""Graphs on which the kernels meet everything that a schedule can hold, and stay quick."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from hag_plugin.testing import limits

NODES = 20


def in_turn(every: Iterable[Any], *others: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Each of the first with one of each of the others, in turn: in an interpreter that takes
    minutes, all that there is once, and not the product."""
    return [
        (*(first if isinstance(first, tuple) else (first,)), *(o[n % len(o)] for o in others))
        for n, first in enumerate(every)
    ]


collect_ignore = []
if importlib.util.find_spec("dgl") is None:
    collect_ignore = ["test_dgl.py"]
elif not importlib.metadata.version("dgl").startswith("1."):
    from hag_plugin.dgl import graphbolt_stand_in

    graphbolt_stand_in()


@pytest.fixture(autouse=True)
def short_rows() -> Iterator[None]:
    """Rows of more than 4 sources are split here, and parts of parts; programs are cut at depth 5.

    At the real lengths the interpreter would take minutes.
    """
    with limits(op_sources=4, program_levels=5):
        yield


@pytest.fixture(scope="session")
def graph() -> Tensor:
    """Two cliques that share nodes, a hub, duplicates, loops, one-way edges and isolated nodes."""
    generator = torch.Generator().manual_seed(1)
    first, second = torch.combinations(torch.arange(8)), torch.combinations(torch.arange(6, 12))
    both = torch.cat([first, second])
    hub = torch.stack([torch.arange(17), torch.full((17,), 17)], dim=1)
    random = torch.randint(0, 12, (12, 2), generator=generator)
    loops = torch.tensor([[3, 3], [3, 3], [15, 15]])
    return torch.cat([both, both.flip(1), hub, random, loops, first[:4]]).T.contiguous()
