"""`parallelize`: a model that runs as a plan says, a rank a device, under torch.distributed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import Module

from hag_plugin import devices
from hag_plugin.arguments import brief, check_flag, check_function, check_kind
from hag_plugin.parallel.execution.network import ParallelNetwork, without_values
from hag_plugin.parallel.execution.parallel_model import Parallel
from hag_plugin.parallel.execution.parameters import Parameters
from hag_plugin.parallel.execution.share import Part, check_alike
from hag_plugin.parallel.graphs.store.partitioned_data import PartitionedData
from hag_plugin.parallel.machine.topology import Topology
from hag_plugin.parallel.model.inputs import ModelCall
from hag_plugin.parallel.model.network import check_without_graph, followed, given
from hag_plugin.parallel.model.trace import copied, record, stripped
from hag_plugin.parallel.ranks.comm import Group
from hag_plugin.parallel.search.network import NetworkPlan
from hag_plugin.parallel.search.plan import Plan
from hag_plugin.parallel.search.planner import plan as find_plan
from hag_plugin.saved import set_module


@set_module("hag_plugin.parallel")
def parallelize(
    model: Module,
    data: Any,
    plan: Plan | NetworkPlan | str | os.PathLike[str] = "auto",
    *,
    topology: Topology | str | os.PathLike[str] | None = None,
    part: Part | None = None,
    call: ModelCall | None = None,
    device: torch.device | str | None = None,
    overlap: bool = True,
) -> Module:
    """A copy of a model that computes what the model computes, on all ranks together.

    Every rank calls it, with the same model and data; the first rank's weights are taken. The copy
    is of the same class, with the same modules and names in its `state_dict`; its weights are
    DTensors. `model.parallel` is a `Parallel`: this rank's share of the data, the mean of a loss
    and the total of a metric over all ranks, bytes sent.

    A model without a graph is called as it was, with its whole inputs on every rank, and returns
    what one process would: every rank takes the same loss of it. Put the loss into the model's
    forward where its output is large: it is then taken where the output lies. `model.parallel` is
    a `ParallelNetwork`. Operations on inputs alone are done on every rank; nothing overlaps.

    Args:
        model: of PyG or DGL layers; or any torch model without a graph, that `torch.export`
            follows.
        data: what it was planned for: PyG's `Data`, or `(DGLGraph, x)`. Features may be anything
            that can be sliced by rows and columns (a `numpy.memmap`): only this rank's share of
            them is read. Or this rank's part of a store, a `PartitionedData`: then no rank has all
            edges, and layers run on the rows of each. Of a model without a graph its inputs, a
            tensor or a tuple of tensors: others may have other shapes; what cannot be split as
            planned then runs whole.
        plan: a plan, its file, or "auto": the first rank makes one for `topology`.
        topology: of the machine, for "auto": a preset, a file, or what `probe` measured.
        part: as the plan was made with: a `Partition`, or what gives each node's part.
        call: as the plan was made with: how the model is called with the data, see `plan`.
        device: of this rank; by default the current GPU with NCCL, else the CPU.
        overlap: whether rows of others come while a sum over neighbours takes the own ones, and
            gradients of weights are summed while the backward pass goes on. If not, each is waited
            for at once; the results are the same, to the bit.

    Raises:
        RuntimeError: torch.distributed is not initialised; another rank failed.
        ValueError: the plan is for another model, graph or number of ranks, says what differs; a
            rank has other data, says in what, or another rank's part; or the plan gives a layer
            what is not possible there, names it.
        UnknownLayerError: a layer needs more of a graph in a store than a rank's part; names it.
        NotImplementedError: a strategy cannot be run; names the layer.

    Example:
        model = hp.parallel.parallelize(model, data, "plan.json")
        local = model.parallel.data
        out = model()
        losses = F.cross_entropy(out[local.train_mask], local.y[local.train_mask], reduction="none")
        model.parallel.mean(losses).backward()
        optimizer.step()
    """
    check_kind("model", model, Module)
    if not isinstance(plan, (Plan, NetworkPlan, str, os.PathLike)):
        raise TypeError(f"plan is {brief(plan)}; expected a Plan, its file or 'auto'")
    if topology is not None:
        check_kind("topology", topology, Topology, str, os.PathLike)
    check_function("part", part)
    check_function("call", call)
    if device is not None:
        device = devices.checked(device)
        if device.type == "meta":
            raise ValueError("device is 'meta'; expected one that holds data")
    check_flag("overlap", overlap)
    group = replace(Group.world(device), overlaps=overlap)
    inputs = given(data)
    if inputs is not None:
        check_without_graph(part=(part, None), call=(call, None))
        return _network(model, inputs, plan, topology, group)
    if isinstance(plan, NetworkPlan):
        raise TypeError(f"the plan is of a model whose data is tensors; data is {brief(data)}")
    known = data
    if isinstance(data, PartitionedData) and plan == "auto":
        known = _searched(model, data, call, group)
    with group.together("planning"):
        mine = _plan(Plan, model, known, plan, topology, part, call, group)
    chosen = group.broadcast(mine) if plan == "auto" else mine
    assert isinstance(chosen, Plan)
    _compare(chosen, group)
    with group.together("checking the plan"):
        _check_free(model)
        pristine = stripped(model)
        recorded = record(pristine, data, hag=False, part=part, call=call)
        chosen.check(recorded.graph, group.size)
    check_alike(data, group)
    # Making groups is communication: it comes before work that may fail on one rank.
    layouts = {k for c in chosen.configs.values() for k in (c.source, c.target)}
    for columns in sorted({layout.columns for layout in layouts}):
        group.mesh(columns)
    found, parameters = _copy(model, group)
    parallel = Parallel(found, pristine, parameters, chosen, part, call, group)
    parallel.set_up(data, recorded)
    vars(found)["parallel"] = parallel
    found.forward = parallel.run
    return found


def _searched(
    model: Module, data: PartitionedData, call: ModelCall | None, group: Group
) -> PartitionedData:
    """A part of a store with what each rank finds in its own: what the HAG there saves, say."""
    with group.together("searching HAGs"):
        recorded = record(stripped(model), data, hag=False, call=call)
        loops = {recorded.edges[key].self_loops for key in recorded.graph.graphs}
        mine = {each: data.search(each) for each in loops}
    others = group.collect(mine)
    return data.searched({each: [other[each] for other in others] for each in loops})


def _plan(
    kind: type[Plan | NetworkPlan],
    model: Module,
    data: Any,
    plan: Plan | NetworkPlan | str | os.PathLike[str],
    topology: Topology | str | os.PathLike[str] | None,
    part: Part | None,
    call: ModelCall | None,
    group: Group,
) -> Plan | NetworkPlan | None:
    """The plan that is given, or in a file, or found by the first rank: None on others."""
    if not isinstance(plan, (str, os.PathLike)):
        return plan
    if plan != "auto":
        return kind.load(Path(plan))
    if topology is None:
        raise ValueError("plan='auto' needs topology=, a preset's name or a file of `probe`")
    if group.rank:
        return None
    return find_plan(model, data, topology, world_size=group.size, part=part, call=call)


def _check_free(model: Module) -> None:
    if hasattr(model, "parallel"):
        raise ValueError("the model has an attribute 'parallel' already; expected none")


def _copy(model: Module, group: Group) -> tuple[Module, Parameters]:
    """A copy of the model on the group's device, with the first rank's parameters."""
    with group.together("copying the model"):
        found = copied(model).to(group.device)
    parameters = Parameters(found, group)
    parameters.broadcast()
    return found, parameters


def _network(
    model: Module,
    inputs: tuple[Any, ...],
    plan: Plan | NetworkPlan | str | os.PathLike[str],
    topology: Topology | str | os.PathLike[str] | None,
    group: Group,
) -> Module:
    """`parallelize` of a model without a graph."""
    with group.together("planning"):
        if isinstance(plan, Plan):
            raise TypeError(f"the plan is of a model on a graph; data is {brief(inputs)}")
        mine = _plan(NetworkPlan, model, inputs, plan, topology, None, None, group)
    chosen = group.broadcast(mine) if plan == "auto" else mine
    assert isinstance(chosen, NetworkPlan)
    _compare(chosen, group)
    check_alike(SimpleNamespace(**{f"input {i}": t for i, t in enumerate(inputs)}), group)
    with group.together("checking the plan"):
        _check_free(model)
        pristine = without_values(model)
        network = followed(pristine, inputs)
        chosen.check(network)
    group.mesh()
    found, parameters = _copy(model, group)
    parallel = ParallelNetwork(found, pristine, parameters, chosen, group)
    parallel.set_up(inputs, network)
    vars(found)["parallel"] = parallel
    found.forward = parallel.run
    return found


def _compare(plan: Plan | NetworkPlan, group: Group) -> None:
    """Whether all ranks have the same plan, and it is for so many."""
    what = plan.splits if isinstance(plan, NetworkPlan) else (plan.graphs, plan.configs)
    said = repr((plan.world_size, plan.model, what))
    for rank, other in zip(group.ranks, group.collect(said), strict=True):
        if other != said:
            raise ValueError(
                f"rank {rank} has another plan than rank {group.rank}; expected the same on all"
            )
    if plan.world_size != group.size:
        raise ValueError(f"the plan is for {plan.world_size} devices; there are {group.size} ranks")
