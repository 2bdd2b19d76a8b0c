"""Running a plain torch model as its plan says: `model.parallel` of such a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, fx
from torch.nn import Module
from torch.utils import _pytree as pytree

from hag_plugin.parallel.execution.executors import network as executors
from hag_plugin.parallel.execution.parameters import Parameters, local
from hag_plugin.parallel.execution.runner import NO_COPY
from hag_plugin.parallel.layouts import Split as Cut
from hag_plugin.parallel.model.network import Network, follow, source
from hag_plugin.parallel.model.trace import copied
from hag_plugin.parallel.ranks.boxes import Exchange, Move, cut, fetch
from hag_plugin.parallel.ranks.comm import Group, Sent
from hag_plugin.parallel.search.network import NetworkPlan
from hag_plugin.parallel.strategies.placement import Placement, Task, fetched, place
from hag_plugin.saved import set_module

PHASES = {True: ("update", "update"), False: ("forward", "backward")}  # of parameters, of others


@dataclass(frozen=True, eq=False)
class Fetch:
    """What an operation reads at once, of one type: places among its reads, and the exchange."""

    places: tuple[int, ...]
    exchange: Exchange


@dataclass(frozen=True, eq=False)
class Program:
    """A network and where everything of it lies, for inputs of certain shapes."""

    network: Network
    placement: Placement
    fetches: tuple[tuple[Fetch, ...], ...]  # of each operation
    outputs: tuple[tuple[fx.Node, Exchange], ...]
    last: tuple[tuple[fx.Node, ...], ...]  # of each operation, those whose values it reads last

    @classmethod
    def of(cls, network: Network, placement: Placement, group: Group) -> Program:
        """Groups what is read by type."""
        found = [tuple(_fetches(network, task, group)) for task in placement.tasks]
        outputs = tuple(
            (node, Exchange([move], group, PHASES[False]))
            for node, move in placement.outputs.items()
        )
        left = {source(node)[0] for node in placement.outputs}
        last: list[tuple[fx.Node, ...]] = []
        for task in reversed(placement.tasks):
            read = {source(r.node)[0] for r in task.reads if r.placed is not None}
            read.add(task.operation.node)  # which nothing may read
            last.append(tuple(read - left - set(network.parameters)))
            left |= read
        return cls(network, placement, tuple(found), outputs, tuple(reversed(last)))


def _fetches(network: Network, task: Task, group: Group) -> list[Fetch]:
    found = []
    for places in fetched(network, task):
        reads = [task.reads[i] for i in places]
        phases = PHASES[reads[0].node in network.parameters]
        found.append(Fetch(places, Exchange([read.move for read in reads], group, phases)))
    return found


def without_values(model: Module) -> Module:
    """A copy of a model whose parameters take no memory: to be followed again."""
    empty: dict[int, Any] = {}
    for p in model.parameters():
        stand_in = p.detach().new_zeros(()).expand(p.shape)
        empty[id(p)] = torch.nn.Parameter(stand_in, requires_grad=p.requires_grad)
    return copied(model, empty)


@set_module("hag_plugin.parallel")
class ParallelNetwork:
    """How a plain torch model works together with the other ranks: `model.parallel`.

    Attributes:
        plan: what is run.
        group: all ranks.
        step: forward passes in training so far, for the masks of dropout. Set it when training
            goes on from a checkpoint.
    """

    def __init__(
        self, model: Module, pristine: Module, parameters: Parameters, plan: NetworkPlan,
        group: Group,
    ) -> None:  # fmt: skip
        self.plan, self.group, self.step = plan, group, 0
        self._model, self._pristine, self._parameters = model, pristine, parameters
        self._programs: dict[Any, Program] = {}
        self._weights: dict[str, int] = {}
        self._seed = group.broadcast(torch.initial_seed())

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(NO_COPY)

    @property
    def sent(self) -> Sent:
        """Bytes that this rank sent, by phase."""
        return self.group.sent

    def set_up(self, inputs: tuple[Any, ...], network: Network) -> None:
        """Splits the weights as the plan says; `parallelize` does it once."""
        with self.group.together("laying out the model"):
            placement = place(network, self.plan.splits, self.group.size)
            program = Program.of(network, placement, self.group)
            self._weights = placement.weights
            self._programs[self._key(inputs)] = program
        with self.group.together("splitting the weights"):
            self._parameters.place({name: Cut(dim) for name, dim in self._weights.items()})

    def run(self, *inputs: Any) -> Any:
        """The model's forward: of the whole inputs, the same on every rank.

        What it returns is whole on every rank, as in one process. Every rank takes the same loss
        of it.
        """
        if torch.is_autocast_enabled(self.group.device.type):
            raise RuntimeError(
                "autocast is on; expected it off: a plan moves tensors of the types that the model "
                "has. Convert the model before it is planned, model.to(torch.bfloat16) say"
            )
        key = self._key(inputs)
        program = self._programs.get(key)
        if program is None:
            program = self._programs[key] = self._new(inputs)
        self.step += self._model.training
        return _Pass(self, program).run(inputs)

    def _key(self, inputs: Sequence[Any]) -> Any:
        leaves, spec = pytree.tree_flatten(inputs)
        shapes = [(tuple(t.shape), t.dtype) if isinstance(t, Tensor) else t for t in leaves]
        return str(spec), tuple(shapes), tuple(m.training for m in self._model.modules())

    def _new(self, inputs: tuple[Any, ...]) -> Program:
        """For inputs of other shapes than were planned for, or another mode.

        An operation that cannot be split as the plan says, or is not in it, runs whole. No rank
        follows the model before all have come here: torch.export has state of the process.
        """
        mine = self._key(inputs)
        for rank, other in zip(self.group.ranks, self.group.collect(mine), strict=True):
            if other != mine:
                raise ValueError(
                    f"rank {rank} runs the model on inputs {other[1]}, rank {self.group.rank} on "
                    f"{mine[1]}; expected the same on all, and all in training or none"
                )
        with self.group.together("following the model"):
            pairs = zip(self._model.modules(), self._pristine.modules(), strict=True)
            for module, twin in pairs:
                twin.training = module.training
            network = follow(self._pristine, inputs)
            splits = self.plan.splits_for(network)
            placement = place(network, splits, self.group.size, self._weights)
            if set(placement.weights) != set(self._weights):
                new = sorted(set(placement.weights) - set(self._weights))
                if new:
                    raise ValueError(f"parameters {new} are used now and were not when planned")
            return Program.of(network, placement, self.group)


class _Pass:
    """One forward pass."""

    def __init__(self, parallel: ParallelNetwork, program: Program) -> None:
        self.parallel, self.program = parallel, program
        self.group = parallel.group
        self.model = parallel._model
        self.values: dict[fx.Node, list[Tensor]] = {}  # boxes of this rank, until they are read
        self.everywhere: dict[fx.Node, Any] = {}
        weight = next(iter(parallel._parameters.model.parameters()), None)
        dtype = torch.get_default_dtype() if weight is None else weight.dtype
        self.like = torch.empty(0, dtype=dtype, device=self.group.device)

    def run(self, inputs: tuple[Any, ...]) -> Any:
        network = self.program.network
        leaves = [
            t.to(self.group.device) if isinstance(t, Tensor) else t
            for t in pytree.tree_leaves(inputs)
        ]
        tensors = [t for t in leaves if isinstance(t, Tensor)]
        self.everywhere.update(zip(network.inputs, tensors, strict=True))
        self.everywhere |= {n: self._tensor(name) for n, name in network.buffers.items()}
        self.everywhere |= {n: t.to(self.group.device) for n, t in network.constants.items()}
        numbers = {task.operation.node: i for i, task in enumerate(self.program.placement.tasks)}
        for node in network.nodes:
            if node in numbers:
                self._operation(numbers[node])
            elif node.op == "call_function" and node in network.everywhere:
                self.everywhere[node] = self._everywhere(node)
        found = {node: self._output(node, exchange) for node, exchange in self.program.outputs}
        return pytree.tree_map_only(
            fx.Node, lambda n: found[n] if n in found else self.everywhere[n], network.output,
        )  # fmt: skip

    def _tensor(self, name: str) -> Tensor:
        return local(self.parallel._parameters[name])

    def _everywhere(self, node: fx.Node) -> Any:
        given: Any = fx.node.map_arg((node.args, node.kwargs), lambda n: self.everywhere[n])
        args, kwargs = given
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": self.group.device}
        packet = getattr(node.target, "overloadpacket", None)
        if packet is not None and packet.__name__ in ("dropout", "dropout_"):
            p = float(args[1])
            if not (self.model.training and args[2]) or p == 0:
                return args[0]
            box = tuple((0, n) for n in args[0].shape)
            key = self._dropout_key(node.name)
            return args[0] * executors.kept_values(key, box, args[0].shape, p, args[0])
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _dropout_key(self, name: str) -> tuple[int, ...]:
        return self.parallel._seed, self.parallel.step, crc32(name.encode())

    def _operation(self, number: int) -> None:
        task, network = self.program.placement.tasks[number], self.program.network
        rank = self.group.rank
        inputs: list[Any] = [None] * len(task.reads)
        tokens, buffers = [], {}
        for i, read in enumerate(task.reads):
            if read.placed is None:
                whole = self.everywhere[read.node]
                box = read.boxes[rank]
                inputs[i] = whole if box is None else cut(whole, box)
                if read.node in network.buffers:
                    buffers[i] = whole
        for each in self.program.fetches[number]:
            blocks = [self._block(task.reads[i].node) for i in each.places]
            token, found = fetch(each.exchange, blocks)
            tokens.append(token)
            for i, tensor in zip(each.places, found, strict=True):
                placed = task.reads[i].placed
                assert placed is not None
                inputs[i] = tensor.sum(dim=0) if placed.partial else tensor
        work = executors.Work(
            task, self.group, self.model.training, self._dropout_key(task.operation.name), buffers,
            self.like, tokens,
        )  # fmt: skip
        self.values[task.operation.node] = executors.run(work, inputs)
        for node in self.program.last[number]:
            del self.values[node]

    def _block(self, node: fx.Node) -> Tensor:
        """What this rank owns of a tensor."""
        parameters = self.program.network.parameters
        if node in parameters:
            return self._tensor(parameters[node])
        made, place_ = source(node)
        return self.values[made][place_]

    def _output(self, node: fx.Node, exchange: Exchange) -> Tensor:
        _, [found] = fetch(exchange, [self._block(node)])
        move: Move = exchange.moves[0]
        partial = move.dims > node.meta["val"].dim()
        return found.sum(dim=0) if partial else found
