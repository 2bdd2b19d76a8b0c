"""What is computed in blocks of edges: for each layer, of what its messages are made.

A layer's own `message` runs on the edges of a block, with the tensors that it names. Where linear
layers come first in it they are applied to nodes in place of edges: `forms` has these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear as TorchLinear
from torch.nn import Module
from torch_geometric.nn.dense.linear import Linear

from hag_plugin.ops.message_blocks import Messages, Rows
from hag_plugin.pyg.aggregation.aggregators import REDUCERS
from hag_plugin.pyg.recipes.recipe import PAIRS
from hag_plugin.pyg.recipes.rowwise import why_not_by_rows, why_not_rowwise

LINEAR = (Linear, TorchLinear)


@dataclass(frozen=True)
class Given:
    """What a layer gave to its `propagate`, for the edges of a graph.

    Attributes:
        values: the arguments by name; of pairs, what is lifted as `_i` or as `_j`.
        size: the numbers of sources and targets.
        num_edges: how many edges.
        side: of a pair, the sources' one.
    """

    values: Mapping[str, Any]
    size: tuple[int, int]
    num_edges: int
    side: int

    def source(self, name: str) -> Any:
        """What is lifted as `name_j`."""
        value = self.values.get(name)
        return value[self.side] if isinstance(value, PAIRS) else value

    def target(self, name: str) -> Any:
        """What is lifted as `name_i`."""
        value = self.values.get(name)
        return value[1 - self.side] if isinstance(value, PAIRS) else value

    @property
    def is_dense(self) -> bool:
        """Whether there are more edges than nodes, so that work for nodes is the lesser one."""
        return self.num_edges >= sum(self.size)


@dataclass(frozen=True)
class EdgeRecipe:
    """How a layer's messages are computed in blocks of edges.

    Attributes:
        parts: names of the modules, functions and parameters of the layer that its message uses.
        takes: arguments of `message`: with `_i` and `_j` those that are lifted; others have a row
            for each edge.
        form: from the layer and what it gave, leaner messages with the same result; None where
            there are none.
        why_not: from the layer, why its message must see all edges. None: it need not.
        has_own: whether its own `message` runs where there is no leaner form.
    """

    parts: tuple[str, ...]
    takes: tuple[str, ...]
    form: Callable[[Any, Given], Messages | None] | None = None
    why_not: Callable[[Any], str | None] | None = None
    has_own: bool = True

    def why_stock(self, conv: Any) -> str | None:
        """Why a layer, as it is set up now, must see all edges at once. None: it need not."""
        reason = None if self.why_not is None else self.why_not(conv)
        if reason is not None:
            return reason
        for name in self.parts:
            part = getattr(conv, name, None)
            if isinstance(part, Tensor):
                if name not in conv._parameters:
                    return f"{name} is no parameter"
            else:
                reason = why_not_rowwise(part, name)
                if reason is not None:
                    return reason
        return why_not_by_rows(conv.aggr_module)

    def messages(self, conv: Any, given: Given) -> tuple[Messages, bool] | None:
        """What is computed, and whether by the layer's own `message`; None where an argument is
        not what it is computed of."""
        if not self._fits(given):
            return None
        found = None
        if self.form is not None and self._is_finite(given):
            found = self.form(conv, given)
        if found is not None:
            return found, False
        return (self._own(conv, given), True) if self.has_own else None

    def _fits(self, given: Given) -> bool:
        """Whether all arguments are rows of numbers, as many as nodes and edges, or not there."""
        counts = {"_j": given.size[0], "_i": given.size[1]}
        argument, dtypes = self._argument(given), set()
        for name in self.takes:
            value, count = argument(name), counts.get(name[-2:], given.num_edges)
            if value is None:
                continue
            if type(value) not in (Tensor, torch.nn.Parameter) or value.layout != torch.strided:
                return False
            if not value.is_cpu or not value.dim() or len(value) != count:
                return False
            dtypes.add(value.dtype)
        is_of_edges = any(given.values.get(name) is not None for name in self.takes)
        is_of_edges = is_of_edges or any(name.endswith("_i") for name in self.takes)
        return is_of_edges and all(dtype.is_floating_point for dtype in dtypes)

    def _is_finite(self, given: Given) -> bool:
        """Whether no argument holds NaN or Inf, which other terms would spread elsewhere."""
        with torch.no_grad():
            sums = [
                rows.sum() for rows in map(self._argument(given), self.takes) if rows is not None
            ]
            return all(bool(each.isfinite()) for each in sums)

    def _argument(self, given: Given) -> Callable[[str], Any]:
        def argument(name: str) -> Any:
            if name.endswith("_i"):
                return given.target(name[:-2])
            return given.source(name[:-2]) if name.endswith("_j") else given.values.get(name)

        return argument

    def _own(self, conv: Any, given: Given) -> Messages:
        """The layer's own `message`."""
        i: list[tuple[str, Tensor]] = []
        j: list[tuple[str, Tensor]] = []
        e: list[tuple[str, Tensor]] = []
        rest: dict[str, Any] = {}
        argument = self._argument(given)
        for name in self.takes:
            value = argument(name)
            if not isinstance(value, Tensor):
                rest[name] = value
            else:
                kind = i if name.endswith("_i") else j if name.endswith("_j") else e
                kind.append((name, value))
        names = [[name for name, _ in kind] for kind in (i, j, e)]
        i_names, j_names, e_names = names

        def message(module: Any, x_i: Rows, x_j: Rows, edges: Rows, whole: Rows) -> Tensor:
            arguments = {**rest, **dict(zip(i_names, x_i, strict=True))}
            arguments |= zip(j_names, x_j, strict=True)
            arguments |= zip(e_names, edges, strict=True)
            made: Tensor = module.message(**arguments)
            return made

        lifted = sum(value[:1].numel() for kind in (i, j, e) for _, value in kind)
        width = max(lifted, *(widest(getattr(conv, part, None)) for part in self.parts), 1)
        return aggregated(
            conv,
            names_of(conv, self.parts),
            message,
            targets=tuple(value for _, value in i),
            sources=tuple(value for _, value in j),
            edges=tuple(value for _, value in e),
            width=width,
        )


