"""What a layer returns, seen by running it on two small graphs with random weights."""

from __future__ import annotations

import copy
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from hag_plugin.parallel.model import functions
from hag_plugin.parallel.model.calls import Call

SIZES = (5, 7)  # of the graphs: rings, of as many edges as nodes
MOST_VALUES = 1 << 20  # of a weight that a function is tried with
NODES, PARTS = 9, ((0, 4), (4, 9), (2, 3))  # of a random graph
CHOSEN = ([1, 4, 6], [0, 2, 3, 5], [5])  # rows of the larger size that are tried by themselves


def is_by_row(call: Call, nodes: int, known: set[int], weights: set[int]) -> bool:
    """Whether each row of what a function makes depends on the same row of its inputs alone.

    It is found by its results: on a few rows of random numbers, and on some of these rows.

    Args:
        call: of the function.
        nodes: rows of its inputs and of its output; numbers among its arguments may tell it.
        known: ids of the tensors that have features.
        weights: of those that are parameters.
    """
    size, values, draw = SIZES[-1], {}, torch.Generator().manual_seed(0)
    for t in functions.tensors([*call.args, dict(call.kwargs)]):
        per_row = t.dim() > 0 and len(t) == nodes and id(t) not in weights
        shape = (size, *t.shape[1:]) if per_row else tuple(t.shape)
        if per_row and id(t) not in known and not t.is_meta and nodes >= size:
            values[id(t)] = t[:size], True
        else:
            values[id(t)] = _drawn(shape, t.dtype, draw), per_row

    def run(rows: list[int]) -> Any:
        by = {key: t[rows] if per_row else t for key, (t, per_row) in values.items()}
        args = functions.with_rows(functions.replaced(tuple(call.args), by), nodes, len(rows))
        kwargs = functions.replaced(dict(call.kwargs), by)
        told = {key: functions.with_rows(value, nodes, len(rows)) for key, value in kwargs.items()}
        assert call.function is not None
        return call.function(*args, **told)

    try:
        whole = run([*range(size)])
        for rows in CHOSEN:
            part = run(rows)
            same = isinstance(part, Tensor) and part.shape == (len(rows), *whole.shape[1:])
            if not (same and torch.allclose(part, whole[rows], 1e-4, 1e-6, equal_nan=True)):
                return False
    except Exception:  # it cannot be run on other rows than it is given
        return False
    return True


class Sample:
    """Runs layers of a model in the small.

    Args:
        model: without storage; is kept.
    """

    def __init__(self, model: Module) -> None:
        self.model = model

    def shape(
        self, path: str, args: Sequence[Any], kwargs: Mapping[str, Any], known: Sequence[Tensor],
        nodes: int, counts: Collection[int],
    ) -> tuple[int, ...]:  # fmt: skip
        """Of what a layer returns on the graph that the model is given.

        Args:
            path: of the layer.
            args: of its call.
            kwargs: likewise.
            known: the tensors among them that have features.
            nodes: that it returns a row for, in the graph that the model is given.
            counts: nodes that these tensors have rows for, there.

        Raises:
            ValueError: it returns no tensor, or one whose rows are not the nodes.
        """
        found = []
        for size in SIZES:
            layer = self._made(path)
            small = _Small(size, {*counts}, args, kwargs, {id(t) for t in known})
            out = layer(*small.args, **small.kwargs)
            if not isinstance(out, Tensor):
                raise ValueError(f"it returns a {type(out).__name__}; expected one tensor")
            found.append(tuple(out.shape))
        if len(found[0]) != len(found[1]) or not found[0]:
            raise ValueError(f"it returns tensors of shape {found}; expected one of rows")
        (rows, *rest), (more, *others) = found
        if rest != others or (rows, more) not in (SIZES, (rows, rows)):
            raise ValueError(f"it returns tensors of shape {found}; expected one row a node")
        return (nodes if rows != more else rows, *rest)

    def used_by_edges(
        self, path: str, args: Sequence[Any], kwargs: Mapping[str, Any], edges: int
    ) -> set[str] | None:
        """The parameters that a layer computes with; None unless its rows depend on the edges into
        them and their ends alone.

        It is found by its results: on a random graph, and on parts of it, for which the layer is
        given a pair: the rows that edges read, and those that they go to, which come first there.

        Args:
            path: of the layer.
            args: of its call: features, or a pair of them; edges, and what each edge has.
            kwargs: likewise.
            edges: how many there are.
        """
        layer, draw = self._made(path), torch.Generator().manual_seed(0)
        if any(_drops(module) for module in layer.modules()):
            return None  # masks go by place
        is_pair = not isinstance(args[0], Tensor)
        targets = NODES - 2 if is_pair else NODES
        index = torch.stack([torch.randint(n, (3 * NODES,), generator=draw)
                             for n in (NODES, targets)])  # fmt: skip
        # Each with an edge, and a loop where there may be one.
        index = torch.cat([index, torch.arange(targets).repeat(2, 1)], dim=1)
        number = index.shape[1]
        by: dict[int, Tensor] = {}
        for t in functions.tensors([*args[2:], dict(kwargs)]):
            if t.is_floating_point():
                by[id(t)] = torch.rand(number, *t.shape[1:], generator=draw, dtype=t.dtype)
            elif t.is_meta:
                by[id(t)] = torch.ones(number, *t.shape[1:], dtype=t.dtype)
            else:
                by[id(t)] = t.cpu()[torch.arange(number) % max(edges, 1)]
        x, own = (torch.randn(n, *t.shape[1:], generator=draw, dtype=t.dtype)
                  for n, t in zip((NODES, targets), args[0] if is_pair else (args[0],) * 2,
                                  strict=True))  # fmt: skip

        def run(features: Any, index: Tensor, which: Tensor) -> Tensor:
            chosen = {key: t[which] for key, t in by.items()}
            rest = functions.replaced(tuple(args[2:]), chosen)
            out: Tensor = layer(features, index, *rest, **functions.replaced(dict(kwargs), chosen))
            return out

        try:
            for training in (False, True):
                layer.train(training)
                with torch.enable_grad():
                    whole = run((x, own) if is_pair else x, index, torch.arange(number))
                for first, last in PARTS:
                    last = min(last, targets)
                    which = ((index[1] >= first) & (index[1] < last)).nonzero().view(-1)
                    others = [i for i in range(NODES) if not first <= i < last]
                    order = torch.tensor([*range(first, last), *others])
                    local = torch.stack([order.argsort()[index[0, which]], index[1, which] - first])
                    part = run((x[order], (own if is_pair else x)[first:last]), local, which)
                    if not torch.allclose(part, whole[first:last], rtol=1e-4, atol=1e-5):
                        return None
        except Exception:  # it takes no pair
            return None
        named = {name: p for name, p in layer.named_parameters() if p.requires_grad}
        if not named or not whole.requires_grad:
            return set()
        with torch.enable_grad():
            grads = torch.autograd.grad(whole.sum(), [*named.values()], allow_unused=True)
        return {name for name, grad in zip(named, grads, strict=True) if grad is not None}

    def _made(self, path: str) -> Module:
        """A layer of the model with random weights."""
        layer = copy.deepcopy(self.model.get_submodule(path)).to_empty(device="cpu")
        draw = torch.Generator().manual_seed(1)
        for tensor in (*layer.parameters(), *layer.buffers()):
            drawn = _drawn(tensor.shape, tensor.dtype, draw)
            tensor.detach().copy_(drawn.abs() if drawn.is_floating_point() else drawn)
        return layer


