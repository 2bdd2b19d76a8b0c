"""`parallelize`: a model that runs as a plan says, a rank a device, under torch.distributed."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

# These fill the registry.
from hag_plugin.parallel import attention_executors as _attention  # noqa: F401
from hag_plugin.parallel import convolution_executors as _convolution  # noqa: F401
from hag_plugin.parallel import dense_executors as _dense  # noqa: F401
from hag_plugin.parallel import normalisation_executors as _normalisation  # noqa: F401
from hag_plugin.parallel import relation_executors as _relation  # noqa: F401
from hag_plugin.parallel import row_executors as _rows  # noqa: F401
from hag_plugin.parallel.comm import Group, Sent
from hag_plugin.parallel.executors import (
    OperationExecutor,
    Site,
    Split,
    World,
    executor_of,
    shares,
)
from hag_plugin.parallel.layouts import ROWS, Layout, chunk_sizes
from hag_plugin.parallel.parameters import Parameters
from hag_plugin.parallel.planner import Plan
from hag_plugin.parallel.planner import plan as find_plan
from hag_plugin.parallel.runner import Prepared, Runner, stand_in
from hag_plugin.parallel.topology import Topology
from hag_plugin.parallel.trace_model import Recorded, arguments, record
from hag_plugin.parallel.transfer import replicate_rows, sum_parts

Part = Callable[[int], np.ndarray]


def parallelize(
    model: Module,
    data: Any,
    plan: Plan | str | os.PathLike[str] = "auto",
    *,
    topology: Topology | str | os.PathLike[str] | None = None,
    part: Part | None = None,
    device: torch.device | str | None = None,
) -> Module:
    """A copy of a model that computes what the model computes, on all ranks together.

    Every rank calls it, with the same model and data; the first rank's weights are taken. The copy
    is of the same class, with the same modules and names in its `state_dict`; its weights are
    DTensors. `model.parallel` is a `Parallel`: this rank's share of the data, the mean of a loss
    and the total of a metric over all ranks, bytes sent.

    Args:
        model: of PyG or DGL layers.
        data: what it was planned for: PyG's `Data`, or `(DGLGraph, x)`. Features may be anything
            that can be sliced by rows and columns (a `numpy.memmap`): only this rank's share of
            them is read.
        plan: a plan, its file, or "auto": the first rank makes one for `topology`.
        topology: of the machine, for "auto": a preset, a file, or what `probe` measured.
        part: as the plan was made with.
        device: of this rank; by default the current GPU with NCCL, else the CPU.

    Raises:
        RuntimeError: torch.distributed is not initialised; another rank failed.
        ValueError: the plan is for another model, graph or number of ranks; says what differs.
        NotImplementedError: a strategy cannot be run; names the layer.

    Example:
        model = hp.parallel.parallelize(model, data, "plan.json")
        local = model.parallel.data
        out = model()
        losses = F.cross_entropy(out[local.train_mask], local.y[local.train_mask], reduction="none")
        model.parallel.mean(losses).backward()
        optimizer.step()
    """
    group = Group.world(device)
    with group.together("planning"):
        mine = _plan(model, data, plan, topology, part, group)
    chosen = group.broadcast(mine) if plan == "auto" else mine
    assert isinstance(chosen, Plan)
    _compare(chosen, group)
    # Making groups is communication: it comes before work that may fail on one rank.
    layouts = {k for c in chosen.configs.values() for k in (c.source, c.target)}
    for columns in sorted({layout.columns for layout in layouts}):
        group.mesh(columns)
    with group.together("setting up the model"):
        if hasattr(model, "parallel"):
            raise ValueError("the model has an attribute 'parallel' already; expected none")
        pristine = copy.deepcopy(model).to("meta")
        found = copy.deepcopy(model).to(group.device)
    parameters = Parameters(found, group)
    parameters.broadcast()
    parallel = Parallel(found, pristine, parameters, chosen, part, group)
    parallel.data = parallel.share(data, first=True)
    vars(found)["parallel"] = parallel
    found.forward = parallel.run
    return found


def _plan(
    model: Module,
    data: Any,
    plan: Plan | str | os.PathLike[str],
    topology: Topology | str | os.PathLike[str] | None,
    part: Part | None,
    group: Group,
) -> Plan | None:
    if isinstance(plan, Plan):
        return plan
    if plan != "auto":
        return Plan.load(Path(plan))
    if topology is None:
        raise ValueError("plan='auto' needs topology=, a preset's name or a file of `probe`")
    if group.rank:
        return None
    return find_plan(model, data, topology, world_size=group.size, part=part)


def _compare(plan: Plan, group: Group) -> None:
    """Whether all ranks have the same plan, and it is for so many."""
    said = repr((plan.world_size, plan.model, plan.graphs, plan.configs))
    for rank, other in zip(group.ranks, group.collect(said), strict=True):
        if other != said:
            raise ValueError(
                f"rank {rank} has another plan than rank {group.rank}; expected the same on all"
            )
    if plan.world_size != group.size:
        raise ValueError(f"the plan is for {plan.world_size} devices; there are {group.size} ranks")


class Share:
    """What a rank has of the data.

    Attributes:
        rows: the nodes whose rows of the output this rank has, as a slice.
        prepared: what the executors hold of it.
    """

    def __init__(self, values: dict[str, Any], rows: slice, prepared: Prepared) -> None:
        self.__dict__.update(values)
        self.rows, self.prepared = rows, prepared

    def __repr__(self) -> str:
        words = [f"{k}={list(v.shape)}" for k, v in self.__dict__.items() if isinstance(v, Tensor)]
        return f"Share(rows={self.rows.start}:{self.rows.stop}, {', '.join(words)})"


class Parallel:
    """How a model works together with the other ranks: `model.parallel`.

    Attributes:
        data: this rank's share of the data the model was set up with: labels, masks and what else
            there is a row of for each node, of the nodes whose outputs this rank has.
        plan: what is run.
        group: all ranks.
        step: forward passes in training so far, for the masks of dropout. Set it when training
            goes on from a checkpoint.
    """

    data: Share

    def __init__(
        self,
        model: Module,
        pristine: Module,
        parameters: Parameters,
        plan: Plan,
        part: Part | None,
        group: Group,
    ) -> None:
        self.plan, self.group, self.step = plan, group, 0
        self._model, self._pristine, self._parameters = model, pristine, parameters
        self._part = part
        self._seed = group.broadcast(torch.initial_seed())
        self._runner: Runner | None = None

    # Running ---------------------------------------------------------------------------------

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward: of a share, by default `data`."""
        share = args[0] if args else self.data
        if len(args) > 1 or kwargs or not isinstance(share, Share):
            raise TypeError(
                "the features and edges of a parallel model are laid out once: call model(), or "
                "model(share) with what model.parallel.share(data) returned"
            )
        assert self._runner is not None  # set up with the first share
        self.step += self._model.training
        share.prepared.world.step = self.step
        return self._runner.run(share.prepared)

    @property
    def sent(self) -> Sent:
        """Bytes that this rank sent, by phase."""
        return self.group.sent

    # Data ------------------------------------------------------------------------------------

    def share(self, data: Any, *, first: bool = False) -> Share:
        """What this rank has of other data than the model was set up with, a batch of graphs say.

        Args:
            data: as for `parallelize`, the same on every rank. A PyG `Batch` is cut between
                graphs.
            first: of the model's setup: the graph must be the one that was planned for.

        Raises:
            ValueError: the plan is for another model or graph.
        """
        group, part = self.group, self._part
        with group.together("laying out the data"):
            if not first and getattr(data, "ptr", None) is not None:
                part = by_graph(data)
            model = self._pristine
            recorded = record(model, data, hag=False, part=part, counted=first)
            if first:
                self.plan.check(recorded.graph, group.size)
            world, executors = self._executors(recorded, data, part)
        if first:
            self._set_up(executors)
        with group.together("laying out the features"):
            return self._shared(data, recorded, world, executors)

    def _executors(
        self, recorded: Recorded, data: Any, part: Part | None
    ) -> tuple[World, list[OperationExecutor | None]]:
        graph, group = recorded.graph, self.group
        nodes = chunk_sizes(graph.nodes, group.size)
        if part is not None:
            nodes = np.bincount(np.asarray(part(group.size)), minlength=group.size)
        dtype = next((p.dtype for p in self._pristine.parameters()), torch.float32)
        world = World(
            group, nodes, recorded.edges, self._parameters, group.device, dtype, seed=self._seed
        )
        configs = self.plan.configs
        executors: list[OperationExecutor | None] = []
        for i, (op, met) in enumerate(zip(graph.ops, recorded.met, strict=True)):
            if op.name not in configs or op.kind != self.plan.layer(op.name).kind:
                raise ValueError(
                    f"operation {op.name!r} ({op.kind}) is not in the plan, which has "
                    f"{list(configs)}"
                )
            if op.kind in ("input", "loss"):
                executors.append(None)
                continue
            module = self._model.get_submodule(met.path) if met.leaf else None
            site = Site(op, i, configs[op.name], world, module, met.names, met.call)
            executors.append(executor_of(site))
        return world, executors

    def _set_up(self, executors: list[OperationExecutor | None]) -> None:
        """Splits the weights as the executors want them."""
        splits: dict[str, Split | None] = {}
        users: dict[str, str] = {}
        with self.group.together("splitting the weights"):
            for executor in executors:
                if executor is None:
                    continue
                wanted, op = executor.placements(), executor.site.op
                for role, name in executor.site.names.items():
                    split = wanted.get(role)
                    if name in splits and splits[name] != split:
                        raise ValueError(
                            f"{users[name]!r} and {op.name!r} share {name!r}, which one of them "
                            "splits in another way; give them the same strategy"
                        )
                    splits[name], users[name] = split, op.name
        self._parameters.place({n: split for n, split in splits.items() if split is not None})
        self._runner = Runner(self._model)

    def _shared(
        self,
        data: Any,
        recorded: Recorded,
        world: World,
        executors: list[OperationExecutor | None],
    ) -> Share:
        graph, rank = recorded.graph, self.group.rank
        values = _values(data)
        x = values.pop("x")
        features: dict[Layout, Tensor] = {}
        for executor in executors:
            if executor is not None and 0 in executor.site.op.inputs:
                layout = executor.site.config.source
                if layout not in features:
                    features[layout] = _slice(x, layout, world, rank)
        loss = graph.ops[-1]
        output = self.plan.configs[loss.name].source
        if 0 in loss.inputs:
            features[output] = _slice(x, output, world, rank)
        shapes = [met.shape for met in recorded.met]
        like = next(iter(features.values()))
        token = stand_in(shapes[0], like, 0, None)
        args, kwargs = arguments(self._pristine, _moved(data, world.device), token)
        prepared = Prepared(
            world, graph.ops, shapes, executors, features, output, token, args, kwargs
        )
        own = slice(0, loss.rows or graph.nodes)
        if loss.rows is None and output == ROWS:
            own = shares(ROWS, world.nodes, 1, rank)[0]
            cut = [k for k, v in values.items() if _has_nodes(k, v, graph.nodes)]
            values |= {k: values[k][own] for k in cut}
        tensors = {k: v for k, v in values.items() if k != "edge_index"}
        kept = {k: v.to(world.device) if isinstance(v, Tensor) else v for k, v in tensors.items()}
        return Share(kept, own, prepared)

    # Losses and metrics ----------------------------------------------------------------------

    def mean(self, values: Tensor) -> Tensor:
        """The mean of all ranks' values, with the gradients that one process would have.

        Args:
            values: a loss a row, of any shape; may be empty on some ranks.
        """
        if not self.split:
            return values.mean()
        loss = self.group.counted_as("loss")
        count = loss.all_reduce(
            torch.tensor([values.numel()], dtype=torch.int64, device=values.device), "loss"
        )
        return sum_parts(values.sum().view(1), loss)[0] / count[0]

    def total(self, value: Tensor | float) -> Any:
        """The sum of a number over ranks: of correct answers, say. Counted once where all ranks
        have all rows.
        """
        if not self.split:
            return value
        tensor = torch.as_tensor(value, device=self.group.device).detach()
        if tensor.dtype in (torch.bool, torch.int32):
            tensor = tensor.long()
        summed = self.group.all_reduce(tensor, "loss")
        return summed if isinstance(value, Tensor) else summed.item()

    def gather(self, values: Tensor) -> Tensor:
        """All rows of the model's output, or of what was made from its rows, on every rank."""
        if not self.split:
            return values.detach()
        flat = values.detach()
        flat = flat.flatten(1) if flat.dim() > 1 else flat.view(-1, 1)
        nodes = self.data.prepared.world.nodes
        whole = replicate_rows(flat, nodes, self.group.counted_as("gather"))
        return whole.view(-1, *values.shape[1:])

    @property
    def split(self) -> bool:
        """Whether each rank has some rows of the output, rather than all."""
        return self.data.prepared.output == ROWS


