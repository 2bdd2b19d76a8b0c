"""The tasks of a plan for a graph neural network.

All devices run the same operations on parts of the same size, so a computation is one task that
takes every device, for as long as the busiest one works, and a collective is one task that takes
the links of those who take part. What the additive cost of a plan leaves out, and the simulator
has, is overlap: gradients of weights are summed while the backward pass goes on, own rows are
summed while those of others come, and independent branches send and compute at the same time. The
executor does the first two; branches it runs one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from hag_plugin.arguments import check_kind
from hag_plugin.parallel.layouts import Layout, Message
from hag_plugin.parallel.search.cost import Analytic, message_seconds
from hag_plugin.parallel.search.network import NetworkPlan, NetworkSpace
from hag_plugin.parallel.search.plan import Plan
from hag_plugin.parallel.search.space import Space
from hag_plugin.parallel.simulation.network_tasks import network_tasks
from hag_plugin.parallel.simulation.simulator import Schedule, simulate
from hag_plugin.parallel.simulation.strategy_model import simulate_strategy
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
    Links,
    resources_of,
)
from hag_plugin.parallel.strategies.placement import place
from hag_plugin.parallel.strategies.registry import Terms
from hag_plugin.saved import set_module

PHASES = ("forward", "backward", "update")


@dataclass(frozen=True)
class _Chain:
    """An operation's tasks one after the other, and where forward and backward end and begin."""

    block: Block
    last_forward: int
    first_backward: int
    last_backward: int


