"""Plan files: JSON that people read and edit. Everything is checked when one is read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Fills the registry.
from hag_plugin.parallel import search as _search  # noqa: F401
from hag_plugin.parallel.cost import MODES, Seconds
from hag_plugin.parallel.layouts import KINDS, Layout
from hag_plugin.parallel.search import Memory
from hag_plugin.parallel.strategies import HAGS, ORDERS, REGISTRY, Config

if TYPE_CHECKING:
    from hag_plugin.parallel.planner import LayerPlan, Plan

FORMAT, VERSION = "hag_plugin.plan", 1
NOTE = (
    "All seconds and bytes of memory are predicted by a cost model, none was measured. Edit a "
    "layer's strategy, layouts, order or hag, then check it with `hag-plugin explain-plan`."
)


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


def read(path: Path) -> Plan:
    """The plan in a file; `Plan.load` says what is raised."""
    text = path.read_text()
    try:
        return parse(json.loads(text))
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e


def parse(content: Any) -> Plan:
    """The plan that a document holds.

    Raises:
        ValueError: something is missing or wrong; names the layer, if it is in one.
    """
    from hag_plugin.parallel.planner import Plan

    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"this is no plan: expected an object of format {FORMAT!r}")
    if content.get("version") != VERSION:
        raise ValueError(f"the plan is of version {content.get('version')!r}; expected {VERSION}")
    model, graph = _get(content, "model", dict), _get(content, "graph", dict)
    predicted = _get(content, "predicted", dict)
    memory = _get(predicted, "memory_bytes", dict)
    entries = _get(content, "layers", list)
    layers = tuple(_layer(entry, f"layer {i}") for i, entry in enumerate(entries))
    names = [layer.name for layer in layers]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"layer {name!r} occurs {names.count(name)} times; expected once")
    world_size = _get(content, "world_size", int)
    if world_size < 1:
        raise ValueError(f"world_size is {world_size}; expected 1 or more")
    return Plan(
        layers,
        (_get(model, "name", str), _get(model, "fingerprint", str)),
        _get(graph, "fingerprints", dict),
        _get(graph, "nodes", int),
        _get(content, "topology", str),
        world_size,
        Memory(*(_get(memory, key, int) for key in ("retained", "transient", "graph"))),
        _get(predicted, "baseline_seconds", dict),
        _one_of(content, "costs", MODES),
    )


def _layer(entry: Any, what: str) -> LayerPlan:
    from hag_plugin.parallel.planner import LayerPlan

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
    seconds = Seconds(*(float(_get(predicted, key, (int, float), what)) for key in parts))
    sent, memory = (_get(predicted, key, int, what) for key in ("sent_bytes", "memory_bytes"))
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
