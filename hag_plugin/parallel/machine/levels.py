"""A tree of levels, innermost first: devices join into groups, groups into larger ones.

A *port* joins a member of a group (a device, or a whole group of the level below) to the group's
switch, one link in each direction; a *pair* link joins two members directly; a *bus* is one link
that all members share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from hag_plugin.saved import set_module

SHAPES = ("ports", "pairs", "bus")


@set_module("hag_plugin.parallel")
@dataclass(frozen=True)
class Level:
    """How the members of a group are joined.

    Attributes:
        name: of the link.
        size: members of a group.
        bandwidth: of a link, bytes a second and direction (of a bus: in all).
        latency: seconds a message.
        shape: "ports", "pairs" or "bus".
        of_devices: whether each device has a port of its own, even where the members are groups.
        efficiency: share of the bandwidth that messages reach.
        bandwidths: where links are not alike, that of each in place of `bandwidth`: of members
            (of devices, under `of_devices`; of a bus's groups) in order over the whole machine.
            Both directions of a port have it; a pair has the lower one of its two members.
    """

    name: str
    size: int
    bandwidth: float
    latency: float
    shape: str = "ports"
    of_devices: bool = False
    efficiency: float = 0.8
    bandwidths: tuple[float, ...] = ()

    def rate(self, *members: int) -> float:
        """Bytes a second that messages reach on the slowest of these members' links."""
        if not self.bandwidths:
            return self.bandwidth * self.efficiency
        return min(self.bandwidths[member] for member in members) * self.efficiency


@set_module("hag_plugin.parallel")
@dataclass(frozen=True)
class Link:
    """One direction of a connection; carries one message after the other.

    Attributes:
        name: unique in the topology.
        bandwidth: bytes a second, as reached.
        latency: seconds a message.
        level: index of its level, 0 innermost.
    """

    name: str
    bandwidth: float
    latency: float
    level: int


class Tree:
    """Devices and the links that join them; `topology.Topology` says the rest of a machine.

    Attributes:
        levels: innermost first; the number of devices is the product of their sizes.
        backend: what collectives run on.
    """

    levels: tuple[Level, ...]
    backend: str

    @property
    def num_devices(self) -> int:
        """How many devices there are."""
        return math.prod(level.size for level in self.levels)

    @cached_property
    def spans(self) -> tuple[int, ...]:
        """Devices of a group of each level, innermost first, after 1 for the device itself."""
        spans = [1]
        for level in self.levels:
            spans.append(spans[-1] * level.size)
        return tuple(spans)

    def level_between(self, a: int, b: int) -> int:
        """The level at which two devices meet, 0 innermost."""
        for i, span in enumerate(self.spans[1:]):
            if a // span == b // span:
                return i
        raise ValueError(f"devices {a} and {b}; expected two of {self.num_devices}")

    def route(self, a: int, b: int) -> tuple[Link, ...]:
        """The links that a message from device `a` to device `b` occupies, in order.

        A message takes the latencies of all of them and the bandwidth of the slowest.
        """
        if a == b:
            return ()
        i = self.level_between(a, b)
        level, inner = self.levels[i], self.spans[i]
        x, y = (a, b) if level.of_devices else (a // inner, b // inner)
        kind = "" if level.of_devices or inner == 1 else f"group {i} "
        where = level.name if self.spans[i + 1] == self.num_devices else (
            f"{level.name} {a // self.spans[i + 1]}"
        )  # fmt: skip
        if level.shape == "bus":
            return (Link(where, level.rate(a // self.spans[i + 1]), level.latency, i),)
        if level.shape == "pairs":
            name = f"{kind}{x}>{kind}{y} ({level.name})"
            return (Link(name, level.rate(x, y), level.latency, i),)
        half = level.latency / 2
        return (
            Link(f"{kind}{x}>{where}", level.rate(x), half, i),
            Link(f"{where}>{kind}{y}", level.rate(y), half, i),
        )

    def num_links(self, i: int) -> int:
        """How many entries `bandwidths` of a level has."""
        level = self.levels[i]
        if level.shape == "bus":
            return self.num_devices // self.spans[i + 1]
        return self.num_devices // (1 if level.of_devices else self.spans[i])

    def slowest_rate(self, i: int, devices: Sequence[int]) -> float:
        """Bytes a second of the slowest link of a level through which these devices meet."""
        level, inner, outer = self.levels[i], self.spans[i], self.spans[i + 1]
        if not level.bandwidths:
            return level.rate()
        groups: dict[int, set[int]] = {}
        for device in devices:
            groups.setdefault(device // outer, set()).add(device // inner)
        meeting = {group for group, members in groups.items() if len(members) > 1}
        if level.shape == "bus":
            return level.rate(*meeting)
        span = 1 if level.of_devices else inner
        return level.rate(*{d // span for d in devices if d // outer in meeting})

    @cached_property
    def links(self) -> tuple[Link, ...]:
        """Every link that some route uses, in the order of the devices."""
        found: dict[str, Link] = {}
        for a in range(self.num_devices):
            for b in range(self.num_devices):
                for link in self.route(a, b):
                    found.setdefault(link.name, link)
        return tuple(found.values())

    def message_seconds(self, a: int, b: int, nbytes: float) -> float:
        """One message from `a` to `b` while nothing else is under way."""
        links = self.route(a, b)
        if not links:
            return 0.0
        return sum(k.latency for k in links) + nbytes / min(k.bandwidth for k in links)
