"""Sparse adjacency matrices where an edge index may stand: `adj_t`, whose rows are the targets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch_geometric import nn
from torch_geometric.typing import SparseTensor

from hag_plugin.hag.build import build_hag
from hag_plugin.hag.hag import HAG
from hag_plugin.hag.passing import plain_hag
from hag_plugin.pyg.aggregation.aggregators import REDUCERS
from hag_plugin.pyg.recipes.recipe import Recipe, stock_class
from hag_plugin.pyg.recipes.weighted import WeightedGraph, met_first, of_constant, weighed_edges

VALUES = "sparse adjacency with values that are not all 1, which this layer does not only weigh by"
LOOPED = "sparse adjacency with self-loops, to which this layer adds others than to an edge index"
DUPLICATES = "sparse adjacency with duplicates, of which stock makes one: coalesce it"

# They know no edge weights, but multiply by torch's matrices; of torch_sparse's they drop values.
MULTIPLY = (nn.SAGEConv, nn.GINConv, nn.SignedConv)


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


def num_entries(graph: Any) -> int:
    """The number of edges of an edge index, or of the entries of a matrix."""
    if not isinstance(graph, Tensor):
        return int(graph.nnz())
    return graph.shape[-1] if graph.layout == torch.strided else graph._nnz()


def has_ones(adj_t: Any) -> bool:
    """Whether all values of a matrix are 1, or it has none."""
    values = values_of(adj_t)
    return values is None or (values.dim() == 1 and bool((values == 1).all()))


def values_of(adj_t: Any) -> Tensor | None:
    """The values of a matrix, unless it has none."""
    parts = parts_of(adj_t)
    return parts[-1] if isinstance(adj_t, Tensor) or len(parts) == 3 else None


def layout_of(adj_t: Any) -> torch.layout:
    """How a matrix is laid out; torch_sparse's are in CSR."""
    return adj_t.layout if isinstance(adj_t, Tensor) else torch.sparse_csr


def weighs_by_values(conv: Any, recipe: Recipe, adj_t: Any) -> bool:
    """Whether all that stock does with a matrix's values is to weigh the sources' rows by them."""
    linear = REDUCERS.get(type(conv.aggr_module)) in ("sum", "mean")
    weighs = isinstance(adj_t, Tensor) and stock_class(conv) in MULTIPLY
    return conv.fuse and linear and (weighs or recipe.fuses_weights)


def graph_of(
    conv: Any, recipe: Recipe, adj_t: Any, *, met: bool = False, both: bool = True
) -> HAG | WeightedGraph | str:
    """The graph of a matrix, with its values as edge weights where they are not all 1; or why it
    has none.

    Args:
        conv: the layer.
        recipe: its recipe.
        adj_t: the matrix.
        met: whether it is met first: nothing is searched then.
        both: whether its reverse is to be made with it.
    """
    values, size = values_of(adj_t), shape_of(adj_t)
    record = replace(recipe.record, weights_as_given=False)  # values are normalised, too
    row, col = _entries(adj_t)
    loops, edges = record.self_loops(conv), torch.stack([col, row])
    if loops is not False and bool((row == col).any()):
        return LOOPED
    loop_weighs_2 = loops == "fill" and getattr(conv, "improved", False)
    if has_ones(adj_t) and not loop_weighs_2:
        hag = plain_hag(edges, size, both=both) if met else build_hag(edges, size=size)
        return DUPLICATES if _is_summed_up(adj_t) and hag.has_duplicates else hag
    if values is None:
        values = torch.ones(len(col))
    if values.dim() != 1 or not weighs_by_values(conv, recipe, adj_t):
        return VALUES
    index, weight = weighed_edges(conv, record, edges, values, size[0])
    if not met:
        graph = of_constant(index, weight, size)
    else:
        graph = met_first(index, weight, size, both=both)
    return DUPLICATES if _is_summed_up(adj_t) and graph.hag.has_duplicates else graph


def _is_summed_up(adj_t: Any) -> bool:
    """Whether stock adds up what stands twice in a matrix."""
    is_coo = isinstance(adj_t, Tensor) and adj_t.layout == torch.sparse_coo
    return is_coo and not adj_t.is_coalesced()


def _entries(adj_t: Any) -> tuple[Tensor, Tensor]:
    """The row and the column of each entry."""
    parts = parts_of(adj_t)
    if isinstance(adj_t, Tensor) and adj_t.layout == torch.sparse_coo:
        return parts[0][0], parts[0][1]
    starts, others = parts[:2]
    rows = torch.arange(len(starts) - 1, dtype=others.dtype, device=others.device)
    mine = rows.repeat_interleave(starts.diff(), output_size=len(others))
    is_csc = isinstance(adj_t, Tensor) and adj_t.layout == torch.sparse_csc
    return (others, mine) if is_csc else (mine, others)
