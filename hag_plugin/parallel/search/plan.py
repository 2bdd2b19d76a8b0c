"""Plans: what was chosen for each operation, its table, and its file.

Plan files are JSON that people read and edit; everything is checked when one is read. Every time
in a plan is predicted by the cost model, none was measured on the machine.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hag_plugin.arguments import check_kind, check_path, whole
from hag_plugin.files import read_json, write_whole
from hag_plugin.notebook import html_table
from hag_plugin.parallel.layouts import KINDS, Layout
from hag_plugin.parallel.machine.topology import name_of_all
from hag_plugin.parallel.model.opgraph import OpGraph
from hag_plugin.parallel.search.cost import MODES, Seconds
from hag_plugin.parallel.strategies.registry import (
    HAGS,
    ORDERS,
    REGISTRY,
    Config,
    Problem,
    configs_of,
    splits_of,
)
from hag_plugin.saved import set_module
from hag_plugin.units import milliseconds, size

FORMAT, VERSION = "hag_plugin.plan", 1
NOTE = (
    "All seconds and bytes of memory are predicted by a cost model, none was measured. Edit a "
    "layer's strategy, layouts, order or hag, then check it with `hag-plugin explain-plan`."
)
COUNTED = (
    "kept: weights with gradients and two moments of Adam, features, what the backward pass needs;",
    "passing: inputs, outputs and buffers of the operation that holds most; graph: its edges, both",
    "ways. Not counted: torch and its allocator's reserve, buffers of NCCL and gloo, labels",
)
QUIET = ("elementwise", "input", "sum", "concatenation", "loss")
HEAD = ("layer", "strategy", "HAG", "compute", "comm", "sync", "sent", "memory")
WORDS = 3  # columns of words; the others are numbers


@set_module("hag_plugin.parallel")
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


@set_module("hag_plugin.parallel")
@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest device, counting tensors only.

    Attributes:
        retained: activations kept for the backward pass; weights, gradients and Adam's moments.
        transient: the most that one operation holds besides while it runs, see
            `strategies.activations`.
        graph: the graphs, each in each form that some layers run on, which share it.
    """

    retained: int
    transient: int
    graph: int

    @property
    def total(self) -> int:
        """The peak."""
        return self.retained + self.transient + self.graph


@set_module("hag_plugin.parallel")
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
        check_kind("graph", graph, OpGraph)
        if world_size is not None:
            world_size = whole("world_size", world_size, 1, 2**31 - 1)
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
                raise impossible(layer, configs, reasons)
        self._check_shared(graph)

    def _check_shared(self, graph: OpGraph) -> None:
        for name, users in graph.users.items():
            known = []
            for i in users:
                splits = splits_of(graph.ops[i], self.layers[i].config)
                known += [splits[w.role] for w in graph.ops[i].parameters if w.name == name]
            if any(split != known[0] for split in known):
                words = [f"{self.layers[i].name!r} ({self.layers[i].config})" for i in users]
                raise ValueError(
                    f"layers {', '.join(words)} share {name!r}, which they split in several ways; "
                    "give them the same strategy"
                )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as JSON, to be read and edited by hand."""
        check_path("path", path)
        write_whole(path, (json.dumps(self.as_dict(), indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """The plan in a file.

        Raises:
            OSError: the file can't be opened or read.
            ValueError: it is no plan, of another version, or a layer's entry is wrong; names it.
        """
        check_path("path", path)
        content = read_json(path)
        try:
            return parsed(content)
        except ValueError as e:
            raise ValueError(f"{os.fspath(path)}: {e}") from e

    def as_dict(self) -> dict[str, Any]:
        """What a file holds."""
        return document(self)

    def __str__(self) -> str:
        return table(self)

    def _repr_html_(self) -> str:
        return html_table(_rows(self), words=WORDS, above=_above(self), below=_below(self))


def impossible(
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


# The table that a person reads -----------------------------------------------------------------


def table(plan: Plan) -> str:
    """The layers, then the whole beside plans that treat all layers alike."""
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


def _rows(plan: Plan) -> list[tuple[str, ...]]:
    """The cells of the table, the head first."""
    shown = [k for k in plan.layers if not (k.kind in QUIET and k.seconds.communication == 0)]
    rest = [k for k in plan.layers if k not in shown]
    rows = [HEAD, *(_row(layer) for layer in shown)]
    if rest:
        rows.append(
            (
                f"{len(rest)} others",
                "where their inputs lie",
                "",
                milliseconds(sum(k.seconds.compute for k in rest)),
                milliseconds(0.0),
                milliseconds(sum(k.seconds.synchronisation for k in rest)),
                size(max(k.sent for k in rest)),
                size(sum(k.memory for k in rest)),
            )
        )
    return rows


def _above(plan: Plan) -> str:
    machine = name_of_all(plan.topology, plan.world_size)
    return (
        f"{plan.model[0] or 'model'} on {machine}, {plan.world_size} devices, "
        f"{plan.nodes:,} nodes. All figures are predicted ({plan.costs} costs)."
    )


def _below(plan: Plan) -> list[str]:
    memory = plan.memory
    lines = [
        f"predicted: {milliseconds(plan.seconds)} ms a training step, by the additive cost "
        "(nothing overlaps)",
        f"predicted memory: {size(memory.total)} on the fullest device ({size(memory.retained)} "
        f"kept, {size(memory.transient)} passing, {size(memory.graph)} graph)",
        *COUNTED,
    ]
    for name, seconds in plan.baselines.items():
        ratio = seconds / plan.seconds if plan.seconds else 1.0
        lines.append(f"predicted, {name}: {milliseconds(seconds)} ms ({ratio:.2f}x)")
    return lines


def _row(layer: LayerPlan) -> tuple[str, ...]:
    config = layer.config
    words = [config.strategy, f"{config.source} > {config.target}"]
    if config.order:
        words.append(config.order)
    return (
        layer.name,
        ", ".join(words),
        config.hag,
        milliseconds(layer.seconds.compute),
        milliseconds(layer.seconds.communication),
        milliseconds(layer.seconds.synchronisation),
        size(layer.sent),
        size(layer.memory),
    )


# Files -----------------------------------------------------------------------------------------


def document(plan: Plan) -> dict[str, Any]:
    """What the file of a plan holds."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "note": NOTE,
        "model": {"name": plan.model[0], "fingerprint": plan.model[1]},
        "graph": {"nodes": plan.nodes, "fingerprints": plan.graphs},
        "topology": plan.topology,
        "world_size": plan.world_size,
        "costs": plan.costs,
        "predicted": {
            "seconds": plan.seconds,
            "memory_bytes": asdict(plan.memory) | {"total": plan.memory.total},
            "baseline_seconds": plan.baselines,
        },
        "layers": [_layer_document(layer) for layer in plan.layers],
    }


