"""Edges in the order of their targets, and the blocks that they are cut into."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hag_plugin.hag.edge_blocks import Block, EdgeBlocks

from ..cases import draw_graph


@settings(max_examples=80)
@given(st.data())
def test_edges_are_sorted_by_target(data: st.DataObject) -> None:
    edges, num_src, num_dst = draw_graph(data)
    blocks = EdgeBlocks(edges, (num_src, num_dst))
    order = torch.arange(edges.shape[1]) if blocks.order is None else blocks.order
    assert torch.equal(order.sort().values, torch.arange(edges.shape[1]))
    assert torch.equal(torch.stack([blocks.source, blocks.target]), edges[:, order])
    key = blocks.target * num_src + blocks.source
    assert bool((key.diff() >= 0).all())
    assert torch.equal(blocks.degrees(), torch.bincount(edges[1], minlength=num_dst))


@settings(max_examples=150)
@given(st.data(), st.integers(1, 9), st.booleans())
def test_blocks_hold_every_edge_and_row_once(data: st.DataObject, most: int, whole: bool) -> None:
    edges, num_src, num_dst = draw_graph(data)
    graph = EdgeBlocks(edges, (num_src, num_dst))
    cut = graph.cut(most, whole)
    held = [edge for block in cut for edge in range(block.first_edge, block.last_edge)]
    assert held == list(range(edges.shape[1]))
    for block in cut:
        rows = graph.target[block.first_edge : block.last_edge]
        assert bool(((rows >= block.first_row) & (rows < block.last_row)).all())
        if not whole:
            assert len(rows) <= most
        else:
            assert len(rows) <= most or len(rows.unique()) == 1
    if whole:
        held = [row for block in cut for row in range(block.first_row, block.last_row)]
        assert held == list(range(num_dst))


def test_rows_behind_the_last_edge_are_in_a_block() -> None:
    graph = EdgeBlocks(torch.tensor([[0, 1], [1, 1]]), (2, 9))
    assert graph.cut(1, whole=True)[-1] == Block(0, 2, 0, 9)


def test_refuses_what_is_no_graph() -> None:
    with pytest.raises(ValueError, match="edge_index"):
        EdgeBlocks(torch.tensor([[0], [5]]), (2, 2))
    with pytest.raises(TypeError):
        EdgeBlocks(torch.zeros(2, 3), (2, 2))
