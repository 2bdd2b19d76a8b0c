"""`trace`: the graph of operations of a PyG or DGL model, from one run without data.

A copy of the model runs on tensors that have shapes but no storage. Layers in the table record
their operations instead of running; what happens between them is seen function by function.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from hag_plugin.arguments import brief, check_flag, check_function, check_kind, whole
from hag_plugin.hag.graph import MAX_NODES
from hag_plugin.parallel.graphs.stats import GraphStats
from hag_plugin.parallel.model.calls import Call, Edges
from hag_plugin.parallel.model.functions import tensors
from hag_plugin.parallel.model.layers import UnknownLayerError
from hag_plugin.parallel.model.opgraph import OpGraph
from hag_plugin.parallel.model.recorder import Met, Recorder
from hag_plugin.saved import set_module


@set_module("hag_plugin.parallel")
def trace(
    model: Module,
    data: Any,
    *,
    features: int | None = None,
    hag: bool = True,
    part: Callable[[int], np.ndarray] | None = None,
    itemsize: int | None = None,
) -> OpGraph:
    """The operations of a model on a graph, with the graph's counts.

    Args:
        model: of PyG or DGL layers. It is copied; neither it nor its weights are touched.
        data: PyG's `Data`, any object with `x` and `edge_index`; `(DGLGraph, x)`; or the counts of
            a graph, with `features`.
        features: width of the input, where `data` has no `x`.
        hag: search HAGs of the graph, to know what they save.
        part: as in `graphs.stats.measure`.
        itemsize: bytes a value; by default of those of `data`, 4 where it has none.

    Raises:
        TypeError: a layer cannot be traced; names it.

    Example:
        >>> from torch_geometric.nn import GCN
        >>> stats = GraphStats.assumed(1000, 20_000)
        >>> graph = trace(GCN(64, 32, num_layers=2, out_channels=7), stats, features=64)
        >>> [op.name for op in graph.ops]
        ['x', 'convs.0', 'act', 'dropout', 'convs.1', 'loss']
    """
    check_flag("hag", hag)
    check_function("part", part)
    for name, value in (("features", features), ("itemsize", itemsize)):
        if value is not None:
            whole(name, value, 1, MAX_NODES)
    return record(model, data, features=features, hag=hag, part=part, itemsize=itemsize).graph


def record(
    model: Module,
    data: Any,
    *,
    features: int | None = None,
    hag: bool = True,
    part: Callable[[int], np.ndarray] | None = None,
    itemsize: int | None = None,
    counted: bool = True,
) -> Recorded:
    """What `trace` gives, and what it takes to run the operations.

    Args:
        model: see `trace`, as for the others.
        data: as above.
        features: as above.
        hag: as above.
        part: as above.
        itemsize: as above.
        counted: count the edges; otherwise only their number is right in the graphs' counts.
    """
    check_kind("model", model, Module)
    if not (isinstance(data, (tuple, GraphStats)) or hasattr(data, "num_nodes")):
        raise TypeError(f"data is {brief(data)}; expected a Data, (DGLGraph, x) or GraphStats")
    with torch.random.fork_rng(devices=[]):
        recorder = Recorder(data, hag, part, counted)
        out, x = _run(model, data, features, recorder)
        if any(not edges.is_meta for _, edges in recorder.made):
            again = Recorder(data, False, part, False)
            _run(model, data, features, again)
            _check_made(recorder, again)
    recorder.finish(out)
    if not recorder.graphs:
        recorder.graph(data[0] if isinstance(data, tuple) else getattr(data, "edge_index", x))
    graph = OpGraph.of(
        recorder.ops, recorder.graphs, itemsize or x.element_size(), type(model).__name__
    )
    return Recorded(graph, tuple(_without_others(recorder.met)), recorder.edges)


def _run(model: Module, data: Any, features: int | None, recorder: Recorder) -> tuple[Any, Tensor]:
    """Runs a copy of a model without its data; returns its output and the features' stand-in."""
    with torch.device("meta"):
        x = torch.empty(recorder.nodes, _features(data, features), dtype=_dtype(data))
    recorder.track(x, recorder.op("x", "input", [], x.shape[1]))
    recorder.met.append(Met("", Call("x", (), {}), {}, tuple(x.shape)))
    shadow = copy.deepcopy(model)
    lazy = [n for n, p in shadow.named_parameters() if isinstance(
        p, torch.nn.parameter.UninitializedParameter)]  # fmt: skip
    if lazy:
        raise TypeError(f"{lazy[0]!r} has no shape yet: run the model once before planning")
    shadow = shadow.to("meta")
    recorder.attach(shadow)
    args, kwargs = arguments(shadow, data, x)
    recorder.given = given(args, kwargs)
    with recorder, torch.no_grad():
        return shadow(*args, **kwargs), x


