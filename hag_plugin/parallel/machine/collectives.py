"""How long collectives take on the links of a topology, one model per algorithm.

Each model takes the topology, the bytes that each device sends by the count of a ring, the devices
that take part (increasing), and how many such groups work at the same time and share links.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from hag_plugin.parallel.machine.levels import Tree

Model = Callable[[Tree, float, Sequence[int], int], float]


def ring(passes: int) -> Model:
    """A ring: `passes * (P - 1)` rounds, in each a device sends a share to the next one."""

    def seconds(topology: Tree, sent: float, members: Sequence[int], at_once: int) -> float:
        rounds = passes * (len(members) - 1)
        slowest = 0.0
        for i in range(_meeting(topology, members) + 1):
            level, inner, outer = topology.levels[i], topology.spans[i], topology.spans[i + 1]
            hops = _crossings(members, inner, outer)
            if not hops:
                continue
            # At a group's own port one hop of each ring leaves; on a bus all hops take turns.
            lanes: float = hops if level.shape == "bus" else 1
            if not level.of_devices and inner > 1:
                lanes *= at_once
            if level.shape == "pairs":  # as many rings at once as a member has links
                lanes /= max(hops - 1, 1)
            time = sent * lanes / topology.slowest_rate(i, members)
            slowest = max(slowest, rounds * level.latency + time)
        return slowest

    return seconds


def tree(passes: int) -> Model:
    """Up and down a binary tree: fewer rounds than a ring, more bytes."""

    def seconds(topology: Tree, sent: float, members: Sequence[int], at_once: int) -> float:
        size = len(members)
        whole = sent * size / (size - 1)  # 2 V, where a ring sends 2 (P-1)/P V
        bytes_only = ring(0)(topology, whole, members, at_once)
        rounds = passes * math.ceil(math.log2(size))
        return rounds * _latency(topology, members) + bytes_only

    return seconds


def pairwise(topology: Tree, sent: float, members: Sequence[int], at_once: int) -> float:
    """Every device sends a share to every other one; levels work at the same time."""
    others, home = len(members) - 1, members[0]
    slowest = 0.0
    for i in range(_meeting(topology, members) + 1):
        level, inner, outer = topology.levels[i], topology.spans[i], topology.spans[i + 1]
        near = [m for m in members if m // outer == home // outer]
        beside = sum(m // inner == home // inner for m in near)  # these share a group's port
        peers = len(near) - beside
        lanes: float = 1 if level.of_devices or inner == 1 else beside * at_once
        if level.shape == "bus":
            lanes = len(near) * at_once
        if level.shape == "pairs":
            lanes /= max(len({m // inner for m in near}) - 1, 1)
        if not peers:
            continue
        time = sent * peers / others * lanes / topology.slowest_rate(i, members)
        slowest = max(slowest, time)
    return others * _latency(topology, members) + slowest


def all_reduce_per_rank(topology: Tree, sent: float, members: Sequence[int], at_once: int) -> float:
    """gloo's reduce-scatter: one all-reduce of each rank's chunk, so P times the rounds."""
    if topology.backend != "gloo":
        return math.inf
    size = len(members)
    return size * ring(2)(topology, 2 * sent / size, members, at_once)


def not_on_gloo(model: Model) -> Model:
    """An algorithm that gloo does not have."""

    def seconds(topology: Tree, sent: float, members: Sequence[int], at_once: int) -> float:
        if topology.backend == "gloo":
            return math.inf
        return model(topology, sent, members, at_once)

    return seconds


COLLECTIVES: dict[str, dict[str, Model]] = {
    "all_gather": {"ring": ring(1)},
    "reduce_scatter": {"ring": not_on_gloo(ring(1)), "all-reduce per rank": all_reduce_per_rank},
    "all_reduce": {"ring": ring(2), "tree": not_on_gloo(tree(2))},
    "all_to_all": {"pairwise": pairwise},
    "exchange": {"pairwise": pairwise},
}


def _meeting(topology: Tree, members: Sequence[int]) -> int:
    """The level that joins all of `members`."""
    return topology.level_between(members[0], members[-1])


def _latency(topology: Tree, members: Sequence[int]) -> float:
    return max(level.latency for level in topology.levels[: _meeting(topology, members) + 1])


def _crossings(members: Sequence[int], inner: int, outer: int) -> int:
    """Hops of a ring in the order of the members that meet at a level, the most of one group."""
    counts: dict[int, int] = {}
    for a, b in zip(members, [*members[1:], members[0]], strict=True):
        if a // inner != b // inner and a // outer == b // outer:
            counts[a // outer] = counts.get(a // outer, 0) + 1
    return max(counts.values(), default=0)
