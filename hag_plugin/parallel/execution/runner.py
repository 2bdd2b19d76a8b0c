"""Running a model's own forward on shards: each operation goes to its executor.

While the model runs, tensors between operations are stand-ins: of the whole tensor's shape, type
and device, so that the model's code sees what it always saw, but of one value, NaN, that is
nowhere stored twice. What this rank has of the tensor hangs on the stand-in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Module

from hag_plugin.devices import forked_random_state
from hag_plugin.hag.program import SelfLoops
from hag_plugin.modes import top_hooks
from hag_plugin.parallel.execution.executors.registry import OperationExecutor
from hag_plugin.parallel.execution.site import World
from hag_plugin.parallel.layouts import Layout
from hag_plugin.parallel.model import functions
from hag_plugin.parallel.model.calls import Call
from hag_plugin.parallel.model.inputs import ModelCall, given
from hag_plugin.parallel.model.layers import entry_of
from hag_plugin.parallel.model.opgraph import Op
from hag_plugin.parallel.model.walk import Ends, Walk
from hag_plugin.parallel.ranks.transfer import reshard
from hag_plugin.recall import is_run_again

SHARD = "_hag_plugin_shard"
ALONE = (
    "the layers of a parallel model run inside of it: call model(). What else it is to compute, "
    "plan and parallelize() are told: call=lambda m, d: m.encode(d.x, d.edge_index), say"
)
NO_COPY = (
    "a parallel model works with the other ranks and is not copied or pickled: copy its "
    "state_dict(), or parallelize a copy of the model that it was made from"
)
GETTERS = ("data", "T", "mT", "H")  # properties of a parameter that are tensors to compute with


@dataclass
class Shard:
    """What a stand-in stands for.

    Attributes:
        index: of the operation that made it.
        local: this rank's part; None of the features, which lie in several layouts.
    """

    index: int
    local: Tensor | None


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a model runs on: a set of nodes, their features and edges.

    Attributes:
        world: as the executors have it.
        ops: the model's operations on these nodes; the last is the loss.
        shapes: of their outputs, whole.
        executors: of all but the features and the loss.
        features: of operations that are features, by the layout in which another wants them.
        output: the layout that the loss wants.
        given: the stand-ins for these features.
        data: what the model is called with, these in it.
    """

    world: World
    ops: Sequence[Op]
    shapes: Sequence[tuple[int, ...]]
    executors: Sequence[OperationExecutor | None]
    features: dict[int, dict[Layout, Tensor]]
    output: Layout
    given: dict[int, Tensor]
    data: Any


class Called:
    """The model, as the user's call has it: calling it is its own forward.

    Hooks on the model are not called for that: they are where the parallel model is called.
    """

    def __init__(self, model: Module, forward: Callable[..., Any]) -> None:
        self.model, self.forward = model, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def stand_in(shape: Sequence[int], like: Tensor, index: int, local: Tensor | None) -> Tensor:
    """For the output of an operation, of `like`'s type and on its device."""
    value = torch.nan if like.is_floating_point() else 0
    out = torch.full((), value, dtype=like.dtype, device=like.device).expand(tuple(shape))
    setattr(out, SHARD, Shard(index, local))
    return out


