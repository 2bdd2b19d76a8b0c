"""A network on a machine as a `StrategyModel`: the tasks of each configuration, and their time.

Computation is a roofline over published peaks; messages and all-reduces take what the topology
says. All of it is a model: nothing here was run on these machines. A tensor that several parts need
is sent to each on its own, as in the papers: nothing is multicast.

Gradients are summed in one of two ways. With "server", as in the papers, one of the copies of a
weight receives the gradients of the others, updates it and sends it back; homes take turns. With
"ring", as NCCL does today, an all-reduce sums them and every copy is updated. Of a layer that runs
in several blocks of time steps, the first block's copies do that; later blocks get the weights from
the block before, where their device does not hold them, and give it their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from hag_plugin.parallel.machine.topology import Topology
from hag_plugin.parallel.simulation.tasks import (
    BACKWARD,
    FORWARD,
    SHORTEST,
    SOURCE,
    SYNCHRONISE,
    TARGET,
    TRANSFER,
    UPDATE,
    Block,
    resources_of,
)

from .flexflow_soap import (
    SPACES,
    Config,
    Network,
    Operation,
    configs,
    intervals,
    largest_share,
    overlaps,
)

BYTES = 4  # float32
SUMMED = ("server", "ring")
CACHED = 40_000  # blocks that are kept


Lists = tuple[list[int], list[int | tuple[int, ...]], list[float], list[tuple[int, int]]]


def _append(
    block: Lists, kind: int, resource: int | tuple[int, ...], seconds: float, after: Sequence[int]
) -> int:
    """Adds a task to the lists of a block; returns its place."""
    kinds, resources, durations, joins = block
    place = len(kinds)
    kinds.append(kind)
    resources.append(resource)
    durations.append(seconds)
    joins.extend((first, place) for first in after)
    return place


class SoapModel:
    """What can be chosen for each operation of a network, and the tasks that follow.

    Args:
        network: the operations.
        topology: the machine.
        space: which configurations there are, see `configs`.
        summed: how gradients are: by a "server" or in a "ring".
    """

    def __init__(
        self, network: Network, topology: Topology, *, space: str = "grids", summed: str = "server"
    ) -> None:
        if summed not in SUMMED:
            raise ValueError(f"gradients are summed by {summed!r}; expected one of {SUMMED}")
        if space not in SPACES:
            raise ValueError(f"space is {space!r}; expected one of {SPACES}")
        self.summed = summed
        self.network, self.topology = network, topology
        self.names = [operation.name for operation in network.operations]
        self.reads = [
            (u, v, read) for v, op in enumerate(network.operations) for u, read in op.inputs
        ]
        self.edges = [(u, v) for u, v, _ in self.reads]
        devices = topology.num_devices
        self.resources = resources_of(topology)
        self.configs = [configs(op, devices, space) for op in network.operations]
        self.layer_of = [0] * len(self.names)
        for number, layer in enumerate(network.layers):
            for node in layer:
                self.layer_of[node] = number
        self.place = [{config: i for i, config in enumerate(own)} for own in self.configs]
        self._nodes: dict[tuple[int, int], Block] = {}
        self._edges: dict[tuple[int, int, int], Block] = {}

    def num_configs(self, node: int) -> int:
        """How many configurations an operation has."""
        return len(self.configs[node])

    @property
    def sizes(self) -> list[int]:
        """Configurations of each operation."""
        return [len(own) for own in self.configs]

    @cached_property
    def routes(self) -> list[list[tuple[tuple[int, ...], float, float]]]:
        """For two devices: the links between them, their latency, and seconds a byte."""
        topology, devices = self.topology, range(self.topology.num_devices)
        place = {link.name: len(devices) + i for i, link in enumerate(topology.links)}
        table = []
        for a in devices:
            row = []
            for b in devices:
                links = topology.route(a, b)
                latency = sum(link.latency for link in links)
                rate = min((link.bandwidth for link in links), default=1.0)
                row.append((tuple(place[link.name] for link in links), latency, 1.0 / rate))
            table.append(row)
        return table

    # Time -----------------------------------------------------------------------------------------

    def compute_seconds(self, node: int, config: Config, place: int) -> tuple[float, float]:
        """(forward, backward) of the largest part, without what its time steps exchange.

        Args:
            node: the operation.
            config: of it.
            place: the device.
        """
        operation, device = self.network.operations[node], self.topology.device_at(place)
        share = largest_share(operation, config)
        weights = operation.weights / config.degrees[1]
        if operation.kind == "embedding":
            weights = 0.0  # it reads rows, not the table
        # Every time step reads the weights again.
        moved = weights * max(operation.exchanges, 1) + operation.elements * share
        for source, read in operation.inputs:
            if read.weights or read.last:
                continue
            elements = self.network.operations[source].elements
            split = 1.0 / config.degrees[0]
            if read.channels != "all":
                split /= config.degrees[1]
            if read.space != "all":
                split /= config.degrees[2] * config.degrees[3]
            moved += elements * split
        forward = max(
            operation.flops * share / (device.flops * device.flops_efficiency),
            moved * BYTES / (device.bandwidth * device.bandwidth_efficiency),
        )
        passes = 2.0 if operation.inputs and operation.weights else 1.0  # of inputs, of weights
        overhead = device.overhead * max(operation.exchanges, 1)
        return forward + overhead, forward * passes + overhead

    def copies(self, node: int, config: Config) -> list[list[int]]:
        """For each shard of the weights that is summed here, the parts that have a copy of it."""
        if node != self.network.layers[self.layer_of[node]][0]:
            return []  # the gradients go to the block before
        return self.shards(node, config)

    def shards(self, node: int, config: Config) -> list[list[int]]:
        """For each shard of the weights, the parts that have a copy of it."""
        n, c, h, w = config.degrees
        if not self.network.operations[node].weights:
            return []
        return [
            [(i * c + shard) * h * w + j for i in range(n) for j in range(h * w)]
            for shard in range(c)
        ]

    def home(self, node: int, parts: Sequence[int]) -> int:
        """The part that serves the copies of a shard; layers take turns."""
        return parts[self.layer_of[node] % len(parts)]

    def shard_bytes(self, node: int, config: Config) -> float:
        """Of one shard of the weights."""
        return self.network.operations[node].weights / config.degrees[1] * BYTES

    def all_reduce(self, node: int, config: Config, parts: Sequence[int]) -> tuple[float, float]:
        """(bytes that each sends, seconds) to sum the gradients of a shard in a ring."""
        count = len(parts)
        sent = 2.0 * (count - 1) / count * self.shard_bytes(node, config)
        group = [config.devices[part] for part in parts]
        return sent, self.topology.seconds("all_reduce", sent, group)

    def message(self, x: int, y: int, nbytes: float) -> tuple[tuple[int, ...], float]:
        """(links, seconds) from device x to device y."""
        links, latency, rate = self.routes[x][y]
        return links, latency + nbytes * rate

    def exchange(self, node: int, config: Config) -> list[tuple[list[int], float, float]]:
        """Of the time steps inside, the gathers of the state: (parts, bytes each, seconds)."""
        operation = self.network.operations[node]
        n, c, _, _ = config.degrees
        if not operation.exchanges or c == 1:
            return []
        step = operation.shape[0] / n * operation.shape[1] * BYTES
        sent, times = (c - 1) / c * step, operation.exchanges - 1
        found = []
        for i in range(n):
            parts = [i * c + j for j in range(c)]
            group = [config.devices[part] for part in parts]
            one = self.topology.seconds("all_gather", sent, group)
            found.append((parts, sent * times, one * times))
        return found

    def update_seconds(self, node: int, config: Config, place: int) -> float:
        """Of applying gradients on a device: read both, write the weights."""
        device = self.topology.device_at(place)
        weights = self.network.operations[node].weights / config.degrees[1]
        moved = 3 * weights * BYTES / (device.bandwidth * device.bandwidth_efficiency)
        return moved + device.overhead

    def ring(self, devices: Sequence[int]) -> tuple[int, ...]:
        """The links that a collective over these devices takes."""
        hops = zip(devices, [*devices[1:], devices[0]], strict=True)
        return tuple(sorted({link for a, b in hops for link in self.routes[a][b][0]}))

    # Tasks ----------------------------------------------------------------------------------------

    def ends(self, node: int, config: Config) -> tuple[int, int, int, int]:
        """Where in its block an operation's tasks start that wait for inputs, that give outputs,
        that wait for gradients of outputs, and that give those of inputs; one for each part."""
        parts = config.parts
        if self.exchange(node, config):  # two halves, the state exchanged between them
            return 0, 2 * parts, parts, 3 * parts
        return 0, 0, parts, parts

    def gathered(self, node: int, config: Config) -> int:
        """Where its tasks start that gather gradients of the weights, one for each part."""
        return self.ends(node, config)[3] + config.parts

    def node_block(self, node: int, config: int) -> Block:
        """Forward and backward of each part, then the weights."""
        block = self._nodes.get((node, config))
        if block is None:
            block = self._nodes[node, config] = self._node_block(node, self.configs[node][config])
        return block

    def _node_block(self, node: int, config: Config) -> Block:
        parts, exchanges = config.parts, self.exchange(node, config)
        halves = 2 if exchanges else 1
        seconds = [self.compute_seconds(node, config, device) for device in config.devices]
        forward, backward = ([t[phase] / halves for t in seconds] for phase in (0, 1))
        kinds = ([FORWARD] * parts + [BACKWARD] * parts) * halves
        resources: list[int | tuple[int, ...]] = [*config.devices * (2 * halves)]
        durations = (forward + backward) * halves
        _, last_forward, first_backward, last_backward = self.ends(node, config)
        joins = [(last_forward + i, first_backward + i) for i in range(parts)]
        block = kinds, resources, durations, joins
        ready = [last_backward + part for part in range(parts)]
        if (
            len(self.network.layers[self.layer_of[node]]) > 1
            and self.network.operations[node].weights
        ):
            ready = [
                _append(block, UPDATE, device, SHORTEST, [task])
                for device, task in zip(config.devices, ready, strict=True)
            ]
        for members, _, seconds in exchanges:
            links = self.ring([config.devices[part] for part in members])
            for start, then in ((0, last_forward), (first_backward, last_backward)):
                task = _append(block, TRANSFER, links, seconds, [start + part for part in members])
                joins += [(task, then + part) for part in members]
        for shard in self.copies(node, config):
            gradients = [ready[part] for part in shard]
            if self.summed == "ring":
                self._add_ring(block, node, config, shard, gradients)
            else:
                self._add_server(block, node, config, shard, gradients)
        return Block(kinds, resources, durations, joins)

    def _add_ring(
        self, block: Lists, node: int, config: Config, parts: list[int], ready: list[int]
    ) -> None:
        devices = [config.devices[part] for part in parts]
        if len(parts) > 1:
            seconds = self.all_reduce(node, config, parts)[1]
            task = _append(block, SYNCHRONISE, self.ring(devices), seconds, ready)
            ready = [task] * len(parts)
        for device, task in zip(devices, ready, strict=True):
            _append(block, UPDATE, device, self.update_seconds(node, config, device), [task])

    def _add_server(
        self, block: Lists, node: int, config: Config, parts: list[int], ready: list[int]
    ) -> None:
        home = config.devices[self.home(node, parts)]
        nbytes, arrived = self.shard_bytes(node, config), []
        others = [config.devices[part] for part in parts]
        for device, task in zip(others, ready, strict=True):
            if device != home:
                task = _append(block, SYNCHRONISE, *self.message(device, home, nbytes), [task])
            arrived.append(task)
        update = _append(block, UPDATE, home, self.update_seconds(node, config, home), arrived)
        for device in others:
            if device != home:
                _append(block, SYNCHRONISE, *self.message(home, device, nbytes), [update])

    def edge_block(self, edge: int, first: int, second: int) -> Block:
        """Messages, forward and backward; parts on one device only wait for each other."""
        block = self._edges.get((edge, first, second))
        if block is None:
            if len(self._edges) >= CACHED:
                self._edges.clear()
            block = self._edges[edge, first, second] = self._edge_block(edge, first, second)
        return block

    def messages(self, edge: int, a: Config, b: Config) -> list[tuple[int, int, float]]:
        """(part of the first, part of the second, bytes that one has and the other needs)."""
        u, v, read = self.reads[edge]
        if read.weights:
            return self._weights_needed(u, a, b)
        source, target = self.network.operations[u], self.network.operations[v]
        shared = overlaps(source, target, read, a.degrees, b.degrees)
        return [(i, j, elements * BYTES) for i, j, elements in shared]

    def _weights_needed(self, node: int, a: Config, b: Config) -> list[tuple[int, int, float]]:
        """Shards from a holder on the same device where there is one, else from each in turn."""
        operation = self.network.operations[node]
        channels, found = operation.shape[1], []
        held, needed = (intervals(channels, config.degrees[1]) for config in (a, b))
        each = operation.weights / channels * BYTES
        holders, users = self.shards(node, a), self.shards(node, b)
        for (low, high), parts in zip(needed, users, strict=True):
            for turn, part in enumerate(parts):
                for (first, last), copies in zip(held, holders, strict=True):
                    if size := max(min(high, last) - max(low, first), 0):
                        here = [i for i in copies if a.devices[i] == b.devices[part]]
                        found.append(((here or copies)[turn % len(here or copies)], part,
                                      size * each))  # fmt: skip
        return found

    def _edge_block(self, edge: int, first: int, second: int) -> Block:
        u, v, read = self.reads[edge]
        a, b = self.configs[u][first], self.configs[v][second]
        _, out, back, _ = self.ends(u, a)
        into, _, _, gives = self.ends(v, b)
        if read.weights:  # they are there from the start; gradients are added to the block before's
            back, gives = self.gathered(u, a), self.gathered(v, b)
        kinds: list[int] = []
        resources: list[int | tuple[int, ...]] = []
        durations: list[float] = []
        joins: list[tuple[int, int]] = []
        kind, routes = SYNCHRONISE if read.weights else TRANSFER, self.routes
        for i, j, nbytes in self.messages(edge, a, b):
            x, y = a.devices[i], b.devices[j]
            start, end = SOURCE + out + i, TARGET + into + j
            back_start, back_end = TARGET + gives + j, SOURCE + back + i
            if x == y:
                joins.append((back_start, back_end))
                if not read.weights:
                    joins.append((start, end))
                continue
            if not read.weights:
                joins.append((start, len(kinds)))
            joins += (
                (len(kinds), end), (back_start, len(kinds) + 1), (len(kinds) + 1, back_end)
            )  # fmt: skip
            links, latency, rate = routes[x][y]
            kinds += (kind, kind)
            resources += (links, routes[y][x][0])
            durations += [latency + nbytes * rate] * 2
        return Block(kinds, resources, durations, joins)

    # Bytes ----------------------------------------------------------------------------------------

    def transferred_bytes(self, strategy: Sequence[int]) -> float:
        """What all devices send in one iteration."""
        total = 0.0
        for node, choice in enumerate(strategy):
            config = self.configs[node][choice]
            for parts in self.copies(node, config):
                if self.summed == "ring" and len(parts) > 1:
                    total += len(parts) * self.all_reduce(node, config, parts)[0]
                elif self.summed == "server":
                    total += 2 * (len(parts) - 1) * self.shard_bytes(node, config)
            total += sum(2 * len(parts) * sent for parts, sent, _ in self.exchange(node, config))
        for edge, (u, v) in enumerate(self.edges):
            a, b = self.configs[u][strategy[u]], self.configs[v][strategy[v]]
            total += 2 * sum(
                nbytes for i, j, nbytes in self.messages(edge, a, b) if a.devices[i] != b.devices[j]
            )
        return total

    def operation(self, node: int) -> Operation:
        """An operation of the network."""
        return self.network.operations[node]
