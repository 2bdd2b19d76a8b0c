"""`trace`: the graph of operations of a PyG or DGL model, from one run without data.

A copy of the model runs on tensors that have shapes but no storage. Layers in the table record
their operations instead of running; what happens between them is seen function by function.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from hag_plugin.arguments import brief, check_flag, check_function, check_kind, whole
from hag_plugin.hag.graph import MAX_NODES
from hag_plugin.parallel.graphs.stats import GraphStats
from hag_plugin.parallel.graphs.store.partitioned_data import PartitionedData
from hag_plugin.parallel.model import network
from hag_plugin.parallel.model.calls import Call, Edges
from hag_plugin.parallel.model.inputs import (
    ModelCall,
    Stored,
    features_of,
    given,
    node_types,
    plain,
    with_features,
)
from hag_plugin.parallel.model.layers import UnknownLayerError
from hag_plugin.parallel.model.network import Network
from hag_plugin.parallel.model.opgraph import OpGraph
from hag_plugin.parallel.model.recorder import Met, Recorder
from hag_plugin.saved import set_module


@overload
def trace(model: Module, data: Tensor | tuple[Tensor, ...] | list[Tensor]) -> Network: ...


@overload
def trace(
    model: Module,
    data: Any,
    *,
    features: int | None = ...,
    hag: bool = ...,
    part: Callable[[int], np.ndarray] | None = ...,
    itemsize: int | None = ...,
    call: ModelCall | None = ...,
) -> OpGraph: ...


@set_module("hag_plugin.parallel")
def trace(
    model: Module,
    data: Any,
    *,
    features: int | None = None,
    hag: bool = True,
    part: Callable[[int], np.ndarray] | None = None,
    itemsize: int | None = None,
    call: ModelCall | None = None,
) -> OpGraph | Network:
    """The operations of a model on a graph, with the graph's counts; or of a model without one.

    Args:
        model: of PyG or DGL layers. It is copied; neither it nor its weights are touched. Or any
            torch model without a graph, that `torch.export` follows.
        data: PyG's `Data`, any object with `x` and `edge_index`; `(DGLGraph, x)`, of several types
            of nodes with a dictionary of features; the counts of a graph, with `features`; or a
            part of a store, of which the manifest is read. Of a model without a graph its inputs,
            a tensor or a tuple of tensors; their values do not matter, and nothing else is given.
        features: width of the input, where `data` has no `x`.
        hag: search HAGs of the graph, to know what they save.
        part: as in `graphs.stats.measure`.
        itemsize: bytes a value; by default of those of `data`, 4 where it has none.
        call: how the model is called with the data: `lambda m, d: m(d.x, d.edge_index,
            d.edge_weight)`, say, or `m.encode(d.x, d.edge_index)`. By default with what its forward
            requires, by name; arguments that have a default are left at it.

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
    check_function("call", call)
    for name, value in (("features", features), ("itemsize", itemsize)):
        if value is not None:
            whole(name, value, 1, MAX_NODES)
    inputs = network.given(data)
    if inputs is not None:
        check_kind("model", model, Module)
        network.check_without_graph(
            features=(features, None), hag=(hag, True), part=(part, None),
            itemsize=(itemsize, None), call=(call, None),
        )  # fmt: skip
        return network.followed(model, inputs)
    options: dict[str, Any] = {"features": features, "hag": hag, "part": part, "call": call}
    return record(model, data, itemsize=itemsize, **options).graph


