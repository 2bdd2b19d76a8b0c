"""`trace`: the graph of operations of a PyG or DGL model, from one run without data.

A copy of the model runs on tensors that have shapes but no storage. Layers in the table record
their operations instead of running; what happens between them is seen function by function.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch.overrides import TorchFunctionMode

from hag_plugin.parallel.layer_table import UnknownLayerError, entry_of
from hag_plugin.parallel.opgraph import Op, OpGraph
from hag_plugin.parallel.partition_stats import GraphStats, measure
from hag_plugin.program import SelfLoops

MESSAGE_PASSING = ("torch_geometric.nn.conv.message_passing.MessagePassing",)
ALIASES = {"contiguous", "view", "reshape", "to", "float", "clone", "type_as", "requires_grad_"}
OVER_FEATURES = {"layer_norm", "softmax", "log_softmax", "normalize", "group_norm"}
PRODUCTS = {"linear", "matmul", "mm", "__matmul__", "addmm"}


def trace(
    model: Module,
    data: Any,
    *,
    features: int | None = None,
    hag: bool = True,
    part: Callable[[int], np.ndarray] | None = None,
    itemsize: int = 4,
) -> OpGraph:
    """The operations of a model on a graph, with the graph's counts.

    Args:
        model: of PyG or DGL layers. It is copied; neither it nor its weights are touched.
        data: PyG's `Data`, any object with `x` and `edge_index`; `(DGLGraph, x)`; or the counts of
            a graph, with `features`.
        features: width of the input, where `data` has no `x`.
        hag: search HAGs of the graph, to know what they save.
        part: as in `partition_stats.measure`.
        itemsize: bytes a value.

    Raises:
        TypeError: a layer cannot be traced; names it.

    Example:
        >>> from torch_geometric.nn import GCN
        >>> stats = GraphStats.assumed(1000, 20_000)
        >>> graph = trace(GCN(64, 32, num_layers=2, out_channels=7), stats, features=64)
        >>> [op.name for op in graph.ops]
        ['x', 'convs.0', 'act', 'dropout', 'convs.1', 'loss']
    """
    recorder = Recorder(data, hag, part)
    with torch.device("meta"):
        x = torch.empty(recorder.nodes, _features(data, features))
    recorder.track(x, recorder.op("x", "input", [], x.shape[1]))
    shadow = copy.deepcopy(model)
    lazy = [n for n, p in shadow.named_parameters() if isinstance(
        p, torch.nn.parameter.UninitializedParameter)]  # fmt: skip
    if lazy:
        raise TypeError(f"{lazy[0]!r} has no shape yet: run the model once before planning")
    shadow = shadow.to("meta")
    recorder.attach(shadow)
    args, kwargs = _call(shadow, data, x)
    with recorder, torch.no_grad():
        out = shadow(*args, **kwargs)
    recorder.finish(out)
    if not recorder.graphs:
        recorder.graph(data[0] if isinstance(data, tuple) else getattr(data, "edge_index", x))
    return OpGraph.of(recorder.ops, recorder.graphs, itemsize, type(model).__name__)


def _features(data: Any, features: int | None) -> int:
    x = data[1] if isinstance(data, tuple) else getattr(data, "x", None)
    if isinstance(x, Tensor):
        return int(x.shape[1])
    if features is None:
        raise TypeError(f"{type(data).__name__} has no features x; pass features=, their number")
    return features


def _call(model: Module, data: Any, x: Tensor) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of the model's forward, found by name."""
    if isinstance(data, tuple):
        return [data[0], x], {}
    names = list(inspect.signature(model.forward).parameters.values())
    if isinstance(data, GraphStats):
        edges = torch.empty(2, data.edges, dtype=torch.int64, device="meta")
        kinds = torch.empty(data.edges, dtype=torch.int64, device="meta")
        known: dict[str, Any] = {"x": x, "edge_index": edges, "edge_type": kinds}
    else:
        known = {"x": x, "edge_index": data.edge_index}
        for key in ("edge_type", "edge_weight", "edge_attr"):
            if getattr(data, key, None) is not None:
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