def by_graph(batch: Any) -> Part:
    """Cuts a PyG `Batch` between graphs: no edge then goes from one part to another.

    Args:
        batch: with `ptr`, where each graph's nodes begin.

    Returns:
        What `plan` and `parallelize` take as `part`.
    """
    ends = batch.ptr.cpu().numpy()

    def part(parts: int) -> np.ndarray:
        wanted = ends[-1] * np.arange(1, parts) / parts
        cuts = ends[np.abs(ends[:, None] - wanted).argmin(axis=0)]
        return np.searchsorted(cuts, np.arange(ends[-1]), side="right")

    return part


def _values(data: Any) -> dict[str, Any]:
    """Everything in the data, by name."""
    if isinstance(data, tuple):
        graph, x = data
        return dict(graph.ndata.items()) | {"x": x}
    return dict(data.to_dict()) if hasattr(data, "to_dict") else dict(vars(data))


def _has_nodes(key: str, value: Any, nodes: int) -> bool:
    return (
        isinstance(value, Tensor)
        and value.dim() > 0
        and value.shape[0] == nodes
        and not key.startswith("edge_")
    )


def _slice(x: Any, layout: Layout, world: World, rank: int) -> Tensor:
    """A rank's share of the features, which may be a tensor or an array on disk."""
    rows, columns = shares(layout, world.nodes, x.shape[1], rank)
    found = x[rows, columns]
    if not isinstance(found, Tensor):
        found = torch.from_numpy(np.array(found))
    return found.detach().to(world.device, copy=True).contiguous()


def _moved(data: Any, device: torch.device) -> Any:
    """The data with what tells graphs of a batch apart where the model runs."""
    batch = None if isinstance(data, tuple) else getattr(data, "batch", None)
    if batch is None or batch.device == device:
        return data
    moved = copy.copy(data)
    moved.batch = batch.to(device)
    return moved