def _layer_document(layer: LayerPlan) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "strategy": layer.config.strategy,
        "source": str(layer.config.source),
        "target": str(layer.config.target),
        "order": layer.config.order,
        "hag": layer.config.hag,
        "predicted": asdict(layer.seconds)
        | {"sent_bytes": layer.sent, "memory_bytes": layer.memory},
    }


def parsed(content: Any) -> Plan:
    """The plan that a document holds.

    Raises:
        ValueError: something is missing or wrong; names the layer, if it is in one.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"this is no plan: expected an object of format {FORMAT!r}")
    if content.get("version") != VERSION:
        raise ValueError(f"the plan is of version {content.get('version')!r}; expected {VERSION}")
    model, graph = _get(content, "model", dict), _get(content, "graph", dict)
    predicted = _get(content, "predicted", dict)
    memory = _get(predicted, "memory_bytes", dict)
    entries = _get(content, "layers", list)
    layers = tuple(_layer(entry, f"layer {i}") for i, entry in enumerate(entries))
    for name, count in Counter(layer.name for layer in layers).items():
        if count > 1:
            raise ValueError(f"layer {name!r} occurs {count} times; expected once")
    world_size = _get(content, "world_size", int)
    if world_size < 1:
        raise ValueError(f"world_size is {world_size}; expected 1 or more")
    return Plan(
        layers,
        (_get(model, "name", str), _get(model, "fingerprint", str)),
        _all(graph, "fingerprints", str),
        _count(graph, "nodes"),
        _get(content, "topology", str),
        world_size,
        Memory(*(_count(memory, key) for key in ("retained", "transient", "graph"))),
        _all(predicted, "baseline_seconds", (int, float)),
        _one_of(content, "costs", MODES),
    )


def _layer(entry: Any, what: str) -> LayerPlan:
    if not isinstance(entry, dict):
        raise ValueError(f"{what} is {entry!r}; expected an object")
    name = _get(entry, "name", str, what)
    what = f"layer {name!r}"
    config = Config(
        _one_of(entry, "strategy", sorted({name for _, name in REGISTRY}), what),
        _layout(entry, "source", what),
        _layout(entry, "target", what),
        _one_of(entry, "order", ORDERS, what),
        _one_of(entry, "hag", HAGS, what),
    )
    predicted = _get(entry, "predicted", dict, what)
    parts = ("compute", "communication", "synchronisation")
    seconds = Seconds(*(_seconds(predicted, key, what) for key in parts))
    sent, memory = (_count(predicted, key, what) for key in ("sent_bytes", "memory_bytes"))
    return LayerPlan(name, _get(entry, "kind", str, what), config, seconds, sent, memory)


def _layout(entry: dict[str, Any], key: str, what: str) -> Layout:
    text = _get(entry, key, str, what)
    kind, _, columns = text.partition(" x")
    if kind == "grid" and columns.isdecimal() and int(columns) > 1:
        return Layout("grid", int(columns))
    if kind in KINDS and kind != "grid" and not columns:
        return Layout(kind)
    raise ValueError(
        f"{what}: {key} is {text!r}; expected replicated, rows, columns or grid xK with K > 1"
    )


def _count(entry: dict[str, Any], key: str, what: str = "plan") -> int:
    value: int = _get(entry, key, int, what)
    if value < 0:
        raise ValueError(f"{what}: {key} is {value}; expected 0 or more")
    return value


def _seconds(entry: dict[str, Any], key: str, what: str) -> float:
    value = float(_get(entry, key, (int, float), what))
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{what}: {key} is {value}; expected seconds, 0 or more")
    return value


def _all(entry: dict[str, Any], key: str, kind: Any) -> dict[str, Any]:
    """A dictionary, all of whose values are of one kind."""
    values: dict[str, Any] = _get(entry, key, dict)
    for name in values:
        _get(values, name, kind, f"plan: {key}")
    return values


def _one_of(entry: dict[str, Any], key: str, known: Any, what: str = "plan") -> str:
    value: str = _get(entry, key, str, what)
    if value not in known:
        raise ValueError(f"{what}: {key} is {value!r}; expected one of {list(known)}")
    return value


def _get(entry: dict[str, Any], key: str, kind: Any, what: str = "plan") -> Any:
    if key not in entry:
        raise ValueError(f"{what} has no {key!r}; it has {sorted(entry)}")
    value = entry[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        names = kind.__name__ if isinstance(kind, type) else "number"
        raise ValueError(f"{what}: {key} is {value!r}; expected a value of type {names}")
    return value
