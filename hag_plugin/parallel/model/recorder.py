"""Writing down the operations of a model while it runs, with the graphs that it runs on."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from traceback import walk_tb
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from hag_plugin.hag.program import SelfLoops
from hag_plugin.parallel.graphs.stats import GraphStats, measure
from hag_plugin.parallel.model import functions
from hag_plugin.parallel.model.calls import Call, Edges
from hag_plugin.parallel.model.inputs import Stored, node_types
from hag_plugin.parallel.model.layers import UnknownLayerError, entry_of
from hag_plugin.parallel.model.opgraph import Op, Weight
from hag_plugin.parallel.model.sample import MOST_VALUES, Sample, is_by_row
from hag_plugin.parallel.model.walk import Ends, Walk


@dataclass(frozen=True, eq=False)
class Met:
    """What became an operation.

    Attributes:
        path: of the module that ran.
        call: of it, or of a function; features and weights in it have no storage.
        names: of parameters and buffers: in the layer or the function's signature, in the model.
        shape: of the output.
        leaf: whether the call is a layer's.
    """

    path: str
    call: Call
    names: Mapping[str, str]
    shape: tuple[int, ...]
    leaf: bool = False


class Recorder(Walk):
    """Collects operations while a model runs.

    Attributes:
        ops: so far.
        met: what became each of them.
        graphs: counts of the graphs met so far, by key.
        edges: of these graphs.
        made: edges that it makes of them, and the layers that run on these.
        failed: paths of the modules, innermost last, in which a function could not be run.
        types: how many nodes there are of each type, where there are several.
    """

    def __init__(
        self, data: Any, hag: bool, part: Callable[[int], np.ndarray] | None, counted: bool = True,
        wholes: Collection[str] = (),
    ) -> None:  # fmt: skip
        super().__init__(entry_of, wholes)
        self.data, self.hag, self.part, self.counted = data, hag, part, counted
        self.ops: list[Op] = []
        self.met: list[Met] = []
        self.graphs: dict[str, GraphStats] = {}
        self.edges: dict[str, Edges] = {}
        self._keys: dict[tuple[int, Any], str] = {}
        self._kept: list[Any] = []  # ids are only good while their objects live
        self._known: dict[int, int] = {}
        self._of_weights: dict[int, dict[str, Tensor]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}  # of what is trained
        self.failed: list[str] = []
        self._paths: dict[int, str] = {}
        self._names: dict[int, str] = {}
        self._tables: dict[int, Tensor] = {}
        self._sample: Sample | None = None
        self.types = node_types(data)
        self.made: list[tuple[str, Tensor]] = []

    @property
    def nodes(self) -> int:
        """N, of all types."""
        if isinstance(self.data, GraphStats):
            return self.data.nodes
        if isinstance(self.data, tuple):
            return int(self.data[0].num_nodes())
        return int(self.data.num_nodes)

    @property
    def apart(self) -> bool:
        """Whether the edges are nowhere together."""
        return isinstance(self.data, Stored) and self.data.apart

    def _of_part(self, what: str) -> UnknownLayerError:
        who = f"layer {self.path!r}" if self.path else "the model"
        return UnknownLayerError(
            f"{who} ({self.layer}) {what}: it cannot run from a store, of which each rank has the "
            "edges into its own part alone"
        )

    def count(self, of: str) -> int:
        """How many nodes there are of a type."""
        return self.types[of] if self.types else self.nodes

    def type_of(self, x: Tensor) -> str:
        """The type of the nodes that a tensor has a row for."""
        return self.ops[self.source(x)].of

    def ends(self, x: Ends) -> tuple[str, str]:
        """Types of the nodes that edges come from, and of those that they go to."""
        if not self.types:
            return "", ""
        source, target = (x, x) if isinstance(x, Tensor) else x
        return self.type_of(source), self.type_of(target)

    def attach(self, model: Module) -> None:
        self._sample = Sample(copy.deepcopy(model))
        super().attach(model)
        self._paths = {id(module): path for path, module in model.named_modules()}
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self._names[id(tensor)] = name
            if tensor.requires_grad:
                self._shapes[name] = tuple(tensor.shape)
        tables = (m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding))
        counts = [*self.types.values()] if self.types else [self.nodes]
        self._tables = {id(t): t for t in tables if len(t) in counts}

    # Operations ------------------------------------------------------------------------------

    def op(self, name: str, kind: str, inputs: Sequence[int], width: int, **changes: Any) -> int:
        """Adds an operation under a name of its own; returns its index."""
        inside = _function_around()
        if inside is not None:
            words = "; expected use_reentrant=False" if inside == "CheckpointFunction" else ""
            raise UnknownLayerError(
                f"{self.path or 'the model'} runs inside {inside}, a torch.autograd.Function whose "
                f"backward pass is not that of what runs there: it cannot be planned{words}"
            )
        wants = [bool(op.weights or op.biases) or op.input_grad for op in self.ops]
        grad = any(wants[i] for i in inputs)
        of = self.ops[inputs[0]].of if inputs else ""
        settings: dict[str, Any] = {"input_grad": grad, "layer": self.layer, "of": of} | changes
        self.ops.append(Op(self.unique(name), kind, tuple(inputs), width, **settings))
        return len(self.ops) - 1

    def add(
        self, kind: str, inputs: Sequence[Tensor], width: int, *, suffix: str = "",
        call: tuple[Any, ...] | None = None, weight: Tensor | None = None,
        dims: Mapping[str, Mapping[str, int]] | None = None, **changes: Any,
    ) -> Tensor:  # fmt: skip
        made_by = list(dict.fromkeys(self.source(x) for x in inputs))
        name = ".".join(part for part in (self.path, suffix) if part) or kind
        if weight is not None and "graph" in changes:  # nothing that a HAG could share
            changes["graph"] = self._weighted(changes["graph"], weight)
        if call is not None:
            function, *args = call
            met = Call(function.__name__, tuple(args), {}, function)
            named = functions.bound(met.name, met.args, {}, function)
            values = changes.get("values", 0)
            changes["keeps"] = functions.kept(met.name, named, len(made_by), values)
            roles = self._roles(met)
        else:
            assert self.current is not None  # a layer of the table runs
            module, given, kwargs = self.current
            own = (*module.named_parameters(), *module.named_buffers())
            roles = {name: self._names[id(tensor)] for name, tensor in own}
            met = Call(type(module).__name__, given, kwargs)
        made = tuple(Weight(f"made of {n}", n) for n in changes.pop("made", ()))
        used = changes.pop("used", roles.keys())
        split_by = {role: name for role, name in roles.items() if role in used}
        changes["parameters"] = self._weights(kind, met.name, split_by, dims or {}) + made
        if "graph" in changes:
            changes["of"] = self.edges[changes["graph"]].types[1]
        of = changes.setdefault("of", self.ops[made_by[0]].of)
        shape = changes.pop("shape", (self.count(of), width))
        index = self.op(name, kind, made_by, width, **changes)
        out = torch.empty(shape, device="meta", dtype=inputs[0].dtype)
        self.track(out, index)
        self.met.append(Met(self.path, met, roles, tuple(out.shape), call is None))
        return out

    def opaque(self, layer: Module, known: Sequence[Tensor], edges: Tensor | None = None) -> Tensor:
        assert self.current is not None  # a layer of the table runs
        _, args, kwargs = self.current
        what = f"layer {self.path!r} ({type(layer).__name__})"
        if not known:
            raise UnknownLayerError(f"{what} is given nothing that comes from the features x: it "
                                    "cannot be planned")  # fmt: skip
        of = self.type_of(next((t for t in _targets(args) if self.knows(t)), known[0]))
        if self.types and any(_is_half(value) for value in (*args, *kwargs.values())):
            raise UnknownLayerError(
                f"{what} is given nothing of the nodes that its edges go to: it cannot be planned"
            )
        try:
            assert self._sample is not None  # it was attached to a model
            counts = {self.count(self.type_of(x)) for x in known}
            shape = self._sample.shape(self.path, args, kwargs, known, self.count(of), counts)
        except Exception as e:
            self.failed = [path for path, _ in self._stack[:-1]]
            raise UnknownLayerError(
                f"{what} runs whole, and what it returns could not be seen on a small graph: "
                f"{type(e).__name__}: {e}. A module around it that returns one tensor would run "
                "whole in its place"
            ) from e
        values = sum(p.numel() for p in layer.parameters())
        width, rows = self._size(shape, of)
        made = self._weights_in([args, kwargs], made_only=True)
        changes: dict[str, Any] = {"values": values, "rows": rows, "shape": shape, "made": made,
                                   "of": of}  # fmt: skip
        if edges is not None and not made and len(shape) == 2:
            used = self._sample.used_by_edges(self.path, args, kwargs, edges.shape[1])
            if used is not None:
                changes |= {"by_edges": True, "input_width": known[0].shape[-1], "used": used}
                sizes = {name: p.numel() for name, p in layer.named_parameters()}
                changes["values"] = sum(sizes[name] for name in used)  # others have no gradient
                ends = known[0] if len(known) == 1 else (known[0], known[1])
                changes["graph"] = self.graph(ends, edges)
        if "graph" not in changes and self._takes_edges([args, kwargs]):
            raise self._of_part("runs whole, on all edges")
        return self.add("opaque", known, width, **changes)

    def _size(self, shape: tuple[int, ...], of: str) -> tuple[int, int | None]:
        """Features of a tensor, and its rows; None: they are the nodes of that type."""
        if shape and shape[0] == self.count(of):
            return math.prod(shape[1:]), None
        width = shape[-1] if len(shape) > 1 else 1
        return width, math.prod(shape) // max(width, 1)

    def _roles(self, call: Call) -> dict[str, str]:
        args = functions.bound(call.name, call.args, call.kwargs, call.function)
        found = {}
        for role, value in args.items():
            inside = [t for t in functions.tensors(value) if self._is_parameter(t)]
            for i, tensor in enumerate(inside):
                name = role if isinstance(value, Tensor) else f"{role}.{i}"
                found[name] = self._names[id(tensor)]
        return found

    def knows(self, tensor: Tensor) -> bool:
        if id(tensor) in self._tables and id(tensor) not in self._known:
            self._embedding(tensor)
        return id(tensor) in self._known

    def _embedding(self, table: Tensor) -> None:
        """Adds the operation of a table that has a row for each node: features that are learned."""
        name, width = self._names[id(table)], table.shape[1]
        weight = Weight("weight", name, outputs=1, parts=0, shape=self._shapes.get(name))
        path = name.rpartition(".")[0]
        of = next((each for each, count in self.types.items() if count == len(table)), "")
        index = self.op(path, "embedding", [], width, values=table.numel(), parameters=(weight,),
                        layer="Embedding", of=of)  # fmt: skip
        call = Call("embedding", (), {})
        self.met.append(Met(path, call, {"weight": name}, tuple(table.shape)))
        self.track(table, index)

    def _is_parameter(self, tensor: Tensor) -> bool:
        """Whether it is one that an operation computes with, not an operation itself."""
        return id(tensor) in self._names and id(tensor) not in self._tables

    def is_weight(self, tensor: Tensor) -> bool:
        return id(tensor) in self._names or id(tensor) in self._of_weights

    def make_weight(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        out = self._run(func, args, kwargs)
        sources = self._weights_in([*args, kwargs])
        for tensor in functions.tensors(out):
            if id(tensor) not in self._names:  # not one that was changed in place
                self._kept.append(tensor)
                self._of_weights[id(tensor)] = sources
        return out

    def _weights_in(self, value: Any, made_only: bool = False) -> dict[str, Tensor]:
        """Parameters and buffers in an argument, and those of which others in it were made."""
        found: dict[str, Tensor] = {}
        for tensor in functions.tensors(value):
            if self._is_parameter(tensor) and not made_only:
                found[self._names[id(tensor)]] = tensor
            found |= self._of_weights.get(id(tensor), {})
        return found

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """A function, without the values of what it is given."""
        given = [t for t in functions.tensors([*args, kwargs]) if t.device.type != "meta"]
        if given:
            shadows = {id(t): t.to("meta") for t in given}
            args, kwargs = functions.replaced([*args], shadows), functions.replaced(kwargs, shadows)
        return func(*args, **kwargs)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            out = super().__torch_function__(func, types, args, kwargs)
            if self._takes_edges([args, kwargs]) and next(functions.tensors(out), None) is not None:
                raise self._of_part(f"calls {functions.name_of(func)} with all edges")
            return out
        except Exception:
            self.failed = [path for path, _ in self._stack]
            raise

    def _takes_edges(self, value: Any) -> bool:
        """Whether there are, in an argument, edges that are nowhere together, or what they have."""
        if not self.apart:
            return False
        own = {id(t) for t in (self.data.edge_index, *self.data.of_edges.values())}
        return any(id(t) in own for t in functions.tensors(value))

    def modules_in(self, error: Exception) -> list[str]:
        """Paths of the modules in whose code an error was raised, innermost last."""
        frames = (frame.f_locals.get("self") for frame, _ in walk_tb(error.__traceback__))
        return [self._paths[id(each)] for each in frames if id(each) in self._paths]

    def track(self, tensor: Tensor, index: int) -> None:
        """`tensor` is the output of operation `index`."""
        self._kept.append(tensor)
        self._known[id(tensor)] = index

    def source(self, x: Tensor) -> int:
        """The operation that made a tensor.

        Raises:
            TypeError: it comes from somewhere else.
        """
        if id(x) not in self._known:
            raise TypeError(
                f"layer {self.path!r} takes a tensor of shape {tuple(x.shape)} that does not come "
                "from the features x; expected one set of fixed features"
            )
        return self._known[id(x)]

    def finish(self, out: Any) -> None:
        """Adds the loss behind the model's output: behind all of them, where it has several for
        nodes of several types.

        Raises:
            TypeError: the output has nothing to do with the features.
        """
        found = [self.source(t) for t in functions.tensors(out) if self.knows(t)]
        if not found:
            raise TypeError("the model's output does not depend on the features x")
        last = found[0]
        inputs = list(dict.fromkeys(found)) if self.types else [last]
        rows = next((self.ops[i].rows for i in inputs if self.ops[i].rows is not None), None)
        self.op("loss", "loss", inputs, self.ops[last].width, rows=rows)
        self.met.append(Met("", Call("loss", (), {}), {}, self.met[last].shape))

    # Graphs ----------------------------------------------------------------------------------

    def graph(
        self, x: Ends, edges: Any, self_loops: SelfLoops = False, edge_type: Any = None,
        weight: Tensor | None = None,
    ) -> str:  # fmt: skip
        if not (isinstance(edges, Tensor) or hasattr(edges, "num_edges")):
            raise TypeError(f"layer {self.path!r} runs on a {type(edges).__name__}; expected "
                            "an edge_index [2, E]")  # fmt: skip
        key = (id(edges), (self_loops, edge_type is not None, id(weight)))
        if key not in self._keys:
            if edge_type is not None:
                self._look_at_types(edge_type)
            name = "A+I" if self_loops else "A"
            name += " by relation" if edge_type is not None else ""
            count = sum(k == name or k.startswith(f"{name}:") for k in self.graphs)
            name = f"{name}:{count + 1}" if count else name
            self._kept.append(edges)
            self._keys[key] = name
            self.look_at(edges)
            if not isinstance(edges, Tensor):  # a HAG, or a DGLGraph
                ends = edges.edges() if callable(getattr(edges, "edges", None)) else None
                edges = torch.stack(list(ends or edges.edge_index))
            if weight is not None:
                self.look_at(weight)
            self.edges[name] = Edges(edges, self_loops, edge_type, weight, types=self.ends(x))
            self.graphs[name] = self._stats(self.edges[name])
        return self._keys[key]

    def weighed(
        self, x: Ends, edges: Any, how: str, make: Callable[[], tuple[Tensor, Tensor]]
    ) -> str:
        key = (id(edges), how)
        if key not in self._keys:
            if self.apart:
                raise self._of_part(f"weighs its edges ({how})")
            count = sum(name == how or name.startswith(f"{how}:") for name in self.graphs)
            name = self._keys[key] = f"{how}:{count + 1}" if count else how
            self._kept.append(edges)
            self.look_at(edges)
            index, weight = (edges, None) if getattr(edges, "is_meta", False) else make()
            ends = self.ends(x)
            self.edges[name] = Edges(index, weight=weight, normalised=True, types=ends)
            self.graphs[name] = self._stats(self.edges[name]).without_hags()
        return self._keys[key]

    def look_at(self, edges: Any) -> None:
        if isinstance(edges, Tensor) and not any(edges is each for each in self.given):
            if self.apart:
                raise self._of_part("is given edges, or values of edges, that are not the store's")
            self.made.append((self.path, edges))
            self.edges[f"made {len(self.made)}"] = Edges(edges)

    def _look_at_types(self, edge_type: Tensor) -> None:
        """Raises UnknownLayerError where relations are no whole numbers that a store has."""
        own = [*self.data.of_edges.values()] if self.apart else []
        if self.apart and not any(edge_type is each for each in own):
            raise self._of_part("is given relations of edges that are not the store's")
        if self.apart and (edge_type.is_floating_point() or edge_type.dim() != 1):
            raise self._of_part(f"takes relations {edge_type.dtype} {list(edge_type.shape)}")

    def _stats(self, edges: Edges) -> GraphStats:
        if isinstance(self.data, GraphStats):
            return self.data
        if isinstance(self.data, Stored):
            return self.data.counts(edges.self_loops)
        sources, nodes = (self.count(of) for of in edges.types)
        several = sources if self.types else None
        if not self.counted:
            return replace(GraphStats.assumed(nodes, edges.edge_index.shape[1]), sources=several)
        found = measure(
            edges.edge_index, nodes, self_loops=edges.self_loops, part=self.part,
            hag=self.hag, edge_type=edges.edge_type,
            sources=None if edges.types[0] == edges.types[1] else sources,
        )  # fmt: skip
        return replace(found, sources=several)  # types may have few nodes

    def _weighted(self, graph: str, weight: Tensor) -> str:
        """The key of a graph whose edges have weights: layers with the same share one."""
        key, how = (id(weight), graph), f"{graph} with weights"
        if key not in self._keys:
            count = sum(name == how or name.startswith(f"{how}:") for name in self.graphs)
            name = self._keys[key] = f"{how}:{count + 1}" if count else how
            self._kept.append(weight)
            self.graphs[name] = self.graphs[graph].without_hags()
            self.edges[name] = self.edges[graph]
        return self._keys[key]

    # Functions -------------------------------------------------------------------------------

    def meet(
        self, func: Any, name: str, args: Any, kwargs: dict[str, Any], known: list[Tensor]
    ) -> Any:
        if functions.base_name(name) in functions.RANDOM:
            raise TypeError(
                f"{self.path or 'the model'} calls {name}, whose random numbers would differ from "
                "device to device; expected dropout as the only random function"
            )
        call = Call(name, tuple(args), kwargs, func)
        out = self._run(func, args, kwargs)
        if not functions.in_place(call) and any(out is t for t in known):
            out = out.view_as(out)  # dropout of nothing: both may be used again
        first = call.args[0] if call.args else None
        shape_only = name in functions.OF_FIRST and not (
            isinstance(first, Tensor) and self.knows(first)
        )
        results = list(functions.tensors(out if name != "__setitem__" else args[0]))
        if results and not shape_only and name not in functions.CONSTANT:
            self._record(call, known, results)
        return out

    def _record(self, call: Call, known: list[Tensor], results: list[Tensor]) -> None:
        out, name = results[0], call.name
        inputs = list(dict.fromkeys(self._known[id(t)] for t in known))
        alias = name in functions.ALIASES and out.shape == known[0].shape
        if alias or (id(known[0]) in self._tables and functions.looks_up_all(call)):
            self.track(out, inputs[0])
            return
        width = int(out.shape[-1]) if out.dim() > 1 else 1
        of = self._rows_of(inputs, out)
        nodes = self.count(of)
        args = functions.bound(name, call.args, call.kwargs, call.function)
        kind, changes = functions.classify(name, args, known, out, set(self._names))
        changes["keeps"] = functions.kept(name, args, len(inputs), changes.get("values", 0))
        if kind == "pooling" or out.dim() != 2 or out.shape[0] != nodes:
            changes["rows"] = out.numel() // width
        roles = self._roles(call)
        given = [call.args, call.kwargs]
        made = self._weights_in(given, made_only=True)
        is_made = any(t.requires_grad for t in made.values())
        if kind == "pooling":  # of nodes, not of edges
            others = any(len(t) != nodes for t in known)
        else:
            others = out.dim() != 2
        if len(results) > 1 or is_made or others:
            kind = "opaque"
        if kind == "opaque":
            by_row = len(results) == 1 and not made and self._is_by_row(call, known, out, nodes)
            weights = self._weights_in(given).values()
            values = sum(t.numel() for t in weights if t.requires_grad)
            changes = {"values": values, "keeps": changes["keeps"], "by_row": by_row}
            width, changes["rows"] = self._size(tuple(out.shape), of)
        sources = tuple(Weight(f"made of {n}", n, shape=self._shapes.get(n)) for n in made)
        changes["parameters"] = self._weights(kind, name, roles, {}) + sources
        label = self.label(name)
        index = self.op(label, kind, inputs, width, of=of, **changes)
        if functions.in_place(call) and isinstance(call.args[0], Tensor):
            self.track(call.args[0], index)  # the model may go on with it
        self.met.append(Met(self.path, call, roles, tuple(out.shape)))
        if len(results) == 1:
            self.track(out, index)
            return
        for number, tensor in enumerate(results):
            shape = tuple(tensor.shape)
            of = self._rows_of(inputs, tensor)
            width, rows = self._size(shape, of)
            each = self.op(f"{label}.{number}", "opaque", [index], width, rows=rows, of=of)
            self.met.append(Met(self.path, Call("output", (), {}), {}, shape))
            self.track(tensor, each)

    def _rows_of(self, inputs: Sequence[int], out: Tensor) -> str:
        """The type of the nodes that a function's result has a row for: one that it was given."""
        rows = len(out) if out.dim() else None
        types = [self.ops[i].of for i in inputs]
        return next((of for of in types if self.count(of) == rows), types[0])

    def _is_by_row(self, call: Call, known: Sequence[Tensor], out: Tensor, nodes: int) -> bool:
        """Whether each row of what a function makes depends on the same row of its inputs."""
        if out.dim() == 0 or any(t.dim() == 0 or len(t) != nodes for t in (*known, out)):
            return False
        if functions.in_place(call) or functions.base_name(call.name) in functions.OVER_ROWS:
            return False
        if functions.drops(call.name):  # its masks go by row
            return True
        given = functions.tensors([call.args, call.kwargs])
        weights = [t for t in given if self._is_parameter(t)]
        if any(len(t) == nodes or t.numel() > MOST_VALUES for t in weights if t.dim()):
            return False
        return is_by_row(call, nodes, {id(t) for t in known}, {id(t) for t in weights})

    def _weights(
        self, kind: str, name: str, roles: Mapping[str, str], dims: Mapping[str, Mapping[str, int]]
    ) -> tuple[Weight, ...]:
        """The parameters of an operation, by role; `dims` of those that a layer tells of."""
        if kind == "linear":
            inputs = 1 if name == "linear" else 0
            dims = {"weight": {"inputs": inputs, "outputs": 1 - inputs}, "bias": {"outputs": 0}}
        if kind == "normalisation":
            dims = {role: {"outputs": 0} for role in roles}
        return tuple(
            Weight(role, named, **dims.get(role, {}), shape=self._shapes.get(named))
            for role, named in roles.items()
        )


def _targets(args: Sequence[Any]) -> list[Tensor]:
    """What targets have, where a layer is given a pair: of sources, and of targets."""
    pairs = [each for each in args if isinstance(each, (tuple, list)) and len(each) == 2]
    return list(functions.tensors(pairs[0][1])) if pairs else []


def _is_half(value: Any) -> bool:
    """Whether an argument is a pair of what sources have and nothing."""
    return isinstance(value, tuple) and len(value) == 2 and value[1] is None


def _function_around() -> str | None:
    """The `torch.autograd.Function` in whose forward this is called, by its name."""
    apply = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is apply:
            return str(frame.f_locals["cls"].__name__)
        frame = frame.f_back
    return None
