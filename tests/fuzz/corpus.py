"""Seeds of the native targets: programs and graphs as `native/input.h` reads them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

import hag_plugin as hp
from hag_plugin.hag.program import SELF_LOOPS


def number(value: int) -> bytes:
    """One byte for a small number, nine for any other."""
    if -64 <= value < 0xF0 - 64:
        return bytes([value + 64])
    return b"\xff" + (value % 2**64).to_bytes(8, "little")


def array(values: Iterable[int]) -> bytes:
    """Its length, up to 255, and its numbers."""
    found = [int(v) for v in values][:255]
    return bytes([len(found)]) + b"".join(map(number, found))


def edges(nodes: int, seed: int) -> torch.Tensor:
    """Cliques, random edges, duplicates and loops."""
    random = np.random.default_rng(seed)
    group = random.integers(0, 2, nodes)
    inside = np.stack(np.nonzero(group[:, None] == group))
    return torch.from_numpy(np.concatenate([inside, random.integers(0, nodes, (2, nodes))], 1))


def hags() -> list[tuple[hp.HAG, int]]:
    """Graphs whose programs are short enough for a seed, and their numbers of nodes."""
    made = [(hp.build_hag(edges(n, n), num_nodes=n, choose="hag"), n) for n in (2, 4, 6, 9, 11)]
    greedy = hp.build_hag(edges(8, 0), num_nodes=8, method="greedy")
    less = hp.build_hag(
        edges(8, 0).unique(dim=1), num_nodes=8, choose="hag", allow_subtraction=True
    )
    return [*made, (greedy, 8), (less, 8)]


def programs() -> list[bytes]:
    seeds = []
    for hag, nodes in hags():
        for mode in SELF_LOOPS:
            program = hag.program(mode)
            head = number(nodes) + number(nodes) + number(program.diagonal)
            body = b"".join(array(a.tolist()) for a in program.arrays)
            seeds.append(head + body + b"\0\0\0\0\1\2\3\4")
    # A row of partial sums.
    hub = [array(a) for a in ([0, 1, 3], [0, 2, 3, 4], [0, 1, 2, 0], [3, 4, 0], [2], [0, 2])]
    seeds.append(number(3) + number(3) + number(0) + b"".join(hub))
    return seeds


def graphs() -> list[bytes]:
    tail = [bytes([0, 0, 4, 200, 90, 90, 10, 10, 5]), bytes([1, 1, 1, 1, 1, 1, 1, 1, 200])]
    return [
        number(nodes) + array(hag.row_ptr.tolist()) + array(hag.col.tolist()) + more
        for hag, nodes in hags()
        for more in tail
    ]


def batches() -> list[bytes]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, 400, dtype=np.uint8).tobytes() for _ in range(20)]


def sets() -> list[bytes]:
    seeds = []
    for (hag, nodes), (other, more) in zip(hags(), hags()[1:], strict=False):
        row_ptr = [*hag.row_ptr.tolist(), *other.row_ptr.tolist()]
        col = [*hag.col.tolist(), *other.col.tolist()]
        body = b"\2" + number(nodes) + number(more) + array(row_ptr) + array(col)
        program = b"\1" + b"".join(array(a.tolist()) for a in hag.program().arrays)
        seeds += [body + b"\0\0\0\1\5\5\5\3\0\1\0", body + b"\0\0\1" + program + b"\0\1\5\5\5\2"]
    return seeds


SEEDS = {"program": programs, "csr": graphs, "concatenate": batches, "graph_set": sets}
