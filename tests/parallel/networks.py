"""Plans of networks without a graph in which each operation is split in any way."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

from hag_plugin.parallel.machine.topology import Topology, preset
from hag_plugin.parallel.model.network import Network
from hag_plugin.parallel.search.network import NetworkPlan, NetworkSpace
from hag_plugin.parallel.strategies.axes import Rule, Split, possible, rule_of
from hag_plugin.parallel.strategies.placement import default


def any_split(rule: Rule, size: int, draw: random.Random) -> Split:
    """Of any axes, into any number of parts, on any ranks in any order."""
    left, chosen = size, {}
    for axis in draw.sample(rule.axes, len(rule.axes)):
        parts = draw.choice([1, *(p for p in possible(axis.size, size) if p <= left)])
        left //= parts
        chosen[axis.name] = parts
    named = tuple((a.name, chosen[a.name]) for a in rule.axes if chosen[a.name] > 1)
    ranks = draw.sample(range(size), math.prod(parts for _, parts in named))
    return Split(named, tuple(ranks))


def space_with(found: Network, machine: Topology, splits: Mapping[str, Split]) -> NetworkSpace:
    """The plan with these splits alone; what they do not name is whole, on the first device."""
    every = {op.name: splits.get(op.name, default()) for op in found.operations}
    return NetworkSpace(found, machine, every)


def only_plan(space: NetworkSpace) -> NetworkPlan:
    """The plan of the first choice of each operation."""
    return space.planned([0] * len(space.choices), {})


def plan_of(found: Network, size: int, splits: Mapping[str, Split]) -> NetworkPlan:
    """The plan with these splits."""
    return only_plan(space_with(found, preset("a100x8").resized(size), splits))


def any_splits(found: Network, size: int, draw: random.Random) -> dict[str, Split]:
    """Each operation split in any way."""
    return {op.name: any_split(rule_of(op), size, draw) for op in found.operations}


def any_plan(found: Network, size: int, seed: int) -> NetworkPlan:
    """Each operation split in any way."""
    return plan_of(found, size, any_splits(found, size, random.Random(seed)))