def record(
    model: Module,
    data: Any,
    *,
    features: int | None = None,
    hag: bool = True,
    part: Callable[[int], np.ndarray] | None = None,
    itemsize: int | None = None,
    counted: bool = True,
    call: ModelCall | None = None,
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
        call: see `trace`.
    """
    check_kind("model", model, Module)
    if isinstance(data, PartitionedData):
        if part is not None:
            raise ValueError("part is given with a store, which is cut already; expected None")
        data = Stored.of(data)
    if not (isinstance(data, (tuple, GraphStats)) or hasattr(data, "num_nodes")):
        raise TypeError(f"data is {brief(data)}; expected a Data, (DGLGraph, x) or GraphStats")
    if part is not None and node_types(data):
        raise ValueError(
            f"part is given with a {type(data).__name__}, each of whose types of nodes is cut into "
            "contiguous blocks; expected None"
        )
    _check_model(model)
    with torch.random.fork_rng(devices=[]):
        recorder, out, x = _followed(
            lambda wholes: Recorder(data, hag, part, counted, wholes), model, data, features,
            call or plain,
        )  # fmt: skip
        if any(not edges.is_meta for _, edges in recorder.made):
            again = Recorder(data, False, part, False, recorder.wholes)
            _run(model, data, features, again, call or plain)
            _check_made(recorder, again)
    recorder.finish(out)
    if not recorder.graphs and not recorder.types:
        recorder.graph(x, data[0] if isinstance(data, tuple) else getattr(data, "edge_index", x))
    graph = OpGraph.of(
        recorder.ops, recorder.graphs, itemsize or x.element_size(), type(model).__name__,
        recorder.types,
    )  # fmt: skip
    met = tuple(_without_others(recorder.met))
    stored = data if isinstance(data, Stored) else None
    return Recorded(graph, met, recorder.edges, tuple(recorder.wholes), stored)


def _check_model(model: Module) -> None:
    """Raises TypeError where a model, or a module of it, is compiled."""
    for path, module in model.named_modules():
        if hasattr(module, "_orig_mod"):
            what = f"module {path!r}" if path else "the model"
            raise TypeError(f"{what} is compiled; expected it as it was before, its _orig_mod")


def _followed(
    make: Callable[[Collection[str]], Recorder], model: Module, data: Any,
    features: int | None, call: ModelCall,
) -> tuple[Recorder, Any, Tensor]:  # fmt: skip
    """Runs a model until all of it is followed, or runs whole where that is not possible.

    A module in which a function wants values runs whole; if that is not possible either, the one
    around it.
    """
    wholes: list[str] = []
    first = last = None
    while True:
        recorder = make(tuple(wholes))
        try:
            return recorder, *_run(model, data, features, recorder, call)
        except Exception as e:
            first, last = first or e, e
            around = recorder.failed or recorder.modules_in(e)
            inner = next((path for path in reversed(around) if path and path not in wholes), None)
            if inner is None:
                break
            wholes = [path for path in wholes if not path.startswith(f"{inner}.")] + [inner]
    if isinstance(last, UnknownLayerError) and "on device meta to a graph" in str(first):
        raise last from first  # DGL's words are no help: they are of what stands for features
    if isinstance(first, (NotImplementedError, RuntimeError)) and "meta" in str(first):
        raise UnknownLayerError(
            f"{type(model).__name__}.forward wants values of features where a plan is made without "
            f"any: {str(first).partition('. ')[0]}. Put that into a module of its own, which then "
            "runs whole"
        ) from first
    raise first


def _run(
    model: Module, data: Any, features: int | None, recorder: Recorder, call: ModelCall
) -> tuple[Any, Tensor]:
    """Runs a copy of a model without its data; returns its output and the features' stand-in."""
    stand_ins = {}
    for of, each in features_of(data).items():
        rows = recorder.count(of)
        with torch.device("meta"):
            width = _width(data, each, features, model, rows)
            x = torch.empty(rows, width, dtype=_dtype(data, each, model))
        name = f"x.{of}" if of else "x"
        recorder.track(x, recorder.op(name, "input", [], x.shape[1], of=of))
        recorder.met.append(Met("", Call(name, (), {}), {}, tuple(x.shape)))
        stand_ins[of] = x
    if not stand_ins:
        raise TypeError(f"{type(data).__name__} has no features x of any type of node")
    shadow = stripped(model)
    recorder.attach(shadow)
    found = with_features(data, stand_ins)
    recorder.given = given(found)
    with recorder, torch.no_grad():
        return call(shadow, found), x


def stripped(model: Module) -> Module:
    """A copy without storage, whose modules share what the model's share.

    Raises:
        TypeError: a parameter has no shape yet; names it.
    """
    empty = {id(t): torch.empty_like(t, device="meta", requires_grad=False)
             for t in computed(model)}  # fmt: skip
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if torch.nn.parameter.is_lazy(tensor):
            raise TypeError(f"{name!r} has no shape yet: run the model once before planning")
        meta = torch.empty_like(tensor, device="meta", requires_grad=tensor.requires_grad)
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        empty[id(tensor)] = torch.nn.Parameter(meta, meta.requires_grad) if is_parameter else meta
    return copied(model, empty).to("meta")


def computed(model: Module) -> list[Tensor]:
    """Tensors that modules keep beside their parameters and that carry a gradient's history.

    So torch.nn.utils.weight_norm and spectral_norm keep a weight, which a hook makes anew.
    """
    kept = (v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor))
    return [t for t in kept if not t.is_leaf]


def copied(model: Module, instead: dict[int, Any] | None = None) -> Module:
    """A copy that is compiled nowhere. `instead`: of tensors, by `id`, what takes their place."""
    if instead is None:
        instead = {id(t): t.detach().clone() for t in computed(model)}
    found = copy.deepcopy(model, instead)
    for module in found.modules():
        module._compiled_call_impl = None
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
    """A model's operations, how each came about, the edges it runs on by key, the paths of modules
    that run whole since what is in them could not be followed, and what a store gave it.
    """

    graph: OpGraph
    met: tuple[Met, ...]
    edges: dict[str, Edges]
    wholes: tuple[str, ...] = ()
    stored: Stored | None = None


def _width(data: Any, x: Any, features: int | None, model: Module, nodes: int) -> int:
    if x is not None and hasattr(x, "shape"):
        return int(x.shape[1]) if len(x.shape) > 1 else 1
    tables = (m for m in model.modules() if isinstance(m, torch.nn.Embedding))
    if features is None and any(m.num_embeddings == nodes for m in tables):
        return 1  # features are learned; nothing reads others
    if features is None:
        raise TypeError(f"{type(data).__name__} has no features x; pass features=, their number")
    return features


def _dtype(data: Any, x: Any, model: Module) -> torch.dtype:
    if isinstance(x, Tensor):
        return x.dtype
    if x is None and not isinstance(data, GraphStats):  # learned features
        return next((p.dtype for p in model.parameters()), torch.float32)
    known = getattr(x, "dtype", None)
    return torch.from_numpy(np.empty(0, known or np.float32)).dtype
