"""Plans of plain torch models: how each operation is split, the cheapest choice, and its file.

The search is that of OptCNN (arXiv 1802.04924): each operation costs its computation and what its
parameters send, each edge what tensors send from one split to the next; the sum is minimised
exactly. Every time in a plan is predicted from published peaks and links, none was measured.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from hag_plugin.arguments import check_path
from hag_plugin.files import read_json, write_whole
from hag_plugin.notebook import html_table
from hag_plugin.parallel.machine.topology import Device, Topology, name_of_all
from hag_plugin.parallel.model.network import RECURRENT, Network, Operation, source
from hag_plugin.parallel.ranks.boxes import Move, volume, whole
from hag_plugin.parallel.search.cost import Seconds
from hag_plugin.parallel.search.elimination import CostGraph, InfeasibleError, marginals
from hag_plugin.parallel.search.exact import minimise
from hag_plugin.parallel.strategies.axes import (
    Parts,
    Split,
    check,
    nodes_of,
    parts_of,
    rule_of,
    splits,
)
from hag_plugin.parallel.strategies.placement import (
    Placed,
    Task,
    default,
    floating,
    held,
    inner,
    itemsize,
    kept,
    place,
    sent,
    weight_dim,
)
from hag_plugin.saved import set_module
from hag_plugin.units import milliseconds, size

FORMAT, VERSION = "hag_plugin.network_plan", 1
NOTE = (
    "All seconds and bytes are predicted by a cost model, none was measured. Edit an operation's "
    "split: what axes it has, `parallelize` says where a split is not possible."
)
HEAD = ("operation", "kind", "split", "compute", "comm", "sync", "sent")
WORDS = 3  # columns of words; the others are numbers
WEIGHTS = 4  # a parameter, its gradient and two moments of Adam
PASSES = 3  # of computing: forward, and twice as much backward
# Operations that move no values and take no time of their own.
FREE = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "alias",
        "transpose", "permute", "t", "select", "slice", "expand", "detach", "chunk", "split",
        "split_with_sizes", "unbind")  # fmt: skip


@set_module("hag_plugin.parallel")
@dataclass(frozen=True)
class OperationPlan:
    """What was chosen for one operation of a plain model.

    Attributes:
        name: of the operation.
        kind: what torch calls it.
        split: how it is split, and on which ranks.
        seconds: predicted, forward and backward; communication is that of its inputs.
        sent: bytes that the busiest rank sends for it, forward, backward and of parameters.
    """

    name: str
    kind: str
    split: Split
    seconds: Seconds
    sent: int


@set_module("hag_plugin.parallel")
@dataclass(frozen=True)
class NetworkPlan:
    """A split of each operation of a plain torch model.

    Attributes:
        operations: in the order of the model's.
        model: the name of its class.
        topology: name of the machine.
        world_size: ranks.
        sent: bytes that each rank sends in a step of training, by phase: what
            `model.parallel.sent` counts.
        memory: bytes on the fullest device, at most: parameters with gradients and two moments of
            Adam, what operations read and make.
        baselines: predicted seconds of plans that treat all operations alike.
    """

    operations: tuple[OperationPlan, ...]
    model: str
    topology: str
    world_size: int
    sent: dict[str, tuple[int, ...]]
    memory: int
    baselines: dict[str, float]

    @property
    def seconds(self) -> float:
        """Predicted time of a training step; nothing overlaps."""
        return sum(op.seconds.total for op in self.operations)

    @property
    def splits(self) -> dict[str, Split]:
        """What was chosen, by operation."""
        return {op.name: op.split for op in self.operations}

    def splits_for(self, network: Network) -> dict[str, Split]:
        """For another shape of inputs or mode of the model: those that are possible there."""
        found, kinds = {}, {op.name: op for op in self.operations}
        for operation in network.operations:
            known = kinds.get(operation.name)
            if known is None or known.kind != operation.kind:
                continue
            try:
                check(known.split, operation, rule_of(operation), self.world_size)
            except ValueError:
                continue
            found[operation.name] = known.split
        return found

    def check(self, network: Network) -> None:
        """Whether the plan is for this model.

        Raises:
            ValueError: it is not, says what differs; or a split is not possible, names it.
        """
        mine = [(op.name, op.kind) for op in self.operations]
        theirs = [(op.name, op.kind) for op in network.operations]
        if mine != theirs:
            odd = [f"{name} ({kind})" for name, kind in sorted({*mine} ^ {*theirs})]
            raise ValueError(
                f"the plan is for another model, or for inputs of other shapes: they differ in "
                f"{odd or 'their order'}"
            )
        place(network, self.splits, self.world_size)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as JSON, to be read and edited by hand."""
        check_path("path", path)
        write_whole(path, (json.dumps(self.as_dict(), indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NetworkPlan:
        """The plan in a file.

        Raises:
            OSError: the file can't be opened or read.
            ValueError: it is no plan of a plain model, or an entry is wrong; names it.
        """
        check_path("path", path)
        try:
            return parsed(read_json(path))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise ValueError(f"{os.fspath(path)} is no plan of a plain model: {e}") from e

    def as_dict(self) -> dict[str, Any]:
        """What a file holds."""
        return document(self)

    def __str__(self) -> str:
        return table(self)

    def _repr_html_(self) -> str:
        return html_table(_rows(self), words=WORDS, above=_above(self), below=_below(self))


def table(plan: NetworkPlan) -> str:
    """The operations, then the whole beside plans that treat all alike."""
    rows = _rows(plan)
    widths = [max(len(row[c]) for row in rows) for c in range(len(HEAD))]
    lines = [_above(plan), ""]
    for row in rows:
        cells = [
            text.ljust(w) if c < WORDS else text.rjust(w)
            for c, (text, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, "", *_below(plan)])


def _rows(plan: NetworkPlan) -> list[tuple[str, ...]]:
    """The cells of the table, the head first."""
    rows: list[tuple[str, ...]] = [HEAD]
    for op in plan.operations:
        times = op.seconds.compute, op.seconds.communication, op.seconds.synchronisation
        rows.append((op.name, op.kind, str(op.split), *map(milliseconds, times), size(op.sent)))
    return rows


def _above(plan: NetworkPlan) -> str:
    machine = name_of_all(plan.topology, plan.world_size)
    return (
        f"{plan.model} on {machine}, {plan.world_size} devices. All figures are predicted "
        "(analytic costs)."
    )


def _below(plan: NetworkPlan) -> list[str]:
    lines = [
        f"predicted: {milliseconds(plan.seconds)} ms a training step, by the additive cost "
        "(nothing overlaps)",
        f"predicted memory: at most {size(plan.memory)} on the fullest device",
    ]
    for name, seconds in plan.baselines.items():
        ratio = seconds / plan.seconds if plan.seconds else 1.0
        lines.append(f"predicted, {name}: {milliseconds(seconds)} ms ({ratio:.2f}x)")
    return lines


def document(plan: NetworkPlan) -> dict[str, Any]:
    """What the file of a plan holds."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "note": NOTE,
        "model": plan.model,
        "topology": plan.topology,
        "world_size": plan.world_size,
        "predicted": {
            "seconds": plan.seconds,
            "sent_bytes": {phase: [*each] for phase, each in plan.sent.items()},
            "memory_bytes": plan.memory,
            "baseline_seconds": plan.baselines,
        },
        "operations": [
            {"name": op.name, "kind": op.kind, "split": str(op.split),
             "predicted": asdict(op.seconds) | {"sent_bytes": op.sent}}
            for op in plan.operations
        ],
    }  # fmt: skip


def parsed(content: Any) -> NetworkPlan:
    """The plan that a document holds."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"expected an object of format {FORMAT!r}")
    if content.get("version") != VERSION:
        raise ValueError(f"it is of version {content.get('version')!r}; expected {VERSION}")
    operations = []
    for entry in content["operations"]:
        times = entry["predicted"]
        seconds = (float(times[k]) for k in ("compute", "communication", "synchronisation"))
        split = Split.parse(entry["split"])
        name, kind, sent_bytes = str(entry["name"]), str(entry["kind"]), int(times["sent_bytes"])
        operations.append(OperationPlan(name, kind, split, Seconds(*seconds), sent_bytes))
    found = content["predicted"]
    bytes_sent = {str(k): tuple(int(n) for n in v) for k, v in found["sent_bytes"].items()}
    baselines = {str(k): float(v) for k, v in found["baseline_seconds"].items()}
    return NetworkPlan(
        tuple(operations), str(content["model"]), str(content["topology"]),
        int(content["world_size"]), bytes_sent, int(found["memory_bytes"]), baselines,
    )  # fmt: skip


# Costs ----------------------------------------------------------------------------------------


def pass_seconds(device: Device, flops: float, moved: float) -> float:
    """Seconds of a forward pass that computes and moves so much."""
    return (
        max(flops / (device.flops * device.flops_efficiency),
            moved / (device.bandwidth * device.bandwidth_efficiency)) + device.overhead
    )  # fmt: skip


def flops_of(operation: Operation) -> float:
    """Floating-point operations of the forward pass."""
    shapes, out = operation.shapes, math.prod(operation.outputs[0])
    kind = operation.kind
    if kind == "linear":
        return 2.0 * out * shapes[0][-1]
    if kind in ("matmul", "mm", "bmm"):
        return 2.0 * out * shapes[0][-1]
    if kind in ("conv1d", "conv2d", "conv3d"):
        return 2.0 * out * math.prod(shapes[1][1:])
    if kind == "scaled_dot_product_attention":
        q, k, v = shapes[:3]
        return 2.0 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])
    if kind in RECURRENT:
        steps = math.prod(shapes[0][:-1])
        return 2.0 * steps * sum(math.prod(s) for s in shapes[2:] if len(s) == 2)
    return float(out)


@lru_cache(maxsize=1 << 16)
def _sent(move: Move, item: int, differentiable: bool) -> np.ndarray:
    found = move.sent(item)
    return found if differentiable else found * np.array([[1], [0]])


class NetworkSpace:
    """All plans of a network on a machine that the planner tries, and what they cost.

    Args:
        network: the operations.
        topology: the machine; its devices are the ranks.
        require: a split of some operations, by name.

    Raises:
        ValueError: a required split is not possible.
    """

    def __init__(
        self, network: Network, topology: Topology, require: Mapping[str, Split] | None = None
    ) -> None:
        self.network, self.topology = network, topology
        self.world_size = topology.num_devices
        wanted = dict(require or {})
        names = [op.name for op in network.operations]
        unknown = sorted(wanted.keys() - set(names))
        if unknown:
            raise ValueError(f"require names {unknown}; expected some of {names}")
        self.choices: list[list[Split]] = []
        self.parts: list[list[Parts]] = []
        self.nodes = [nodes_of(op, rule_of(op)) for op in network.operations]
        for operation in network.operations:
            rule = rule_of(operation)
            mine = splits(rule, self.world_size)
            if operation.name in wanted:
                mine = [wanted[operation.name]]
                check(mine[0], operation, rule, self.world_size)
            self.choices.append(mine)
            self.parts.append([parts_of(operation, rule, s, self.world_size) for s in mine])
        self.numbers = {op.node: i for i, op in enumerate(network.operations)}

    def graph(self) -> CostGraph:
        """The costs of all choices."""
        nodes = [
            np.array([
                self.compute(i, k) + self.synchronisation(i, k) + self._inner(i, k)[0]
                for k in range(len(mine))
            ]) for i, mine in enumerate(self.choices)
        ]  # fmt: skip
        for node in self.network.outputs:
            made, which = source(node)
            i = self.numbers[made]
            nodes[i] = nodes[i] + [
                self._seconds(self._output(i, k, node, which)) for k in range(len(nodes[i]))
            ]
        edges = []
        for v in range(len(self.choices)):
            for place_, node in enumerate(self.nodes[v]):
                if node in self.network.everywhere or node in self.network.parameters:
                    continue
                made, which = source(node)
                u = self.numbers[made]
                costs = np.array([
                    [self._seconds(self._moved(u, a, which, v, b, place_))
                     for b in range(len(self.choices[v]))] for a in range(len(self.choices[u]))
                ])  # fmt: skip
                edges.append((u, v, costs))
        return CostGraph(nodes, edges)

    def compute(self, i: int, k: int) -> float:
        """Seconds of the largest part, forward and backward."""
        operation, parts = self.network.operations[i], self.parts[i][k]
        if operation.kind in FREE:
            return 0.0
        share = 1.0
        for axis in rule_of(operation).axes:
            count = dict(self.choices[i][k].parts).get(axis.name, 1)
            share *= -(-axis.size // count) / axis.size
        moved = sum(
            held(boxes, itemsize(node))
            for node, boxes in zip(self.nodes[i], parts.reads, strict=True)
        )
        moved += sum(held(boxes, itemsize(operation.inputs[0])) for boxes in parts.writes)
        flops = flops_of(operation) * share
        return PASSES * max(pass_seconds(d, flops, moved) for d in self.topology.kinds)

    def own(self, task: Task, rank: int) -> float:
        """Seconds of the forward pass of a rank's own part, 0 where it has none: a third of
        `compute` at most.
        """
        operation, part = task.operation, task.parts.part[rank]
        if operation.kind in FREE or part is None:
            return 0.0
        share = 1.0
        for axis, (first, end) in zip(rule_of(operation).axes, part, strict=True):
            share *= (end - first) / axis.size
        moved = sum(volume(read.boxes[rank]) * itemsize(read.node) for read in task.reads)
        made = sum(volume(boxes[rank]) for boxes in task.parts.writes)
        moved += made * itemsize(operation.inputs[0])
        return pass_seconds(self.topology.device_at(rank), flops_of(operation) * share, moved)

    def synchronisation(self, i: int, k: int) -> float:
        """Seconds of fetching parameters and of their gradients."""
        return sum(self._seconds(each) for each in self.weights(i, k))

    def weights(self, i: int, k: int) -> list[np.ndarray]:
        """Bytes that ranks send for each parameter that an operation reads."""
        found = []
        for node, boxes in zip(self.nodes[i], self.parts[i][k].reads, strict=True):
            if node in self.network.parameters:
                shape = tuple(node.meta["val"].shape)
                lies = kept(shape, weight_dim(boxes, shape), self.world_size)
                found.append(_sent(lies.move(boxes), itemsize(node), True))
        return found

    def memory(self) -> list[np.ndarray]:
        """Bytes that each choice adds on the device that has most of it."""
        found = []
        for i, operation in enumerate(self.network.operations):
            of = []
            for parts in self.parts[i]:
                total = sum(held(b, itemsize(operation.inputs[0])) for b in parts.writes)
                for node, boxes in zip(self.nodes[i], parts.reads, strict=True):
                    total += held(boxes, itemsize(node))
                    if node in self.network.parameters:
                        all_of = math.prod(node.meta["val"].shape) * itemsize(node)
                        total += WEIGHTS * -(-all_of // self.world_size)
                of.append(float(total))
            found.append(np.array(of))
        return found

    def numbers_of(self, chosen: Mapping[str, Split]) -> list[int]:
        """The number of each operation's choice."""
        return [
            mine.index(chosen.get(op.name, default()))
            for op, mine in zip(self.network.operations, self.choices, strict=True)
        ]

    def uniform(self) -> dict[str, list[int]]:
        """Choices that treat all operations alike, as far as each can be split so."""
        P = self.world_size
        found = {}
        for name, axis in (("all by samples", "sample"), ("all by channels", "channel")):
            wanted = Split(((axis, P),), tuple(range(P)))
            found[name] = [mine.index(wanted) if wanted in mine else 0 for mine in self.choices]
        found["all on one device"] = [0 for _ in self.choices]
        return found

    def _inner(self, i: int, k: int) -> tuple[float, np.ndarray]:
        """Seconds and bytes, int64 `[2, P]`, of what is sent while an operation runs."""
        operation = self.network.operations[i]
        item = itemsize(operation.inputs[0])
        each = [
            _sent(move, item, True)
            for move in inner(operation, self.parts[i][k], self.choices[i][k])
        ]
        nothing = np.zeros((2, self.world_size), np.int64)
        return sum(map(self._seconds, each)), sum(each, nothing)

    def _moved(self, u: int, a: int, which: int, v: int, b: int, place_: int) -> np.ndarray:
        node = self.nodes[v][place_]
        made = self.parts[u][a]
        move = Placed(made.writes[which], made.partial).move(self.parts[v][b].reads[place_])
        return _sent(move, itemsize(node), floating(node))

    def _output(self, i: int, k: int, node: Any, which: int) -> np.ndarray:
        everything = (whole(node.meta["val"].shape),) * self.world_size
        made = self.parts[i][k]
        move = Placed(made.writes[which], made.partial).move(everything, alike=True)
        return _sent(move, itemsize(node), floating(node))

    def _seconds(self, each: np.ndarray) -> float:
        return float(sum(
            self.all_to_all(int(n)) for n in each.max(axis=1, initial=0) if n
        ))  # fmt: skip

    @lru_cache(maxsize=1 << 14)  # noqa: B019 - as long as the space
    def all_to_all(self, nbytes: int) -> float:
        """Seconds of an exchange in which the busiest rank sends so many bytes."""
        return self.topology.seconds("all_to_all", nbytes)

    def planned(self, chosen: Sequence[int], baselines: dict[str, float]) -> NetworkPlan:
        """The plan of a choice."""
        placement = place(
            self.network,
            {op.name: mine[k] for op, mine, k in
             zip(self.network.operations, self.choices, chosen, strict=True)},
            self.world_size,
        )  # fmt: skip
        phases = {p: np.zeros(self.world_size, np.int64) for p in ("forward", "backward", "update")}
        found = []
        for i, task in enumerate(placement.tasks):
            synced, (moved, within) = 0.0, self._inner(i, chosen[i])
            total = within.sum(axis=0)
            phases["forward"] += within[0]
            phases["backward"] += within[1]
            for read in task.reads:
                if read.placed is None:
                    continue
                each = sent(read)
                total += each.sum(axis=0)
                if read.node in self.network.parameters:
                    phases["update"] += each.sum(axis=0)
                    synced += self._seconds(each)
                else:
                    phases["forward"] += each[0]
                    phases["backward"] += each[1]
                    moved += self._seconds(each)
            for node, move in placement.outputs.items():
                if source(node)[0] is task.operation.node:
                    each = move.sent(itemsize(node))
                    phases["forward"] += each[0]
                    total += each[0]
                    moved += self._seconds(each)
            found.append(OperationPlan(
                task.operation.name, task.operation.kind, task.split,
                Seconds(self.compute(i, chosen[i]), moved, synced), int(total.max(initial=0)),
            ))  # fmt: skip
        memory = sum(float(m[k]) for m, k in zip(self.memory(), chosen, strict=True))
        return NetworkPlan(
            tuple(found), self.network.model, self.topology.name, self.world_size,
            {phase: tuple(each.tolist()) for phase, each in phases.items()},
            round(memory), baselines,
        )  # fmt: skip


def plan_network(
    network: Network, topology: Topology, memory: float, require: Mapping[str, str] | None = None
) -> NetworkPlan:
    """`plan` of a plain torch model.

    Raises:
        InfeasibleError: no plan fits in memory.
        ValueError: a required split is not possible; names the operation and what is.
    """
    if not network.operations:
        raise ValueError(f"{network.model} has no operation on parameters; expected one or more")
    wanted = {name: Split.parse(text) for name, text in (require or {}).items()}
    space = NetworkSpace(network, topology, wanted)
    graph = space.graph()
    try:
        choice = minimise(graph, memory=space.memory(), memory_limit=memory)
    except InfeasibleError as e:
        least = None if e.nearest is None else e.nearest.memory
        words = "" if least is None else f"; the least that a plan takes is {size(least)}"
        raise InfeasibleError(
            f"no plan of {network.model} fits in {size(memory)} on each device{words}; give more "
            "memory or more devices", e.nearest,
        ) from None  # fmt: skip
    compared = {} if wanted else {n: graph.cost(c) for n, c in space.uniform().items()}
    return space.planned(choice.configs, compared)


def repriced(found: NetworkPlan, network: Network, topology: Topology) -> NetworkPlan:
    """The same splits, priced anew.

    Raises:
        ValueError: the plan is for another model, or a split is not possible; names it.
    """
    found.check(network)
    every = NetworkSpace(network, topology)
    graph = every.graph()
    own = NetworkSpace(network, topology, found.splits)
    compared = {name: graph.cost(choice) for name, choice in every.uniform().items()}
    return own.planned([0] * len(own.choices), compared)


def by_axes(space: NetworkSpace) -> dict[str, dict[str, float]]:
    """Of each operation that can be split, by the axes along which it is: predicted seconds of the
    cheapest plan in which it is split so, memory left out of account.
    """
    found = {}
    costs = marginals(space.graph())
    for operation, mine, seconds in zip(
        space.network.operations, space.choices, costs, strict=True
    ):
        least: dict[str, float] = {}
        for split, each in zip(mine, seconds.tolist(), strict=True):
            axes = " x ".join(axis for axis, _ in split.parts) or "whole"
            least[axes] = min(each, least.get(axes, math.inf))
        if len(least) > 1:
            found[operation.name] = least
    return found