class Runner(Walk):
    """Runs what `model.recorder.Recorder` recorded.

    Args:
        model: is changed: its layers stand for themselves only while a runner is at work.
        call: how it is called.
        wholes: paths of modules that run whole, as they were recorded.
    """

    def __init__(self, model: Module, call: ModelCall, wholes: Collection[str]) -> None:
        super().__init__(entry_of, wholes)
        self.originals = {id(m): m.forward for m in model.modules()}
        self.attach(model)
        self.called, self.call = Called(model, model.forward), call
        self._paused = False
        self._met: set[int] = set()
        self._at: Prepared | None = None
        self._names: dict[str, int] = {}
        self._saving: Any = None
        self._marked: list[Tensor] = []
        self._drawn = 0

    def run(self, prepared: Prepared) -> Any:
        """The model's output, with the shards that the loss wants in place of stand-ins."""
        self._at, self._met, self._taken = prepared, set(), {}
        for index, token in prepared.given.items():
            self._taken[prepared.ops[index].name] = 1
            setattr(token, SHARD, Shard(index, None))
        self._names = {op.name: i for i, op in enumerate(prepared.ops)}
        self.given, self._saving, self._drawn = given(prepared.data), top_hooks(False), 0
        model, outer = self.called.model, self.called.model.forward
        try:
            model.forward = self.called.forward  # for a model that calls itself
            self.at.world.parameters.begin()
            self._lay_out_tables()
            with self:
                out = self.call(self.called, prepared.data)
            found = {id(t): self._output(t) for t in functions.tensors(out) if self.knows(t)}
            return functions.replaced(out, found)
        finally:
            model.forward, self._at = outer, None
            for tensor in self._marked:  # buffers among them are none in the next run
                vars(tensor).pop(SHARD, None)
            self._marked.clear()

    def _lay_out_tables(self) -> None:
        """Marks tables of a row for each node: they are features that are learned."""
        for index, op in enumerate(self.at.ops):
            if op.kind == "embedding":
                executor, [weight] = self.at.executors[index], op.parameters
                assert executor is not None  # only the features and the loss have none
                table = self.at.world.parameters[weight.name]
                setattr(table, SHARD, Shard(index, executor.run(Call("embedding", (), {}))))
                self._marked.append(table)
                self._met.add(index)
                self._taken[op.name] = 1

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(NO_COPY)

    @property
    def at(self) -> Prepared:
        """What the model runs on.

        Raises:
            RuntimeError: it does not run: a part of it was called by itself.
        """
        if self._at is None:
            raise RuntimeError(ALONE)
        return self._at

    def _enter(self, path: str, module: Module, _: Any) -> None:
        if path and self._at is None and not is_run_again():
            raise RuntimeError(ALONE)
        super()._enter(path, module, _)

    def _output(self, token: Tensor) -> Tensor:
        return self._laid_out(token, self.at.output)

    def _shard(self, token: Tensor) -> Shard:
        shard: Shard = getattr(token, SHARD)
        return shard

    # What the walk meets ---------------------------------------------------------------------

    def knows(self, tensor: Tensor) -> bool:
        return not self._paused and hasattr(tensor, SHARD)

    @property
    def runs_whole(self) -> bool:
        count = self._taken.get(self.path, 0) + 1
        index = self._names.get(self.path if count == 1 else f"{self.path}:{count}")
        return index is not None and self.at.ops[index].kind == "opaque"

    def is_weight(self, tensor: Tensor) -> bool:
        return not self._paused and isinstance(tensor, DTensor)

    def make_weight(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        of_property = getattr(func, "__name__", "") == "__get__"
        given = [t for t in functions.tensors([*args, kwargs]) if isinstance(t, DTensor)]
        copies = all(p.is_replicate() for t in given for p in t.placements)
        if not copies or (of_property and name not in GETTERS):
            return func(*args, **kwargs)
        by = {id(t): t.to_local() for t in given}
        with self._own_graph():
            return func(*functions.replaced([*args], by), **functions.replaced(kwargs, by))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = functions.base_name(functions.name_of(func))
        drawn = name in functions.DRAWN and not self._paused and not (kwargs or {}).get("generator")
        if not drawn or any(self.knows(t) for t in functions.tensors([args, kwargs])):
            return super().__torch_function__(func, types, args, kwargs)
        world, self._drawn = self.at.world, self._drawn + 1
        with forked_random_state(world.device):  # the same numbers on all ranks
            torch.manual_seed(hash((world.seed, world.step, -self._drawn)) % 2**63)
            return super().__torch_function__(func, types, args, kwargs)

    @contextmanager
    def _own_graph(self) -> Iterator[None]:
        """Inside, torch.utils.checkpoint keeps nothing back: it could not run this again."""
        if top_hooks(False) is self._saving:
            yield
            return
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            yield

    def graph(
        self, x: Ends, edges: Any, self_loops: SelfLoops = False, edge_type: Any = None,
        weight: Tensor | None = None,
    ) -> str:  # fmt: skip
        self.look_at(edges)
        if weight is not None:
            self.look_at(weight)
        return ""

    def weighed(
        self, x: Ends, edges: Any, how: str, make: Callable[[], tuple[Tensor, Tensor]]
    ) -> str:
        self.look_at(edges)
        return ""

    def look_at(self, edges: Any) -> None:
        if not isinstance(edges, Tensor) or any(edges is each for each in self.given):
            return
        known = [t for each in self.at.world.edges.values() for t in (each.edge_index, each.weight)]
        here = [t for t in known if t is not None and not t.is_meta]  # of a store they are nowhere
        if not any(torch.equal(edges.to(t.device), t) for t in here):
            raise RuntimeError(
                f"layer {self.path!r} runs on edges that are in no plan: the model made others "
                "when it was recorded; expected the same in each forward. Plan it in the mode "
                "(train or eval) in which it runs"
            )
        self.given.append(edges)  # for the layers that follow

    def add(
        self, kind: str, inputs: Sequence[Tensor], width: int, *, suffix: str = "",
        call: tuple[Any, ...] | None = None, weight: Tensor | None = None,
        dims: Mapping[str, Mapping[str, int]] | None = None, **changes: Any,
    ) -> Tensor:  # fmt: skip
        name = ".".join(part for part in (self.path, suffix) if part) or kind
        index = self._find(name)
        if index is None:
            raise self._unknown(name)
        if call is not None:
            function, *args = call
            met = Call(function.__name__, tuple(args), {}, function)
        else:
            assert self.current is not None  # a layer of the table runs
            module, given, kwargs = self.current
            original = self.originals[id(module)]
            met = Call(type(module).__name__, given, kwargs, original)
        out: Tensor = self._execute(index, met, list(inputs))
        return out

    def opaque(self, layer: Module, known: Sequence[Tensor], edges: Tensor | None = None) -> Tensor:
        return self.add("opaque", known, 0)

    def meet(
        self, func: Any, name: str, args: Any, kwargs: dict[str, Any], known: list[Tensor]
    ) -> Any:
        first = args[0] if args else None
        shape_only = name in functions.OF_FIRST and not (
            isinstance(first, Tensor) and self.knows(first)
        )
        if name in functions.CONSTANT or shape_only:
            return func(*args, **kwargs)
        if name in functions.ALIASES and self._keeps_shape(func, name, args, kwargs):
            return self._alias(func, name, args, kwargs)
        if isinstance(known[0], DTensor) and functions.looks_up_all(Call(name, args, kwargs, func)):
            shard = self._shard(known[0])
            assert shard.local is not None  # it has one layout
            return stand_in(known[0].shape, shard.local, shard.index, shard.local)
        index = self._find(self.label(name))
        if index is not None:
            return self._execute(index, Call(name, tuple(args), kwargs, func), known)
        out = func(*args, **kwargs)
        if next(functions.tensors(out), None) is not None:
            raise self._unknown(self.label(name))
        return out  # a size, or the like

    def _find(self, name: str) -> int | None:
        """The next operation of this name."""
        count = self._taken.get(name, 0) + 1
        index = self._names.get(name if count == 1 else f"{name}:{count}")
        if index is not None:
            self._taken[name] = count
        return index

    def _unknown(self, name: str) -> RuntimeError:
        met = {*self._met, *self.at.given}
        left = [op.name for i, op in enumerate(self.at.ops[:-1]) if i not in met]
        return RuntimeError(
            f"the model calls {name!r}, which is not in its plan; expected "
            f"{left[0] if left else 'its end'!r} next. A model must take the same way each time"
        )

    def _keeps_shape(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> bool:
        if name not in ("view", "reshape"):
            return True
        meta = torch.empty(args[0].shape, device="meta")
        return bool(func(meta, *args[1:], **kwargs).shape == meta.shape)

    def _alias(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Tensor:
        token = args[0]
        shard = self._shard(token)
        if shard.local is None or name in ("view", "reshape", "contiguous", "requires_grad_"):
            out: Tensor = token
            return out
        rest = [self._shard(t).local if isinstance(t, Tensor) and self.knows(t) else t
                for t in args[1:]]  # fmt: skip
        local = func(shard.local, *rest, **kwargs)
        return stand_in(token.shape, local, shard.index, local)

    # Running ---------------------------------------------------------------------------------

    def _execute(self, index: int, call: Call, known: list[Tensor]) -> Any:
        op, executor = self.at.ops[index], self.at.executors[index]
        assert executor is not None  # only the features and the loss have none
        made = {self._shard(t).index for t in known}
        wanted = {i: self._came_from(i, made) for i in op.inputs}
        if made != set(wanted.values()):
            raise RuntimeError(
                f"operation {op.name!r} takes what {[self.at.ops[j].name for j in sorted(made)]} "
                f"made; its plan says {[self.at.ops[j].name for j in op.inputs]}"
            )
        laid_out: dict[int, Tensor] = {}  # by shard: aliases share one
        for token in known:
            key = id(self._shard(token))
            if key not in laid_out:
                laid_out[key] = self._laid_out(token, executor.site.config.source)
        changed = functions.in_place(call) and isinstance(call.args[0], Tensor)
        if changed:  # autograd refuses to change views that others made
            laid_out = {key: t.clone() if t._is_view() else t for key, t in laid_out.items()}
        shards = {id(t): laid_out[id(self._shard(t))] for t in known}
        firsts = {self._shard(t).index: shards[id(t)] for t in reversed(known)}
        inputs = [firsts[wanted[i]] for i in op.inputs]
        args = tuple(functions.replaced([*call.args], shards))
        given = Call(call.name, args, functions.replaced(dict(call.kwargs), shards), call.function)
        paused, self._paused = self._paused, True
        try:
            with self._own_graph():
                out: Any = executor.run(given, *inputs)
        finally:
            self._paused = paused
        self._met.add(index)
        if not isinstance(out, Tensor):
            return self._several(index, out)
        if changed:  # the model may go on with the tensor that it gave
            setattr(call.args[0], SHARD, Shard(index, out))
            self._marked.append(call.args[0])
            return call.args[0]
        return stand_in(self.at.shapes[index], out, index, out)

    def _several(self, index: int, out: Any) -> Any:
        """Stand-ins for what a function returns that returns several tensors."""
        by = {}
        for number, each in enumerate(functions.tensors(out), index + 1):
            self._met.add(number)
            by[id(each)] = stand_in(self.at.shapes[number], each, number, each)
        return functions.replaced(out, by)

    def _came_from(self, index: int, made: set[int]) -> int:
        """Where an input comes from: operations that only training has may have been left out."""
        while index not in made and index not in self._met and len(self.at.ops[index].inputs) == 1:
            index = self.at.ops[index].inputs[0]
        return index

    def _laid_out(self, token: Tensor, layout: Layout) -> Tensor:
        shard, at = self._shard(token), self.at
        if shard.local is None:
            return at.features[shard.index][layout]
        executor = at.executors[shard.index]
        assert executor is not None  # it made the shard
        before, op = executor.site.config.target, at.ops[shard.index]
        rows, local = executor.site.rows, shard.local
        if before == layout or local.dim() == 2:
            return reshard(local, before, layout, rows, op.width, at.world.group)
        flat = local.reshape(len(local), op.width)  # of nodes, in rows or whole
        turned = reshard(flat, before, layout, rows, op.width, at.world.group)
        return turned.reshape(len(turned), *local.shape[1:])
