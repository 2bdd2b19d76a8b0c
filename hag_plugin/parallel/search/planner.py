"""`plan`: how to split each layer of a model over the devices of a machine.

Every time in a plan is predicted by the cost model, none was measured on the machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from hag_plugin.arguments import brief, check_choice, check_function, check_kind, number, whole
from hag_plugin.parallel.machine.topology import (
    MOST_DEVICES,
    Topology,
    load,
    name_of_all,
    presets,
)
from hag_plugin.parallel.model.inputs import ModelCall
from hag_plugin.parallel.model.network import Network, check_without_graph, followed, given
from hag_plugin.parallel.model.opgraph import OpGraph
from hag_plugin.parallel.model.trace import trace
from hag_plugin.parallel.search.baselines import baselines
from hag_plugin.parallel.search.cost import (
    MODES,
    Analytic,
    ComputeCost,
    Measured,
    Seconds,
    calibrated,
    message_seconds,
)
from hag_plugin.parallel.search.elimination import InfeasibleError
from hag_plugin.parallel.search.network import (
    NetworkPlan,
    NetworkSpace,
    by_axes,
    plan_network,
    repriced,
)
from hag_plugin.parallel.search.plan import LayerPlan, Plan, impossible
from hag_plugin.parallel.search.space import Space
from hag_plugin.parallel.strategies.registry import Config, Problem, configs_of, parts_read
from hag_plugin.saved import set_module


@overload
def plan(
    model: torch.nn.Module,
    data: Tensor | tuple[Tensor, ...] | list[Tensor],
    topology: Topology | str | os.PathLike[str] = ...,
    *,
    world_size: int | None = ...,
    memory: float | None = ...,
    require: Mapping[str, str] | None = ...,
) -> NetworkPlan: ...


@overload
def plan(
    model: Network,
    data: None = ...,
    topology: Topology | str | os.PathLike[str] = ...,
    *,
    world_size: int | None = ...,
    memory: float | None = ...,
    require: Mapping[str, str] | None = ...,
) -> NetworkPlan: ...


@overload
def plan(
    model: Any,
    data: Any = ...,
    topology: Topology | str | os.PathLike[str] = ...,
    *,
    world_size: int | None = ...,
    hag: str = ...,
    memory: float | None = ...,
    costs: str = ...,
    require: Mapping[str, str] | None = ...,
    part: Callable[[int], np.ndarray] | None = ...,
    call: ModelCall | None = ...,
) -> Plan: ...


@set_module("hag_plugin.parallel")
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
    call: ModelCall | None = None,
) -> Plan | NetworkPlan:
    """The cheapest way to split each layer of a model over the devices of a machine.

    Optimal under the additive cost of OptCNN (arXiv 1802.04924): computation, communication and
    weight synchronisation of all operations, one after the other.

    Args:
        model: a PyG or DGL model, or any torch model without a graph: a convolutional, recurrent or
            attention network; or what `trace` gives for one.
        data: of a model: an object with `x` and `edge_index` (PyG), or a `(DGLGraph, x)`; of a
            model without a graph its inputs, a tensor or a tuple of tensors.
        topology: a machine, the name of a preset, or a file.
        world_size: how many of its devices; by default all. A machine of several groups may be
            extended by whole groups with `Topology.resized`.
        hag: "auto" lets the search decide for each layer; "off": no HAGs.
        memory: bytes that may be used on each device; by default the device's memory.
        costs: "analytic"; "measured": every block is run on this machine, which should have the
            topology's device; "calibrated": a few are, and scale the analytic cost.
        require: the strategy of some operations, by name; of a model without a graph the split,
            "sample 2 x channel 2 on 0 1 2 3" say. Of a store, only layers that are named here may
            have one with which a device reads the edges into other parts than its own.
        part: for a number of parts, the part of each node; by default contiguous blocks.
        call: how the model is called with the data: `lambda m, d: m(d.x, d.edge_index,
            d.edge_weight)`, say, or `m.encode(d.x, d.edge_index)`. By default with what its forward
            requires, by name; arguments that have a default are left at it.

    Raises:
        InfeasibleError: no plan fits in memory, or a layer cannot be split as required; says why
            and what would be possible.
        ValueError: an argument is wrong; there are fewer devices than `world_size`.

    Example:
        >>> from hag_plugin.parallel.model.opgraph import Op, OpGraph, gcn
        >>> from hag_plugin.parallel.graphs.stats import GraphStats
        >>> stats = GraphStats.assumed(1_000_000, 50_000_000, halo_ratio=4.0)
        >>> ops = [Op("x", "input", width=256), gcn("conv1", 0, 256, 256, input_grad=False),
        ...        gcn("conv2", 1, 256, 256), Op("loss", "loss", (2,), 256)]
        >>> found = plan(OpGraph.of(ops, {"A": stats}), topology="a100x8")
        >>> found.layer("conv2").config.strategy
        'all-to-all around aggregation'
    """
    check_choice("costs", costs, MODES)
    check_choice("hag", hag, ("auto", "off"))
    machine = _machine(topology, world_size)
    graph = model
    if not isinstance(model, (OpGraph, Network, torch.nn.Module)):
        raise TypeError(f"model is {brief(model)}; expected a torch.nn.Module or what trace gives")
    inputs = given(data)
    if isinstance(model, Network) or (inputs is not None and isinstance(model, torch.nn.Module)):
        check_without_graph(costs=(costs, "analytic"), part=(part, None), call=(call, None))
        check_kind("require", require, Mapping, type(None))
        limit = machine.memory if memory is None else number("memory", memory)
        if isinstance(model, torch.nn.Module):
            assert inputs is not None
            model = followed(model, inputs)
        return plan_network(model, machine, limit, require)
    memory = None if memory is None else number("memory", memory)
    check_kind("require", require, Mapping, type(None))
    check_function("part", part)
    check_function("call", call)
    if not isinstance(model, OpGraph):
        graph = trace(model, data, hag=hag == "auto", part=part, call=call)
    elif call is not None:
        raise ValueError("call= is of a model; an OpGraph is not called")
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
        op = graph.ops[i]
        if hag == "off" and config.hag != "off":
            return False
        if op.name in wanted:
            return wanted[op.name] == config.strategy
        apart = op.graph in graph.graphs and graph.graphs[op.graph].apart
        return not apart or parts_read(op, config, machine.num_devices) == 1

    compute = _compute(costs, graph, machine)
    space = Space(graph, machine, compute, allow)
    limit = machine.memory if memory is None else memory
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


@overload
def recost(
    found: Plan, graph: OpGraph | Network, topology: Topology | str, costs: str = ...
) -> Plan: ...


@overload
def recost(
    found: NetworkPlan, graph: OpGraph | Network, topology: Topology | str, costs: str = ...
) -> NetworkPlan: ...


@set_module("hag_plugin.parallel")
def recost(
    found: Plan | NetworkPlan,
    graph: OpGraph | Network,
    topology: Topology | str,
    costs: str = "analytic",
) -> Plan | NetworkPlan:
    """The same choices, priced anew: for a plan that was edited by hand.

    Args:
        found: the plan.
        graph: what `trace` gives for its model.
        topology: see `plan`.
        costs: see `plan`.

    Raises:
        ValueError: the plan is for something else, or a layer has a configuration that is not
            legal there; names the layer and what is.
    """
    check_kind("found", found, Plan, NetworkPlan)
    check_choice("costs", costs, MODES)
    machine = _machine(topology, found.world_size)
    if isinstance(found, NetworkPlan):
        check_kind("graph", graph, Network)
        assert isinstance(graph, Network)
        check_without_graph(costs=(costs, "analytic"))
        return repriced(found, graph, machine)
    check_kind("graph", graph, OpGraph)
    assert isinstance(graph, OpGraph)
    found.check(graph)
    compute = _compute(costs, graph, machine)
    space = Space(graph, machine, compute)
    chosen = []
    for layer, configs in zip(found.layers, space.configs, strict=True):
        if layer.config not in configs:
            raise impossible(layer, configs)
        chosen.append(configs.index(layer.config))
    return planned(space, chosen, costs, baselines(graph, machine, compute))


def alternatives(
    found: Plan | NetworkPlan,
    graph: OpGraph | Network,
    topology: Topology | str | os.PathLike[str],
    costs: str = "analytic",
) -> dict[str, dict[str, float | str]]:
    """What else each layer could have been given.

    Returns:
        By layer with edges or weights, by strategy: predicted seconds of the cheapest plan in
        which the layer has it (memory left out of account), or why it is refused. Of a model
        without a graph by operation, by the axes along which it is split.
    """
    machine = _machine(topology, found.world_size)
    if isinstance(graph, Network):
        return {name: dict(each) for name, each in by_axes(NetworkSpace(graph, machine)).items()}
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

            try:
                entries[name] = Space(graph, machine, compute, allow).cheapest().cost
            except InfeasibleError as e:
                entries[name] = f"refused: {e}"
        listed[op.name] = entries | {name: f"refused: {why}" for name, why in reasons.items()}
    return listed


@overload
def space_of(
    graph: OpGraph,
    topology: Topology | str | os.PathLike[str],
    world_size: int | None = ...,
    costs: str = ...,
) -> Space: ...


@overload
def space_of(
    graph: Network,
    topology: Topology | str | os.PathLike[str],
    world_size: int | None = ...,
    costs: str = ...,
) -> NetworkSpace: ...


@set_module("hag_plugin.parallel")
def space_of(
    graph: OpGraph | Network,
    topology: Topology | str | os.PathLike[str],
    world_size: int | None = None,
    costs: str = "analytic",
) -> Space | NetworkSpace:
    """All plans of a model on so many devices of a machine.

    Args:
        graph: what `trace` gives for the model.
        topology: see `plan`, as for the others.
        world_size: as above.
        costs: as above.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: there are fewer nodes than devices, or no such machine.
    """
    check_kind("graph", graph, OpGraph, Network)
    check_choice("costs", costs, MODES)
    machine = _machine(topology, world_size)
    if isinstance(graph, Network):
        check_without_graph(costs=(costs, "analytic"))
        return NetworkSpace(graph, machine)
    return Space(graph, machine, _compute(costs, graph, machine))


def machine_of(
    found: Plan | NetworkPlan, topology: Topology | str | os.PathLike[str] | None = None
) -> Topology:
    """The machine that is given, or that of a plan.

    Raises:
        ValueError: the plan's is not built in.
    """
    name = name_of_all(found.topology, found.world_size)
    if topology is None and name not in presets():
        raise ValueError(
            f"the plan is for the machine {name!r}, which is not built in; expected its topology "
            "(--topology FILE)"
        )
    return load(name if topology is None else topology)


def _machine(topology: Topology | str | os.PathLike[str], world_size: int | None) -> Topology:
    machine = load(topology)
    if world_size is not None:
        world_size = whole("world_size", world_size, 0, MOST_DEVICES)
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