class Recorder(TorchFunctionMode):
    """Collects operations while a model runs.

    Attributes:
        ops: so far.
        graphs: counts of the graphs met so far, by key.
        path: of the module that runs.
    """

    def __init__(self, data: Any, hag: bool, part: Callable[[int], np.ndarray] | None) -> None:
        super().__init__()
        self.data, self.hag, self.part = data, hag, part
        self.ops: list[Op] = []
        self.graphs: dict[str, GraphStats] = {}
        self._keys: dict[tuple[int, Any], str] = {}
        self._kept: list[Any] = []  # ids are only good while their objects live
        self._known: dict[int, int] = {}
        self._stack: list[tuple[str, str]] = []

    @property
    def nodes(self) -> int:
        """N."""
        if isinstance(self.data, GraphStats):
            return self.data.nodes
        if isinstance(self.data, tuple):
            return int(self.data[0].num_nodes())
        return int(self.data.num_nodes)

    @property
    def path(self) -> str:
        """Of the innermost module that runs."""
        return self._stack[-1][0] if self._stack else ""

    # Modules ---------------------------------------------------------------------------------

    def attach(self, model: Module) -> None:
        """Follows the modules of a model, and lets those in the table record themselves."""
        for path, module in model.named_modules():
            entry = entry_of(type(module))
            if entry is not None:
                module.forward = self._leaf(entry, module)
            elif any(f"{c.__module__}.{c.__qualname__}" in MESSAGE_PASSING
                     for c in type(module).__mro__):  # fmt: skip
                module.forward = self._leaf(_opaque, module)
            module.register_forward_pre_hook(partial(self._enter, path))
            module.register_forward_hook(self._leave)

    def _enter(self, path: str, module: Module, _: Any) -> None:
        self._stack.append((path, type(module).__name__))

    def _leave(self, *_: Any) -> None:
        self._stack.pop()

    def _leaf(self, entry: Any, module: Module) -> Callable[..., Tensor]:
        def forward(*args: Any, **kwargs: Any) -> Tensor:
            out: Tensor = entry(self, module, args, kwargs)
            return out

        return forward

    # Operations ------------------------------------------------------------------------------

    def op(self, name: str, kind: str, inputs: Sequence[int], width: int, **changes: Any) -> int:
        """Adds an operation under a name of its own; returns its index."""
        taken = {op.name for op in self.ops}
        unique, count = name, 1
        while unique in taken:
            count += 1
            unique = f"{name}:{count}"
        wants = [bool(op.weights or op.biases) or op.input_grad for op in self.ops]
        grad = any(wants[i] for i in inputs)
        layer = self._stack[-1][1] if self._stack else ""
        settings: dict[str, Any] = {"input_grad": grad, "layer": layer} | changes
        self.ops.append(Op(unique, kind, tuple(inputs), width, **settings))
        return len(self.ops) - 1

    def add(
        self, kind: str, inputs: Sequence[Tensor], width: int, *, suffix: str = "",
        weighted: bool = False, **changes: Any,
    ) -> Tensor:  # fmt: skip
        """Records an operation of the module that runs; returns a tensor for its output."""
        sources = [self.source(x) for x in inputs]
        name = ".".join(part for part in (self.path, suffix) if part) or kind
        if weighted and "graph" in changes:  # weights an edge: nothing that a HAG could share
            changes["graph"] = self._weighted(changes["graph"])
        index = self.op(name, kind, sources, width, **changes)
        out = torch.empty(self.ops[index].rows or self.nodes, width, device="meta")
        self.track(out, index)
        return out

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
        """Adds the loss behind the model's output.

        Raises:
            TypeError: the output has nothing to do with the features.
        """
        first = next((t for t in _tensors(out) if id(t) in self._known), None)
        if first is None:
            raise TypeError("the model's output does not depend on the features x")
        last = self.source(first)
        rows = self.ops[last].rows
        self.op("loss", "loss", [last], self.ops[last].width, rows=rows)

    # Graphs ----------------------------------------------------------------------------------

    def graph(self, edges: Any, self_loops: SelfLoops = False, edge_type: Any = None) -> str:
        """The key of a graph that a layer aggregates over; its edges are counted once."""
        if not (isinstance(edges, Tensor) or hasattr(edges, "num_edges")):
            raise TypeError(f"layer {self.path!r} runs on a {type(edges).__name__}; expected "
                            "an edge_index [2, E]")  # fmt: skip
        key = (id(edges), (self_loops, edge_type is not None))
        if key not in self._keys:
            name = "A+I" if self_loops else "A"
            name += " by relation" if edge_type is not None else ""
            count = sum(k == name or k.startswith(f"{name}:") for k in self.graphs)
            name = f"{name}:{count + 1}" if count else name
            self._kept.append(edges)
            self._keys[key] = name
            self.graphs[name] = self._stats(edges, self_loops, edge_type)
        return self._keys[key]

    def _stats(self, edges: Any, self_loops: SelfLoops, edge_type: Any) -> GraphStats:
        if isinstance(self.data, GraphStats):
            return self.data
        if not isinstance(edges, Tensor):  # a HAG, or a DGLGraph
            pair = edges.edges() if callable(getattr(edges, "edges", None)) else edges.edge_index
            edges = torch.stack(list(pair))
        return measure(
            edges, self.nodes, self_loops=self_loops, part=self.part, hag=self.hag,
            edge_type=edge_type,
        )  # fmt: skip

    def _weighted(self, key: str) -> str:
        name = f"{key} with weights"
        if name not in self.graphs:
            self.graphs[name] = self.graphs[key].without_hags()
        return name

    # Functions -------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        known = [t for t in _tensors([*args, *kwargs.values()]) if id(t) in self._known]
        results = _tensors(out)
        if known and results:
            self._record(func, args, kwargs, known, results)
        return out

    def _record(
        self, func: Any, args: Any, kwargs: Any, known: list[Tensor], results: list[Tensor]
    ) -> None:
        out, name = results[0], getattr(func, "__name__", str(func))
        sources = list(dict.fromkeys(self._known[id(t)] for t in known))
        if name in ALIASES and out.shape == known[0].shape:
            self.track(out, sources[0])
            return
        width = int(out.shape[-1]) if out.dim() > 1 else 1
        rows = None if out.dim() and out.shape[0] == self.nodes else int(out.numel() // width)
        kind, changes = self._classify(name, args, kwargs, known, out)
        if rows is not None:
            changes["rows"] = rows
            if self.ops[sources[0]].rows is None:
                kind = "pooling" if width == known[0].shape[-1] and rows < self.nodes else "opaque"
        label = self.path or name
        module = self._stack[-1][1] if self._stack else ""
        if self.path and not _is_module_of(module, name):
            label = f"{self.path}.{name}"
        index = self.op(label, kind, sources, width, **changes)
        for tensor in results:
            self.track(tensor, index)

    def _classify(
        self, name: str, args: Any, kwargs: Any, known: list[Tensor], out: Tensor
    ) -> tuple[str, dict[str, Any]]:
        same = all(t.shape == out.shape for t in known)
        if name in PRODUCTS and len(known) == 1 and isinstance(args[0], Tensor):
            changes = {"input_width": int(known[0].shape[-1])}
            changes["bias"] = name == "linear" and _argument(args, kwargs, 2, "bias") is not None
            return "linear", changes
        if name == "batch_norm":
            affine = _argument(args, kwargs, 3, "weight") is not None
            return "normalisation", {"over": "nodes", "affine": affine}
        if name in OVER_FEATURES and same:
            affine = name.endswith("_norm") and _argument(args, kwargs, 2, "weight") is not None
            return "normalisation", {"over": "features", "affine": affine}
        if name in ("cat", "concat", "concatenate"):
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            joined = sum(t.shape[-1] for t in known) == out.shape[-1]
            if dim in (-1, out.dim() - 1) and joined:
                return "concatenation", {}
            return "opaque", {}
        if same:
            return ("elementwise" if len(known) == 1 else "sum"), {}
        return "opaque", {}


def _is_module_of(module: str, function: str) -> bool:
    """Whether a function is all that a module does, so that the module's name says enough."""
    return function.replace("_", "") in module.lower() or function == "batch_norm"


def _opaque(recorder: Recorder, conv: Any, args: Any, kwargs: Any) -> Tensor:
    """A layer that is not in the table: it runs on every device, whole."""
    width = getattr(conv, "out_channels", None)
    if not isinstance(width, int):
        raise UnknownLayerError(
            f"layer {recorder.path!r} ({type(conv).__name__}) is not in the table of layers and "
            "does not say its out_channels: it cannot be planned"
        )
    if getattr(conv, "concat", False) and hasattr(conv, "heads"):
        width *= conv.heads
    known = [t for t in _tensors([*args, *kwargs.values()]) if id(t) in recorder._known]
    values = sum(p.numel() for p in conv.parameters())
    return recorder.add("opaque", list({id(t): t for t in known}.values()), width, values=values)


def _argument(args: Any, kwargs: Any, position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [t for item in value for t in _tensors(item)]
    return []