def given(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that a model is given, those that its data has among them."""
    found = list(tensors([*args, dict(kwargs)]))
    for each in args:
        if callable(getattr(each, "to_dict", None)):
            found.extend(tensors(each.to_dict()))
    return found


def _check_made(one: Recorder, other: Recorder) -> None:
    """Raises UnknownLayerError unless a model made the same edges twice."""
    none = "", torch.empty(0)
    for (path, edges), (again, others) in zip_longest(one.made, other.made, fillvalue=none):
        if path != again or not torch.equal(edges, others):
            raise UnknownLayerError(
                f"layer {path or again!r} runs on edges that the model makes anew in each forward, "
                "as dropout_edge does; expected the same edges each time: a plan shares them out "
                "once. Make them before, or leave that out"
            )


def _without_others(met: Sequence[Met]) -> list[Met]:
    """Layers without the weights that functions inside them use: those are the functions'."""
    taken = {name for m in met if not m.leaf for name in m.names.values()}
    return [
        replace(m, names={k: n for k, n in m.names.items() if n not in taken}) if m.leaf else m
        for m in met
    ]


@dataclass(frozen=True, eq=False)
class Recorded:
    """A model's operations, how each came about, and the edges it runs on by key."""

    graph: OpGraph
    met: tuple[Met, ...]
    edges: dict[str, Edges]


def _features(data: Any, features: int | None) -> int:
    x = data[1] if isinstance(data, tuple) else getattr(data, "x", None)
    if x is not None and hasattr(x, "shape"):
        return int(x.shape[1])
    if features is None:
        raise TypeError(f"{type(data).__name__} has no features x; pass features=, their number")
    return features


def _dtype(data: Any) -> torch.dtype:
    x = data[1] if isinstance(data, tuple) else getattr(data, "x", None)
    if isinstance(x, Tensor):
        return x.dtype
    known = getattr(x, "dtype", None)
    return torch.from_numpy(np.empty(0, known or np.float32)).dtype


def arguments(model: Module, data: Any, x: Tensor) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of the model's forward, found by name.

    Args:
        model: PyG's or DGL's.
        data: as for `trace`.
        x: stands for the features.

    Raises:
        TypeError: an argument is not in the data; names it.
    """
    if isinstance(data, tuple):
        return [data[0], x], {}
    names = list(inspect.signature(model.forward).parameters.values())
    if isinstance(data, GraphStats):
        edges = torch.empty(2, data.edges, dtype=torch.int64, device="meta")
        kinds = torch.empty(data.edges, dtype=torch.int64, device="meta")
        known: dict[str, Any] = {"x": x, "edge_index": edges, "edge_type": kinds}
    else:
        known = {"x": x, "edge_index": data.edge_index}
        for key in {"edge_type", "edge_weight", "edge_attr", "batch"} | {p.name for p in names}:
            if key not in known and getattr(data, key, None) is not None:
                known[key] = getattr(data, key)
    if len(names) == 1 and names[0].name not in known:  # forward(data)
        whole = copy.copy(data)
        whole.x = x
        return [whole], {}
    kwargs = {}
    for parameter in names:
        if parameter.name in known:
            kwargs[parameter.name] = known[parameter.name]
        elif parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            raise TypeError(
                f"{type(model).__name__}.forward takes {parameter.name!r}, which is not in the "
                f"data; known are {sorted(known)}"
            )
    return [], kwargs
