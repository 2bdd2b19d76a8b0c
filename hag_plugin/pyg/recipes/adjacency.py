"""Sparse adjacency matrices where an edge index may stand: `adj_t`, whose rows are the targets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.typing import SparseTensor

from hag_plugin.hag.build import build_hag
from hag_plugin.hag.hag import HAG

VALUES = "sparse adjacency with values that are not all 1: they are weights"
LOOPED = "sparse adjacency with self-loops, to which this layer adds others than to an edge index"


def is_adjacency(graph: Any) -> bool:
    """Whether a graph argument is a sparse matrix: torch's CSR, CSC or COO, or torch_sparse's."""
    if isinstance(graph, Tensor):
        return graph.layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_coo)
    return isinstance(graph, SparseTensor)


def shape_of(adj_t: Any) -> tuple[int, int]:
    """The numbers of sources and of targets."""
    return int(adj_t.size(1)), int(adj_t.size(0))


def parts_of(adj_t: Any) -> tuple[Tensor, ...]:
    """The tensors that hold a matrix, by which it is known again; the last are its values, unless
    it has none."""
    if not isinstance(adj_t, Tensor):
        row_ptr, col, value = adj_t.csr()
        return (row_ptr, col) if value is None else (row_ptr, col, value)
    if adj_t.layout == torch.sparse_coo:
        return adj_t._indices(), adj_t._values()
    if adj_t.layout == torch.sparse_csr:
        return adj_t.crow_indices(), adj_t.col_indices(), adj_t.values()
    return adj_t.ccol_indices(), adj_t.row_indices(), adj_t.values()


def hag_of(adj_t: Any, adds_loops: bool) -> HAG | str:
    """The HAG of a matrix; or why it has none.

    Args:
        adj_t: the matrix.
        adds_loops: whether the layer adds self-loops.
    """
    parts = parts_of(adj_t)
    has_values = isinstance(adj_t, Tensor) or len(parts) == 3
    if has_values and not (parts[-1].dim() == 1 and bool((parts[-1] == 1).all())):
        return VALUES
    row, col = _entries(adj_t, parts)
    if adds_loops and bool((row == col).any()):
        return LOOPED
    return build_hag(torch.stack([col, row]), size=shape_of(adj_t))


def _entries(adj_t: Any, parts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    if isinstance(adj_t, Tensor) and adj_t.layout == torch.sparse_coo:
        return parts[0][0], parts[0][1]
    starts, others = parts[:2]
    rows = torch.arange(len(starts) - 1, dtype=others.dtype, device=others.device)
    mine = rows.repeat_interleave(starts.diff(), output_size=len(others))
    is_csc = isinstance(adj_t, Tensor) and adj_t.layout == torch.sparse_csc
    return (others, mine) if is_csc else (mine, others)