class _Small:
    """The arguments of a call, for a ring of `size` nodes."""

    def __init__(
        self, size: int, counts: set[int], args: Any, kwargs: Any, known: set[int]
    ) -> None:  # fmt: skip
        self.size, self.counts, self.known = size, counts, known
        given = list(functions.tensors([*args, dict(kwargs)]))
        self.edges = {t.shape[1] for t in given if _is_edges(t)}
        by = {id(t): self.tensor(t) for t in given}
        self.args = [self.graph(a) for a in functions.replaced([*args], by)]
        self.kwargs = {k: self.graph(a) for k, a in functions.replaced(dict(kwargs), by).items()}

    def tensor(self, t: Tensor) -> Tensor:
        """In the small."""
        if t.layout != torch.strided:
            eye = torch.eye(self.size, dtype=t.dtype)
            return eye.to_sparse(layout=t.layout)
        if _is_edges(t):
            own = torch.arange(self.size)
            return torch.stack([own, own.roll(1)])
        per_row = t.dim() > 0 and t.shape[0] in (self.counts | self.edges)
        shape = (self.size, *t.shape[1:]) if per_row else tuple(t.shape)
        if id(t) in self.known or t.is_meta or (per_row and len(t) < self.size):
            return _drawn(shape, t.dtype, torch.Generator().manual_seed(2))
        return t[: self.size] if per_row else t

    def graph(self, value: Any) -> Any:
        """A DGL graph in the small, with a loop at each node; anything else as it is."""
        if isinstance(value, Tensor) or not callable(getattr(value, "subgraph", None)):
            return value
        own = torch.arange(min(self.size, *self.counts))
        source, _, target = value.canonical_etypes[0]
        if source != target:
            own = torch.arange(self.size)
            sizes = dict.fromkeys((source, target), self.size)
            return sys.modules["dgl"].heterograph({value.canonical_etypes[0]: (own, own)}, sizes)
        found = value.subgraph(own)
        found.add_edges(own, own)
        return found


def _drops(module: Module) -> bool:
    """Whether a module drops values in training."""
    rates = (getattr(module, name, 0) for name in ("dropout", "p", "drop_rate"))
    return any(isinstance(rate, (float, int)) and 0 < rate <= 1 for rate in rates)


def _is_edges(t: Tensor) -> bool:
    is_pairs = t.layout == torch.strided and t.dim() == 2 and t.shape[0] == 2
    return is_pairs and t.dtype == torch.int64


def _drawn(shape: Sequence[int], dtype: torch.dtype, draw: torch.Generator) -> Tensor:
    """Random numbers, the same on every rank; ones where they are whole."""
    if not dtype.is_floating_point:
        return torch.ones(tuple(shape), dtype=dtype)
    return torch.randn(tuple(shape), dtype=dtype, generator=draw)
