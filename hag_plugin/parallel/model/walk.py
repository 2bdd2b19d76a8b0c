"""Following a model while it runs: which module is at work, and which functions are called.

`recorder.Recorder` writes down what it meets, `execution.runner.Runner` runs it on shards; both go
the same way and give operations the same names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial, wraps
from typing import Any

from torch import Tensor
from torch.nn import Module
from torch.overrides import TorchFunctionMode

from hag_plugin.hag.program import SelfLoops
from hag_plugin.parallel.model.functions import base_name, name_of, tensors
from hag_plugin.parallel.model.inputs import entries

Entry = Callable[["Walk", Any, tuple[Any, ...], dict[str, Any]], Any]
"""What a layer is: it is given the walk, the layer and the arguments of its call, names its
operations, and returns the tensor that stands for the output, or as many as the layer returns."""

Ends = Tensor | tuple[Tensor, Tensor]
"""What a layer is given of the nodes that edges come from, and of those that they go to; one tensor
where they are the same."""


class Walk(TorchFunctionMode, ABC):
    """A way through a model. Layers of the table stand for themselves; what is inside is not seen.

    Args:
        entry_of: the table: the entry of a layer, or None for what is followed inside; given the
            layer, and whether it runs whole in any case.
        wholes: paths of modules that do.

    Attributes:
        path: of the module that runs.
        layer: its class.
        given: the tensors that the model is given.
    """

    def __init__(
        self, entry_of: Callable[[Module, bool], Entry | None], wholes: Collection[str] = ()
    ) -> None:
        super().__init__()
        self.entry_of, self.wholes = entry_of, wholes
        self._stack: list[tuple[str, str]] = []
        self._taken: dict[str, int] = {}
        self.given: list[Tensor] = []
        self._opened: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # by id, which keeps them
        self._relations: dict[tuple[int, Any], tuple[Any, Any]] = {}  # likewise
        self.current: tuple[Module, tuple[Any, ...], dict[str, Any]] | None = None

    @property
    def path(self) -> str:
        return self._stack[-1][0] if self._stack else ""

    @property
    def layer(self) -> str:
        return self._stack[-1][1] if self._stack else ""

    def attach(self, model: Module) -> None:
        """Follows the modules of a model, and stands in for those that `entry_of` knows."""
        for path, module in model.named_modules():
            if any(path.startswith(f"{outer}.") for outer in self.wholes):
                continue
            entry = self.entry_of(module, path in self.wholes)
            if entry is not None:
                module.forward = self._leaf(entry, module)
            module.register_forward_pre_hook(partial(self._enter, path))
            module.register_forward_hook(self._leave, always_call=True)

    def _enter(self, path: str, module: Module, _: Any) -> None:
        self._stack.append((path, type(module).__name__))

    def _leave(self, *_: Any) -> None:
        if self._stack:  # it was entered
            self._stack.pop()

    def _leaf(self, entry: Entry, module: Module) -> Callable[..., Any]:
        @wraps(module.forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            before, self.current = self.current, (module, args, kwargs)
            try:
                return entry(self, module, args, kwargs)
            finally:
                self.current = before

        return forward

    def unique(self, name: str) -> str:
        """A name for the next operation that is called so."""
        count = self._taken[name] = self._taken.get(name, 0) + 1
        return name if count == 1 else f"{name}:{count}"

    def label(self, function: str) -> str:
        """What a function that is called here is called."""
        if not self.path:
            return function
        said = function.replace("_", "") in self.layer.lower() or base_name(function) in (
            "batch_norm",
        )
        return self.path if said else f"{self.path}.{function}"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = list(tensors([*args, kwargs]))
        known = [t for t in given if self.knows(t)]
        if known:
            return self.meet(func, name_of(func), args, kwargs, known)
        if any(self.is_weight(t) for t in given):
            return self.make_weight(func, name_of(func), args, kwargs)
        return func(*args, **kwargs)

    @property
    def runs_whole(self) -> bool:
        """Whether it is known already that the layer that is called now runs as it is."""
        return False

    @abstractmethod
    def knows(self, tensor: Tensor) -> bool:
        """Whether a tensor comes from an operation that was met."""

    @abstractmethod
    def is_weight(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter, or was made of some."""

    @abstractmethod
    def make_weight(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """A function is called with parameters, and with nothing that operations made."""

    @abstractmethod
    def meet(
        self, func: Any, name: str, args: Any, kwargs: dict[str, Any], known: list[Tensor]
    ) -> Any:
        """A function is called with tensors that operations made."""

    @abstractmethod
    def graph(
        self, x: Ends, edges: Any, self_loops: SelfLoops = False, edge_type: Any = None,
        weight: Tensor | None = None,
    ) -> str:  # fmt: skip
        """The key of a graph that a layer aggregates over.

        Args:
            x: what it is given of its nodes.
            edges: between them.
            self_loops: as `calls.Edges` has it, like the others.
            edge_type: as above.
            weight: as above.
        """

    @abstractmethod
    def weighed(
        self, x: Ends, edges: Any, how: str, make: Callable[[], tuple[Tensor, Tensor]]
    ) -> str:
        """The key of a graph that a layer makes of its edges, and weighs, once.

        Args:
            x: what it is given of its nodes.
            edges: that the layer is given.
            how: what it makes of them, in words: with the edges, it tells graphs apart.
            make: gives edges `[2, E]` and their weights `[E]`.
        """

    def opened(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """The edges of a sparse matrix, transposed as PyG's `adj_t` is, and its values."""
        if id(matrix) not in self._opened:
            self._opened[id(matrix)] = (matrix, *entries(matrix))
        _, edges, values = self._opened[id(matrix)]
        if any(matrix is each for each in self.given):
            self.given += [edges, values]
        return edges, values

    def relation(self, graph: Any, kind: tuple[str, str, str]) -> Any:
        """One relation of a DGL graph, the same object each time."""
        key = id(graph), kind
        if key not in self._relations:
            self._relations[key] = graph, graph[kind]
        return self._relations[key][1]

    @abstractmethod
    def look_at(self, edges: Any) -> None:
        """A layer that is not in the table is given edges."""

    @abstractmethod
    def opaque(self, layer: Module, known: Sequence[Tensor], edges: Tensor | None = None) -> Tensor:
        """A layer runs as it is.

        Args:
            layer: that is called.
            known: what it is given that operations made.
            edges: where it is given features (of sources and of targets, or of both at once),
                edges and what each edge has alone, the edges.
        """

    @abstractmethod
    def add(
        self, kind: str, inputs: Sequence[Tensor], width: int, *, suffix: str = "",
        call: tuple[Any, ...] | None = None, weight: Tensor | None = None,
        dims: Mapping[str, Mapping[str, int]] | None = None, **changes: Any,
    ) -> Tensor:  # fmt: skip
        """An operation of the layer that runs; returns its output.

        Args:
            kind: as in `opgraph`.
            inputs: outputs of other operations.
            width: of the output.
            suffix: of its name, where a layer has several.
            call: a function and its arguments, where that is all the operation does.
            weight: `[E]`, of edges that have weights.
            dims: by name in the layer, the dimensions of parameters as `opgraph.Weight` has them.
            changes: attributes of the operation.
        """
