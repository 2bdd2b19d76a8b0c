"""Graphs and programs side by side, as a batch has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hag_plugin.hag.graph import MAX_NODES, Graph
from hag_plugin.hag.program import Program
from hag_plugin.kernels import _cpu


def concatenate_graphs(graphs: Sequence[Graph]) -> tuple[Tensor, Tensor]:
    """The CSR of graphs side by side: (row_ptr, col)."""
    num_src = np.cumsum([0] + [g.num_src for g in graphs])
    num_edges = np.cumsum([0] + [g.num_edges for g in graphs])
    if num_src[-1] > MAX_NODES or sum(g.num_dst for g in graphs) > MAX_NODES:
        raise ValueError(f"the batch has {num_src[-1]} sources; expected fewer than 2^31")
    row_ptr = [g.arrays.row_ptr[:-1] + int(e) for g, e in zip(graphs, num_edges, strict=False)]
    row_ptr.append(torch.tensor(num_edges[-1:], device=graphs[0].device))
    col = [g.arrays.col + int(n) for g, n in zip(graphs, num_src, strict=False)]
    return torch.cat(row_ptr), torch.cat(col)


def concatenate_programs(programs: Sequence[Program]) -> Program:
    """The program of several graphs side by side, in O(ops).

    Tiles of small graphs are joined up to 64 ops; partial sums follow all rows of y.
    """
    diagonal = min(p.diagonal for p in programs)
    # Only allow_subtraction gives a diagonal; parts that went without get x added, then taken.
    parts = [p if p.diagonal == diagonal else _add_own_row(p) for p in programs]
    return Program.of(
        map(torch.from_numpy, _cpu.concatenate([p.native for p in parts])),
        sum(p.num_src for p in parts),
        sum(p.num_dst for p in parts),
        diagonal,
        sum(p.search_seconds for p in programs),
    )


def _add_own_row(program: Program) -> Program:
    """`P + I` with diagonal - 1 for a program `P`: the same result where values are finite."""
    _, op_ptr, source, target, hub_row, hub_ptr = program.numpy()
    own = np.where((target >= 0) & (target < program.num_dst), target, -1)
    for row, last in zip(hub_row.tolist(), hub_ptr[1:] - 1, strict=True):
        own[target == program.num_dst + last] = row
    takes = own >= 0
    source = np.insert(source, op_ptr[1:][takes], own[takes]).astype(np.int32)
    op_ptr = op_ptr + np.concatenate([np.zeros(1, np.int64), np.cumsum(takes)])
    tile_ptr, _, _, *others = program.arrays
    changed = torch.from_numpy(op_ptr), torch.from_numpy(source)
    return replace(program, arrays=(tile_ptr, *changed, *others), diagonal=program.diagonal - 1)
