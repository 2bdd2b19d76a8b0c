"""What a layer returns, seen by running it on two small graphs with random weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from hag_plugin.parallel.model import functions

SIZES = (5, 7)  # of the graphs: rings, of as many edges as nodes


class Sample:
    """Runs layers of a model in the small.

    Args:
        model: without storage; is kept.
        nodes: of the graph that the model is given.
    """

    def __init__(self, model: Module, nodes: int) -> None:
        self.model, self.nodes = model, nodes

    def shape(
        self, path: str, args: Sequence[Any], kwargs: Mapping[str, Any], known: Sequence[Tensor]
    ) -> tuple[int, ...]:
        """Of what a layer returns on the graph that the model is given.

        Args:
            path: of the layer.
            args: of its call.
            kwargs: likewise.
            known: the tensors among them that have features.

        Raises:
            ValueError: it returns no tensor, or one whose rows are not the nodes.
        """
        found = []
        for size in SIZES:
            layer = copy.deepcopy(self.model.get_submodule(path)).to_empty(device="cpu")
            for tensor in (*layer.parameters(), *layer.buffers()):
                tensor.detach().copy_(_filled(tensor))
            small = _Small(size, self.nodes, args, kwargs, {id(t) for t in known})
            out = layer(*small.args, **small.kwargs)
            if not isinstance(out, Tensor):
                raise ValueError(f"it returns a {type(out).__name__}; expected one tensor")
            found.append(tuple(out.shape))
        if len(found[0]) != len(found[1]) or not found[0]:
            raise ValueError(f"it returns tensors of shape {found}; expected one of rows")
        (rows, *rest), (more, *others) = found
        if rest != others or (rows, more) not in (SIZES, (rows, rows)):
            raise ValueError(f"it returns tensors of shape {found}; expected one row a node")
        return (self.nodes if rows != more else rows, *rest)


class _Small:
    """The arguments of a call, for a ring of `size` nodes."""

    def __init__(
        self, size: int, nodes: int, args: Any, kwargs: Any, known: set[int]
    ) -> None:  # fmt: skip
        self.size, self.nodes, self.known = size, nodes, known
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
        per_row = t.dim() > 0 and t.shape[0] in ({self.nodes} | self.edges)
        shape = (self.size, *t.shape[1:]) if per_row else tuple(t.shape)
        if id(t) in self.known or t.is_meta:
            return _filled(torch.empty(shape, dtype=t.dtype, device="cpu"))
        return t[: self.size] if per_row and len(t) >= self.size else t

    def graph(self, value: Any) -> Any:
        """A DGL graph in the small, with a loop at each node; anything else as it is."""
        if isinstance(value, Tensor) or not callable(getattr(value, "subgraph", None)):
            return value
        own = torch.arange(min(self.size, self.nodes))
        found = value.subgraph(own)
        found.add_edges(own, own)
        return found


def _is_edges(t: Tensor) -> bool:
    is_pairs = t.layout == torch.strided and t.dim() == 2 and t.shape[0] == 2
    return is_pairs and t.dtype == torch.int64


def _filled(tensor: Tensor) -> Tensor:
    """Random numbers, ones where they are whole, of a tensor's shape and type."""
    like = torch.ones(tensor.shape, dtype=tensor.dtype)
    return torch.rand_like(like) if tensor.is_floating_point() else like