def aggregated(
    conv: Any,
    names: tuple[str, ...],
    message: Callable[[Any, Rows, Rows, Rows, Rows], Tensor],
    module: Any = None,
    **tensors: Any,
) -> Messages:
    """Messages that are aggregated as the layer does it.

    Args:
        conv: the layer.
        names: the parameters that `message` uses.
        message: what a message is.
        module: what stands for the layer in `message`; None: itself.
        tensors: the rest of `Messages`.
    """
    module = conv if module is None else module
    reduce = REDUCERS.get(type(conv.aggr_module))
    if reduce in ("sum", "mean"):
        return Messages(message=message, module=module, names=names, reduce=reduce, **tensors)
    names = (*names, *names_of(conv, ("aggr_module",)))
    return Messages(
        message=message, module=module, names=names, aggregate=_aggregate_rows, **tensors
    )


def _aggregate_rows(module: Any, made: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    out: Tensor = module.aggr_module(made, rows, dim_size=num_rows, dim=module.node_dim)
    return out


def names_of(conv: Any, parts: tuple[str, ...]) -> tuple[str, ...]:
    """The parameters of some parts of a layer, as `named_parameters` names them."""
    names = []
    for part in parts:
        value = getattr(conv, part, None)
        if isinstance(value, Module):
            names += [
                f"{part}.{name}" for name, _ in value.named_parameters(remove_duplicate=False)
            ]
        elif isinstance(value, Tensor) and part in conv._parameters:
            names.append(part)
    return tuple(names)


def widest(part: Any) -> int:
    """The most numbers that a linear layer inside of a part gives for a row."""
    if not isinstance(part, Module):
        return 0
    widths: list[int] = [len(layer.weight) for layer in part.modules() if isinstance(layer, LINEAR)]
    return max(widths, default=0)
