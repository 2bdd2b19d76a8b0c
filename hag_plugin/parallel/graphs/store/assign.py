"""Which part has which node, and the numbers that nodes get of that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from hag_plugin.parallel.graphs.partition import has_metis, partition
from hag_plugin.parallel.graphs.store.fennel import fennel
from hag_plugin.parallel.graphs.store.sorting import Numbering, Spool
from hag_plugin.parallel.layouts import chunk_sizes

METHODS = ("auto", "contiguous", "metis", "labels", "fennel")
# What METIS and label propagation take in memory at most. Measured, with 4 parts: 98 bytes an edge
# where nodes have 20, and 166 where they have 2.
EDGE_BYTES, NODE_BYTES = 200, 200
BLOCK = 1 << 20  # nodes at a time


def contiguous(nodes: int, parts: int) -> Numbering:
    """Blocks as `torch.chunk` makes them."""
    return Numbering(np.concatenate([[0], np.cumsum(chunk_sizes(nodes, parts))]))


def numbered(owner: np.ndarray, parts: int) -> Numbering:
    """The numbering of an assignment `[N]`: nodes of a part stay in their old order."""
    first = np.zeros(parts + 1, np.int64)
    for at in range(0, len(owner), BLOCK):
        first[1:] += np.bincount(owner[at : at + BLOCK], minlength=parts)
    first = np.cumsum(first)
    position, following = np.empty(len(owner), np.int32), first[:-1].copy()
    for at in range(0, len(owner), BLOCK):
        block = owner[at : at + BLOCK]
        order = np.argsort(block, kind="stable")
        counts = np.bincount(block, minlength=parts)
        starts = np.cumsum(counts) - counts
        position[at + order] = (following - starts)[block[order]] + np.arange(len(block))
        following += counts
    return Numbering(first, position)


def assign(
    spool: Spool, nodes: int, parts: int, method: str, memory: int, folder: Path
) -> tuple[Numbering, str]:
    """The numbering that a method makes, and the method that was taken.

    Args:
        spool: the edges.
        nodes: N.
        parts: R.
        method: of `METHODS`. "auto": METIS where it is installed and the graph fits into memory,
            otherwise Fennel; contiguous blocks where these cut no more edges.
        memory: bytes that this may take.
        folder: for files that are gone at the end.

    Raises:
        ValueError: METIS or label propagation was asked for, and the graph does not fit.
        ImportError: METIS was asked for, and is not installed.
    """
    blocks = contiguous(nodes, parts)
    if method == "contiguous" or parts == 1 or nodes <= parts:
        return blocks, "contiguous"
    needed = EDGE_BYTES * spool.edges + NODE_BYTES * nodes
    kind = method
    if method == "auto":
        kind = "metis" if has_metis() and needed <= memory else "fennel"
    if kind == "fennel":
        found = numbered(fennel(spool, nodes, parts, memory, folder), parts)
    elif needed > memory:
        raise ValueError(
            f"method {kind!r} takes {needed:,} bytes of memory for {spool.edges:,} edges, and "
            f"{memory:,} are left; expected more, or method 'fennel'"
        )
    else:
        edges = np.empty((2, spool.edges), np.int64)
        at = 0
        for source, target in spool.blocks():
            edges[:, at : at + len(source)] = source, target
            at += len(source)
        order = partition(torch.from_numpy(edges), nodes, parts, kind)
        first = np.concatenate([[0], np.cumsum(order.rows)])
        found = Numbering(first, order.position.astype(np.int32))
    if method == "auto" and cut_edges(spool, blocks) <= cut_edges(spool, found):
        return blocks, "contiguous"
    return found, kind


def cut_edges(spool: Spool, numbering: Numbering) -> int:
    """Edges whose ends are in different parts."""
    cut = 0
    for source, target in spool.blocks():
        parts = (numbering.parts_of(numbering(ids)) for ids in (source, target))
        cut += int(np.count_nonzero(np.not_equal(*parts)))
    return cut