class PlanModel:
    """All plans of a model on a machine, as what the simulator and the sampler can choose from.

    Args:
        space: configurations, their terms and prices.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        topology = space.topology
        self.names = [op.name for op in space.graph.ops]
        self.edges = list(space.graph.edges)
        self.devices = range(topology.num_devices)
        self.resources = resources_of(topology)
        self._chains: dict[tuple[int, int], _Chain] = {}
        self._routes = Links(topology)
        self._links: dict[int, tuple[int, ...]] = {}
        self._reshards: dict[tuple[int, int, Layout, Layout], list[tuple[str, float, int]]] = {}

    def num_configs(self, node: int) -> int:
        """How many configurations an operation has."""
        return len(self.space.configs[node])

    @cached_property
    def sizes(self) -> list[int]:
        """Configurations of each operation."""
        return [self.num_configs(node) for node in range(len(self.names))]

    def numbers(self, plan: Plan) -> list[int]:
        """A plan's configurations as numbers.

        Raises:
            ValueError: a layer's is not one of the space's; names it.
        """
        found = []
        for layer, configs in zip(plan.layers, self.space.configs, strict=True):
            if layer.config not in configs:
                raise ValueError(f"layer {layer.name!r}: {layer.config} is not possible there")
            found.append(configs.index(layer.config))
        return found

    def node_block(self, node: int, config: int) -> Block:
        """Messages and computation forward, then backward, then the sums of gradients."""
        return self._chain(node, config).block

    def edge_block(self, edge: int, first: int, second: int) -> Block:
        """Changes of layout: forward, and of the gradient if one flows."""
        u, v = self.edges[edge]
        space = self.space
        kinds: list[int] = []
        resources: list[int | tuple[int, ...]] = []
        durations: list[float] = []
        joins: list[tuple[int, int]] = []
        one, two = self._chain(u, first), self._chain(v, second)
        ends = {
            "forward": (SOURCE + one.last_forward, TARGET),
            "backward": (TARGET + two.last_backward, SOURCE + one.first_backward),
        }
        before, after = space.configs[u][first].target, space.configs[v][second].source
        for phase, (start, then) in ends.items():
            if phase == "backward" and not space.gradients[u]:
                continue
            for name, seconds, columns in self._reshard(u, v, before, after):
                if name == phase:
                    joins.append((start, len(kinds)))
                    start = len(kinds)
                    kinds.append(TRANSFER)
                    resources.append(self._group_links(columns))
                    durations.append(max(seconds, SHORTEST))
            joins.append((start, then))
        return Block(kinds, resources, durations, joins)

    def _reshard(
        self, u: int, v: int, before: Layout, after: Layout
    ) -> list[tuple[str, float, int]]:
        """(phase, seconds, group) of each message; fixed features are laid out beforehand."""
        key = (u, v, before, after)
        if key not in self._reshards:
            messages: list[Message] = []
            if self.space.graph.ops[u].kind != "input":
                messages = self.space.reshard_messages(u, v, before, after)
            timed = [(m.phase, message_seconds(self.space.topology, m), m.columns)
                     for m in messages]  # fmt: skip
            self._reshards[key] = [entry for entry in timed if entry[1] > 0]
        return self._reshards[key]

    def _chain(self, node: int, config: int) -> _Chain:
        chain = self._chains.get((node, config))
        if chain is None:
            chain = self._chains[node, config] = self._make_chain(node, config)
        return chain

    def _make_chain(self, node: int, config: int) -> _Chain:
        terms = self.space.terms[node][config]
        computing = self._compute_seconds(terms)
        everywhere = tuple(self.devices)
        kinds: list[int] = []
        resources: list[int | tuple[int, ...]] = []
        durations: list[float] = []

        joins: list[tuple[int, int]] = []

        def add(kind: int, taken: tuple[int, ...], seconds: float, *before: int) -> int:
            kinds.append(kind)
            resources.append(taken)
            durations.append(max(seconds, SHORTEST))
            joins.extend((task, len(kinds) - 1) for task in before)
            return len(kinds) - 1

        def send(phase: str, kind: int, *before: int) -> tuple[int, ...]:
            """The messages of a phase one after the other; returns the last task."""
            for message in terms.messages:
                if message.phase == phase:
                    seconds = message_seconds(self.space.topology, message)
                    if seconds > 0:
                        before = (add(kind, self._group_links(message.columns), seconds, *before),)
            return before

        own = {phase: self._own_seconds(terms, computing, phase) for phase in PHASES[:2]}
        if own["forward"]:  # what comes before the sum, then own rows while others come
            first = add(FORWARD, everywhere, 0.0)
            ready = send("forward", TRANSFER, first)
            ready = (*ready, add(FORWARD, everywhere, own["forward"], first))
        else:
            ready = send("forward", TRANSFER)
        last = add(FORWARD, everywhere, computing["forward"] - own["forward"], *ready)
        last_forward, first_backward = last, last + 1
        if self.space.gradients[node]:
            last = add(BACKWARD, everywhere, computing["backward"] - own["backward"], last)
            ready = send("backward", TRANSFER, last)
            if own["backward"]:  # gradients go to others while own rows get theirs
                mine = add(BACKWARD, everywhere, own["backward"], last)
                ready = (add(BACKWARD, everywhere, 0.0, *ready, mine),)
            [last] = ready
        last_backward = len(kinds) - 1
        ready = send("update", SYNCHRONISE, last)
        if computing["update"]:
            add(UPDATE, everywhere, computing["update"], *ready)
        return _Chain(
            Block(kinds, resources, durations, joins), last_forward, first_backward, last_backward
        )

    def _own_seconds(self, terms: Terms, computing: dict[str, float], phase: str) -> float:
        """What of a phase's computation does not wait for rows of others."""
        sums = [a for a in terms.aggregations if a.phase == phase]
        if not (terms.own and sums and any(m.phase == phase for m in terms.messages)):
            return 0.0
        analytic, s = Analytic(self.space.topology), self.space.graph.itemsize
        streams = [each for each in terms.streams if each[0] == phase]
        of_sums = analytic(replace(terms, aggregations=sums, products=[], streams=streams), s)
        products = [p for p in terms.products if p.phase == phase]
        whole = analytic(replace(terms, aggregations=sums, products=products, streams=streams), s)
        return computing[phase] * terms.own * of_sums / whole

    def _compute_seconds(self, terms: Terms) -> dict[str, float]:
        """What the computation costs, by phase: a measured block is shared out as the analytic."""
        space = self.space
        itemsize = space.graph.itemsize
        total = space.compute(terms, itemsize)
        analytic = Analytic(space.topology)
        shares = {}
        for phase in PHASES:
            part = replace(
                terms,
                aggregations=[a for a in terms.aggregations if a.phase == phase],
                products=[p for p in terms.products if p.phase == phase],
                streams=[s for s in terms.streams if s[0] == phase],
            )
            shares[phase] = analytic(part, itemsize)
        whole = sum(shares.values())
        return {phase: total * share / whole if whole else 0.0 for phase, share in shares.items()}

    def _group_links(self, columns: int) -> tuple[int, ...]:
        """The links of a collective, by `Message.columns`; groups work at the same time."""
        if columns not in self._links:
            size = abs(columns)
            self._links[columns] = self._routes.between(
                (a, b)
                for a in self.devices
                for b in self.devices
                if not columns or (a // size == b // size if columns > 0 else a % size == b % size)
            )
        return self._links[columns]


@set_module("hag_plugin.parallel")
def simulate_plan(plan: Plan | NetworkPlan, space: Space | NetworkSpace) -> Schedule:
    """When each task of a plan runs. Predicted, as everything in a plan is.

    Args:
        plan: of a model on a graph, or of one without.
        space: what `space_of` gives for the model.

    Raises:
        ValueError: the plan is for another model, or not possible on the machine.
    """
    check_kind("plan", plan, Plan, NetworkPlan)
    if isinstance(plan, NetworkPlan):
        check_kind("space", space, NetworkSpace)
        assert isinstance(space, NetworkSpace)
        return _simulate_network(plan, space)
    check_kind("space", space, Space)
    assert isinstance(space, Space)
    plan.check(space.graph, space.topology.num_devices)
    model = PlanModel(space)
    return simulate_strategy(model, model.numbers(plan))


def _simulate_network(plan: NetworkPlan, space: NetworkSpace) -> Schedule:
    if plan.world_size != space.world_size:
        raise ValueError(
            f"the plan is for {plan.world_size} devices; {space.topology.name} has "
            f"{space.world_size}"
        )
    plan.check(space.network)
    placement = place(space.network, plan.splits, space.world_size)
    return simulate(network_tasks(space, placement))
