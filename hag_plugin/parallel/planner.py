"""`plan`: how to split each layer of a model over the devices of a machine, and the plan's file.

Every time in a plan is predicted by the cost model, none was measured on the machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hag_plugin.files import write_whole
from hag_plugin.parallel.baselines import baselines
from hag_plugin.parallel.cost import (
    MODES,
    Analytic,
    ComputeCost,
    Measured,
    Seconds,
    calibrated,
    message_seconds,
)
from hag_plugin.parallel.elimination import InfeasibleError
from hag_plugin.parallel.opgraph import OpGraph
from hag_plugin.parallel.search import Memory, Space
from hag_plugin.parallel.strategies import Config, Problem, configs_of
from hag_plugin.parallel.topology import Topology, load


@dataclass(frozen=True)
class LayerPlan:
    """What was chosen for one operation, and what it is predicted to take.

    Attributes:
        name: of the operation.
        kind: of the operation.
        config: how it is split.
        seconds: predicted; communication includes laying out its inputs.
        sent: bytes that the busiest device sends, forward, backward and update.
        memory: bytes that it adds on the fullest device.
    """

    name: str
    kind: str
    config: Config
    seconds: Seconds
    sent: int
    memory: int


@dataclass(frozen=True)
class Plan:
    """A strategy for each operation of a model on one machine.

    Attributes:
        layers: in the order of the model's operations.
        model: its name and fingerprint.
        graphs: fingerprint of each graph.
        nodes: N.
        topology: name of the machine.
        world_size: devices.
        memory: predicted bytes on the fullest device.
        baselines: predicted seconds of plans that treat all layers alike.
        costs: "analytic", "measured" or "calibrated".
    """

    layers: tuple[LayerPlan, ...]
    model: tuple[str, str]
    graphs: dict[str, str]
    nodes: int
    topology: str
    world_size: int
    memory: Memory
    baselines: dict[str, float] = field(default_factory=dict)
    costs: str = "analytic"

    @property
    def seconds(self) -> float:
        """Predicted time of a training step, forward, backward and update."""
        return sum(layer.seconds.total for layer in self.layers)

    @property
    def configs(self) -> dict[str, Config]:
        """What was chosen, by operation."""
        return {layer.name: layer.config for layer in self.layers}

    def layer(self, name: str) -> LayerPlan:
        """The plan of one operation.

        Raises:
            KeyError: there is none of this name.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no layer {name!r}; the plan has {[k.name for k in self.layers]}")

    def check(self, graph: OpGraph, world_size: int | None = None) -> None:
        """Whether the plan is for this model, on these graphs and so many devices.

        Raises:
            ValueError: it is not, says what differs; or a layer has what is not possible there,
                names it.
        """
        if world_size is not None and world_size != self.world_size:
            raise ValueError(f"the plan is for {self.world_size} devices; there are {world_size}")
        if graph.nodes != self.nodes:
            raise ValueError(f"the plan is for {self.nodes} nodes; the graph has {graph.nodes}")
        for key, stats in graph.graphs.items():
            if self.graphs.get(key) != stats.fingerprint:
                raise ValueError(
                    f"the plan is for graph {key!r} with fingerprint {self.graphs.get(key)}; this "
                    f"one has {stats.fingerprint}: plan again for this graph"
                )
        names = [layer.name for layer in self.layers]
        wanted = [op.name for op in graph.ops]
        if names != wanted:
            odd = sorted(set(names) ^ set(wanted)) or "their order"
            raise ValueError(f"the plan is for another model: they differ in {odd}")
        if graph.fingerprint != self.model[1]:
            raise ValueError(
                f"the plan is for model {self.model[0]} with fingerprint {self.model[1]}; this one "
                f"has {graph.fingerprint}: sizes or settings of a layer differ"
            )
        uncounted = {key: stats.uncounted() for key, stats in graph.graphs.items()}
        known = replace(graph, graphs=uncounted)
        for layer, op in zip(self.layers, graph.ops, strict=True):
            if layer.kind != op.kind:
                raise ValueError(
                    f"layer {layer.name!r} is of kind {layer.kind!r} in the plan; expected "
                    f"{op.kind!r}, as it is in the model"
                )
            configs, reasons = configs_of(Problem(known, op, self.world_size))
            if layer.config not in configs:
                raise _impossible(layer, configs, reasons)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as JSON, to be read and edited by hand."""
        write_whole(path, (json.dumps(self.as_dict(), indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """The plan in a file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no plan, of another version, or a layer's entry is wrong; names it.
        """
        from hag_plugin.parallel import plan_file

        return plan_file.read(Path(path))

    def as_dict(self) -> dict[str, Any]:
        """What a file holds."""
        from hag_plugin.parallel import plan_file

        return plan_file.document(self)

    def __str__(self) -> str:
        from hag_plugin.parallel import plan_table

        return plan_table.table(self)


def plan(
    model: Any,
    data: Any = None,
    topology: Topology | str | os.PathLike[str] = "a100x8",
    *,
    world_size: int | None = None,
    hag: str = "auto",
    memory: float | None = None,
    costs: str = "analytic",
    require: Mapping[str, str] | None = None,
    part: Callable[[int], np.ndarray] | None = None,
) -> Plan:
    """The cheapest way to split each layer of a model over the devices of a machine.

    Optimal under the additive cost of OptCNN (arXiv 1802.04924): computation, communication and
    weight synchronisation of all operations, one after the other.

    Args:
        model: a PyG or DGL model, or an `OpGraph`.
        data: of a model: an object with `x` and `edge_index` (PyG), or a `(DGLGraph, x)`.
        topology: a machine, the name of a preset, or a file.
        world_size: how many of its devices; by default all. A machine of several groups may be
            extended by whole groups with `Topology.resized`.
        hag: "auto" lets the search decide for each layer; "off": no HAGs.
        memory: bytes that may be used on each device; by default the device's memory.
        costs: "analytic"; "measured": every block is run on this machine, which should have the
            topology's device; "calibrated": a few are, and scale the analytic cost.
        require: the strategy of some operations, by name.
        part: for a number of parts, the part of each node; by default contiguous blocks.

    Raises:
        InfeasibleError: no plan fits in memory, or a layer cannot be split as required; says why
            and what would be possible.
        ValueError: an argument is wrong; there are fewer devices than `world_size`.

    Example:
        >>> from hag_plugin.parallel.opgraph import Op, OpGraph, gcn
        >>> from hag_plugin.parallel.partition_stats import GraphStats
        >>> stats = GraphStats.assumed(1_000_000, 50_000_000, halo_ratio=4.0)
        >>> ops = [Op("x", "input", width=256), gcn("conv1", 0, 256, 256, input_grad=False),
        ...        gcn("conv2", 1, 256, 256), Op("loss", "loss", (2,), 256)]
        >>> found = plan(OpGraph.of(ops, {"A": stats}), topology="a100x8")
        >>> found.layer("conv1").config.strategy
        'all-to-all around aggregation'
    """
    if costs not in MODES:
        raise ValueError(f"costs is {costs!r}; expected one of {MODES}")
    if hag not in ("auto", "off"):
        raise ValueError(f"hag is {hag!r}; expected 'auto' or 'off'")
    machine = _machine(topology, world_size)
    graph = model
    if not isinstance(model, OpGraph):
        from hag_plugin.parallel.trace_model import trace

        graph = trace(model, data, hag=hag == "auto", part=part)
    if machine.num_devices > graph.nodes:
        raise InfeasibleError(
            f"{graph.nodes} nodes cannot be split over {machine.num_devices} devices; expected at "
            f"most {graph.nodes}"
        )
    wanted = dict(require or {})
    unknown = sorted(wanted.keys() - {op.name for op in graph.ops})
    if unknown:
        raise ValueError(f"require names {unknown}; expected some of {[o.name for o in graph.ops]}")

    def allow(i: int, config: Config) -> bool:
        if hag == "off" and config.hag != "off":
            return False
        return wanted.get(graph.ops[i].name, config.strategy) == config.strategy

    compute = _compute(costs, graph, machine)
    space = Space(graph, machine, compute, allow)
    limit = machine.device.memory if memory is None else memory
    try:
        choice = space.cheapest(limit)
    except InfeasibleError as e:
        hint = "" if e.nearest is None else "; give more memory or more devices"
        raise InfeasibleError(f"{e}{hint}", e.nearest) from None
    return planned(space, choice.configs, costs, baselines(graph, machine, compute))


def planned(
    space: Space, chosen: Sequence[int], costs: str = "analytic",
    compared: Mapping[str, float] | None = None,
) -> Plan:  # fmt: skip
    """The plan of a choice: what each operation was given, and what that is predicted to take."""
    graph, layers = space.graph, []
    for v, op in enumerate(graph.ops):
        k = chosen[v]
        terms, seconds = space.terms[v][k], space.seconds[v][k]
        sent = np.zeros(space.topology.num_devices, np.int64) + terms.sent()
        moved = 0.0
        for u in op.inputs:
            ends = space.configs[u][chosen[u]].target, space.configs[v][k].source
            if graph.ops[u].kind != "input":
                messages = space.reshard_messages(u, v, *ends)
                moved += sum(message_seconds(space.topology, m) for m in messages)
                sent = sent + sum((m.sent for m in messages), np.zeros_like(sent))
        layers.append(
            LayerPlan(
                op.name,
                op.kind,
                space.configs[v][k],
                Seconds(seconds.compute, seconds.communication + moved, seconds.synchronisation),
                int(sent.max(initial=0)),
                round(space.kept(chosen, v)),
            )
        )
    return Plan(
        tuple(layers),
        (graph.model, graph.fingerprint),
        {key: stats.fingerprint for key, stats in graph.graphs.items()},
        graph.nodes,
        space.topology.name,
        space.topology.num_devices,
        space.memory(chosen),
        dict(compared or {}),
        costs,
    )


def recost(found: Plan, graph: OpGraph, topology: Topology | str, costs: str = "analytic") -> Plan:
    """The same choices, priced anew: for a plan that was edited by hand.

    Raises:
        ValueError: the plan is for something else, or a layer has a configuration that is not
            legal there; names the layer and what is.
    """
    machine = _machine(topology, found.world_size)
    found.check(graph)
    compute = _compute(costs, graph, machine)
    space = Space(graph, machine, compute)
    chosen = []
    for layer, configs in zip(found.layers, space.configs, strict=True):
        if layer.config not in configs:
            raise _impossible(layer, configs)
        chosen.append(configs.index(layer.config))
    return planned(space, chosen, costs, baselines(graph, machine, compute))


def _impossible(
    layer: LayerPlan, configs: Sequence[Config], reasons: Mapping[str, str] | None = None
) -> ValueError:
    """A layer was given what is not among the configurations that it may have."""
    config = layer.config
    why = (reasons or {}).get(config.strategy)
    same = [f"{c}, hag {c.hag}" for c in configs if c.strategy == config.strategy]
    return ValueError(
        f"layer {layer.name!r}: {config}, hag {config.hag} is not possible there"
        f"{'' if why is None else f' ({why})'}; expected one of "
        f"{same or sorted({c.strategy for c in configs})}"
    )


def alternatives(
    found: Plan,
    graph: OpGraph,
    topology: Topology | str | os.PathLike[str],
    costs: str = "analytic",
) -> dict[str, dict[str, float | str]]:
    """What else each layer could have been given.

    Returns:
        By layer with edges or weights, by strategy: predicted seconds of the cheapest plan in
        which the layer has it (memory left out of account), or why it is refused.
    """
    machine = _machine(topology, found.world_size)
    compute = _compute(costs, graph, machine)
    listed: dict[str, dict[str, float | str]] = {}
    for i, op in enumerate(graph.ops):
        if op.kind not in ("convolution", "attention", "linear"):
            continue
        configs, reasons = configs_of(Problem(graph, op, machine.num_devices))
        entries: dict[str, float | str] = {}
        for name in dict.fromkeys(c.strategy for c in configs):

            def allow(j: int, config: Config, i: int = i, name: str = name) -> bool:
                return j != i or config.strategy == name

            entries[name] = Space(graph, machine, compute, allow).cheapest().cost
        listed[op.name] = entries | {name: f"refused: {why}" for name, why in reasons.items()}
    return listed


def space_of(
    graph: OpGraph,
    topology: Topology | str | os.PathLike[str],
    world_size: int | None = None,
    costs: str = "analytic",
) -> Space:
    """All plans of a model on so many devices of a machine; arguments as for `plan`."""
    machine = _machine(topology, world_size)
    return Space(graph, machine, _compute(costs, graph, machine))


def _machine(topology: Topology | str | os.PathLike[str], world_size: int | None) -> Topology:
    machine = load(topology)
    if world_size is None or world_size == machine.num_devices:
        return machine
    if not 1 <= world_size <= machine.num_devices:
        raise InfeasibleError(
            f"world_size is {world_size}; {machine.name} has {machine.num_devices} devices: "
            f"expected 1 to {machine.num_devices}, or a topology with more"
        )
    return machine.resized(world_size)


def _compute(costs: str, graph: OpGraph, machine: Topology) -> ComputeCost:
    if costs == "analytic":
        return Analytic(machine)
    measured = Measured()
    if costs == "measured":
        return measured
    space = Space(graph, machine, Analytic(machine))
    return calibrated(machine, measured, [row[0] for row in space.terms], graph.itemsize)
